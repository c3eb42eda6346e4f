"""bert-jax doctor: each injected fault is found in seconds, in a sentence that says what to do."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time

import filelock
import jax
import pytest

from bert_jax import tokenizers
from bert_jax.cli import main
from bert_jax.cluster import checks, doctor, network
from bert_jax.config.masking import MaskPolicy
from bert_jax.config.mesh import MeshConfig
from bert_jax.data.building import write_corpus
from bert_jax.training.pretraining import pretrain
from tests.processes.hosts import Hosts

pytestmark = pytest.mark.usefixtures("unoptimized")

SECONDS = 30


def changed(config, **changes):
    """The config with fields ``section__name`` changed, or whole sections."""
    for name, value in changes.items():
        section, _, field = name.partition("__")
        value = dataclasses.replace(getattr(config, section), **{field: value}) if field else value
        config = dataclasses.replace(config, **{section: value})
    return config


def found(config, level):
    """Sentences of one level; nothing takes long."""
    began = time.monotonic()
    findings = [*doctor.examine(config)]
    assert time.monotonic() - began < SECONDS
    return {finding.check: finding.sentence for finding in findings if finding.level == level}


def copy_corpus(config, tmp_path):
    shutil.copytree(config.data.corpus, tmp_path / "copy")
    return changed(config, data__corpus=str(tmp_path / "copy")), tmp_path / "copy"


def test_a_sound_run_passes_and_nothing_is_left_behind(run_config, tmp_path, quick):
    findings = [*doctor.examine(run_config)]
    assert {finding.level for finding in findings} == {"ok"}, findings
    assert [finding.check for finding in findings] == [
        check.__name__.removeprefix("_").replace("_", " ") for check in checks.CHECKS
    ]
    assert not (tmp_path / "run").exists()
    pretrain(run_config)
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert not found(run_config, "error")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


# What is wrong with a config -> the check that finds it, its level, and what its sentence says.
FAULTS = [
    ({"data__corpus": "nowhere"}, "data", "error", "nowhere is not a corpus; create one with `bert-jax prepare`"),
    ({"model__vocab_size": 20}, "data", "error", "but model.vocab_size is 20; use --model.vocab-size"),
    (
        {"model__vocab_size": 5_000},
        "vocabulary",
        "warning",
        "are never used. Use --model.vocab-size",
    ),
    ({"mask": MaskPolicy(rate="linear(0.15, 1.2)")}, "data", "error", "mask.rate is 1.06875 at step 7; it must lie in"),
    ({"mask": MaskPolicy(rate="linear(0.4, 0.1)", max_predictions=9)}, "data", "error", "but mask.max_predictions is 9"),
    ({"mask": MaskPolicy(token_weights="none.tsv")}, "data", "error", "There is no file none.tsv of token weights"),
    ({"data__batch_size": 12}, "devices", "error", "data.batch_size 12 is not divisible by 8 devices"),
    ({"mesh": MeshConfig(data=3)}, "devices", "error", "3"),
    ({"mesh": MeshConfig(tensor=8)}, "devices", "error", "8"),
    ({"train__eval_every": 99}, "settings", "warning", "train.eval_every is 99, but the run has 8 steps"),
    ({"train__save_every": 99}, "settings", "warning", "a run that is killed starts again from the beginning; use less"),
    ({"run": "/proc/run"}, "run directory", "error", "/proc/run cannot be written"),
    ({"run": "gs://no-such-bucket-of-bert-jax-?"}, "run directory", "error", "gs://"),
]


@pytest.mark.parametrize(("changes", "check", "level", "sentence"), FAULTS)
def test_faults_of_a_config_are_found(run_config, changes, check, level, sentence):
    assert sentence in found(changed(run_config, **changes), level)[check]


@pytest.mark.parametrize("damage", ["shard", "truncated", "version", "vocabulary", "table"])
def test_faults_of_a_corpus_are_found(run_config, tmp_path, damage):
    config, path = copy_corpus(run_config, tmp_path)
    shard = sorted(path.glob("*train*array_record*"))[0]
    if damage == "shard":
        shard.unlink()
    elif damage == "truncated":
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    elif damage == "version":
        info = path / "dataset_info.json"
        info.write_text(json.dumps(json.loads(info.read_text()) | {"version": "9.0.0"}))
    elif damage == "vocabulary":
        lines = (path / "vocab.txt").read_text().splitlines()
        (path / "vocab.txt").write_text("\n".join([*lines[:-2], lines[-1], lines[-2]]) + "\n")
    else:
        sorted(path.glob("*train*lengths*"))[0].unlink()
    errors = found(config, "error")
    assert errors, damage
    assert str(path) in next(iter(errors.values()))


def test_a_vocabulary_of_another_casing_is_found(run_config, tmp_path):
    shouted = [["ALPHA BRAVO CHARLIE.", "DELTA ECHO."]] * 40
    lower = tokenizers.train(lambda: ["alpha bravo charlie delta echo."], kind="wordpiece", size=40)
    files = lower.files | {tokenizers.CONFIG: json.dumps({"do_lower_case": False}).encode()}
    write_corpus(shouted, tmp_path / "shouted", tokenizers.from_files(files), held_out=0.1)
    warned = found(changed(run_config, data__corpus=str(tmp_path / "shouted")), "warning")
    assert "are [UNK]: the vocabulary is probably one of another casing or language" in warned["documents"]


def test_faults_of_a_run_directory_are_found(run_config, tmp_path, tokenizer, quick):
    pretrain(run_config)
    with filelock.FileLock(tmp_path / "run" / ".lock"):
        assert "is in use by another process; wait for it" in found(run_config, "error")["run directory"]
    other = changed(run_config, optim__peak_lr=0.5)
    assert "another config (optim.peak_lr: 0.001 -> 0.5)" in found(other, "error")["run directory"]
    write_corpus([["alpha bravo charlie.", "delta echo."]] * 40, tmp_path / "other", tokenizer, held_out=0.1)
    other = changed(run_config, data__corpus=str(tmp_path / "other"))
    assert "was started with other data" in found(other, "error")["checkpoint"]
    newest = tmp_path / "run" / "checkpoints" / "8" / "state"
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(bytes(largest.stat().st_size))
    assert "Checkpoint 8 in" in (sentence := found(run_config, "error")["checkpoint"])
    assert "is damaged" in sentence
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("mine")
    assert "exists and is not a run" in found(dataclasses.replace(run_config, run=str(tmp_path / "mine")), "error")["run directory"]


def test_a_disk_that_is_too_small_is_found(run_config, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=10_000))
    assert "the disk of" in (sentence := found(run_config, "error")["disk"])
    assert "keep fewer (--train.keep)" in sentence


def test_too_little_memory_is_found(run_config, monkeypatch):
    monkeypatch.setattr(checks, "_host_memory", lambda: 80_000)
    assert "use a larger --mesh.fsdp or more devices" in found(run_config, "error")["memory"]


@pytest.mark.parametrize(
    ("setting", "level", "sentence"),
    [
        ("jax_debug_nans", "warning", "JAX_DEBUG_NANS is set, which makes every step slower"),
        ("jax_disable_jit", "error", "JAX_DISABLE_JIT is set"),
    ],
)
def test_settings_of_jax_are_found(run_config, setting, level, sentence):
    findings = []
    jax.config.update(setting, True)
    try:
        findings = doctor._findings(checks._jax, checks.Opened(run_config, None))
    finally:
        jax.config.update(setting, False)
    assert [(finding.level, sentence in finding.sentence) for finding in findings] == [(level, True)]


def test_an_accelerator_that_jax_does_not_use_is_found(run_config, monkeypatch):
    monkeypatch.setattr("glob.glob", lambda pattern: ["/dev/nvidia0"] if "nvidia" in pattern else [])
    assert (
        "has an accelerator (nvidia0), but JAX computes on the CPU; install jax[cuda13]" in found(run_config, "warning")["devices"]
    )


def test_a_slow_disk_is_found(run_config, monkeypatch):
    monkeypatch.setattr(checks, "_SLOW_WRITE", 0.0)
    assert "metrics and checkpoints will be slow there" in found(run_config, "warning")["run directory"]


def test_the_sum_over_devices_is_timed():
    measured = network.time_all_reduce(2**20)
    assert measured.size == 2**20
    assert measured.rate == pytest.approx(2 * 7 / 8 * 2**20 / measured.seconds)


def test_the_command_prints_findings_and_json(run_config, tmp_path, capsys):
    (tmp_path / "config.json").write_text(run_config.to_json())
    assert main(["doctor", str(tmp_path / "config.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(checks.CHECKS)
    assert lines[1].split()[:2] == ["ok", "data"]
    assert main(["doctor", str(tmp_path / "config.json"), "--json", "--data.corpus", "nowhere"]) == 2
    findings = json.loads(capsys.readouterr().out)
    assert [finding["check"] for finding in findings if finding["level"] == "error"] == ["data"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "2 processes agree on config, data, code, packages and devices"),
        (["--optim.peak-lr=0.002"], "(optim.peak_lr: 0.002, not 0.001)"),
        (["--data.corpus=nowhere"], "nowhere is not a corpus"),
    ],
)
def test_processes_examine_a_run_together(run_config, tmp_path, arguments, sentence):
    hosts = Hosts(run_config, tmp_path / "hosts", differing={1: arguments}, command="doctor")
    ended = hosts.ended()
    assert {status for status, _ in ended.values()} == {2 if arguments else 0}, ended
    assert sentence in hosts.output[0]
    assert not hosts.output[1]
    assert not (tmp_path / "run").exists()
    assert ("summed over" in hosts.output[0]) == (not arguments)
