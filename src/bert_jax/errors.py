"""Exceptions and the warning of the package."""


class UserError(Exception):
    """A mistake in the input: one sentence that says what is wrong, where, and what to do.

    It does not derive from `ValueError`, because libraries that call back into this package catch `ValueError` and replace the
    message with their own. The command line prints the sentence and exits with status 2.
    """


class RunError(RuntimeError):
    """A failure that is not the user's mistake: a full disk, a damaged checkpoint, a loss that is not finite.

    The command line prints the sentence and exits with status 1.
    """


class BertWarning(UserWarning):
    """Input that is accepted but looks wrong, described in one sentence; the command line prints it to standard error."""
