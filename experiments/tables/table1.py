"""Table 1 of the BERT paper: GLUE (section 4.1).

    bert-jax reproduce table1 --scale laptop --data data
    bert-jax reproduce table1 --scale full --data data

Full: the released BERT-Base and BERT-Large are fine-tuned with each of four learning rates, as in the paper: 3 epochs of batches
of 32, five seeds, the best learning rate chosen on the development set. The paper prints test scores, which only GLUE's server
computes (`bert-jax evaluate --split test --out` writes its files); the columns here are development scores, and no test score is
a band for them. A third row has settings for which development scores and their spread were published: BERT-Base, cased, batches
of 32, learning rate 2e-5, 3 epochs, five seeds, the README of transformers' examples/flax/text-classification. Its bands are two
standard deviations over its seeds, where these are published, and otherwise two sampling errors of the development set.

Small: BERT-Mini and BERT-Medium with the settings of the original's README. Laptop: BERT-Tiny and BERT-Mini on the four smaller
tasks; their published test scores are 0.0 and 0.0 (CoLA), 81.1 and 81.1 (MRPC F1), 73.6 and 73.3 (STS-B), 57.2 and 57.9 (RTE).

Each fine-tuning run takes at most 1 hour on a Cloud TPU, or a few hours on a GPU (section 3 of the paper). None was run by us:
the checkpoints and GLUE must be downloaded.
"""

from __future__ import annotations

import dataclasses

import bert_jax
from bert_jax.recipes import Column, Inputs, Row, Table, sampling_band

# The paper's table 1, and the original's README for the small models; STS-B by Spearman's correlation.
TEST = {
    "BERT-Base": {"MNLI-m": 84.6, "MNLI-mm": 83.4, "QQP": 71.2, "QNLI": 90.5, "SST-2": 93.5, "CoLA": 52.1, "STS-B": 85.8,
                  "MRPC": 88.9, "RTE": 66.4},
    "BERT-Large": {"MNLI-m": 86.7, "MNLI-mm": 85.9, "QQP": 72.1, "QNLI": 92.7, "SST-2": 94.9, "CoLA": 60.5, "STS-B": 86.5,
                   "MRPC": 89.3, "RTE": 70.1},
    "BERT-Tiny": {"MNLI-m": 70.2, "MNLI-mm": 70.3, "QQP": 62.2, "QNLI": 81.5, "SST-2": 83.2, "CoLA": 0.0, "STS-B": 73.6,
                  "MRPC": 81.1, "RTE": 57.2},
    "BERT-Mini": {"MNLI-m": 74.8, "MNLI-mm": 74.3, "QQP": 66.4, "QNLI": 84.1, "SST-2": 85.9, "CoLA": 0.0, "STS-B": 73.3,
                  "MRPC": 81.1, "RTE": 57.9},
    "BERT-Medium": {"MNLI-m": 80.0, "MNLI-mm": 79.1, "QQP": 69.6, "QNLI": 87.7, "SST-2": 89.6, "CoLA": 38.0, "STS-B": 78.4,
                    "MRPC": 86.6, "RTE": 62.2},
}  # fmt: skip
CASED = "BERT-Base, cased, 2e-5"
DEVELOPMENT = {
    "MNLI-m": 83.80,
    "QQP": 87.51,
    "QNLI": 90.82,
    "SST-2": 92.23,
    "CoLA": 59.04,
    "STS-B": 88.63,
    "MRPC": 88.97,
    "RTE": 64.76,
}
SPREAD = {"MNLI-m": 0.16, "SST-2": 0.57, "CoLA": 1.06}
# Examples of development sets whose score is an accuracy.
ACCURACIES = {"QNLI": 5463, "RTE": 277}

# Column -> task and score.
SCORES = {
    "MNLI-m": ("mnli", "accuracy"),
    "MNLI-mm": ("mnli", "dev_mismatched/accuracy"),
    "QQP": ("qqp", "f1"),
    "QNLI": ("qnli", "accuracy"),
    "SST-2": ("sst2", "accuracy"),
    "CoLA": ("cola", "matthews"),
    "STS-B": ("stsb", "spearman"),
    "MRPC": ("mrpc", "f1"),
    "RTE": ("rte", "accuracy"),
}
ROWS = {
    "full": {"BERT-Base": ("uncased_L-12_H-768_A-12", "base"), "BERT-Large": ("uncased_L-24_H-1024_A-16", "large")},
    "small": {"BERT-Mini": ("uncased_L-4_H-256_A-4", "mini"), "BERT-Medium": ("uncased_L-8_H-512_A-8", "medium")},
    "laptop": {"BERT-Tiny": ("uncased_L-2_H-128_A-2", "tiny"), "BERT-Mini": ("uncased_L-4_H-256_A-4", "mini")},
}
RATES = {"full": (5e-5, 4e-5, 3e-5, 2e-5), "small": (3e-4, 1e-4, 5e-5, 3e-5), "laptop": (3e-4, 1e-4)}
DOWNLOAD = "Download {} from https://github.com/google-research/bert and unpack it there."


def table(scale: str, inputs: Inputs) -> Table:
    """Return the recipes of the table."""
    glue = inputs.require(inputs.directory / "GLUE", "Download GLUE from https://gluebenchmark.com/tasks and unpack it there.")
    full = scale == "full"
    columns = {
        name: Column(task, score, paper=name)
        for name, (task, score) in SCORES.items()
        if scale != "laptop" or name in ("CoLA", "STS-B", "MRPC", "RTE")
    }
    tasks = {
        task: bert_jax.FinetuneConfig(
            run="",
            task=task,
            init="",
            data=glue,
            task_data=bert_jax.TaskDataConfig(sequence_length=128),
            model=bert_jax.ModelOverrides(dtype="float32" if scale == "laptop" else "bfloat16"),
            batch_size=32,
            epochs=3.0 if full else 4.0,
            learning_rates=RATES[scale],
        )
        for task in dict.fromkeys(column.run for column in columns.values())
    }

    def row(directory: str, size: str, **shape: int) -> Row:
        checkpoint = inputs.require(inputs.directory / directory, DOWNLOAD.format(directory))
        return Row(checkpoint=checkpoint, size=bert_jax.ModelConfig.size(size, **shape), finetuning=tasks)

    rows = {name: row(*model) for name, model in ROWS[scale].items()}
    published, bands = {name: TEST[name] for name in rows}, {}
    if full:
        fixed = {name: dataclasses.replace(task, learning_rates=(2e-5,)) for name, task in tasks.items()}
        rows[CASED] = dataclasses.replace(row("cased_L-12_H-768_A-12", "base", vocab_size=28996), finetuning=fixed)
        published[CASED] = DEVELOPMENT
        bands[CASED] = {name: (DEVELOPMENT[name] - 2 * spread, DEVELOPMENT[name] + 2 * spread) for name, spread in SPREAD.items()}
        bands[CASED] |= {name: sampling_band(DEVELOPMENT[name], examples) for name, examples in ACCURACIES.items()}
    return Table(
        "Table 1 of Devlin et al. 2018, GLUE (here: development sets)",
        rows,
        columns,
        baseline=next(iter(rows)),
        published=published,
        bands=bands,
        finetuning_seeds=5 if full else 1,
        excluded={
            "Pre-OpenAI SOTA, BiLSTM+ELMo+Attn, OpenAI GPT": "not BERT.",
            "the test sets": "only GLUE's server has their labels.",
            "WNLI": "the paper leaves it out.",
        },
    )
