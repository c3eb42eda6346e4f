"""An ensemble of runs that differ in seed and learning rate, in one program."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from bert_jax.batch import HostBatch, Params
from bert_jax.errors import UserError


@functools.partial(jax.tree_util.register_dataclass, data_fields=["items"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Groups:
    """Values of an ensemble: one for each group of runs that is computed side by side.

    The arrays of a group have a leading axis of runs, unless the group is a single run, which is computed exactly as if it
    were alone.
    """

    items: list[Any]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


def group_runs(count: int, runs_per_device: int) -> list[range]:
    """Indices of the runs in each group."""
    return [range(first, min(first + runs_per_device, count)) for first in range(0, count, runs_per_device)]


def default_runs_per_device(count: int, size: int) -> int:
    """How many runs of a model with ``size`` bytes of parameters one device computes side by side.

    On a CPU one: small products side by side are slower there than one after the other. Elsewhere as many as fit, with
    parameters, moments and gradients in half of the memory.
    """
    stats = jax.local_devices()[0].memory_stats()
    return 1 if stats is None else max(1, min(count, stats["bytes_limit"] // (8 * size)))


class EnsembleLauncher:
    """A [`Launcher`][bert_jax.training.launchers.Launcher] of several runs, some of them side by side by ``vmap``.

    Groups take turns on the local devices. States, batches and results are ``Groups``.

    Args:
      count: runs.
      runs_per_device: runs in a group.

    Raises:
      UserError: there are several processes.
    """

    axis_name: str | None = None
    shards = 1

    def __init__(self, count: int, runs_per_device: int) -> None:
        if jax.process_count() > 1:
            raise UserError("Several seeds or learning rates run in one process; start one command on each host.")
        self.groups = group_runs(count, runs_per_device)
        devices = itertools.cycle(jax.local_devices())
        self._places = [SingleDeviceSharding(device) for device, _ in zip(devices, self.groups, strict=False)]

    def rows(self, batch_size: int) -> np.ndarray:
        return np.arange(batch_size)

    def _compile(self, function: Callable[..., Any], *, donate: bool) -> Callable[[Groups, Groups], list[Any]]:
        donated = 0 if donate else ()
        single, mapped = jax.jit(function, donate_argnums=donated), jax.jit(jax.vmap(function), donate_argnums=donated)

        def run(states: Groups, batches: Groups) -> list[Any]:
            return [
                (single if len(group) == 1 else mapped)(state, batch)
                for group, state, batch in zip(self.groups, states, batches, strict=True)
            ]

        return run

    def compile_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        run = self._compile(step, donate=True)

        def compiled(states: Groups, batches: Groups) -> tuple[Groups, Groups]:
            new_states, metrics = zip(*run(states, batches), strict=True)
            return Groups(list(new_states)), Groups(list(metrics))

        return compiled

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        run = self._compile(function, donate=False)
        return lambda states, batches: Groups(run(states, batches))

    compile_rows = compile

    def place(self, batch: HostBatch) -> Groups:
        return Groups(
            [
                jax.device_put({name: value[_index(group)] for name, value in batch.items()}, place)
                for group, place in zip(self.groups, self._places, strict=True)
            ]
        )

    def collect(self, results: Groups) -> np.ndarray:
        values = jax.device_get(results)
        return np.concatenate([value[None] if len(group) == 1 else value for group, value in zip(self.groups, values, strict=True)])

    def shardings(self, states: Groups) -> Groups:
        return Groups(
            [jax.tree.map(lambda _, place=place: place, state) for state, place in zip(states, self._places, strict=True)]
        )

    def params(self, state: Groups) -> Groups:
        return Groups([group.params for group in state])

    def storable(self, state: Groups) -> Groups:
        return state

    def means(self, metrics: Groups) -> dict[str, float]:
        """Means over the runs with finite loss and gradients, so that one that diverged does not stop the others."""
        groups = jax.device_get(metrics).items
        joined = {name: np.concatenate([np.ravel(group[name]) for group in groups]) for name in groups[0]}
        finite = np.isfinite(joined["loss"]) & np.isfinite(joined["grad_norm"])
        return {name: float(values[finite].mean() if finite.any() else values[0]) for name, values in joined.items()}

    def context(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def run(self, values: Groups, index: int) -> Params:
        """What belongs to one run in a tree of groups."""
        return select_run(self.groups, values, index)


def select_run(groups: Sequence[range], values: Groups, index: int) -> Any:
    """What belongs to one run in ``Groups``."""
    group, value = next(pair for pair in zip(groups, values, strict=True) if index in pair[0])
    return value if len(group) == 1 else jax.tree.map(lambda leaf: leaf[index - group[0]], value)


def _index(group: range) -> Any:
    return group[0] if len(group) == 1 else slice(group[0], group[-1] + 1)
