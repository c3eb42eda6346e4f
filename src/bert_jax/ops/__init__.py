"""The small operations every layer is made of."""

from bert_jax.ops.core import (
    ACTIVATIONS,
    dropout,
    einsum,
    fold_rows,
    gather_positions,
    gelu,
    layer_norm,
    lookup,
    project,
    random_bits,
    row_keys,
    spread,
)

__all__ = [
    "ACTIVATIONS",
    "dropout",
    "einsum",
    "fold_rows",
    "gather_positions",
    "gelu",
    "layer_norm",
    "lookup",
    "project",
    "random_bits",
    "row_keys",
    "spread",
]
