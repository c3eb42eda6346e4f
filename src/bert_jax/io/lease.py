"""Leases on object stores, which have no file locks: exclusive use of a directory that ends when its owner stops renewing it.

A lease is an object with a number. Whoever creates the next number owns the directory; a store creates an object for one of
several that try. A number may be followed by the next one when its lease has ended. So a process that was killed holds up others
for one term, and no two processes can take over at once. The clocks of machines must agree to a few seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator

from etils import epath

from bert_jax.errors import RunError, UserError
from bert_jax.io import remote

TERM = 60.0
"""Seconds for which a lease is valid unless it is renewed."""
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
            self._store.pipe_file(os.fspath(self._path), self._content(), mode="create")
        except (FileExistsError, FileNotFoundError):
            raise UserError(f"{what} is being {doing} by another process; wait for it, or choose another name.") from None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    @property
    def _path(self) -> epath.Path:
        return _place(self._directory, self._number)

    def check(self) -> None:
        """Check that the lease is still held.

        Raises:
          RunError: it could not be renewed in time, and another process may have taken over.
        """
        if time.monotonic() - self._renewed > TERM or not self._is_newest():
            raise RunError(f"This process has lost {self._what} to another one, because it was paused or disconnected; it stops.")

    def release(self) -> None:
        """End the lease at once."""
        self._done.set()
        self._thread.join()
        for number in sorted(_numbers(self._directory)):
            if number <= self._number:
                _place(self._directory, number).unlink(missing_ok=True)

    def _is_newest(self) -> bool:
        return max(_numbers(self._directory), default=0) == self._number

    def _renew(self) -> None:
        while not self._done.wait(TERM / 4):
            began = time.monotonic()
            # A failed renewal is tried again; `check` notices when the term is over.
            with contextlib.suppress(Exception):
                if began - self._renewed > TERM or not self._is_newest():
                    return
                self._store.pipe_file(os.fspath(self._path), self._content())
                self._renewed = began

    def _content(self) -> bytes:
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        return json.dumps({"owner": owner, "ends": time.time() + TERM}).encode()


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
    found = directory.iterdir() if directory.exists() else ()
    return [int(path.name.removeprefix(_PREFIX)) for path in found if is_lease(path)]


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
