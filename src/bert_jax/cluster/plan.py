"""What a pretraining run needs on a cluster, computed on a machine without it: memory, arithmetic, time and network."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from bert_jax.cluster.compilation import Estimate, Shapes, batch_shapes
from bert_jax.cluster.search import Task, Trial, search_on
from bert_jax.config import lengths
from bert_jax.config.run import Config
from bert_jax.config.validation import require_positive
from bert_jax.data import sources
from bert_jax.data.sources import PretrainingData
from bert_jax.errors import UserError

_SECONDS_PER_DAY = 86400


class Device(NamedTuple):
    """What is assumed of each device."""

    memory: int | None = None
    """Bytes; None: unlimited."""
    flops: float | None = None
    """Peak FLOP/s; None: times are unknown."""
    mfu: float = 0.4
    """Share of the peak that the arithmetic of the model reaches (Chowdhery et al. 2022, section 4.1)."""


_UNKNOWN = Device()


class Padding(NamedTuple):
    """Shares of the slots of a batch that hold tokens, measured on the corpus."""

    packed: float
    """With the ``data.packing`` of the config."""
    unpacked: float
    """With one example in each row."""


class Plan(NamedTuple):
    """What a run needs; bytes are those of one device."""

    devices: int
    device: Device
    estimate: Estimate
    trials: list[Trial]
    """Changes that were tried because the config does not fit; the last one fits, or none does."""
    padding: Padding | None
    """None without a corpus of this machine."""
    steps: int
    tokens_per_step: float
    """Tokens of a batch, padding excluded where the corpus tells."""

    @property
    def fits(self) -> bool:
        """Whether the memory of a device suffices."""
        return self.device.memory is None or self.estimate.memory.peak <= self.device.memory

    @property
    def change(self) -> Trial | None:
        """The first change with which it suffices."""
        return self.trials[-1] if self.trials and self.trials[-1].fits else None

    @property
    def seconds_per_step(self) -> float | None:
        """Expected seconds of a step at the assumed share of the peak."""
        if self.device.flops is None:
            return None
        return self.estimate.flop / (self.devices * self.device.flops * self.device.mfu)

    @property
    def days(self) -> float | None:
        """Expected days of all steps, without evaluations."""
        seconds = self.seconds_per_step
        return None if seconds is None else seconds * self.steps / _SECONDS_PER_DAY


def plan(config: Config, device: Device = _UNKNOWN, *, devices: int, search: bool = True) -> Plan:
    """Compile the train step of a config for a number of devices that need not exist, and derive what the run needs.

    The program is compiled for CPUs by the compiler that also serves GPUs and TPUs, with the layouts of the real mesh. Two things
    differ there: TPUs pad arrays to their tiles, and the attention of model.attention "auto" is the reference.

    Args:
      config: the run; its run directory is not created. A corpus that exists gives the share of padding.
      device: what is assumed of each device.
      devices: number of devices, over all slices.
      search: whether to try changes if the config does not fit.

    Raises:
      UserError: the devices, the model or the batch do not divide as configured, or the length of the run needs a corpus that does
        not exist.
      RunError: compilation failed.

    Examples:
      >>> from bert_jax.cluster.plan import Device, plan
      >>> model = bert_jax.ModelConfig.size("tiny", vocab_size=64, layers="scan")
      >>> config = bert_jax.Config("", bert_jax.DataConfig("", 16, 8), model, mesh=bert_jax.MeshConfig(fsdp=2))
      >>> found = plan(config, Device(flops=1e12), devices=4)
      >>> found.estimate.mesh, found.fits
      ({'slice': 1, 'data': 2, 'fsdp': 2, 'tensor': 1}, True)
    """
    require_positive("devices", devices)
    require_positive("mfu", device.mfu)
    config, data = _resolve(config)
    shapes = batch_shapes(config) if data is None or not data.static_masks else _record_shapes(config, data)
    masked = data is not None and data.static_masks
    found, trials = search_on(devices, Task(config, shapes, masked, device.memory if search else None))
    slots, padding = config.data.batch_size * config.data.sequence_length, _padding(config, data)
    return Plan(devices, device, found, trials, padding, config.train.steps, slots * (padding.packed if padding else 1.0))


def _resolve(config: Config) -> tuple[Config, PretrainingData | None]:
    """The config as it is compiled, and its data if that exists."""
    data: PretrainingData | None = None
    reason = f"There is no corpus {config.data.corpus!r}."
    if config.data.corpus:
        try:
            data = sources.open_data(config.data)
        except UserError as error:
            reason = str(error)
    train = config.train
    if lengths.has_lengths(train):
        if data is None:
            raise UserError(f"The length of the run needs its corpus to be converted into steps; give --train.steps. {reason}")
        train = lengths.resolve(train, data.rates(seed=train.seed))
    # pmap computes the same as a mesh with all devices on the data axis.
    return dataclasses.replace(config, parallel="mesh", train=dataclasses.replace(train, distributed=False)), data


def _record_shapes(config: Config, data: PretrainingData) -> Shapes:
    batches = data.train_batches(seed=0, rows=np.arange(1))
    first = next(batches)
    batches.close()
    return {name: ((config.data.batch_size, *value.shape[1:]), value.dtype.name) for name, value in first.items()}


def _padding(config: Config, data: PretrainingData | None) -> Padding | None:
    """Shares of slots that hold tokens; None if they cannot be measured."""
    if data is None:
        return None
    slots = config.data.batch_size * config.data.sequence_length
    single = sources.open_data(dataclasses.replace(config.data, packing=1))
    try:
        return Padding(*(source.rates(seed=config.train.seed).tokens / slots for source in (data, single)))
    except UserError:
        # A corpus that was prepared before words were counted.
        return None
