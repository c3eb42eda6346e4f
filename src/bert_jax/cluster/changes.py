"""Changes to a config that lower the memory of a device, from the cheapest to the one that alters the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from bert_jax.config.run import Config

_Options = dict[str, dict[str, Any]]


class Change(NamedTuple):
    """A changed config."""

    options: str
    """The options that make it, such as ``--model.remat full``."""
    config: Config
    same_result: bool
    """Whether the run computes the same as before, up to the rounding of sums."""


def changes(config: Config, devices: int) -> Iterator[Change]:
    """Yield changes in the order in which they are worth trying: recomputation, accumulation, more FSDP, all together, and a
    smaller batch.

    Args:
      config: the run.
      devices: number of devices, over which every changed mesh is laid out, too.

    Examples:
      >>> config = bert_jax.Config("", bert_jax.DataConfig("", batch_size=16), model=bert_jax.ModelConfig(remat="full"))
      >>> [change.options for change in changes(config, 8)]
      ['--optim.accumulate 2', '--mesh.fsdp 2', '--mesh.fsdp 4', '--mesh.fsdp 8', '--mesh.fsdp 8 --optim.accumulate 2', \
'--mesh.fsdp 8 --data.batch-size 8']
    """
    recompute: list[_Options] = [
        {"model": {"remat": kind}} for kind in ("dots", "full")[("none", "dots", "full").index(config.model.remat) :]
    ]
    parts: list[_Options] = [{"optim": {"accumulate": count}} for count in _accumulations(config, devices)]
    rest = {} if config.mesh.data == -1 else {"data": -1}
    sharded: list[_Options] = [{"mesh": {"fsdp": size} | rest} for size in _fsdp_sizes(config, devices)]
    last = [options[-1] for options in (recompute, sharded, parts) if options]
    everything: _Options = {section: fields for change in last for section, fields in change.items()}
    for change in (*recompute, *parts, *sharded, *([everything] if len(last) > 1 else [])):
        yield _apply(config, change, same_result=True)
    spread = {section: fields for section, fields in everything.items() if section != "optim"}
    size, shards = config.data.batch_size // 2, _shards(config, devices) * config.optim.accumulate
    while size and size % shards == 0:
        yield _apply(config, spread | {"data": {"batch_size": size}}, same_result=False)
        size //= 2


def _apply(config: Config, change: _Options, *, same_result: bool) -> Change:
    sections = {section: dataclasses.replace(getattr(config, section), **fields) for section, fields in change.items()}
    options = [f"--{section}.{name.replace('_', '-')} {value}" for section in change for name, value in change[section].items()]
    return Change(" ".join(options), dataclasses.replace(config, **sections), same_result)


def _shards(config: Config, devices: int) -> int:
    return devices // config.mesh.tensor


def _accumulations(config: Config, devices: int) -> list[int]:
    if config.optim.replicas > 1:
        # They are computed one after the other already, and their number changes the result.
        return []
    counts, count = [], 2 * config.optim.accumulate
    while config.data.batch_size % (_shards(config, devices) * count) == 0:
        counts.append(count)
        count *= 2
    return counts


def _fsdp_sizes(config: Config, devices: int) -> list[int]:
    sizes, size = [], 2 * config.mesh.fsdp
    while _shards(config, devices) % (config.mesh.slices * size) == 0 and config.model.hidden_size % size == 0:
        sizes.append(size)
        size *= 2
    return sizes
