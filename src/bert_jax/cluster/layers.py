"""Where values stop being finite: the first part of the network, in the order of the computation, for a masked batch.

Each layer is computed by itself, one after the other, so that no more than the states of one layer are held in memory.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from bert_jax import ops
from bert_jax.batch import Batch, Params
from bert_jax.config.model import ModelConfig
from bert_jax.models.encoder import Encoded, pool
from bert_jax.models.heads import mlm_states, nsp_logits
from bert_jax.models.layers import Block, Embeddings, Layer, fold_site
from bert_jax.training import losses

# Modules with parameters in a layer, and those of them that return states, in the order of the computation.
_PARTS = ("query", "key", "value", "output", "inner", "outer", "norm")
_BLOCKS = {"attention": ("output", "norm"), "ffn": ("inner", "outer", "norm")}
_LAYER = tuple(f"{block}/{part}" for block, parts in _BLOCKS.items() for part in parts)
_HEADS = ("pooler", "mlm", "mlm/loss", "nsp", "nsp/loss")


class NotFinite(NamedTuple):
    """A part of the network with an output that is not finite."""

    part: str
    """Its path in the parameters, such as ``layers/3/ffn/inner``."""
    rows: tuple[int, ...]
    """Rows of the batch in which it is not."""


def first_output(
    config: ModelConfig, params: Params, batch: Batch, key: Key[Array, ""], *, pairs: bool = True, parts: int = 1
) -> NotFinite | None:
    """The first part of the network with an output that is not finite, or None.

    States of padding and losses without weight do not count.

    Args:
      config, params: the model.
      batch: a masked batch [B, S].
      key: dropout key.
      pairs: whether the batch has sentence pairs.
      parts: micro-batches, which are computed one after the other.

    Examples:
      >>> from bert_jax.evaluation.benchmark import random_batch
      >>> from bert_jax.models.heads import init_params
      >>> config = bert_jax.ModelConfig.size("tiny", vocab_size=100)
      >>> params = init_params(config, jax.random.key(0))
      >>> batch = random_batch(bert_jax.DataConfig("", sequence_length=16, batch_size=2), 100)
      >>> batch["input_ids"][1, 0] = 100
      >>> batch = {name: jnp.asarray(value) for name, value in batch.items()}
      >>> policy = bert_jax.ResolvedMaskPolicy(bert_jax.MaskPolicy(), mask_id=4, vocab_size=100)
      >>> batch = bert_jax.mask_tokens(jax.random.key(1), batch, policy, 0)
      >>> first_output(config, params, batch, jax.random.key(2))
      NotFinite(part='embeddings', rows=(1,))
    """
    found: list[tuple[int, str, list[int]]] = []
    for part in range(parts):
        # As in the step, row r belongs to micro-batch r mod parts.
        rows = jax.tree.map(lambda array, part=part: array[part::parts], batch)
        for number, (name, finite) in enumerate(_outputs(config, params, rows, key, pairs=pairs)):
            if (bad := np.flatnonzero(~jax.device_get(finite))).size:
                found.append((number, name, (bad * parts + part).tolist()))
                break
    if not found:
        return None
    first = min(found)[0]
    return NotFinite(min(found)[1], tuple(sorted(row for number, _, rows in found if number == first for row in rows)))


def _outputs(
    config: ModelConfig, params: Params, batch: Batch, key: Key[Array, ""], *, pairs: bool
) -> Iterator[tuple[str, Bool[Array, " B"]]]:
    """Each part of the network, in the order of the computation, and in which rows its output is finite."""
    bert, keys = params["bert"], ops.row_keys(key, batch["example_ids"])
    x, finite = _embed(config, bert["embeddings"], batch, keys)
    yield "embeddings", finite
    for index in range(config.num_hidden_layers):
        layer = jax.tree.map(lambda leaf, index=index: leaf[index], bert["layers"])
        x, parts = _layer(config, layer, x, jnp.int32(index), batch["segment_ids"], keys)
        yield from ((f"layers/{index}/{name}", parts[name]) for name in _LAYER if name in parts)
    heads = _heads(config, params, x, batch, pairs=pairs)
    yield from ((name, heads[name]) for name in _HEADS if name in heads)


class _NamedEmbeddings(Block):
    """The embeddings under their name, by which the layouts of their parameters are found."""

    @nn.compact
    def __call__(self, batch: Batch, keys: Key[Array, " B"] | None) -> Float[Array, "B S D"]:
        return cast(Array, Embeddings(self.config, name="embeddings")(batch, keys))


@functools.partial(jax.jit, static_argnums=0)
def _embed(config: ModelConfig, params: Params, batch: Batch, keys: Array) -> tuple[Array, Bool[Array, " B"]]:
    x = _NamedEmbeddings(config).apply({"params": {"embeddings": params}}, batch, fold_site(keys, config.num_hidden_layers))
    return cast(Array, x), _finite(cast(Array, x), batch["segment_ids"] > 0)


@functools.partial(jax.jit, static_argnums=0)
def _layer(
    config: ModelConfig, params: Params, x: Array, index: Array, segment_ids: Array, keys: Array
) -> tuple[Array, dict[str, Bool[Array, " B"]]]:
    variables = {"params": params}
    (x, _), captured = cast(
        Any, Layer(config, False, parent=None).apply(variables, x, index, segment_ids, keys, capture_intermediates=True)
    )
    modules = captured["intermediates"]
    states = {f"{block}/{part}": modules[block][part]["__call__"][0] for block in _BLOCKS for part in _BLOCKS[block]}
    return x, {name: _finite(state, segment_ids > 0) for name, state in states.items()}


@functools.partial(jax.jit, static_argnums=0, static_argnames="pairs")
def _heads(config: ModelConfig, params: Params, hidden: Array, batch: Batch, *, pairs: bool) -> dict[str, Bool[Array, " B"]]:
    weights = batch["mlm_weights"]
    states, decoder = mlm_states(config, params, hidden, batch["mlm_positions"])
    losses_of_tokens = weights * losses.token_losses(states, decoder, batch["mlm_ids"])
    finite = {"mlm": _finite(states, weights != 0), "mlm/loss": _finite(losses_of_tokens, weights != 0)}
    if pairs:
        pooled, weights = cast(Array, pool(config, params, hidden, batch)), batch["nsp_weights"]
        logits = nsp_logits(config, params, Encoded(hidden, pooled))
        losses_of_pairs = weights * losses.cross_entropy(logits, batch["nsp_labels"])
        outputs = {"pooler": pooled, "nsp": logits, "nsp/loss": losses_of_pairs}
        finite |= {name: _finite(output, weights != 0) for name, output in outputs.items()}
    return finite


def _finite(values: Array, used: Bool[Array, "B N"]) -> Bool[Array, " B"]:
    finite = jnp.isfinite(values).all(tuple(range(used.ndim, values.ndim)))
    return (finite | ~used).all(tuple(range(1, used.ndim)))


def not_finite(tree: Any) -> list[str]:
    """Paths of the arrays of a tree of parameters with values that are not finite, in the order of the network.

    Stacked layers count one by one, as ``bert/layers/3/ffn/inner/kernel``.

    Examples:
      >>> not_finite({"bert": {"layers": {"ffn": {"inner": {"bias": jnp.array([[0.0], [jnp.nan]])}}}}})
      ['bert/layers/1/ffn/inner/bias']
    """
    found: list[tuple[str, ...]] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        names = tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path)
        if "layers" in names and leaf.ndim:
            place = names.index("layers") + 1
            bad = np.flatnonzero(~np.asarray(_rows(leaf)))
            found += [(*names[:place], str(index), *names[place:]) for index in bad.tolist()]
        elif not bool(jnp.isfinite(leaf).all()):
            found.append(names)
    return ["/".join(names) for names in sorted(found, key=_order)]


def _rows(leaf: Array) -> Array:
    return jnp.isfinite(leaf).all(tuple(range(1, leaf.ndim)))


def _order(names: Sequence[str]) -> list[tuple[int, str]]:
    """A key that sorts layers by number and their parts by the order of the computation, and all else by name."""
    numbers = {name: number for number, name in enumerate(_PARTS)}
    return [(int(name), "") if name.isdecimal() else (numbers.get(name, -1), name) for name in names]
