"""Runs that an earlier version stored: their models are read exactly, and they are never resumed by mistake."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import bert_jax
from bert_jax.checkpoints import HEADS_OF_VERSION_1, report
from bert_jax.config import format as config_format
from bert_jax.config.format import VERSION
from bert_jax.inference.verification import probe
from tests.conftest import files_below
from tests.runs import config_of, lines_of, save_model, write_data

pytestmark = pytest.mark.usefixtures("unoptimized")

# Made by bert_jax before it stored a format version (commit ac198e3), with that version's outputs on these texts.
OLD = Path(__file__).parent / "golden" / "format_1"
TEXTS = [
    ("How many tokens does a text have?", "It depends on the vocabulary, 1234567890."),
    "Paris is the capital of France.",
    "x",
]


@pytest.mark.parametrize("run", ["pretraining", "task"])
def test_the_model_of_an_old_run_is_read_exactly(run):
    outputs = probe(bert_jax.load(OLD / run), TEXTS)
    stored = np.load(OLD / "outputs.npz")
    expected = {name.removeprefix(f"{run}/"): stored[name] for name in stored if name.startswith(f"{run}/")}
    assert outputs.keys() == {HEADS_OF_VERSION_1.get(name, name) for name in expected}
    for name, value in expected.items():
        rows = value[: len(TEXTS), 0] if value.shape[1] == 1 else value[: len(TEXTS)]
        np.testing.assert_allclose(outputs[HEADS_OF_VERSION_1.get(name, name)], rows, rtol=1e-6, atol=1e-6, err_msg=name)


def test_an_old_classifier_keeps_its_labels():
    assert bert_jax.load(OLD / "task").labels == ("no", "yes")


@pytest.mark.parametrize("kind", ["pretraining", "task"])
def test_an_old_run_is_not_resumed(kind, run_config, tokenizer, tmp_path):
    run = tmp_path / "old"
    shutil.copytree(OLD / kind, run)
    before = files_below(run)
    assert before
    if kind == "pretraining":
        resume, config = bert_jax.pretrain, dataclasses.replace(run_config, run=str(run))
    else:
        init, data = save_model(tmp_path / "init", tokenizer), write_data(tmp_path / "data", "classify")
        resume, config = bert_jax.finetune, config_of("classify", init, data, run)
    with pytest.raises(bert_jax.UserError, match=r"format version 1, this package writes version 2: start a new run directory"):
        resume(config)
    assert files_below(run) == before


def test_an_old_config_is_refused():
    with pytest.raises(bert_jax.UserError, match="format version 1"):
        bert_jax.Config.from_json((OLD / "pretraining" / "config.json").read_text())
    with pytest.raises(bert_jax.UserError, match="format version 1"):
        bert_jax.FinetuneConfig.from_json((OLD / "task" / "config.json").read_text())


def test_files_of_a_newer_version_are_refused(run_config, monkeypatch, quick):
    bert_jax.pretrain(run_config)
    monkeypatch.setattr(config_format, "VERSION", VERSION - 1)
    sentence = f"format version {VERSION}, which is newer than the version {VERSION - 1} that this package reads; install a newer"
    for read in (lambda: bert_jax.load(run_config.run), lambda: bert_jax.pretrain(run_config)):
        with pytest.raises(bert_jax.UserError, match=sentence):
            read()


def test_a_new_config_carries_its_version(run_config):
    stored = json.loads(run_config.to_json())
    assert stored["format_version"] == VERSION
    with pytest.raises(bert_jax.UserError, match=f"format version {VERSION + 1}"):
        bert_jax.Config.from_json(json.dumps(stored | {"format_version": VERSION + 1}))


# Made by make_format.py: an unfinished run, and what it computes next.
PRESENT = Path(__file__).parent / "golden" / f"format_{VERSION}"


@pytest.fixture
def stored_run(tmp_path):
    return Path(shutil.copytree(PRESENT, tmp_path / "stored"))


def test_a_stored_run_of_the_present_version_is_resumed(stored_run, quick):
    """The next steps are those of the version that stored it, but for the rounding of another processor."""
    config = bert_jax.Config.from_json((stored_run / "run" / "config.json").read_text())
    data = dataclasses.replace(config.data, corpus=str(stored_run / "corpus"))
    result = bert_jax.pretrain(dataclasses.replace(config, run=str(stored_run / "run"), data=data))
    assert result.step == 4
    expected = [json.loads(line) for line in (stored_run / "next.jsonl").read_text().splitlines()]
    lines = lines_of(stored_run / "run", "train")[-2:]
    assert [line["step"] for line in lines] == [3, 4]
    for line, stored in zip(lines, expected, strict=True):
        for name in ("loss", "grad_norm", "mask_rate", "learning_rate", "examples_per_step"):
            assert line[name] == pytest.approx(stored[name], rel=1e-5), name


def test_the_model_of_a_stored_run_of_the_present_version_is_read_exactly(stored_run):
    texts = [("alpha bravo charlie", "delta echo."), "golf hotel india juliett.", "x"]
    outputs, stored = probe(bert_jax.load(stored_run / "run"), texts), np.load(stored_run / "outputs.npz")
    assert outputs.keys() == set(stored)
    for name, value in outputs.items():
        np.testing.assert_allclose(value, stored[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_stored_run_of_the_present_version_is_whole(stored_run):
    (entry,) = report.read(stored_run / "run", verify=True)
    assert (entry.step, entry.version, entry.problems, entry.kept) == (2, VERSION, (), ("newest",))
