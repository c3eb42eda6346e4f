"""Sweeps: several small pretraining runs, paired by seed and scored at fixed mask rates."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from bert_jax.config.run import Config
from bert_jax.errors import UserError
from bert_jax.evaluation.mask_rates import RATES, score_at_rates
from bert_jax.inference.files import load
from bert_jax.io import atomic
from bert_jax.training.pretraining import pretrain

SCORES = "rates.json"
"""Name of the file in a run directory with the scores of the run."""


class Sweep(NamedTuple):
    """Runs and scores of a sweep.

    Examples:
      >>> result = Sweep({"a": ["a-0"], "b": ["b-0"]}, {"a": [{"0.15": 2.5}], "b": [{"0.15": 2.25}]})
      >>> print(result.table(["0.15"], against="a"))
      | config | 0.15 | 0.15 minus a |
      |---|---|---|
      | a | 2.5000 |  |
      | b | 2.2500 | -0.2500 |
    """

    runs: dict[str, list[str]]
    """Name of each config -> run directory of each seed."""
    scores: dict[str, list[dict[str, float]]]
    """Name of each config -> result of [`score_at_rates`][bert_jax.evaluation.mask_rates.score_at_rates] of each seed."""

    def values(self, name: str, score: str) -> np.ndarray:
        """A score of each seed of a config, float64 [seeds]."""
        return np.array([scores[score] for scores in self.scores[name]])

    def table(self, scores: Sequence[str], *, against: str | None = None) -> str:
        """Means and standard deviations over seeds, in Markdown.

        Args:
          scores: names of scores, a column each.
          against: name of a config. Further columns then show the mean difference to it over pairs of the same seed, with the
            standard error of that mean.
        """
        differences = [] if against is None else [f"{score} minus {against}" for score in scores]
        lines = ["| config | " + " | ".join([*scores, *differences]) + " |"]
        lines.append("|---|" + "---|" * (len(scores) + len(differences)))
        for name in self.runs:
            cells = [_mean_and_deviation(self.values(name, score)) for score in scores]
            if against is not None:
                pairs = [self.values(name, score) - self.values(against, score) for score in scores]
                cells += ["" if name == against else _mean_difference(values) for values in pairs]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        return "\n".join(lines)


def sweep(
    configs: Mapping[str, Config], *, seeds: int = 3, rates: Sequence[float] = RATES, max_batches: int | None = None
) -> Sweep:
    """Pretrain every config with every seed, one after the other, and score each run at fixed mask rates.

    Runs of the same seed are paired: they have the same initial parameters, the same examples in the same order, and the same
    random draws in their masks. The same call resumes a sweep that was interrupted; finished runs are not repeated.

    Args:
      configs: configs by name; the run directories of each are ``run``-SEED.
      seeds: number of seeds, beginning with ``train.seed`` of each config.
      rates: mask rates at which runs are scored.
      max_batches: maximum number of held-out batches for a score; None: the whole split.

    Raises:
      UserError: two configs have the same run directory; and as [`pretrain`][bert_jax.pretrain].
      RunError: as [`pretrain`][bert_jax.pretrain].
      KeyboardInterrupt: a signal stopped a run, which is saved.

    Examples:
      >>> small = bert_jax.Config("runs/fixed", bert_jax.DataConfig("wiki"))
      >>> falling = bert_jax.Config("runs/falling", small.data, mask=bert_jax.MaskPolicy("linear(0.3, 0.15)"))
      >>> result = bert_jax.sweep({"fixed": small, "falling": falling}, seeds=3)  # doctest: +SKIP
      >>> print(result.table(["0.15"], against="fixed"))  # doctest: +SKIP
    """
    if seeds < 1:
        raise UserError(f"seeds is {seeds}; it must be at least 1.")
    if len({config.run for config in configs.values()}) < len(configs):
        raise UserError("Two configs of the sweep have the same run directory; give each its own.")
    runs: dict[str, list[str]] = {name: [] for name in configs}
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in configs}
    for offset in range(seeds):
        for name, config in configs.items():
            seed = config.train.seed + offset
            run = f"{config.run}-{seed}"
            result = pretrain(dataclasses.replace(config, run=run, train=dataclasses.replace(config.train, seed=seed)))
            if result.signal:
                raise KeyboardInterrupt
            runs[name].append(run)
            scores[name].append(_score(run, config, rates, max_batches))
    return Sweep(runs, scores)


def _score(run: str, config: Config, rates: Sequence[float], max_batches: int | None) -> dict[str, float]:
    """Scores of a run, stored in its directory and read from there if they were computed with the same settings."""
    path = epath.Path(run) / SCORES
    settings: dict[str, Any] = {"rates": [*rates], "max_batches": max_batches}
    if path.exists():
        stored: dict[str, Any] = json.loads(path.read_text())
        if stored.get("settings") == settings:
            stored_scores: dict[str, float] = stored["scores"]
            return stored_scores
    data = config.data
    scores = score_at_rates(
        load(run),
        data.corpus,
        rates=rates,
        sequence_length=data.sequence_length,
        batch_size=data.batch_size,
        max_batches=max_batches,
    )
    if jax.process_index() == 0:
        with atomic.replaced_path(path) as part:
            part.write_text(json.dumps({"settings": settings, "scores": scores}, indent=2) + "\n")
    return scores


def _mean_and_deviation(values: np.ndarray) -> str:
    return f"{values.mean():.4f}" + (f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else "")


def _mean_difference(values: np.ndarray) -> str:
    error = f" ± {values.std(ddof=1) / np.sqrt(len(values)):.4f}" if len(values) > 1 else ""
    return f"{values.mean():+.4f}{error}"
