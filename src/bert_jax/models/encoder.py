"""The encoder of Devlin et al. 2018: Flax names, creates and stacks the parameters, pure functions compute.

The tree is the same however layers are compiled: every layer's parameters are stacked along a leading axis L.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bert_jax import ops, sharding
from bert_jax.config.run import ModelConfig
from bert_jax.ops import positions
from bert_jax.ops.attention import attention

Params = dict[str, Any]
Batch = dict[str, Array]

_REMAT_POLICIES = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


class Encoded(NamedTuple):
    """What the encoder says of a batch."""

    hidden: Float[Array, "B S D"]
    """Last layer's states; those of padding are meaningless."""
    pooled: Float[Array, "B E D"] | None
    """tanh projection of each example's first token; None where the parameters have no pooler."""


class Block(nn.Module):
    """A named group of parameters."""

    config: ModelConfig

    def weight(self, name: str, *shape: int) -> Array:
        """A truncated-normal matrix (the original's ``create_initializer``), ready to compute with."""
        return self._declare(name, nn.initializers.truncated_normal(self.config.initializer_range), shape, self.config.dtype)

    def table(self, name: str, *shape: int) -> Array:
        """A truncated-normal table to look rows up in; float32, because gradients of frequent rows are long sums."""
        return self._declare(name, nn.initializers.truncated_normal(self.config.initializer_range), shape, "float32")

    def vector(self, name: str, *shape: int, value: float = 0.0) -> Array:
        """A bias or a layer-norm parameter; float32 until it is used."""
        return self._declare(name, nn.initializers.constant(value), shape, "float32")

    def _declare(self, name: str, init: nn.initializers.Initializer, shape: tuple[int, ...], dtype: str) -> Array:
        key = sharding.parameter_key((*self.path, name))
        return sharding.gather(self.param(name, init, shape, jnp.float32).astype(dtype), key)


class Affine(Block):
    """A product with a kernel, plus a bias over the axes that the kernel brings in."""

    equation: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...] | None = None
    """Logical axes of the result, where the product sums over a divided axis."""

    @nn.compact
    def __call__(self, x: Float[Array, "B *S"]) -> Float[Array, "B *T"]:
        inputs, result = self.equation.split("->")
        brought = tuple(size for letter, size in zip(inputs.split(",")[1], self.shape, strict=True) if letter in result)
        kernel, bias = self.weight("kernel", *self.shape), self.vector("bias", *brought)
        y = ops.project(self.equation, x, kernel, axes=self.axes)
        return y + ops.spread(bias.astype(x.dtype), y)


class Weights(Block):
    """Kernel and bias of a product that is computed together with others."""

    shape: tuple[int, ...]
    bias: tuple[int, ...]

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        return self.weight("kernel", *self.shape), self.vector("bias", *self.bias)


class Norm(Block):
    """Layer norm with its scale and bias."""

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        scale, bias = self.vector("scale", x.shape[-1], value=1.0), self.vector("bias", x.shape[-1])
        return ops.layer_norm(x, scale, bias, eps=self.config.layer_norm_eps)


class Embeddings(Block):
    """Sum of word, position and type embeddings, normalised, then dropped out (section 3, figure 2)."""

    @nn.compact
    def __call__(self, batch: Batch, keys: Key[Array, " B"] | None) -> Float[Array, "B S D"]:
        config, width = self.config, self.config.hidden_size
        x = ops.lookup(self.table("word", config.vocab_size, width), batch["ids"])
        if config.position_embedding_type == "learned":
            table = self.table("position", config.max_position_embeddings, width)
        else:
            table = jnp.asarray(positions.sinusoidal(config.max_position_embeddings, width))
        x = x + ops.lookup(table, batch["positions"])
        x = x + ops.lookup(self.table("type", config.type_vocab_size, width), batch["types"])
        x = Norm(config, name="norm")(x).astype(config.dtype)
        return ops.dropout(x, keys, config.hidden_dropout_prob)


