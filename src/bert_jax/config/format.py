"""The version of stored configs and checkpoints.

Version 1 was written by bert_jax before it stored a version. Its models can be loaded; its runs cannot be resumed, because the
names of configuration fields, parameters and metrics have changed.
"""

from __future__ import annotations

import json
from typing import Any

from bert_jax.errors import UserError
from bert_jax.io.parsing import parse_object

VERSION = 2
"""Version of the files that this package writes."""
KEY = "format_version"


def to_json(fields: dict[str, Any]) -> str:
    """A stored config."""
    return json.dumps({KEY: VERSION} | fields, indent=2)


def from_json(text: str) -> dict[str, Any]:
    """Fields of a stored config.

    Raises:
      UserError: the text is not a JSON object, or is of another version.
    """
    stored = parse_object(text, "The stored config")
    check_version(stored.pop(KEY, 1), "The run")
    return stored


def check_version(version: int, name: str) -> None:
    """Check that a run of this version can be resumed.

    Raises:
      UserError: it cannot.
    """
    check_readable(version, name)
    if version != VERSION:
        raise UserError(
            f"{name} is of format version {version}, this package writes version {VERSION}: start a new run directory; "
            "bert_jax.load and `bert-jax convert` still read the model."
        )


def check_readable(version: int, name: str) -> None:
    """Check that files of this version can be read.

    Raises:
      UserError: a newer bert_jax wrote them.
    """
    if version > VERSION:
        raise UserError(
            f"{name} is of format version {version}, which is newer than the version {VERSION} that this package reads; install a "
            "newer bert_jax."
        )
