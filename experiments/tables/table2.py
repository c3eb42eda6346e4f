"""Table 2 of the BERT paper: SQuAD 1.1 (section 4.2).

    bert-jax reproduce table2 --scale laptop --data data
    bert-jax reproduce table2 --scale full --data data

Full: the released BERT-Base and BERT-Large are fine-tuned for 3 epochs of batches of 32 at 5e-5, with three seeds. Each fine-
tuning run takes at most 1 hour on a Cloud TPU, or a few hours on a GPU (section 3 of the paper). A third row has the settings of
the original's README for a GPU of 12 GB: BERT-Base, 2 epochs of batches of 12 at 3e-5, F1 88.41 and exact match 81.25. Bands are
two sampling errors of the development set.

Small: BERT-Mini and BERT-Medium, which have no published values. Laptop: BERT-Tiny and BERT-Mini on rows of 256 tokens. None was
run by us: the checkpoints and SQuAD must be downloaded.
"""

from __future__ import annotations

import dataclasses

import bert_jax
from bert_jax.recipes import Column, Inputs, Row, Table, sampling_band

PUBLISHED = {
    "BERT-Base": {"EM": 80.8, "F1": 88.5},
    "BERT-Large": {"EM": 84.1, "F1": 90.9},
    "BERT-Base, batches of 12": {"EM": 81.25, "F1": 88.41},
}
EXAMPLES = 10570
ROWS = {
    "full": {"BERT-Base": ("uncased_L-12_H-768_A-12", "base"), "BERT-Large": ("uncased_L-24_H-1024_A-16", "large")},
    "small": {"BERT-Mini": ("uncased_L-4_H-256_A-4", "mini"), "BERT-Medium": ("uncased_L-8_H-512_A-8", "medium")},
    "laptop": {"BERT-Tiny": ("uncased_L-2_H-128_A-2", "tiny"), "BERT-Mini": ("uncased_L-4_H-256_A-4", "mini")},
}


def table(scale: str, inputs: Inputs) -> Table:
    """Return the recipes of the table."""
    squad = inputs.require(
        inputs.directory / "squad", "Put train-v1.1.json and dev-v1.1.json of https://rajpurkar.github.io/SQuAD-explorer there."
    )
    full = scale == "full"
    base = bert_jax.FinetuneConfig(
        run="",
        task="squad",
        init="",
        data=squad,
        task_data=bert_jax.TaskDataConfig(sequence_length=256 if scale == "laptop" else 384),
        model=bert_jax.ModelOverrides(dtype="float32" if scale == "laptop" else "bfloat16"),
        batch_size=32,
        epochs=3.0,
        learning_rates=(5e-5,) if full else (3e-4,),
    )

    def row(directory: str, size: str, config: bert_jax.FinetuneConfig = base) -> Row:
        how = f"Download {directory} from https://github.com/google-research/bert and unpack it there."
        checkpoint = inputs.require(inputs.directory / directory, how)
        return Row(checkpoint=checkpoint, size=bert_jax.ModelConfig.size(size), finetuning={"squad": config})

    rows = {name: row(*model) for name, model in ROWS[scale].items()}
    if full:
        small_batch = dataclasses.replace(base, batch_size=12, epochs=2.0, learning_rates=(3e-5,))
        rows["BERT-Base, batches of 12"] = row(*ROWS["full"]["BERT-Base"], small_batch)
    published = {name: PUBLISHED[name] for name in rows if name in PUBLISHED}
    return Table(
        "Table 2 of Devlin et al. 2018, SQuAD 1.1, development set",
        rows,
        {"EM": Column("squad", "exact", paper="EM" if full else None), "F1": Column("squad", "f1", paper="F1" if full else None)},
        baseline=next(iter(rows)),
        published=published,
        bands={
            name: {score: sampling_band(value, EXAMPLES) for score, value in scores.items()} for name, scores in published.items()
        },
        finetuning_seeds=3 if full else 1,
        excluded={
            "the test set": "it is not public.",
            "BERT-Large (Ensemble)": "its seven models have other pretraining checkpoints, of which one was released.",
            "BERT-Large + TriviaQA": "fine-tune on TriviaQA first, converted by its authors' script, and name that run as the "
            "checkpoint of a row in a copy of this file; there is no recipe for the paper's selection of TriviaQA's documents.",
            "human, nlnet, QANet, BiDAF+ELMo, R.M. Reader": "not BERT.",
        },
    )
