"""The commands of tasks: finetune, evaluate, predict; what they print, refuse, and leave behind."""

from __future__ import annotations

import dataclasses
import json
import os
import signal

import pytest

import bert_jax
from bert_jax import cli
from bert_jax.cli.finetune import spread
from bert_jax.config.finetuning import FinetuneConfig, Reading
from bert_jax.evaluation import seeds
from bert_jax.evaluation.seeds import Grid, Report
from bert_jax.inference.predictor import Asker
from tests.cli.test_cli import bert_jax as command
from tests.cli.test_cli import here, ok, refused
from tests.inference.test_predictor import HEADS, LABELS
from tests.tasks.test_registry import config_of, lines_of, one_device, quickly_compiled, save_model, write_data, write_table
from tests.training.test_pretraining import interrupt_at


@pytest.fixture
def run(capsys, monkeypatch):
    """The command in this process: status, what it printed, what it said."""

    def call(*arguments):
        with quickly_compiled():
            status = cli.main([*map(str, arguments)])
        said = capsys.readouterr()
        return status, said.out, said.err

    one_device(monkeypatch)
    return call


@pytest.fixture(scope="module")
def init(tmp_path_factory, tokenizer):
    return save_model(tmp_path_factory.mktemp("init") / "model", tokenizer, num_hidden_layers=1, to="hf")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "data", "classify", train=48)


@pytest.fixture(scope="module")
def ran(tmp_path_factory, tokenizer):
    """A task -> a run of it, as if it had been trained."""
    made = {}

    def make(task):
        if task not in made:
            made[task] = tmp_path_factory.mktemp(task) / "run"
            save_model(made[task] / "best", tokenizer, heads=HEADS[task], labels=LABELS.get(task, ()), seed=3)
            (made[task] / "config.json").write_text(config_of(task, "init", "data", made[task]).to_json())
        return made[task]

    return make


def finetune(init, data, out, *more):
    """A command of six steps."""
    lengths = ("--length", 24, "--batch-size", 16, "--epochs", 2, "--dropout", 0, "--layers", "scan", "--optimizer", "adamw")
    return ("finetune", "classify", "--init", init, "--data", data, "--run", out, *lengths, "--learning-rates", "3e-3", *more)


def test_from_a_table_to_answers(run, init, data, tmp_path):
    """Fine-tune, evaluate, predict, convert, and predict with what was converted."""
    out = tmp_path / "run"
    status, said, told = run(*finetune(init, data, out))
    line = lines_of(out)[-1]
    assert (status, said) == (0, f"{out}: accuracy {line['accuracy']:.4g}; a constant answer has {line['constant']:.4g}\n")
    assert "classify: 48 examples, 6 steps; classify head, fresh" in told
    # The length is the run's, 24.
    status, said, _ = run("evaluate", out, "--data", data)
    best = max(lines_of(out), key=lambda line: line["accuracy"])
    names = ("accuracy", "macro_f1", "matthews")
    assert (status, said) == (0, f"dev: {', '.join(f'{name} {best[name]:.4g}' for name in names)}\n")
    status, said, _ = run("evaluate", out, "--data", data, "--json")
    assert (status, json.loads(said)) == (0, {"dev": {name: best[name] for name in names}})
    status, said, _ = run("predict", out, f"{data}/dev.tsv", "--out", tmp_path / "found.jsonl")
    assert (status, said) == (0, f"{tmp_path / 'found.jsonl'}: 37 answers\n")
    found = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    with quickly_compiled():
        assert found == [*Asker.load(out).predict(f"{data}/dev.tsv")]
    assert run("convert", out, tmp_path / "hf", "--to", "hf")[0] == 0
    options = ("--task", "classify", "--length", 24, "--out", tmp_path / "again.jsonl")
    assert run("predict", tmp_path / "hf", f"{data}/dev.tsv", *options)[0] == 0
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "found.jsonl").read_text()
    status, said, told = run(*finetune(init, data, out))
    assert (status, "is complete at step 6" in told) == (0, True)


