"""Fine-tuning over seeds, learning rates and a grid, with statistics of the scores (Mosbach et al. 2021, Zhang et al. 2021)."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import signal
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.stats
from etils import epath
from rich.console import Console
from rich.table import Table

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.io import atomic
from bert_jax.tasks import registry
from bert_jax.training import plots
from bert_jax.training.finetuning import CONSTANT, finetune
from bert_jax.training.logging import RUN_PREFIX, read_metrics

REPORT = "stability.json"
"""Name of the file with the statistics, in the run directory."""
_RESAMPLES = 9999
_PAPER: dict[str, Any] = {"batch_sizes": (16, 32), "epoch_counts": (2.0, 3.0, 4.0)}
_PAPER_RATES = (5e-5, 3e-5, 2e-5)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Batch sizes and numbers of epochs to combine; each combination is a run with a directory of its own.

    Examples:
      >>> Grid(batch_sizes=(16, 32)).epoch_counts
      ()
    """

    batch_sizes: tuple[int, ...] = ()
    """Batch sizes; none: that of --batch-size."""
    epoch_counts: tuple[float, ...] = ()
    """Numbers of epochs; none: that of --epochs."""
    paper_grid: bool = False
    """The grid of the paper's appendix A.3: batches of 16, 32; rates of 5e-5, 3e-5, 2e-5; 2 to 4 epochs. Other options win."""


_SINGLE = Grid()


class SeedStatistics(NamedTuple):
    """Statistics of runs that differ in their seed only."""

    batch_size: int
    epochs: float
    learning_rate: float
    scores: list[float]
    """Last development score of each seed."""
    median: float
    mean: float
    deviation: float
    """Sample standard deviation; 0 for a single run."""
    best: float
    collapsed: float
    """Share of runs that exceed the constant answer by at most 1 % of the distance to a perfect score."""
    interval: tuple[float, float]
    """95 % bootstrap interval of the mean."""
    constant: float
    """Score of the constant answer that is most frequent in the training data."""
    run: str
    """Run directory."""


class Report(NamedTuple):
    """Result of ``finetune_all``."""

    statistics: list[SeedStatistics]
    """One entry for each batch size, number of epochs and learning rate."""
    text: str
    """A table, or a sentence about a single run; empty if a signal stopped the runs."""
    signal: signal.Signals | None
    """The signal that stopped the runs, or None."""


def finetune_all(config: FinetuneConfig, grid: Grid = _SINGLE) -> Report:
    """Fine-tune a config, or every combination of a grid, and compute statistics over seeds.

    The combinations of a grid have directories inside the run directory; finished ones are not trained again. Several runs also
    write ``stability.json`` and ``stability.png``.

    Args:
      config: the run, with its seeds and learning rates.
      grid: batch sizes and numbers of epochs to combine.

    Raises:
      UserError, RunError: as [`finetune`][bert_jax.finetune].
    """
    if grid.paper_grid:
        grid = dataclasses.replace(grid, **{name: getattr(grid, name) or values for name, values in _PAPER.items()})
        if config.learning_rates == FinetuneConfig.learning_rates:
            config = dataclasses.replace(config, learning_rates=_PAPER_RATES)
    statistics: list[SeedStatistics] = []
    # All configs are built first, so that an invalid one is refused before anything is trained.
    for combination in _combinations(config, grid):
        result = finetune(combination)
        if result.signal:
            return Report(statistics, "", result.signal)
        statistics += seed_statistics(combination)
    if jax.process_index() == 0 and len(statistics) * config.seeds > 1:
        _write(config, statistics)
    return Report(statistics, _text(config, statistics), None)


def _combinations(config: FinetuneConfig, grid: Grid) -> list[FinetuneConfig]:
    batch_sizes, epoch_counts = grid.batch_sizes or (config.batch_size,), grid.epoch_counts or (config.epochs,)
    if len(batch_sizes) * len(epoch_counts) == 1:
        return [dataclasses.replace(config, batch_size=batch_sizes[0], epochs=epoch_counts[0])]
    return [
        dataclasses.replace(
            config, run=str(epath.Path(config.run) / f"batch-{size}-epochs-{epochs:g}"), batch_size=size, epochs=epochs
        )
        for size, epochs in itertools.product(batch_sizes, epoch_counts)
    ]


