"""Checksums of arrays on devices, which detect data that was damaged on disk."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32


def checksums(tree: Any) -> dict[str, int]:
    """A 32-bit checksum of each array of a tree, by its path; arrays may be sharded over any devices.

    Each word of an array is multiplied by an odd number that depends on its index, and the products are summed modulo 2**32, so
    that any single flipped bit changes the sum.

    Examples:
      >>> checksums({"params": {"bias": jnp.zeros(3)}})
      {'params/bias': 0}
    """
    sums: dict[str, int] = {}
    # The arrays of one program live on the same devices.
    for group in _by_devices(jax.tree_util.tree_leaves_with_path(tree)):
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in group]
        sums |= zip(names, map(int, jax.device_get(_checksum_all([leaf for _, leaf in group]))), strict=True)
    return sums


def _by_devices(leaves: list[tuple[jax.tree_util.KeyPath, Array]]) -> list[list[tuple[jax.tree_util.KeyPath, Array]]]:
    groups: dict[frozenset[jax.Device], list[tuple[jax.tree_util.KeyPath, Array]]] = {}
    for path, leaf in leaves:
        groups.setdefault(frozenset(leaf.sharding.device_set), []).append((path, leaf))
    return list(groups.values())


@jax.jit
def _checksum_all(leaves: list[Array]) -> list[UInt32[Array, ""]]:
    return [_checksum(leaf) for leaf in leaves]


def _checksum(leaf: Array) -> UInt32[Array, ""]:
    words = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")).astype(jnp.uint32)
    index = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    return jnp.sum(words * ((2 * index + 1) * jnp.uint32(0x9E3779B1)), dtype=jnp.uint32)
