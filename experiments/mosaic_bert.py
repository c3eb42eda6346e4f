"""MosaicBERT's data, masking and schedule on BERT-Base (Portes et al. 2023).

    bert-jax pretrain experiments/mosaic_bert.py --data.corpus c4 --mesh.fsdp 8
    bert-jax pretrain experiments/mosaic_bert.py --hours 4.6 --data.corpus c4
    bert-jax pretrain experiments/mosaic_bert.py:laptop

30 % of the tokens are masked in training, 15 % in evaluation; no NSP; 286.72 million rows of 128 tokens of C4. Published: GLUE
79.6 after 1.13 hours and 83.2 after 4.6 on 8 A100 (BERT-Base needs 11.5); after all 70,000 steps, means of five seeds: MNLI
84.95, QQP 90.29, QNLI 90.74, SST-2 92.46, CoLA 55.11, STS-B 89.27, MRPC 90.03, RTE 81.36, average 84.28.

What differs: BERT's layers instead of ALiBi and GeGLU. Their decoupled weight decay of 1e-5 a step at the peak is 0.02 times the
learning rate here; their rate ends at 2 % of the peak, here at 0. Not run by us at this size.
"""

import bert_jax
from bert_jax import recipes


def config() -> bert_jax.Config:
    """Return the config of 70,000 steps."""
    steps = 70_000
    return bert_jax.Config(
        run="runs/mosaic_bert",
        data=bert_jax.DataConfig("data/c4", sequence_length=128, batch_size=4096, pairs=False),
        model=bert_jax.ModelConfig.size("base", dtype="bfloat16", vocab_size=30528, attention_probs_dropout_prob=0.0),
        mask=bert_jax.MaskPolicy(rate=0.3),
        optim=bert_jax.OptimConfig(
            name="adamw", peak_lr=5e-4, warmup_steps=steps * 6 // 100, decay="from_peak", b2=0.98, weight_decay=0.02, accumulate=4
        ),
        train=bert_jax.TrainConfig(steps=steps, eval_every=2_000, save_every=1_000),
    )


def laptop() -> bert_jax.Config:
    """Return the same methods at a size for two CPU cores."""
    return recipes.laptop(config())
