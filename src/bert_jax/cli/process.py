"""Process-wide settings of the command: memory allocation, the cache of compiled programs, standard output, and a prompt exit.

They would surprise in a library, so only the command `bert-jax` uses them.

- *Allocation.* By default glibc returns large arrays to the operating system whenever they are freed, and the next training step
  pays for fresh pages again. Keeping them makes steps on a CPU 1.2 to 1.3 times faster. glibc reads its settings from the
  environment variable GLIBC_TUNABLES when a program starts and only then, so the command sets the variable and replaces itself
  by a new Python process (`execv`: same process id, same arguments). A GLIBC_TUNABLES that is already set is left unchanged.
- *Output.* Standard output is for results, so what libraries in C++ print there, such as Gloo about its connections, goes to
  standard error.
- *Exit.* After Ctrl-C or SIGTERM, Python waits for threads of the libraries before it exits, which took more than a minute in
  measurements. A command that has removed its incomplete output therefore ends with `os._exit`.

The command neither restarts nor ends itself so if the environment variable BERT_JAX_ALLOCATOR is "system", on a machine with a GPU
or TPU, or in a debugger.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import platform
import sys
from pathlib import Path

import jax

ALLOCATOR = "BERT_JAX_ALLOCATOR"
"""Environment variable; "system" leaves the allocator of the C library as it is."""
TUNABLES = (
    "glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184:"
    "glibc.malloc.top_pad=67108864:glibc.malloc.hugetlb=1"
)
"""Settings with which glibc keeps freed memory for the next step."""
_ACCELERATOR_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/accel*", "/dev/vfio/*")
_ACCELERATOR_PLATFORMS = ("cuda", "gpu", "rocm", "tpu")
_CACHE_BYTES = 2**31
_MIN_COMPILE_SECONDS = 0.2


def keep_freed_memory() -> None:
    """Restart the command with an allocator that keeps freed memory, unless the module's exceptions apply."""
    if is_adjustable() and platform.libc_ver()[0] == "glibc" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = TUNABLES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def exit_promptly(status: int) -> None:
    """End the process without waiting for threads, unless the module's exceptions apply; then return."""
    if is_adjustable():
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(status)


def is_adjustable() -> bool:
    """Return whether the command may restart and end itself; JAX is not initialized."""
    # From Python 3.12 on, debuggers based on pydevd use sys.monitoring instead of a trace function.
    if os.environ.get(ALLOCATOR) == "system" or sys.gettrace() is not None or "pydevd" in sys.modules:
        return False
    platforms = {name.strip() for name in os.environ.get("JAX_PLATFORMS", "").lower().split(",")}
    return platforms.isdisjoint(_ACCELERATOR_PLATFORMS) and not any(map(glob.glob, _ACCELERATOR_DEVICES))


def keep_output_for_results() -> None:
    """Send what libraries in C++ print to standard output to standard error; there is nothing to do where one of them is closed."""
    if sys.stdout is None or sys.stderr is None:
        return
    sys.stdout.flush()
    output = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.stdout = os.fdopen(output, "w", encoding=sys.stdout.encoding, buffering=1 if sys.stdout.isatty() else -1)


def cache_compiled_programs() -> None:
    """Keep compiled programs on disk for later commands, unless JAX's own setting names a directory.

    They lie in ``$XDG_CACHE_HOME/bert_jax`` (by default ``~/.cache/bert_jax``), at most 2 GiB.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    # A program that was compiled for one processor can crash on another, and a home directory is often shared by several machines.
    flags = next((line for line in _cpu_info() if line.startswith("flags")), "")
    processor = hashlib.blake2b(flags.encode(), digest_size=4).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(cache / "bert_jax" / f"{jax.__version__}-{processor}"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)
    # With a maximum size JAX also locks the directory; without the lock, concurrent commands would read incomplete files.
    jax.config.update("jax_compilation_cache_max_size", _CACHE_BYTES)


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
