"""Verification of a written model: transformers reads it in a process of its own, and what differs is named."""

from __future__ import annotations

import dataclasses
import importlib.util
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import bert_jax
from bert_jax import convert, tokenizers
from bert_jax.errors import RunError
from bert_jax.models import init_params
from bert_jax.models.sentence_embedding import Normalize, SentenceEmbedding
from tests.conftest import MODEL

pytestmark = pytest.mark.usefixtures("unoptimized")

WORDS = ["the capital of France is Paris", "how many tokens does a text have", "it depends on the vocabulary", "a naïve café"]


def make(kind="wordpiece", heads=None, embedding=None):
    tokenizer = tokenizers.train(lambda: WORDS * 20, kind=kind, size=60 if kind == "wordpiece" else 40)
    config = dataclasses.replace(MODEL, vocab_size=len(tokenizer.tokens))
    heads = heads or {"mlm": 0, "nsp": 2}
    return bert_jax.Bert(config, init_params(config, jax.random.key(3), heads=heads), tokenizer, embedding=embedding)


def readings(report):
    return {reading["reader"].split()[0]: reading["largest_differences"] for reading in report["verification"]}


@pytest.mark.parametrize(
    ("kind", "heads"),
    [
        ("wordpiece", {"mlm": 0, "nsp": 2}),
        ("unigram", {"token_classification": 3}),
        ("bpe", {"question_answering": 2}),
        pytest.param("wordpiece", {"multiple_choice": 1}, marks=pytest.mark.slow),
    ],
)
def test_transformers_reads_exports(tmp_path, kind, heads):
    bert = make(kind, heads)
    report = bert_jax.save(bert, tmp_path / "model", to="hf", verify=True)
    own, theirs = readings(report).values()
    assert set(theirs) == set(own) == {"hidden", "pooled", *heads}
    assert max(own.values()) == 0
    assert 0 < max(theirs.values()) < 1e-5
    assert json.loads((tmp_path / "model" / "conversion.json").read_text()) == report


def test_sentence_transformers_reads_embeddings(tmp_path):
    bert = make(embedding=SentenceEmbedding(("cls",), (Normalize(),), 16))
    report = bert_jax.save(bert, tmp_path / "model", to="hf", verify=True)
    assert "sentence-transformers" in report["verification"][1]["reader"]
    assert readings(report)["transformers"]["embedding"] < 1e-6


def test_without_transformers_the_report_names_the_own_reader(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if name == "transformers" else find(name, *args))
    report = bert_jax.save(make(), tmp_path / "model", to="hf", verify=True)
    assert set(readings(report)) == {"bert_jax"}


def _break_tokenizer_json(directory):
    stored = json.loads((directory / "tokenizer.json").read_text())
    stored["model"]["vocab"] = {token: index for index, token in enumerate(reversed(stored["model"]["vocab"]))}
    (directory / "vocab.txt").unlink()
    (directory / "tokenizer.json").write_text(json.dumps(stored))


def _scale_a_tensor(directory):
    tensors = safetensors.numpy.load_file(directory / "model.safetensors")
    tensors["cls.predictions.transform.dense.weight"] = 2 * tensors["cls.predictions.transform.dense.weight"]
    safetensors.numpy.save_file(tensors, directory / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_scale_a_tensor, "bert_jax .* computes mlm with a difference of"),
        (_break_tokenizer_json, "bert_jax .* gives 'Paris is the capital of France.' the ids"),
    ],
)
def test_what_differs_is_named_and_nothing_is_written(tmp_path, monkeypatch, damage, sentence):
    write = convert._write_family

    def damaged(model, directory, family):
        tensors = write(model, directory, family)
        damage(directory)
        return tensors

    monkeypatch.setattr(convert, "_write_family", damaged)
    with pytest.raises(RunError, match=sentence):
        bert_jax.save(make(), tmp_path / "model", to="hf", verify=True)
    assert list(tmp_path.iterdir()) == []


def test_what_transformers_cannot_read_is_refused(tmp_path, monkeypatch):
    # Our reader needs no class; that of transformers does.
    describe = convert.hf.classes
    monkeypatch.setattr(convert.hf, "classes", lambda heads: dict.fromkeys(describe(heads), "BertForNothing"))
    with pytest.raises(RunError, match=r"transformers cannot read it .*BertForNothing"):
        bert_jax.save(make(), tmp_path / "model", to="hf", verify=True)
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_not_finite_are_refused(tmp_path):
    bert = make()
    bert.params["nsp"]["bias"] = np.array([np.nan, 0], np.float32)
    with pytest.raises(RunError, match="computes nsp with a difference of nan"):
        bert_jax.save(bert, tmp_path / "model", to="orbax", verify=True)
