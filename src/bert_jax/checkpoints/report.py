"""What the checkpoint directory of a run contains: steps and why they are kept, and what failed saves and damage left there."""

from __future__ import annotations

import dataclasses
import datetime
import os
import time
from collections.abc import Collection, Mapping
from typing import Any, Literal

from etils import epath

from bert_jax.checkpoints import manifest
from bert_jax.checkpoints.retention import Saved, reasons
from bert_jax.checkpoints.store import TEMPORARY, Checkpoints
from bert_jax.config.retention import Retention
from bert_jax.io.parsing import read_json

# A directory that a running job is writing has a file that is younger than this.
_SECONDS_OF_WRITING = 600


@dataclasses.dataclass(frozen=True)
class Entry:
    """A directory among the checkpoints of a run."""

    path: epath.Path
    kind: Literal["step", "set aside", "unfinished"]
    """A step; one that was damaged and renamed; or what a save that did not end has written."""
    saved: datetime.datetime
    """When the step was committed, or when the directory was last changed."""
    size: int
    """Bytes of all files."""
    step: int | None = None
    version: int | None = None
    """Format version of a step whose description can be read."""
    kept: tuple[str, ...] = ()
    """Why a step is kept."""
    problems: tuple[str, ...] = ()
    """What is wrong with a step."""

    @property
    def removable(self) -> bool:
        """Whether ``prune`` deletes it."""
        if self.kind == "unfinished":
            return time.time() - self.saved.timestamp() > _SECONDS_OF_WRITING
        return self.kind == "set aside" or not (self.kept or self.problems)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = {"path": str(self.path), "saved": self.saved.isoformat(timespec="seconds"), "removable": self.removable}
        return dataclasses.asdict(self) | values


def stored_retention(run: epath.PathLike) -> Retention | None:
    """The retention in a run's config, of pretraining or fine-tuning and of any format version; None if there is no config.

    Raises:
      UserError: the config is not JSON.
    """
    path = epath.Path(run) / "config.json"
    if not path.exists():
        return None
    config = read_json(path)
    train = config.get("train", config)
    return Retention(
        train.get("keep", 1),
        tuple(train.get("save_at", ())),
        every=train.get("keep_every"),
        hours=train.get("keep_hours"),
        best=train.get("keep_best", 0),
    )


def read(
    run: epath.PathLike, *, retention: Retention | None = None, losses: Mapping[int, float] | None = None, verify: bool = False
) -> list[Entry]:
    """The checkpoints of a run, steps first and in ascending order.

    Args:
      run: the run directory.
      retention: which steps are kept; None: all.
      losses: step -> held-out loss.
      verify: whether to read every array and compare it with its checksum, instead of only the description and the manifest.
    """
    checkpoints = Checkpoints(run)
    try:
        steps = [_step(checkpoints, step, verify=verify) for step in checkpoints.steps()]
    finally:
        checkpoints.close()
    # A damaged step neither counts as one of the newest nor is it deleted.
    whole = [Saved(entry.step, entry.saved) for entry in steps if entry.step is not None and not entry.problems]
    why = reasons(retention or Retention(max(len(whole), 1)), whole, losses or {})
    steps = [dataclasses.replace(entry, kept=tuple(why.get(entry.step or 0, ()))) for entry in steps]
    numbers = {entry.step for entry in steps if entry.step is not None}
    return steps + [entry for path in sorted(checkpoints.path.iterdir()) if (entry := _other(path, numbers))]


def prune(entries: list[Entry]) -> int:
    """Delete what is removable, and return the number of bytes."""
    removed = [entry for entry in entries if entry.removable]
    for entry in removed:
        # A link is removed, and what it leads to stays.
        entry.path.unlink() if os.path.islink(entry.path) else entry.path.rmtree()
    return sum(entry.size for entry in removed)


def _step(checkpoints: Checkpoints, step: int, *, verify: bool) -> Entry:
    path = checkpoints.path / str(step)
    version, problems = checkpoints.check(step, arrays=verify)
    return Entry(path, "step", checkpoints.saved(step), _size(path), step, version, problems=tuple(problems))


def _other(path: epath.Path, steps: Collection[int]) -> Entry | None:
    # On an object store, a step has its final name before it is committed.
    if TEMPORARY in path.name or (path.name.isdecimal() and int(path.name) not in steps):
        kind: Literal["set aside", "unfinished"] = "unfinished"
    elif path.name.startswith("damaged-"):
        kind = "set aside"
    else:
        return None
    return Entry(path, kind, datetime.datetime.fromtimestamp(manifest.last_change(path), datetime.UTC), _size(path))


def _size(directory: epath.Path) -> int:
    return sum(path.stat().length for path in manifest.files(directory))
