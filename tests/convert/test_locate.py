"""Paths and files that are something else than a model: one sentence says what, and what to do."""

from __future__ import annotations

import dataclasses
import json
import pickle
import tarfile
import zipfile

import jax
import numpy as np
import pytest
import torch
import transformers

import bert_jax
from bert_jax.convert import hf
from bert_jax.errors import BertWarning, UserError

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 440449768\n"
SHAPE = dict(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
VOCAB = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nc\n"


@pytest.fixture
def model(tmp_path):
    """A model directory of transformers, and the module."""
    bert = transformers.BertModel(transformers.BertConfig(**SHAPE, max_position_embeddings=16))
    bert.save_pretrained(tmp_path / "model")
    (tmp_path / "model/vocab.txt").write_text(VOCAB)
    return tmp_path / "model", bert


def refused(path, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        bert_jax.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.txt", "config.json"])
def test_files_that_are_not_what_they_seem(model, name):
    directory, _ = model
    for content, sentence in (
        (LFS.encode(), "is a Git LFS pointer, not the file itself; run git lfs pull"),
        (b"<!DOCTYPE html>\n<html><body>Not found", "is a web page, not the file itself; download"),
        (b"", "is empty; copy or download it again"),
    ):
        (directory / name).write_bytes(content)
        refused(directory, rf"{name} {sentence}")


def test_texts_and_archives_as_weights(model, tmp_path):
    directory, _ = model
    weights = directory / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(b"Entry not found")
    refused(directory, "is a text that begins with 'Entry not found', not a file of weights")
    weights.unlink()
    with zipfile.ZipFile(directory / "pytorch_model.bin", "w") as archive:
        archive.writestr("model/model.safetensors", content)
    refused(directory, "is an archive of other files; unpack it and name the directory")
    with tarfile.open(directory / "pytorch_model.bin", "w") as archive:
        archive.add(directory / "config.json")
    refused(directory, "is an archive; unpack it and name the directory")
    with zipfile.ZipFile(directory / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/code/__torch__.py", "")
    refused(directory, "is a TorchScript program; save the state dict of its model")
    (tmp_path / "model.zip").write_bytes(b"PK\3\4")
    refused(tmp_path / "model.zip", "is an archive; unpack it")


def test_an_adapter_without_its_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "bert-base-uncased", "peft_type": "LORA"}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\10" + bytes(7) + b"{}      ")
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        refused(path, "a PEFT adapter of bert-base-uncased, which changes another model; .* merge_and_unload")


def test_an_adapter_beside_its_base_is_named(model):
    (model[0] / "adapter_config.json").write_text("{}")
    with pytest.warns(BertWarning, match="belongs to a PEFT adapter, which was not read; merge it"):
        bert_jax.load(model[0])


def test_the_output_of_a_trainer_one_level_up(model, tmp_path):
    for step in (500, 1000, 90):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
    (tmp_path / "run" / "training_args.bin").write_bytes(b"PK")
    refused(tmp_path / "run", r"is the output of a Trainer with 3 checkpoints; name one, the newest is .*checkpoint-1000\.")


@pytest.mark.parametrize("below", [".", "checkpoints", "lightning_logs/version_1/checkpoints"])
def test_checkpoints_of_lightning(model, tmp_path, below):
    directory, bert = model
    place = tmp_path / "run" / below
    place.mkdir(parents=True)
    state = {f"model.bert.{name}": value for name, value in bert.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state | {"loss.weight": torch.ones(2)}, "callbacks": {}}, place / "epoch=1.ckpt")
    refused(tmp_path / "run", r"name .*epoch=1.ckpt" if below == "." else r"of a Lightning run; name a checkpoint .*epoch=1.ckpt\.")
    refused(place / "epoch=1.ckpt", "There is no config.json or bert_config.json")
    (place / "config.json").write_bytes((directory / "config.json").read_bytes())
    with pytest.warns(BertWarning) as caught:
        loaded = bert_jax.load(place / "epoch=1.ckpt")
    assert ["read without the prefix model. of" in str(one.message) for one in caught] == [True, False]
    assert "loss.weight belong to no head" in str(caught[1].message)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, bert_jax.load(directory).params)


