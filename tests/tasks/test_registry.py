"""Every kind of task, from its files to its scores: what is learned, on any mesh, packed or not."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import json
import os
import random
import signal

import jax
import numpy as np
import pytest
from etils import epath
from matplotlib.figure import Figure

import bert_jax
from bert_jax import sharding
from bert_jax.config.finetuning import FinetuneConfig, Reading
from bert_jax.config.run import MeshConfig
from bert_jax.inference import predictor
from bert_jax.inference.bert import Bert
from bert_jax.inference.predictor import Asker
from bert_jax.models.heads import init_params
from bert_jax.tasks import registry
from bert_jax.training.finetuning import FLOOR, finetune
from bert_jax.training.logging import read_metrics
from tests.conftest import MODEL
from tests.training.test_pretraining import interrupt_at

WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "hotel", "india", "juliett", "kilo", "lima")
KEY = "golf"
"""The word that the made-up tasks are about; no other text holds it."""
READING = Reading(length=24, packing=False, stride=8, query=4)
# What a clock says in a line of metrics.jsonl.
CLOCKS = ("seconds", "tokens_per_second")


def made_up(rng, *, key=None, low=3, high=9):
    """Words of a text; ``key`` is how often the key is among them, a coin's throw where nothing is said."""
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
    """Documents of up to thirty words, which do not fit into one window."""
    for split, count in sizes.items():
        lines = []
        for _ in range(count):
            lines += ["-DOCSTART- O", ""]
            for _ in range(rng.randint(1, 4)):
                lines += [f"{word} {tag(word)}" for word in made_up(rng)] + [""]
        (directory / f"{split}.txt").write_text("\n".join(lines))


def write_squad(directory, sizes, rng, *, version="1.1"):
    """Where is the key? Of version 2.0, nowhere in a third of the contexts; some of these are longer than a window."""
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
    """The right one of three endings holds the key."""
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


def inferred(rng, count):
    """Premise, hypothesis and label: the key in both is an entailment, in the premise alone a contradiction."""
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
            rows = [(number, *row[: len(header) - 1]) for number, row in enumerate(inferred(rng, count))]
            write_table(directory / "MNLI" / f"{name}.tsv", header, rows)


def write_rte(directory, sizes, rng):
    (directory / "RTE").mkdir()
    for split, count in sizes.items():
        rows = [
            (number, *row[:2], row[2] if row[2] == "entailment" else "not_entailment")
            for number, row in enumerate(inferred(rng, count))
        ]
        write_table(directory / "RTE" / f"{split}.tsv", ("index", "sentence1", "sentence2", "label"), rows)


def entity(word):
    return {KEY: "B-LOC", "india": "B-PER"}.get(word, "O")


def part_of_speech(word):
    return "DET" if word < "e" else "NOUN" if word < "i" else "VERB"


# How the data of a task are written; some names are those of two kinds of data for one task.
WRITERS = {
    "classify": write_classify,
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
    shape = {"vocab_size": len(tokenizer.pieces), "num_hidden_layers": 2, "initializer_range": 0.2}
    config = dataclasses.replace(MODEL, **(shape | changes))
    params = jax.jit(lambda: init_params(config, jax.random.key(seed), heads=heads or {}, pooler=pooler))()
    bert_jax.save(Bert(config, params, tokenizer, labels), path, to=to)
    return str(path)


def config_of(task, init, data, run, **changes):
    """A run that takes a second or two, without dropout, and whose last model is scored."""
    usual = {
        "reading": READING,
        "batch_size": 16,
        "epochs": 4.0,
        "learning_rates": (3e-3,),
        "optimizer": "adamw",
        "dropout": 0.0,
        "layers": "scan",
        "eval_every": 2.0,
    }
    return FinetuneConfig(str(run), task, str(init), str(data), **(usual | changes))


def one_device(patch):
    """Meshes of a single device, and no pictures; batches for scores are so small that there are several."""
    make = sharding.make_mesh
    patch.setattr(sharding, "make_mesh", lambda config, devices=None: make(config, devices or jax.devices()[:1]))
    patch.setattr(predictor, "_TOKENS", {"cpu": 512})
    patch.setattr(Figure, "savefig", lambda figure, path, **how: path.write_bytes(b"\x89PNG"))


@contextlib.contextmanager
def quickly_compiled():
    """Programs whose speed does not matter."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@contextlib.contextmanager
def quickly():
    """As fast as can be, on one device."""
    with quickly_compiled(), pytest.MonkeyPatch.context() as patch:
        one_device(patch)
        yield patch


@pytest.fixture
def quick():
    with quickly():
        yield


def log_every_step(monkeypatch):
    usual = FinetuneConfig.train

    def changed(config, *sizes):
        return dataclasses.replace(usual(config, *sizes), log_every=1)

    monkeypatch.setattr(FinetuneConfig, "train", changed)


def lines_of(run, split="dev"):
    """Lines of a run's metrics without what a clock says."""
    lines = [line for line in read_metrics(run) if line["split"] == split]
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in lines]


