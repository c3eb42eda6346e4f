"""Logs of a run: a progress bar, and metrics for every logger."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from bert_jax.io import remote
from bert_jax.io.spool import Spool
from bert_jax.training.loggers import JsonLines, Logger, TensorBoard, WeightsAndBiases

METRICS = "metrics.jsonl"
"""Name of the file of metrics in a run directory."""
RUN_PREFIX = "run_"
"""Prefix of the names of the scores of an ensemble's runs: run_0, run_1, ..."""

Scores = dict[str, float]
"""Metrics by name."""


@contextlib.contextmanager
def progress_bar(unit: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show a progress bar on standard error.

    Args:
      unit: what is counted, in the plural.

    Yields:
      A function to call with the number of units done and their total, or None where the total is unknown.
    """
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class RunLog:
    """Logs of one run; only the first process of a multi-host run shows progress and writes metrics.

    When a run is resumed, lines of later steps are removed from ``metrics.jsonl``, because these steps are repeated.

    Args:
      run: the run directory.
      start: step from which the run starts or resumes.
      steps: last step.
      loggers: names of those that receive the metrics beside ``metrics.jsonl``.

    Raises:
      UserError: a logger cannot be used.
    """

    def __init__(self, run: epath.PathLike, *, start: int, steps: int, loggers: Sequence[str] = ("tensorboard",)) -> None:
        writes = jax.process_index() == 0
        self.console = Console(stderr=True, quiet=not writes)
        columns = (
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            # What a narrow terminal has no room for is cut from the end.
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        )
        self._bar = Progress(*columns, console=self.console, refresh_per_second=4, expand=True)
        self._task = self._bar.add_task("compiling" if start < steps else "", total=steps, completed=start)
        run = epath.Path(run)
        self._spool = Spool(run) if remote.is_remote(run) else None
        self.directory = self._spool.path if self._spool else run
        """Where files of the run are written, also by other processes than the first one."""
        self._loggers: list[Logger] = []
        if writes:
            # First the one that may refuse to start.
            if "wandb" in loggers:
                self._loggers.append(WeightsAndBiases(self.directory, run))
            if "tensorboard" in loggers:
                self._loggers.append(TensorBoard(self.directory / "tensorboard", start=start))
            kept = [line for line in read_metrics(run) if line["step"] <= start]
            self._loggers.append(JsonLines(self.directory / METRICS, kept))
            self._bar.start()
        self.sync()

    def progress(self, step: int, metrics: Mapping[str, float]) -> None:
        """Advance the bar to a step, and show its loss, accuracies and speed."""
        shares = {name.removesuffix("_accuracy"): value for name, value in metrics.items() if name.endswith("accuracy")}
        shares |= {label: metrics[name] for name, label in (("mfu", "MFU"), ("goodput", "goodput")) if name in metrics}
        description = [f"loss {metrics['loss']:.3f}", *(f"{label} {value:.1%}" for label, value in shares.items())]
        description.append(f"{metrics['tokens_per_second']:,.0f} tokens/s")
        self._bar.update(self._task, completed=step, description="  ".join(description))

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Hand a line of metrics to every logger."""
        for logger in self._loggers:
            logger.write(step, split, metrics)
        self.changed()

    def changed(self) -> None:
        """Copy the files to the object store in the background, if the run directory is there."""
        if self._spool:
            self._spool.changed()

    def sync(self) -> None:
        """Return when what was written is on the disk, or on the object store if the run directory is there.

        Raises:
          RunError: the store cannot be written.
        """
        for logger in self._loggers:
            logger.flush()
        if self._spool:
            self._spool.flush()

    def message(self, sentence: str) -> None:
        """Print a sentence above the bar."""
        self.console.print(sentence, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Stop the bar and close the files."""
        self._bar.stop()
        for logger in self._loggers:
            logger.close()
        if self._spool:
            self._spool.close()


def log(sentence: str) -> None:
    """Print a sentence to standard error, on the first process only."""
    Console(stderr=True, quiet=jax.process_index() > 0).print(sentence, markup=False, highlight=False, soft_wrap=True)


def held_out_losses(run: epath.PathLike) -> dict[int, float]:
    """Step -> held-out MLM loss of a pretraining run.

    Args:
      run: the run directory.
    """
    return {line["step"]: line["mlm_loss"] for line in read_metrics(run, split="held_out") if "mlm_loss" in line}


def read_metrics(run: epath.PathLike, *, split: str = "") -> list[dict[str, Any]]:
    """Lines of a run's ``metrics.jsonl``, without an unfinished last line, which a killed process may leave.

    Args:
      run: the run directory.
      split: return the lines of this split only, without the time to parse the others.

    Examples:
      >>> read_metrics("no-such-run")
      []
    """
    path = epath.Path(run) / METRICS
    lines = []
    for line in path.read_text().splitlines() if path.exists() else ():
        if split and f'"split": "{split}"' not in line:
            continue
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines
