"""Local copies of remote directories and files, for libraries that read local files only."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from typing import Any

import filelock
from etils import epath

from bert_jax.errors import RunError, UserError
from bert_jax.io import remote

# What changes with the content of an object, by the name that each store gives it.
_VERSIONS = ("etag", "ETag", "generation")


def directory() -> epath.Path:
    """Where copies are kept: ``$BERT_JAX_CACHE``, or else ``$XDG_CACHE_HOME/bert_jax/copies`` (``~/.cache`` by default)."""
    if named := os.environ.get("BERT_JAX_CACHE"):
        return epath.Path(named)
    return epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "bert_jax" / "copies"


def local_copy(path: epath.PathLike) -> epath.Path:
    """Return a local path with the content of a remote file or directory, which is copied unless an equal copy is there.

    A copy belongs to the path and to the versions of its objects. Several processes on one machine copy once.

    Args:
      path: returned as it is where it is local.

    Raises:
      UserError: there is nothing at the path.
      RunError: what was copied has another size than on the store.
    """
    if not remote.is_remote(path):
        return epath.Path(path)
    path = remote.open_path(path)
    objects = _objects(path)
    if not objects:
        raise UserError(f"There is no file {path}.")
    sizes = {name: int(found["size"]) for name, found in objects.items()}
    identity = [
        (name, sizes[name], [str(found[key]) for key in _VERSIONS if key in found]) for name, found in sorted(objects.items())
    ]
    copy = directory() / hashlib.blake2b(f"{path} {identity}".encode(), digest_size=16).hexdigest()
    copy.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{copy}.lock"):
        if _wrong(copy, sizes):
            _copy(path, copy, sizes)
    # The name of a file may tell what it is.
    return copy / path.name if "" in objects else copy


def _objects(path: epath.Path) -> dict[str, dict[str, Any]]:
    """The store's description of each file, by its name below ``path``; "" is ``path`` itself."""
    root = os.fspath(path).partition("://")[2].rstrip("/")
    found = remote.filesystem(path).find(root, detail=True)
    return {name.removeprefix(root).lstrip("/"): value for name, value in found.items() if not name.endswith("/")}


def _wrong(copy: epath.Path, sizes: dict[str, int]) -> list[str]:
    """The files that are missing or have another size."""
    places = {name: copy / (name or "") for name in sizes}
    if "" in sizes:
        files = [*copy.iterdir()] if copy.exists() else []
        return [""] if len(files) != 1 or files[0].stat().length != sizes[""] else []
    return [name for name, place in places.items() if not place.exists() or place.stat().length != sizes[name]]


def _copy(path: epath.Path, copy: epath.Path, sizes: dict[str, int]) -> None:
    part = epath.Path(f"{copy}.partial")
    print(f"bert-jax: copying {path} ({sum(sizes.values()) / 1e6:,.1f} MB) to {copy}.", file=sys.stderr)
    for old in (part, copy):
        if old.exists():
            old.rmtree()
    part.mkdir()
    try:
        if "" in sizes:
            remote.filesystem(path).get_file(os.fspath(path), os.fspath(part / path.name))
        else:
            remote.download(path, part)
        if wrong := _wrong(part, sizes):
            raise RunError(f"{path / wrong[0]} was copied to {part} with another size; run the same command again.")
        part.rename(copy)
    finally:
        shutil.rmtree(part, ignore_errors=True)