@pytest.fixture(scope="module")
def init(tmp_path_factory, tokenizer):
    return save_model(tmp_path_factory.mktemp("init") / "model", tokenizer)


# Least main scores of what is learned in 48 steps; a constant answer is far below them.
LEARNED = {
    "classify": 0.9, "regress": 0.8, "ner": 0.9, "pos": 0.9, "squad": 80.0, "squad2": 80.0, "swag": 0.9, "cola": 0.8, "mnli": 0.7,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory, init):
    """A kind of data -> the config of a run on it, which is complete, and its result."""

    @functools.cache
    def make(kind):
        directory = tmp_path_factory.mktemp(kind)
        task, data = "classify" if kind == "pairs" else kind, write_data(directory / "data", kind)
        config = config_of(task, init, data, directory / "run", epochs=8.0, eval_every=2.5)
        with quickly():
            return config, finetune(config)

    return make


# One of each head, in `make test`.
HEADS = ("classify", "regress", "ner", "squad2", "swag")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in HEADS else pytest.mark.slow) for kind in (*LEARNED, "pairs", "rte")]
)
def test_every_kind_is_learned_scored_and_kept(kind, trained, quick):
    config, result = trained(kind)
    lines, main = lines_of(config.run), registry.main_score(config.task)
    assert (lines[-1]["step"], result.signal) == (result.step, None)
    assert {name: value for name, value in lines[-1].items() if name not in ("step", "split")} == result.held_out
    if kind in LEARNED:
        assert lines[-1][main] >= LEARNED[kind] > lines[-1][FLOOR] + 0.3
    # What is kept is the first of the best, and is scored as it was in the run.
    best = max(lines, key=lambda line: line[main])
    found = Asker.load(config.run, threshold=0.0).evaluate(config.data)
    flat = found.pop("dev") | {f"{split}/{name}": value for split, scores in found.items() for name, value in scores.items()}
    assert flat | {FLOOR: best[FLOOR], "step": best["step"], "split": "dev"} == best
    assert set(found) == ({"dev_mismatched"} if kind == "mnli" else set())


def test_the_constant_answer_of_squad2_is_none(trained):
    """13 of 37 questions have none: so much has a model that answers nothing."""
    assert lines_of(trained("squad2")[0].run)[-1][FLOOR] == pytest.approx(100 * 13 / 37)


# As on one device, to 1e-5: dropout belongs to the rows' first examples, and sums are divided once.
WAYS = {
    "data": {},
    "mixed": {"mesh": MeshConfig(2, 2, 2)},
    "pmap": {"parallel": "pmap"},
    "accumulate": {"accumulate": 2},
}
ALIKE = {"packing": True, "stride": 8, "query": 4, "length": 24}


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """Texts of one length, three to a row: what shares a row does not depend on how many rows there are."""
    directory = tmp_path_factory.mktemp("alike") / "data"
    directory.mkdir()
    rng = random.Random(1)
    write_classify(directory, {"train": 80}, rng, low=6, high=6)
    write_classify(directory, {"dev": 53}, rng)
    return str(directory)


