"""The command ``bert-jax``: one module for each subcommand; errors are printed as one sentence."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from inspect import iscoroutine
from typing import Any

from bert_jax import __version__
from bert_jax.cli import process
from bert_jax.errors import BertWarning
from bert_jax.io import remote
from bert_jax.io.failures import explain

COMMANDS = {
    "vocab": "learn a vocabulary from text, or extend one",
    "prepare": "tokenize text into a corpus",
    "inspect": "show what a corpus or TFRecord files contain",
    "pretrain": "pretrain a model on a corpus, or resume a run",
    "finetune": "fine-tune a model on a task, or resume a run",
    "evaluate": "compute the official scores of a fine-tuned model",
    "predict": "apply a fine-tuned model to a file",
    "presets": "show what other programs compute differently, as fields of a config",
    "reproduce": "run the recipes of a table of a paper, and report ours beside the published values",
    "minimal-pairs": "compute how often a model prefers acceptable sentences, as for BLiMP",
    "plan": "compute what a config needs on a cluster: memory, time and network",
    "doctor": "check a pretraining run before it starts",
    "bench": "measure the training speed of a config on this machine",
    "replay": "compute an anomalous step of a run again, and name the layer where values stop being finite",
    "checkpoints": "list, verify or delete the checkpoints of a run",
    "info": "describe a model",
    "fill-mask": "predict the tokens under [MASK]",
    "embed": "compute a vector for each text",
    "features": "write the hidden states of every token",
    "convert": "convert a model to another format",
}
_COMPUTING = (
    "pretrain", "finetune", "reproduce", "evaluate", "predict", "bench", "replay", "embed", "features", "minimal-pairs",
)  # fmt: skip
# Commands of several processes.
_DISTRIBUTED = ("pretrain", "finetune", "doctor")
# Commands that save their run when they are stopped.
_RESUMABLE = ("pretrain", "finetune", "reproduce")
# What Ctrl-C means for other commands, unless they remove incomplete output.
_STOPPED = dict.fromkeys(("inspect", "plan", "doctor", "replay", "checkpoints", "info", "fill-mask"), "nothing was written")
_STOPPED["prepare"] = "the same command continues after the last complete shard"

_USAGE = """usage: bert-jax COMMAND [options]

Pretrain, fine-tune and use BERT models.

commands:
{commands}

`bert-jax COMMAND --help` describes a command.

options:
  -h, --help  show this help message and exit
  --version   show the version and exit

environment:
  BERT_JAX_ALLOCATOR=system   do not restart the command with other settings of glibc's memory allocator. On machines without an
                              accelerator, commands that train or encode restart themselves once, because they are faster on a
                              CPU if freed memory is kept.
  BERT_JAX_CACHE              directory of local copies of corpora on object stores; by default ~/.cache/bert_jax/copies
  JAX_COMPILATION_CACHE_DIR   directory of compiled programs; by default ~/.cache/bert_jax

exit status:
  0 success, 1 failure, 2 mistake in the input, 128 + n stopped by signal n. When pretrain and finetune are stopped by Ctrl-C or
  SIGTERM, they save the run and the same command resumes it; prepare keeps finished shards, and the same command continues; other
  commands remove their incomplete output."""


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand.

    Args:
      arguments: command-line arguments; None: those of the process, which may then be restarted (see
        [`bert_jax.cli.process`][bert_jax.cli.process]).

    Returns:
      Exit status: 0 for success, 2 for a user's mistake, 1 for a failure, 128 + n after signal n.
    """
    is_program = arguments is None
    if arguments is None:
        arguments = sys.argv[1:]
        if arguments and arguments[0] in _COMPUTING:
            process.keep_freed_memory()
        if arguments and arguments[0] in _DISTRIBUTED:
            process.keep_output_for_results()
    try:
        status = _dispatch(arguments)
    except BrokenPipeError:
        # The reader of the output has closed it; without this, Python would report the error again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if is_program and status > 128 and arguments[0] not in _RESUMABLE:
        process.exit_promptly(status)
    return status


def _dispatch(arguments: list[str]) -> int:
    """Print the usage or the version, or run a subcommand."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(), file=sys.stdout if arguments else sys.stderr, flush=True)
        return 0 if arguments else 2
    command = arguments[0]
    if command == "--version":
        print(__version__, flush=True)
        return 0
    if command not in COMMANDS:
        print(f"bert-jax: there is no command {command!r}.\n{_usage()}", file=sys.stderr)
        return 2
    return _run(command, arguments[1:])


def _run(command: str, arguments: list[str]) -> int:
    """Run a subcommand and turn exceptions into messages and an exit status."""
    unraisable_hook, sys.unraisablehook = sys.unraisablehook, _unraisable
    resumable = command in _RESUMABLE
    sigterm_handler = None if resumable else signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        process.cache_compiled_programs()
        remote.check_arguments(arguments)
        module = importlib.import_module(f"bert_jax.cli.{command.replace('-', '_')}")
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        with warnings.catch_warnings():
            warnings.simplefilter("always", BertWarning)
            show, warnings.showwarning = warnings.showwarning, lambda *args, **kwargs: _show_warning(show, *args, **kwargs)
            status: int = module.main(arguments)
            sys.stdout.flush()
            return status
    except KeyboardInterrupt:
        done = "the same command resumes from the last checkpoint" if resumable else _stopped(command)
        return _fail(f"stopped by Ctrl-C; {done}.", 130)
    except SystemExit as error:
        if error.code != 128 + signal.SIGTERM:
            sys.stdout.flush()  # a command's --help ends here
            raise
        return _fail(f"stopped by SIGTERM; {_stopped(command)}.", 128 + signal.SIGTERM)
    except Exception as error:
        sentence, status = explain(error)
        if sentence is None:
            raise
        return _fail(sentence, status)
    finally:
        sys.unraisablehook = unraisable_hook
        if sigterm_handler is not None:
            signal.signal(signal.SIGTERM, sigterm_handler)


def _stopped(command: str) -> str:
    """What a command leaves behind that was stopped and is not resumed from a checkpoint."""
    return _STOPPED.get(command, "incomplete output was removed")


def _show_warning(show: Callable[..., None], message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
    if issubclass(category, BertWarning):
        print(f"bert-jax: warning: {message}", file=sys.stderr)
    else:
        show(message, category, *args, **kwargs)


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    if isinstance(unraisable.exc_value, KeyboardInterrupt | SystemExit):
        # The signal arrived in a library's callback, where Python discards the exception of its handler: send the signal again.
        number = signal.SIGINT if isinstance(unraisable.exc_value, KeyboardInterrupt) else signal.SIGTERM
        timer = threading.Timer(0.05, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()
    # After an error in a checkpoint, Orbax drops the coroutines of its other reads, and TensorStore's threads still call an event
    # loop that is closed.
    elif not iscoroutine(unraisable.object) and str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    return _USAGE.format(commands="\n".join(f"  {name:{width}}  {purpose}" for name, purpose in COMMANDS.items()))


def _fail(sentence: object, status: int) -> int:
    print(f"bert-jax: {sentence}", file=sys.stderr)
    return status
