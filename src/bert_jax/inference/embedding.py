"""One vector for each text: windows pooled on the device, and combined on the host."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from bert_jax.data.windows import Text, Window
from bert_jax.errors import UserError
from bert_jax.inference import compiled
from bert_jax.inference.batching import Progress, compute
from bert_jax.models.loaded import LoadedModel, tokenizer_of
from bert_jax.models.sentence_embedding import Pooling


def with_prompt(text: Text, prompt: str) -> Text:
    """Put a prompt before a text, or before the first text of a pair."""
    return prompt + text if isinstance(text, str) else (prompt + text[0], *text[1:])


def exclude_prompt(model: LoadedModel, rows: Sequence[Window], prompt: str) -> tuple[list[Window], int]:
    """Windows that keep no token of the prompt, and the first column after it."""
    # [CLS] and the prompt.
    first = 1 + len(tokenizer_of(model).encode([prompt])[0].ids)
    return [row._replace(keep=slice(min(first, len(row.ids)), row.keep.stop)) for row in rows], first


def pool(
    model: LoadedModel,
    rows: Sequence[Window],
    modes: Sequence[Pooling],
    *,
    count: int,
    first: int = 0,
    progress: Progress | None = None,
) -> Float[np.ndarray, "N D"]:
    """Pool the states of texts, and concatenate the vectors of several poolings.

    Args:
      model: the model.
      rows: windows of the texts, in order. Over all windows of a text, each token counts once; "cls" is the mean of the [CLS].
      modes: the poolings.
      count: N, number of texts.
      first: column whose state "cls" is.
      progress: as for [`Bert.embed`][bert_jax.Bert.embed].

    Raises:
      UserError: a text has several windows, and a pooling is not defined for them.
    """
    last_window = {row.text: index for index, row in enumerate(rows)}
    if "weightedmean" in modes and len(last_window) < len(rows):
        raise UserError("The pooling weightedmean needs each text in one window; set long to truncate.")
    totals = {mode: np.full((count, model.config.hidden_size), -np.inf if mode == "max" else 0.0, np.float32) for mode in modes}
    tokens, windows = np.zeros((count, 1), np.float32), np.zeros((count, 1), np.float32)
    function = functools.partial(compiled.pool_windows, modes=tuple(modes), first=first)
    for indices, values in compute(model, function, rows, progress):
        texts = [rows[index].text for index in indices]
        np.add.at(tokens, (texts, 0), [rows[index].keep.stop - rows[index].keep.start for index in indices])
        np.add.at(windows, (texts, 0), 1)
        for mode, pooled in zip(modes, values, strict=True):
            pooled = pooled[: len(indices)]
            if mode == "lasttoken":
                is_last = np.array([last_window[rows[index].text] == index for index in indices])
                pooled = pooled * is_last[:, None]
            (np.maximum if mode == "max" else np.add).at(totals[mode], texts, pooled)
    tokens, windows = np.maximum(tokens, 1), np.maximum(windows, 1)
    for mode, divisor in (("mean", tokens), ("mean_sqrt_len_tokens", np.sqrt(tokens)), ("cls", windows)):
        if mode in totals:
            totals[mode] /= divisor
    return np.concatenate([totals[mode] for mode in modes], axis=1)
