"""Write format_2/: a small corpus, an unfinished run of the present format version, and what it computes next.

    python make_format.py format_2

Run from a clone at the version to be stored (JAX 0.10.2, Orbax 0.12.8, 2026-11-28). The run has 4 steps and is stored as it was
after step 2. ``outputs.npz`` has the outputs of its model for texts, ``next.jsonl`` the training lines of steps 3 and 4.
"""

import json
import pathlib
import shutil
import sys

import jax
import numpy as np

import bert_jax
from bert_jax import tokenizers
from bert_jax.data.building import write_corpus
from bert_jax.inference.verification import probe

jax.config.update("jax_num_cpu_devices", 1)

TEXTS = [("alpha bravo charlie", "delta echo."), "golf hotel india juliett.", "x"]
WORDS = "alpha bravo charlie delta echo foxtrot golf hotel india juliett kilo lima".split()

out = pathlib.Path(sys.argv[1])
out.mkdir()
documents = [[" ".join(WORDS[(d + s + i) % 12] for i in range(3 + (d * s) % 6)) + "." for s in range(4)] for d in range(24)]
tokenizer = tokenizers.train(lambda: [line for document in documents for line in document], kind="wordpiece", size=60)
write_corpus(documents, out / "corpus", tokenizer, held_out=0.2)
config = bert_jax.Config(
    run=str(out / "run"),
    data=bert_jax.DataConfig(str(out / "corpus"), sequence_length=32, batch_size=8),
    model=bert_jax.ModelConfig(
        vocab_size=len(tokenizer.tokens),
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        layers="scan",
    ),
    optim=bert_jax.OptimConfig(peak_lr=1e-2, warmup_steps=1),
    train=bert_jax.TrainConfig(steps=4, eval_every=2, save_every=2, log_every=1, keep=2),
)
bert_jax.pretrain(config)
lines = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
(out / "next.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines if line["step"] > 2 and line["split"] == "train"))
(out / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines if line["step"] <= 2))
shutil.rmtree(out / "run" / "checkpoints" / "4")
shutil.rmtree(out / "run" / "tensorboard")
(out / "run" / "curves.png").unlink()
np.savez_compressed(out / "outputs.npz", **probe(bert_jax.load(out / "run"), TEXTS))
