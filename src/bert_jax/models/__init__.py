"""The encoder and its heads: Flax modules that own the parameters, and pure functions of parameters and a batch."""

from bert_jax.models.encoder import Encoded, encode, hidden_states, pool
from bert_jax.models.heads import head_logits, heads_of, init_params, mlm_logits, nsp_logits
from bert_jax.models.loaded import LoadedModel

__all__ = [
    "Encoded",
    "LoadedModel",
    "encode",
    "head_logits",
    "heads_of",
    "hidden_states",
    "init_params",
    "mlm_logits",
    "nsp_logits",
    "pool",
]
