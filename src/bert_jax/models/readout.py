"""The states that the heads of tasks read: the encoder's last, or a BiLSTM over chosen layers (Devlin et al. 2018, section 5.3)."""

from __future__ import annotations

from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bert_jax import ops
from bert_jax.batch import Batch, Params
from bert_jax.config.model import ModelConfig
from bert_jax.models.encoder import Encoded, encode, hidden_states, pool
from bert_jax.models.layers import Block


class Lstm(Block):
    """One direction of an LSTM layer (Hochreiter and Schmidhuber 1997, with forget gates); its state is reset between the
    packed examples of a row."""

    size: int
    """W, width of the state."""
    reverse: bool
    """Whether it runs from the last token to the first."""

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], segment_ids: Int[Array, "B S"]) -> Float[Array, "B S W"]:
        size, dtype = self.size, self.config.dtype
        kernel = self._declare("kernel", nn.initializers.glorot_uniform(), (x.shape[-1], 4 * size), dtype)
        recurrent = self._declare("recurrent", nn.initializers.orthogonal(), (size, 4 * size), dtype)
        bias = self._declare("bias", _forget_bias, (4 * size,), "float32")
        inputs = jnp.moveaxis(ops.project("BSD,DG->BSG", x, kernel).astype(jnp.float32) + bias, 1, 0)
        after, before = jnp.pad(segment_ids[:, 1:], ((0, 0), (0, 1))), jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)))
        continues = jnp.moveaxis((segment_ids == (after if self.reverse else before))[..., None], 1, 0)

        def step(carry: tuple[Array, Array], token: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
            token_input, token_continues = token
            state, cell = (jnp.where(token_continues, value, 0.0) for value in carry)
            gates = token_input + ops.project("BK,KG->BG", state.astype(dtype), recurrent)
            input_gate, forget_gate, candidate, output_gate = jnp.split(gates, 4, axis=-1)
            cell = jax.nn.sigmoid(forget_gate) * cell + jax.nn.sigmoid(input_gate) * jnp.tanh(candidate)
            state = jax.nn.sigmoid(output_gate) * jnp.tanh(cell)
            return (state, cell), state

        zero = jnp.zeros_like(inputs[0, :, :size])
        states = jax.lax.scan(step, (zero, zero), (inputs, continues), reverse=self.reverse)[1]
        return jnp.moveaxis(states, 0, 1).astype(dtype)


class BiLstm(Block):
    """The concatenated states of both directions, together as wide as the encoder."""

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], segment_ids: Int[Array, "B S"]) -> Float[Array, "B S W"]:
        size = self.config.hidden_size // 2
        directions = (("forward", False), ("backward", True))
        return jnp.concatenate(
            [Lstm(self.config, size, reverse, name=name)(x, segment_ids) for name, reverse in directions], axis=-1
        )


class StatesBiLstm(Block):
    """Selects or sums the states of layers ([`ModelConfig.states`][bert_jax.ModelConfig.states]) and applies the BiLSTM layers."""

    @nn.compact
    def __call__(self, states: Float[Array, "L B S D"], segment_ids: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        config = self.config
        selected = {
            "last": states[-1:],
            "second_to_last": states[-2:-1],
            "embeddings": states[:1],
            "sum_last_four": states[-4:],
            "concat_last_four": states[-4:],
            "sum_all": states[1:],
        }[config.states]
        if config.states.startswith("sum"):
            # A softmax-weighted sum and a scale, as in ELMo (Peters et al. 2018, equation 1).
            weights = jax.nn.softmax(self.vector("weights", len(selected)))
            summed = jnp.tensordot(weights, selected.astype(jnp.float32), 1) * self.vector("scale", 1, value=1.0)
            x = summed.astype(config.dtype)
        else:
            x = jnp.concatenate(list(selected), axis=-1)
        for index in range(config.lstm_layers):
            x = BiLstm(config, name=f"lstm_{index}")(x, segment_ids)
        return x


class Readout(Block):
    """The module with the parameters under "readout"."""

    @nn.compact
    def __call__(self, states: Float[Array, "L B S D"], segment_ids: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        return StatesBiLstm(self.config, name="readout")(states, segment_ids)


def readout(
    config: ModelConfig, params: Params, batch: Batch, *, key: Key[Array, ""] | None = None, freeze_encoder: bool = False
) -> Encoded:
    """Compute the states that the heads of tasks read; a pure function of its arguments.

    Args:
      config, params, batch, key: as for [`encode`][bert_jax.encode].
      freeze_encoder: compute the encoder without dropout and stop its gradient (the paper's feature-based approach).

    Returns:
      hidden [B, S, D] and pooled [B, E, D], as [`encode`][bert_jax.encode].

    Examples:
      >>> from bert_jax.evaluation.benchmark import random_batch
      >>> from bert_jax.models.heads import init_params
      >>> config = bert_jax.ModelConfig.size("tiny", vocab_size=100, states="sum_all", lstm_layers=2)
      >>> params = init_params(config, jax.random.key(0), heads={"token_classification": 5})
      >>> batch = random_batch(bert_jax.DataConfig("", sequence_length=16, batch_size=2), 100)
      >>> batch = {name: jnp.asarray(value) for name, value in batch.items()}
      >>> readout(config, params, batch).hidden.shape
      (2, 16, 128)
    """
    source = params | {"bert": jax.lax.stop_gradient(params["bert"])} if freeze_encoder else params
    key = None if freeze_encoder else key
    if config.lstm_layers:
        states = hidden_states(config, source, batch, key=key)
        hidden = cast(Array, Readout(config).apply({"params": params}, states, batch["segment_ids"]))
    else:
        hidden = encode(config, source, batch, key=key).hidden
    return Encoded(hidden, pool(config, params, hidden, batch))


def _forget_bias(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any) -> Array:
    """1 for the forget gates, so that they are initially open (Gers et al. 2000), and 0 for the others."""
    del key
    return jnp.repeat(jnp.array([0.0, 1.0, 0.0, 0.0], dtype), shape[0] // 4)
