"""BERT-Large in two phases, as in the paper (Devlin et al. 2018, appendix A.2).

    bert-jax pretrain experiments/bert_large.py --data.corpus wiki_books --mesh.fsdp 4
    bert-jax pretrain experiments/bert_large.py:laptop

As bert_base.py with 24 layers of 1,024 units; it took the authors 4 days on 64 TPU chips. Published: MNLI 86.6, MRPC 87.8, SST-2
93.7 and perplexity 3.23 (table 6), SQuAD 1.1 F1 90.9 (table 2), on development sets. Not run by us at this size.
"""

import bert_jax
from bert_jax import recipes


def config() -> bert_jax.Config:
    """Return the paper's config."""
    return bert_jax.Config(
        run="runs/bert_large",
        # The original has one example in a row.
        data=bert_jax.DataConfig("data/wiki_books", sequence_length=128, batch_size=256, packing=1),
        model=bert_jax.ModelConfig.size("large", dtype="bfloat16"),
        mask=bert_jax.MaskPolicy(rate=0.15, replace=(0.8, 0.1, 0.1)),
        optim=bert_jax.OptimConfig(name="bert_adam", peak_lr=1e-4, warmup_steps=10_000, decay="from_zero"),
        train=bert_jax.TrainConfig(steps=1_000_000, eval_every=25_000, save_every=5_000),
        phases=(bert_jax.Phase(900_000, sequence_length=512),),
    )


def laptop() -> bert_jax.Config:
    """Return the same methods at a size for two CPU cores."""
    return recipes.laptop(config())