class SelfAttention(Block):
    """Multi-head self-attention, its output projection, and the post-norm residual."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S D"], segments: Int[Array, "B S"], keys: Key[Array, " B"] | None
    ) -> Float[Array, "B S D"]:
        config, width = self.config, self.config.hidden_size
        heads = (config.num_attention_heads, config.head_size)
        with jax.named_scope("qkv"):
            parts = (Weights(config, (width, *heads), heads, name=name)() for name in ("query", "key", "value"))
            # One product three times as wide keeps a device busier than three.
            kernel, bias = (jnp.stack(arrays, axis=-3) for arrays in zip(*parts, strict=True))
            # einsum sums over axes in the order of their letters: A before H and K needs no transposed copy.
            qkv = ops.project("BSD,DAHK->BSAHK", x, kernel)
            qkv = qkv + ops.spread(bias.astype(x.dtype), qkv)
            # Parts of one split, whose gradients are joined once; indices would each add to a gradient of the whole.
            q, k, v = (jnp.squeeze(part, 2) for part in jax.lax.split(qkv, (1, 1, 1), axis=2))
        with jax.named_scope("core"):
            rate = config.attention_probs_dropout_prob
            drawn = _head_keys(keys, heads[0])
            mixed = attention(q, k, v, segments, keys=drawn, dropout=rate, causal=config.causal, impl=config.attention)
        out = Affine(config, "BSHK,HKD->BSD", (*heads, width), ("batch", None, None), name="output")(mixed)
        return Norm(config, name="norm")(x + ops.dropout(out, _site(keys, 1), config.hidden_dropout_prob))


class FeedForward(Block):
    """The two-layer network and the post-norm residual."""

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], keys: Key[Array, " B"] | None) -> Float[Array, "B S D"]:
        config, width, inner = self.config, self.config.hidden_size, self.config.intermediate_size
        y = Affine(config, "BSD,DF->BSF", (width, inner), name="inner")(x)
        y = ops.ACTIVATIONS[config.hidden_act](y)
        y = Affine(config, "BSF,FD->BSD", (inner, width), ("batch", None, None), name="outer")(y)
        return Norm(config, name="norm")(x + ops.dropout(y, _site(keys, 2), config.hidden_dropout_prob))


class Layer(Block):
    """One post-norm transformer layer, in the form that ``nn.scan`` takes: what goes on, and what is kept of it."""

    keep: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S D"], layer: Int[Array, ""], segments: Array, keys: Array | None
    ) -> tuple[Array, Array | None]:
        keys = _site(keys, layer)
        with jax.named_scope("attention"):
            x = SelfAttention(self.config, name="attention")(x, segments, keys)
        with jax.named_scope("ffn"):
            x = FeedForward(self.config, name="ffn")(x, keys)
        return x, x if self.keep else None


class Bert(Block):
    """Embeddings and the layer stack."""

    keep: bool = False
    """Whether every layer's states are returned, or only the last."""

    @nn.compact
    def __call__(self, batch: Batch, key: Key[Array, ""] | None = None) -> Float[Array, "*L B S D"]:
        config, count = self.config, self.config.num_hidden_layers
        keys = None if key is None else ops.row_keys(key, batch["examples"])
        with jax.named_scope("embeddings"):
            x = Embeddings(config, name="embeddings")(batch, _site(keys, count))
        with jax.named_scope("layers"):
            layers = self._scanned if config.layers == "scan" or self.is_initializing() else self._unrolled
            last, every = layers(x, batch["segments"], keys)
        return last if every is None else jnp.concatenate([x[None], every])

    def _scanned(self, x: Array, segments: Array, keys: Array | None) -> tuple[Array, Array | None]:
        config = self.config
        layer = Layer
        if config.remat != "none":
            # Inside a loop nothing can undo the recomputation.
            layer = nn.remat(Layer, prevent_cse=False, policy=_REMAT_POLICIES[config.remat])
        stack = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=config.num_hidden_layers,
        )
        carried: tuple[Array, Array | None] = stack(config, self.keep, name="layers")(
            x, jnp.arange(config.num_hidden_layers), segments, keys
        )
        return carried

    def _unrolled(self, x: Array, segments: Array, keys: Array | None) -> tuple[Array, Array | None]:
        config, count = self.config, self.config.num_hidden_layers

        def layer(params: Params, x: Array, number: Array) -> tuple[Array, Array | None]:
            return cast(
                tuple[Array, Array | None],
                Layer(config, self.keep, parent=None).apply({"params": params}, x, number, segments, keys),
            )

        if config.remat != "none":
            layer = jax.checkpoint(layer, policy=_REMAT_POLICIES[config.remat])
        stacked, structure = jax.tree.flatten(self.variables["params"]["layers"])
        # Parts of one split, whose gradients are joined once; indices would each add to a gradient of the whole stack.
        parts = [jax.lax.split(leaf, [1] * count) for leaf in stacked]
        every: list[Array] = []
        for number, leaves in enumerate(zip(*parts, strict=True)):
            params = jax.tree.unflatten(structure, [leaf[0] for leaf in leaves])
            x, kept = layer(params, x, jnp.int32(number))
            every += [] if kept is None else [kept]
        return x, jnp.stack(every) if every else None


