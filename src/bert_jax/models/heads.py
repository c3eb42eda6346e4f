"""What stands on the encoder: masked words, next sentences, and the heads of the paper's tasks (section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bert_jax import ops, sharding
from bert_jax.config.run import ModelConfig
from bert_jax.errors import UserError
from bert_jax.models.encoder import Affine, Batch, Bert, Block, Encoded, Norm, Params, Pooler
from bert_jax.models.readout import Readout

ON_POOLED = ("nsp", "classify", "regress", "choose")
"""Linear heads on the pooled state of an example: next sentence, sequence classification and regression, and the score
of one of several choices (SWAG)."""
ON_TOKENS = ("tag", "span")
"""Linear heads on the state of every token: token classification, start and end of a span (SQuAD)."""
PRETRAINING = {"mlm": 0, "nsp": 2}
"""Heads of pretraining; how many outputs ``mlm`` has is the model's ``vocab_size``."""


class Decoder(NamedTuple):
    """What turns a state into the scores of every piece: the word table (tied) and a bias."""

    table: Float[Array, "V D"]
    bias: Float[Array, " V"]

    def logits(self, states: Float[Array, "B M D"]) -> Float[Array, "B M V"]:
        """float32 scores of every piece."""
        return ops.project("BMD,VD->BMV", states, self.table, wide=True) + self.bias


class MaskedWords(Block):
    """dense, activation, layer norm; then the word table transposed, a bias (the original's ``cls/predictions``)."""

    @nn.compact
    def __call__(self, hidden: Float[Array, "B M D"], word: Float[Array, "V D"]) -> tuple[Float[Array, "B M D"], Decoder]:
        config = self.config
        x = Affine(config, "BMD,DC->BMC", (config.hidden_size,) * 2, name="dense")(hidden)
        x = Norm(config, name="norm")(ops.ACTIVATIONS[config.hidden_act](x))
        table = sharding.gather(word.astype(config.dtype), "embeddings/word")
        return x, Decoder(table, self.vector("bias", config.vocab_size))


class MaskedWordsHead(Block):
    """The ``mlm`` head on chosen positions."""

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "B S D"], positions: Int[Array, "B M"], word: Float[Array, "V D"]
    ) -> tuple[Float[Array, "B M D"], Decoder]:
        return MaskedWords(self.config, name="mlm")(ops.gather_positions(hidden, positions), word)


class LinearHead(Block):
    """Any head that is one product and a bias."""

    head: str
    classes: int

    @nn.compact
    def __call__(self, states: Float[Array, "B N D"]) -> Float[Array, "B N C"]:
        shape = (self.config.hidden_size, self.classes)
        return Affine(self.config, "BND,DC->BNC", shape, name=self.head)(states).astype(jnp.float32)


def mlm_logits(
    config: ModelConfig, params: Params, hidden: Float[Array, "B S D"], positions: Int[Array, "B M"]
) -> Float[Array, "B M V"]:
    """float32 scores of every piece at M positions of each row; the decoder is the word table (tied)."""
    states, decoder = mlm_states(config, params, hidden, positions)
    return decoder.logits(states)


def mlm_states(
    config: ModelConfig, params: Params, hidden: Float[Array, "B S D"], positions: Int[Array, "B M"]
) -> tuple[Float[Array, "B M D"], Decoder]:
    """The masked-word head up to its decoder, and the decoder: for who does not want all scores at once."""
    _require(params, "mlm")
    word = params["bert"]["embeddings"]["word"]
    return cast(tuple[Array, Decoder], MaskedWordsHead(config).apply({"params": params}, hidden, positions, word))


def head_logits(config: ModelConfig, params: Params, head: str, encoded: Encoded) -> Float[Array, "B N C"]:
    """float32 scores of a linear head: N is E for one of :data:`ON_POOLED`, S for one of :data:`ON_TOKENS`.

    Raises:
      UserError: the parameters have no such head, or no pooler for it to stand on.
    """
    _require(params, head)
    states = encoded.hidden if head in ON_TOKENS else encoded.pooled
    if states is None:
        raise UserError(f"The {head} head stands on the pooler, which the model does not have.")
    classes = params[head]["bias"].shape[0]
    return cast(Array, LinearHead(config, head, classes).apply({"params": params}, states))


def nsp_logits(config: ModelConfig, params: Params, encoded: Encoded) -> Float[Array, "B E 2"]:
    """float32 scores of each pair: index 0 means the true next sentence, 1 a random one, as in the original."""
    return head_logits(config, params, "nsp", encoded)


def init_params(config: ModelConfig, key: Key[Array, ""], *, heads: Mapping[str, int] = PRETRAINING, pooler: bool = True) -> Params:
    """Fresh parameters: truncated normal, biases 0, layer-norm scales 1.

    Args:
      config: shape of the encoder.
      key: the initial values are a function of it.
      heads: outputs of each head, by its name; ``"mlm"`` has as many as there are pieces.
      pooler: whether the encoder has one.

    Raises:
      UserError: a head that stands on the pooler is asked for without one.
    """
    one = jnp.zeros((1, 1), jnp.int32)
    batch: Batch = {"ids": one, "types": one, "positions": one, "segments": one}
    encoder_key, head_key = jax.random.split(key)
    bert = Bert(config).init(encoder_key, batch)["params"]
    params: Params = {"bert": bert}
    states = jnp.zeros((1, 1, config.hidden_size), jnp.dtype(config.dtype))
    if pooler:
        bert |= Pooler(config).init(encoder_key, states, batch | {"cls_positions": one})["params"]
    if config.lstm_layers:
        every = jnp.zeros((1 + config.num_hidden_layers, *states.shape), states.dtype)
        params |= Readout(config).init(head_key, every, one)["params"]
    for head, classes in heads.items():
        if head == "mlm":
            params |= MaskedWordsHead(config).init(head_key, states, one, bert["embeddings"]["word"])["params"]
            continue
        if head in ON_POOLED and not pooler:
            raise UserError(f"The {head} head stands on the pooler, which the model does not have.")
        params |= LinearHead(config, head, classes).init(head_key, states)["params"]
    return params


def heads_of(params: Params) -> dict[str, int]:
    """Heads that stand on an encoder, and how many outputs each has."""
    return {head: values["bias"].shape[-1] for head, values in params.items() if head not in ("bert", "readout")}


def _require(params: Params, head: str) -> None:
    if head not in params:
        raise UserError(f"The model has no {head} head; it has {', '.join(heads_of(params)) or 'no head at all'}.")
