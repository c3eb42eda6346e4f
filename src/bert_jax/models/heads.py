"""Heads on the encoder: MLM and NSP for pretraining, and those of the paper's tasks (Devlin et al. 2018, sections 3.1 and 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bert_jax import ops, sharding
from bert_jax.batch import Batch, Params
from bert_jax.config.model import ModelConfig
from bert_jax.errors import UserError
from bert_jax.models.encoder import Encoded, Encoder
from bert_jax.models.layers import Affine, Block, Norm, Pooler
from bert_jax.models.readout import Readout

POOLED_HEADS = ("nsp", "sequence_classification", "multilabel_classification", "regression", "multiple_choice")
"""Linear heads on the pooled state of each example; ``multiple_choice`` has one output, the score of a choice (SWAG)."""
TOKEN_HEADS = ("token_classification", "question_answering")
"""Linear heads on the state of every token; ``question_answering`` has two outputs, the start and the end of the answer (SQuAD)."""
PRETRAINING = {"mlm": 0, "nsp": 2}
"""Heads of pretraining and their numbers of outputs; that of ``mlm`` is the model's ``vocab_size``, whatever is given here."""


class Decoder(NamedTuple):
    """The output layer of the MLM head: a table, by default that of the word embeddings, and a bias."""

    table: Float[Array, "V D"]
    bias: Float[Array, " V"]

    def logits(self, states: Float[Array, "B M D"]) -> Float[Array, "B M V"]:
        """float32 logits over the vocabulary."""
        return ops.project("BMD,VD->BMV", states, self.table, float32_result=True) + self.bias


class MlmTransform(Block):
    """Dense layer, activation and layer norm before the decoder (the original's ``cls/predictions``), and the decoder."""

    @nn.compact
    def __call__(self, hidden: Float[Array, "B M D"], word: Float[Array, "V D"]) -> tuple[Float[Array, "B M D"], Decoder]:
        config = self.config
        x = Affine(config, "BMD,DC->BMC", (config.hidden_size,) * 2, name="dense")(hidden)
        x = Norm(config, name="norm")(ops.ACTIVATIONS[config.hidden_act](x))
        if config.tie_word_embeddings:
            table = sharding.gather(word.astype(config.dtype), "embeddings/word")
        else:
            table = self.weight("decoder", config.vocab_size, config.hidden_size)
        return x, Decoder(table, self.vector("bias", config.vocab_size))


class MlmHead(Block):
    """The module with the parameters under "mlm", at M positions of each row."""

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "B S D"], positions: Int[Array, "B M"], word: Float[Array, "V D"]
    ) -> tuple[Float[Array, "B M D"], Decoder]:
        return MlmTransform(self.config, name="mlm")(ops.gather_positions(hidden, positions), word)


class LinearHead(Block):
    """A head that is one product and a bias."""

    head: str
    """Its name in the parameters."""
    outputs: int
    """C, number of outputs."""

    @nn.compact
    def __call__(self, states: Float[Array, "B N D"]) -> Float[Array, "B N C"]:
        shape = (self.config.hidden_size, self.outputs)
        return Affine(self.config, "BND,DC->BNC", shape, name=self.head)(states).astype(jnp.float32)


def mlm_logits(
    config: ModelConfig, params: Params, hidden: Float[Array, "B S D"], positions: Int[Array, "B M"]
) -> Float[Array, "B M V"]:
    """float32 MLM logits over the vocabulary at M positions of each row.

    Args:
      config, params: the model, with an ``mlm`` head.
      hidden: last states of the encoder.
      positions: columns of the positions.

    Raises:
      UserError: the parameters have no ``mlm`` head.

    Examples:
      >>> from bert_jax.models.heads import init_params
      >>> config = bert_jax.ModelConfig.size("tiny", vocab_size=100)
      >>> params = init_params(config, jax.random.key(0))
      >>> bert_jax.mlm_logits(config, params, jnp.zeros((2, 16, 128)), jnp.array([[1, 5], [2, 3]])).shape
      (2, 2, 100)
    """
    states, decoder = mlm_states(config, params, hidden, positions)
    return decoder.logits(states)


def mlm_states(
    config: ModelConfig, params: Params, hidden: Float[Array, "B S D"], positions: Int[Array, "B M"]
) -> tuple[Float[Array, "B M D"], Decoder]:
    """The MLM head's states before its decoder, and the decoder, for computing logits in chunks.

    Raises:
      UserError: the parameters have no ``mlm`` head.
    """
    _check_head(params, "mlm")
    word = params["bert"]["embeddings"]["word"]
    return cast(tuple[Array, Decoder], MlmHead(config).apply({"params": params}, hidden, positions, word))


