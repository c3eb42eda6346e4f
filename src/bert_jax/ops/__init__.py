"""The operations that every layer is made of.

Axis letters, here and in every annotation and einsum: ``B`` batch, ``S``/``T`` query/key length, ``D`` hidden, ``H`` heads,
``K`` head size, ``F`` feed-forward, ``V`` vocabulary, ``M`` masked positions, ``E`` examples in a row, ``L`` layers.
"""

from bert_jax.ops.activations import ACTIVATIONS, gelu
from bert_jax.ops.lookup import gather_positions, lookup
from bert_jax.ops.normalization import layer_norm
from bert_jax.ops.products import broadcast_bias, einsum, project
from bert_jax.ops.randomness import GENERATOR, dropout, fold_rows, random_bits, row_keys

__all__ = [
    "ACTIVATIONS",
    "GENERATOR",
    "broadcast_bias",
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
]
