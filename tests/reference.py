"""BERT written a second time: NumPy, float64, a loop over examples and heads, nothing shared with the package.

Follows the original's ``modeling.py`` and ``run_pretraining.py``; each example is computed alone, without padding.
"""

from __future__ import annotations

import math

import jax
import numpy as np

_erf = np.vectorize(math.erf, otypes=[float])
ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
}


def to_float64(tree):
    """The arrays of a tree in double precision."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def norm(x, p, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def encode_one(config, bert, ids, types):
    """Hidden [S, D] and pooled [D] of one example."""
    table = bert["embeddings"]
    x = table["word"][ids] + table["position"][: len(ids)] + table["type"][types]
    x = norm(x, table["norm"], config.layer_norm_eps)
    for number in range(config.num_hidden_layers):
        layer = {name: _slice(group, number) for name, group in bert["layers"].items()}
        attention = layer["attention"]
        mixed = np.zeros_like(x)
        for head in range(config.num_attention_heads):
            q, k, v = (x @ attention[n]["kernel"][:, head] + attention[n]["bias"][head] for n in ("query", "key", "value"))
            probabilities = softmax(q @ k.T / math.sqrt(config.head_size))
            mixed += probabilities @ v @ attention["output"]["kernel"][head]
        x = norm(x + mixed + attention["output"]["bias"], attention["norm"], config.layer_norm_eps)
        ffn = layer["ffn"]
        inner = ACTIVATIONS[config.hidden_act](x @ ffn["inner"]["kernel"] + ffn["inner"]["bias"])
        x = norm(x + inner @ ffn["outer"]["kernel"] + ffn["outer"]["bias"], ffn["norm"], config.layer_norm_eps)
    return x, np.tanh(x[0] @ bert["pooler"]["kernel"] + bert["pooler"]["bias"])


def mlm_logits(config, params, hidden):
    """[M, V] for hidden [M, D]."""
    mlm = params["mlm"]
    x = ACTIVATIONS[config.hidden_act](hidden @ mlm["dense"]["kernel"] + mlm["dense"]["bias"])
    return norm(x, mlm["norm"], config.layer_norm_eps) @ params["bert"]["embeddings"]["word"].T + mlm["bias"]


def losses(config, params, batch):
    """Mean masked-word and mean NSP loss of an unpacked masked batch."""
    words, pairs = [], []
    for row in range(len(batch["input_ids"])):
        length = int((batch["segment_ids"][row] > 0).sum())
        hidden, pooled = encode_one(config, params["bert"], batch["input_ids"][row, :length], batch["token_type_ids"][row, :length])
        chosen = batch["mlm_weights"][row] > 0
        logits = mlm_logits(config, params, hidden[batch["mlm_positions"][row][chosen]])
        words += list(-np.log(softmax(logits))[np.arange(chosen.sum()), batch["mlm_ids"][row][chosen]])
        pair = softmax(pooled @ params["nsp"]["kernel"] + params["nsp"]["bias"])
        pairs.append(-np.log(pair[batch["nsp_labels"][row, 0]]))
    return np.mean(words), np.mean(pairs)


def _slice(tree, number):
    return {name: _slice(value, number) if isinstance(value, dict) else value[number] for name, value in tree.items()}
