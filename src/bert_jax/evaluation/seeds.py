"""Many fine-tuning runs and how much they differ: stability is an output (Mosbach et al. 2021, Zhang et al. 2021)."""

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
from bert_jax.tasks import registry
from bert_jax.training import plots
from bert_jax.training.finetuning import FLOOR, finetune
from bert_jax.training.logging import MEMBER, read_metrics

REPORT = "stability.json"
_RESAMPLES = 9999
_PAPER: dict[str, Any] = {"batch_sizes": (16, 32), "epoch_counts": (2.0, 3.0, 4.0)}
_PAPER_RATES = (5e-5, 3e-5, 2e-5)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Runs that do not fit into one program; each combination has a directory of its own."""

    batch_sizes: tuple[int, ...] = ()
    """Sizes to try; --batch-size where none is given."""
    epoch_counts: tuple[float, ...] = ()
    """Numbers of epochs to try; --epochs where none is given."""
    paper_grid: bool = False
    """Batches of 16 and 32, rates 5e-5, 3e-5, 2e-5, 2 to 4 epochs (appendix A.3)."""


_ONE = Grid()


class Spread(NamedTuple):
    """How runs ended that differ only in their seed."""

    batch_size: int
    epochs: float
    learning_rate: float
    scores: list[float]
    """Last development score of each seed."""
    median: float
    mean: float
    deviation: float
    """Sample standard deviation; 0 of a single run."""
    best: float
    collapsed: float
    """Share of runs that are hardly better than the constant answer: by a hundredth of the way to a perfect score at most."""
    interval: tuple[float, float]
    """95 % bootstrap interval of the mean."""
    constant: float
    """Score of the most frequent answer of the training data."""
    run: str


class Report(NamedTuple):
    """What became of all runs."""

    spreads: list[Spread]
    text: str
    signal: signal.Signals | None
    """The signal that stopped them, or None."""


def finetune_all(config: FinetuneConfig, grid: Grid = _ONE) -> Report:
    """Fine-tune a config, or every combination of a grid, and report how much seeds and learning rates matter.

    A grid's combinations lie in directories of the run; finished ones are not trained again. ``stability.json`` and
    ``stability.png`` are written where there are several runs.

    Raises:
      UserError, Failure: as :func:`bert_jax.finetune`.
    """
    if grid.paper_grid:
        grid = dataclasses.replace(grid, **{name: getattr(grid, name) or values for name, values in _PAPER.items()})
        if len(config.learning_rates) == 1:
            config = dataclasses.replace(config, learning_rates=_PAPER_RATES)
    sizes, counts = grid.batch_sizes or (config.batch_size,), grid.epoch_counts or (config.epochs,)
    whole = len(sizes) * len(counts) == 1
    # All of them, so that what is wrong with the last is known before the first is trained.
    configs = [
        dataclasses.replace(
            config,
            run=config.run if whole else str(epath.Path(config.run) / f"batch-{size}-epochs-{epochs:g}"),
            batch_size=size,
            epochs=epochs,
        )
        for size, epochs in itertools.product(sizes, counts)
    ]
    spreads: list[Spread] = []
    for one in configs:
        result = finetune(one)
        if result.signal:
            return Report(spreads, "", result.signal)
        spreads += spread(one)
    if jax.process_index() == 0 and len(spreads) * config.seeds > 1:
        _write(config, spreads)
    return Report(spreads, _text(config, spreads), None)


def spread(config: FinetuneConfig) -> list[Spread]:
    """How the runs of a finished config ended: for each learning rate, over its seeds."""
    last = [line for line in read_metrics(config.run) if line["split"] == "dev"][-1]
    main = registry.main_score(config.task)
    scores = [last[f"{MEMBER}{number}"] for number in range(config.members)] if config.members > 1 else [last[main]]
    found = []
    for number, rate in enumerate(config.learning_rates):
        mine = np.array(scores[number * config.seeds : (number + 1) * config.seeds])
        perfect = 100.0 if registry.head(config.task) == "span" else 1.0
        limit = last[FLOOR] + 0.01 * (perfect - last[FLOOR])
        found.append(
            Spread(
                batch_size=config.batch_size,
                epochs=config.epochs,
                learning_rate=rate,
                scores=mine.tolist(),
                median=float(np.median(mine)),
                mean=float(mine.mean()),
                deviation=float(mine.std(ddof=1)) if len(mine) > 1 else 0.0,
                best=float(mine.max()),
                collapsed=float((mine <= limit).mean()),
                interval=interval(mine),
                constant=last[FLOOR],
                run=config.run,
            )
        )
    return found


def interval(scores: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of scores [N], the same each time."""
    if len(scores) < 2 or np.ptp(scores) == 0:
        return float(scores.min()), float(scores.max())
    drawn = scipy.stats.bootstrap((scores,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=np.random.default_rng(0))
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def _write(config: FinetuneConfig, spreads: Sequence[Spread]) -> None:
    directory, main = epath.Path(config.run), registry.main_score(config.task)
    content = {"task": config.task, "score": main, "runs": [entry._asdict() for entry in spreads]}
    part = directory / f".{REPORT}"
    part.write_text(json.dumps(content, indent=2) + "\n")
    part.replace(directory / REPORT)
    labels = [f"{entry.learning_rate:g}\nbatch {entry.batch_size}\n{entry.epochs:g} epochs" for entry in spreads]
    figure = plots.spreads(labels, [entry.scores for entry in spreads], main, spreads[0].constant)
    part = directory / f".{plots.STABILITY}"
    figure.savefig(part, dpi=150, format="png")
    part.replace(directory / plots.STABILITY)


def _text(config: FinetuneConfig, spreads: Sequence[Spread]) -> str:
    """A table of several runs, or a sentence about one."""
    main = registry.main_score(config.task)
    if len(spreads) * config.seeds == 1:
        return f"{config.run}: {main} {spreads[0].best:.4g}; a constant answer has {spreads[0].constant:.4g}"
    table = Table(title=f"{config.task}: {main} over {config.seeds} seeds; a constant answer has {spreads[0].constant:.4g}")
    for name in ("batch", "epochs", "learning rate", "median", "mean ± std", "95 % interval", "best", "collapsed"):
        table.add_column(name, justify="right")
    for entry in spreads:
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
    best = max(spreads, key=lambda entry: entry.median)
    picked = f"Best median: batch {best.batch_size}, {best.epochs:g} epochs, learning rate {best.learning_rate:g}, in {best.run}."
    return f"{drawn.getvalue()}{picked}"
