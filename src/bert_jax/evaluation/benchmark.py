"""How fast a config trains on this machine, and where the time goes."""

from __future__ import annotations

import dataclasses
import re
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax import ops
from bert_jax.config.run import Config, DataConfig, ModelConfig
from bert_jax.config.validation import require
from bert_jax.data.pipeline import HostBatch
from bert_jax.errors import UserError
from bert_jax.masking import schedules
from bert_jax.masking.policy import MaskPolicy
from bert_jax.ops.attention import select
from bert_jax.training import launchers, optimizers, step

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
"""Named scopes of the model and the step -> phases of a profile; of the scopes an operation stands in, the first here counts."""

REST, IDLE = "other", "idle"
_COUNTED = "bert_jax counted steps"


class Report(NamedTuple):
    """What :func:`run` measured."""

    attention: str
    """Implementation of attention."""
    first: float
    """Seconds to compile and to take the first step."""
    seconds: list[float]
    """Of each further step."""
    tokens: int
    """In a step."""
    flop: dict[str, float]
    """Floating-point operations of a step by phase: three times the forward pass, nothing recomputed."""
    peak: float
    """FLOP/s of a large square product in the model's dtype, on one device."""
    memory: int
    """Most bytes in use: of the first device, or of the process on a CPU."""
    phases: dict[str, float] | None
    """Seconds of a step by phase, waiting included; None without a profile."""


def random_batch(data: DataConfig, vocab_size: int, *, seed: int = 0) -> HostBatch:
    """Full rows of random pieces, one pair in each (the batch contract in ``docs/design.md``)."""
    rng = np.random.default_rng(seed)
    shape, middle = (data.batch_size, data.sequence_length), data.sequence_length // 2
    place = np.broadcast_to(np.arange(data.sequence_length), shape)
    special = (place == 0) | (place == middle) | (place == data.sequence_length - 1)
    integers = {
        "ids": np.where(special, 0, rng.integers(1, vocab_size, shape)),
        "types": place > middle,
        "positions": place,
        "segments": np.ones(shape),
        "offsets": place,
        "words": np.where(special, -1, place),
        "examples": rng.integers(0, 2**31, (data.batch_size, 1)),
        "cls_positions": np.zeros((data.batch_size, 1)),
        "nsp_labels": rng.integers(0, 2, (data.batch_size, 1)),
    }
    return {name: np.asarray(value, np.int32) for name, value in integers.items()} | {
        "nsp_weights": np.ones((data.batch_size, 1), np.float32)
    }


def forward_flop(model: ModelConfig, lengths: np.ndarray, masked: int | float) -> dict[str, float]:
    """Multiplications and additions that BERT needs for examples of these lengths, by phase; padding needs none.

    Args:
      model: the shape.
      lengths: tokens of each example.
      masked: positions that are predicted, in all.
    """
    tokens, squares = float(np.sum(lengths)), float(np.sum(np.square(lengths, dtype=float)))
    layers, width, inner = model.num_hidden_layers, model.hidden_size, model.intermediate_size
    return {
        "QKV": layers * 6 * tokens * width**2,
        "attention": layers * 4 * squares * width,
        "projection": layers * 2 * tokens * width**2,
        "FFN": layers * 4 * tokens * width * inner,
        "head": masked * (2 * width**2 + 2 * width * model.vocab_size) + np.size(lengths) * (2 * width**2 + 4 * width),
    }


def run(config: Config, *, steps: int, profile: bool = False) -> Report:
    """Train on random full rows for ``steps`` steps, after one that compiles and two that warm up.

    Raises:
      UserError: the devices, the model or the batch do not divide as asked, or there are several processes.
    """
    if config.train.distributed:
        raise UserError("bench measures one process; leave out --train.distributed.")
    require(not isinstance(config.mask.weights, str), "bench reads no vocabulary, which a file of weights needs; leave it out.")
    size = config.model.vocab_size
    steps_of_schedules = config.mask.steps or config.train.steps
    policy = dataclasses.replace(config.mask, mask_id=0, vocab_size=size, ordinary=(0, size), steps=steps_of_schedules)
    config = dataclasses.replace(config, mask=policy)
    launcher = launchers.launch(config)
    attention = select(config.model, config.data.sequence_length, training=True)
    optimizer = optimizers.make_optimizer(config.optim, config.train.steps)

    def init() -> step.TrainState:
        return step.init_state(config, optimizer)

    state = jax.block_until_ready(jax.jit(init, out_shardings=launcher.shardings(jax.eval_shape(init)))())
    rows = launcher.rows(config.data.batch_size)
    batch = launcher.place({name: x[rows] for name, x in random_batch(config.data, config.model.vocab_size).items()})
    with launcher.context():
        began = time.perf_counter()
        program = step.make_train_step(step.pretraining(config), optimizer, axis_name=launcher.axis_name)
        compiled = launcher.compile(program, donate=True)
        train_step = compiled.lower(state, batch).compile()

        def take() -> None:
            nonlocal state
            state, metrics = train_step(state, batch)
            jax.block_until_ready(metrics)

        take()
        first = time.perf_counter() - began
        _timed(take, 2)
        seconds = _timed(take, steps)
        memory = _memory()
        phases = profiled(take, train_step.as_text(), steps=min(steps, 3)) if profile else None
    lengths = np.full(config.data.batch_size, config.data.sequence_length)
    flop = forward_flop(config.model, lengths, _masked(config.mask, lengths))
    return Report(
        attention, first, seconds, int(lengths.sum()), {name: 3 * x for name, x in flop.items()}, product(config), memory, phases
    )


