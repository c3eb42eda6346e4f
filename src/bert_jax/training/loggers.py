"""Where the metrics of a run go: JSON lines, TensorBoard, Weights & Biases."""

from __future__ import annotations

import importlib.util
import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from etils import epath

from bert_jax.errors import UserError
from bert_jax.io import atomic

# Seconds after which TensorBoard sees a new line.
_FLUSH = 30.0
_WANDB = "wandb"


class Logger(Protocol):
    """Receives each line of metrics of a run once, also if the run is killed and resumed from an earlier step."""

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step of a split ("train", "held_out" or "dev")."""
        ...

    def flush(self) -> None:
        """Return when what was written is not lost if the process is killed."""
        ...

    def close(self) -> None:
        """Log no more."""
        ...


def check(names: Sequence[str]) -> None:
    """Check that the packages of loggers are installed.

    Raises:
      UserError: one is not.
    """
    if _WANDB in names and importlib.util.find_spec(_WANDB) is None:
        raise UserError("log.loggers names wandb, which is not installed; run pip install 'bert-jax[wandb]'.")


class JsonLines:
    """Lines of a file with ``step``, ``split``, ``seconds`` since the run was started or resumed, and the metrics.

    Args:
      path: the file, which is replaced.
      kept: the lines of earlier starts that remain.
    """

    def __init__(self, path: epath.Path, kept: Sequence[Mapping[str, Any]]) -> None:
        self._began = time.perf_counter()
        # Also where there is no file yet: a symbolic link of this name would lead elsewhere.
        with atomic.replaced_path(path) as part:
            part.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Append a line."""
        seconds = round(time.perf_counter() - self._began, 3)
        self._file.write(json.dumps({"step": step, "split": split, "seconds": seconds, **metrics}) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Every line is flushed when it is written."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """TensorBoard's event files.

    tensorboardX's ``SummaryWriter`` hands events to a thread, for which its ``flush`` does not wait; its ``EventsWriter``
    writes them at once. An event that says that the run continues from ``start`` lets TensorBoard drop later steps of an
    earlier start.

    Args:
      directory: where the files are.
      start: step from which the run starts or resumes.
    """

    def __init__(self, directory: epath.Path, *, start: int) -> None:
        # Imported late: if torch is installed, this imports it, which takes seconds.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import Summary

        directory.mkdir(parents=True, exist_ok=True)
        self._event, self._summary, self._flushed = Event, Summary, time.monotonic()
        self._writer = EventsWriter(os.fspath(directory / "events"), f".{start}")
        log = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=start + 1, session_log=log))

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Write an event with a scalar for each metric."""
        values = [self._summary.Value(tag=f"{split}/{name}", simple_value=value) for name, value in metrics.items()]
        self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))
        if time.monotonic() - self._flushed > _FLUSH:
            self.flush()

    def flush(self) -> None:
        """Write to the disk."""
        self._writer.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, which a resumed run continues.

    A row's number grows with the step, and W&B ignores rows whose number is not above the last one that it has, so that steps
    that a resumed run repeats are not logged twice; rows that were lost with a killed process are logged again. Offline, W&B
    does not know what an earlier start has logged.

    wandb is kept from storing what may hold secrets: output, code, the address of the repository, the command line and the
    environment.

    Args:
      directory: where the files are written.
      run: the run directory, where the files of earlier starts are.

    Raises:
      UserError: wandb cannot be used, for want of a key, say.
    """

    def __init__(self, directory: epath.Path, run: epath.Path) -> None:
        import wandb

        stored, config = run / _WANDB / "id", run / "config.json"
        identity = stored.read_text() if stored.exists() else uuid.uuid4().hex[:12]
        (directory / _WANDB).mkdir(parents=True, exist_ok=True)
        with atomic.replaced_path(directory / _WANDB / "id") as part:
            part.write_text(identity)
        try:
            self._run = wandb.init(
                id=identity,
                project=os.environ.get("WANDB_PROJECT", "bert-jax"),
                name=os.environ.get("WANDB_NAME", run.name),
                dir=os.fspath(directory),
                config=json.loads(config.read_text()) if config.exists() else None,
                resume="allow",
                settings=wandb.Settings(
                    console="off",
                    disable_code=True,
                    disable_git=True,
                    disable_job_creation=True,
                    silent=True,
                    x_disable_meta=True,
                    x_save_requirements=False,
                ),
            )
        except wandb.errors.Error as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise UserError(
                f"Weights & Biases cannot be used ({reason}); run `wandb login`, set WANDB_MODE=offline, or leave wandb out of "
                "log.loggers."
            ) from None
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Log a row; evaluations follow the training step."""
        values = {f"{split}/{name}": value for name, value in metrics.items()}
        self._run.log({"step": step, **values}, step=2 * step + (split != "train"))

    def flush(self) -> None:
        """wandb's own process stores rows after some seconds."""

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
