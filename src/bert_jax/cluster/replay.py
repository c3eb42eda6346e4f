"""Replaying an anomalous step on one device: whether it happens again, and where values stop being finite."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
from etils import epath

from bert_jax import ops, sharding
from bert_jax.batch import Batch, HostBatch, Params
from bert_jax.cluster import layers
from bert_jax.cluster.layers import NotFinite
from bert_jax.config.masking import MaskPolicy
from bert_jax.config.model import ModelConfig
from bert_jax.config.run import Config
from bert_jax.errors import UserError
from bert_jax.training import dumps, optimizers, step
from bert_jax.training.anomalies import ANOMALY, FINE, first_watch, watched
from bert_jax.training.launchers import MeshLauncher
from bert_jax.training.step import Objective, TrainState

_COMPARED = ("loss", "grad_norm")


@dataclasses.dataclass(frozen=True)
class Replay:
    """What a replayed step computed, beside what the run had computed."""

    dump: str
    step: int
    reason: str
    """What was wrong in the run."""
    devices: int
    """Devices of the run."""
    accumulate: int
    """Micro-batches of the replayed step."""
    recorded: dict[str, float]
    """Loss and gradient norm of the run."""
    replayed: dict[str, float]
    """The same of the replay."""
    happens_again: bool
    """Whether the replayed step is an anomaly, too."""
    inputs: tuple[str, ...]
    """Clauses about inputs that are wrong."""
    parameters: tuple[str, ...]
    """Parameters, and arrays of the optimizer, that were not finite before the step."""
    output: NotFinite | None
    """The first part of the network with an output that is not finite."""
    gradients: tuple[str, ...]
    """Parameters with gradients that are not finite, in the order of the network; the backward pass reaches the last one first."""

    @property
    def bit_equal(self) -> bool:
        """Whether loss and gradient norm are those of the run, bit for bit; all NaN count as the same."""
        recorded, replayed = ([np.float32(metrics[name]) for name in _COMPARED] for metrics in (self.recorded, self.replayed))
        return np.array_equal(recorded, replayed, equal_nan=True)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; numbers that are not finite are text."""
        values = dataclasses.asdict(self)
        for name in ("recorded", "replayed"):
            values[name] = {key: value if math.isfinite(value) else str(value) for key, value in values[name].items()}
        output = None if self.output is None else self.output._asdict()
        return values | {"bit_equal": self.bit_equal, "output": output}


def replay(path: epath.PathLike, *, mask: MaskPolicy | None = None, accumulate: int | None = None) -> Replay:
    """Compute the step of a dump again, on one device.

    A step of a run on one device is computed by the same program, and on the same hardware has the same bits. One of a run on
    several devices is computed in as many micro-batches as it had parts, and differs by rounding.

    Args:
      path: directory of the dump, such as ``RUN/anomalies/step-100``.
      mask: the run's mask policy, where it has functions or token weights, which a dump does not contain.
      accumulate: micro-batches; by default those of the run, times the parts into which its devices divided a batch.

    Raises:
      UserError: there is no dump; the mask policy is needed or is not that of the run; ``accumulate`` does not divide the batch.
      RunError: the dump is damaged.

    Examples:
      >>> replay("no-such-run/anomalies/step-1")
      Traceback (most recent call last):
      bert_jax.errors.UserError: ...no-such-run/anomalies/step-1 does not exist; ...
    """
    dump = dumps.read(path, mask=mask)
    anomaly = dump.anomaly
    config = [part for start, part in dump.config.parts() if start < anomaly.step][-1]
    parts = _parts(config, dump.shards, accumulate)
    launcher = MeshLauncher(config.model, sharding.make_mesh(data=1, devices=jax.local_devices()[:1]))
    objective = step.pretraining(
        config.model, dump.policy, accumulate=parts, pairs=config.data.pairs, **step.replicas(config.optim)
    )
    optimizer = optimizers.make_optimizer(config.optim, config.train.steps, dump.config.phases)
    factor, window = config.train.spike_factor, config.train.spike_window
    rows = jax.device_get(dump.batch)
    with launcher.context():
        state, batch = _placed(launcher, dump.state), launcher.place(rows)
        # Before the step, which is given the state's memory.
        wrong = tuple(layers.not_finite({"params": state.params, "opt_state": state.opt_state}))
        root = jax.random.wrap_key_data(state.key, impl=ops.GENERATOR)
        gradients, point, masked = _gradients(objective, state, batch)
        dropout = step.dropout_key(root, state.step)
        output = layers.first_output(config.model, point, masked, dropout, pairs=config.data.pairs, parts=parts)
        watch = _placed(launcher, first_watch(dump.meta.anomalies.get("losses", ()), None if factor is None else window))
        train_step = launcher.compile_step(watched(step.make_train_step(objective, optimizer), factor))
        metrics = launcher.means(train_step((state, watch), batch)[1])
    return Replay(
        dump=str(path),
        step=anomaly.step,
        reason=anomaly.reason,
        devices=dump.devices,
        accumulate=parts,
        recorded={name: anomaly.metrics[name] for name in _COMPARED},
        replayed={name: metrics[name] for name in _COMPARED},
        happens_again=metrics[ANOMALY] != FINE,
        inputs=tuple(_input_problems(config.model, rows)),
        parameters=wrong,
        output=output,
        gradients=gradients,
    )