def test_a_stopped_run_is_saved_and_goes_on(run, init, data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        status, said, told = run(*finetune(init, data, tmp_path / "run", "--eval-every", 9))
    assert (status, said) == (128 + signal.SIGTERM, "")
    assert "Stopped by SIGTERM at step 3, which is saved; the same command goes on from there." in told
    status, said, told = run(*finetune(init, data, tmp_path / "run", "--eval-every", 9))
    assert (status, said.startswith(f"{tmp_path / 'run'}: accuracy ")) == (0, True)
    assert [line["step"] for line in lines_of(tmp_path / "run")] == [6]


# Options.


def names_of(*classes):
    return [f"--{field.name.replace('_', '-')}" for kind in classes for field in dataclasses.fields(kind)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("finetune", names_of(FinetuneConfig, Reading, Grid)),
        ("evaluate", [*names_of(Reading), "--data", "--task", "--split", "--labels", "--threshold", "--out", "--json"]),
        ("predict", [*names_of(Reading), "--task", "--labels", "--threshold", "--out"]),
    ],
)
def test_help_names_every_option(name, options, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([name, "--help"])
    said = capsys.readouterr().out
    assert (left.value.code, f"usage: bert-jax {name}" in said) == (0, True)
    missing = [option for option in options if option not in said and option.replace("--", "--mesh.") not in said]
    assert missing == [option for option in ("--task", "--reading", "--mesh") if name == "finetune" and option in missing]
    assert "Example: bert-jax" in " ".join(said.replace("│", "").split())


@pytest.fixture
def parsed(monkeypatch, capsys):
    """What a command of finetune means."""
    seen = []
    monkeypatch.setattr(seeds, "finetune_all", lambda *given: seen.append(given) or Report([], "done", None))

    def call(*more):
        seen.clear()
        assert cli.main(["finetune", "classify", "--init", "i", "--data", "d", "--run", "r", *map(str, more)]) == 0
        assert capsys.readouterr().out == "done\n"
        return seen[0]

    return call


def test_options_say_what_the_config_is(parsed):
    config, grid = parsed()
    assert config == FinetuneConfig("r", "classify", "i", "d")
    assert grid == Grid()
    config, grid = parsed(
        *("--learning-rates", "2e-5,3e-5", "--seeds", 4, "--columns", "label,text", "--no-packing", "--length", 64),
        *("--batch-sizes", "16,32", "--epoch-counts", "2,3.5", "--paper-grid", "--frozen", "--lstm-layers", 2),
        *("--states", "sum_all", "--dropout", 0.2, "--patience", 3, "--scheme", "loose", "--n-best", 5),
    )
    reading = Reading(columns=("label", "text"), packing=False, length=64, scheme="loose", n_best=5)
    more = {"frozen": True, "lstm_layers": 2, "states": "sum_all", "dropout": 0.2, "patience": 3, "seeds": 4}
    assert config == FinetuneConfig("r", "classify", "i", "d", reading=reading, learning_rates=(2e-5, 3e-5), **more)
    assert grid == Grid((16, 32), (2.0, 3.5), True)
    config, _ = parsed("--mesh.fsdp", 2, "--mesh.tensor", 2, "--parallel", "mesh")
    assert (config.mesh.fsdp, config.mesh.tensor) == (2, 2)


@pytest.mark.parametrize(
    "words", [("--learning-rates", "1e-3", "2e-3"), ("--learning-rates", "1e-3,2e-3"), ("--learning-rates=1e-3,2e-3",)]
)
def test_lists_are_words_or_have_commas(words, parsed):
    assert parsed(*words)[0].learning_rates == (1e-3, 2e-3)


def test_only_lists_are_divided():
    assert spread(["--text", "a,b", "--columns", "a,b", "c"]) == ["--text", "a,b", "--columns", "a", "b", "c"]


def test_labels_are_a_list_too(run, tokenizer, data, tmp_path):
    """With or without commas; and many of them."""
    path = save_model(tmp_path / "model", tokenizer, heads={"classify": 2}, seed=3, num_hidden_layers=1)
    options = ("evaluate", path, "--task", "classify", "--data", data, "--length", 24)
    status, _, said = run(*options)
    assert (status, "does not say what its 2 outputs mean; name them, in order, with --labels" in said) == (2, True)
    assert run(*options, "--labels", "no", "yes")[0] == 0
    assert run(*options, "--labels", "no,yes")[0] == 0


def test_an_argument_may_be_longer_than_a_file_name(run, ran, data):
    """Such as thirty labels with commas between them."""
    status, _, said = run("evaluate", ran("classify"), "--data", data, "--labels", ",".join(["label"] * 100))
    assert (status, "labels are given for 2 outputs" in said) == (2, True)


# What is refused.


def test_bad_input(data, tokenizer, tmp_path):
    plain = save_model(tmp_path / "plain", tokenizer)
    refused(here("predict", plain, f"{data}/dev.tsv", "--out", tmp_path / "f.jsonl"), "its task is not known; name it with --task")
    assert {path.name for path in tmp_path.iterdir()} == {"plain"}


def test_what_predict_refuses_leaves_nothing(run, ran, data, tmp_path):
    (tmp_path / "rows.txt").write_text("text\nalpha\n")
    (tmp_path / "titles.tsv").write_text("title\nalpha\n")
    (tmp_path / "late.tsv").write_text("text\n" + "alpha\n" * 5000 + "\tbravo\n")
    (tmp_path / "latin.csv").write_bytes("text\nMüller\n".encode("latin-1"))
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "there.jsonl").write_text("mine")
    before = {path.name for path in tmp_path.iterdir()}
    for file, options, sentence in (
        ("none.tsv", (), "There is no file"),
        ("", (), "says nothing; the known ones are"),
        ("rows.txt", (), "The ending of"),
        ("titles.tsv", (), "titles.tsv has no column 'text' but 'title'. Name the columns with --label, --text and --text-b"),
        ("late.tsv", (), "late.tsv, line 5002 has 2 fields"),
        ("latin.csv", (), "latin.csv, line 2: byte 0xfc at column 2 is not UTF-8"),
        ("empty.jsonl", (), "empty.jsonl holds no rows"),
        ("titles.tsv", ("--length", 65), "length of 65 pieces is above the model's 64 positions"),
        ("titles.tsv", ("--labels", "a", "b", "c"), "3 labels are given for 2 outputs"),
        ("titles.tsv", ("--task", "squad"), "has no span head, which squad needs; its heads: classify"),
    ):
        status, said, told = run("predict", ran("classify"), tmp_path / file, "--out", tmp_path / "found.jsonl", *options)
        last = told.strip().splitlines()[-1]
        assert (status, said, last.startswith("bert-jax: "), sentence in last) == (2, "", True, True), told
        assert {path.name for path in tmp_path.iterdir()} == before
    status, _, told = run("predict", ran("classify"), tmp_path / "titles.tsv", "--out", tmp_path / "there.jsonl", "--text", "title")
    assert (status, "there.jsonl exists already; remove it or choose another name" in told) == (2, True)
    assert (tmp_path / "there.jsonl").read_text() == "mine"
    status, _, _ = run(
        "predict", ran("classify"), tmp_path / "titles.tsv", "--out", tmp_path / "new" / "f.jsonl", "--text", "title"
    )
    assert (status, (tmp_path / "new" / "f.jsonl").read_text().count("\n")) == (0, 1)


