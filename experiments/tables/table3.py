"""Table 3 of the BERT paper: SQuAD 2.0 (section 4.3).

    bert-jax reproduce table3 --scale laptop --data data
    bert-jax reproduce table3 --scale full --data data

Full: the released BERT-Large is fine-tuned for 2 epochs of batches of 48 at 5e-5, with three seeds each. Each fine-tuning run
takes at most 1 hour on a Cloud TPU, or a few hours on a GPU (section 3 of the paper). A second row has BERT-Base: MultiBERTs
(Sellam et al. 2022) report exact match 72.2 and F1 75.4 of the released bert-base-uncased by their recipe, and for 25 models of 2
million steps 74.7 [74.1, 75.4] and 77.8 [77.3, 78.5]. Scores are those at the best threshold, as in the paper.

Small: BERT-Mini and BERT-Medium. Laptop: BERT-Tiny and BERT-Mini on rows of 256 tokens. These have no published values. None was
run by us: the checkpoints and SQuAD must be downloaded.
"""

from __future__ import annotations

import bert_jax
from bert_jax.recipes import Column, Inputs, Row, Table, sampling_band

PUBLISHED = {"BERT-Large": {"EM": 78.7, "F1": 81.9}, "BERT-Base": {"EM": 72.2, "F1": 75.4}}
EXAMPLES = 11873
ROWS = {
    "full": {"BERT-Large": ("uncased_L-24_H-1024_A-16", "large"), "BERT-Base": ("uncased_L-12_H-768_A-12", "base")},
    "small": {"BERT-Mini": ("uncased_L-4_H-256_A-4", "mini"), "BERT-Medium": ("uncased_L-8_H-512_A-8", "medium")},
    "laptop": {"BERT-Tiny": ("uncased_L-2_H-128_A-2", "tiny"), "BERT-Mini": ("uncased_L-4_H-256_A-4", "mini")},
}


def table(scale: str, inputs: Inputs) -> Table:
    """Return the recipes of the table."""
    squad = inputs.require(
        inputs.directory / "squad2", "Put train-v2.0.json and dev-v2.0.json of https://rajpurkar.github.io/SQuAD-explorer there."
    )
    full = scale == "full"
    config = bert_jax.FinetuneConfig(
        run="",
        task="squad2",
        init="",
        data=squad,
        task_data=bert_jax.TaskDataConfig(sequence_length=256 if scale == "laptop" else 384),
        model=bert_jax.ModelOverrides(dtype="float32" if scale == "laptop" else "bfloat16"),
        batch_size=48,
        epochs=2.0,
        learning_rates=(5e-5,) if full else (3e-4,),
    )
    rows = {}
    for name, (directory, size) in ROWS[scale].items():
        how = f"Download {directory} from https://github.com/google-research/bert and unpack it there."
        checkpoint = inputs.require(inputs.directory / directory, how)
        rows[name] = Row(checkpoint=checkpoint, size=bert_jax.ModelConfig.size(size), finetuning={"squad2": config})
    return Table(
        "Table 3 of Devlin et al. 2018, SQuAD 2.0, development set",
        rows,
        {
            "EM": Column("squad2", "best_exact", paper="EM" if full else None),
            "F1": Column("squad2", "best_f1", paper="F1" if full else None),
        },
        baseline=next(iter(rows)),
        published=PUBLISHED if full else {},
        # MultiBERTs' recipe for BERT-Base is another one.
        bands={"BERT-Large": {score: sampling_band(value, EXAMPLES) for score, value in PUBLISHED["BERT-Large"].items()}}
        if full
        else {},
        finetuning_seeds=3 if full else 1,
        excluded={
            "the test set": "it is not public.",
            "human, MIR-MRC, nlnet, unet, SLQA+": "not BERT.",
        },
    )
