"""Embeddings, the post-norm transformer layer and the pooler, as Flax modules that name and create parameters."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bert_jax import ops, sharding
from bert_jax.batch import Batch
from bert_jax.config.model import ModelConfig
from bert_jax.ops.attention import attention
from bert_jax.ops.positions import sinusoidal

REMAT_POLICIES = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}
"""Checkpoint policies by the names of [`ModelConfig.remat`][bert_jax.ModelConfig.remat]."""

# Sites of dropout in a layer, with which its keys are folded; their values are part of the reproducible random numbers.
_ATTENTION_PROBABILITIES, _ATTENTION_OUTPUT, _FFN_OUTPUT = range(3)


class Block(nn.Module):
    """Base of the modules: creates parameters in float32 and returns them in the dtype and layout of the computation."""

    config: ModelConfig

    @property
    def _initializer(self) -> nn.initializers.Initializer:
        return getattr(nn.initializers, self.config.initializer)(self.config.initializer_range)

    def weight(self, name: str, *shape: int) -> Array:
        """A matrix, by default truncated-normal (the original's ``create_initializer``), in the compute dtype."""
        return self._declare(name, self._initializer, shape, self.config.dtype)

    def table(self, name: str, *shape: int) -> Array:
        """An embedding table; float32, because the gradients of frequent rows are long sums."""
        return self._declare(name, self._initializer, shape, "float32")

    def vector(self, name: str, *shape: int, value: float = 0.0) -> Array:
        """A bias or a layer-norm parameter, initially ``value``, in float32."""
        return self._declare(name, nn.initializers.constant(value), shape, "float32")

    def _declare(self, name: str, init: nn.initializers.Initializer, shape: tuple[int, ...], dtype: str) -> Array:
        key = sharding.parameter_key((*self.path, name))
        return sharding.gather(self.param(name, init, shape, jnp.float32).astype(dtype), key)


class Affine(Block):
    """A product with a kernel, plus a bias over the axes that the result has from the kernel."""

    equation: str
    """Einsum of the input and the kernel."""
    shape: tuple[int, ...]
    """Shape of the kernel."""
    axes: tuple[str | None, ...] | None = None
    """Logical axes of the result; needed where the product sums over a sharded axis."""

    @nn.compact
    def __call__(self, x: Float[Array, "B *S"]) -> Float[Array, "B *T"]:
        operands, result = self.equation.split("->")
        bias_shape = tuple(size for letter, size in zip(operands.split(",")[1], self.shape, strict=True) if letter in result)
        kernel, bias = self.weight("kernel", *self.shape), self.vector("bias", *bias_shape)
        y = ops.project(self.equation, x, kernel, axes=self.axes)
        return y + ops.broadcast_bias(bias.astype(x.dtype), y)


class Weights(Block):
    """Kernel and bias of a product that is computed together with others."""

    shape: tuple[int, ...]
    """Shape of the kernel."""
    bias: tuple[int, ...]
    """Shape of the bias."""

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
    """Sum of word, position and token type embeddings, with layer norm and dropout (section 3, figure 2)."""

    @nn.compact
    def __call__(self, batch: Batch, keys: Key[Array, " B"] | None) -> Float[Array, "B S D"]:
        config, width = self.config, self.config.hidden_size
        x = ops.lookup(self.table("word", config.vocab_size, width), batch["input_ids"])
        if config.position_embedding_type == "learned":
            table = self.table("position", config.max_position_embeddings, width)
        else:
            table = jnp.asarray(sinusoidal(config.max_position_embeddings, width))
        x = x + ops.lookup(table, batch["position_ids"])
        x = x + ops.lookup(self.table("type", config.type_vocab_size, width), batch["token_type_ids"])
        x = Norm(config, name="norm")(x).astype(config.dtype)
        return ops.dropout(x, keys, config.hidden_dropout_prob)


class SelfAttention(Block):
    """Multi-head self-attention, its output projection, and the post-norm residual."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S D"], segment_ids: Int[Array, "B S"], keys: Key[Array, " B"] | None
    ) -> Float[Array, "B S D"]:
        config, width = self.config, self.config.hidden_size
        heads = (config.num_attention_heads, config.head_size)
        with jax.named_scope("qkv"):
            projections = (Weights(config, (width, *heads), heads, name=name)() for name in ("query", "key", "value"))
            # One product three times as wide keeps a device busier than three.
            kernel, bias = (jnp.stack(arrays, axis=-3) for arrays in zip(*projections, strict=True))
            # einsum sums over axes in the order of their letters: A before H and K needs no transposed copy.
            qkv = ops.project("BSD,DAHK->BSAHK", x, kernel)
            qkv = qkv + ops.broadcast_bias(bias.astype(x.dtype), qkv)
            # The gradients of one split are concatenated once; with indexing, each would be added to a gradient of the whole.
            q, k, v = (jnp.squeeze(part, 2) for part in jax.lax.split(qkv, (1, 1, 1), axis=2))
        with jax.named_scope("core"):
            rate = config.attention_probs_dropout_prob
            head_keys = _head_keys(keys, config.num_attention_heads)
            mixed = attention(
                q, k, v, segment_ids, keys=head_keys, dropout=rate, causal=config.causal, implementation=config.attention
            )
        out = Affine(config, "BSHK,HKD->BSD", (*heads, width), ("batch", None, None), name="output")(mixed)
        out = ops.dropout(out, fold_site(keys, _ATTENTION_OUTPUT), config.hidden_dropout_prob)
        return Norm(config, name="norm")(x + out)


class FeedForward(Block):
    """The two-layer feed-forward network and the post-norm residual."""

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], keys: Key[Array, " B"] | None) -> Float[Array, "B S D"]:
        config, width, inner = self.config, self.config.hidden_size, self.config.intermediate_size
        y = Affine(config, "BSD,DF->BSF", (width, inner), name="inner")(x)
        y = ops.ACTIVATIONS[config.hidden_act](y)
        y = Affine(config, "BSF,FD->BSD", (inner, width), ("batch", None, None), name="outer")(y)
        return Norm(config, name="norm")(x + ops.dropout(y, fold_site(keys, _FFN_OUTPUT), config.hidden_dropout_prob))


class Layer(Block):
    """One post-norm transformer layer, in the form that ``nn.scan`` takes: returns ``(carry, output)``."""

    return_states: bool
    """Whether the output is the layer's states; otherwise it is None."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S D"], layer: Int[Array, ""], segment_ids: Int[Array, "B S"], keys: Key[Array, " B"] | None
    ) -> tuple[Float[Array, "B S D"], Float[Array, "B S D"] | None]:
        keys = fold_site(keys, layer)
        with jax.named_scope("attention"):
            x = SelfAttention(self.config, name="attention")(x, segment_ids, keys)
        with jax.named_scope("ffn"):
            x = FeedForward(self.config, name="ffn")(x, keys)
        return x, x if self.return_states else None


