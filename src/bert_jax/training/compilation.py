"""Compilation of the training step, noticed when it happens again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import jax

# JAX records it when it has compiled a program or read it from its cache.
_COMPILED = "/jax/core/compile/backend_compile_duration"
# Changed arguments that a warning names.
_NAMED = 3


class CompilationWatch:
    """Calls a compiled function, and notices when that compiled it.

    Args:
      function: the function, compiled for each shape of its arguments when it first sees it.
      clock: seconds.
    """

    def __init__(self, function: Callable[..., Any], clock: Callable[[], float] = time.perf_counter) -> None:
        self._function, self._clock = function, clock
        self._caller: int | None = None
        self._end = 0.0
        self._before: dict[str, str] = {}
        self.seconds = 0.0
        """Seconds that the last call spent on tracing and compilation."""
        self.changes: list[str] = []
        """How the arguments of the last call that compiled differed from those of the compilation before it."""
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def __call__(self, *arguments: Any) -> Any:
        """Call the function."""
        self._caller, began, self._end = threading.get_ident(), self._clock(), 0.0
        try:
            result = self._function(*arguments)
        finally:
            self._caller = None
        self.seconds = max(0.0, self._end - began) if self._end else 0.0
        if self.seconds:
            signature = _signature(arguments)
            self.changes = [
                f"{name} from {self._before.get(name, 'absent')} to {signature.get(name, 'absent')}"
                for name in {**self._before, **signature}
                if self._before.get(name) != signature.get(name)
            ]
            self._before = signature
        return result

    def close(self) -> None:
        """Stop listening."""
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        del duration_secs, kwargs
        # Programs that other threads compile, to save a checkpoint, say, are none of the function's.
        if event == _COMPILED and threading.get_ident() == self._caller:
            self._end = self._clock()


def describe_changes(changes: list[str]) -> str:
    """What changed, for a sentence.

    Examples:
      >>> describe_changes(["input_ids from int32[8,16] to int32[8,32]"])
      'input_ids from int32[8,16] to int32[8,32]'
      >>> describe_changes([])
      'no shape, type or layout of an argument'
    """
    if not changes:
        return "no shape, type or layout of an argument"
    more = f" and {len(changes) - _NAMED} more" if len(changes) > _NAMED else ""
    return ", ".join(changes[:_NAMED]) + more


def _signature(arguments: Any) -> dict[str, str]:
    """Shape, type and layout of each array, by its path; also of arrays that were donated."""
    leaves = jax.tree_util.tree_leaves_with_path(arguments)
    return {jax.tree_util.keystr(path[1:], simple=True, separator="."): _describe(leaf) for path, leaf in leaves}


def _describe(leaf: Any) -> str:
    shape = ",".join(map(str, getattr(leaf, "shape", ())))
    weak = " (weak)" if getattr(leaf, "weak_type", False) else ""
    spec = getattr(getattr(leaf, "sharding", None), "spec", None)
    if spec is not None:
        # Axes at the end that are not divided may be written or left out.
        axes = [*spec]
        while axes and axes[-1] is None:
            axes.pop()
        spec = jax.P(*axes)
    return f"{getattr(leaf, 'dtype', type(leaf).__name__)}[{shape}]{weak}" + (f" {spec}" if spec is not None else "")
