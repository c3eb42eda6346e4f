"""Output that gets its name only when it is whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

from etils import epath

from bert_jax.errors import UserError


@contextlib.contextmanager
def new(path: epath.PathLike) -> Iterator[epath.Path]:
    """A path at which to make a file or a directory; it becomes ``path`` when the block ends without an error.

    Raises:
      UserError: ``path`` exists already, or cannot be made.
    """
    path = epath.Path(path)
    if path.exists() or os.path.islink(path):
        raise UserError(f"{path} exists already; remove it or choose another name.")
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work = epath.Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", dir=path.parent))
    except OSError as error:
        raise UserError(f"{path} cannot be made: {error.strerror}.") from None
    try:
        yield work / path.name
        (work / path.name).rename(path)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if not path.exists():
            for parent in made:
                with contextlib.suppress(OSError):
                    parent.rmdir()
