"""Table 8 of the BERT paper: what replaces the selected tokens (appendix C.2).

    bert-jax reproduce table8 --scale laptop     # after: make runs/corpus runs/topics, and named entities in data
    bert-jax reproduce table8 --scale small --data data
    bert-jax reproduce table8 --scale full --data data

Rows are the shares of selected tokens that become [MASK], stay the same, or become a random token. Named entities are recognized
by fine-tuning, and by a BiLSTM on the concatenation of the last four layers, which are not trained. The paper prints development
scores; its base row differs from those of tables 5 and 7, so compare only within the table.

Full: six pretraining runs of BERT-Base. Small: 4 layers of 512 units on rows of 128 tokens. Neither was run by us. Laptop: 2 layers
of 128 units on Wikipedia lead sections; the topic of an article in place of MNLI, entities in tweets in place of CoNLL-2003, and a
learned sum of the layers in place of the last four.
"""

from __future__ import annotations

import dataclasses

import bert_jax
from bert_jax.recipes import Column, Inputs, Row, Table, sampling_band

# [MASK], same, random: MNLI and NER by fine-tuning, NER by features.
PAPER = {
    "80/10/10": {"MNLI": 84.2, "NER": 95.4, "NER, features": 94.9},
    "100/0/0": {"MNLI": 84.3, "NER": 94.9, "NER, features": 94.0},
    "80/0/20": {"MNLI": 84.1, "NER": 95.2, "NER, features": 94.6},
    "80/20/0": {"MNLI": 84.4, "NER": 95.2, "NER, features": 94.7},
    "0/20/80": {"MNLI": 83.7, "NER": 94.8, "NER, features": 94.6},
    "0/0/100": {"MNLI": 83.6, "NER": 94.9, "NER, features": 94.6},
}


def table(scale: str, inputs: Inputs) -> Table:
    """Return the recipes of the table."""
    base, tasks, columns = laptop(inputs) if scale == "laptop" else published(scale, inputs)
    rows = {}
    for name in PAPER:
        masked, same, random = (int(share) / 100 for share in name.split("/"))
        # The config's order is [MASK], random, same.
        policy = dataclasses.replace(base.mask, replace=(masked, random, same))
        rows[name] = Row(dataclasses.replace(base, mask=policy), finetuning=tasks)
    return Table(
        "Table 8 of Devlin et al. 2018, masking",
        rows,
        columns,
        baseline="80/10/10",
        published=PAPER,
        bands={row: {"MNLI": sampling_band(values["MNLI"], 9815)} for row, values in PAPER.items()} if scale == "full" else {},
        pretraining_seeds=1,
        finetuning_seeds=2 if scale == "laptop" else 5,
    )