def product(config: Config) -> float:
    """FLOP/s of a square product of random numbers in the model's arithmetic on one device, the best of several."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jax.random.normal(jax.random.key(0), (size, size), config.model.dtype)
    multiply = jax.jit(lambda x: ops.einsum("AB,BC->AC", x, x, wide=True))
    return 2 * size**3 / min(_timed(lambda: jax.block_until_ready(multiply(x)), 6))


def profiled(take: Callable[[], Any], program: str, *, steps: int) -> dict[str, float]:
    """Seconds of a step by phase, from a trace of several.

    Args:
      take: takes one step and waits for it.
      program: the compiled step's text, which says in which scope an operation was written.
      steps: how many are traced.

    Returns:
      The phases of :data:`PHASES`; "other", what stands in none of them; "idle", the time in which nothing ran. An instant
      in which several operations run, on several threads or streams, is shared out among them. A fused operation counts
      where its last part belongs.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory, profiler_options=options):
            # Starting takes a moment, and the step after a pause meets cold memory.
            take()
            with jax.profiler.TraceAnnotation(_COUNTED):
                wall = sum(_timed(take, steps))
        (path,) = Path(directory).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(path)).planes
        lines = [list(map(_event, line.events)) for plane in planes for line in plane.lines]
    (begin,) = (start for events in lines for start, _, name in events if name == _COUNTED)
    scopes = _scopes(program)
    known = [[event for event in events if event[2] in scopes and event[0] > begin] for events in lines]
    phases: defaultdict[str, float] = defaultdict(float)
    for name, nanoseconds in _shares(known).items():
        phases[_phase(scopes[name])] += nanoseconds * 1e-9 / steps
    return {**phases, IDLE: max(0.0, wall / steps - sum(phases.values()))}


def _event(event: jax.profiler.ProfileEvent) -> tuple[float, float, str]:
    return event.start_ns, event.end_ns, dict(event.stats).get("hlo_op", event.name)


def _shares(lines: list[list[tuple[float, float, str]]]) -> dict[str, float]:
    """Nanoseconds of each operation: of every instant, an equal share for each line in which one runs, the innermost there."""
    changes = [
        (when, line, start, name)
        for line, events in enumerate(lines)
        for begin, end, name in events
        if end > begin
        for when, start in ((begin, True), (end, False))
    ]
    # What ends at an instant ends before the next begins.
    changes.sort(key=lambda change: change[::2])
    running: defaultdict[int, list[str]] = defaultdict(list)
    shares: defaultdict[str, float] = defaultdict(float)
    before = 0.0
    for now, line, start, name in changes:
        inner = [names[-1] for names in running.values() if names]
        for one in inner:
            shares[one] += (now - before) / len(inner)
        before = now
        if start:
            running[line].append(name)
        else:
            running[line].remove(name)
    return shares


def _scopes(program: str) -> dict[str, str]:
    """Scope of each operation of a compiled program; one without takes that of the computation that it calls."""
    scopes: dict[str, str] = {}
    calls: dict[str, str] = {}
    within: dict[str, str] = {}
    computation = ""
    for line in program.splitlines():
        if line.endswith("{") and (header := re.match(r"(?:ENTRY )?%?([\w.\-]+) ", line)):
            computation = header[1]
        elif operation := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line):
            scope = re.search(r'op_name="([^"]*)"', line)
            scopes[operation[1]] = scope[1] if scope else ""
            if scope:
                within[computation] = scope[1]
            if called := re.search(r"(?:calls|to_apply)=%?([\w.\-]+)", line):
                calls[operation[1]] = called[1]
    return {name: scope or within.get(calls.get(name, ""), "") for name, scope in scopes.items()}


def _phase(scope: str) -> str:
    words = set(re.findall(r"\w+", scope))
    return next((phase for name, phase in PHASES.items() if name in words), REST)


def _timed(take: Callable[[], Any], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        take()
        seconds.append(time.perf_counter() - began)
    return seconds


def _masked(policy: MaskPolicy, lengths: np.ndarray) -> float:
    share = float(schedules.value(policy.predicted, 0, policy.steps, loss=jnp.log(policy.vocab_size or 1.0)))
    counts = np.maximum(1, np.round(share * lengths))
    return float(np.minimum(counts, policy.max_predictions or np.inf).sum())


def _memory() -> int:
    stats = jax.local_devices()[0].memory_stats()
    # On Linux the unit is KiB.
    return stats["peak_bytes_in_use"] if stats else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
