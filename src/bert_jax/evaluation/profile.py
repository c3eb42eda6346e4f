"""Time of a training step by phase, from a trace of JAX's profiler and the named scopes of the compiled program."""

from __future__ import annotations

import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from bert_jax.evaluation.xplane import Event, read_trace

PHASES = {
    "optimizer": "optimizer",
    "reduction": "sums over devices",
    "masking": "masking",
    "dropout": "norms, dropout",
    "norm": "norms, dropout",
    "loss": "loss",
    "core": "attention",
    "qkv": "QKV",
    "output": "projection",
    "ffn": "FFN",
    "embeddings": "embedding",
    "mlm": "head",
    "nsp": "head",
    "pooler": "head",
    "layers": "residuals, layout",
}
"""Named scope of the model or the step -> phase of a profile; among nested scopes the first of this table counts."""

OTHER, IDLE = "other", "idle"
_MARKER = "bert_jax counted steps"


def profile_step(take_step: Callable[[], Any], program: str, *, steps: int) -> dict[str, float]:
    """Measure the seconds of a step by phase from a trace of several steps.

    Args:
      take_step: takes one step and waits for its result.
      program: text of the compiled step, which contains the scope of each operation.
      steps: number of traced steps.

    Returns:
      Seconds by phase: those of ``PHASES``; "other" for operations outside of every named scope; "idle" for the time in
      which no operation runs. Time in which several operations run, on several threads or streams, is divided equally among
      them. A fused operation counts for the phase of its root.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory, profiler_options=options):
            # Not counted: starting the profiler takes a moment, after which caches are cold.
            take_step()
            with jax.profiler.TraceAnnotation(_MARKER):
                wall = sum(time_calls(take_step, steps))
        (path,) = Path(directory).rglob("*.xplane.pb")
        lines = read_trace(path)
    (begin,) = (event.start for events in lines for event in events if event.name == _MARKER)
    scopes = operation_scopes(program)
    counted = [[event for event in events if event.name in scopes and event.start > begin] for events in lines]
    phases: defaultdict[str, float] = defaultdict(float)
    for name, nanoseconds in operation_times(counted).items():
        phases[phase_of(scopes[name])] += nanoseconds * 1e-9 / steps
    return {**phases, IDLE: max(0.0, wall / steps - sum(phases.values()))}


def operation_times(lines: Sequence[Sequence[Event]]) -> dict[str, float]:
    """Nanoseconds of each operation.

    An instant is divided equally among the lines in which an operation runs; within a line it counts for the innermost one.

    Args:
      lines: the events of each thread or stream; events of a line may be nested.

    Examples:
      >>> times = operation_times([[Event(0.0, 10.0, "while"), Event(1.0, 4.0, "dot")]])
      >>> times["while"], times["dot"]
      (7.0, 3.0)
    """
    changes = [
        (time, line, is_start, event.name)
        for line, events in enumerate(lines)
        for event in events
        if event.end > event.start
        for time, is_start in ((event.start, True), (event.end, False))
    ]
    # At equal times, ends sort before starts.
    changes.sort(key=lambda change: change[::2])
    running: defaultdict[int, list[str]] = defaultdict(list)
    times: defaultdict[str, float] = defaultdict(float)
    previous = 0.0
    for now, line, is_start, name in changes:
        innermost = [names[-1] for names in running.values() if names]
        for running_name in innermost:
            times[running_name] += (now - previous) / len(innermost)
        previous = now
        if is_start:
            running[line].append(name)
        else:
            running[line].remove(name)
    return times


def operation_scopes(program: str) -> dict[str, str]:
    """Named scope of each operation of a compiled program.

    An operation without a scope, such as a fusion, has the scope of the root of the computation that it calls.

    Args:
      program: HLO text.
    """
    scopes: dict[str, str] = {}
    called: dict[str, str] = {}
    root_scopes: dict[str, str] = {}
    computation = ""
    for line in program.splitlines():
        if line.endswith("{") and (header := re.match(r"(?:ENTRY )?%?([\w.\-]+) ", line)):
            computation = header[1]
        elif operation := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line):
            scope = re.search(r'op_name="([^"]*)"', line)
            scopes[operation[1]] = scope[1] if scope else ""
            if scope:
                # Overwritten line by line, so that the last one, that of the root, remains.
                root_scopes[computation] = scope[1]
            if call := re.search(r"(?:calls|to_apply)=%?([\w.\-]+)", line):
                called[operation[1]] = call[1]
    return {name: scope or root_scopes.get(called.get(name, ""), "") for name, scope in scopes.items()}


def phase_of(scope: str) -> str:
    """Phase of an operation's scope.

    Examples:
      >>> phase_of("jit(train_step)/layers/attention/core/dot_general")
      'attention'
    """
    names = set(re.findall(r"\w+", scope))
    return next((phase for name, phase in PHASES.items() if name in names), OTHER)


def time_calls(function: Callable[[], Any], count: int) -> list[float]:
    """Seconds of each of ``count`` calls."""
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return seconds
