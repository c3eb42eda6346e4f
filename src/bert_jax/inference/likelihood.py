"""Pseudo-log-likelihoods: how probable a masked language model finds whole texts."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from bert_jax.data.windows import Text, Window
from bert_jax.errors import UserError
from bert_jax.inference import compiled
from bert_jax.inference.batching import Progress, compute, cut_texts
from bert_jax.models.loaded import LoadedModel, tokenizer_of

Scoring = Literal["token", "within-word"]
"""Which tokens are masked when one is predicted: "token", it alone (Salazar et al. 2020); "within-word", it and the later tokens of
its word, so that the end of a rare word does not give its beginning away (Kauf and Ivanova 2023, PLL-word-l2r)."""

# Labels of a masked row: the sentences of a minimal pair that differ in one token are the same row when it is masked.
_LABELS = 2
# Texts whose masked rows are held in memory at a time.
_BLOCK = 4096


def pseudo_log_likelihood(
    model: LoadedModel, texts: Sequence[Text], *, scoring: Scoring = "token", progress: Progress | None = None
) -> Float[np.ndarray, " N"]:
    """As [`Bert.pseudo_log_likelihood`][bert_jax.Bert.pseudo_log_likelihood]."""
    if scoring not in get_args(Scoring):
        raise UserError(f"scoring is {scoring!r}; choose one of {', '.join(get_args(Scoring))}.")
    windows = cut_texts(model, texts, "error", None)
    done, total = 0, sum(len(_positions(window)) for window in windows)
    sums = []
    for start in range(0, len(windows), _BLOCK):
        block = windows[start : start + _BLOCK]
        rows = _Rows(model, block, texts[start : start + _BLOCK], scoring)
        share = len(rows.row) / max(len(rows.windows), 1)
        report = (lambda part, _, before=done, share=share: progress(before + round(share * part), total)) if progress else None
        sums.append(rows.compute(model, report))
        done += len(rows.row)
    return np.concatenate([np.zeros(0), *sums]).astype(np.float32)


class _Rows:
    """The masked rows of some texts, each of them once, and the predictions that they are computed for."""

    def __init__(self, model: LoadedModel, windows: Sequence[Window], texts: Sequence[Text], scoring: Scoring) -> None:
        mask, self._count = tokenizer_of(model).special_tokens.mask, len(windows)
        self.windows: list[Window] = []
        self._labels: list[list[int]] = []
        # Of each prediction: the index of its text, its row, and the index of its label in the row.
        self.text: list[int] = []
        self.row: list[int] = []
        self._slot: list[int] = []
        rows: dict[tuple[bytes, int, int], int] = {}
        starts = _word_starts(model, texts) if scoring == "within-word" else [None] * len(windows)
        for index, (window, word_starts) in enumerate(zip(windows, starts, strict=True)):
            for position, ids in _masked(window, word_starts, mask):
                key = ids.tobytes(), position, window.first
                label, row = int(window.ids[position]), rows.get(key)
                if row is None or (label not in self._labels[row] and len(self._labels[row]) == _LABELS):
                    row = rows[key] = len(self.windows)
                    self.windows.append(window._replace(ids=ids, keep=slice(position, position + 1)))
                    self._labels.append([])
                if label not in self._labels[row]:
                    self._labels[row].append(label)
                self.text.append(index)
                self.row.append(row)
                self._slot.append(self._labels[row].index(label))

    def compute(self, model: LoadedModel, progress: Progress | None) -> Float[np.ndarray, " N"]:
        """The sum of log-probabilities of each text."""
        function = functools.partial(compiled.label_log_probabilities, vocab_size=len(tokenizer_of(model).tokens))
        labels = np.array([[*row, *[0] * (_LABELS - len(row))] for row in self._labels], np.int32).reshape(-1, _LABELS)
        values = np.zeros(labels.shape)
        for indices, found in compute(model, function, self.windows, progress, arrays={"labels": labels}):
            values[indices] = found[: len(indices)]
        sums = np.zeros(self._count)
        np.add.at(sums, self.text, values[self.row, self._slot])
        return sums


def _positions(window: Window) -> list[int]:
    """All columns except [CLS], the [SEP] between the texts of a pair, and the last [SEP]."""
    return [position for position in range(1, len(window.ids) - 1) if position != window.first - 1]


def _masked(window: Window, word_starts: np.ndarray | None, mask: int) -> Iterator[tuple[int, np.ndarray]]:
    """Each column that is predicted, with the masked ids."""
    for position in _positions(window):
        end = position + 1
        while word_starts is not None and not word_starts[end]:
            end += 1
        ids = window.ids.copy()
        ids[position:end] = mask
        yield position, ids


def _word_starts(model: LoadedModel, texts: Sequence[Text]) -> Iterator[np.ndarray]:
    """Whether a word begins in each column of a text's row; special tokens count as words."""
    segments = [[text] if isinstance(text, str) else [*text] for text in texts]
    tokenized = iter(tokenizer_of(model).encode([segment for pair in segments for segment in pair]))
    for pair in segments:
        yield np.concatenate([[True], *(np.append(next(tokenized).word_starts, True) for _ in pair)])
