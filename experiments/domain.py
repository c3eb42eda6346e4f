"""Pretraining BERT-Base further on text of another domain, with words of that domain in the vocabulary.

    bert-jax vocab domain.txt --extend data/uncased_L-12_H-768_A-12 --add 1000 --out data/domain_vocab
    bert-jax prepare domain.txt --vocab data/domain_vocab --out data/domain
    bert-jax pretrain experiments/domain.py
    bert-jax pretrain experiments/domain.py --init-vocab None --data.corpus data/domain_old_words     # without new words

The encoder and the heads for MLM and NSP start from the released model. Unused rows of its table are taken first; each new row
starts as the mean of those of the word's parts. With more new words than unused rows, set --model.vocab-size.

12,500 steps are those of Gururangan et al. (2020, section 3.2), who pretrain RoBERTa further on four domains and report higher
scores in their eight tasks; the other settings are ours. Not run by us at this size.
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
