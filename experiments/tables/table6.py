"""Table 6 of the BERT paper: the size of the model (section 5.2).

    bert-jax reproduce table6 --scale laptop     # after: make runs/corpus runs/topics
    bert-jax reproduce table6 --scale small --data data
    bert-jax reproduce table6 --scale full --data data

Rows are layers / hidden size / attention heads. The first column is the perplexity of the masked tokens of held-out text.

Full: six pretraining runs of 1 million steps; BERT-Large took the authors 4 days on 64 TPU chips (appendix A.2). Scores are means
of five restarts. Small: a quarter of the width, on rows of 128 tokens. Neither was run by us. Laptop: 1 to 2 layers of 32 to 128
units on Wikipedia lead sections; the topic of an article in place of SST-2. Its rows are compared with the paper's smallest two and
BERT-Base.
"""

from __future__ import annotations

import dataclasses

import bert_jax
from bert_jax.recipes import Column, Inputs, Row, Table, sampling_band

PAPER = {
    "3/768/12": {"PPL": 5.84, "MNLI-m": 77.9, "MRPC": 79.8, "SST-2": 88.4},
    "6/768/3": {"PPL": 5.24, "MNLI-m": 80.6, "MRPC": 82.2, "SST-2": 90.7},
    "6/768/12": {"PPL": 4.68, "MNLI-m": 81.9, "MRPC": 84.8, "SST-2": 91.3},
    "12/768/12": {"PPL": 3.99, "MNLI-m": 84.4, "MRPC": 86.7, "SST-2": 92.9},
    "12/1024/16": {"PPL": 3.54, "MNLI-m": 85.7, "MRPC": 86.9, "SST-2": 93.3},
    "24/1024/16": {"PPL": 3.23, "MNLI-m": 86.6, "MRPC": 87.8, "SST-2": 93.7},
}
# The laptop's rows, and those of the paper with which they are compared.
LAPTOP = {"1/32/1": "3/768/12", "1/64/1": "6/768/12", "2/128/2": "12/768/12"}
# Examples of the development sets.
SIZES = {"MNLI-m": 9815, "MRPC": 408, "SST-2": 872}
TASKS = {"MNLI-m": "mnli", "MRPC": "mrpc", "SST-2": "sst2"}


def shape(name: str) -> dict[str, int]:
    """Return the fields of a size such as 12/768/12."""
    layers, hidden, heads = map(int, name.split("/"))
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
    }


def table(scale: str, inputs: Inputs) -> Table:
    """Return the recipes of the table."""
    perplexity = Column("pretraining", "perplexity", paper="PPL")
    if scale == "laptop":
        rows, columns = laptop(inputs)
        values = {name: PAPER[counterpart] for name, counterpart in LAPTOP.items()}
    else:
        rows, columns = published(scale, inputs)
        values = PAPER if scale == "full" else dict(zip(rows, PAPER.values(), strict=True))
    full = scale == "full"
    return Table(
        "Table 6 of Devlin et al. 2018, model size",
        rows,
        {"PPL": perplexity, **columns},
        baseline={"full": "12/768/12", "small": "12/192/12", "laptop": "2/128/2"}[scale],
        published=values,
        bands={row: {name: sampling_band(values[row][name], SIZES[name]) for name in SIZES} for row in rows} if full else {},
        pretraining_seeds=2 if scale == "laptop" else 1,
        finetuning_seeds=5 if full else 1,
    )


def published(scale: str, inputs: Inputs) -> tuple[dict[str, Row], dict[str, Column]]:
    """The paper's runs, or those of models with a quarter of the width."""
    corpus = inputs.require(
        inputs.directory / "wiki_books",
        "Prepare English Wikipedia and books there with `bert-jax prepare` and the vocabulary of bert-base-uncased; "
        "docs/guides/data.md says how. BookCorpus is not distributed any more.",
    )
    glue = inputs.require(inputs.directory / "GLUE", "Download GLUE from https://gluebenchmark.com/tasks and unpack it there.")
    full = scale == "full"
    base = bert_jax.Config(
        run="",
        data=bert_jax.DataConfig(corpus, sequence_length=128, batch_size=256, packing=1 if full else 6),
        model=bert_jax.ModelConfig(dtype="bfloat16"),
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
            data=glue,
            task_data=bert_jax.TaskDataConfig(sequence_length=128),
            model=bert_jax.ModelOverrides(dtype="bfloat16"),
            batch_size=32,
            epochs=3.0,
            learning_rates=(5e-5, 4e-5, 3e-5, 2e-5) if full else (1e-4, 5e-5),
        )
        for task in TASKS.values()
    }
    rows = {}
    for name in PAPER:
        fields = shape(name)
        if not full:
            fields |= {"hidden_size": fields["hidden_size"] // 4, "intermediate_size": fields["hidden_size"]}
        size = f"{fields['num_hidden_layers']}/{fields['hidden_size']}/{fields['num_attention_heads']}"
        rows[size] = Row(dataclasses.replace(base, model=dataclasses.replace(base.model, **fields)), finetuning=tasks)
    return rows, {name: Column(task, "accuracy", paper=name) for name, task in TASKS.items()}


def laptop(inputs: Inputs) -> tuple[dict[str, Row], dict[str, Column]]:
    """Runs of minutes, with the settings of experiments/quickstart.py."""
    corpus = inputs.require("runs/corpus", "Run `make runs/corpus`, which downloads Wikipedia lead sections and prepares them.")
    topics = inputs.require("runs/topics", "Run `make runs/topics`, which writes tasks from Wikipedia lead sections.")
    base = bert_jax.Config(
        run="",
        data=bert_jax.DataConfig(corpus, sequence_length=64, batch_size=64),
        model=bert_jax.ModelConfig(
            vocab_size=4096,
            max_position_embeddings=128,
            initializer_range=0.05,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        mask=bert_jax.MaskPolicy(rate=0.15, replace=(0.8, 0.1, 0.1)),
        optim=bert_jax.OptimConfig(name="adamw", peak_lr=2e-3, warmup_steps=50, decay="from_peak"),
        train=bert_jax.TrainConfig(steps=800, eval_every=800, save_every=800, keep=1, eval_batches=20),
    )
    task = bert_jax.FinetuneConfig(
        run="",
        task="classify",
        init="",
        data=topics,
        task_data=bert_jax.TaskDataConfig(sequence_length=64),
        optim=bert_jax.OptimConfig(name="adamw", decay="from_peak"),
        batch_size=32,
        epochs=2.0,
        eval_every=2.0,
        learning_rates=(1e-3,),
    )
    rows = {
        name: Row(dataclasses.replace(base, model=dataclasses.replace(base.model, **shape(name))), finetuning={"topics": task})
        for name in LAPTOP
    }
    return rows, {"topics": Column("topics", "accuracy", paper="SST-2")}
