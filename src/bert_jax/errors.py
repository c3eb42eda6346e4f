"""The two ways the package says no; the command line turns them into exit statuses."""


class UserError(Exception):
    """A mistake in what the user gave: one sentence that says what is wrong, where and what to do.

    No ValueError, because libraries that call us back would catch it and say it in their own way.
    The command line prints the sentence and leaves with status 2.
    """


class Failure(RuntimeError):
    """Something failed that the user did not ask for: a full disk, a damaged checkpoint, a non-finite loss.

    The command line prints the sentence and leaves with status 1.
    """


class Doubt(UserWarning):
    """Something that is allowed and looks wrong, in one sentence; the command line prints it."""
