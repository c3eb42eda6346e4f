"""What an exception means to the user of a command: a sentence and an exit status."""

from __future__ import annotations

import errno
import signal

from bert_jax.errors import RunError, UserError
from bert_jax.io import remote


def explain(error: BaseException) -> tuple[str | None, int]:
    """Return a sentence and an exit status; no sentence for what only a fault of the program raises.

    Examples:
      >>> explain(UserError("There is no corpus data/wiki."))
      ('There is no corpus data/wiki.', 2)
    """
    if isinstance(error, UserError | RunError):
        return str(error), 2 if isinstance(error, UserError) else 1
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C.", 128 + signal.SIGINT
    # Libraries raise OSError, ValueError or RuntimeError when the disk is full.
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error):
        where = getattr(error, "filename", None) or str(error).splitlines()[0]
        return f"the disk is full ({where}); free space there, and run the same command again.", 1
    if reason := remote.failure(error):
        return f"the object store has failed: {reason}.", 1
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}.", 1
    return None, 1
