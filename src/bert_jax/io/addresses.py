"""Addresses with credentials, which must not reach a log or a stored config."""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qsl, urlsplit

from bert_jax.errors import UserError

_SECRET = re.compile(r"token|secret|password|passwd|signature|credential|api[-_]?key|access[-_]?key|^sig$|^auth", re.IGNORECASE)


def refuse_credentials(path: str | os.PathLike[str], name: str) -> None:
    """Check that a path is not an address with a password or a token: paths are stored with runs and corpora, and printed.

    Args:
      path: a path or an address.
      name: what it is, for the message, which does not repeat it.

    Raises:
      UserError: it is.

    Examples:
      >>> refuse_credentials("https://data.org/wiki.txt.gz", "The text")
      >>> refuse_credentials("https://me:hunter2@data.org/wiki.txt.gz", "The text")
      Traceback (most recent call last):
      bert_jax.errors.UserError: The text is an address at data.org with credentials, which would be stored in plain text; ...
    """
    try:
        address = urlsplit(os.fspath(path))
        host, user, password = address.hostname, address.username, address.password
    except ValueError:
        return
    secret = any(_SECRET.search(key) for key, _ in parse_qsl(address.query, keep_blank_values=True))
    if address.scheme and (password or secret or (user and address.scheme in ("http", "https"))):
        raise UserError(
            f"{name} is an address at {host} with credentials, which would be stored in plain text; leave them out, and give them "
            "to the client of the storage by its own means (environment variables, a file of credentials)."
        )
