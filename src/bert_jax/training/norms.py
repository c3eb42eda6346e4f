"""Norms of gradients and updates by layer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bert_jax.batch import Params

_ENCODER, _LAYERS = "bert", "layers"


def layer_norms(tree: Params, name: str) -> dict[str, Float[Array, ""]]:
    """Norms of the parts of a tree with the structure of the parameters.

    The squares of all of them add up to that of the norm of the whole tree.

    Args:
      tree: parameters, gradients or updates; arrays of the layer stack have a leading axis ``L``.
      name: prefix of the names.

    Returns:
      ``NAME/layer_00`` and so on for each layer; ``NAME/PART`` for the embeddings, the pooler and each head.

    Examples:
      >>> tree = {"bert": {"layers": {"kernel": jnp.array([[3.0, 4.0], [0.0, 2.0]])}}, "mlm": {"bias": jnp.ones(4)}}
      >>> {name: float(norm) for name, norm in layer_norms(tree, "grad_norm").items()}
      {'grad_norm/layer_00': 5.0, 'grad_norm/layer_01': 2.0, 'grad_norm/mlm': 2.0}
    """
    parts = {**tree[_ENCODER], **{part: value for part, value in tree.items() if part != _ENCODER}}
    layers = _norm(parts.pop(_LAYERS), keep=1)
    norms = {f"layer_{index:02}": norm for index, norm in enumerate(layers)}
    norms |= {part: _norm(value, keep=0) for part, value in parts.items()}
    return {f"{name}/{part}": norm for part, norm in norms.items()}


def _norm(tree: Params, *, keep: int) -> Float[Array, "..."]:
    """Norm over all arrays of a tree, and over all of their axes but the first ``keep``."""
    squares = [jnp.square(leaf.astype(jnp.float32)).sum(range(keep, leaf.ndim)) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.float32(0)))
