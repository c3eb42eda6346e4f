"""The command ``bert-jax``: one file for each subcommand, errors as one sentence."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import io
import os
import platform
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from bert_jax import __version__
from bert_jax.errors import Doubt, Failure, UserError

COMMANDS = {
    "vocab": "learn a vocabulary from text",
    "prepare": "tokenize text into a corpus",
    "pretrain": "pretrain a model on a corpus, or go on with a run",
    "finetune": "fine-tune a model on a task, with one seed or many, or go on with a run",
    "evaluate": "score a fine-tuned model by its task's official scores",
    "predict": "answer a file's questions with a fine-tuned model",
    "bench": "measure how fast a config trains here, and where the time goes",
    "fill-mask": "say what stands under [MASK]",
    "embed": "turn texts into vectors",
    "features": "write the states of every piece after chosen layers",
    "convert": "bring a model into another format",
}

_COMPUTING = ("pretrain", "finetune", "evaluate", "predict", "bench", "embed", "features")

ALLOCATOR = (
    "glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184:"
    "glibc.malloc.top_pad=67108864:glibc.malloc.hugetlb=1"
)
"""Settings of glibc that keep a step's memory for the next one."""


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand.

    Returns:
      0; 2 for a user's mistake; 1 for a failure; 128 + n when signal n stopped it (a run is then saved).
    """
    program = arguments is None
    if arguments is None:
        arguments = sys.argv[1:]
        if arguments and arguments[0] in _COMPUTING:
            _keep_memory()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(__version__)
        return 0
    if arguments[0] not in COMMANDS:
        print(f"bert-jax: there is no command {arguments[0]!r}.\n{_usage()}", file=sys.stderr)
        return 2
    # A run saves itself when it is asked to stop; everything else takes away what it has begun.
    saves = arguments[0] in ("pretrain", "finetune")
    status = _run(arguments, saves=saves)
    if program and status > 128 and not saves:
        # Python would wait for the libraries' threads, which once took over a minute.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(status)
    return status


def _run(arguments: list[str], *, saves: bool) -> int:
    before, sys.unraisablehook = sys.unraisablehook, _unraisable
    term = None if saves else signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        _keep_compilations()
        command = importlib.import_module(f"bert_jax.cli.{arguments[0].replace('-', '_')}")
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        with warnings.catch_warnings():
            warnings.simplefilter("always", Doubt)
            show, warnings.showwarning = warnings.showwarning, lambda *what, **more: _show(show, *what, **more)
            status: int = command.main(arguments[1:])
            sys.stdout.flush()
            return status
    except UserError as error:
        return _fail(error, 2)
    except Failure as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("stopped by Ctrl-C; nothing unfinished was kept.", 130)
    except SystemExit as stop:
        if stop.code != 128 + signal.SIGTERM:
            raise
        return 128 + signal.SIGTERM
    except BrokenPipeError:
        # Whoever read our output has enough; Python would complain once more when it closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        # The libraries that write raise OSError, ValueError or RuntimeError for the same full disk.
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error):
            return _fail(f"the disk is full: {error}".splitlines()[0], 1)
        if isinstance(error, OSError) and error.filename:
            return _fail(f"{error.filename}: {error.strerror}.", 1)
        raise
    finally:
        sys.unraisablehook = before
        if term is not None:
            signal.signal(signal.SIGTERM, term)


def _keep_memory() -> None:
    """Start once more with an allocator that keeps a step's memory for the next one: on a CPU 1.2 to 1.3 times faster.

    By its defaults glibc gives large arrays back to the system whenever they are freed. It reads its settings when a program
    starts, and only then; whoever has set them is left alone.
    """
    if platform.libc_ver()[0] == "glibc" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = ALLOCATOR
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _keep_compilations() -> None:
    """Compile for this processor once, not once a call; JAX's own settings go before."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        flags = next((line for line in _processor() if line.startswith("flags")), "")
        # A program compiled for one processor may stop another: a home directory is often shared by several.
        kind = hashlib.blake2b(flags.encode(), digest_size=4).hexdigest()
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "bert_jax" / f"{jax.__version__}-{kind}"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        # With a limit, JAX also locks the directory: two commands at a time would read each other's half-written files.
        jax.config.update("jax_compilation_cache_max_size", 2**31)


def _processor() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _show(show: Callable[..., None], message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    if issubclass(category, Doubt):
        print(f"bert-jax: warning: {message}", file=sys.stderr)
    else:
        show(message, category, *where, **more)


def _unraisable(what: sys.UnraisableHookArgs) -> None:
    if isinstance(what.exc_value, KeyboardInterrupt | SystemExit):
        # A signal came while a library's callback ran, where Python drops what its handler raises: send it once more.
        number = signal.SIGINT if isinstance(what.exc_value, KeyboardInterrupt) else signal.SIGTERM
        again = threading.Timer(0.05, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()
    # Where reading or writing a checkpoint fails, TensorStore's threads go on to call an event loop that is closed.
    elif str(what.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(what)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:{width}}  {purpose}" for name, purpose in COMMANDS.items())
    return f"usage: bert-jax COMMAND [options]\n\n{rows}\n\n`bert-jax COMMAND --help` describes a command."


def _fail(sentence: object, status: int) -> int:
    print(f"bert-jax: {sentence}", file=sys.stderr)
    return status
