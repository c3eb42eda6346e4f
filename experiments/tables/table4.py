"""Table 4 of the BERT paper: SWAG (section 4.4).

    bert-jax reproduce table4 --scale laptop --data data
    bert-jax reproduce table4 --scale full --data data

Full: the released BERT-Base and BERT-Large are fine-tuned for 3 epochs of batches of 16 at 2e-5, with three seeds. Each fine-
tuning run takes at most 1 hour on a Cloud TPU, or a few hours on a GPU (section 3 of the paper). Bands are two sampling errors of
the development set. Small: BERT-Mini and BERT-Medium; laptop: BERT-Tiny and BERT-Mini on rows of 64 tokens; these have no
published values. None was run by us: the checkpoints and SWAG must be downloaded.
"""

from __future__ import annotations

import bert_jax
from bert_jax.recipes import Column, Inputs, Row, Table, sampling_band

PUBLISHED = {"BERT-Base": {"Dev": 81.6}, "BERT-Large": {"Dev": 86.6}}
EXAMPLES = 20006
ROWS = {
    "full": {"BERT-Base": ("uncased_L-12_H-768_A-12", "base"), "BERT-Large": ("uncased_L-24_H-1024_A-16", "large")},
    "small": {"BERT-Mini": ("uncased_L-4_H-256_A-4", "mini"), "BERT-Medium": ("uncased_L-8_H-512_A-8", "medium")},
    "laptop": {"BERT-Tiny": ("uncased_L-2_H-128_A-2", "tiny"), "BERT-Mini": ("uncased_L-4_H-256_A-4", "mini")},
}


def table(scale: str, inputs: Inputs) -> Table:
    """Return the recipes of the table."""
    swag = inputs.require(
        inputs.directory / "swag", "Put train.csv and val.csv of https://github.com/rowanz/swagaf (folder data) there."
    )
    full = scale == "full"
    config = bert_jax.FinetuneConfig(
        run="",
        task="swag",
        init="",
        data=swag,
        task_data=bert_jax.TaskDataConfig(sequence_length=64 if scale == "laptop" else 128),
        model=bert_jax.ModelOverrides(dtype="float32" if scale == "laptop" else "bfloat16"),
        batch_size=16,
        epochs=3.0,
        learning_rates=(2e-5,) if full else (1e-4,),
    )
    rows = {}
    for name, (directory, size) in ROWS[scale].items():
        how = f"Download {directory} from https://github.com/google-research/bert and unpack it there."
        checkpoint = inputs.require(inputs.directory / directory, how)
        rows[name] = Row(checkpoint=checkpoint, size=bert_jax.ModelConfig.size(size), finetuning={"swag": config})
    return Table(
        "Table 4 of Devlin et al. 2018, SWAG, development set",
        rows,
        {"Dev": Column("swag", "accuracy", paper="Dev" if full else None)},
        baseline=next(iter(rows)),
        published=PUBLISHED if full else {},
        bands={name: {"Dev": sampling_band(scores["Dev"], EXAMPLES)} for name, scores in PUBLISHED.items()} if full else {},
        finetuning_seeds=3 if full else 1,
        excluded={
            "the test set": "its labels are not public.",
            "ESIM+GloVe, ESIM+ELMo, OpenAI GPT, human": "not BERT.",
        },
    )
