"""The version of stored configs and checkpoints.

Version 1 was written by bert_jax before it stored a version. Its models can be loaded; its runs cannot be resumed, because the
names of configuration fields, parameters and metrics have changed.
"""

from __future__ import annotations

import json
from typing import Any

from bert_jax.errors import UserError
from bert_jax.io.parsing import parse_json

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
    stored = parse_json(text, "The stored config")
    if not isinstance(stored, dict):
        raise UserError(f"The stored config is a {type(stored).__name__}, not a JSON object.")
    version = stored.pop(KEY, 1)
    if version != VERSION:
        raise UserError(
            f"The run is of format version {version}, this package writes version {VERSION}: start a new run directory; "
            "bert_jax.load and `bert-jax convert` still read the model of a version 1 run."
        )
    return stored