def published(scale: str, inputs: Inputs) -> tuple[bert_jax.Config, dict[str, bert_jax.FinetuneConfig], dict[str, Column]]:
    """The paper's runs, or those of a smaller model on the same data."""
    corpus = inputs.require(
        inputs.directory / "wiki_books",
        "Prepare English Wikipedia and books there with `bert-jax prepare` and the vocabulary of bert-base-cased; "
        "docs/guides/data.md says how. BookCorpus is not distributed any more.",
    )
    glue = inputs.require(inputs.directory / "GLUE", "Download GLUE from https://gluebenchmark.com/tasks and unpack it there.")
    conll = inputs.require(
        inputs.directory / "conll2003",
        "Get the CoNLL-2003 task (https://www.clips.uantwerpen.be/conll2003/ner) and put its files there as train.txt and dev.txt.",
    )
    full = scale == "full"
    base = bert_jax.Config(
        run="",
        data=bert_jax.DataConfig(corpus, sequence_length=128, batch_size=256, packing=1 if full else 6),
        model=bert_jax.ModelConfig.size("base" if full else "small", vocab_size=28996, dtype="bfloat16"),
        mask=bert_jax.MaskPolicy(rate=0.15, replace=(0.8, 0.1, 0.1)),
        optim=bert_jax.OptimConfig(
            name="bert_adam", peak_lr=1e-4 if full else 5e-4, warmup_steps=10_000 if full else 2_500, decay="from_zero"
        ),
        train=bert_jax.TrainConfig(steps=1_000_000 if full else 125_000, eval_every=25_000, save_every=5_000),
        phases=(bert_jax.Phase(900_000, sequence_length=512),) if full else (),
    )
    rates = (5e-5, 4e-5, 3e-5, 2e-5) if full else (1e-4, 5e-5)
    mnli = bert_jax.FinetuneConfig(
        run="",
        task="mnli",
        init="",
        data=glue,
        task_data=bert_jax.TaskDataConfig(sequence_length=128),
        model=bert_jax.ModelOverrides(dtype="bfloat16"),
        batch_size=32,
        epochs=3.0,
        learning_rates=rates,
    )
    ner = dataclasses.replace(
        mnli, task="ner", data=conll, task_data=bert_jax.TaskDataConfig(sequence_length=128, context="document")
    )
    features = dataclasses.replace(
        ner,
        model=bert_jax.ModelOverrides(dtype="bfloat16", states="concat_last_four", lstm_layers=2),
        freeze_encoder=True,
        learning_rates=(1e-3,),
        epochs=10.0,
    )
    columns = {
        "MNLI": Column("mnli", "accuracy", paper="MNLI"),
        "NER": Column("ner", "f1", paper="NER"),
        "NER, features": Column("ner_features", "f1", paper="NER, features"),
    }
    return base, {"mnli": mnli, "ner": ner, "ner_features": features}, columns


def laptop(inputs: Inputs) -> tuple[bert_jax.Config, dict[str, bert_jax.FinetuneConfig], dict[str, Column]]:
    """Runs of minutes, with the settings of experiments/quickstart.py."""
    corpus = inputs.require("runs/corpus", "Run `make runs/corpus`, which downloads Wikipedia lead sections and prepares them.")
    topics = inputs.require("runs/topics", "Run `make runs/topics`, which writes tasks from Wikipedia lead sections.")
    entities = inputs.require(
        inputs.directory / "wnut16",
        "Get the entities in tweets of WNUT 2016 from https://github.com/aritter/twitter_nlp (data/annotated/wnut16/data) and put "
        "train and dev there as train.conll and dev.conll.",
    )
    base = bert_jax.Config(
        run="",
        data=bert_jax.DataConfig(corpus, sequence_length=64, batch_size=64),
        model=bert_jax.ModelConfig.size(
            "tiny",
            vocab_size=4096,
            max_position_embeddings=128,
            initializer_range=0.05,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        mask=bert_jax.MaskPolicy(rate=0.15, replace=(0.8, 0.1, 0.1)),
        optim=bert_jax.OptimConfig(name="adamw", peak_lr=2e-3, warmup_steps=50, decay="from_peak"),
        train=bert_jax.TrainConfig(steps=400, eval_every=400, save_every=400, keep=1, eval_batches=20),
    )
    topic = bert_jax.FinetuneConfig(
        run="",
        task="classify",
        init="",
        data=topics,
        task_data=bert_jax.TaskDataConfig(sequence_length=64),
        optim=bert_jax.OptimConfig(name="adamw", decay="from_peak"),
        batch_size=32,
        epochs=1.0,
        eval_every=1.0,
        learning_rates=(1e-3,),
    )
    ner = dataclasses.replace(
        topic,
        task="ner",
        data=entities,
        task_data=bert_jax.TaskDataConfig(sequence_length=64, context="sentence", scheme="loose"),
        epochs=12.0,
        eval_every=12.0,
    )
    features = dataclasses.replace(
        ner, model=bert_jax.ModelOverrides(states="sum_all", lstm_layers=1), freeze_encoder=True, learning_rates=(3e-3,)
    )
    columns = {
        "topics": Column("topics", "accuracy", paper="MNLI"),
        "entities": Column("ner", "f1", paper="NER"),
        "entities, features": Column("ner_features", "f1", paper="NER, features"),
    }
    return base, {"topics": topic, "ner": ner, "ner_features": features}, columns