class Pooler(Block):
    """tanh of a projection of each example's [CLS] (the original's ``pooler``).

    A causal model pools the last token instead, the only one that attends to all others.
    """

    @nn.compact
    def __call__(self, hidden: Float[Array, "B S D"], batch: Batch) -> Float[Array, "B E D"]:
        positions = batch["cls_positions"]
        if self.config.causal:
            segment_ids, segments = batch["segment_ids"][:, None, :], 1 + jnp.arange(positions.shape[1])[:, None]
            positions = jnp.where(segment_ids == segments, jnp.arange(segment_ids.shape[-1]), 0).max(-1)
        pooled = ops.gather_positions(hidden, positions)
        return jnp.tanh(Affine(self.config, "BED,DC->BEC", (self.config.hidden_size,) * 2, name="pooler")(pooled))


def fold_site(keys: Key[Array, " B"] | None, site: int | Int[Array, ""]) -> Key[Array, " B"] | None:
    """Dropout keys [B] of a place in the network, or None without dropout.

    The keys of the rows are folded first with a part of the network (layers 0 to L - 1; L: embeddings; L + 1: the head of a
    task), then, within a layer, with a site (0: attention probabilities, 1: attention output, 2: feed-forward output).

    Args:
      keys: keys of the rows, or None for no dropout.
      site: index of the part or the site.

    Examples:
      >>> fold_site(jax.random.split(jax.random.key(0), 4), 2).shape
      (4,)
    """
    return None if keys is None else ops.fold_rows(keys, site)


def _head_keys(keys: Key[Array, " B"] | None, heads: int) -> Key[Array, "B H"] | None:
    if keys is None:
        return None
    # Keys are sharded over heads as the probabilities are, so that a device draws for its own heads only.
    head_indices = sharding.reshard(jnp.arange(heads), "heads")
    fold_heads = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(fold_heads, (0, None))(ops.fold_rows(keys, _ATTENTION_PROBABILITIES), head_indices)
