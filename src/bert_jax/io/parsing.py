"""JSON from files and strings, with errors that name the source."""

from __future__ import annotations

import json
from typing import Any

from etils import epath

from bert_jax.errors import UserError
from bert_jax.io import remote


def parse_json(text: str | bytes, where: str) -> Any:
    """Parse a JSON value.

    Args:
      text: the JSON.
      where: name of the source in error messages.

    Raises:
      UserError: the text is not JSON or is nested too deeply.

    Examples:
      >>> from bert_jax.io.parsing import parse_json
      >>> parse_json('{"rate": 0.15}', "mask.json")
      {'rate': 0.15}
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(f"{where} is not readable JSON: it is nested too deeply.") from None
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}.") from None


def parse_object(text: str | bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
      UserError: the text is not a JSON object.
    """
    value = parse_json(text, where)
    if not isinstance(value, dict):
        raise UserError(f"{where} contains a {type(value).__name__}, not a JSON object.")
    return value


def check_text(text: str, where: str) -> str:
    """Return a text that can be encoded.

    Args:
      text: may hold half a surrogate pair, which JSON can express and UTF-8 cannot.
      where: name of the text in the error message.

    Raises:
      UserError: the text cannot be encoded.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where} has half a surrogate pair at character {error.start + 1}; the text is damaged.") from None
    return text


def read_json(path: epath.PathLike) -> dict[str, Any]:
    """Read a JSON object from a local or remote file.

    Raises:
      UserError: the file is missing, a directory, or does not contain a JSON object.
    """
    path = remote.open_path(path)
    try:
        return parse_object(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except (IsADirectoryError, NotADirectoryError):
        raise UserError(f"{path} is a directory, not a JSON file.") from None
