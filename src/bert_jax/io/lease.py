"""Leases on object stores, which have no file locks: exclusive use of a directory that ends when its owner stops renewing it.

A lease is an object with a number. Whoever creates the next number owns the directory; a store creates an object for one of
several that try. A number may be followed by the next one when its lease has ended. So a process that was killed holds up others
for one term, and no two processes can take over at once. An owner that could not renew its lease in time takes the next number like
the others. The clocks of machines must agree to a few seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from etils import epath

from bert_jax.errors import RunError, UserError
from bert_jax.io import remote

TERM = 60.0
"""Seconds for which a lease is valid unless it is renewed."""
_ANSWER_SECONDS = TERM / 4
"""The clients themselves wait for minutes for an answer that was lost."""
_PREFIX = "lease-"


class Lease:
    """A lease that is held and renewed by a thread.

    Args:
      directory: what is leased, a remote directory.
      what: its name in error messages.
      doing: what owners do with it, in error messages: it "is being built".
      patient: wait for the end of a lease that is not renewed, for a process that is started again as soon as it was killed.

    Raises:
      UserError: another process holds the lease; the message names it.
    """

    def __init__(self, directory: epath.Path, what: str, *, doing: str = "built", patient: bool = False) -> None:
        self._what, self._store = what, remote.filesystem(directory)
        self._directory, self._number = directory, max(_numbers(directory), default=0) + 1
        self._renewed = time.monotonic()
        try:
            if self._number > 1:
                _require_ended(_place(directory, self._number - 1), f"{what} is being {doing}", patient=patient)
            self._write(self._number, mode="create")
        except (FileExistsError, FileNotFoundError):
            raise UserError(f"{what} is being {doing} by another process; wait for it, or choose another name.") from None
        self._lock, self._done = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Check that the lease is still held.

        A lease that has ended, because this process was paused, say, is held again if no other process has had the directory since.

        Raises:
          RunError: another process has taken over or may do so, since the store cannot be reached.
        """
        with self._lock:
            if self._has_ended():
                try:
                    self._extend()
                except Exception as error:
                    raise RunError(
                        f"The store of {self._what} did not answer for {TERM:.0f} seconds ({remote.first_line(error)}); this "
                        "process stops, because another one may use it now."
                    ) from error
            if not self._is_newest():
                raise RunError(
                    f"This process has lost {self._what} to another one, because it was paused or disconnected; it stops."
                )

    def release(self) -> None:
        """End the lease at once."""
        self._done.set()
        self._thread.join()
        for number in sorted(_numbers(self._directory)):
            if number <= self._number:
                _place(self._directory, number).unlink(missing_ok=True)

    def _has_ended(self) -> bool:
        return time.monotonic() - self._renewed > TERM

    def _is_newest(self) -> bool:
        return max(_numbers(self._directory), default=0) == self._number

    def _renew(self) -> None:
        while not self._done.wait(TERM / 4):
            # A failed renewal is tried again, and reported by `check`.
            with self._lock, contextlib.suppress(Exception):
                if not self._is_newest():
                    return
                self._extend()

    def _extend(self) -> None:
        began = time.monotonic()
        if self._has_ended():
            # Another process may take the next number at any moment. If one did and has finished, it has deleted this one.
            with contextlib.suppress(FileExistsError):
                self._write(self._number + 1, mode="create")
                if not _place(self._directory, self._number).exists():
                    _place(self._directory, self._number + 1).unlink()
                    return
                self._number += 1
        else:
            self._write(self._number)
        self._renewed = began

    def _write(self, number: int, **options: str) -> None:
        path = os.fspath(_place(self._directory, number))
        content = {"owner": f"process {os.getpid()} on {socket.gethostname()}", "ends": time.time() + TERM}
        _ask(self._store, "_pipe_file", path, json.dumps(content).encode(), **options)


@contextlib.contextmanager
def held(directory: epath.Path, what: str, *, doing: str = "built", patient: bool = False) -> Iterator[Lease]:
    """Hold the lease of a remote directory; see [`Lease`][bert_jax.io.lease.Lease]."""
    lease = Lease(directory, what, doing=doing, patient=patient)
    try:
        yield lease
    finally:
        lease.release()


def is_lease(path: epath.Path) -> bool:
    """Whether a file in a leased directory is one of its leases."""
    return path.name.startswith(_PREFIX)


def _numbers(directory: epath.Path) -> list[int]:
    try:
        found = _ask(remote.filesystem(directory), "_ls", os.fspath(directory), detail=False)
    except FileNotFoundError:
        return []
    names = [os.path.basename(path) for path in found]
    return [int(name.removeprefix(_PREFIX)) for name in names if name.startswith(_PREFIX)]


def _place(directory: epath.Path, number: int) -> epath.Path:
    return directory / f"{_PREFIX}{number:06}"


def _require_ended(path: epath.Path, what: str, *, patient: bool) -> None:
    content = path.read_text()
    lease = json.loads(content)
    while (left := lease["ends"] - time.time()) > 0:
        if not patient or path.read_text() != content:
            raise UserError(
                f"{what} by {lease['owner']}; wait for it, or choose another name. If that process was killed, try again in "
                f"{left:.0f} seconds."
            )
        time.sleep(min(left, TERM / 20))


def _ask(store: Any, method: str, *arguments: Any, **options: Any) -> Any:
    """Call a method of an fsspec file system, which must answer in time."""
    import fsspec.asyn

    return fsspec.asyn.sync(store.loop, getattr(store, method), *arguments, timeout=_ANSWER_SECONDS, **options)
