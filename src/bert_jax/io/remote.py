"""Paths on object stores: which paths are remote, and whether their store can be used.

`etils.epath` reads and writes ``gs://`` and ``s3://`` through fsspec. An object store has no directories, no rename and no
append: what a library needs those for is written to a local directory and copied by the functions here.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from etils import epath

from bert_jax.errors import UserError

# Longer than a slow connection takes, shorter than the minutes for which the clients of the stores retry.
_TIMEOUT = 20.0
_ADDRESS = re.compile(r"(?:[\w-]+=)?(?P<scheme>gs|s3|az)://(?P<bucket>[^/\s]*)(?:/\S*)?")
# Packages whose exceptions mean that a store has failed.
_CLIENTS = ("aiohttp", "aiobotocore", "botocore", "fsspec", "gcsfs", "google", "s3fs")


class _Store(NamedTuple):
    """What the paths of a scheme need."""

    package: str
    protocol: str
    """Name of the file system in fsspec."""
    extra: str
    log_in: str
    """How a user gets credentials."""


_STORES = {
    "gs": _Store("gcsfs", "gcs", "gcs", "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS"),
    "s3": _Store("s3fs", "s3", "s3", "run `aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
}


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path lies on an object store.

    Examples:
      >>> from bert_jax.io import remote
      >>> remote.is_remote("gs://bucket/corpus"), remote.is_remote("corpus")
      (True, False)
    """
    return os.fspath(path).startswith(tuple(f"{scheme}://" for scheme in _STORES))


def open_path(path: epath.PathLike) -> epath.Path:
    """Return a path; the first one in a bucket is checked.

    Raises:
      UserError: the package for the path's scheme is not installed, or the bucket cannot be used, for want of credentials, say.
    """
    if address := _ADDRESS.match(os.fspath(path)):
        _check(address["scheme"], address["bucket"])
    return epath.Path(path)


def check_arguments(arguments: Iterable[str]) -> None:
    """Check the buckets of the arguments of a command that are remote paths.

    Raises:
      UserError: as [`open_path`][bert_jax.io.remote.open_path].
    """
    for argument in arguments:
        if address := _ADDRESS.fullmatch(argument):
            _check(address["scheme"], address["bucket"])


def absolute(path: epath.PathLike) -> epath.Path:
    """Return an absolute path; a remote one is that already."""
    path = open_path(path)
    return path if is_remote(path) else path.resolve()


def filesystem(path: epath.PathLike) -> Any:
    """The fsspec file system of a remote path, the same object that ``epath`` uses."""
    scheme = os.fspath(path).partition(":")[0]
    _configure()
    import fsspec

    options = {"finalize_on_close": True} if scheme == "gs" else {}
    return fsspec.filesystem(_STORES[scheme].protocol, **options)


def version(path: epath.PathLike) -> int | str:
    """What changes when a file changes: the time of a local one, an identifier from the store of a remote one."""
    if is_remote(path):
        return str(filesystem(path).ukey(os.fspath(path)))
    return epath.Path(path).stat().mtime


def modified(path: epath.Path) -> float:
    """When a file was last changed, in seconds since 1970; ``epath`` does not know it on ``s3://``."""
    if is_remote(path):
        return float(filesystem(path).modified(os.fspath(path)).timestamp())
    return os.stat(path).st_mtime


def upload(source: epath.PathLike, target: epath.PathLike, *, last: Callable[[str], bool] = lambda name: False) -> None:
    """Copy a local file, or the files below a directory, to a remote path.

    Args:
      source: the file or directory.
      target: where it goes.
      last: whether the file of a name marks the others as complete, and is copied after them.
    """
    source, store = os.fspath(source), filesystem(target)
    if not os.path.isdir(source):
        store.put_file(source, os.fspath(target))
        return
    names = [
        os.path.relpath(os.path.join(directory, name), source) for directory, _, files in os.walk(source) for name in sorted(files)
    ]
    for marks in (False, True):
        chosen = [name for name in names if last(name) == marks]
        if chosen:
            store.put([os.path.join(source, name) for name in chosen], [f"{os.fspath(target)}/{name}" for name in chosen])


