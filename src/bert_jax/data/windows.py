"""Texts of any length as windows that a model can take, and windows as batches of few shapes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from bert_jax.config.run import ModelConfig
from bert_jax.config.validation import require
from bert_jax.errors import UserError
from bert_jax.tokenizers import MASK, Tokenizer

Text = str | tuple[str, str]
Long = Literal["error", "truncate", "chunk", "stride"]
"""What is done with a text that is too long: refuse it; cut it (of a pair, the longer part first); cut it into windows
that touch; or into windows that overlap by half, of which each piece is taken from the one where it stands deeper."""

# Widths of batches: a text is padded by a third at most.
_WIDTHS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


class Window(NamedTuple):
    """One row for the model."""

    text: int
    """Number of the text that it belongs to."""
    ids: np.ndarray
    """int32 [N], [CLS] and [SEP] included."""
    first: int
    """Pieces of the first segment, [CLS] and its [SEP] counted."""
    keep: slice
    """Places that stand for the text: over its windows, they are [CLS], each piece once, [SEP]."""


def cut(tokenizer: Tokenizer, texts: Sequence[Text], *, limit: int, long: Long = "error") -> list[Window]:
    """Windows of texts and pairs of texts, in order; [MASK] in a text is the mask piece.

    Args:
      tokenizer: the model's.
      texts: the second text of a pair gets the second type.
      limit: most pieces in a window, special ones counted.
      long: what to do with texts that have more.

    Raises:
      UserError: a text is too long and ``long`` is "error", or is a pair that would have to become windows.
    """
    require(long in get_args(Long), f"long is {long!r}; choose one of {', '.join(get_args(Long))}.")
    require(limit >= 5, f"The limit of {limit} pieces leaves no room for text.")
    parts = [_parts(number, text) for number, text in enumerate(texts)]
    pieces = iter(_tokenize(tokenizer, [part for pair in parts for part in pair]))
    specials = tokenizer.specials
    windows: list[Window] = []
    for number, pair in enumerate(parts):
        rows = [next(pieces) for _ in pair]
        room, size = limit - 1 - len(rows), sum(map(len, rows))
        if size > room and long == "error":
            raise UserError(
                f"Text {number + 1} has {size + 1 + len(rows):,} pieces, special ones counted; the limit is {limit}. "
                "Let it be cut with long: truncate, chunk or stride."
            )
        if size > room and long == "truncate":
            rows = _truncate(rows, room)
        elif size > room and len(rows) > 1:
            raise UserError(
                f"Text {number + 1} is a pair of {size + 3:,} pieces with a limit of {limit}; pairs can only be truncated."
            )
        elif size > room:
            windows += _slide(rows[0], number, room, room // 2 if long == "stride" else room, specials.cls, specials.sep)
            continue
        ids = np.concatenate([[specials.cls], *([*row, specials.sep] for row in rows)]).astype(np.int32)
        windows.append(Window(number, ids, len(rows[0]) + 2, slice(0, len(ids))))
    return windows


def batches(windows: Sequence[Window], *, tokens: int, limit: int, pad: int) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Numbers of windows with a batch of them, longest first: any number of texts makes few shapes.

    Args:
      windows: what :func:`cut` returns.
      tokens: about as many, padding counted, are in a batch.
      limit: widest row.
      pad: id of padding.

    Yields:
      numbers of the windows in the first rows of the batch, and the batch with ``keep`` bool [B, S]; further rows
      are padding.
    """
    order = sorted(range(len(windows)), key=lambda number: -len(windows[number].ids))
    at = 0
    while at < len(order):
        longest = len(windows[order[at]].ids)
        width = min((edge for edge in _WIDTHS if edge >= longest), default=-(-longest // 512) * 512)
        width = max(longest, min(width, limit))
        rows = max(1, tokens // width)
        chosen = order[at : at + rows]
        at += rows
        yield chosen, _batch([windows[number] for number in chosen], min(rows, 1 << (len(chosen) - 1).bit_length()), width, pad)


def from_arrays(given: Mapping[str, Any], config: ModelConfig) -> dict[str, np.ndarray]:
    """A batch of ``ids`` [B, S] with, if need be, ``types`` and ``segments``, one example in a row.

    Raises:
      UserError: shapes do not fit, a value is none of the model's, or rows are longer than it has positions.
    """
    unknown = sorted(set(given) - {"ids", "types", "segments"})
    require(
        "ids" in given and not unknown,
        f"A batch of arrays has ids, types and segments, not {', '.join(unknown) or 'only the last two'}.",
    )
    try:
        ids = np.asarray(given["ids"])
        batch = {
            "ids": ids,
            "types": np.asarray(given["types"]) if "types" in given else np.zeros(ids.shape, np.int32),
            "segments": np.asarray(given["segments"]) if "segments" in given else np.ones(ids.shape, np.int32),
        }
    except ValueError as error:
        raise UserError(f"The arrays cannot be read: {error}.") from None
    for name, value in batch.items():
        right = value.ndim == 2 and value.dtype.kind in "iub"
        require(right, f"{name} has shape {value.shape} and dtype {value.dtype}; it must be integers [B, S].")
    for name, below in (("ids", config.vocab_size), ("types", config.type_vocab_size), ("segments", 2)):
        value = batch[name]
        require(value.shape == ids.shape, f"{name} has shape {value.shape}, ids has {ids.shape}.")
        low, high = (int(value.min()), int(value.max())) if value.size else (0, 0)
        require(low >= 0 and high < below, f"{name} holds {low if low < 0 else high}; its values must lie in [0, {below}).")
    most = config.max_position_embeddings
    require(ids.shape[1] <= most, f"ids has {ids.shape[1]} columns; the model has {most} positions.")
    batch["positions"] = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    batch["cls_positions"] = np.zeros((len(ids), 1))
    return {name: value.astype(np.int32) for name, value in batch.items()}


def _batch(windows: Sequence[Window], rows: int, width: int, pad: int) -> dict[str, np.ndarray]:
    column = np.arange(width)
    sizes = np.zeros((rows, 2), np.int64)
    ids, keep = np.full((rows, width), pad, np.int32), np.zeros((rows, width), np.bool_)
    for row, window in enumerate(windows):
        sizes[row] = len(window.ids), window.first
        ids[row, : len(window.ids)], keep[row, window.keep] = window.ids, True
    valid = column < sizes[:, :1]
    return {
        "ids": ids,
        "types": (valid & (column >= sizes[:, 1:])).astype(np.int32),
        "positions": np.where(valid, column, 0).astype(np.int32),
        "segments": valid.astype(np.int32),
        "cls_positions": np.zeros((rows, 1), np.int32),
        "keep": keep,
    }


def _parts(number: int, text: Text) -> tuple[str, ...]:
    parts = (text,) if isinstance(text, str) else text
    pair = isinstance(parts, tuple | list) and (len(parts) == 2 or parts == (text,))
    require(pair and all(isinstance(part, str) for part in parts), f"Text {number + 1} is neither a string nor a pair of strings.")
    try:
        "".join(parts).encode()
    except UnicodeEncodeError:
        raise UserError(f"Text {number + 1} holds half a surrogate pair; the text is damaged.") from None
    return tuple(parts)


def _tokenize(tokenizer: Tokenizer, texts: list[str]) -> Iterator[list[int]]:
    parts = [text.split(MASK) for text in texts]
    pieces = iter(tokenizer.encode([*itertools.chain.from_iterable(parts)]))
    for part in parts:
        row = next(pieces).ids.tolist()
        for _ in part[1:]:
            row += [tokenizer.specials.mask, *next(pieces).ids.tolist()]
        yield row


def _truncate(rows: list[list[int]], room: int) -> list[list[int]]:
    """Cut the end of the longer part until both fit, as the original's ``_truncate_seq_pair``."""
    if len(rows) == 1:
        return [rows[0][:room]]
    # Of two parts that are both too long, the first keeps the odd piece.
    first = min(len(rows[0]), max(room - len(rows[1]), room - room // 2))
    return [rows[0][:first], rows[1][: room - first]]


def _slide(row: list[int], text: int, room: int, step: int, cls: int, sep: int) -> Iterator[Window]:
    starts = [*range(0, len(row), room)] if step == room else [*range(0, len(row) - room, step), len(row) - room]
    ends = [min(start + room, len(row)) for start in starts]
    borders = [0, *((after + end) // 2 for after, end in zip(starts[1:], ends[:-1], strict=True)), len(row)]
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        left, right = borders[number] - start + (number > 0), borders[number + 1] - start + 1 + (number == len(starts) - 1)
        yield Window(text, np.array([cls, *row[start:end], sep], np.int32), end - start + 2, slice(left, right))
