"""Files beside the weights: what changes the outputs elsewhere is named, what cannot is passed over."""

from __future__ import annotations

import json
import warnings

import jax
import pytest

import bert_jax
from bert_jax.errors import BertWarning
from bert_jax.models import init_params


@pytest.fixture
def model(tmp_path, tokenizer):
    config = bert_jax.ModelConfig.size("tiny", vocab_size=len(tokenizer.tokens))
    bert_jax.save(bert_jax.Bert(config, init_params(config, jax.random.key(0)), tokenizer), tmp_path / "model", to="hf")
    return tmp_path / "model"


def loading(path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", BertWarning)
        bert_jax.load(path)
    return [str(warning.message) for warning in caught]


# Directories of bert-base-uncased, all-MiniLM-L6-v2 and a Trainer's checkpoint, without the files that are read.
PASSED_OVER = (
    "README.md", "LICENSE", ".gitattributes", "coreml/fill-mask/float32_model.mlpackage/Manifest.json", "model.onnx",
    "onnx/model.onnx", "openvino/openvino_model.xml", "openvino_model.bin", "flax_model.msgpack", "pytorch_model.bin",
    "rust_model.ot", "tf_model.h5", "data_config.json", "train_script.py", "generation_config.json", "training_args.bin",
    "optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "scaler.pt", "trainer_state.json", "all_results.json",
    "eval_results.json", "events.out.tfevents.1", "runs/events.out.tfevents.2", "log.txt", "eval/similarity_evaluation.csv",
)  # fmt: skip


def test_what_cannot_change_an_answer_is_passed_over(model):
    for name in PASSED_OVER:
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(b"{}")
    assert loading(model) == []


@pytest.mark.parametrize(
    "name",
    ["vocab.json", "merges.txt", "model_head.pkl", "modeling_custom.py", "extra.safetensors", "config_setfit.json",
     "1_Pooling/config.json", "sentence_bert_config.json", "sentencepiece.bpe.model"],
)  # fmt: skip
def test_what_may_change_an_answer_is_named(model, name):
    (model / name).parent.mkdir(parents=True, exist_ok=True)
    (model / name).write_bytes(b"{}")
    (warning,) = loading(model)
    assert f"not read and may change what the model gives: {name.partition('/')[0]}." in warning


def test_code_in_the_config_is_named(model):
    description = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(description | {"auto_map": {"AutoModel": "modeling_custom.Custom"}}))
    (warning,) = loading(model)
    assert "auto_map" in warning
