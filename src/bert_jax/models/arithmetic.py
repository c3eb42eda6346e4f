"""Arithmetic of a model: the operations of its matrix products."""

from __future__ import annotations

import numpy as np

from bert_jax.config.model import ModelConfig


def forward_flop(model: ModelConfig, lengths: np.ndarray, predictions: int | float) -> dict[str, float]:
    """Multiplications and additions of the matrix products of a forward pass, by phase; padding does not count.

    Args:
      model: the shape.
      lengths: [N] tokens of each example.
      predictions: number of predicted tokens in all examples together.

    Examples:
      >>> flop = forward_flop(bert_jax.ModelConfig(), np.array([128]), 20)
      >>> round(sum(flop.values()) / 1e9, 1)
      23.3
    """
    tokens, squares = float(np.sum(lengths)), float(np.sum(np.square(lengths, dtype=float)))
    layers, width, inner = model.num_hidden_layers, model.hidden_size, model.intermediate_size
    return {
        "QKV": layers * 6 * tokens * width**2,
        "attention": layers * 4 * squares * width,
        "projection": layers * 2 * tokens * width**2,
        "FFN": layers * 4 * tokens * width * inner,
        "head": predictions * (2 * width**2 + 2 * width * model.vocab_size) + np.size(lengths) * (2 * width**2 + 4 * width),
    }