@pytest.mark.parametrize(
    "words",
    [
        ("finetune", "rtee", "--init", "i", "--data", "d", "--run", "r"),
        ("finetune", "rte", "--init", "i", "--data", "d"),
        ("finetune", "rte", "--init", "i", "--data", "d", "--run", "r", "--no-such-option", "1"),
        ("finetune", "rte", "--init", "i", "--data", "d", "--run", "r", "--optimizer", "sgd"),
        ("finetune", "rte", "--init", "i", "--data", "d", "--run", "r", "--batch-size", "many"),
        ("evaluate", "m"),
        ("predict", "m", "f"),
    ],
)
def test_words_that_mean_nothing(words, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([*words])
    assert left.value.code == 2
    assert "bert-jax" in capsys.readouterr().err


def test_values_that_mean_nothing(run, tmp_path):
    usual = ("finetune", "rte", "--init", "i", "--data", "d", "--run", tmp_path / "run")
    for words, sentence in (
        (("--learning-rates", "0"), "A learning rate is 0"),
        (("--batch-size", 0), "batch_size is 0"),
        (("--length", 2), "length is 2; a pair needs at least 5 pieces"),
        (("--seeds", 2, "--parallel", "pmap"), "leave out mesh and parallel"),
        (("--seed", 0), "There is no model i"),
    ):
        status, _, told = run(*usual, *words)
        assert (status, told.startswith("bert-jax: "), sentence in told, told.count("\n")) == (2, True, True, 1), told
    assert not (tmp_path / "run").exists()


# What is written, and what is left.


def test_files_that_evaluate_writes(run, ran, tmp_path):
    data = write_data(tmp_path / "data", "mnli", test=5)
    status, said, _ = run("evaluate", ran("mnli"), "--data", data, "--split", "test", "--out", tmp_path / "out")
    assert (status, said) == (0, f"{tmp_path / 'out'}: written\n")
    assert run("evaluate", ran("mnli"), "--data", data, "--split", "test_mismatched", "--out", tmp_path / "out")[0] == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"MNLI-m.tsv", "MNLI-mm.tsv"}
    status, _, told = run("evaluate", ran("mnli"), "--data", data, "--split", "test", "--out", tmp_path / "out")
    assert (status, "MNLI-m.tsv exists already" in told) == (2, True)
    status, said, told = run("evaluate", ran("mnli"), "--data", data, "--split", "test")
    assert (status, said, "no labels to score against" in told) == (2, "", True)
    status, said, _ = run("evaluate", ran("mnli"), "--data", data)
    assert (status, [line.split(":")[0] for line in said.splitlines()]) == (0, ["dev", "dev_mismatched"])


