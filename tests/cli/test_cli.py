"""The command line: output, error messages, exit status, and no incomplete files."""

from __future__ import annotations

import contextlib
import glob
import importlib.metadata
import io
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time

import pytest

from bert_jax import cli
from bert_jax.cli import COMMANDS, process
from bert_jax.cli.pretrain import load_experiment
from bert_jax.config.run import Config
from bert_jax.training.job import Result
from bert_jax.training.pretraining import resolve

pytestmark = pytest.mark.usefixtures("unoptimized")

EXPERIMENT = """
import bert_jax
def config():
    return bert_jax.Config(
        run={run!r},
        data=bert_jax.DataConfig({corpus!r}, sequence_length=32, batch_size=16),
        model=bert_jax.ModelConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64),
        optim=bert_jax.OptimConfig(warmup_steps=2),
        train=bert_jax.TrainConfig(steps=6, eval_every=3, save_every=3, log_every=1),
    )
"""


# A shell's background processes, and their children, ignore Ctrl-C unless they install a handler.
PROGRAM = [
    sys.executable,
    "-c",
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from bert_jax.cli import main; sys.exit(main())",
]


def bert_jax(*arguments, **kwargs):
    """Run the command in a separate process, as a user does."""
    return subprocess.run([*PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=300, **kwargs)


def here(*arguments):
    """Run the command in this process, in which an unexpected exception ends the test."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "cache_compiled_programs", lambda: None)
        try:
            status = cli.main([*map(str, arguments)])
        except SystemExit as exit:
            status = exit.code
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


@pytest.fixture
def experiment(tmp_path, corpus):
    path = tmp_path / "experiment.py"
    path.write_text(EXPERIMENT.format(run=str(tmp_path / "run"), corpus=str(corpus.path)))
    return path


@pytest.mark.parametrize(
    ("kind", "size"),
    [("wordpiece", 60), *(pytest.param(kind, size, marks=pytest.mark.slow) for kind, size in (("unigram", 36), ("bpe", 60)))],
)
def test_from_text_to_predictions(tmp_path, text, kind, size):
    """The five steps of the README, with every kind of vocabulary."""
    out = ok(bert_jax("vocab", text, "--out", tmp_path / "vocab", "--kind", kind, "--size", size))
    assert re.search(rf"\b{size} tokens", out)
    assert "corpus train: 72 documents, " in ok(
        bert_jax("prepare", text, "--vocab", tmp_path / "vocab", "--out", tmp_path / "corpus", "--held-out", 0.1)
    )
    path = tmp_path / "experiment.py"
    path.write_text(EXPERIMENT.format(run=str(tmp_path / "run"), corpus=str(tmp_path / "corpus")))
    out = ok(bert_jax("pretrain", path, "--optim.peak-lr", "3e-4", "--parallel", "pmap"))
    config, _, report = out.partition("\n}\n")
    assert json.loads(config + "\n}")["optim"]["peak_lr"] == 3e-4
    assert "MLM loss" in report
    assert "unigram model on the same tokens" in report
    again = bert_jax("pretrain", path, "--optim.peak-lr", "3e-4", "--parallel", "pmap")
    assert ok(again).partition("\n}\n")[2] == report
    assert "is complete at step 6" in again.stderr
    out = ok(here("fill-mask", tmp_path / "run", "alpha [MASK] charlie."))
    percentages = [float(line.split()[0].removesuffix("%")) for line in out.splitlines()]
    assert len(percentages) == 5
    assert percentages == sorted(percentages, reverse=True)
    assert 0 < sum(percentages) <= 100
    predictions = json.loads(ok(here("fill-mask", tmp_path / "run", "[MASK] [MASK]", "--json", "--top-k", 2)))
    assert [[set(prediction) for prediction in mask] for mask in predictions] == [[{"token", "probability"}] * 2] * 2
    assert all(1 > first["probability"] >= second["probability"] > 0 for first, second in predictions)


def ok(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(done, sentence, status=2):
    assert done.returncode == status, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_text(tmp_path, text):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("Müller\n".encode("latin-1"))
    (tmp_path / "one.txt").write_text("Only.\nOne document.\n")
    (tmp_path / "nothing").mkdir()
    ok(here("vocab", text, "--out", tmp_path / "vocab", "--size", 97))
    for name, sentence in {
        "empty.txt": "empty.txt contains no text.",
        "latin.txt": "latin.txt, line 1: byte 0xfc at column 2 is not UTF-8",
        "none.txt": "There is no file",
        "nothing": "is a directory without text files",
    }.items():
        refused(here("vocab", tmp_path / name, "--out", tmp_path / "other"), sentence)
        refused(here("prepare", tmp_path / name, "--vocab", tmp_path / "vocab", "--out", tmp_path / "corpus"), sentence)
    refused(
        here("prepare", tmp_path / "one.txt", "--vocab", tmp_path / "vocab", "--out", tmp_path / "corpus"),
        "separate documents by a blank line",
    )
    refused(
        here("prepare", text, "--vocab", tmp_path / "none", "--out", tmp_path / "corpus"),
        "create a vocabulary with `bert-jax vocab`",
    )
    (tmp_path / "vocab" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nalpha\n")
    refused(here("prepare", text, "--vocab", tmp_path / "vocab", "--out", tmp_path / "corpus"), "has no [MASK]")
    assert {path.name for path in tmp_path.iterdir()} == {"empty.txt", "latin.txt", "nothing", "one.txt", "vocab"}


def test_bad_experiments(tmp_path, experiment):
    refused(bert_jax("pretrain", tmp_path / "none.py"), "no experiment")
    refused(here("pretrain", tmp_path), "is a directory")
    (tmp_path / "empty.py").write_text("")
    refused(here("pretrain", tmp_path / "empty.py"), "no function config()")
    (tmp_path / "wrong.py").write_text("def config(): return 3")
    refused(here("pretrain", tmp_path / "wrong.py"), "returns an object of type int")
    (tmp_path / "notes.md").write_text("# Notes\n\n3 eggs\n")
    refused(here("pretrain", tmp_path / "notes.md"), "notes.md, line 3: SyntaxError: invalid syntax.")
    (tmp_path / "short.py").write_text("import bert_jax\n\n\ndef config():\n    return bert_jax.Config(run='run')\n")
    refused(here("pretrain", tmp_path / "short.py"), "short.py, line 5: TypeError: ")
    refused(here("pretrain", experiment, "--data.corpus", tmp_path), "is not a corpus")
    refused(here("pretrain", experiment, "--data.corpus", tmp_path / "notes.md"), "notes.md is not a TFRecord file; text and JSON")
    refused(here("pretrain", experiment, "--data.sequence-length", 513), "exceeds model.max_position_embeddings 512")
    refused(here("pretrain", experiment, "--model.vocab-size", 9), "use --model.vocab-size 89")
    refused(here("pretrain", experiment, "--mesh.tensor", 3), "does not cover 8 devices")
    refused(here("pretrain", experiment, "--model.hidden-act", "swish"), "swish")
    refused(here("pretrain", experiment, "--train.steps", "many"), "many")
    refused(here("pretrain", experiment, "--no-such-field", 1), "no-such-field")
    refused(here("pretrain", experiment, "--mask.rate", 1.5), "mask.rate is 1.5; it must lie in [0, 1]")
    refused(
        here("pretrain", experiment, "--mask.rate", "falling"),
        "mask.rate is 'falling'; give a number, or one of",
    )
    refused(here("pretrain", experiment, "--mask.rate", "linear(0.1, 2)"), "it must lie in [0, 1]")
    refused(here("pretrain", experiment, "--mask.token-weights", tmp_path / "none.tsv"), "none.tsv")
    assert not (tmp_path / "run").exists()


def test_the_python_interface_refuses_unknown_names():
    """The dataclasses check values; outside of tests, annotations are not checked at run time."""
    program = (
        "import bert_jax\n"
        "for make in (lambda: bert_jax.ModelConfig(hidden_act='swish'), lambda: bert_jax.OptimConfig(name='sgd')):\n"
        "    try: make()\n"
        "    except bert_jax.UserError as error: print(error)\n"
        "try: bert_jax.data.windows.cut(None, ['a', ('a', 'b', 'c')], sequence_length=9)\n"
        "except bert_jax.UserError as error: print(error)\n"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.splitlines()
    assert out[0].startswith("model.hidden_act is 'swish'; choose one of gelu")
    assert out[1].startswith("optim.name is 'sgd'; choose one of bert_adam")
    assert out[2] == "Text 2 is neither a string nor a pair of strings."


def test_a_run_directory_of_another_config(experiment, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(resolve(load_experiment(experiment)).to_json())
    refused(here("pretrain", experiment, "--train.seed", 5), "train.seed: 0 -> 5")


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_saves_the_run(experiment, tmp_path, number):
    command = [
        "pretrain",
        str(experiment),
        "--train.steps",
        "100000",
        "--train.save-every",
        "100000",
        "--train.eval-every",
        "100000",
    ]
    running = subprocess.Popen([*PROGRAM, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and len(metrics.read_text().splitlines()) > 5):
        time.sleep(0.05)
    running.send_signal(number)
    _, messages = running.communicate(timeout=120)
    assert running.returncode == 128 + number
    assert f"Stopped by {number.name} at step" in messages
    assert "Traceback" not in messages
    steps = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert len(steps) == 1
    assert json.loads(metrics.read_text().splitlines()[-1])["step"] == steps[0]


def test_ctrl_c_while_preparing_leaves_nothing(tmp_path, text):
    ok(bert_jax("vocab", text, "--out", tmp_path / "vocab", "--size", 97))
    pipe = tmp_path / "endless.txt"
    os.mkfifo(pipe)
    running = subprocess.Popen(
        [*PROGRAM, "prepare", str(pipe), "--vocab", str(tmp_path / "vocab"), "--out", str(tmp_path / "corpus")],
        stderr=subprocess.PIPE,
        text=True,
    )
    with pipe.open("w") as writer:
        writer.write("alpha bravo.\n\n" * 100)
        writer.flush()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and len(list(tmp_path.iterdir())) == 2:
            time.sleep(0.05)
        assert len(list(tmp_path.iterdir())) > 2, "nothing was written before the signal"
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
    messages = running.stderr.read()
    running.stderr.close()
    assert "stopped by Ctrl-C; the same command continues after the last complete shard" in messages
    assert "Traceback" not in messages
    assert {path.name for path in tmp_path.iterdir()} == {"vocab", "endless.txt"}


def descriptions(out):
    """Option -> its description in a help text, without its default; names and values are on the left, descriptions indented."""
    described, option = {}, None
    for line in out.splitlines():
        indent, text = len(line) - len(line.lstrip()), line.strip()
        if indent <= 4 and re.match(r"--?[a-z]", text):
            option = re.match(r"-[\w.-]+(?:, -[\w.-]+)*", text)[0]
            described[option] = text.partition("  ")[2]
        elif option and indent > 4:
            described[option] += f" {text}"
    return {option: re.sub(r"\((default|required|repeatable).*", "", text).strip() for option, text in described.items()}


def test_descriptions_are_read_from_help():
    out = """
  --out STR               File to create. (required)
  --task {a,b,
  c}
                          Task. (default: None)
  --bare INT              (default: 3)
"""
    assert descriptions(out) == {"--out": "File to create.", "--task": "Task.", "--bare": ""}


@pytest.mark.parametrize("command", [*COMMANDS, "pretrain EXPERIMENT", "plan EXPERIMENT", "doctor EXPERIMENT"])
def test_help_describes_every_option(command, experiment):
    name, *more = command.split()
    out = ok(here(name, *([experiment] if more else []), "--help"))
    assert f"usage: bert-jax {name} " in out
    described = descriptions(out)
    # Without an experiment, the help of these commands only refers to the one with an experiment.
    assert ("-h, --help" in described) == (command not in ("pretrain", "plan", "doctor"))
    assert all(len(text.split()) >= 2 for text in described.values()), described
    if more:
        assert all(f"--{section}." in out for section in ("data", "model", "mask", "optim", "mesh", "train"))
        assert "--parallel" in out


def test_usage(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)
    assert cli.main([]) == 2
    assert "usage" in capsys.readouterr().err
    assert cli.main(["dance"]) == 2
    assert "no command 'dance'" in capsys.readouterr().err
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{importlib.metadata.version('bert_jax')}\n"


def test_a_full_disk_is_one_sentence(monkeypatch, capsys, tmp_path, text):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", "corpus")

    monkeypatch.setattr("bert_jax.cli.vocab.tokenizers.create", full)
    assert cli.main(["vocab", str(text), "--out", str(tmp_path / "v"), "--size", "97"]) == 1
    assert "the disk is full" in capsys.readouterr().err


def test_the_stored_config_is_the_resolved_one(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr("bert_jax.training.pretraining.fit", lambda job, directory: Result(0, None, None))
    out = ok(here("pretrain", experiment, "--mask.select", "span", "--mask.replace", 1.0, 0.0, 0.0))
    stored = Config.from_json((tmp_path / "run" / "config.json").read_text())
    assert stored.mask.select == "span"
    assert stored.mask.replace == (1.0, 0.0, 0.0)
    assert '"select": "span"' in out


def test_schedules_and_token_weights_are_text(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr("bert_jax.training.pretraining.fit", lambda job, directory: Result(0, None, None))
    (tmp_path / "rare.tsv").write_text("alpha\t2\nbravo\t0.5\n")
    shares = ["linear(1, 0.8)", 0.0, "linear(0, 0.2)"]
    mask = ["--mask.rate", "linear(0.3, 0.15)", "--mask.prediction-rate", 0.15, "--mask.replace", *shares]
    mask += ["--mask.token-weights", tmp_path / "rare.tsv"]
    ok(here("pretrain", experiment, *mask))
    stored = Config.from_json((tmp_path / "run" / "config.json").read_text()).mask
    assert (stored.rate, stored.prediction_rate, [*stored.replace]) == ("linear(0.3, 0.15)", 0.15, shares)
    assert stored.steps == 6
    # The table is identified by its content, so that a run is not resumed with another table.
    assert "rare.tsv" in stored.token_weights
    ok(here("pretrain", experiment, *mask))
    (tmp_path / "rare.tsv").write_text("alpha\t3\n")
    refused(here("pretrain", experiment, *mask), "mask.token_weights: ")


RESTARTED = """
import os, sys
sys.argv = ['bert-jax', 'embed', '--help']
from bert_jax import cli
try:
    cli.main()
except SystemExit:
    pass
print(os.environ.get('GLIBC_TUNABLES'))
"""


@pytest.mark.skipif(any(map(glob.glob, process._ACCELERATOR_DEVICES)), reason="machines with accelerators are left as they are")
@pytest.mark.parametrize(
    ("changes", "restarts"),
    [
        ({}, True),
        ({"GLIBC_TUNABLES": "glibc.malloc.check=0"}, False),
        ({"BERT_JAX_ALLOCATOR": "system"}, False),
        ({"JAX_PLATFORMS": "cuda,cpu"}, False),
    ],
    ids=["default", "own tunables", "switched off", "accelerator"],
)
def test_commands_that_compute_restart_with_other_allocator_settings(changes, restarts):
    environment = {name: value for name, value in os.environ.items() if name not in ("GLIBC_TUNABLES", "JAX_PLATFORMS")} | changes
    program = [sys.executable, "-c", RESTARTED]
    output = subprocess.run(program, env=environment, capture_output=True, text=True, check=True).stdout
    restarts = restarts and platform.libc_ver()[0] == "glibc"
    assert output.splitlines()[-1] == (process.TUNABLES if restarts else str(changes.get("GLIBC_TUNABLES")))
    assert output.count("usage: bert-jax embed") == 1


def test_processes_with_accelerators_or_debuggers_are_left_as_they_are(monkeypatch, tmp_path):
    monkeypatch.delenv("BERT_JAX_ALLOCATOR", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(process, "_ACCELERATOR_DEVICES", (str(tmp_path / "nvidia0"),))
    assert process.is_adjustable()
    monkeypatch.setenv("JAX_PLATFORMS", "TPU,cpu")
    assert not process.is_adjustable()
    monkeypatch.setenv("JAX_PLATFORMS", "")
    (tmp_path / "nvidia0").touch()
    assert not process.is_adjustable()
    (tmp_path / "nvidia0").unlink()
    assert process.is_adjustable()
    trace = sys.gettrace()
    sys.settrace(lambda *_: None)
    try:
        assert not process.is_adjustable()
        monkeypatch.setattr(os, "_exit", lambda status: pytest.fail("exited in a debugger"))
        process.exit_promptly(130)
    finally:
        sys.settrace(trace)