def trained_alike(init, data, run, **changes):
    usual = {"reading": Reading(**ALIKE), "epochs": 1.0, "eval_every": 0.6, "dropout": 0.3, "learning_rates": (1e-3,)}
    with quickly_compiled(), pytest.MonkeyPatch.context() as patch:
        log_every_step(patch)
        if "devices" not in changes:
            one_device(patch)
        changes.pop("devices", None)
        finetune(config_of("classify", init, data, run, **(usual | changes)))
    return lines_of(run, "train"), lines_of(run)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, init, alike):
    return trained_alike(init, alike, tmp_path_factory.mktemp("alone") / "run")


def close(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        for name in ("step", "loss", "accuracy", "grad_norm", "examples_per_step"):
            np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_mesh_and_launcher_trains_and_scores_alike(way, alone, init, alike, tmp_path):
    changes = WAYS[way] | ({} if way == "accumulate" else {"devices": 8})
    train, dev = trained_alike(init, alike, tmp_path / "run", **changes)
    assert [line["step"] for line in train] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in dev] == [3, 5]
    close(train, alone[0])
    assert dev == alone[1]


@pytest.mark.slow
def test_a_run_may_go_on_on_another_mesh(alone, init, alike, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        stopped, _ = trained_alike(init, alike, tmp_path / "run")
    assert 2 <= len(stopped) < 5
    train, dev = trained_alike(init, alike, tmp_path / "run", devices=8, mesh=MeshConfig(2, 2, 2))
    close(train, alone[0])
    assert dev == alone[1]


@pytest.mark.slow
def test_packing_changes_no_loss_and_no_score(init, tmp_path, quick, monkeypatch):
    """Without dropout, whose mask is the row's."""
    log_every_step(monkeypatch)
    data, found = write_data(tmp_path / "data", "classify"), []
    for packing in (False, True):
        run = tmp_path / str(packing)
        reading = dataclasses.replace(READING, packing=packing, length=48)
        finetune(config_of("classify", init, data, run, reading=reading, epochs=1.0, learning_rates=(1e-3,)))
        found.append((lines_of(run, "train"), lines_of(run)))
    assert found[1][0][0]["fill"] > 1.5 * found[0][0][0]["fill"]
    close(found[1][0], found[0][0])
    assert found[0][1] == found[1][1]


def right_of(model, rows):
    """How many (text, label) a classifier is right about, computed without anything of the tasks'."""
    pooled = model.encode([text for text, _ in rows]).pooled
    logits = np.asarray(pooled @ model.params["classify"]["kernel"] + model.params["classify"]["bias"])
    return sum(model.labels[number] == label for number, (_, label) in zip(logits.argmax(-1).tolist(), rows, strict=True))


def test_every_example_counts_once_on_every_mesh(tokenizer, tmp_path, monkeypatch):
    """53 examples, which no number of devices divides."""
    data = write_data(tmp_path / "data", "classify", dev=53)
    with quickly():
        path = save_model(tmp_path / "model", tokenizer, heads={"classify": 2}, labels=("no", "yes"), seed=3, initializer_range=0.5)
        model = bert_jax.load(path)
        asker = Asker.load(path, task="classify", reading=READING)
    rows = [line.split("\t")[::-1] for line in (tmp_path / "data" / "dev.tsv").read_text().splitlines()[1:]]
    right = right_of(model, rows)
    assert 10 < right < 43
    monkeypatch.setattr(predictor, "_TOKENS", {"cpu": 64})
    for mesh, packing in ((MeshConfig(), True), (MeshConfig(2, 2, 2), False)):
        one = dataclasses.replace(asker, reading=dataclasses.replace(READING, packing=packing))
        with quickly_compiled():
            assert one.evaluate(data, mesh=mesh)["dev"]["accuracy"] == right / 53
