"""Comparison of arrays with their checksums, and what the errors of Orbax and TensorStore mean."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from bert_jax.io.checksums import checksums


def compare(computed: dict[str, int], stored: dict[str, int]) -> None:
    """Compare the checksums of arrays that were read with those of the arrays that were saved.

    Raises:
      ValueError: they differ.
    """
    differing = [name for name, value in computed.items() if stored.get(name) != value]
    if differing:
        raise ValueError(f"{len(differing)} of {len(computed)} arrays differ from their checksums, among them {differing[0]}")


def damaged_array(manager: Any, step: int, item: str, stored: dict[str, int]) -> str | None:
    """Read the arrays of a step, one after the other, and say what is wrong with the first damaged one, if there is one.

    Args:
      manager: what ``open_manager`` returns.
      step: a committed step.
      item: name of the item with the arrays.
      stored: checksum of each array.
    """
    try:
        tree = manager.item_metadata(step)[item].tree
    except Exception as error:  # Orbax raises many types of exceptions for damaged files, here and below.
        return f"the list of arrays cannot be read: {first_line(error)}"
    leaves, structure = jax.tree.flatten(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    if missing := sorted(set(stored) - set(names)):
        return f"array {missing[0]} is missing"
    host = jax.tree.unflatten(structure, [ocp.RestoreArgs(restore_type=np.ndarray)] * len(leaves))
    for index, name in enumerate(names):
        wanted = jax.tree.unflatten(structure, [leaf if at == index else ocp.PLACEHOLDER for at, leaf in enumerate(leaves)])
        args = ocp.args.Composite(**{item: ocp.args.PyTreeRestore(wanted, restore_args=host)})
        try:
            value = jax.tree.leaves(manager.restore(step, args=args)[item])[index]
        except Exception as error:
            return f"array {name} cannot be read: {first_line(error)}"
        if checksums({name: jnp.asarray(value)})[name] != stored.get(name):
            return f"array {name} differs from its checksum"
    return None


def is_full(error: Exception) -> bool:
    """Whether a save failed because the disk is full."""
    return "No space left on device" in str(error)


def first_line(error: Exception) -> str:
    """The first line of an error, without a full stop."""
    if is_full(error):
        return "the disk is full"
    return (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0][:200]
