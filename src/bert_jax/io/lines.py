"""Lines of UTF-8 text files with their numbers, plain or gzip-compressed."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from typing import IO

from etils import epath

from bert_jax.errors import UserError


def require_file(path: epath.Path) -> None:
    """Check that a path is an existing file.

    Raises:
      UserError: it does not exist or is a directory.
    """
    if path.is_dir():
        raise UserError(f"{path} is a directory; name the files in it, for example {path}/*.txt.")
    if not path.exists():
        raise UserError(f"There is no file {path}.")


def lines(path: epath.PathLike, *, byte_order_mark: bool = False) -> Iterator[tuple[int, str]]:
    """Yield the lines of a UTF-8 file with their numbers, counted from 1 and with their line ends; ``.gz`` is decompressed.

    Args:
      path: the file, local or remote.
      byte_order_mark: whether a byte order mark, which some editors write at the start of a file, belongs to the first line.

    Raises:
      UserError: the file is missing, a directory, truncated or unreadable, or is not UTF-8 (the message names the line).
    """
    path = epath.Path(path)
    require_file(path)
    with contextlib.ExitStack() as stack:
        file: IO[bytes] | gzip.GzipFile = stack.enter_context(path.open("rb"))
        if path.suffix == ".gz":
            file = stack.enter_context(gzip.open(file))
        number = 0
        try:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8-sig" if number == 1 and not byte_order_mark else "utf-8")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise UserError(
                f"{path}, line {number}: byte 0x{byte:02x} at column {error.start + 1} is not UTF-8; convert the file to UTF-8."
            ) from None
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{path} is not a whole gzip file: {error}.") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
