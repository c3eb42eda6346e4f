"""Pretraining BERT-Base further on text of another domain, with words of that domain in the vocabulary.

    bert-jax vocab --extend uncased_L-12_H-768_A-12 ...     # docs/guides/data.md has the whole command
    bert-jax prepare biomedical.txt --vocab domain_vocab --out data/domain
    bert-jax pretrain experiments/domain.py
    bert-jax pretrain experiments/domain.py --init-vocab None      # the same without new words

The encoder and the heads for MLM and NSP start from the released model; unused rows of the table are taken first, and each new
row starts as the mean of the word's parts. Sources: BioBERT (Lee et al. 2020) goes on for 200,000 to 1 million steps with the old
vocabulary; don't stop pretraining (Gururangan et al. 2020) for 12,500 steps of 2,048 rows of 512 tokens at 5e-4, and gains 0.4 to
4.6 points F1 in its eight tasks with RoBERTa. The number of steps here is theirs; the rate is a fifth of it. Not run by us at
this size.
"""

import bert_jax


def config() -> bert_jax.Config:
    """Return the config."""
    return bert_jax.Config(
        run="runs/domain",
        data=bert_jax.DataConfig("data/domain", sequence_length=512, batch_size=2048),
        model=bert_jax.ModelConfig.size("base", dtype="bfloat16"),
        mask=bert_jax.MaskPolicy(rate=0.15, replace=(0.8, 0.1, 0.1)),
        optim=bert_jax.OptimConfig(name="adamw", peak_lr=1e-4, warmup_steps=750, decay="from_peak", accumulate=8),
        train=bert_jax.TrainConfig(steps=12_500, eval_every=500, save_every=500),
        init="data/uncased_L-12_H-768_A-12",
        init_vocab="data/domain_vocab",
    )
