"""BERT-Base with a mask rate that falls from 30 % to 15 %, as in Ankner et al. (EACL 2024); for a TPU pod or a node of GPUs.

    bert-jax pretrain experiments/dynamic_masking.py --data.corpus c4
    bert-jax pretrain experiments/dynamic_masking.py --data.corpus c4 --run runs/fixed --mask.rate 0.15

Published results, means over three seeds (GLUE development score; MLM loss at 15 % in nats):

    fixed 15 %                                    83.83   1.59
    fixed 30 %                                    84.12   1.56
    30 % to 15 %, linear                          84.29   1.56
    30 % to 15 %, cosine                          84.27
    30 % to 15 %, one step                        84.23
    30 % to 15 %, loss on a 15 % subset           83.71
    15 % to 30 %, linear                          83.71

Not reproduced here: 275 million sequences of 128 tokens took the authors 10 hours on eight A100. Two settings are expressed
differently: their weight decay of 1e-5 per step at the peak is 0.02 times the learning rate here, and their learning rate ends at
1e-5 where this one ends at 0.
"""

import bert_jax


def config() -> bert_jax.Config:
    """Return the config of the linear schedule."""
    steps = 70_000
    return bert_jax.Config(
        run="runs/dynamic_masking",
        data=bert_jax.DataConfig(corpus="runs/c4", sequence_length=128, batch_size=4096, pairs=False),
        model=bert_jax.ModelConfig.size("base", dtype="bfloat16"),
        mask=bert_jax.MaskPolicy(rate="linear(0.3, 0.15)"),
        optim=bert_jax.OptimConfig(
            name="adamw", peak_lr=5e-4, warmup_steps=steps * 6 // 100, decay="from_peak", b2=0.98, weight_decay=0.02
        ),
        train=bert_jax.TrainConfig(steps=steps, eval_every=2000, save_every=2000),
    )
