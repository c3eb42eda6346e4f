"""Output files and directories that appear under their final name only when they are complete."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator

from etils import epath

from bert_jax.errors import UserError
from bert_jax.io import remote

# Files without which no reader takes a directory for a corpus or a model, copied to an object store after all others.
_LAST = ("dataset_info.json", "config.json", "bert_config.json")


def require_new(path: epath.Path) -> None:
    """Check that ``path`` does not exist.

    Raises:
      UserError: it does.
    """
    remote.open_path(path)
    if path.exists() or os.path.islink(path):
        raise UserError(f"{path} exists already; remove it or choose another name.")


def move(path: epath.Path, target: epath.Path) -> None:
    """Replace ``target`` by a local file, which must be on the same file system unless ``target`` is remote."""
    if remote.is_remote(target):
        remote.upload(path, target)
        path.unlink()
    else:
        path.replace(target)


@contextlib.contextmanager
def explained(path: epath.PathLike) -> Iterator[None]:
    """Turn an error of the file system, such as a full or read-only disk, into a sentence with a path and a way out.

    Raises:
      UserError: the block raised an ``OSError``.

    Examples:
      >>> with explained("/runs/mine"):
      ...     raise OSError(errno.EROFS, "Read-only file system")
      Traceback (most recent call last):
      bert_jax.errors.UserError: /runs/mine cannot be written (Read-only file system); choose a directory that can be written.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else error.strerror or str(error)
        way_out = "free space there, or choose a directory on another disk" if full else "choose a directory that can be written"
        raise UserError(f"{path} cannot be written ({reason}); {way_out}.") from None


@contextlib.contextmanager
def replaced_path(path: epath.Path) -> Iterator[epath.Path]:
    """Yield a temporary path for a file, ``.NAME`` beside it, and replace ``path`` by it when the block ends without an error.

    On an object store, which writes an object as a whole or not at all, the temporary path is a local one.
    """
    if remote.is_remote(path):
        with tempfile.TemporaryDirectory() as work:
            yield epath.Path(work) / path.name
            remote.upload(epath.Path(work) / path.name, path)
        return
    part = path.parent / f".{path.name}"
    # A symbolic link of this name would lead the writer elsewhere.
    part.unlink(missing_ok=True)
    yield part
    part.replace(path)


@contextlib.contextmanager
def new_path(path: epath.PathLike) -> Iterator[epath.Path]:
    """Yield a temporary path for a new file or directory, and rename it to ``path`` when the block ends without an error.

    The temporary path lies beside ``path``, so the rename is atomic. When the block raises, everything it wrote is removed, and so
    are parent directories that were created for it. On an object store the temporary path is a local one, which is copied; the
    files of a directory that readers look for first are copied last.

    Raises:
      UserError: ``path`` exists already or cannot be created.

    Examples:
      >>> import pathlib, tempfile
      >>> from bert_jax.io import atomic
      >>> target = pathlib.Path(tempfile.mkdtemp()) / "scores.txt"
      >>> with atomic.new_path(target) as path:
      ...     _ = path.write_text("0.93")
      ...     target.exists()
      False
      >>> target.read_text()
      '0.93'
    """
    path = epath.Path(path)
    require_new(path)
    if remote.is_remote(path):
        with _new_remote_path(path) as local:
            yield local
        return
    missing_parents = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work_directory = epath.Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", dir=path.parent))
    except OSError as error:
        raise UserError(f"{path} cannot be created: {error.strerror}.") from None
    try:
        yield work_directory / path.name
        # Another process may have created it meanwhile.
        require_new(path)
        (work_directory / path.name).rename(path)
    finally:
        shutil.rmtree(work_directory, ignore_errors=True)
        if not path.exists():
            for parent in missing_parents:
                with contextlib.suppress(OSError):
                    parent.rmdir()


@contextlib.contextmanager
def _new_remote_path(path: epath.Path) -> Iterator[epath.Path]:
    with tempfile.TemporaryDirectory() as work:
        local = epath.Path(work) / path.name
        try:
            yield local
            remote.upload(local, path, last=lambda name: name in _LAST)
        except BaseException:
            path.rmtree(missing_ok=True)
            raise
