"""Table 5 of the BERT paper: what next sentence prediction and attention in both directions contribute (section 5.1).

    bert-jax reproduce table5 --scale laptop     # after: make runs/corpus runs/topics
    bert-jax reproduce table5 --scale small --data data
    bert-jax reproduce table5 --scale full --data data

All rows have the same text, steps and fine-tuning; "no NSP" has contiguous text and no NSP loss; "LTR & no NSP" attends to the left
and predicts the next token, also in fine-tuning; the last row adds a BiLSTM for fine-tuning.

Full: three pretraining runs of BERT-Base, each of which took the authors 4 days on 16 TPU chips (appendix A.2), and twenty
fine-tuning runs. Small: a model of 4 layers and 512 units on rows of 128 tokens. Neither was run by us. Laptop: 2 layers and 64
units on Wikipedia lead sections, so small that 3,000 steps take minutes, and two seeds of fine-tuning; the tasks are the topic of
an article in place of SST-2, whether a description fits an article in place of QNLI, and the punctuation of a text without any in
place of SQuAD, as the task in which each token needs both sides.

The QNLI column of the paper is older than GLUE's present QNLI. Bands are sampling errors of the development sets.
"""

from __future__ import annotations

import dataclasses

import bert_jax
from bert_jax.recipes import Column, Inputs, Row, Table, sampling_band

ROWS = ("BERT-Base", "no NSP", "LTR & no NSP", "LTR & no NSP + BiLSTM")
PUBLISHED = {
    "BERT-Base": {"MNLI-m": 84.4, "QNLI": 88.4, "MRPC": 86.7, "SST-2": 92.7, "SQuAD F1": 88.5},
    "no NSP": {"MNLI-m": 83.9, "QNLI": 84.9, "MRPC": 86.5, "SST-2": 92.6, "SQuAD F1": 87.9},
    "LTR & no NSP": {"MNLI-m": 82.1, "QNLI": 84.3, "MRPC": 77.5, "SST-2": 92.1, "SQuAD F1": 77.8},
    "LTR & no NSP + BiLSTM": {"MNLI-m": 82.1, "QNLI": 84.1, "MRPC": 75.7, "SST-2": 91.6, "SQuAD F1": 84.9},
}
# Examples of the development sets.
SIZES = {"MNLI-m": 9815, "QNLI": 5463, "MRPC": 408, "SST-2": 872, "SQuAD F1": 10570}
TASKS = {"MNLI-m": "mnli", "QNLI": "qnli", "MRPC": "mrpc", "SST-2": "sst2", "SQuAD F1": "squad"}


def table(scale: str, inputs: Inputs) -> Table:
    """Return the recipes of the table."""
    rows, columns = laptop(inputs) if scale == "laptop" else published(scale, inputs)
    return Table(
        "Table 5 of Devlin et al. 2018, pretraining tasks",
        rows,
        columns,
        baseline="BERT-Base",
        published=PUBLISHED,
        bands={row: {name: sampling_band(value, SIZES[name]) for name, value in PUBLISHED[row].items()} for row in ROWS}
        if scale == "full"
        else {},
        finetuning_seeds=2 if scale == "laptop" else 1,
    )


def ablations(base: bert_jax.Config, tasks: dict[str, bert_jax.FinetuneConfig]) -> dict[str, Row]:
    """The four rows, which differ from the first one only in what they study."""
    no_nsp = dataclasses.replace(base, data=dataclasses.replace(base.data, pairs=False))
    left_to_right = dataclasses.replace(
        no_nsp, model=dataclasses.replace(base.model, causal=True), mask=dataclasses.replace(base.mask, select="next")
    )
    with_lstm = {
        name: dataclasses.replace(config, model=dataclasses.replace(config.model, lstm_layers=1)) for name, config in tasks.items()
    }
    return dict(
        zip(ROWS, (Row(base, finetuning=tasks), Row(no_nsp, finetuning=tasks), Row(left_to_right, finetuning=tasks),
                   Row(left_to_right, finetuning=with_lstm)), strict=True)
    )  # fmt: skip


