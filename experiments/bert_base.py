"""BERT-Base in two phases, as in the paper (Devlin et al. 2018, appendix A.2).

    bert-jax pretrain experiments/bert_base.py --data.corpus wiki_books
    bert-jax pretrain experiments/bert_base.py:laptop

256 rows for 1 million steps: 128 tokens for 900,000 steps, then 512. It took the authors 4 days on 16 TPU chips. The corpus is
English Wikipedia and BookCorpus, which is not distributed any more. One command trains both phases, and resumes in either.

Published: MNLI 84.4, SST-2 92.7, SQuAD 1.1 F1 88.5 on development sets (table 5), perplexity 3.99 (table 6). MultiBERTs (Sellam
et al. 2022), 25 seeds of 2 million steps of 512 tokens: SQuAD 2.0 F1 77.8 [77.3, 78.5]. `bert-jax reproduce table5 --scale full`
scores it. Not run by us at this size.
"""

import bert_jax
from bert_jax import recipes


def config() -> bert_jax.Config:
    """Return the paper's config."""
    return bert_jax.Config(
        run="runs/bert_base",
        # The original has one example in a row.
        data=bert_jax.DataConfig("data/wiki_books", sequence_length=128, batch_size=256, packing=1),
        model=bert_jax.ModelConfig.size("base", dtype="bfloat16"),
        mask=bert_jax.MaskPolicy(rate=0.15, replace=(0.8, 0.1, 0.1)),
        optim=bert_jax.OptimConfig(name="bert_adam", peak_lr=1e-4, warmup_steps=10_000, decay="from_zero"),
        train=bert_jax.TrainConfig(steps=1_000_000, eval_every=25_000, save_every=5_000),
        phases=(bert_jax.Phase(900_000, sequence_length=512),),
    )


def laptop() -> bert_jax.Config:
    """Return the same methods at a size for two CPU cores."""
    return recipes.laptop(config())
