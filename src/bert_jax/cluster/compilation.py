"""The train step of a config, compiled without arrays: its memory on each device, its arithmetic, and its collectives."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from bert_jax.cluster import collectives
from bert_jax.cluster.collectives import Collective
from bert_jax.config.run import Config
from bert_jax.evaluation import benchmark
from bert_jax.masking.replacement import prediction_slots
from bert_jax.models.arithmetic import forward_flop
from bert_jax.sharding import AXES, batch_sharding
from bert_jax.training import launchers, losses, optimizers, step
from bert_jax.training.launchers import MeshLauncher

Shapes = dict[str, tuple[tuple[int, ...], str]]
"""Shape of each array of a global batch, and its dtype."""


class Memory(NamedTuple):
    """Bytes on each device; together they are the peak."""

    parameters: int
    optimizer: int
    """Moments and other state of the optimizer."""
    batch: int
    """A batch, step count and random key."""
    temporary: int
    """Gradients, activations and workspace: everything that lives only during a step."""

    @property
    def peak(self) -> int:
        """The sum."""
        return sum(self)


class Estimate(NamedTuple):
    """What the compiled step of a config needs."""

    parameter_count: int
    memory: Memory
    flop: float
    """Multiplications and additions of the matrix products of a step on full rows, on all devices: three times the forward pass."""
    recomputed: float
    """Further ones that the backward pass repeats, with ``model.remat`` or where MLM logits are computed in chunks."""
    sent: dict[str, float]
    """Bytes that each device sends in a step, by axis of the mesh."""
    collectives: list[Collective]
    """Collectives of a step by kind and axes, with the bytes of all of them."""
    mesh: dict[str, int]
    """Devices along each axis."""
    seconds: float
    """Seconds that compiling took."""


def estimate(config: Config, shapes: Shapes, *, masked: bool = False) -> Estimate:
    """Compile the train step of a config for the devices of this process, and read off what it needs.

    With ``model.remat`` the layers are compiled as a loop, because XLA's CPU compiler merges what unrolled layers recompute, with
    ``dots`` and ``full`` alike; compilers for GPUs and TPUs do not.

    Args:
      config: the run, on a mesh.
      shapes: its batches, from ``batch_shapes`` or from its data.
      masked: whether the data is masked already.

    Raises:
      UserError: the devices, the model or the batch do not divide as configured.
    """
    began = time.perf_counter()
    if config.model.remat != "none":
        # XLA's CPU compiler drops the barriers that keep unrolled layers from being computed once; it cannot undo a loop.
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, layers="scan"))
    launcher, optimizer, state = _state(config)
    policy = None if masked else benchmark.policy_without_vocabulary(config)
    layout = batch_sharding(launcher.mesh)
    batch = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=layout) for name, (shape, dtype) in shapes.items()}
    accumulate = config.optim.accumulate
    objective = step.pretraining(
        config.model, policy, accumulate=accumulate, pairs=config.data.pairs, **step.replicas(config.optim)
    )
    with launcher.context():
        function = step.make_train_step(objective, optimizer, axis_name=launcher.axis_name)
        program: Any = launcher.compile_step(function)
        compiled = program.lower(state, batch).compile()
        rows, length = config.data.batch_size, config.data.sequence_length
        slots = prediction_slots(policy, length, shapes["example_ids"][0][1]) if policy else shapes["mlm_ids"][0][1]
        chunks = losses.logit_chunks(rows // max(accumulate, config.optim.replicas), slots, config.model.vocab_size)
    lengths = np.full(rows, length)
    predictions = benchmark.count_predictions(policy, lengths) if policy else float(rows * slots)
    forward = forward_flop(config.model, lengths, predictions)
    mesh = {axis: launcher.mesh.shape[axis] for axis in AXES}
    found = collectives.collectives(compiled.as_text(), mesh)
    return Estimate(
        parameter_count=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        memory=_memory(state, compiled.memory_analysis()),
        flop=3 * sum(forward.values()),
        recomputed=_recomputed(config, forward, predictions, chunked=chunks > 1),
        sent=collectives.sent_bytes(found, mesh),
        collectives=collectives.summary(found),
        mesh=mesh,
        seconds=time.perf_counter() - began,
    )


def resident_bytes(config: Config) -> int:
    """Bytes of parameters and optimizer state on each device, without compiling anything.

    Raises:
      UserError: the devices, the model or the batch do not divide as configured.
    """
    state = _state(config)[2]
    return _local_bytes(state.params) + _local_bytes(state.opt_state)


def state_bytes(config: Config) -> int:
    """Bytes of parameters and optimizer state altogether, which are those of a checkpoint.

    Raises:
      UserError: as ``resident_bytes``.
    """
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(_state(config)[2]))


def batch_shapes(config: Config) -> Shapes:
    """Shapes of the batches that documents give."""
    data = config.data
    examples = {"example_ids", "cls_positions", "nsp_labels", "nsp_weights"}
    single = benchmark.random_batch(type(data)("", sequence_length=data.sequence_length, batch_size=1), config.model.vocab_size)
    return {
        name: ((data.batch_size, data.packing if name in examples else value.shape[1]), value.dtype.name)
        for name, value in single.items()
    }


def _state(config: Config) -> tuple[MeshLauncher, Any, step.TrainState]:
    """The launcher, the optimizer, and the state as shapes with their layouts."""
    launcher = launchers.launch(config)
    assert isinstance(launcher, MeshLauncher)
    optimizer = optimizers.make_optimizer(config.optim, config.train.steps)
    shapes = jax.eval_shape(lambda: step.init_state(config, optimizer))
    layouts = launcher.shardings(shapes)
    state: step.TrainState = jax.tree.map(
        lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout), shapes, layouts
    )
    return launcher, optimizer, state


def _memory(state: step.TrainState, stats: Any) -> Memory:
    parameters, optimizer = _local_bytes(state.params), _local_bytes(state.opt_state)
    return Memory(
        parameters=parameters,
        optimizer=optimizer,
        batch=stats.argument_size_in_bytes - parameters - optimizer,
        # The donated state is overwritten by the new one; other outputs are metrics.
        temporary=stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes,
    )


def _local_bytes(tree: Any) -> int:
    """Bytes of a tree's arrays on each device."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _recomputed(config: Config, forward: dict[str, float], predictions: float, *, chunked: bool) -> float:
    repeated = {"none": (), "dots": ("attention",), "full": ("QKV", "attention", "projection", "FFN")}[config.model.remat]
    logits = 2 * predictions * config.model.hidden_size * config.model.vocab_size if chunked else 0.0
    return sum(forward[phase] for phase in repeated) + logits
