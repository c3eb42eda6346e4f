"""BERT-Base with a masking rate that falls from 30 % to 15 %, as Ankner et al. (EACL 2024) trained it; for a pod or a node of GPUs.

    bert-jax pretrain experiments/dynamic_masking.py --data.corpus c4
    bert-jax pretrain experiments/dynamic_masking.py --data.corpus c4 --run runs/fixed --mask.rate 0.15

Their figures, means over three seeds (GLUE development, and the masked-word loss at 15 %): fixed 15 % 83.83 and 1.59 nats, fixed
30 % 84.12 and 1.56, 30 % to 15 % 84.29 and 1.56; 15 % to 30 % 83.71, 30 % to 15 % with the loss on a 15 % subset 83.71, by cosine
84.27, in one step 84.23. Not run by us: 275 million sequences of 128 took them 10 hours on eight A100. Their weight decay of 1e-5
a step at the peak is 0.02 times our rate there, and their rate ends at 1e-5 where ours ends at 0.
"""

import bert_jax


def config() -> bert_jax.Config:
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
