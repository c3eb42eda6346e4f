"""Initial parameters of a pretraining run: random ones, or those of a model that is pretrained further."""

from __future__ import annotations

import jax
import numpy as np

from bert_jax import convert, processes
from bert_jax.batch import Params
from bert_jax.config.run import Config
from bert_jax.errors import UserError
from bert_jax.io.checksums import checksums
from bert_jax.models.loaded import tokenizer_of
from bert_jax.tokenizers import Tokenizer

_SHAPE = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "position_embedding_type", "tie_word_embeddings", "causal",
)  # fmt: skip


def read(config: Config, tokenizer: Tokenizer) -> Params:
    """The parameters from which a run starts: the encoder of ``config.init`` and its heads for pretraining; empty without one.

    Args:
      config: the run.
      tokenizer: that of the run's data.

    Raises:
      UserError: there is no such model, or it has another shape or vocabulary than the run.
    """
    if config.init is None:
        return {}
    model = convert.read(config.init, vocab=config.init_vocab)
    if wrong := [name for name in _SHAPE if getattr(model.config, name) != getattr(config.model, name)]:
        differences = ", ".join(f"{name} {getattr(config.model, name)} instead of {getattr(model.config, name)}" for name in wrong)
        raise UserError(f"The run cannot start from {config.init}: its model has {differences}.")
    if tuple(tokenizer_of(model).tokens) != tuple(tokenizer.tokens):
        raise UserError(
            f"{config.data.corpus} has another vocabulary than {config.init}; prepare it with that of the model, or name the "
            "extension that it was prepared with by --init-vocab."
        )
    return jax.tree.map(np.asarray, {name: model.params[name] for name in ("bert", "mlm", "nsp") if name in model.params})


def complete(fresh: Params, source: Params) -> Params:
    """Fresh parameters, replaced by those that ``read`` returned; a pooler or head that the model does not have stays fresh."""
    return fresh | source | {"bert": fresh["bert"] | source.get("bert", {})}


def digests(source: Params) -> dict[str, str]:
    """Checksums of the parameters, which must be equal for all processes; none for a single process."""
    if len(processes.group()) == 1:
        return {}
    return {f"weights {name}": f"{value:08x}" for name, value in checksums(source).items()}


def describe(config: Config, source: Params) -> str:
    """A sentence about what a run starts from."""
    if config.init is None:
        return f"initial parameters: random, seed {config.train.seed}"
    fresh = [name for name in ("mlm", *(["nsp"] if config.data.pairs else [])) if name not in source]
    return f"initial parameters: {config.init}" + (f"; new heads: {', '.join(fresh)}" if fresh else "")
