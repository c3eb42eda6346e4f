"""The manager of Orbax checkpoints in a directory: that of Orbax on file systems and ``gs://``, one that copies on ``s3://``."""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from bert_jax.checkpoints import manifest
from bert_jax.checkpoints.retention import Preservation, Saved
from bert_jax.errors import UserError
from bert_jax.io import remote

COMMITTED = "commit_success.txt"
"""File that marks a step as complete."""


def open_manager(
    path: epath.Path, handlers: Mapping[str, Any], preservation: Preservation | None, *, before_commit: Callable[[], None]
) -> Any:
    """Open a directory of steps.

    Args:
      path: the directory.
      handlers: handler of each item of a checkpoint.
      preservation: which steps are kept when a step is saved; None: read only.
      before_commit: called by the first process when all files of a step are written, to write its manifest.

    Returns:
      A ``CheckpointManager``, or a [`StagedManager`][bert_jax.checkpoints.manager.StagedManager].

    Raises:
      UserError: as ``StagedManager``.
    """
    if str(path).startswith("s3://"):
        return StagedManager(path, handlers, preservation)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation,
        cleanup_tmp_directories=preservation is not None,
        read_only=preservation is None,
        enable_async_checkpointing=True,
        async_options=ocp.options.AsyncOptions(post_finalization_callback=before_commit),
    )
    return ocp.CheckpointManager(path, options=options, item_handlers=dict(handlers))


def open_step(manager: Any, path: epath.Path, step: int) -> epath.Path:
    """Directory of a step that Orbax's handlers can read."""
    return manager.download(step) if isinstance(manager, StagedManager) else path / str(step)


class StagedManager:
    """The part of ``orbax.checkpoint.CheckpointManager`` that this package uses, for S3, to which Orbax cannot write.

    Steps are written to a local directory and copied. The layout is that of Orbax on ``gs://``: a step is complete when it has the
    file ``commit_success.txt``, which is written last and deleted first.

    Args:
      path: the remote directory of the steps.
      handlers: as in [`open_manager`][bert_jax.checkpoints.manager.open_manager].
      preservation: as there.

    Raises:
      UserError: several processes would have to share the local directory.
    """

    def __init__(self, path: epath.Path, handlers: Mapping[str, Any], preservation: Preservation | None) -> None:
        if jax.process_count() > 1:
            raise UserError(f"Several processes cannot write checkpoints to {path}; use gs:// or a shared file system.")
        self._path, self._preservation = path, preservation
        self._store = remote.filesystem(path)
        self._local = epath.Path(tempfile.mkdtemp(prefix="bert-jax-checkpoints-"))
        self._checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(**handlers))
        self._executor = concurrent.futures.ThreadPoolExecutor(1)
        self._copied: concurrent.futures.Future[None] | None = None
        self._downloaded: int | None = None
        if preservation:
            # A process that was killed left them.
            for step in {*self._found()} - {*self.all_steps()}:
                self.delete(step)

    def save(self, step: int, *, args: ocp.args.Composite, force: bool) -> None:
        """Write a step in the background; errors are raised by the next call or by ``wait_until_finished``."""
        del force
        self.wait_until_finished()
        if step in self.all_steps():
            raise ValueError(f"step {step} exists")
        self._checkpointer.save(self._local / str(step), args=args)
        self._copied = self._executor.submit(self._copy, step)

    def wait_until_finished(self) -> None:
        """Wait for the step that is being written, and raise its errors."""
        copied, self._copied = self._copied, None
        if copied:
            copied.result()

    def check_for_errors(self) -> None:
        """Raise the error of a step that was written in the background, if it has failed."""
        if self._copied is None:
            self._checkpointer.check_for_errors()
        elif self._copied.done():
            self.wait_until_finished()

    def restore(self, step: int, *, args: ocp.args.Composite) -> Any:
        """Read a step."""
        return self._checkpointer.restore(self.download(step), args=args)

    def item_metadata(self, step: int) -> Any:
        """Description of the items of a step."""
        return self._checkpointer.metadata(self.download(step)).item_metadata

    def all_steps(self) -> list[int]:
        """The complete steps."""
        return [step for step, files in self._found().items() if COMMITTED in files]

    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        return max(self.all_steps(), default=None)

    def delete(self, step: int) -> None:
        """Delete a step."""
        (self._path / str(step) / COMMITTED).unlink(missing_ok=True)
        (self._path / str(step)).rmtree(missing_ok=True)

    def reload(self) -> None:
        """Nothing: every call lists the steps."""

    def close(self) -> None:
        """Wait, and remove the local directory."""
        self._executor.shutdown()
        self._checkpointer.close()
        shutil.rmtree(self._local, ignore_errors=True)

    def _copy(self, step: int) -> None:
        local, target = self._local / str(step), self._path / str(step)
        try:
            self._checkpointer.wait_until_finished()
            # On files, Orbax has written this one already.
            (local / COMMITTED).unlink(missing_ok=True)
            manifest.write(local)
            remote.upload(local, target)
            (target / COMMITTED).write_text(f"{manifest.SUCCESS}{target}")
            local.rmtree()
            self._delete_old()
        except Exception as error:  # The clients of the store have many types of exceptions.
            shutil.rmtree(local, ignore_errors=True)
            raise OSError(str(error) or type(error).__name__) from error

    def _delete_old(self) -> None:
        saved = [Saved(step, manifest.committed(self._path / str(step))) for step in sorted(self.all_steps())]
        if self._preservation:
            kept = self._preservation.should_preserve(saved, context=ocp.checkpoint_managers.PreservationContext())
            for info, keep in zip(saved, kept, strict=True):
                if not keep:
                    self.delete(info.step)

    def download(self, step: int) -> epath.Path:
        """Copy a step to the local directory and return its path; one such copy is kept."""
        local = self._local / f"read-{step}"
        if self._downloaded != step:
            self._discard()
            remote.download(self._path / str(step), local)
            self._downloaded = step
        return local

    def _discard(self) -> None:
        if self._downloaded is not None:
            (self._local / f"read-{self._downloaded}").rmtree()
            self._downloaded = None

    def _found(self) -> dict[int, list[str]]:
        """The files of each step, relative to its directory."""
        root = os.fspath(self._path).partition("://")[2]
        steps: dict[int, list[str]] = {}
        for file in self._store.find(root):
            step, _, name = file.removeprefix(f"{root}/").partition("/")
            if step.isdecimal():
                steps.setdefault(int(step), []).append(name)
        return steps
