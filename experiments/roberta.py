"""RoBERTa's input and masking on BERT-Base: full sentences without NSP, masks drawn anew, batches of 8,192 (Liu et al. 2019).

    bert-jax pretrain experiments/roberta.py --data.corpus wiki_books --mesh.fsdp 8
    bert-jax pretrain experiments/roberta.py:laptop

Their ablation of batches (table 3: rows, steps, peak; perplexity, MNLI, SST-2, with the data of BERT):

    256    1,000,000   1e-4   3.99   84.7   92.7
    2,000    125,000   7e-4   3.68   85.2   92.9
    8,000     31,000   1e-3   3.77   84.6   92.8

Their tables 1 and 2: static masks 84.3 and dynamic ones 84.0 in MNLI, 78.3 and 78.7 in SQuAD 2.0 F1; sentence pairs with NSP 82.9,
segment pairs with NSP 84.0, full sentences 84.7, sentences of one document 84.7 in MNLI. Here every row is text of one document.

What differs: BERT's vocabulary instead of byte-level BPE, as in their own ablations before the last. Not run by us at this size.
"""

import bert_jax
from bert_jax import recipes


def config() -> bert_jax.Config:
    """Return the run of table 3 with the best perplexity."""
    return bert_jax.Config(
        run="runs/roberta",
        data=bert_jax.DataConfig("data/wiki_books", sequence_length=512, batch_size=2048, pairs=False),
        model=bert_jax.ModelConfig.size("base", dtype="bfloat16"),
        mask=bert_jax.MaskPolicy(rate=0.15, replace=(0.8, 0.1, 0.1)),
        # Sections 3.1 and 5: b2 .98, warm-up of 24,000 of 500,000 steps; no clipping, as far as a large norm can express it.
        optim=bert_jax.OptimConfig(
            name="adamw", peak_lr=7e-4, warmup_steps=6_000, decay="from_peak", b2=0.98, clip_norm=1e6, accumulate=8
        ),
        train=bert_jax.TrainConfig(steps=125_000, eval_every=5_000, save_every=1_000),
    )


def laptop() -> bert_jax.Config:
    """Return the same methods at a size for two CPU cores."""
    return recipes.laptop(config())
