"""The encoder of Devlin et al. 2018: Flax names, creates and stacks the parameters; pure functions compute.

The parameter tree does not depend on how layers are compiled: the parameters of all layers are stacked along a leading axis L.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from bert_jax import ops
from bert_jax.batch import Batch, Params
from bert_jax.config.model import ModelConfig
from bert_jax.models.layers import REMAT_POLICIES, Block, Embeddings, Layer, Pooler, fold_site
from bert_jax.ops.attention import select


class Encoded(NamedTuple):
    """Outputs of the encoder for a batch."""

    hidden: Float[Array, "B S D"]
    """States after the last layer; those of padding are meaningless."""
    pooled: Float[Array, "B E D"] | None
    """tanh projection of each example's [CLS]; None where the parameters have no pooler."""


class Encoder(Block):
    """Embeddings and the stack of layers, as a Flax module; ``encode`` is its pure form."""

    all_layers: bool = False
    """Whether the states after the embeddings and every layer are returned, or only the last ones."""

    @nn.compact
    def __call__(self, batch: Batch, key: Key[Array, ""] | None = None) -> Float[Array, "*L B S D"]:
        config = self.config
        keys = None if key is None else ops.row_keys(key, batch["example_ids"])
        with jax.named_scope("embeddings"):
            x = Embeddings(config, name="embeddings")(batch, fold_site(keys, config.num_hidden_layers))
        with jax.named_scope("layers"):
            layers = self._scanned if config.layers == "scan" or self.is_initializing() else self._unrolled
            last, states = layers(x, batch["segment_ids"], keys)
        return last if states is None else jnp.concatenate([x[None], states])

    def _scanned(self, x: Array, segment_ids: Array, keys: Array | None) -> tuple[Array, Array | None]:
        config = self.config
        layer = Layer
        if config.remat != "none":
            # Inside a loop, XLA cannot undo the recomputation by eliminating common subexpressions.
            layer = nn.remat(Layer, prevent_cse=False, policy=REMAT_POLICIES[config.remat])
        stack = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=config.num_hidden_layers,
        )
        outputs: tuple[Array, Array | None] = stack(config, self.all_layers, name="layers")(
            x, jnp.arange(config.num_hidden_layers), segment_ids, keys
        )
        return outputs

    def _unrolled(self, x: Array, segment_ids: Array, keys: Array | None) -> tuple[Array, Array | None]:
        config, count = self.config, self.config.num_hidden_layers

        def apply_layer(params: Params, x: Array, index: Array) -> tuple[Array, Array | None]:
            return cast(
                tuple[Array, Array | None],
                Layer(config, self.all_layers, parent=None).apply({"params": params}, x, index, segment_ids, keys),
            )

        if config.remat != "none":
            apply_layer = jax.checkpoint(apply_layer, policy=REMAT_POLICIES[config.remat])
        stacked, structure = jax.tree.flatten(self.variables["params"]["layers"])
        # The gradients of one split are concatenated once; with indexing, each would be added to a gradient of the whole stack.
        split = [jax.lax.split(leaf, [1] * count) for leaf in stacked]
        states: list[Array] = []
        for index, leaves in enumerate(zip(*split, strict=True)):
            params = jax.tree.unflatten(structure, [leaf[0] for leaf in leaves])
            x, layer_states = apply_layer(params, x, jnp.int32(index))
            states += [] if layer_states is None else [layer_states]
        return x, jnp.stack(states) if states else None


def encode(config: ModelConfig, params: Params, batch: Batch, *, key: Key[Array, ""] | None = None) -> Encoded:
    """Encode a batch; a pure function of its arguments.

    Args:
      config: shape and arithmetic.
      params: a tree with the encoder's parameters under ``"bert"``, with or without ``"pooler"``; heads are ignored.
      batch: ``input_ids``, ``token_type_ids``, ``position_ids``, ``segment_ids`` [B, S] and ``cls_positions`` [B, E]; with a
        key also ``example_ids`` [B, E]. Ids outside a table give NaN states.
      key: dropout key, or None for no dropout.

    Returns:
      hidden [B, S, D] and pooled [B, E, D] in ``config.dtype``; pooled is None without a pooler.

    Examples:
      >>> from bert_jax.evaluation.benchmark import random_batch
      >>> from bert_jax.models.heads import init_params
      >>> config = bert_jax.ModelConfig.size("tiny", vocab_size=100)
      >>> params = init_params(config, jax.random.key(0))
      >>> batch = random_batch(bert_jax.DataConfig("", sequence_length=16, batch_size=2), 100)
      >>> batch = {name: jnp.asarray(value) for name, value in batch.items()}
      >>> hidden, pooled = bert_jax.encode(config, params, batch)
      >>> hidden.shape, pooled.shape
      ((2, 16, 128), (2, 1, 128))
    """
    hidden = cast(Array, Encoder(config).apply({"params": params["bert"]}, batch, key))
    return Encoded(hidden, pool(config, params, hidden, batch))


def pool(config: ModelConfig, params: Params, hidden: Float[Array, "B S D"], batch: Batch) -> Float[Array, "B E D"] | None:
    """Pooled states [B, E, D] of hidden states [B, S, D], or None without a pooler.

    Args:
      config, params: the model.
      hidden: states, of the encoder or of [`readout`][bert_jax.models.readout.readout].
      batch: ``cls_positions`` [B, E]; for causal models also ``segment_ids`` [B, S].
    """
    if "pooler" not in params["bert"]:
        return None
    with jax.named_scope("pooler"):
        return cast(Array, Pooler(config).apply({"params": params["bert"]}, hidden, batch))


def hidden_states(
    config: ModelConfig, params: Params, batch: Batch, *, key: Key[Array, ""] | None = None
) -> Float[Array, "L B S D"]:
    """States after the embeddings and after each layer, L = num_hidden_layers + 1; arguments as for ``encode``.

    Examples:
      >>> from bert_jax.evaluation.benchmark import random_batch
      >>> from bert_jax.models.heads import init_params
      >>> config = bert_jax.ModelConfig.size("tiny", vocab_size=100)
      >>> params = init_params(config, jax.random.key(0))
      >>> batch = random_batch(bert_jax.DataConfig("", sequence_length=16, batch_size=2), 100)
      >>> batch = {name: jnp.asarray(value) for name, value in batch.items()}
      >>> bert_jax.hidden_states(config, params, batch).shape
      (3, 2, 16, 128)
    """
    return cast(Array, Encoder(config, all_layers=True).apply({"params": params["bert"]}, batch, key))


def attention_implementation(config: ModelConfig, sequence_length: int, *, training: bool) -> str:
    """The attention implementation that a model uses on this machine; see `bert_jax.ops.attention.select`.

    Raises:
      UserError: the implementation that the config names cannot run here.
    """
    return select(
        config.attention,
        dtype=config.dtype,
        sequence_length=sequence_length,
        head_size=config.head_size,
        dropout=training and config.attention_probs_dropout_prob > 0,
    )