class Pooler(Block):
    """tanh of a projection of each example's first token (the original's ``pooler``); of causal models the last, which alone has
    seen the others."""

    @nn.compact
    def __call__(self, hidden: Float[Array, "B S D"], batch: Batch) -> Float[Array, "B E D"]:
        places = batch["cls_positions"]
        if self.config.causal:
            segments, number = batch["segments"][:, None, :], 1 + jnp.arange(places.shape[1])[:, None]
            places = jnp.where(segments == number, jnp.arange(segments.shape[-1]), 0).max(-1)
        first = ops.gather_positions(hidden, places)
        return jnp.tanh(Affine(self.config, "BED,DC->BEC", (self.config.hidden_size,) * 2, name="pooler")(first))


def encode(config: ModelConfig, params: Params, batch: Batch, *, key: Key[Array, ""] | None = None) -> Encoded:
    """Encode a batch; a pure function of its arguments.

    Args:
      config: shape and arithmetic.
      params: a tree with the encoder's parameters under ``"bert"``, with or without ``"pooler"``; heads beside it are
        not looked at.
      batch: ``ids``, ``types``, ``positions``, ``segments`` [B, S] and ``cls_positions`` [B, E]; with a key also
        ``examples`` [B, E].
      key: dropout key, or None for no dropout.

    Returns:
      hidden [B, S, D] and pooled [B, E, D] in ``config.dtype``; pooled is None without a pooler.
    """
    hidden = cast(Array, Bert(config).apply({"params": params["bert"]}, batch, key))
    return Encoded(hidden, pool(config, params, hidden, batch))


def pool(config: ModelConfig, params: Params, hidden: Float[Array, "B S D"], batch: Batch) -> Float[Array, "B E D"] | None:
    """Pooled states of an encoder's states, or None without a pooler."""
    if "pooler" not in params["bert"]:
        return None
    with jax.named_scope("pooler"):
        return cast(Array, Pooler(config).apply({"params": params["bert"]}, hidden, batch))


def hidden_states(
    config: ModelConfig, params: Params, batch: Batch, *, key: Key[Array, ""] | None = None
) -> Float[Array, "L B S D"]:
    """States after the embeddings and after each layer, L = num_hidden_layers + 1; arguments as for :func:`encode`."""
    return cast(Array, Bert(config, keep=True).apply({"params": params["bert"]}, batch, key))


def _site(keys: Key[Array, " B"] | None, number: int | Int[Array, ""]) -> Key[Array, " B"] | None:
    return None if keys is None else ops.fold_rows(keys, number)


def _head_keys(keys: Key[Array, " B"] | None, heads: int) -> Key[Array, "B H"] | None:
    # Keys divided over heads as the probabilities are: a device draws for its own heads only.
    if keys is None:
        return None
    numbers = sharding.split(jnp.arange(heads), "heads")
    return jax.vmap(lambda key: jax.vmap(lambda head: jax.random.fold_in(key, head))(numbers))(_site(keys, 0))
