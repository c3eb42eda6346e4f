"""Minimal pairs: how often a model prefers the acceptable one of two sentences (BLiMP, Warstadt et al. 2020).

A file is a table, or has one JSON object a line. BLiMP's own files are read as they are (``sentence_good``, ``sentence_bad``,
``UID``, ``linguistics_term``); others have columns ``good`` and ``bad``, and optionally ``paradigm`` and ``phenomenon``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from bert_jax.errors import UserError
from bert_jax.inference.batching import Progress
from bert_jax.inference.bert import Bert
from bert_jax.inference.likelihood import Scoring
from bert_jax.tasks import table_files
from bert_jax.tasks.table_files import Row


class Pair(NamedTuple):
    """Two sentences that differ in what a paradigm is about."""

    good: str
    bad: str
    paradigm: str
    """By default the name of the file without its ending."""
    phenomenon: str | None = None


class Score(NamedTuple):
    """Pairs of a paradigm or phenomenon."""

    accuracy: float
    """Share of pairs in which the good sentence has the higher pseudo-log-likelihood; a tie counts half."""
    pairs: int
    ties: int


@dataclasses.dataclass(frozen=True)
class Report:
    """How a model scores minimal pairs."""

    scoring: Scoring
    paradigms: dict[str, Score]
    phenomena: dict[str, Score]
    """Empty where the files name none."""
    all: Score
    """All pairs together."""
    pairs: tuple[Pair, ...]
    likelihoods: np.ndarray
    """float32 [N, 2], pseudo-log-likelihoods of the good and the bad sentence of each pair, in nats."""

    @property
    def mean(self) -> float:
        """Mean of the paradigms' accuracies, which BLiMP and BabyLM report as the overall accuracy."""
        return float(np.mean([score.accuracy for score in self.paradigms.values()]))

    def to_dict(self) -> dict[str, Any]:
        """JSON values, without the single pairs."""
        groups = {"paradigms": self.paradigms, "phenomena": self.phenomena}
        scores = {kind: {name: score._asdict() for name, score in group.items()} for kind, group in groups.items()}
        return {"scoring": self.scoring, "mean": self.mean, "all": self.all._asdict(), **scores}


def score(
    model: Bert,
    paths: epath.PathLike | Sequence[epath.PathLike],
    *,
    scoring: Scoring = "token",
    good: str | None = None,
    bad: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Score the pairs of files.

    Args:
      model: a model with an MLM head.
      paths: files, or directories of files.
      scoring: as for [`pseudo_log_likelihood`][bert_jax.Bert.pseudo_log_likelihood].
      good, bad: columns of the sentences; by default ``sentence_good`` and ``sentence_bad``, else ``good`` and ``bad``.
      progress: called with the number of predictions computed, and of all predictions.

    Raises:
      UserError: as ``read``, or a sentence has more tokens than the model has positions; the model has no MLM head.

    Examples:
      >>> from bert_jax.evaluation import minimal_pairs
      >>> report = minimal_pairs.score(bert_jax.load("runs/base"), "blimp/data")  # doctest: +SKIP
      >>> report.mean, report.phenomena["island_effects"].accuracy  # doctest: +SKIP
      (0.61, 0.48)
    """
    pairs = (*read(paths, good=good, bad=bad),)
    if not pairs:
        raise UserError("There are no minimal pairs; name a file or a directory of them.")
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    likelihoods = model.pseudo_log_likelihood(texts, scoring=scoring, progress=progress).reshape(-1, 2)
    paradigms = _by(pairs, likelihoods, lambda pair: pair.paradigm)
    phenomena = _by(pairs, likelihoods, lambda pair: pair.phenomenon)
    return Report(scoring, paradigms, phenomena, _score(likelihoods), pairs, likelihoods)


def read(paths: epath.PathLike | Sequence[epath.PathLike], *, good: str | None = None, bad: str | None = None) -> Iterator[Pair]:
    """Read pairs; arguments as for ``score``.

    Raises:
      UserError: a file is missing, damaged or of an unknown format, or has no such columns; a sentence is empty.
    """
    single = isinstance(paths, str) or not isinstance(paths, Sequence)
    for path in _files([paths] if single else paths):
        stem = path.name.removesuffix(".gz").rpartition(".")[0]
        for row in table_files.rows(path):
            prefix = "sentence_" if "sentence_good" in row.fields else ""
            first, second = (_sentence(row, name) for name in (good or f"{prefix}good", bad or f"{prefix}bad"))
            paradigm, phenomenon = _name(row, "UID", "paradigm"), _name(row, "linguistics_term", "phenomenon")
            yield Pair(first, second, paradigm or phenomenon or stem, phenomenon)


def _files(paths: Iterable[epath.PathLike]) -> Iterator[epath.Path]:
    for path in map(epath.Path, paths):
        if not path.is_dir():
            yield path
            continue
        found = sorted(file for file in path.iterdir() if file.name.endswith(table_files.ENDINGS))
        if not found:
            raise UserError(f"{path} has no files of pairs; name a directory of files such as .jsonl or .tsv.")
        yield from found


def _sentence(row: Row, name: str) -> str:
    if name not in row.fields:
        raise UserError(
            f"{row.where}: there is no column {name!r}; a file of minimal pairs has sentence_good and sentence_bad, or good and "
            "bad, or columns that you name."
        )
    text = row.fields[name]
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{row.where}: {name!r} has no sentence; remove the row or write one.")
    return text


def _name(row: Row, *names: str) -> str | None:
    return next((str(row.fields[name]) for name in names if row.fields.get(name)), None)


def _by(pairs: Sequence[Pair], likelihoods: np.ndarray, key: Callable[[Pair], str | None]) -> dict[str, Score]:
    keys = np.array([key(pair) or "" for pair in pairs])
    return {name: _score(likelihoods[keys == name]) for name in dict.fromkeys(keys.tolist()) if name}


def _score(likelihoods: np.ndarray) -> Score:
    good, bad = likelihoods.T
    ties = int((good == bad).sum())
    return Score((int((good > bad).sum()) + ties / 2) / len(likelihoods), len(likelihoods), ties)
