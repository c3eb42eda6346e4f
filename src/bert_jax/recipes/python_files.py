"""Calling the function that a user's Python file defines, with errors as sentences."""

from __future__ import annotations

import contextlib
import runpy
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from bert_jax.errors import UserError

T = TypeVar("T")


def call(path: Path, signature: str, result: type[T], *arguments: Any) -> T:
    """Run a Python file, and call a function that it defines.

    Args:
      path: the file.
      signature: name and parameters of the function, such as "config()".
      result: type that the function must return.
      arguments: those of the function.

    Raises:
      UserError: the file is not Python, raises an exception, or does not define the function, or the function returns something
        else.

    Examples:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "answer.py"
      >>> _ = path.write_text("def answer(): return 6 * 7")
      >>> call(path, "answer()", int)
      42
    """
    name, kind = signature.partition("(")[0], f"bert_jax.{result.__name__}"
    with _explained(path):
        names = runpy.run_path(str(path))
        if name not in names:
            raise UserError(f"{path} has no function {signature}; define one that returns a {kind}.")
        made = names[name](*arguments)
    if not isinstance(made, result):
        raise UserError(f"{name}() in {path} returns an object of type {type(made).__name__}; it must return a {kind}.")
    return made


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn exceptions of a file into a sentence with its last line that was executed."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # The file is the user's program, which can raise any.
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else next(reversed(lines), None)
        where = f"{path}, line {line}" if line else f"{path}"
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise UserError(f"{where}: {type(error).__name__}: {reason}.") from error
