"""Texts of any length as windows of at most S tokens, windows as batches of few shapes, and arrays of any tokenizer as batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from bert_jax.batch import HostBatch
from bert_jax.config.model import ModelConfig
from bert_jax.errors import UserError
from bert_jax.io.parsing import check_text
from bert_jax.tokenizers import Tokenizer

Text = str | tuple[str, str]
"""A text or a pair of texts."""
Long = Literal["error", "truncate", "chunk", "stride"]
"""Handling of a text that is too long. "error" raises; "truncate" cuts its end (of a pair, the end of the longer text); "chunk"
makes adjacent windows; "stride" makes windows that overlap by half and takes each token from the one with more context around
it."""

# Row lengths of batches; they are spaced so that at most a third of a row is padding.
_ROW_LENGTHS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_MIN_SEQUENCE_LENGTH = 5
# Outputs of a transformers tokenizer that a model does not take.
_IGNORED_ARRAYS = (
    "special_tokens_mask",
    "offset_mapping",
    "length",
    "overflow_to_sample_mapping",
    "overflowing_tokens",
    "num_truncated_tokens",
)


class Window(NamedTuple):
    """One row of model input."""

    text: int
    """Index of the text it belongs to."""
    ids: np.ndarray
    """int32 [N], token ids with [CLS] and [SEP]."""
    first: int
    """Tokens of the first segment, including [CLS] and its [SEP]."""
    keep: slice
    """Columns that represent the text: over all of its windows they are [CLS], each token once, [SEP]."""
    truncated: bool = False
    """Whether tokens of the text were cut off."""


def cut(tokenizer: Tokenizer, texts: Sequence[Text], *, sequence_length: int, long: Long = "error") -> list[Window]:
    """Tokenize texts and pairs of texts into windows, in order; a literal [MASK] in a text becomes the mask token.

    Args:
      tokenizer: the model's tokenizer.
      texts: the second text of a pair gets token type 1.
      sequence_length: maximum tokens of a window, special tokens included.
      long: handling of texts with more tokens.

    Raises:
      UserError: a text is too long and ``long`` is "error", a pair is too long and ``long`` is "chunk" or "stride", an element is
        neither a string nor a pair of strings, or ``sequence_length`` is below 5.
    """
    if long not in get_args(Long):
        raise UserError(f"long is {long!r}; choose one of {', '.join(get_args(Long))}.")
    if sequence_length < _MIN_SEQUENCE_LENGTH:
        raise UserError(
            f"A sequence length of {sequence_length} leaves no room for text; it must be at least {_MIN_SEQUENCE_LENGTH}."
        )
    segments = [_segments(index, text) for index, text in enumerate(texts)]
    tokenized = iter(tokenizer.encode([segment for pair in segments for segment in pair]))
    special_tokens = tokenizer.special_tokens
    windows: list[Window] = []
    for index, pair in enumerate(segments):
        rows = [next(tokenized).ids.tolist() for _ in pair]
        special, size = 1 + len(rows), sum(map(len, rows))
        room = sequence_length - special
        if size > room and long == "error":
            raise UserError(
                f"Text {index + 1} has {size + special:,} tokens, special tokens included, more than the sequence length of "
                f"{sequence_length}; shorten it, or set long to truncate, chunk or stride."
            )
        if size > room and long == "truncate":
            rows = _truncate(rows, room)
        elif size > room and len(rows) > 1:
            raise UserError(
                f"Text {index + 1} is a pair of {size + special:,} tokens, more than the sequence length of {sequence_length}; "
                "pairs can only be truncated, so set long to truncate."
            )
        elif size > room:
            step = room // 2 if long == "stride" else room
            windows += _slide(rows[0], index, room, step, special_tokens.cls, special_tokens.sep)
            continue
        ids = np.concatenate([[special_tokens.cls], *([*row, special_tokens.sep] for row in rows)]).astype(np.int32)
        windows.append(Window(index, ids, len(rows[0]) + 2, slice(0, len(ids)), size > room))
    return windows


def batches(
    windows: Sequence[Window], *, tokens: int, sequence_length: int, pad: int
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Yield batches of windows, longest first, in a small number of shapes however many texts there are.

    Args:
      windows: result of [`cut`][bert_jax.data.windows.cut].
      tokens: approximate tokens of a batch, padding included.
      sequence_length: maximum length of a row.
      pad: id of the padding token.

    Yields:
      Indices of the windows in the first rows of the batch, and the batch with ``keep`` bool [B, S]; further rows are padding.
    """
    order = sorted(range(len(windows)), key=lambda index: -len(windows[index].ids))
    start = 0
    while start < len(order):
        longest = len(windows[order[start]].ids)
        length = min((edge for edge in _ROW_LENGTHS if edge >= longest), default=-(-longest // 512) * 512)
        length = max(longest, min(length, sequence_length))
        rows = max(1, tokens // length)
        chosen = order[start : start + rows]
        start += rows
        yield chosen, _batch([windows[index] for index in chosen], min(rows, 1 << (len(chosen) - 1).bit_length()), length, pad)


def from_arrays(arrays: Mapping[str, Any], config: ModelConfig) -> HostBatch:
    """Make a batch with one example per row from arrays of any tokenizer, such as the output of a transformers tokenizer.

    Positions count the attended tokens of a row from 0. For rows that are padded on the right this equals transformers, which
    numbers columns; for rows that are padded on the left it gives each token the position it has without padding.

    Args:
      arrays: ``input_ids`` [B, S]; optionally ``token_type_ids`` [B, S], 0 by default, and either ``attention_mask`` or
        ``segment_ids`` [B, S], 1 for tokens and 0 for padding, 1 by default. Values are integer or boolean NumPy, JAX or PyTorch
        arrays or nested lists. Other outputs of transformers tokenizers (``special_tokens_mask``, ``offset_mapping``,
        ``length``, ...) are ignored.
      config: the model.

    Returns:
      int32 arrays ``input_ids``, ``token_type_ids``, ``segment_ids``, ``position_ids`` [B, S] and ``cls_positions`` [B, 1], the
      first attended column of each row.

    Raises:
      UserError: a name is unknown, shapes differ, a value is out of range, or rows are longer than the model's position table.

    Examples:
      >>> from bert_jax.data import windows
      >>> config = bert_jax.ModelConfig.size("tiny")
      >>> arrays = {"input_ids": [[0, 101, 7592, 102]], "attention_mask": [[0, 1, 1, 1]]}
      >>> batch = windows.from_arrays(arrays, config)
      >>> batch["position_ids"].tolist(), batch["cls_positions"].tolist()
      ([[0, 0, 1, 2]], [[1]])
    """
    batch = _as_integers(arrays)
    ids = batch["input_ids"]
    limits = {"input_ids": config.vocab_size, "token_type_ids": config.type_vocab_size, "attention_mask": 2, "segment_ids": 2}
    for name, values in batch.items():
        if values.shape != ids.shape:
            raise UserError(f"{name} has shape {values.shape}, but input_ids has shape {ids.shape}; they must be equal.")
        smallest, largest = (int(values.min()), int(values.max())) if values.size else (0, 0)
        if smallest < 0 or largest >= limits[name]:
            value = smallest if smallest < 0 else largest
            raise UserError(f"{name} contains {value}; its values must lie in [0, {limits[name]}).")
    if ids.shape[1] > config.max_position_embeddings:
        raise UserError(
            f"input_ids has {ids.shape[1]} columns, but the model has {config.max_position_embeddings} positions; truncate them."
        )
    mask = batch.get("attention_mask", batch.get("segment_ids", np.ones(ids.shape, np.int32))).astype(np.int32)
    completed = {
        "input_ids": ids,
        "token_type_ids": batch.get("token_type_ids", np.zeros(ids.shape, np.int32)),
        "segment_ids": mask,
        "position_ids": np.maximum(np.cumsum(mask, axis=1) - 1, 0),
        "cls_positions": mask.argmax(axis=1)[:, None] if ids.shape[1] else np.zeros((len(ids), 1)),
    }
    return {name: values.astype(np.int32) for name, values in completed.items()}


def _as_integers(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Check the names of arrays and convert them to NumPy arrays [B, S] of integers or booleans."""
    known = ("input_ids", "token_type_ids", "attention_mask", "segment_ids")
    unknown = sorted(set(arrays) - {*known, *_IGNORED_ARRAYS})
    if unknown:
        raise UserError(f"{', '.join(unknown)} cannot be encoded; give arrays named {', '.join(known)}.")
    if "input_ids" not in arrays:
        raise UserError("The arrays lack input_ids; give token ids of shape [B, S].")
    if "attention_mask" in arrays and "segment_ids" in arrays:
        raise UserError("Both attention_mask and segment_ids are given; leave one out.")
    converted = {}
    for name in known:
        if name not in arrays:
            continue
        try:
            values = np.asarray(arrays[name])
        except (ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"{name} is not an array of shape [B, S] ({error}); pad the texts to equal length.") from None
        if values.ndim != 2 or values.dtype.kind not in "iub":
            raise UserError(f"{name} has shape {values.shape} and dtype {values.dtype}; it must be integers of shape [B, S].")
        converted[name] = values
    return converted


def _batch(windows: Sequence[Window], rows: int, length: int, pad: int) -> dict[str, np.ndarray]:
    column = np.arange(length)
    sizes = np.zeros((rows, 2), np.int64)
    ids, keep = np.full((rows, length), pad, np.int32), np.zeros((rows, length), np.bool_)
    for row, window in enumerate(windows):
        sizes[row] = len(window.ids), window.first
        ids[row, : len(window.ids)], keep[row, window.keep] = window.ids, True
    valid = column < sizes[:, :1]
    return {
        "input_ids": ids,
        "token_type_ids": (valid & (column >= sizes[:, 1:])).astype(np.int32),
        "position_ids": np.where(valid, column, 0).astype(np.int32),
        "segment_ids": valid.astype(np.int32),
        "cls_positions": np.zeros((rows, 1), np.int32),
        "keep": keep,
    }


def _segments(index: int, text: Text) -> tuple[str, ...]:
    """Return the one or two strings of a text."""
    segments = (text,) if isinstance(text, str) else text
    is_text = isinstance(segments, tuple | list) and (len(segments) == 2 or segments == (text,))
    if not is_text or not all(isinstance(segment, str) for segment in segments):
        raise UserError(f"Text {index + 1} is neither a string nor a pair of strings.")
    for segment in segments:
        check_text(segment, f"Text {index + 1}")
    return tuple(segments)


def _truncate(rows: list[list[int]], room: int) -> list[list[int]]:
    """Cut the end of the longer segment until both fit, as the original's ``_truncate_seq_pair`` does."""
    if len(rows) == 1:
        return [rows[0][:room]]
    # If both segments are longer than half the room and the room is odd, the first one keeps one token more.
    first = min(len(rows[0]), max(room - len(rows[1]), room - room // 2))
    return [rows[0][:first], rows[1][: room - first]]


def _slide(row: list[int], text: int, room: int, step: int, cls: int, sep: int) -> Iterator[Window]:
    starts = [*range(0, len(row), room)] if step == room else [*range(0, len(row) - room, step), len(row) - room]
    ends = [min(start + room, len(row)) for start in starts]
    # Tokens between two borders are kept from the window between them; a border lies in the middle of an overlap.
    borders = [0, *((after + end) // 2 for after, end in zip(starts[1:], ends[:-1], strict=True)), len(row)]
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        left, right = borders[index] - start + (index > 0), borders[index + 1] - start + 1 + (index == len(starts) - 1)
        yield Window(text, np.array([cls, *row[start:end], sep], np.int32), end - start + 2, slice(left, right))
