"""One GPU and one day, after Cramming (Geiping and Goldstein 2023): 25 % masked, a triangular schedule, and batches that grow.

    bert-jax pretrain experiments/cramming.py --hours 24 --data.corpus pile
    bert-jax pretrain experiments/cramming.py:laptop --hours 0.1

Batches grow to 8,192 rows over the first 60 % of the run, here in four phases; dropout is 0, gradients are clipped at 0.5.
--hours measures a step of each phase, and all phases keep their shares.

Published, GLUE after a day on one GPU: MNLI 84.1/84.6, QQP 87.5, QNLI 90.2, SST-2 92.0, CoLA 53.3, STS-B 87.4, MRPC 88.9, RTE
58.5, average 80.7 (the best checkpoint). What differs: BERT's 12 layers instead of 16 pre-LN layers with GeGLU and no biases; the
peak of the triangle lies at a quarter of the run, our choice. Not run by us at this size.
"""

import bert_jax
from bert_jax import recipes


def config() -> bert_jax.Config:
    """Return the config; its number of steps is a guess that --hours replaces."""
    steps = 10_000
    return bert_jax.Config(
        run="runs/cramming",
        data=bert_jax.DataConfig("data/pile", sequence_length=128, batch_size=2048, pairs=False),
        model=bert_jax.ModelConfig.size(
            "base", vocab_size=32768, dtype="bfloat16", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        ),
        mask=bert_jax.MaskPolicy(rate=0.25, replace=(0.8, 0.1, 0.1)),
        optim=bert_jax.OptimConfig(
            name="adamw", peak_lr=1e-3, warmup_steps=steps // 4, decay="from_peak", b2=0.98, eps=1e-12, clip_norm=0.5, accumulate=16
        ),
        train=bert_jax.TrainConfig(steps=steps, eval_every=1_000, save_every=500),
        phases=tuple(
            bert_jax.Phase(steps * share // 100, batch_size=rows, accumulate=16)
            for share, rows in ((20, 4096), (40, 6144), (60, 8192))
        ),
    )


def laptop() -> bert_jax.Config:
    """Return the same methods at a size for two CPU cores."""
    return recipes.laptop(config())
