"""Multilingual BERT: one model for 104 languages, with exponentially smoothed shares of the languages.

    bert-jax prepare de=de.jsonl sw=sw.jsonl ... --smoothing 0.7 --language de=de,sw=sw,... --vocab vocab --out data/wiki_104
    bert-jax pretrain experiments/multilingual.py --mesh.fsdp 4
    bert-jax pretrain experiments/multilingual.py:laptop

The README of google-research/bert (multilingual.md): the share of a language is raised to the power of 0.7, for the vocabulary of
110,000 word pieces and for pretraining. Published, XNLI accuracy of the cased model, trained on translations (English, Chinese,
Spanish, German, Arabic, Urdu): 81.9, 76.6, 77.8, 75.9, 70.7, 61.6; zero-shot, uncased: 81.4, 63.8, 74.3, 70.5, 62.1, 58.3. The
schedule is not published; this is the paper's. Not run by us at this size.
"""

import bert_jax
from bert_jax import recipes


def config() -> bert_jax.Config:
    """Return the paper's schedule with the vocabulary of bert-base-multilingual-cased."""
    return bert_jax.Config(
        run="runs/multilingual",
        # The original has one example in a row.
        data=bert_jax.DataConfig("data/wiki_104", sequence_length=128, batch_size=256, packing=1),
        model=bert_jax.ModelConfig.size("base", vocab_size=119_547, dtype="bfloat16"),
        mask=bert_jax.MaskPolicy(rate=0.15, replace=(0.8, 0.1, 0.1)),
        optim=bert_jax.OptimConfig(name="bert_adam", peak_lr=1e-4, warmup_steps=10_000, decay="from_zero"),
        train=bert_jax.TrainConfig(steps=1_000_000, eval_every=25_000, save_every=5_000),
        phases=(bert_jax.Phase(900_000, sequence_length=512),),
    )


def laptop() -> bert_jax.Config:
    """Return the same methods at a size for two CPU cores."""
    return recipes.laptop(config())