def head_logits(config: ModelConfig, params: Params, head: str, encoded: Encoded) -> Float[Array, "B N C"]:
    """float32 outputs of a linear head: N is E for one of ``POOLED_HEADS``, S for one of ``TOKEN_HEADS``.

    Args:
      config, params: the model.
      head: name of the head.
      encoded: outputs of the encoder, or of [`readout`][bert_jax.models.readout.readout].

    Raises:
      UserError: the parameters have no such head, or no pooler, which it needs.

    Examples:
      >>> from bert_jax.models.encoder import Encoded
      >>> from bert_jax.models.heads import init_params
      >>> config = bert_jax.ModelConfig.size("tiny", vocab_size=100)
      >>> params = init_params(config, jax.random.key(0), heads={"sequence_classification": 3})
      >>> encoded = Encoded(jnp.zeros((2, 16, 128)), jnp.zeros((2, 1, 128)))
      >>> bert_jax.head_logits(config, params, "sequence_classification", encoded).shape
      (2, 1, 3)
    """
    _check_head(params, head)
    states = encoded.hidden if head in TOKEN_HEADS else encoded.pooled
    if states is None:
        raise _no_pooler(head)
    outputs = params[head]["bias"].shape[0]
    return cast(Array, LinearHead(config, head, outputs).apply({"params": params}, states))


def nsp_logits(config: ModelConfig, params: Params, encoded: Encoded) -> Float[Array, "B E 2"]:
    """float32 NSP logits: index 0 is the true next sentence, 1 a random one, as in the original.

    Raises:
      UserError: the parameters have no ``nsp`` head or no pooler.

    Examples:
      >>> from bert_jax.models.encoder import Encoded
      >>> from bert_jax.models.heads import init_params
      >>> config = bert_jax.ModelConfig.size("tiny", vocab_size=100)
      >>> params = init_params(config, jax.random.key(0))
      >>> bert_jax.nsp_logits(config, params, Encoded(jnp.zeros((2, 16, 128)), jnp.zeros((2, 1, 128)))).shape
      (2, 1, 2)
    """
    return head_logits(config, params, "nsp", encoded)


def init_params(config: ModelConfig, key: Key[Array, ""], *, heads: Mapping[str, int] = PRETRAINING, pooler: bool = True) -> Params:
    """Initialize parameters: truncated-normal weights, biases of 0, layer-norm scales of 1.

    Args:
      config: shape of the encoder.
      key: the initial values are a function of it.
      heads: name of each head -> number of its outputs; that of ``"mlm"`` is always ``config.vocab_size``.
      pooler: whether the encoder has a pooler.

    Raises:
      UserError: a head needs the pooler, and there is none.

    Examples:
      >>> config = bert_jax.ModelConfig.size("tiny", vocab_size=100)
      >>> params = init_params(config, jax.random.key(0), heads={"regression": 1})
      >>> sorted(params), params["bert"]["embeddings"]["word"].shape
      (['bert', 'regression'], (100, 128))
    """
    # Modules lay their activations out, and a batch of one row does not divide over a mesh.
    with sharding.no_mesh():
        return _init_params(config, key, heads, pooler)


def _init_params(config: ModelConfig, key: Key[Array, ""], heads: Mapping[str, int], pooler: bool) -> Params:
    index = jnp.zeros((1, 1), jnp.int32)
    batch: Batch = {"input_ids": index, "token_type_ids": index, "position_ids": index, "segment_ids": index}
    encoder_key, head_key = jax.random.split(key)
    bert = Encoder(config).init(encoder_key, batch)["params"]
    params: Params = {"bert": bert}
    hidden = jnp.zeros((1, 1, config.hidden_size), jnp.dtype(config.dtype))
    if pooler:
        bert |= Pooler(config).init(encoder_key, hidden, batch | {"cls_positions": index})["params"]
    if config.lstm_layers:
        states = jnp.zeros((1 + config.num_hidden_layers, *hidden.shape), hidden.dtype)
        params |= Readout(config).init(head_key, states, index)["params"]
    for head, outputs in heads.items():
        if head == "mlm":
            params |= MlmHead(config).init(head_key, hidden, index, bert["embeddings"]["word"])["params"]
            continue
        if head in POOLED_HEADS and not pooler:
            raise _no_pooler(head)
        params |= LinearHead(config, head, outputs).init(head_key, hidden)["params"]
    return params


def heads_of(params: Params) -> dict[str, int]:
    """Names of the heads in a tree of parameters, and the number of outputs of each.

    Examples:
      >>> heads_of(init_params(bert_jax.ModelConfig.size("tiny", vocab_size=100), jax.random.key(0)))
      {'mlm': 100, 'nsp': 2}
    """
    return {head: values["bias"].shape[-1] for head, values in params.items() if head not in ("bert", "readout")}


def _check_head(params: Params, head: str) -> None:
    if head not in params:
        others = ", ".join(heads_of(params)) or "no heads"
        raise UserError(f"The model has no {head} head; it has {others}; fine-tune it, or load a model that has one.")


def _no_pooler(head: str) -> UserError:
    return UserError(f"The {head} head needs the pooler, which the model does not have; load a model with a pooler.")
