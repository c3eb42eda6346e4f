"""A day's budget on one machine, after 24hBERT (Izsak et al. 2021): BERT-Large, 128 tokens, MLM alone, batches of 4,096.

    bert-jax pretrain experiments/twenty_four_hours.py --hours 24 --data.corpus wiki_books --mesh.fsdp 8
    bert-jax pretrain experiments/twenty_four_hours.py:laptop --hours 0.1

--hours measures a step, and gives the run as many steps as fit; the learning rate falls to 0 at the last of them, as with the
authors' schedule over time, but as a function of the step, so that the run can be interrupted and repeated.

Published, GLUE test after 24 hours on 8 GPUs of 12 GB: MNLI 84.4/83.8, QNLI 90.6, QQP 70.7, SST-2 93.0, CoLA 57.1, STS-B 82.0,
MRPC 87.5, RTE 57.7. What differs: their layers are pre-LN; here they are BERT's. Not run by us at this size.
"""

import bert_jax
from bert_jax import recipes


def config() -> bert_jax.Config:
    """Return the config; its number of steps is a guess that --hours replaces."""
    steps = 23_000
    return bert_jax.Config(
        run="runs/twenty_four_hours",
        data=bert_jax.DataConfig("data/wiki_books", sequence_length=128, batch_size=4096, pairs=False),
        model=bert_jax.ModelConfig.size("large", dtype="bfloat16"),
        mask=bert_jax.MaskPolicy(rate=0.15, replace=(0.8, 0.1, 0.1)),
        # They do not clip; a large norm has the same effect.
        optim=bert_jax.OptimConfig(
            name="adamw", peak_lr=1e-3, warmup_steps=steps * 6 // 100, decay="from_peak", b2=0.98, clip_norm=1e6, accumulate=16
        ),
        train=bert_jax.TrainConfig(steps=steps, eval_every=1_000, save_every=500),
    )


def laptop() -> bert_jax.Config:
    """Return the same methods at a size for two CPU cores."""
    return recipes.laptop(config())
