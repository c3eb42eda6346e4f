"""Several runs that differ in seed and learning rate, in one program."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from bert_jax.errors import UserError
from bert_jax.training.launchers import Launcher


def groups(count: int, together: int) -> list[range]:
    """Numbers of the runs that are computed side by side."""
    return [range(first, min(first + together, count)) for first in range(0, count, together)]


def together(count: int, size: int) -> int:
    """How many runs of a model with ``size`` bytes of parameters one device computes side by side.

    On a CPU one: small products side by side are slower there than one after the other. Elsewhere as many as there is
    memory for, with parameters, moments and gradients in half of it.
    """
    stats = jax.local_devices()[0].memory_stats()
    return 1 if stats is None else max(1, min(count, stats["bytes_limit"] // (8 * size)))


def launch(count: int, *, together: int) -> Launcher:
    """A launcher of ``count`` runs, of which ``together`` at a time are mapped by ``vmap``.

    Groups take turns on the devices. States, batches and results are lists over groups; in a group arrays have a leading axis of
    runs, unless it is a single one: that is computed exactly as if it were alone.

    Raises:
      UserError: there are several processes.
    """
    if jax.process_count() > 1:
        raise UserError("Several seeds or learning rates at a time are for one process; start one command on each host.")
    parts = groups(count, together)
    places = [SingleDeviceSharding(device) for device, _ in zip(itertools.cycle(jax.local_devices()), parts, strict=False)]

    def compile(step: Callable[..., Any], donate: bool = False) -> Callable[..., Any]:
        numbers = 0 if donate else ()
        alone, mapped = jax.jit(step, donate_argnums=numbers), jax.jit(jax.vmap(step), donate_argnums=numbers)

        def run(states: Sequence[Any], batches: Sequence[Any]) -> Any:
            found = [
                (alone if len(part) == 1 else mapped)(state, batch)
                for part, state, batch in zip(parts, states, batches, strict=True)
            ]
            return tuple(map(list, zip(*found, strict=True))) if donate else found

        return run

    def place(batch: dict[str, np.ndarray]) -> list[Any]:
        return [
            jax.device_put({name: x[_index(part)] for name, x in batch.items()}, where)
            for part, where in zip(parts, places, strict=True)
        ]

    def collect(found: Sequence[Any]) -> np.ndarray:
        values = jax.device_get(found)
        return np.concatenate([value[None] if len(part) == 1 else value for part, value in zip(parts, values, strict=True)])

    return Launcher(
        axis_name=None,
        rows=np.arange,
        shards=1,
        compile=compile,
        compile_rows=compile,
        create=lambda init, shardings, source: jax.device_put(jax.jit(init)(source), shardings),
        place=place,
        collect=collect,
        shardings=lambda states: [
            jax.tree.map(lambda _, where=where: where, state) for state, where in zip(states, places, strict=True)
        ],
        context=contextlib.nullcontext,
    )


def member(values: Sequence[Any], number: int, *, together: int, count: int) -> Any:
    """What belongs to one of ``count`` runs in a list over groups."""
    part, value = next(pair for pair in zip(groups(count, together), values, strict=True) if number in pair[0])
    return value if len(part) == 1 else jax.tree.map(lambda leaf: leaf[number - part[0]], value)


def _index(part: range) -> Any:
    return part[0] if len(part) == 1 else slice(part[0], part[-1] + 1)