def download(source: epath.PathLike, target: epath.PathLike, *, suffix: str = "") -> None:
    """Copy the files below a remote directory whose names end with ``suffix`` into a local one."""
    store = filesystem(source)
    root = os.fspath(source).partition("://")[2].rstrip("/")
    found = [name for name in store.find(root) if name.endswith(suffix) and not name.endswith("/")]
    places = [os.path.join(os.fspath(target), os.path.relpath(name, root)) for name in found]
    for place in places:
        os.makedirs(os.path.dirname(place), exist_ok=True)
    if found:
        store.get(found, places)


def copy(places: Iterable[tuple[epath.PathLike, epath.PathLike]]) -> None:
    """Let the store copy objects, each to its place."""
    sources, targets = ([*map(os.fspath, paths)] for paths in zip(*places, strict=True))
    filesystem(sources[0]).copy(sources, targets)


def rename(source: epath.Path, target: epath.Path) -> None:
    """Rename a directory; on a store, which has no directories, its objects are copied and deleted."""
    if not is_remote(source):
        source.rename(target)
        return
    root = os.fspath(source).partition("://")[2]
    names = [name.removeprefix(f"{root}/") for name in filesystem(source).find(root)]
    copy([(source / name, target / name) for name in names])
    source.rmtree()


def failure(error: BaseException) -> str | None:
    """The first line of what a store's client raised, or None for an exception of something else."""
    if type(error).__module__.partition(".")[0] not in _CLIENTS:
        return None
    return first_line(error)


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


@functools.cache
def _configure() -> None:
    """Settings of fsspec, before ``epath`` makes its file systems."""
    from fsspec.config import conf

    for store in _STORES.values():
        # Otherwise a process never sees what another one writes into a directory that it has listed.
        conf.setdefault(store.protocol, {}).setdefault("use_listings_cache", False)
        # They log tracebacks of what is tried again; this package reports failures itself.
        logging.getLogger(store.package).setLevel(logging.CRITICAL)


@functools.cache
def _check(scheme: str, bucket: str) -> None:
    root = f"{scheme}://{bucket}"
    if scheme not in _STORES:
        raise UserError(f"{root} is on a store that is not supported; use gs://, s3:// or files.")
    store = _STORES[scheme]
    if not bucket:
        raise UserError(f"{root} names no bucket; write {root}BUCKET/PATH.")
    if importlib.util.find_spec(store.package) is None:
        raise UserError(f"{root} needs the package {store.package}; run pip install 'bert-jax[{store.extra}]'.")
    if not _has_credentials(scheme):
        raise UserError(f"There are no credentials for {root}; {store.log_in}.")
    raised: list[BaseException] = []

    def look() -> None:
        try:
            filesystem(root).ls(bucket)
        except BaseException as error:
            raised.append(error)

    # The clients have no common limit of time.
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(_TIMEOUT)
    if thread.is_alive():
        raise UserError(f"{root} does not answer within {_TIMEOUT:.0f} seconds; check the connection and the store's address.")
    if not raised:
        return
    if isinstance(raised[0], FileNotFoundError):
        raise UserError(f"There is no bucket {root}; create it, or correct its name.")
    reason = first_line(raised[0])
    if isinstance(raised[0], PermissionError) or getattr(raised[0], "code", None) in (401, 403):
        raise UserError(f"{root} may not be read ({reason}); {store.log_in}, for an account that may.")
    raise UserError(f"{root} cannot be used: {reason}.")


def _has_credentials(scheme: str) -> bool:
    """Whether the clients will find credentials; they themselves search for up to a minute."""
    from fsspec.config import conf

    configured = conf.get(_STORES[scheme].protocol, {})
    if scheme == "s3":
        import botocore.session

        if {"anon", "key", "profile"} & configured.keys():
            return True
        return botocore.session.get_session().get_credentials() is not None
    import google.auth

    if os.environ.get("STORAGE_EMULATOR_HOST") or "token" in configured:
        return True
    try:
        google.auth.default()
    except google.auth.exceptions.DefaultCredentialsError:
        return False
    return True
