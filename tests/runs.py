"""Small tasks, models and runs that tests share."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import random

import jax
import numpy as np
import pytest
from etils import epath
from matplotlib.figure import Figure

import bert_jax
from bert_jax import sharding
from bert_jax.config.finetuning import FinetuneConfig, ModelOverrides, TaskDataConfig
from bert_jax.config.optimizer import OptimConfig
from bert_jax.inference.bert import Bert
from bert_jax.models.heads import init_params
from bert_jax.training import scoring, trainer
from bert_jax.training.logging import read_metrics
from tests.conftest import MODEL

WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "hotel", "india", "juliett", "kilo", "lima")
KEY = "golf"
"""The word that decides the labels of the made-up tasks; other texts do not contain it."""
TASK_DATA = TaskDataConfig(sequence_length=24, packing=1, doc_stride=8, max_query_length=4)


def made_up(rng, *, key=None, low=3, high=9):
    """Words of a text; ``key`` is the number of keys among them, by default 0 or 1 at random."""
    words = rng.choices(WORDS, k=rng.randint(low, high))
    for place in rng.sample(range(len(words)), rng.randrange(2) if key is None else key):
        words[place] = KEY
    return words


def write_table(path, header, rows, *, named=True):
    lines = ["\t".join(map(str, row)) for row in ([header] if named else []) + rows]
    path.write_text("\n".join(lines) + "\n")


def classes(rng, count, **how):
    return [("yes" if KEY in words else "no", " ".join(words)) for words in (made_up(rng, **how) for _ in range(count))]


def write_classify(directory, sizes, rng, **how):
    for split, count in sizes.items():
        write_table(directory / f"{split}.tsv", ("label", "text"), classes(rng, count, **how))


def write_regress(directory, sizes, rng):
    for split, count in sizes.items():
        texts = [made_up(rng, key=rng.randrange(5), low=5) for _ in range(count)]
        rows = [(words.count(KEY) / len(words), " ".join(words)) for words in texts]
        write_table(directory / f"{split}.tsv", ("label", "text"), rows)


def write_multilabel(directory, sizes, rng):
    """A text has the labels "golf" and "india" if it contains these words; many texts have none or both."""
    for split, count in sizes.items():
        with open(directory / f"{split}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("label", "text"))
            for _ in range(count):
                words = made_up(rng, key=int(rng.randrange(3) == 0))
                labels = [label for label in (KEY, "india") if label in words]
                writer.writerow((", ".join(labels), " ".join(words)))


def write_pairs(directory, sizes, rng):
    for split, count in sizes.items():
        with open(directory / f"{split}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "text_b", "label"))
            for _ in range(count):
                first, second = " ".join(made_up(rng)), " ".join(made_up(rng))
                second = first if rng.randrange(2) else second
                writer.writerow((first, second, "same" if first == second else "different"))


def write_tags(directory, sizes, rng, tag):
    """Documents of up to thirty words, which do not fit into a window."""
    for split, count in sizes.items():
        lines = []
        for _ in range(count):
            lines += ["-DOCSTART- O", ""]
            for _ in range(rng.randint(1, 4)):
                lines += [f"{word} {tag(word)}" for word in made_up(rng)] + [""]
        (directory / f"{split}.txt").write_text("\n".join(lines))


def write_squad(directory, sizes, rng, *, version="1.1"):
    """The answer is the key; in version 2.0 a third of the contexts lack it. Some contexts are longer than a window."""
    for split, count in sizes.items():
        paragraphs = []
        for number in range(count):
            possible = version == "1.1" or number % 3 > 0
            words = made_up(rng, key=1, low=10, high=25)
            context = " ".join(words if possible else [word.replace(KEY, WORDS[0]) for word in words])
            answers = [{"text": KEY, "answer_start": context.index(KEY)}] if possible else []
            question = {"id": f"{split}-{number}", "question": KEY, "answers": answers}
            if version == "2.0":
                question["is_impossible"] = not possible
            paragraphs.append({"context": context, "qas": [question]})
        content = {"version": version, "data": [{"title": split, "paragraphs": paragraphs}]}
        (directory / f"{split}-v{version}.json").write_text(json.dumps(content))


def write_swag(directory, sizes, rng):
    """The right one of three endings contains the key."""
    for split, count in sizes.items():
        with open(directory / f"{'val' if split == 'dev' else split}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("", "sent1", "sent2", "ending0", "ending1", "ending2", "label"))
            for number in range(count):
                right = rng.randrange(3)
                endings = [" ".join(made_up(rng, key=int(place == right), high=5)) for place in range(3)]
                writer.writerow((f"q{number}", " ".join(made_up(rng, key=0, high=5)), rng.choice(WORDS), *endings, right))


def write_cola(directory, sizes, rng):
    (directory / "CoLA").mkdir()
    for split, count in sizes.items():
        found = classes(rng, count)
        if split == "test":
            rows = [(number + 100, text) for number, (_, text) in enumerate(found)]
            write_table(directory / "CoLA" / "test.tsv", ("index", "sentence"), rows)
        else:
            rows = [("gj04", int(label == "yes"), "", text) for label, text in found]
            write_table(directory / "CoLA" / f"{split}.tsv", (), rows, named=False)


def entailment_rows(rng, count):
    """Premise, hypothesis and label: the key in both is an entailment, in the premise only a contradiction."""
    rows = []
    for _ in range(count):
        kind = rng.randrange(3)
        first, second = made_up(rng, key=int(kind < 2), high=5), made_up(rng, key=int(kind == 0), high=5)
        rows.append((" ".join(first), " ".join(second), ("entailment", "contradiction", "neutral")[kind]))
    return rows


def write_mnli(directory, sizes, rng):
    (directory / "MNLI").mkdir()
    for split, count in sizes.items():
        for name in ("train",) if split == "train" else (f"{split}_matched", f"{split}_mismatched"):
            header = ("index", "sentence1", "sentence2", *(("gold_label",) if split != "test" else ()))
            rows = [(number, *row[: len(header) - 1]) for number, row in enumerate(entailment_rows(rng, count))]
            write_table(directory / "MNLI" / f"{name}.tsv", header, rows)


def write_rte(directory, sizes, rng):
    (directory / "RTE").mkdir()
    for split, count in sizes.items():
        rows = [
            (number, *row[:2], row[2] if row[2] == "entailment" else "not_entailment")
            for number, row in enumerate(entailment_rows(rng, count))
        ]
        write_table(directory / "RTE" / f"{split}.tsv", ("index", "sentence1", "sentence2", "label"), rows)


def entity(word):
    return {KEY: "B-LOC", "india": "B-PER"}.get(word, "O")


def part_of_speech(word):
    return "DET" if word < "e" else "NOUN" if word < "i" else "VERB"


# Writers of data; "pairs" are data for the task classify.
WRITERS = {
    "classify": write_classify,
    "multilabel": write_multilabel,
    "pairs": write_pairs,
    "regress": write_regress,
    "ner": lambda directory, sizes, rng: write_tags(directory, sizes, rng, entity),
    "pos": lambda directory, sizes, rng: write_tags(directory, sizes, rng, part_of_speech),
    "squad": write_squad,
    "squad2": lambda directory, sizes, rng: write_squad(directory, sizes, rng, version="2.0"),
    "swag": write_swag,
    "cola": write_cola,
    "mnli": write_mnli,
    "rte": write_rte,
}


def write_data(directory, kind, *, seed=0, **sizes):
    """Files of a kind of data: ``train`` 96 examples, ``dev`` 37."""
    directory = epath.Path(directory)
    directory.mkdir(parents=True)
    WRITERS[kind](directory, {"train": 96, "dev": 37} | sizes, random.Random(seed))
    return str(directory)


def save_model(path, tokenizer, *, heads=None, labels=(), seed=0, to="orbax", pooler=True, **changes):
    """A tiny model of random parameters, large enough that every part matters."""
    shape = {"vocab_size": len(tokenizer.tokens), "num_hidden_layers": 2, "initializer_range": 0.2}
    config = dataclasses.replace(MODEL, **(shape | changes))
    params = jax.jit(lambda: init_params(config, jax.random.key(seed), heads=heads or {}, pooler=pooler))()
    bert_jax.save(Bert(config, params, tokenizer, labels), path, to=to)
    return str(path)


def num_correct(model, rows):
    """Number of (text, label) for which a classifier is right, computed without the code of the tasks."""
    pooled, head = model.encode([text for text, _ in rows]).pooled, model.params["sequence_classification"]
    logits = np.asarray(pooled @ head["kernel"] + head["bias"])
    return sum(model.labels[number] == label for number, (_, label) in zip(logits.argmax(-1).tolist(), rows, strict=True))


MODEL_FIELDS = {field.name for field in dataclasses.fields(ModelOverrides)}
OPTIM_FIELDS = {field.name for field in dataclasses.fields(OptimConfig)} - {"name"} | {"optimizer"}


def config_of(task, init, data, run, **changes):
    """A run that takes a second or two, without dropout, which ends with an evaluation.

    Fields of ``model`` and ``optim`` are given by their own names, ``optim.name`` as ``optimizer``.
    """
    usual = {
        "task_data": TASK_DATA,
        "batch_size": 16,
        "epochs": 4.0,
        "learning_rates": (3e-3,),
        "optimizer": "adamw",
        "dropout": 0.0,
        "layers": "scan",
        "eval_every": 2.0,
    }
    values = usual | changes
    model = ModelOverrides(**{name: values.pop(name) for name in MODEL_FIELDS & values.keys()})
    optim = {name: values.pop(name) for name in OPTIM_FIELDS & values.keys()}
    optim = OptimConfig(**{"name" if name == "optimizer" else name: value for name, value in optim.items()})
    return FinetuneConfig(str(run), task, str(init), str(data), **({"model": model, "optim": optim} | values))


def one_device(patch):
    """Meshes of a single device, no figures, and small batches, so that each evaluation needs several."""
    make = sharding.make_mesh
    patch.setattr(sharding, "make_mesh", lambda devices=None, **sizes: make(devices=devices or jax.devices()[:1], **sizes))
    patch.setattr(scoring, "_TOKENS", {"cpu": 512})
    patch.setattr(Figure, "savefig", lambda figure, path, **how: path.write_bytes(b"\x89PNG"))


@contextlib.contextmanager
def quickly_compiled():
    """Compile quickly; the speed of the programs does not matter."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@contextlib.contextmanager
def quickly():
    """As fast as possible, on one device."""
    with quickly_compiled(), pytest.MonkeyPatch.context() as patch:
        one_device(patch)
        yield patch


def log_every_step(monkeypatch):
    """Let fine-tuning runs log each step."""
    original = FinetuneConfig.train_config

    def changed(config, *sizes):
        return dataclasses.replace(original(config, *sizes), log_every=1)

    monkeypatch.setattr(FinetuneConfig, "train_config", changed)


def is_measured(name):
    """Whether a metric measures time, and differs from run to run."""
    return name in ("seconds", "tokens_per_second", "goodput", "mfu") or name.endswith("_seconds")


def lines_of(run, split="dev"):
    """Lines of a run's metrics without measured times."""
    lines = [line for line in read_metrics(run) if line["split"] == split]
    return [{name: value for name, value in line.items() if not is_measured(name)} for line in lines]


def interrupt_at(monkeypatch, number, what):
    """Do something to the run when a step has been reported."""
    original = trainer.Trainer.report

    def report(self, done, *more):
        skipped = original(self, done, *more)
        if done == number:
            what()
        return skipped

    monkeypatch.setattr(trainer.Trainer, "report", report)