def published(scale: str, inputs: Inputs) -> tuple[dict[str, Row], dict[str, Column]]:
    """The paper's runs, or those of a smaller model on the same data."""
    corpus = inputs.require(
        inputs.directory / "wiki_books",
        "Prepare English Wikipedia and books there with `bert-jax prepare` and the vocabulary of bert-base-uncased; "
        "docs/guides/data.md says how. BookCorpus is not distributed any more.",
    )
    glue = inputs.require(inputs.directory / "GLUE", "Download GLUE from https://gluebenchmark.com/tasks and unpack it there.")
    squad = inputs.require(
        inputs.directory / "squad", "Put train-v1.1.json and dev-v1.1.json of https://rajpurkar.github.io/SQuAD-explorer there."
    )
    full = scale == "full"
    base = bert_jax.Config(
        run="",
        data=bert_jax.DataConfig(corpus, sequence_length=128, batch_size=256, packing=1 if full else 6),
        model=bert_jax.ModelConfig.size("base" if full else "small", dtype="bfloat16"),
        mask=bert_jax.MaskPolicy(rate=0.15, replace=(0.8, 0.1, 0.1)),
        optim=bert_jax.OptimConfig(
            name="bert_adam", peak_lr=1e-4 if full else 5e-4, warmup_steps=10_000 if full else 2_500, decay="from_zero"
        ),
        train=bert_jax.TrainConfig(steps=1_000_000 if full else 125_000, eval_every=25_000, save_every=5_000),
        phases=(bert_jax.Phase(900_000, sequence_length=512),) if full else (),
    )
    tasks = {
        task: bert_jax.FinetuneConfig(
            run="",
            task=task,
            init="",
            data=squad if task == "squad" else glue,
            task_data=bert_jax.TaskDataConfig(sequence_length=384 if task == "squad" else 128),
            model=bert_jax.ModelOverrides(dtype="bfloat16"),
            batch_size=32,
            epochs=3.0,
            learning_rates=(5e-5, 4e-5, 3e-5, 2e-5) if full else (1e-4, 5e-5),
        )
        for task in TASKS.values()
    }
    columns = {name: Column(task, "f1" if task == "squad" else "accuracy", paper=name) for name, task in TASKS.items()}
    return ablations(base, tasks), columns


def laptop(inputs: Inputs) -> tuple[dict[str, Row], dict[str, Column]]:
    """Runs of minutes, with the settings of experiments/quickstart.py."""
    corpus = inputs.require("runs/corpus", "Run `make runs/corpus`, which downloads Wikipedia lead sections and prepares them.")
    topics = inputs.require("runs/topics", "Run `make runs/topics`, which writes tasks from Wikipedia lead sections.")
    base = bert_jax.Config(
        run="",
        data=bert_jax.DataConfig(corpus, sequence_length=64, batch_size=64),
        model=bert_jax.ModelConfig.size(
            "tiny",
            vocab_size=4096,
            hidden_size=64,
            intermediate_size=256,
            max_position_embeddings=128,
            initializer_range=0.05,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        mask=bert_jax.MaskPolicy(rate=0.15, replace=(0.8, 0.1, 0.1)),
        optim=bert_jax.OptimConfig(name="adamw", peak_lr=2e-3, warmup_steps=50, decay="from_peak"),
        train=bert_jax.TrainConfig(steps=3000, eval_every=3000, save_every=1000, keep=1, eval_batches=20),
    )
    tasks = {
        name: bert_jax.FinetuneConfig(
            run="",
            task="classify",
            init="",
            data=data,
            task_data=bert_jax.TaskDataConfig(sequence_length=64),
            optim=bert_jax.OptimConfig(name="adamw", decay="from_peak"),
            batch_size=32,
            epochs=2.0,
            eval_every=2.0,
            learning_rates=(1e-3,),
        )
        for name, data in {"topics": topics, "descriptions": f"{topics}/descriptions"}.items()
    }
    tasks["punctuation"] = dataclasses.replace(
        tasks["topics"],
        task="ner",
        data=f"{topics}/punctuation",
        task_data=bert_jax.TaskDataConfig(sequence_length=64, context="sentence", scheme="loose"),
        epochs=1.0,
        eval_every=1.0,
    )
    columns = {
        "topics": Column("topics", "accuracy", paper="SST-2"),
        "descriptions": Column("descriptions", "accuracy", paper="QNLI"),
        "punctuation": Column("punctuation", "f1", paper="SQuAD F1"),
    }
    return ablations(base, tasks), columns
