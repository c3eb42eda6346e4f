"""Training speed of a config on this machine: time per step, arithmetic, memory, and a profile by phase."""

from __future__ import annotations

import resource
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax import ops
from bert_jax.batch import HostBatch
from bert_jax.config.data import DataConfig
from bert_jax.config.run import Config
from bert_jax.errors import UserError
from bert_jax.evaluation.profile import profile_step, time_calls
from bert_jax.masking import ResolvedMaskPolicy, schedules
from bert_jax.masking.token_weights import check_function
from bert_jax.models.arithmetic import forward_flop
from bert_jax.models.encoder import attention_implementation
from bert_jax.training import launchers, optimizers, step

_WARM_UP_STEPS = 2
_PROFILED_STEPS = 3


class Report(NamedTuple):
    """Measurements of ``run``."""

    attention: str
    """Name of the attention implementation."""
    first: float
    """Seconds of compilation and the first step."""
    seconds: list[float]
    """Seconds of each measured step."""
    tokens: int
    """Tokens in a step."""
    flop: dict[str, float]
    """Floating-point operations of a step by phase: three times those of the forward pass, without recomputation."""
    peak: float
    """FLOP/s of a large square product in the model's dtype, on one device."""
    memory: int
    """Peak bytes in use: of the first device, or of the process on a CPU."""
    phases: dict[str, float] | None
    """Seconds of a step by phase, idle time included; None without a profile."""


def random_batch(data: DataConfig, vocab_size: int, *, seed: int = 0) -> HostBatch:
    """A batch of random tokens in full rows, with one sentence pair in each (see [`bert_jax.batch`][bert_jax.batch]).

    Args:
      data: gives ``batch_size`` (B) and ``sequence_length`` (S).
      vocab_size: ids of ordinary tokens are drawn from [1, vocab_size); special tokens have id 0.
      seed: the batch is a function of it.

    Examples:
      >>> batch = random_batch(bert_jax.DataConfig("", sequence_length=16, batch_size=2), 100)
      >>> batch["input_ids"].shape, batch["cls_positions"].tolist()
      ((2, 16), [[0], [0]])
    """
    rng = np.random.default_rng(seed)
    shape, middle = (data.batch_size, data.sequence_length), data.sequence_length // 2
    columns = np.broadcast_to(np.arange(data.sequence_length), shape)
    special = (columns == 0) | (columns == middle) | (columns == data.sequence_length - 1)
    integers = {
        "input_ids": np.where(special, 0, rng.integers(1, vocab_size, shape)),
        "token_type_ids": columns > middle,
        "position_ids": columns,
        "segment_ids": np.ones(shape),
        "word_ids": np.where(special, -1, columns),
        "example_ids": rng.integers(0, 2**31, (data.batch_size, 1)),
        "cls_positions": np.zeros((data.batch_size, 1)),
        "nsp_labels": rng.integers(0, 2, (data.batch_size, 1)),
    }
    return {name: np.asarray(value, np.int32) for name, value in integers.items()} | {
        "nsp_weights": np.ones((data.batch_size, 1), np.float32)
    }


def run(config: Config, *, steps: int, profile: bool = False) -> Report:
    """Train on random full rows: one step that compiles, two warm-up steps, and ``steps`` measured steps.

    Args:
      config: the run; its corpus is not read and its run directory is not created.
      steps: measured steps.
      profile: also trace some steps and report their phases.

    Raises:
      UserError: the model or the batch does not divide over the devices; there are several processes; or the policy reads a
        file of token weights.
    """
    if config.train.distributed:
        raise UserError("Steps are measured in a single process; leave out --train.distributed.")
    policy, launcher, attention = (
        policy_without_vocabulary(config),
        launchers.launch(config),
        attention_implementation(config.model, config.data.sequence_length, training=True),
    )
    model, data = config.model, config.data
    optimizer = optimizers.make_optimizer(config.optim, config.train.steps)

    def init() -> step.TrainState:
        return step.init_state(config, optimizer)

    state = jax.block_until_ready(launchers.create(init, launcher.shardings(jax.eval_shape(init))))
    rows = launcher.rows(data.batch_size)
    batch = launcher.place({name: values[rows] for name, values in random_batch(data, model.vocab_size).items()})
    with launcher.context():
        start = time.perf_counter()
        objective = step.pretraining(model, policy, accumulate=config.optim.accumulate, **step.replicas(config.optim))
        function = step.make_train_step(objective, optimizer, axis_name=launcher.axis_name)
        train_step = launcher.compile_step(function).lower(state, batch).compile()

        def take_step() -> None:
            nonlocal state
            state, metrics = train_step(state, batch)
            jax.block_until_ready(metrics)

        take_step()
        first = time.perf_counter() - start
        time_calls(take_step, _WARM_UP_STEPS)
        seconds = time_calls(take_step, steps)
        memory = _peak_memory()
        traced = min(steps, _PROFILED_STEPS)
        phases = profile_step(take_step, train_step.as_text(), steps=traced) if profile else None
    lengths = np.full(data.batch_size, data.sequence_length)
    flop = forward_flop(model, lengths, count_predictions(policy, lengths))
    return Report(
        attention=attention,
        first=first,
        seconds=seconds,
        tokens=int(lengths.sum()),
        flop={phase: 3 * value for phase, value in flop.items()},
        peak=product_speed(config),
        memory=memory,
        phases=phases,
    )


def product_speed(config: Config) -> float:
    """FLOP/s of a large square product of random numbers in the model's dtype on one device, the best of several runs."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jax.random.normal(jax.random.key(0), (size, size), config.model.dtype)
    multiply = jax.jit(lambda x: ops.einsum("AB,BC->AC", x, x, float32_result=True))
    return 2 * size**3 / min(time_calls(lambda: jax.block_until_ready(multiply(x)), 6))


def policy_without_vocabulary(config: Config) -> ResolvedMaskPolicy:
    """The mask policy without a tokenizer; every token is ordinary, and id 0 stands for [MASK].

    Raises:
      UserError: the policy reads a file of token weights.
    """
    weights, vocab_size = config.mask.token_weights, config.model.vocab_size
    if isinstance(weights, str):
        raise UserError("No vocabulary is read here, which a file of token weights needs; use --mask.token-weights None.")
    return ResolvedMaskPolicy(
        config.mask,
        mask_id=0,
        vocab_size=vocab_size,
        ordinary_ids=(0, vocab_size),
        steps=config.mask.steps or config.train.steps,
        token_weights=None if weights is None else check_function(weights, config.data.sequence_length, vocab_size),
    )


def count_predictions(resolved: ResolvedMaskPolicy, lengths: np.ndarray) -> float:
    """Predictions of examples of these lengths [N] in the first step."""
    policy = resolved.policy
    if policy.select == "next":
        # Each token but the last predicts its successor.
        return float((lengths - 1).sum())
    rate = float(schedules.value(policy.predicted, 0, resolved.steps, loss=jnp.log(float(resolved.vocab_size))))
    counts = np.maximum(1, np.round(rate * lengths))
    return float(np.minimum(counts, policy.max_predictions or np.inf).sum())


def _peak_memory() -> int:
    stats = jax.local_devices()[0].memory_stats()
    # On Linux, ru_maxrss is in KiB.
    return stats["peak_bytes_in_use"] if stats else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
