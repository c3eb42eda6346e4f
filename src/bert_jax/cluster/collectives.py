"""Collectives of a compiled program: what devices exchange, along which axes of the mesh, and how many bytes that is."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from bert_jax.errors import RunError

# Transfers of the whole array per device that a ring needs, times (n - 1) / n.
_TRANSFERS = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1, "all-to-all": 1}
_PERMUTE = "collective-permute"
_OPERATION = re.compile(rf"= (?P<type>\(.*?\)|\S+) (?P<kind>{'|'.join([*_TRANSFERS, _PERMUTE])})(?:-start)?\(")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALL = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations|true_computation|false_computation)=(?:\{(?P<list>.*?)\}|(?P<one>[^,\s]+))"
)
_IOTA = r"\[(?P<order>[\d,]+)\](?:T\((?P<axes>[\d,]+)\))?"
_LISTED = re.compile(r"replica_groups=\{\{(.*?)\}\}")
_TILED = re.compile(rf"replica_groups=\[(?P<shape>[\d,]+)\]<={_IOTA}")
_MESHED = re.compile(rf"replica_groups=mesh\[(?P<mesh>.*?)\](?:, device_ids=\({_IOTA}\))? \{{(?P<members>['\w, ]+)\}}")
_PAIRS = re.compile(r"source_target_pairs=\{\{(.*?)\}\}")
_NUMBERS = {"f": "float", "s": "int", "u": "uint"}
_DTYPES = {f"{short}{bits}": f"{long}{bits}" for short, long in _NUMBERS.items() for bits in (8, 16, 32, 64)}
_DTYPES |= {"pred": "bool", "bf16": "bfloat16"}


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
        for match in _CALL.finditer(line):
            for name in (match["list"] or match["one"]).split(", "):
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
    groups = _groups(line, math.prod(mesh.values()))
    places = np.array(np.unravel_index(groups, tuple(mesh.values())))
    varies = (places != places[..., :1]).any((1, 2))
    return tuple(axis for axis, differs in zip(mesh, varies, strict=True) if differs), groups.shape[1]


def _groups(line: str, devices: int) -> np.ndarray:
    """Groups [G, N] of device numbers that an operation exchanges data in, from each of XLA's notations."""
    if match := _PAIRS.search(line) or _LISTED.search(line):
        return np.array([_numbers(group) for group in match[1].split("},{")])
    if match := _TILED.search(line):
        return _iota(match).reshape(_numbers(match["shape"]))
    if match := _MESHED.search(line):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match["mesh"])}
        names, members = list(sizes), re.findall(r"'(\w+)'", match["members"])
        places = (_iota(match) if match["order"] else np.arange(devices)).reshape(*sizes.values())
        places = np.moveaxis(places, [names.index(name) for name in members], [*range(-len(members), 0)])
        return places.reshape(-1, math.prod(sizes[name] for name in members))
    if "replica_groups={}" in line or "replica_groups" not in line:
        return np.arange(devices)[None]
    raise RunError(f"This version of XLA describes groups of devices in an unknown way: {line.strip()[:200]}; report it.")


def _iota(match: re.Match[str]) -> np.ndarray:
    """Device numbers in the order that ``[shape]T(axes)`` describes."""
    shape = _numbers(match["order"])
    return np.arange(math.prod(shape)).reshape(shape).transpose(_numbers(match["axes"]) if match["axes"] else None)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _bytes(types: str) -> int:
    """Bytes of an array's type, or of a tuple of arrays."""
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", types)
    return sum(
        jnp.dtype(_DTYPES[dtype]).itemsize * math.prod(int(size) for size in shape.split(",") if size) for dtype, shape in arrays
    )