def _parts(config: Config, shards: int, accumulate: int | None) -> int:
    """Parts of the batch that are computed one after the other; the number of replicas is part of the result, and is kept."""
    if config.optim.replicas > 1:
        return config.optim.replicas
    parts = accumulate or config.optim.accumulate * shards
    if config.data.batch_size % parts:
        raise UserError(
            f"The batch has {config.data.batch_size} rows, which {parts} micro-batches do not divide; use --accumulate N."
        )
    return parts


def _placed(launcher: MeshLauncher, tree: Any) -> Any:
    return jax.device_put(tree, launcher.shardings(jax.eval_shape(lambda: tree)))


def _gradients(objective: Objective, state: TrainState, batch: Batch) -> tuple[tuple[str, ...], Params, Batch]:
    """Parameters with gradients that are not finite, the parameters at which they are taken, and the masked batch."""

    def keep(gradients: Params, opt_state: optax.OptState, params: Params | None = None) -> tuple[Params, optax.OptState]:
        del opt_state
        return optax.tree.zeros_like(params), gradients

    # An optimizer whose state is the gradients: they are those of the step, accumulated as there.
    recorder = optax.GradientTransformation(lambda params: (), keep)

    @jax.jit
    def compute(state: TrainState, batch: Batch) -> tuple[Params, Params, Batch]:
        after, _ = step.make_train_step(objective, recorder)(state, batch)
        root = jax.random.wrap_key_data(state.key, impl=ops.GENERATOR)
        masked = objective.prepare(step.mask_key(root), batch, state)
        return after.opt_state, optimizers.gradient_point(state.opt_state, state.params), masked

    gradients, point, masked = compute(state, batch)
    return tuple(layers.not_finite(gradients)), point, masked


def _input_problems(model: ModelConfig, batch: HostBatch) -> Iterator[str]:
    """Clauses about ids outside of their tables, and weights that are not finite."""
    sizes = {
        "input_ids": ("vocab_size", model.vocab_size),
        "mlm_ids": ("vocab_size", model.vocab_size),
        "position_ids": ("max_position_embeddings", model.max_position_embeddings),
        "token_type_ids": ("type_vocab_size", model.type_vocab_size),
    }
    for name, values in batch.items():
        if name in sizes:
            field, size = sizes[name]
            wrong = (values < 0) | (values >= size)
            limit = f"model.{field} is {size}"
        else:
            wrong, limit = ~np.isfinite(values), "it must be finite"
        for row in np.flatnonzero(wrong.reshape(len(values), -1).any(1)).tolist():
            first = values[row][wrong[row]][0]
            yield f"{name} of row {row} has {first}, but {limit}"
