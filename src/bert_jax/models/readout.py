"""What heads stand on: the encoder's last states, or a BiLSTM over states of one's choice (Devlin et al. 2018, section 5.3)."""

from __future__ import annotations

from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bert_jax import ops
from bert_jax.config.run import ModelConfig
from bert_jax.models.encoder import Batch, Block, Encoded, Params, encode, hidden_states, pool


class Lstm(Block):
    """One direction of a layer (Hochreiter and Schmidhuber 1997, with forget gates), begun afresh with each example of a row."""

    size: int
    reverse: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], segments: Int[Array, "B S"]) -> Float[Array, "B S K"]:
        size, dtype = self.size, self.config.dtype
        kernel = self._declare("kernel", nn.initializers.glorot_uniform(), (x.shape[-1], 4 * size), dtype)
        recurrent = self._declare("recurrent", nn.initializers.orthogonal(), (size, 4 * size), dtype)
        # Gates that begin by forgetting little (Gers et al. 2000) let gradients through.
        bias = self._declare("bias", _forget, (4 * size,), "float32")
        gates = jnp.moveaxis(ops.project("BSD,DG->BSG", x, kernel).astype(jnp.float32) + bias, 1, 0)
        before = jnp.pad(segments[:, 1:], ((0, 0), (0, 1))) if self.reverse else jnp.pad(segments[:, :-1], ((0, 0), (1, 0)))
        goes_on = jnp.moveaxis((segments == before)[..., None], 1, 0)

        def step(carry: tuple[Array, Array], at: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
            given, goes_on = at
            state, memory = (jnp.where(goes_on, value, 0.0) for value in carry)
            summed = given + ops.project("BK,KG->BG", state.astype(dtype), recurrent)
            into, kept, new, out = jnp.split(summed, 4, axis=-1)
            memory = jax.nn.sigmoid(kept) * memory + jax.nn.sigmoid(into) * jnp.tanh(new)
            state = jax.nn.sigmoid(out) * jnp.tanh(memory)
            return (state, memory), state

        zero = jnp.zeros_like(gates[0, :, :size])
        states = jax.lax.scan(step, (zero, zero), (gates, goes_on), reverse=self.reverse)[1]
        return jnp.moveaxis(states, 0, 1).astype(dtype)


class BiLstm(Block):
    """Both directions side by side, as wide as the encoder together."""

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], segments: Int[Array, "B S"]) -> Float[Array, "B S K"]:
        size = self.config.hidden_size // 2
        directions = (("forward", False), ("backward", True))
        return jnp.concatenate([Lstm(self.config, size, back, name=name)(x, segments) for name, back in directions], axis=-1)


class Chosen(Block):
    """Chosen states, then the BiLSTM's layers."""

    @nn.compact
    def __call__(self, every: Float[Array, "L B S D"], segments: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        config = self.config
        chosen = {
            "last": every[-1:],
            "second_to_last": every[-2:-1],
            "embeddings": every[:1],
            "sum_last_four": every[-4:],
            "concat_last_four": every[-4:],
            "sum_all": every[1:],
        }[config.states]
        if config.states.startswith("sum"):
            # As ELMo's (Peters et al. 2018, equation 1).
            shares = jax.nn.softmax(self.vector("weights", len(chosen)))
            summed = jnp.tensordot(shares, chosen.astype(jnp.float32), 1) * self.vector("scale", 1, value=1.0)
            x = summed.astype(config.dtype)
        else:
            x = jnp.concatenate(list(chosen), axis=-1)
        for number in range(config.lstm_layers):
            x = BiLstm(config, name=f"lstm_{number}")(x, segments)
        return x


class Readout(Block):
    """The ``readout`` of a model."""

    @nn.compact
    def __call__(self, every: Float[Array, "L B S D"], segments: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        return Chosen(self.config, name="readout")(every, segments)


def readout(
    config: ModelConfig, params: Params, batch: Batch, *, key: Key[Array, ""] | None = None, frozen: bool = False
) -> Encoded:
    """States for the heads of tasks; a pure function of its arguments.

    Args:
      config, params, batch, key: as for :func:`bert_jax.encode`.
      frozen: take the encoder as it is, without dropout and without a gradient (the paper's feature-based approach).

    Returns:
      hidden [B, S, D] and pooled [B, E, D], as :func:`bert_jax.encode`.
    """
    source = params | {"bert": jax.lax.stop_gradient(params["bert"])} if frozen else params
    key = None if frozen else key
    if config.lstm_layers:
        every = hidden_states(config, source, batch, key=key)
        hidden = cast(Array, Readout(config).apply({"params": params}, every, batch["segments"]))
    else:
        hidden = encode(config, source, batch, key=key).hidden
    return Encoded(hidden, pool(config, params, hidden, batch))


def _forget(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any) -> Array:
    del key
    return jnp.repeat(jnp.array([0.0, 1.0, 0.0, 0.0], dtype), shape[0] // 4)
