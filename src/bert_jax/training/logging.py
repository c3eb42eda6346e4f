"""Logs of a run: a progress bar, JSON lines, TensorBoard."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bert_jax.io import atomic, remote
from bert_jax.io.spool import Spool

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
    """Logs of one run; only the first process of a multi-host run writes.

    A line of ``metrics.jsonl`` contains ``step``, ``split`` ("train", "held_out" or "dev"), ``seconds`` since the run was started
    or resumed, and the metrics. When a run is resumed, lines of later steps are removed, because these steps are repeated.

    Args:
      run: the run directory.
      start: step from which the run starts or resumes.
      steps: last step.
    """

    def __init__(self, run: epath.PathLike, *, start: int, steps: int) -> None:
        self._writes = jax.process_index() == 0
        self.console = Console(stderr=True, quiet=not self._writes)
        self._start_time = time.perf_counter()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self.console, refresh_per_second=4)
        self._task = self._bar.add_task("compiling", total=steps, completed=start)
        if self._writes:
            kept = "".join(json.dumps(line) + "\n" for line in read_metrics(run) if line["step"] <= start)
            self._spool = Spool(epath.Path(run)) if remote.is_remote(run) else None
            directory = self._spool.path if self._spool else epath.Path(run)
            # Also where there is no file yet: a symbolic link of this name would lead elsewhere.
            with atomic.replaced_path(directory / METRICS) as part:
                part.write_text(kept)
            self._file = (directory / METRICS).open("a")
            # Imported late: if torch is installed, this imports it, which takes seconds.
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=start + 1)
            self.sync()
            self._bar.start()

    def progress(self, step: int, metrics: Mapping[str, float]) -> None:
        """Advance the bar to a step, and show its loss, accuracies and speed."""
        accuracies = (
            f"{name.removesuffix('_accuracy')} {value:.1%}" for name, value in metrics.items() if name.endswith("accuracy")
        )
        description = "  ".join([f"loss {metrics['loss']:.3f}", *accuracies, f"{metrics['tokens_per_second']:,.0f} tokens/s"])
        self._bar.update(self._task, completed=step, description=description)

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Append a line to ``metrics.jsonl``, and write the TensorBoard scalars."""
        if self._writes:
            line: dict[str, Any] = {
                "step": step,
                "split": split,
                "seconds": round(time.perf_counter() - self._start_time, 3),
            }
            self._file.write(json.dumps(line | dict(metrics)) + "\n")
            self._file.flush()
            for name, value in metrics.items():
                self._board.add_scalar(f"{split}/{name}", value, step)
            if self._spool:
                self._spool.changed()

    def sync(self) -> None:
        """Return when what was written is on the object store, if the run directory is there.

        Raises:
          RunError: the store cannot be written.
        """
        if self._writes and self._spool:
            self._board.flush()
            self._spool.flush()

    def message(self, sentence: str) -> None:
        """Print a sentence above the bar."""
        self.console.print(sentence, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Stop the bar and close the files."""
        if self._writes:
            self._bar.stop()
            self._file.close()
            self._board.close()
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
