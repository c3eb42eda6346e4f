"""Write flax/: a parameter file of transformers' former Flax classes, with the outputs that they compute.

    python make_flax.py flax

Run with transformers 4.57.6, the last version with these classes, JAX 0.10.2 and Flax 0.12.8 (2026-11-21).
"""

import sys

import jax
import numpy as np
from transformers import BertConfig, FlaxBertForPreTraining

config = BertConfig(
    vocab_size=37,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    max_position_embeddings=11,
    type_vocab_size=2,
    initializer_range=0.3,
)
model = FlaxBertForPreTraining(config, seed=5)
rng = np.random.default_rng(0)
ids, token_types = rng.integers(0, 37, (3, 9)), rng.integers(0, 2, (3, 9))
mask = np.arange(9) < np.array([[9], [4], [1]])
# Biases and layer norms are random too; zeros and ones would hide mistakes.
model.params = jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape).astype("f4"), model.params)
out = model(ids, token_type_ids=token_types, attention_mask=mask.astype(int), output_hidden_states=True)
model.save_pretrained(sys.argv[1])
np.savez(
    f"{sys.argv[1]}/outputs.npz",
    ids=ids,
    types=token_types,
    segments=mask.astype(int),
    hidden=np.stack(out.hidden_states),
    mlm=out.prediction_logits,
    nsp=out.seq_relationship_logits,
)
