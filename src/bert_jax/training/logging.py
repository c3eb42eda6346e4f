"""What a run says while it goes on: a progress bar, JSON lines, TensorBoard."""

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

METRICS = "metrics.jsonl"

MEMBER = "member_"
"""Begins the name of the score of one of several runs that are trained at a time."""

Scores = dict[str, float]


@contextlib.contextmanager
def progress_bar(unit: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on standard error; gives a function to call with how many units are done, of how many."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class RunLog:
    """Logs of one run; only the first process of a multi-host run writes.

    Lines of ``metrics.jsonl`` hold ``step``, ``split`` ("train" or "held_out"), ``seconds`` since this start and
    the metrics. Lines beyond the step at which a run is resumed are dropped: they will be computed again.

    Args:
      run: the run directory.
      start: step at which this start goes on.
      steps: last step.
    """

    def __init__(self, run: epath.PathLike, *, start: int, steps: int) -> None:
        self._writes = jax.process_index() == 0
        self.console = Console(stderr=True, quiet=not self._writes)
        self._began = time.perf_counter()
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
            path = epath.Path(run) / METRICS
            if path.exists():
                kept = [line for line in read_metrics(run) if line["step"] <= start]
                part = path.parent / f".{METRICS}"
                part.write_text("".join(json.dumps(line) + "\n" for line in kept))
                part.replace(path)
            self._file = path.open("a")
            # Not above: where torch is installed, this imports it, which takes seconds.
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(epath.Path(run) / "tensorboard"), purge_step=start + 1)
            self._bar.start()

    def progress(self, step: int, metrics: Mapping[str, float]) -> None:
        """Move the bar."""
        shares = (f"{name.removesuffix('_accuracy')} {value:.1%}" for name, value in metrics.items() if name.endswith("accuracy"))
        shown = "  ".join([f"loss {metrics['loss']:.3f}", *shares, f"{metrics['tokens_per_second']:,.0f} tokens/s"])
        self._bar.update(self._task, completed=step, description=shown)

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Add a line and the TensorBoard scalars."""
        if self._writes:
            line: dict[str, Any] = {
                "step": step,
                "split": split,
                "seconds": round(time.perf_counter() - self._began, 3),
            }
            self._file.write(json.dumps(line | dict(metrics)) + "\n")
            self._file.flush()
            for name, value in metrics.items():
                self._board.add_scalar(f"{split}/{name}", value, step)

    def say(self, sentence: str) -> None:
        """Print above the bar."""
        self.console.print(sentence, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._writes:
            self._bar.stop()
            self._file.close()
            self._board.close()


def say(sentence: str) -> None:
    """Print to standard error, once of several processes."""
    Console(stderr=True, quiet=jax.process_index() > 0).print(sentence, highlight=False, soft_wrap=True)


def read_metrics(run: epath.PathLike) -> list[dict[str, Any]]:
    """Lines of a run's ``metrics.jsonl``; one that a killed process left unfinished is passed over."""
    path = epath.Path(run) / METRICS
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines
