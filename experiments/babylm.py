"""BabyLM, strict-small: at most 10 million words of text, seen ten times, with a checkpoint at each number of words of the rules.

    bert-jax pretrain experiments/babylm.py --data.corpus babylm_10M
    bert-jax pretrain experiments/babylm.py:strict --data.corpus babylm_100M
    bert-jax minimal-pairs runs/babylm blimp/data

The rules of 2026 (arXiv 2602.20092, babylm-org/babylm-eval): strict-small has 10 million words and strict 100 million;
checkpoints at 1 to 10, then 20 to 100, in strict then 200 to 1,000 million words seen. Export them with `bert-jax convert` for
the public evaluation, which loads them with transformers.

Published: no masked-LM baseline in 2026. The GPT-2 baselines have BLiMP 65.08 (strict-small) and 74.53 (strict); GPT-BERT of
2025, strict-small by masked-LM scoring, 70.36. Size and rates here are ours: a model of 8 layers and 512 units, and a mask rate
that falls from 30 % to 15 % as in GPT-BERT. Not run by us at this size.
"""

import dataclasses

import bert_jax
from bert_jax import recipes

SMALL = ",".join(f"{millions}M" for millions in (*range(1, 11), *range(20, 101, 10)))
LARGE = ",".join(f"{millions}M" for millions in range(200, 1001, 100))


def config() -> bert_jax.Config:
    """Return the config of strict-small."""
    return bert_jax.Config(
        run="runs/babylm",
        data=bert_jax.DataConfig("data/babylm_10M", sequence_length=128, batch_size=128, pairs=False),
        model=bert_jax.ModelConfig.size("medium", vocab_size=16_384, dtype="bfloat16"),
        mask=bert_jax.MaskPolicy(rate="linear(0.3, 0.15)"),
        optim=bert_jax.OptimConfig(name="adamw", peak_lr=1e-3, warmup_steps=500, decay="from_peak", b2=0.98, weight_decay=0.1),
        train=bert_jax.TrainConfig(words="100M", save_at_words=SMALL, eval_every=500, save_every=500),
    )


def strict() -> bert_jax.Config:
    """Return the config of strict: ten times as much text."""
    small = config()
    return dataclasses.replace(
        small,
        run="runs/babylm_strict",
        data=dataclasses.replace(small.data, corpus="data/babylm_100M", batch_size=512),
        model=bert_jax.ModelConfig.size("base", vocab_size=16_384, dtype="bfloat16"),
        train=dataclasses.replace(small.train, words="1B", save_at_words=f"{SMALL},{LARGE}"),
    )


def laptop() -> bert_jax.Config:
    """Return the same methods at a size for two CPU cores."""
    return recipes.laptop(config())
