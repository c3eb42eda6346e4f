"""BERT-Large with LAMB in two phases, as in NVIDIA's DeepLearningExamples (PyTorch).

    bert-jax pretrain experiments/nvidia_large.py --data.corpus wiki_books --mesh.fsdp 8
    bert-jax pretrain experiments/nvidia_large.py:laptop

Phase 1: 7,038 steps of 65,536 rows of 128 tokens at 6e-3, 28.43 % of them warm-up. Phase 2: 1,563 steps of 32,768 rows of 512
tokens at 4e-3, 12.8 % warm-up. The decay has a power of 0.5. Their 1.2 hours on 32 DGX A100 give a final loss of 1.2437 (1.265
with a standard deviation of 0.023 in the stability test), SQuAD 1.1 F1 90.68 ± .16, exact match 83.96 ± .27, MRPC 86.0 ± 1.2 and
SST-2 91.74 ± .45.

What differs: the moments are carried over in both, but their bias correction counts from 0 again in phase 2; and their data has
static masks. Micro-batches (accumulate) suit 64 devices. Not run by us at this size.
"""

import bert_jax
from bert_jax import recipes


def config() -> bert_jax.Config:
    """Return the config of both phases."""
    first, second = 7_038, 1_563
    return bert_jax.Config(
        run="runs/nvidia_large",
        # One example in a row.
        data=bert_jax.DataConfig("data/wiki_books", sequence_length=128, batch_size=65_536, packing=1),
        model=bert_jax.ModelConfig.size("large", dtype="bfloat16"),
        mask=bert_jax.MaskPolicy(rate=0.15, replace=(0.8, 0.1, 0.1)),
        optim=bert_jax.OptimConfig(
            name="lamb",
            peak_lr=6e-3,
            warmup_steps=round(0.2843 * first),
            decay="from_zero",
            decay_power=0.5,
            first_update=1,
            accumulate=32,
        ),
        train=bert_jax.TrainConfig(steps=first + second, eval_every=500, save_every=200),
        phases=(
            bert_jax.Phase(
                first, sequence_length=512, batch_size=32_768, accumulate=128, peak_lr=4e-3, warmup_steps=round(0.128 * second)
            ),
        ),
    )


def laptop() -> bert_jax.Config:
    """Return the same methods at a size for two CPU cores."""
    return recipes.laptop(config())
