"""Masked language modelling inputs: which tokens are selected, what replaces them, and which are predicted."""

from bert_jax.masking.policy import ResolvedMaskPolicy, check, resolve
from bert_jax.masking.replacement import mask_tokens
from bert_jax.masking.token_weights import TokenWeights, read_token_weights

__all__ = ["ResolvedMaskPolicy", "TokenWeights", "check", "mask_tokens", "read_token_weights", "resolve"]
