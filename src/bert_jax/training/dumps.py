"""Dumps of anomalous steps: the state before the step, its global batch, and what it computed, in a directory RUN/anomalies/step-N.

The arrays are a checkpoint of this package, with checksums; ``anomaly.json`` is written last, so that a directory without it is
unfinished. Nothing in a dump is code.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath

from bert_jax import masking, processes
from bert_jax.batch import Batch, HostBatch
from bert_jax.checkpoints import Checkpoints, Meta, abstract
from bert_jax.config import format, schedules
from bert_jax.config.masking import MaskPolicy
from bert_jax.config.run import Config
from bert_jax.errors import RunError, UserError
from bert_jax.io import atomic, remote
from bert_jax.io.parsing import read_json
from bert_jax.masking import ResolvedMaskPolicy
from bert_jax.masking.policy import with_identity
from bert_jax.training import optimizers, step
from bert_jax.training.launchers import Launcher
from bert_jax.training.step import TrainState

DIRECTORY = "anomalies"
"""Directory of the dumps in a run directory."""
FACTS = "anomaly.json"
"""File of a dump with everything but the arrays."""
_STATE, _BATCH = "state", "batch"


class Anomaly(NamedTuple):
    """An anomalous step."""

    step: int
    reason: str
    """What is wrong, as a clause."""
    metrics: dict[str, float]


class Dump(NamedTuple):
    """An anomalous step with its inputs, as ``read`` returns it."""

    anomaly: Anomaly
    config: Config
    policy: ResolvedMaskPolicy | None
    """None where the batch is masked already."""
    meta: Meta
    devices: int
    """Devices that computed the step."""
    shards: int
    """Parts into which they divided the batch."""
    state: TrainState
    """The state before the step."""
    batch: Batch
    """The rows of all processes."""


def write(path: epath.Path, anomaly: Anomaly, state: Any, batch: HostBatch, meta: Meta, *, launcher: Launcher) -> None:
    """Write a dump; every process calls it. An earlier one of the same name is replaced.

    Args:
      path: its directory.
      anomaly: the step.
      state: the state after the step, which differs from that before only in the step counter.
      batch: the rows of all processes.
      meta: what a checkpoint of this step would store.
      launcher: of the run.

    Raises:
      RunError: the dump cannot be written.
    """
    if jax.process_index() == 0 and path.exists():
        (path / FACTS).unlink(missing_ok=True)
        path.rmtree()
    processes.group().gather("writing an anomaly", None)
    shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in batch.items()}
    arrays = {_STATE: launcher.storable(state), _BATCH: jax.device_put(batch, launcher.shardings(shapes))}
    checkpoints = Checkpoints(path, keep=1)
    try:
        checkpoints.save(anomaly.step, arrays, meta)
        checkpoints.wait()
    finally:
        checkpoints.close()
    if jax.process_index() == 0:
        # JSON has no numbers that are not finite.
        metrics = {name: value if math.isfinite(value) else str(value) for name, value in anomaly.metrics.items()}
        facts = {
            format.KEY: format.VERSION,
            "step": anomaly.step,
            "reason": anomaly.reason,
            "metrics": metrics,
            "devices": len(jax.tree.leaves(arrays[_STATE])[0].sharding.device_set),
            "shards": launcher.shards,
            "batch": {name: [list(value.shape), str(value.dtype)] for name, value in batch.items()},
            "config": meta.config,
        }
        with atomic.explained(path), atomic.replaced_path(path / FACTS) as part:
            part.write_text(json.dumps(facts, indent=2))


def read(path: epath.PathLike, *, mask: MaskPolicy | None = None) -> Dump:
    """Read a dump onto the default device.

    Args:
      path: its directory.
      mask: the run's mask policy, where it has functions or token weights, of which a dump has only the identity.

    Raises:
      UserError: there is no dump, it is unfinished, or another version of this package wrote it; the mask policy is missing, or
        is another one.
      RunError: it is damaged.
    """
    directory = remote.absolute(path)
    facts = _read_facts(directory)
    try:
        config = Config.from_json(json.dumps(facts["config"]))
        anomaly = Anomaly(facts["step"], facts["reason"], {name: float(value) for name, value in facts["metrics"].items()})
        batch = {name: jax.ShapeDtypeStruct(tuple(shape), dtype) for name, (shape, dtype) in facts["batch"].items()}
        devices, shards = int(facts["devices"]), int(facts["shards"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{directory / FACTS} is damaged ({type(error).__name__}: {error}); the dump cannot be read.") from None
    if mask is not None:
        config = dataclasses.replace(config, mask=mask)
    elif _has_functions(config.mask):
        raise UserError(
            f"The mask policy of {directory} has functions or token weights, which a dump does not contain; name the run's "
            "experiment with --experiment, or pass the policy."
        )
    optimizer = optimizers.make_optimizer(config.optim, config.train.steps, config.phases)
    shapes = {_STATE: jax.eval_shape(lambda: step.init_state(config, optimizer)), _BATCH: batch}
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    checkpoints = Checkpoints(directory)
    try:
        restored = checkpoints.restore(abstract(shapes, jax.tree.map(lambda _: place, shapes)))
    finally:
        checkpoints.close()
    if restored is None:
        raise RunError(f"{directory} has lost its arrays; the dump cannot be read.")
    tree, meta = restored
    state: TrainState = tree[_STATE]._replace(step=jax.device_put(jnp.int32(anomaly.step - 1), place))
    policy = None
    # TFRecord files of the original are masked already.
    if "mlm_positions" not in batch:
        length = config.data.sequence_length
        policy = masking.resolve(config.mask, meta.tokenizer, steps=config.train.steps, sequence_length=length)
        if json.loads(json.dumps(with_identity(config.mask, policy).to_dict())) != facts["config"]["mask"]:
            raise UserError(f"The mask policy is not that of {directory}; name the experiment with which the run was started.")
    return Dump(anomaly, config, policy, meta, devices, shards, state, tree[_BATCH])


def _has_functions(mask: MaskPolicy) -> bool:
    values = (*mask.schedules().values(), mask.token_weights or "")
    return mask.token_weights is not None or any(str(value).startswith(schedules.FUNCTION) for value in values)


def _read_facts(directory: epath.Path) -> dict[str, Any]:
    if not (directory / FACTS).exists():
        run = directory if (directory / DIRECTORY).exists() else directory.parent
        others = sorted(str(facts.parent) for facts in (run / DIRECTORY).glob(f"*/{FACTS}"))
        there = f"; there are {', '.join(others)}" if others else ", such as RUN/anomalies/step-100"
        state = "is not a finished dump" if directory.exists() else "does not exist"
        raise UserError(f"{directory} {state}; name a directory that a run wrote at an anomaly{there}.")
    facts = read_json(directory / FACTS)
    format.check_version(facts.get(format.KEY, 1), str(directory))
    return facts
