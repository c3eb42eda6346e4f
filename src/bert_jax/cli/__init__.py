"""The command ``bert-jax``: one file for each subcommand, errors as one sentence."""

from __future__ import annotations

import errno
import importlib
import sys

from bert_jax import __version__
from bert_jax.errors import Failure, UserError

COMMANDS = {
    "vocab": "learn a vocabulary from text",
    "prepare": "tokenize text into a corpus",
    "pretrain": "pretrain a model on a corpus, or go on with a run",
    "fill-mask": "say what stands under [MASK]",
}


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand.

    Returns:
      0; 2 for a user's mistake; 1 for a failure; 128 + n when signal n stopped a run, which is then saved.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(__version__)
        return 0
    if arguments[0] not in COMMANDS:
        print(f"bert-jax: there is no command {arguments[0]!r}.\n{_usage()}", file=sys.stderr)
        return 2
    command = importlib.import_module(f"bert_jax.cli.{arguments[0].replace('-', '_')}")
    before, sys.unraisablehook = sys.unraisablehook, _unraisable
    try:
        return command.main(arguments[1:])
    except UserError as error:
        return _fail(error, 2)
    except Failure as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("stopped by Ctrl-C; nothing unfinished was kept.", 130)
    except Exception as error:
        # The libraries that write raise OSError, ValueError or RuntimeError for the same full disk.
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error):
            return _fail(f"the disk is full: {error}".splitlines()[0], 1)
        if isinstance(error, OSError) and error.filename:
            return _fail(f"{error.filename}: {error.strerror}.", 1)
        raise
    finally:
        sys.unraisablehook = before


def _unraisable(what: sys.UnraisableHookArgs) -> None:
    # Where reading or writing a checkpoint fails, TensorStore's threads go on to call an event loop that is closed.
    if str(what.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(what)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:{width}}  {purpose}" for name, purpose in COMMANDS.items())
    return f"usage: bert-jax COMMAND [options]\n\n{rows}\n\n`bert-jax COMMAND --help` describes a command."


def _fail(sentence: object, status: int) -> int:
    print(f"bert-jax: {sentence}", file=sys.stderr)
    return status
