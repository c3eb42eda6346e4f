"""Table 7 of the BERT paper: named entities of CoNLL-2003, by fine-tuning and by features (section 5.3).

    bert-jax reproduce table7 --scale laptop     # after: make runs/corpus, and named entities in data
    bert-jax reproduce table7 --scale small --data data
    bert-jax reproduce table7 --scale full --data data

Fine-tuning: cased models, windows that are filled from the document, a linear layer on the first sub-token of each word, no CRF.
Features: two layers of a BiLSTM on hidden states of BERT-Base, which is not trained. Scores are entity F1 on the development set,
means of five seeds in the paper and here. The paper does not state the learning rates of this table; those of its appendix A.3
are tried.

Full: the released models. Small: BERT-Base alone with one seed, and two of the feature-based rows. Neither was run by us: the
checkpoints and CoNLL-2003 must be obtained. Laptop: a model of 4 layers and 128 units, pretrained for 800 steps, and entities in
tweets.
"""

from __future__ import annotations

import dataclasses

import bert_jax
from bert_jax.recipes import Column, Inputs, Row, Table

PUBLISHED = {
    "BERT-Large, fine-tuned": {"Dev F1": 96.6},
    "BERT-Base, fine-tuned": {"Dev F1": 96.4},
    "features: embeddings": {"Dev F1": 91.0},
    "features: second to last": {"Dev F1": 95.6},
    "features: last": {"Dev F1": 94.9},
    "features: weighted sum of the last four": {"Dev F1": 95.9},
    "features: last four concatenated": {"Dev F1": 96.1},
    "features: weighted sum of all": {"Dev F1": 95.5},
}
STATES = {
    "features: embeddings": "embeddings",
    "features: second to last": "second_to_last",
    "features: last": "last",
    "features: weighted sum of the last four": "sum_last_four",
    "features: last four concatenated": "concat_last_four",
    "features: weighted sum of all": "sum_all",
}
FINE_TUNED = "BERT-Base, fine-tuned"


def table(scale: str, inputs: Inputs) -> Table:
    """Return the recipes of the table."""
    rows = laptop(inputs) if scale == "laptop" else published(scale, inputs)
    return Table(
        "Table 7 of Devlin et al. 2018, named entities of CoNLL-2003, development set",
        rows,
        {"entities" if scale == "laptop" else "Dev F1": Column("ner", "f1", paper="Dev F1")},
        baseline=FINE_TUNED,
        published={name: PUBLISHED[name] for name in rows},
        finetuning_seeds={"full": 5, "small": 1, "laptop": 2}[scale],
        excluded={
            "Test F1": "`bert-jax evaluate RUN --split test` scores a fine-tuned run; a table shows development scores only.",
            "ELMo, CVT, CSE": "not BERT.",
        },
    )


def feature_based(config: bert_jax.FinetuneConfig, states: str, *, layers: int, **changes: object) -> bert_jax.FinetuneConfig:
    """A run that trains a BiLSTM on hidden states of the encoder, instead of the encoder."""
    model = dataclasses.replace(config.model, states=states, lstm_layers=layers)
    return dataclasses.replace(config, model=model, freeze_encoder=True, **changes)


def published(scale: str, inputs: Inputs) -> dict[str, Row]:
    """The paper's runs, or some of them."""
    conll = inputs.require(
        inputs.directory / "conll2003",
        "Get the CoNLL-2003 task (https://www.clips.uantwerpen.be/conll2003/ner) and put its files there as train.txt and dev.txt.",
    )
    full = scale == "full"
    tuned = bert_jax.FinetuneConfig(
        run="",
        task="ner",
        init="",
        data=conll,
        task_data=bert_jax.TaskDataConfig(sequence_length=512 if full else 128, context="document"),
        model=bert_jax.ModelOverrides(dtype="bfloat16"),
        batch_size=32,
        epochs=4.0,
        learning_rates=(5e-5, 3e-5, 2e-5) if full else (5e-5,),
    )

    def row(directory: str, size: str, config: bert_jax.FinetuneConfig) -> Row:
        how = f"Download {directory} from https://github.com/google-research/bert and unpack it there."
        checkpoint = inputs.require(inputs.directory / directory, how)
        return Row(checkpoint=checkpoint, size=bert_jax.ModelConfig.size(size, vocab_size=28996), finetuning={"ner": config})

    base = ("cased_L-12_H-768_A-12", "base")
    rows = {"BERT-Large, fine-tuned": row("cased_L-24_H-1024_A-16", "large", tuned)} if full else {}
    rows[FINE_TUNED] = row(*base, tuned)
    for name, states in STATES.items():
        if full or states in ("last", "concat_last_four"):
            rows[name] = row(*base, feature_based(tuned, states, layers=2, epochs=10.0, learning_rates=(1e-3,)))
    return rows


def laptop(inputs: Inputs) -> dict[str, Row]:
    """Runs of minutes; all rows share one pretrained model."""
    corpus = inputs.require("runs/corpus", "Run `make runs/corpus`, which downloads Wikipedia lead sections and prepares them.")
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
            num_hidden_layers=4,
            vocab_size=4096,
            max_position_embeddings=128,
            initializer_range=0.05,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        optim=bert_jax.OptimConfig(name="adamw", peak_lr=2e-3, warmup_steps=50, decay="from_peak"),
        train=bert_jax.TrainConfig(steps=800, eval_every=800, save_every=800, keep=1, eval_batches=20),
    )
    tuned = bert_jax.FinetuneConfig(
        run="",
        task="ner",
        init="",
        data=entities,
        task_data=bert_jax.TaskDataConfig(sequence_length=64, context="sentence", scheme="loose"),
        optim=bert_jax.OptimConfig(name="adamw", decay="from_peak"),
        batch_size=32,
        epochs=10.0,
        eval_every=10.0,
        learning_rates=(1e-3,),
    )
    rows = {FINE_TUNED: Row(base, finetuning={"ner": tuned})}
    return rows | {
        name: Row(base, finetuning={"ner": feature_based(tuned, states, layers=1, learning_rates=(3e-3,))})
        for name, states in STATES.items()
    }
