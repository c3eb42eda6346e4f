"""The directory of a run: whose it is."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator

import filelock
from etils import epath

from bert_jax.errors import UserError
from bert_jax.io import atomic, lease, remote
from bert_jax.processes import Group

CONFIG = "config.json"
LOCK = ".lock"
"""File that the owner of a local run directory locks; the lock ends with the process, however it ends."""
LEASES = ".leases"
"""Directory of leases in a run directory on an object store."""
OWNER = ".owner"
"""File by which the processes of a run see that they use the same directory."""
_OURS = {f".{CONFIG}", LOCK, LEASES, OWNER, f".{OWNER}"}
# A shared file system may show a new file a moment later on another host.
_PATIENCE_SECONDS = 10.0


class RunDirectory:
    """A run directory that this run owns."""

    def __init__(self, path: epath.Path, held: lease.Lease | None) -> None:
        self.path, self._lease = path, held

    def check(self) -> None:
        """Check that the directory still belongs to this run.

        Raises:
          RunError: its lease has ended, because the process was paused or disconnected.
        """
        if self._lease:
            self._lease.check()


@contextlib.contextmanager
def open_run_dir(run: epath.PathLike, text: str, differences: Callable[[str], list[str]], group: Group) -> Iterator[RunDirectory]:
    """Own a run directory, and write the run's config into it or compare it with the one that is there.

    Of several processes the first one owns it and writes; all must see the same directory.

    Args:
      run: the directory.
      text: the config as JSON.
      differences: takes stored JSON and returns how the config differs from it in what it computes.
      group: the processes of the run.

    Raises:
      UserError: the directory contains something else, a run with another config, or a run that is in progress; or processes
        see different directories.
    """
    run = remote.open_path(run)
    path = run / CONFIG
    require_fitting(run, differences)
    # Every process has looked before one of them writes.
    group.gather("opening the run directory", None)
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(owned(run, group)) if group.index == 0 else None
        if group.index == 0:
            with atomic.explained(run), atomic.replaced_path(path) as part:
                part.write_text(text)
        require_shared(run, group)
        yield RunDirectory(run, held)


def require_fitting(run: epath.Path, differences: Callable[[str], list[str]]) -> None:
    """Check that a directory is new, or has a run with a config that may be resumed; the arguments are those of ``open_run_dir``.

    Raises:
      UserError: it is neither.
    """
    path = run / CONFIG
    if path.exists():
        if changed := differences(path.read_text()):
            raise UserError(
                f"{run} contains a run with another config ({'; '.join(changed)}); choose another run directory, or the config "
                "it was started with."
            )
    elif run.exists() and (not run.is_dir() or any(entry.name not in _OURS for entry in run.iterdir())):
        raise UserError(f"{run} exists and is not a run; choose another run directory.")


@contextlib.contextmanager
def owned(run: epath.Path, group: Group) -> Iterator[lease.Lease | None]:
    """Hold the lock of a local directory, which is created, or the lease of a remote one.

    Raises:
      UserError: another process owns it.
    """
    if remote.is_remote(run):
        # A cluster starts a killed process again before its lease has ended.
        with lease.held(run / LEASES, str(run), doing="used", patient=True) as held:
            group.at_exit.append(held.release)
            try:
                yield held
            finally:
                group.at_exit.remove(held.release)
        return
    with atomic.explained(run):
        run.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(run / LOCK, timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise UserError(f"{run} is in use by another process; wait for it, or choose another run directory.") from None
    try:
        yield None
    finally:
        lock.release()


def require_shared(run: epath.Path, group: Group) -> None:
    """Check that all processes see the file that the first one writes into a directory.

    Raises:
      UserError: one does not; every process raises it.
    """
    if len(group) == 1:
        return
    token = secrets.token_hex(8)
    if group.index == 0:
        with atomic.explained(run), atomic.replaced_path(run / OWNER) as part:
            part.write_text(token)
    expected, ends = group.gather("writing into the run directory", token)[0], time.monotonic() + _PATIENCE_SECONDS
    while not (seen := _read(run / OWNER) == expected) and time.monotonic() < ends:
        time.sleep(0.1)
    found = group.gather("reading from the run directory", seen)
    if not all(found):
        raise UserError(
            f"{group.describe(found.index(False))} does not see what {group.describe(0)} writes into {run}; the run directory must "
            "be on a file system that all hosts share, or on an object store."
        )


def _read(path: epath.Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
