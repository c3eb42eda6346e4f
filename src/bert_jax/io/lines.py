"""Files as streams of bytes and of lines with their numbers, plain or compressed."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow
from etils import epath

from bert_jax.errors import UserError
from bert_jax.io import remote

STANDARD_INPUT = "-"
"""The path that stands for standard input."""
COMPRESSED = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "Zstandard"}
"""Suffixes of compressed files, with the names of the formats."""


def require_file(path: epath.Path) -> None:
    """Check that a path is an existing file.

    Raises:
      UserError: it does not exist or is a directory.
    """
    if path.is_dir():
        raise UserError(f"{path} is a directory; name the files in it, for example {path}/*.txt.")
    if not path.exists():
        raise UserError(f"There is no file {path}.")


@contextlib.contextmanager
def open_bytes(path: epath.PathLike, *, opened: Callable[[Any], Any] = lambda file: file) -> Iterator[Any]:
    """Open a file for reading; ``.gz``, ``.bz2``, ``.xz`` and ``.zst`` are decompressed.

    Args:
      path: the file, local or remote, or "-" for standard input.
      opened: wraps the opened file before it is decompressed, to count bytes, for example.

    Raises:
      UserError: the file is missing, a directory, truncated or unreadable.
    """
    path = remote.open_path(path)
    with contextlib.ExitStack() as stack:
        raw = sys.stdin.buffer if str(path) == STANDARD_INPUT else _open(path, stack)
        try:
            yield _decompressed(opened(raw), path.suffix, stack)
        except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
            raise UserError(f"{path} is not a whole {COMPRESSED.get(path.suffix, '')} file: {error}.") from None
        except OSError as error:
            if path.suffix in COMPRESSED and error.errno is None:
                raise UserError(f"{path} is not a whole {COMPRESSED[path.suffix]} file: {error}.") from None
            raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None


def _open(path: epath.Path, stack: contextlib.ExitStack) -> Any:
    require_file(path)
    return stack.enter_context(path.open("rb"))


def _decompressed(raw: Any, suffix: str, stack: contextlib.ExitStack) -> Any:
    match suffix:
        case ".gz":
            return stack.enter_context(gzip.open(raw))
        case ".bz2":
            return stack.enter_context(bz2.open(raw))
        case ".xz":
            return stack.enter_context(lzma.open(raw))
        case ".zst":
            file = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd")
            # Arrow's files have no lines.
            return stack.enter_context(io.BufferedReader(file))
    return raw


def lines(
    path: epath.PathLike, *, byte_order_mark: bool = False, opened: Callable[[Any], Any] = lambda file: file
) -> Iterator[tuple[int, str]]:
    """Yield the lines of a UTF-8 file with their numbers, counted from 1 and with their line ends.

    Args:
      path: see [`open_bytes`][bert_jax.io.lines.open_bytes].
      byte_order_mark: whether a byte order mark, which some editors write at the start of a file, belongs to the first line.
      opened: see [`open_bytes`][bert_jax.io.lines.open_bytes].

    Raises:
      UserError: the file is missing, a directory, truncated or unreadable, or is not UTF-8 (the message names the line).
    """
    number = 0
    with open_bytes(path, opened=opened) as file:
        try:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8-sig" if number == 1 and not byte_order_mark else "utf-8")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise UserError(
                f"{path}, line {number}: byte 0x{byte:02x} at column {error.start + 1} is not UTF-8; convert the file to UTF-8."
            ) from None
