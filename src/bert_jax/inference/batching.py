"""Texts as batches of windows, and functions computed on them; the methods of [`Bert`][bert_jax.Bert] are made of these."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.batch import Batch, HostBatch
from bert_jax.data import windows
from bert_jax.data.windows import Long, Text, Window
from bert_jax.errors import UserError
from bert_jax.models.loaded import LoadedModel, tokenizer_of

# Texts whose features are held in memory at a time.
_FEATURE_BLOCK = 256

Progress = Callable[[int, int], None]
"""Called with the number of windows computed so far, and the number of all windows."""


class TextFeatures(NamedTuple):
    """Hidden states of the tokens of one text."""

    tokens: list[str]
    """The N tokens: [CLS], those of the text, [SEP]."""
    values: np.ndarray
    """float32 [C, N, D], for C layers."""


def cut_texts(model: LoadedModel, texts: Sequence[Text], long: Long, sequence_length: int | None) -> list[Window]:
    """Windows of texts, as [`cut`][bert_jax.data.windows.cut] makes them, that the model can encode.

    Args:
      model: with a tokenizer.
      texts: strings and pairs of strings.
      long: handling of texts with more tokens than ``sequence_length``.
      sequence_length: maximum tokens of a window; None: the model's number of positions.

    Raises:
      UserError: an argument is of another type, or the windows do not fit the model; and as [`cut`][bert_jax.data.windows.cut].
    """
    positions = model.config.max_position_embeddings
    if not isinstance(texts, Sequence) or isinstance(texts, str):
        raise UserError("Give a list of texts.")
    length = positions if sequence_length is None else sequence_length
    if not isinstance(length, int):
        raise UserError(f"sequence_length is {length!r}; it must be a number of tokens.")
    if length > positions:
        raise UserError(f"sequence_length is {length}, more than the model's {positions} positions.")
    rows = windows.cut(tokenizer_of(model), texts, sequence_length=length, long=long)
    if model.config.type_vocab_size < 2 and any(row.first < len(row.ids) for row in rows):
        raise UserError("The model has one token type, so it cannot encode pairs.")
    for row in rows:
        if row.ids.max() >= model.config.vocab_size:
            token = tokenizer_of(model).tokens[int(row.ids.max())]
            raise UserError(
                f"Text {row.text + 1} has the token {token!r} with the id {row.ids.max()}, but the word embeddings have "
                f"{model.config.vocab_size:,} rows; load the model with added_tokens to enlarge them, or remove the token."
            )
    return rows


def compute(
    model: LoadedModel,
    function: Callable[..., Any],
    rows: Sequence[Window],
    progress: Progress | None = None,
    *,
    arrays: HostBatch | None = None,
) -> Iterator[tuple[list[int], Any]]:
    """Compute ``function(config, params, batch)`` on batches of windows.

    Args:
      model: with a tokenizer.
      function: compiled; see [`bert_jax.inference.compiled`][bert_jax.inference.compiled].
      rows: the windows.
      progress: called after each batch.
      arrays: further arrays for the batches, with a row for each window.

    Yields:
      The index of the window in each of the first rows of a batch, and the result as NumPy arrays.
    """
    pad, positions = tokenizer_of(model).special_tokens.pad, model.config.max_position_embeddings
    previous: tuple[list[int], Any] | None = None
    done = 0
    for indices, batch in windows.batches(rows, tokens=_batch_tokens(), sequence_length=positions, pad=pad):
        for name, values in (arrays or {}).items():
            padding = [(0, len(batch["input_ids"]) - len(indices)), *[(0, 0)] * (values.ndim - 1)]
            batch[name] = np.pad(values[indices], padding)
        # The device computes this batch while the host handles the previous one.
        result = function(model.config, model.params, to_device(batch))
        if previous:
            yield previous[0], jax.device_get(previous[1])
        previous = indices, result
        done += len(indices)
        if progress:
            progress(done, len(rows))
    if previous:
        yield previous[0], jax.device_get(previous[1])


def text_features(
    model: LoadedModel, function: Callable[..., Any], rows: Sequence[Window], progress: Progress | None = None
) -> Iterator[TextFeatures]:
    """Features of each text, in order, from a function that returns states [C, B, S, D]; arguments as for ``compute``."""
    tokens, done = tokenizer_of(model).tokens, 0
    windows_by_text = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row.text)]
    for start in range(0, len(windows_by_text), _FEATURE_BLOCK):
        block = windows_by_text[start : start + _FEATURE_BLOCK]
        block_rows = [*itertools.chain.from_iterable(block)]
        states: dict[int, np.ndarray] = {}
        for indices, values in compute(model, function, block_rows):
            for batch_row, index in enumerate(indices):
                row = block_rows[index]
                states[index] = values[:, batch_row, : len(row.ids)][:, row.keep].astype(np.float32)
        row_indices = iter(range(len(block_rows)))
        for text_windows in block:
            values = np.concatenate([states[next(row_indices)] for _ in text_windows], axis=1)
            yield TextFeatures([tokens[token_id] for row in text_windows for token_id in row.ids[row.keep]], values)
        done += len(block_rows)
        if progress:
            progress(done, len(rows))


def to_device(batch: HostBatch) -> Batch:
    """A batch on the default device."""
    return {name: jnp.asarray(value) for name, value in batch.items()}


def _batch_tokens() -> int:
    # A CPU is fastest when the states of a batch fit its caches, an accelerator with many tokens.
    return 1024 if jax.default_backend() == "cpu" else 65536
