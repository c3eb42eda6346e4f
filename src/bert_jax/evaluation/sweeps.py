"""Several small runs, paired by their seeds, and what they reach on one scale."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from bert_jax.config.run import Config
from bert_jax.config.validation import require
from bert_jax.evaluation.mask_rates import RATES, score_at_rates
from bert_jax.inference import bert
from bert_jax.training.pretraining import pretrain

SCORES = "rates.json"


class Sweep(NamedTuple):
    """What the runs of a sweep reached."""

    runs: dict[str, list[str]]
    """Directory of each seed's run, by the name of its config."""
    scores: dict[str, list[dict[str, float]]]
    """What :func:`bert_jax.evaluation.mask_rates.score_at_rates` says of each."""

    def values(self, name: str, score: str) -> np.ndarray:
        """A score of every seed of a config, float64 [seeds]."""
        return np.array([found[score] for found in self.scores[name]])

    def table(self, scores: Sequence[str], *, against: str | None = None) -> str:
        """Means and standard deviations over seeds in Markdown; with ``against``, a config's name, also the mean difference to it,
        seed by seed, and the standard error of that mean."""
        against_names = [] if against is None else [f"{score} less {against}" for score in scores]
        lines = ["| config | " + " | ".join([*scores, *against_names]) + " |"]
        lines.append("|---|" + "---|" * (len(scores) + len(against_names)))
        for name in self.runs:
            cells = [_spread(self.values(name, score)) for score in scores]
            if against is not None:
                apart = [self.values(name, score) - self.values(against, score) for score in scores]
                cells += ["" if name == against else _difference(values) for values in apart]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        return "\n".join(lines)


def sweep(configs: Mapping[str, Config], *, seeds: int = 3, rates: Sequence[float] = RATES, limit: int | None = None) -> Sweep:
    """Pretrain every config with every seed, one after the other, and score each run at fixed masking rates.

    Runs of one seed are paired: they begin with the same parameters, read the same examples in the same order, and have the same
    noise in their masks. What has been done is not done again: the same call goes on where it was stopped.

    Args:
      configs: by name; run directories are ``run``-SEED of each.
      seeds: how many, from ``train.seed`` of each config on.
      rates: shares of tokens at which runs are scored.
      limit: held-out batches that are scored; all where not given.

    Raises:
      UserError: as :func:`bert_jax.pretrain`; two configs would have the same run directory.
      Failure: as :func:`bert_jax.pretrain`.
      KeyboardInterrupt: a run was stopped by a signal; it is saved.
    """
    require(seeds > 0, f"seeds is {seeds}; it must be greater than 0.")
    require(len({config.run for config in configs.values()}) == len(configs), "Two configs of a sweep have the same run directory.")
    runs: dict[str, list[str]] = {name: [] for name in configs}
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in configs}
    for seed in range(seeds):
        for name, config in configs.items():
            run = f"{config.run}-{config.train.seed + seed}"
            train = dataclasses.replace(config.train, seed=config.train.seed + seed)
            result = pretrain(dataclasses.replace(config, run=run, train=train))
            if result.signal:
                raise KeyboardInterrupt
            runs[name].append(run)
            scores[name].append(_scored(run, config, rates, limit))
    return Sweep(runs, scores)


def _scored(run: str, config: Config, rates: Sequence[float], limit: int | None) -> dict[str, float]:
    path = epath.Path(run) / SCORES
    asked: dict[str, Any] = {"rates": [*rates], "limit": limit}
    if path.exists():
        stored: dict[str, Any] = json.loads(path.read_text())
        if stored["asked"] == asked:
            found: dict[str, float] = stored["scores"]
            return found
    data = config.data
    found = score_at_rates(
        bert.load(run), data.corpus, rates=rates, length=data.sequence_length, batch_size=data.batch_size, limit=limit
    )
    path.write_text(json.dumps({"asked": asked, "scores": found}, indent=2) + "\n")
    return found


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.4f}" + (f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else "")


def _difference(values: np.ndarray) -> str:
    error = f" ± {values.std(ddof=1) / np.sqrt(len(values)):.4f}" if len(values) > 1 else ""
    return f"{values.mean():+.4f}{error}"
