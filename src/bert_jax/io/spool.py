"""Files that grow, such as logs, for an object store, which cannot append: they are written locally and copied as they change."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading

from etils import epath

from bert_jax.errors import RunError
from bert_jax.io import remote

# Seconds between two copies in the background, each of which writes whole files.
_INTERVAL = 5.0


class Spool:
    """A local directory whose files are copied to a remote one, in the background.

    Args:
      target: the remote directory.
    """

    def __init__(self, target: epath.Path) -> None:
        self._target, self._store = target, remote.filesystem(target)
        self._directory = tempfile.TemporaryDirectory(prefix="bert-jax-spool-")
        self.path = epath.Path(self._directory.name)
        """The local directory."""
        self._sizes: dict[str, tuple[int, int]] = {}
        self._lock, self._changed, self._closed = threading.Lock(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def changed(self) -> None:
        """Copy what has changed, in the background."""
        self._changed.set()

    def flush(self) -> None:
        """Copy what has changed, and return when it is copied.

        Raises:
          RunError: the store cannot be written.
        """
        try:
            self._copy()
        except Exception as error:  # The clients of the stores have many types of exceptions.
            raise RunError(f"{self._target} cannot be written: {remote.first_line(error)}.") from error

    def close(self) -> None:
        """Copy what has changed, and remove the local directory.

        Raises:
          RunError: as ``flush``.
        """
        self._closed.set()
        self._changed.set()
        self._thread.join()
        try:
            self.flush()
        finally:
            self._directory.cleanup()

    def _run(self) -> None:
        while not self._closed.wait(_INTERVAL):
            self._changed.wait()
            self._changed.clear()
            # The next change tries again, and `flush` reports what remains.
            with contextlib.suppress(Exception):
                self._copy()

    def _copy(self) -> None:
        with self._lock:
            for directory, _, names in os.walk(self.path):
                for name in names:
                    file = os.path.join(directory, name)
                    relative, state = os.path.relpath(file, self.path), os.stat(file)
                    if self._sizes.get(relative) == (found := (state.st_size, state.st_mtime_ns)):
                        continue
                    with open(file, "rb") as opened:
                        self._store.pipe_file(f"{os.fspath(self._target)}/{relative}", opened.read())
                    self._sizes[relative] = found
