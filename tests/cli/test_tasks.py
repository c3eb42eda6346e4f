"""The commands of tasks: finetune, evaluate and predict; output, error messages, and files."""

from __future__ import annotations

import dataclasses
import json
import os
import signal

import pytest

import bert_jax
from bert_jax import cli
from bert_jax.cli.finetune import split_lists
from bert_jax.config.finetuning import FinetuneConfig, ModelOverrides, TaskDataConfig
from bert_jax.config.logging import LogConfig
from bert_jax.config.mesh import MeshConfig
from bert_jax.config.optimizer import OptimConfig
from bert_jax.evaluation import seeds
from bert_jax.evaluation.seeds import Grid, Report
from bert_jax.inference.predictor import Predictor
from tests.cli.test_cli import bert_jax as command
from tests.cli.test_cli import here, ok, refused
from tests.runs import config_of, interrupt_at, lines_of, one_device, quickly_compiled, save_model, write_data, write_table

pytestmark = pytest.mark.usefixtures("unoptimized")

HEADS = {
    "classify": {"sequence_classification": 2},
    "mnli": {"sequence_classification": 3},
    "squad2": {"question_answering": 2},
}
LABELS = {"classify": ("no", "yes"), "mnli": ("contradiction", "entailment", "neutral")}


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the command in this process; returns status, standard output and standard error."""

    def call(*arguments):
        with quickly_compiled():
            status = cli.main([*map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    one_device(monkeypatch)
    return call


@pytest.fixture(scope="module")
def init(tmp_path_factory, tokenizer):
    return save_model(tmp_path_factory.mktemp("init") / "model", tokenizer, num_hidden_layers=1, to="hf")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "data", "classify", train=48)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer):
    """Return the directory of a run of a task, with random parameters in place of trained ones."""
    directories = {}

    def make(task):
        if task not in directories:
            directories[task] = tmp_path_factory.mktemp(task) / "run"
            save_model(directories[task] / "best", tokenizer, heads=HEADS[task], labels=LABELS.get(task, ()), seed=3)
            (directories[task] / "config.json").write_text(config_of(task, "init", "data", directories[task]).to_json())
        return directories[task]

    return make


def finetune(init, data, out, *more):
    """A command of six steps."""
    options = ("--sequence-length", 24, "--batch-size", 16, "--epochs", 2, "--learning-rates", "3e-3")
    options += ("--model.dropout", 0, "--model.layers", "scan", "--optim.name", "adamw")
    return ("finetune", "classify", "--init", init, "--data", data, "--run", out, *options, *more)


def test_from_a_table_to_predictions(run, init, data, tmp_path):
    """Fine-tune, evaluate, predict, convert, and predict with the converted model."""
    out = tmp_path / "run"
    status, output, messages = run(*finetune(init, data, out))
    line = lines_of(out)[-1]
    assert (status, output) == (0, f"{out}: accuracy {line['accuracy']:.4g}; a constant answer scores {line['constant']:.4g}\n")
    assert "classify: 48 examples, 6 steps; sequence_classification head (new)" in messages
    assert f"train: {data}/train.tsv (separated by tabs, quoting none); 48 examples, 0 with an empty text, 0 trun" in messages
    assert json.loads((out / "data.json").read_text())["dev"]["examples"] == 37
    # The sequence length is that of the run, 24.
    status, output, _ = run("evaluate", out, "--data", data)
    best = max(lines_of(out), key=lambda line: line["accuracy"])
    names = ("accuracy", "macro_f1", "matthews")
    assert (status, output) == (0, f"dev: {', '.join(f'{name} {best[name]:.4g}' for name in names)}\n")
    status, output, _ = run("evaluate", out, "--data", data, "--json")
    assert (status, json.loads(output)) == (0, {"dev": {name: best[name] for name in names}})
    status, output, _ = run("predict", out, f"{data}/dev.tsv", "--out", tmp_path / "out.jsonl")
    assert (status, output) == (0, f"{tmp_path / 'out.jsonl'}: 37 predictions\n")
    predictions = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    with quickly_compiled():
        assert predictions == [*Predictor.load(out).predict(f"{data}/dev.tsv")]
    assert run("convert", out, tmp_path / "hf", "--to", "hf")[0] == 0
    options = ("--task", "classify", "--sequence-length", 24, "--out", tmp_path / "converted.jsonl")
    assert run("predict", tmp_path / "hf", f"{data}/dev.tsv", *options)[0] == 0
    assert (tmp_path / "converted.jsonl").read_text() == (tmp_path / "out.jsonl").read_text()
    status, output, messages = run(*finetune(init, data, out))
    assert (status, "is complete at step 6" in messages) == (0, True)


REFUSED = {
    "its first row is the header": (
        "text,label\na,x\nb,y\n",
        "",
        ("--columns", "label,text"),
        "so the file has a header; leave --columns out",
    ),
    "labels in two cases": (
        "text,label\na,x\nb,y\nc,X\n",
        "",
        (),
        "train.csv, line 4: the label 'X' differs from 'x' (line 2) only in case",
    ),
    "pairs and single texts": (
        "text,text_b,label\na,b,x\nb,c,y\n",
        "text,label\na,x\n",
        (),
        "dev.csv, line 2 has a single text, and",
    ),
    "another label": ("text,label\na,x\nb,y\n", "text,label\na,z\n", (), "dev.csv, line 2: the label 'z' is none of 'x', 'y'."),
}


@pytest.mark.parametrize("why", REFUSED)
def test_tables_that_cannot_be_meant(why, run, init, tmp_path):
    train, dev, options, sentence = REFUSED[why]
    (tmp_path / "train.csv").write_text(train)
    (tmp_path / "dev.csv").write_text(dev or train)
    status, output, messages = run(*finetune(init, tmp_path, tmp_path / "run", *options))
    assert (status, output, messages.startswith("bert-jax: "), messages.count("\n")) == (2, "", True, 1)
    assert sentence in messages
    assert not (tmp_path / "run").exists()


def test_a_stopped_run_is_saved_and_resumed(run, init, data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        status, output, messages = run(*finetune(init, data, tmp_path / "run", "--eval-every", 9))
    assert (status, output) == (128 + signal.SIGTERM, "")
    assert "Stopped by SIGTERM at step 3, which is saved; the same command resumes from there." in messages
    status, output, messages = run(*finetune(init, data, tmp_path / "run", "--eval-every", 9))
    assert (status, output.startswith(f"{tmp_path / 'run'}: accuracy ")) == (0, True)
    assert [line["step"] for line in lines_of(tmp_path / "run")] == [6]


# Options.


def options_of(config, *, prefix="", without=()):
    """Options of the fields of a dataclass."""
    names = [field.name for field in dataclasses.fields(config) if field.name not in without]
    return [f"--{prefix}{name.replace('_', '-')}" for name in names]


FINETUNE_OPTIONS = [
    *options_of(FinetuneConfig, without=("task", "task_data", "model", "optim", "mesh", "log")),
    *options_of(TaskDataConfig),
    *options_of(ModelOverrides, prefix="model."),
    *options_of(OptimConfig, prefix="optim."),
    *options_of(MeshConfig, prefix="mesh."),
    *options_of(LogConfig, prefix="log."),
    *options_of(Grid),
]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("finetune", FINETUNE_OPTIONS),
        ("evaluate", [*options_of(TaskDataConfig), "--data", "--task", "--split", "--labels", "--threshold", "--out", "--json"]),
        ("predict", [*options_of(TaskDataConfig), "--task", "--labels", "--threshold", "--out", "--strict"]),
    ],
)
def test_help_names_every_option(name, options, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main([name, "--help"])
    help_text = capsys.readouterr().out
    assert (exit.value.code, f"usage: bert-jax {name}" in help_text) == (0, True)
    assert [option for option in options if f" {option} " not in help_text and f" {option}," not in help_text] == []
    assert "Example: bert-jax" in " ".join(help_text.replace("│", "").split())


@pytest.fixture
def parsed(monkeypatch, capsys):
    """Return the arguments of `finetune_all` for a command."""
    calls = []
    monkeypatch.setattr(seeds, "finetune_all", lambda *arguments: calls.append(arguments) or Report([], "done", None))

    def call(*more):
        calls.clear()
        assert cli.main(["finetune", "classify", "--init", "i", "--data", "d", "--run", "r", *map(str, more)]) == 0
        assert capsys.readouterr().out == "done\n"
        return calls[0]

    return call


def test_options_set_the_fields_of_the_config(parsed):
    config, grid = parsed()
    assert config == FinetuneConfig("r", "classify", "i", "d")
    assert grid == Grid()
    config, grid = parsed(
        *("--learning-rates", "2e-5,3e-5", "--seeds", 4, "--columns", "label,text", "--packing", 1, "--sequence-length", 64),
        *("--batch-sizes", "16,32", "--epoch-counts", "2,3.5", "--paper-grid", "--freeze-encoder", "--model.lstm-layers", 2),
        *("--model.states", "sum_all", "--model.dropout", 0.2, "--patience", 3, "--scheme", "loose", "--n-best", 5),
        *("--optim.name", "adamw", "--optim.weight-decay", 0.1, "--thresholds", "0.3,0.6"),
    )
    task_data = TaskDataConfig(
        columns=("label", "text"), packing=1, sequence_length=64, scheme="loose", n_best=5, thresholds=(0.3, 0.6)
    )
    expected = FinetuneConfig(
        "r",
        "classify",
        "i",
        "d",
        task_data=task_data,
        model=ModelOverrides(lstm_layers=2, states="sum_all", dropout=0.2),
        optim=OptimConfig(name="adamw", weight_decay=0.1),
        learning_rates=(2e-5, 3e-5),
        freeze_encoder=True,
        patience=3,
        seeds=4,
    )
    assert config == expected
    assert grid == Grid((16, 32), (2.0, 3.5), True)
    config, _ = parsed("--mesh.fsdp", 2, "--mesh.tensor", 2, "--parallel", "mesh")
    assert (config.mesh.fsdp, config.mesh.tensor) == (2, 2)


@pytest.mark.parametrize(
    "words", [("--learning-rates", "1e-3", "2e-3"), ("--learning-rates", "1e-3,2e-3"), ("--learning-rates=1e-3,2e-3",)]
)
def test_lists_are_separated_by_spaces_or_commas(words, parsed):
    assert parsed(*words)[0].learning_rates == (1e-3, 2e-3)


def test_only_lists_are_split():
    assert split_lists(["--text", "a,b", "--columns", "a,b", "c"]) == ["--text", "a,b", "--columns", "a", "b", "c"]


def test_labels_are_a_list(run, tokenizer, data, tmp_path):
    path = save_model(tmp_path / "model", tokenizer, heads={"sequence_classification": 2}, seed=3, num_hidden_layers=1)
    options = ("evaluate", path, "--task", "classify", "--data", data, "--sequence-length", 24)
    status, _, output = run(*options)
    assert (status, "does not name its 2 outputs; name them, in order, with --labels" in output) == (2, True)
    assert run(*options, "--labels", "no", "yes")[0] == 0
    assert run(*options, "--labels", "no,yes")[0] == 0


def test_an_argument_may_be_longer_than_a_file_name(run, trained, data):
    """Such as a list of a hundred labels."""
    status, _, output = run("evaluate", trained("classify"), "--data", data, "--labels", ",".join(["label"] * 100))
    assert (status, "labels are given for 2 outputs" in output) == (2, True)


# Error messages.


def test_bad_input(data, tokenizer, tmp_path):
    plain = save_model(tmp_path / "plain", tokenizer)
    refused(here("predict", plain, f"{data}/dev.tsv", "--out", tmp_path / "f.jsonl"), "its task is unknown; name it with --task")
    assert {path.name for path in tmp_path.iterdir()} == {"plain"}


def test_errors_of_predict_leave_nothing(run, trained, data, tmp_path):
    (tmp_path / "rows.doc").write_text("text\nalpha\n")
    (tmp_path / "titles.tsv").write_text("title\nalpha\n")
    (tmp_path / "early.tsv").write_text("text\n\tbravo\nalpha\n")
    (tmp_path / "latin.csv").write_bytes("text\nMüller\n".encode("latin-1"))
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "existing.jsonl").write_text("content")
    before = {path.name for path in tmp_path.iterdir()}
    for file, options, sentence in (
        ("none.tsv", (), "There is no file"),
        ("", (), "is unknown; name the file with one of the endings"),
        ("rows.doc", (), "is unknown; name the file with one of the endings"),
        ("titles.tsv", (), "titles.tsv has no column 'text' but 'title'. Name the columns with --label, --text and --text-b"),
        ("early.tsv", (), "early.tsv, line 2 has 2 fields"),
        ("latin.csv", (), "latin.csv, line 2: byte 0xfc at column 2 is not UTF-8"),
        ("empty.jsonl", (), "empty.jsonl holds no rows"),
        ("titles.tsv", ("--sequence-length", 65), "sequence length of 65 tokens exceeds the model's 64 positions"),
        ("titles.tsv", ("--labels", "a", "b", "c"), "3 labels are given for 2 outputs"),
        (
            "titles.tsv",
            ("--task", "squad"),
            "has no question_answering head, which squad needs; its heads: sequence_classification",
        ),
    ):
        status, output, messages = run("predict", trained("classify"), tmp_path / file, "--out", tmp_path / "out.jsonl", *options)
        last = messages.strip().splitlines()[-1]
        assert (status, output, last.startswith("bert-jax: "), sentence in last) == (2, "", True, True), messages
        assert {path.name for path in tmp_path.iterdir()} == before
    status, _, messages = run(
        "predict", trained("classify"), tmp_path / "titles.tsv", "--out", tmp_path / "existing.jsonl", "--text", "title"
    )
    assert (status, "existing.jsonl exists already; remove it or choose another name" in messages) == (2, True)
    assert (tmp_path / "existing.jsonl").read_text() == "content"
    status, _, _ = run(
        "predict", trained("classify"), tmp_path / "titles.tsv", "--out", tmp_path / "new" / "f.jsonl", "--text", "title"
    )
    assert (status, (tmp_path / "new" / "f.jsonl").read_text().count("\n")) == (0, 1)


def test_predictions_before_a_bad_row_are_kept(run, trained, tmp_path):
    (tmp_path / "late.tsv").write_text("text\n" + "alpha\n" * 3 + "\tbravo\n")
    out = tmp_path / "out.jsonl"
    status, output, messages = run("predict", trained("classify"), tmp_path / "late.tsv", "--out", out)
    assert (status, output) == (2, "")
    assert "late.tsv, line 5 has 2 fields" in messages
    assert messages.splitlines()[-1].endswith(f"The 3 predictions before it are in {out}.partial.")
    assert {path.name for path in tmp_path.iterdir()} == {"late.tsv", "out.jsonl.partial"}
    kept = (tmp_path / "out.jsonl.partial").read_text()
    (tmp_path / "late.tsv").write_text("text\n" + "alpha\n" * 3)
    assert run("predict", trained("classify"), tmp_path / "late.tsv", "--out", out)[0] == 0
    assert out.read_text() == kept


def test_empty_texts_are_counted(run, trained, tmp_path):
    (tmp_path / "new.csv").write_text('text\nalpha\n""\nbravo\n')
    out = tmp_path / "out.jsonl"
    status, output, _ = run("predict", trained("classify"), tmp_path / "new.csv", "--out", out)
    assert (status, output) == (0, f"{out}: 3 predictions, 1 of them null for an empty text\n")
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert [result["label"] is None for result in results] == [False, True, False]
    status, _, messages = run("predict", trained("classify"), tmp_path / "new.csv", "--out", tmp_path / "more.jsonl", "--strict")
    assert (status, "new.csv, line 3: the text 'text' is empty; remove the row or write one." in messages) == (2, True)


def test_predict_reads_standard_input(trained, tmp_path):
    out = tmp_path / "out.jsonl"
    assert ok(command("predict", trained("classify"), "-", "--out", out, input="alpha\nbravo, golf\n")) == f"{out}: 2 predictions\n"
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["0", "1"]


@pytest.mark.parametrize(
    "words",
    [
        ("finetune", "rtee", "--init", "i", "--data", "d", "--run", "r"),
        ("finetune", "rte", "--init", "i", "--data", "d"),
        ("finetune", "rte", "--init", "i", "--data", "d", "--run", "r", "--no-such-option", "1"),
        ("finetune", "rte", "--init", "i", "--data", "d", "--run", "r", "--optim.name", "sgd"),
        ("finetune", "rte", "--init", "i", "--data", "d", "--run", "r", "--batch-size", "many"),
        ("evaluate", "m"),
        ("predict", "m", "f"),
    ],
)
def test_invalid_arguments(words, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main([*words])
    assert exit.value.code == 2
    assert "bert-jax" in capsys.readouterr().err


def test_invalid_values(run, tmp_path):
    usual = ("finetune", "rte", "--init", "i", "--data", "d", "--run", tmp_path / "run")
    for words, sentence in (
        (("--learning-rates", "0"), "A learning rate is 0"),
        (("--batch-size", 0), "batch_size is 0"),
        (("--sequence-length", 2), "sequence_length is 2; a pair needs at least 5 tokens"),
        (("--seeds", 2, "--parallel", "pmap"), "leave out --mesh, --parallel and --distributed"),
        (("--seed", 0), "There is no model i"),
    ):
        status, _, messages = run(*usual, *words)
        assert (status, messages.startswith("bert-jax: "), sentence in messages, messages.count("\n")) == (2, True, True, 1), (
            messages
        )
    assert not (tmp_path / "run").exists()


# Files.


def test_files_of_evaluate(run, trained, tmp_path):
    data = write_data(tmp_path / "data", "mnli", test=5)
    status, output, _ = run("evaluate", trained("mnli"), "--data", data, "--split", "test", "--out", tmp_path / "out")
    assert (status, output) == (0, f"{tmp_path / 'out'}: written\n")
    assert run("evaluate", trained("mnli"), "--data", data, "--split", "test_mismatched", "--out", tmp_path / "out")[0] == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"MNLI-m.tsv", "MNLI-mm.tsv"}
    status, _, messages = run("evaluate", trained("mnli"), "--data", data, "--split", "test", "--out", tmp_path / "out")
    assert (status, "MNLI-m.tsv exists already" in messages) == (2, True)
    status, output, messages = run("evaluate", trained("mnli"), "--data", data, "--split", "test")
    assert (status, output, "no labels to score against" in messages) == (2, "", True)
    status, output, _ = run("evaluate", trained("mnli"), "--data", data)
    assert (status, [line.split(":")[0] for line in output.splitlines()]) == (0, ["dev", "dev_mismatched"])


def test_answers(run, trained, tmp_path):
    data = write_data(tmp_path / "data", "squad2", dev=9)
    file, out = tmp_path / "data" / "dev-v2.0.json", tmp_path / "answers"
    for threshold, answered in ((-1e9, 0), (1e9, 9)):
        assert run("predict", trained("squad2"), file, "--threshold", threshold, "--out", out)[0] == 0
        assert sum(bool(json.loads(line)["answer"]) for line in out.read_text().splitlines()) == answered
        out.unlink()
    status, output, _ = run("evaluate", trained("squad2"), "--data", data, "--out", tmp_path / "files", "--json")
    assert (status, "best_f1" in json.loads(output)["dev"]) == (0, True)
    assert {path.name for path in (tmp_path / "files").iterdir()} == {
        "predictions.json",
        "nbest_predictions.json",
        "null_odds.json",
    }


def test_ctrl_c_during_predict_leaves_nothing(run, trained, tmp_path, monkeypatch):
    write_table(tmp_path / "rows.tsv", ("text",), [("alpha",)] * 4)
    original = Predictor.predict

    def stopped(self, path, **options):
        for index, prediction in enumerate(original(self, path, **options)):
            if index == 2:
                raise KeyboardInterrupt
            yield prediction

    monkeypatch.setattr(Predictor, "predict", stopped)
    status, output, messages = run("predict", trained("classify"), tmp_path / "rows.tsv", "--out", tmp_path / "new" / "out.jsonl")
    assert (status, output, "stopped by Ctrl-C; incomplete output was removed" in messages) == (130, "", True)
    assert {path.name for path in tmp_path.iterdir()} == {"rows.tsv"}


@pytest.mark.slow
def test_finetune_in_a_separate_process(init, data, tmp_path):
    out = ok(command(*finetune(init, data, tmp_path / "run", "--epochs", 0.5)))
    assert out.startswith(f"{tmp_path / 'run'}: accuracy ")
    assert bert_jax.load(tmp_path / "run").labels == ("no", "yes")