def seed_statistics(config: FinetuneConfig) -> list[SeedStatistics]:
    """Statistics of a finished run over its seeds, one entry for each learning rate.

    Args:
      config: the run; its scores are read from its run directory.
    """
    task = registry.get(config.task)
    last = [line for line in read_metrics(config.run) if line["split"] == "dev"][-1]
    if config.num_runs > 1:
        all_scores = [last[f"{RUN_PREFIX}{index}"] for index in range(config.num_runs)]
    else:
        all_scores = [last[task.main_score]]
    collapse_limit = last[CONSTANT] + 0.01 * (task.perfect - last[CONSTANT])
    statistics = []
    for index, learning_rate in enumerate(config.learning_rates):
        scores = np.array(all_scores[index * config.seeds : (index + 1) * config.seeds])
        statistics.append(
            SeedStatistics(
                batch_size=config.batch_size,
                epochs=config.epochs,
                learning_rate=learning_rate,
                scores=scores.tolist(),
                median=float(np.median(scores)),
                mean=float(scores.mean()),
                deviation=float(scores.std(ddof=1)) if len(scores) > 1 else 0.0,
                best=float(scores.max()),
                collapsed=float((scores <= collapse_limit).mean()),
                interval=bootstrap_interval(scores),
                constant=last[CONSTANT],
                run=config.run,
            )
        )
    return statistics


def bootstrap_interval(scores: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of scores [N]; deterministic.

    Examples:
      >>> bootstrap_interval(np.array([0.7]))
      (0.7, 0.7)
    """
    if len(scores) < 2 or np.ptp(scores) == 0:
        return float(scores.min()), float(scores.max())
    result = scipy.stats.bootstrap((scores,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=np.random.default_rng(0))
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _write(config: FinetuneConfig, statistics: Sequence[SeedStatistics]) -> None:
    directory, main_score = epath.Path(config.run), registry.get(config.task).main_score
    content = {"task": config.task, "score": main_score, "runs": [entry._asdict() for entry in statistics]}
    with atomic.replaced_path(directory / REPORT) as path:
        path.write_text(json.dumps(content, indent=2) + "\n")
    labels = [f"{entry.learning_rate:g}\nbatch {entry.batch_size}\n{entry.epochs:g} epochs" for entry in statistics]
    figure = plots.seed_scores(labels, [entry.scores for entry in statistics], main_score, statistics[0].constant)
    with atomic.replaced_path(directory / plots.STABILITY) as path:
        figure.savefig(path, dpi=150, format="png")


def _text(config: FinetuneConfig, statistics: Sequence[SeedStatistics]) -> str:
    """A table of several runs, or a sentence about one."""
    main_score, constant = registry.get(config.task).main_score, statistics[0].constant
    if len(statistics) * config.seeds == 1:
        return f"{config.run}: {main_score} {statistics[0].best:.4g}; a constant answer scores {constant:.4g}"
    table = Table(title=f"{config.task}: {main_score} over {config.seeds} seeds; a constant answer scores {constant:.4g}")
    for name in ("batch", "epochs", "learning rate", "median", "mean ± std", "95 % interval", "best", "collapsed"):
        table.add_column(name, justify="right")
    for entry in statistics:
        low, high = entry.interval
        table.add_row(
            str(entry.batch_size),
            f"{entry.epochs:g}",
            f"{entry.learning_rate:g}",
            f"{entry.median:.4f}",
            f"{entry.mean:.4f} ± {entry.deviation:.4f}",
            f"{low:.4f} to {high:.4f}",
            f"{entry.best:.4f}",
            f"{entry.collapsed:.0%}",
        )
    drawn = io.StringIO()
    Console(width=120, file=drawn, highlight=False).print(table)
    best = max(statistics, key=lambda entry: entry.median)
    choice = f"Best median: batch {best.batch_size}, {best.epochs:g} epochs, learning rate {best.learning_rate:g}, in {best.run}."
    return f"{drawn.getvalue()}{choice}"