def test_answers_of_questions(run, ran, tmp_path):
    data = write_data(tmp_path / "data", "squad2", dev=9)
    file, out = tmp_path / "data" / "dev-v2.0.json", tmp_path / "found"
    for threshold, answered in ((-1e9, 0), (1e9, 9)):
        assert run("predict", ran("squad2"), file, "--threshold", threshold, "--out", out)[0] == 0
        assert sum(bool(json.loads(line)["answer"]) for line in out.read_text().splitlines()) == answered
        out.unlink()
    status, said, _ = run("evaluate", ran("squad2"), "--data", data, "--out", tmp_path / "files", "--json")
    assert (status, "best_f1" in json.loads(said)["dev"]) == (0, True)
    assert {path.name for path in (tmp_path / "files").iterdir()} == {
        "predictions.json",
        "nbest_predictions.json",
        "null_odds.json",
    }


def test_ctrl_c_while_it_answers_leaves_nothing(run, ran, tmp_path, monkeypatch):
    write_table(tmp_path / "rows.tsv", ("text",), [("alpha",)] * 4)
    original = Asker.predict

    def stopped(self, path):
        for number, found in enumerate(original(self, path)):
            if number == 2:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(Asker, "predict", stopped)
    status, said, told = run("predict", ran("classify"), tmp_path / "rows.tsv", "--out", tmp_path / "new" / "found.jsonl")
    assert (status, said, "stopped by Ctrl-C; nothing unfinished was kept" in told) == (130, "", True)
    assert {path.name for path in tmp_path.iterdir()} == {"rows.tsv"}


def test_a_process_of_its_own(init, data, tmp_path):
    """A command as a user gives it."""
    out = ok(command(*finetune(init, data, tmp_path / "run", "--epochs", 0.5)))
    assert out.startswith(f"{tmp_path / 'run'}: accuracy ")
    assert bert_jax.load(tmp_path / "run").labels == ("no", "yes")