def test_checkpoints_of_other_programs(model):
    directory, bert = model
    (directory / "model.safetensors").unlink()
    (directory / "x.ckpt").write_bytes(b"\1\2\3" * 99)
    refused(directory / "x.ckpt", "is a checkpoint of another program than PyTorch; of a TensorFlow checkpoint copy the .index")
    (directory / "x.ckpt").write_bytes(pickle.dumps({"a": open}))
    refused(directory / "x.ckpt", "could run code .* save only the model's state dict")
    (directory / "x.ckpt").unlink()
    for key in ("state_dict", "model_state_dict", "model"):
        torch.save({key: bert.state_dict(), "step": 3}, directory / "pytorch_model.bin")
        np.testing.assert_array_equal(bert_jax.load(directory).params["bert"]["pooler"]["bias"], bert.pooler.dense.bias.detach())


OTHERS = {
    "model.onnx": "model.onnx is an ONNX file, a compiled graph; use the model that it was exported from",
    "onnx/model.onnx": "model.onnx is an ONNX file",
    "saved_model.pb": "is a TensorFlow SavedModel, a compiled graph; use the checkpoint",
    "tf_model.h5": "tf_model.h5 is a Keras file, which TensorFlow alone reads; load it with transformers 4",
    "model.Q8_0.gguf": "is a GGUF file, the format of llama.cpp",
    "model.tar.gz": "model.tar.gz is an archive; unpack it",
    "0_Transformer/model.safetensors": "its weights are in a directory below; name .*0_Transformer",
    "bert.safetensors": "name the file of weights to read, for example .*bert.safetensors",
    "model-00001-of-00002.safetensors": "is a part of one; put the .index.json",
    "bert_model.ckpt.data-00000-of-00001": "is a part of a TensorFlow checkpoint, whose .index file is missing",
    "training_args.bin": "it has config.json and vocab.txt but no weights; put model.safetensors there",
}


@pytest.mark.parametrize("name", OTHERS)
def test_directories_without_weights(tmp_path, name):
    for file in ("config.json", "vocab.txt", name):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"\1\2\3")
    refused(tmp_path, OTHERS[name])


@pytest.mark.parametrize("name", ["model.onnx", "tf_model.h5", "m.gguf", "model.tar.gz", "bert_model.ckpt.data-00000-of-00001"])
def test_files_of_other_programs(tmp_path, name):
    (tmp_path / name).write_bytes(b"\1\2\3")
    refused(tmp_path / name, r"is an? .*; (use|load|unpack|name)")


@pytest.mark.parametrize(
    ("name", "download"),
    [
        ("bert-base-uncased", "hf download bert-base-uncased --local-dir bert-base-uncased"),
        ("google-bert/bert-base-cased", "hf download google-bert/bert-base-cased --local-dir bert-base-cased"),
        ("https://huggingface.co/google-bert/bert-base-cased", "hf download google-bert/bert-base-cased --local-dir bert-base"),
    ],
)
def test_names_on_a_hub(tmp_path, monkeypatch, name, download):
    monkeypatch.chdir(tmp_path)
    refused(name, f"nothing is downloaded here.* run {download}")
    with pytest.raises(UserError, match=r"There is no model .*; give a directory or a file of weights\."):
        bert_jax.load(tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[1]", "contains a list, not a JSON object"),
        ("null", "contains a NoneType, not a JSON object"),
        ("{", "is not JSON"),
        ({"hidden_size": "8"}, "hidden_size is '8'; it must be int"),
        ({"hidden_size": None}, "hidden_size is None; it must be int"),
        ({"num_hidden_layers": 1.0}, "num_hidden_layers is 1.0; it must be int"),
        ({"num_attention_heads": [2]}, "num_attention_heads is .*; it must be int"),
        ({"num_attention_heads": ...}, "has no num_attention_heads"),
        ({"layer_norm_eps": "1e-12"}, "layer_norm_eps is '1e-12'; it must be float"),
        ({"hidden_act": {"name": "gelu"}}, "hidden_act .* is not supported"),
        ({"hidden_act": True}, "hidden_act True, which is not supported"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'; it must be bool"),
        ({"model_type": ["bert"]}, "describes a .* model; only BERT"),
    ],
)
def test_other_types_in_a_config(model, content, sentence):
    path = model[0] / "config.json"
    if isinstance(content, dict):
        changed = json.loads(path.read_text()) | content
        content = json.dumps({name: value for name, value in changed.items() if value is not ...})
    path.write_text(content)
    refused(model[0], sentence)


def test_other_types_that_change_nothing(model):
    """Keys that do not affect what is computed are not looked at."""
    path = model[0] / "config.json"
    expected = bert_jax.load(model[0])
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": {"a": 1}, "use_cache": "no", "id2label": 3}))
    loaded = bert_jax.load(model[0])
    assert dataclasses.replace(loaded.config) == expected.config
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected.params)
    assert hf.read_config(path) == expected.config
