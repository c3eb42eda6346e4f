"""What stands on the encoder in pretraining: masked-word and next-sentence prediction."""

from __future__ import annotations

from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bert_jax import ops, sharding
from bert_jax.config import ModelConfig
from bert_jax.model import Affine, Batch, Bert, Block, Norm, Params


class MaskedWords(Block):
    """dense, activation, layer norm, the word table transposed, a bias (the original's ``cls/predictions``)."""

    @nn.compact
    def __call__(self, hidden: Float[Array, "B M D"], word: Float[Array, "V D"]) -> Float[Array, "B M V"]:
        config = self.config
        x = Affine(config, "BMD,DC->BMC", (config.hidden_size,) * 2, name="dense")(hidden)
        x = Norm(config, name="norm")(ops.ACTIVATIONS[config.hidden_act](x))
        table = sharding.gather(word.astype(config.dtype), "embeddings/word")
        return ops.einsum("BMD,VD->BMV", x, table, wide=True) + self.vector("bias", config.vocab_size)


class Pretraining(Block):
    """Both heads, under the names ``mlm`` and ``nsp``."""

    def setup(self) -> None:
        self.mlm = MaskedWords(self.config)
        self.nsp = Affine(self.config, "BED,DC->BEC", (self.config.hidden_size, 2))

    def words(
        self, hidden: Float[Array, "B S D"], positions: Int[Array, "B M"], word: Float[Array, "V D"]
    ) -> Float[Array, "B M V"]:
        return self.mlm(ops.gather_positions(hidden, positions), word)

    def next_sentence(self, pooled: Float[Array, "B E D"]) -> Float[Array, "B E 2"]:
        return self.nsp(pooled).astype(jnp.float32)

    def both(self, hidden: Array, positions: Array, word: Array, pooled: Array) -> tuple[Array, Array]:
        return self.words(hidden, positions, word), self.next_sentence(pooled)


def mlm_logits(
    config: ModelConfig, params: Params, hidden: Float[Array, "B S D"], positions: Int[Array, "B M"]
) -> Float[Array, "B M V"]:
    """float32 scores of every piece at M positions of each row; the decoder is the word table (tied)."""
    word = params["bert"]["embeddings"]["word"]
    return cast(Array, Pretraining(config).apply({"params": params}, hidden, positions, word, method="words"))


def nsp_logits(config: ModelConfig, params: Params, pooled: Float[Array, "B E D"]) -> Float[Array, "B E 2"]:
    """float32 scores of each pair: index 0 means the true next sentence, 1 a random one, as in the original."""
    return cast(Array, Pretraining(config).apply({"params": params}, pooled, method="next_sentence"))


def init_params(config: ModelConfig, key: Key[Array, ""]) -> Params:
    """Fresh parameters of the encoder and both pretraining heads: truncated normal, biases 0, layer-norm scales 1."""
    one = jnp.zeros((1, 1), jnp.int32)
    batch: Batch = {"ids": one, "types": one, "positions": one, "segments": one, "cls_positions": one}
    encoder_key, head_key = jax.random.split(key)
    bert = Bert(config).init(encoder_key, batch)["params"]
    width, dtype = config.hidden_size, jnp.dtype(config.dtype)
    word, hidden = bert["embeddings"]["word"], jnp.zeros((1, 1, width), dtype)
    heads = Pretraining(config).init(head_key, hidden, one, word, hidden, method="both")["params"]
    return {"bert": bert, **heads}
