"""Collectives of a compiled program: what devices exchange, along which axes of the mesh, and how many bytes that is."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

# Transfers of the whole array per device that a ring needs, times (n - 1) / n.
_TRANSFERS = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1, "all-to-all": 1}
_PERMUTE = "collective-permute"
_OPERATION = re.compile(rf"= (?P<type>\(.*?\)|\S+) (?P<kind>{'|'.join([*_TRANSFERS, _PERMUTE])})(?:-start)?\(")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALL = re.compile(r"(?:calls|to_apply|body|condition|branch_computations|true_computation|false_computation)=\{?((?:%?[\w.\-]+(?:, )?)+)")
_DTYPES = {"pred": "bool", "bf16": "bfloat16", **{f"{kind}{bits}": f"{name}{bits}" for kind, name in (("f", "float"), ("s", "int"), ("u", "uint")) for bits in (8, 16, 32, 64) if (kind, bits) != ("f", 8)}}


class Collective(NamedTuple):
    """Collective operations of one kind along the same axes."""

    kind: str
    """``all-reduce``, ``all-gather``, ``reduce-scatter``, ``all-to-all`` or ``collective-permute``, as XLA names them."""
    axes: tuple[str, ...]
    """Axes of the mesh along which devices exchange data."""
    size: int
    """Bytes of the whole array: what an all-gather returns, and what a reduce-scatter takes."""
    calls: int
    """Executions in a run of the program; those in a loop count for each iteration."""


def collectives(program: str, mesh: Mapping[str, int]) -> list[Collective]:
    """Collectives of a program in their order.

    Args:
      program: text of an optimized program, as ``jax.stages.Compiled.as_text`` returns it.
      mesh: size of each axis of the mesh for which it was compiled, from the slowest to the fastest.

    Examples:
      >>> program = '''ENTRY %main (x: f32[8]) -> f32[8] {
      ...   ROOT %sum = f32[8]{0} all-reduce(%x), replica_groups={{0,1},{2,3}}, to_apply=%add
      ... }'''
      >>> collectives(program, {"data": 2, "fsdp": 2})
      [Collective(kind='all-reduce', axes=('fsdp',), size=32, calls=1)]
    """
    calls = _executions(program)
    found = []
    for computation, line in _operations(program):
        if (match := _OPERATION.search(line)) is None:
            continue
        axes, count = _exchanging(line, mesh)
        size = _bytes(match["type"]) * (count if match["kind"] == "reduce-scatter" else 1)
        # Groups of one device exchange nothing.
        if axes and calls[computation]:
            found.append(Collective(match["kind"], axes, size, calls[computation]))
    return found


def sent_bytes(found: list[Collective], mesh: Mapping[str, int]) -> dict[str, float]:
    """Bytes that each device sends along each axis of the mesh.

    An exchange along several axes is counted as the fastest axis first divides the data, so that slower axes carry only a part
    of it: what XLA does between slices. The sum over the axes is that of a ring over all devices of a group.

    Args:
      found: collectives of a program.
      mesh: size of each axis, from the slowest to the fastest.

    Examples:
      >>> sent_bytes([Collective("all-reduce", ("data", "fsdp"), 1024, 1)], {"data": 2, "fsdp": 4})
      {'data': 256.0, 'fsdp': 1536.0}
    """
    sent = dict.fromkeys(mesh, 0.0)
    for kind, axes, size, calls in found:
        left = float(size * calls)
        if kind == _PERMUTE:
            # A permutation may move data along any of its axes; the slowest is the one that matters.
            sent[axes[0]] += left
            continue
        for axis in reversed(axes):
            count = mesh[axis]
            sent[axis] += _TRANSFERS[kind] * left * (count - 1) / count
            left /= count
    return sent


def summary(found: list[Collective]) -> list[Collective]:
    """Collectives of the same kind along the same axes, added up: bytes of all of them in one call."""
    totals: defaultdict[tuple[str, tuple[str, ...]], list[int]] = defaultdict(lambda: [0, 0])
    for kind, axes, size, calls in found:
        totals[kind, axes][0] += size * calls
        totals[kind, axes][1] += calls
    return [Collective(kind, axes, size, calls) for (kind, axes), (size, calls) in sorted(totals.items())]


def _operations(program: str) -> Iterator[tuple[str, str]]:
    """Yield the computation and the text of each operation."""
    computation = ""
    for line in program.splitlines():
        if header := _HEADER.match(line):
            computation = header[2]
        elif " = " in line:
            yield computation, line


def _executions(program: str) -> Mapping[str, int]:
    """How often each computation runs."""
    callers: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
    for computation, line in _operations(program):
        trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
        for names in _CALL.findall(line):
            for name in names.split(", "):
                callers[name.lstrip("%")].append((computation, int(trips[1]) if trips else 1))
    counts: dict[str, int] = {header[2]: 1 for line in program.splitlines() if (header := _HEADER.match(line)) and header[1]}

    def count(name: str) -> int:
        if name not in counts:
            counts[name] = sum(count(caller) * trips for caller, trips in callers[name])
        return counts[name]

    for computation, _ in _operations(program):
        count(computation)
    return counts


def _exchanging(line: str, mesh: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
    """Axes along which the members of a group differ, and the number of members."""
    if match := re.search(r"source_target_pairs=\{(.*?)\}\}", line):
        groups = [[int(number) for number in pair.split(",")] for pair in re.findall(r"\{?(\d+,\d+)", match[1])]
    elif match := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        shape, order, axes = ([int(number) for number in part.split(",")] if part else None for part in match.groups())
        assert shape and order
        groups = np.arange(math.prod(order)).reshape(order).transpose(axes).reshape(shape).tolist()
    elif match := re.search(r"replica_groups=\{\{(.*?)\}\}", line):
        groups = [[int(number) for number in group.split(",")] for group in match[1].split("},{")]
    else:
        groups = [list(range(math.prod(mesh.values())))]
    varying = set()
    for group in groups:
        places = np.unravel_index(group, tuple(mesh.values()))
        varying |= {axis for axis, place in zip(mesh, places, strict=True) if len(set(place.tolist())) > 1}
    return tuple(axis for axis in mesh if axis in varying), len(groups[0])


def _bytes(types: str) -> int:
    """Bytes of an array's type, or of a tuple of arrays."""
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", types)
    return sum(
        jnp.dtype(_DTYPES[dtype]).itemsize * math.prod(int(size) for size in shape.split(",") if size) for dtype, shape in arrays
    )
