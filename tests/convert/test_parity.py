"""Equality with independent implementations: transformers with PyTorch in float64, and stored outputs of Google's own code and of
the former Flax classes of transformers (``golden/``).

Tolerances are relative to the largest value of the compared array. The reference is exact, so the difference is float32 rounding
alone: each layer adds a few units of 6e-8 times the number of terms in its sums.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import bert_jax
from bert_jax.convert import tree
from bert_jax.data import windows
from bert_jax.inference import compiled
from bert_jax.models.encoder import hidden_states
from bert_jax.training import losses

GOLDEN = Path(__file__).parents[1] / "golden"
SHAPE = dict(
    vocab_size=101,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=19,
    initializer_range=0.2,
)
VARIANTS = {
    "erf": {},
    "tanh": {"hidden_act": "gelu_new"},
    "relu": {"hidden_act": "relu"},
    "one type": {"type_vocab_size": 1},
    "five types": {"type_vocab_size": 5},
    "large eps": {"layer_norm_eps": 1e-3},
    "odd sizes": {"hidden_size": 35, "num_attention_heads": 5, "intermediate_size": 37, "num_hidden_layers": 1},
    "twelve layers": {"num_hidden_layers": 12},
}
# Classes of transformers, further arguments of their configs, and the heads of this package.
CLASSES = {
    "pretraining": ("BertForPreTraining", {}, {"mlm": 101, "nsp": 2}),
    "masked language model": ("BertForMaskedLM", {}, {"mlm": 101}),
    "next sentence": ("BertForNextSentencePrediction", {}, {"nsp": 2}),
    "classification": (
        "BertForSequenceClassification",
        {"id2label": {0: "no", 1: "yes", 2: "both"}},
        {"sequence_classification": 3},
    ),
    "multi-label": (
        "BertForSequenceClassification",
        {"id2label": {0: "a", 1: "b", 2: "c"}, "problem_type": "multi_label_classification"},
        {"multilabel_classification": 3},
    ),
    "regression": ("BertForSequenceClassification", {"num_labels": 1}, {"regression": 1}),
    "token classification": ("BertForTokenClassification", {"num_labels": 4}, {"token_classification": 4}),
    "question answering": ("BertForQuestionAnswering", {}, {"question_answering": 2}),
    "multiple choice": ("BertForMultipleChoice", {}, {"multiple_choice": 1}),
    "encoder": ("BertModel", {}, {}),
}


# Names of arrays in golden/*/outputs.npz.
STORED_ARRAYS = {"input_ids": "ids", "token_type_ids": "types", "segment_ids": "segments"}


def close(actual, expected, tolerance):
    expected = np.asarray(expected, np.float64)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(actual) / scale, expected / scale, rtol=0, atol=tolerance)


def transformers_model(name, **changes):
    """A model of transformers in which all parameters are random, biases and layer norms too."""
    torch.manual_seed(0)
    config = transformers.BertConfig(**(SHAPE | changes))
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def arrays(types=2):
    """A full row, a padded row and a row with a single token."""
    rng = np.random.default_rng(1)
    segments = (np.arange(19) < np.array([[19], [7], [1]])).astype(np.int32)
    return {
        "input_ids": rng.integers(0, 101, (3, 19), np.int32),
        "token_type_ids": rng.integers(0, types, (3, 19), np.int32),
        "segment_ids": segments,
    }


def as_torch(batch):
    names = {"input_ids": "input_ids", "token_type_ids": "token_type_ids", "attention_mask": "segment_ids"}
    return {name: torch.tensor(batch[stored]).long() for name, stored in names.items()}


def as_batch(bert, arrays):
    return jax.tree.map(jnp.asarray, windows.from_arrays(arrays, bert.config))


def stored_arrays(stored):
    """The inputs in an outputs.npz."""
    return {name: stored[key] for name, key in STORED_ARRAYS.items()}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def pair(request, tmp_path):
    """The same model in both libraries, and arrays."""
    model = transformers_model("BertForPreTraining", **request.param)
    model.save_pretrained(tmp_path / "hf")
    bert = bert_jax.load(tmp_path / "hf")
    # Compiles one layer instead of twelve; tests/models/test_encoder.py shows that both are equal.
    bert = dataclasses.replace(bert, config=dataclasses.replace(bert.config, layers="scan"))
    return bert, model.double(), arrays(model.config.type_vocab_size)


def test_every_layer_and_both_heads(pair):
    bert, model, inputs = pair
    batch, valid = as_batch(bert, inputs), inputs["segment_ids"] > 0
    with torch.no_grad():
        out = model(**as_torch(inputs), output_hidden_states=True)
    # The embeddings are a sum of three and a norm. A layer rounds sums of up to 64 terms, and its norms keep errors from growing
    # with depth. The pooler and the heads add one more product.
    tolerances = [5e-7] + [2e-6] * bert.config.num_hidden_layers
    layers = jax.jit(hidden_states, static_argnums=0)(bert.config, bert.params, batch)
    for states, expected, tolerance in zip(layers, out.hidden_states, tolerances, strict=True):
        close(states[valid], expected[valid], tolerance)
    encoded = jax.jit(bert_jax.encode, static_argnums=0)(bert.config, bert.params, batch)
    np.testing.assert_array_equal(encoded.hidden[valid], layers[-1][valid])
    with torch.no_grad():
        close(encoded.pooled[:, 0], model.bert(**as_torch(inputs)).pooler_output, 4e-6)
    all_positions = jnp.broadcast_to(jnp.arange(19), (3, 19))
    close(
        bert_jax.mlm_logits(bert.config, bert.params, encoded.hidden, all_positions)[valid],
        out.prediction_logits[valid],
        4e-6,
    )
    close(bert_jax.nsp_logits(bert.config, bert.params, encoded)[:, 0], out.seq_relationship_logits, 4e-6)


def test_gradients_of_the_pretraining_loss(pair):
    bert, model, inputs = pair
    rng = np.random.default_rng(2)
    positions = np.array([[3, 11], [6, 0], [0, 0]], np.int32)
    weights = np.array([[1, 1], [1, 0], [1, 0]], np.float32)
    mlm_ids, nsp_labels = rng.integers(0, 101, (3, 2), np.int32), np.array([[1], [0], [1]], np.int32)
    labels = np.full((3, 19), -100)
    for row, slot in zip(*np.nonzero(weights), strict=True):
        labels[row, positions[row, slot]] = mlm_ids[row, slot]
    out = model(**as_torch(inputs), labels=torch.tensor(labels), next_sentence_label=torch.tensor(nsp_labels[:, 0]).long())
    out.loss.backward()

    def loss(params):
        batch = as_batch(bert, inputs) | {
            "mlm_positions": jnp.asarray(positions),
            "mlm_ids": jnp.asarray(mlm_ids),
            "mlm_weights": jnp.asarray(weights),
            "nsp_labels": jnp.asarray(nsp_labels),
            "nsp_weights": jnp.ones((3, 1)),
        }
        return losses.means(losses.pretraining(bert.config, params, batch))["loss"]

    value, gradient = jax.jit(jax.value_and_grad(loss))(bert.params)
    close(value, out.loss.detach(), 1e-6)
    gradients = tree.write(gradient, bert.config, "hf")
    expected = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    assert gradients.keys() == expected.keys()
    largest = max(np.abs(value).max() for value in expected.values())
    for name, value in expected.items():
        # Gradients through softmax and layer norms are small differences of large numbers. For parameters whose gradients are at
        # most a hundredth of the largest gradient, the rounding error is that of the large numbers. The bias of a key shifts all
        # scores of a query equally, so its gradient is rounding error only.
        scale = max(np.abs(value).max(), 1e-2 * largest)
        np.testing.assert_allclose(gradients[name] / scale, value / scale, rtol=0, atol=1e-5, err_msg=name)


def outputs(model, inputs):
    """All outputs of a model of transformers, under the names of this package."""
    with torch.no_grad():
        if isinstance(model, transformers.BertForMultipleChoice):
            choices = {name: value[None] for name, value in as_torch(inputs).items()}
            return {"multiple_choice": model(**choices).logits.reshape(-1, 1)}
        out = model(**as_torch(inputs))
    match type(model).__name__:
        case "BertForPreTraining":
            return {"mlm": out.prediction_logits, "nsp": out.seq_relationship_logits}
        case "BertForQuestionAnswering":
            return {"question_answering": torch.stack([out.start_logits, out.end_logits], -1)}
        case "BertModel":
            return {"hidden": out.last_hidden_state, "pooled": out.pooler_output}
        case "BertForSequenceClassification":
            if model.config.problem_type == "multi_label_classification":
                return {"multilabel_classification": out.logits}
            return {"regression" if out.logits.shape[1] == 1 else "sequence_classification": out.logits}
        case "BertForTokenClassification":
            return {"token_classification": out.logits}
        case name:
            return {"mlm" if name == "BertForMaskedLM" else "nsp": out.logits}


def all_outputs(bert, arrays):
    """All outputs of a model of this package: [B, S, ...] for tokens, [B, ...] for examples."""
    computed = compiled.all_outputs(bert.config, bert.params, as_batch(bert, arrays))
    return {name: value[:, 0] if value.shape[1] == 1 else value for name, value in computed.items()}


@pytest.mark.parametrize("to", ["hf", "google", "flax", "orbax"])
@pytest.mark.parametrize(("name", "changes", "heads"), CLASSES.values(), ids=CLASSES)
def test_every_head_through_every_format(name, changes, heads, to, tmp_path):
    """Read, write in a format, read again, write for transformers, which reads the same bytes and computes the same logits."""
    model, inputs = transformers_model(name, **changes), arrays()
    model.save_pretrained(tmp_path / "hf")
    bert = bert_jax.load(tmp_path / "hf")
    assert bert_jax.models.heads.heads_of(bert.params) == heads
    # Models of transformers that do not use the pooler have none, and neither have their files.
    assert ("pooler" in bert.params["bert"]) == any("pooler" in key for key in model.state_dict())
    computed, valid = all_outputs(bert, inputs), inputs["segment_ids"] > 0
    for head, expected in outputs(model.double(), inputs).items():
        mask = valid if expected.shape[1] == 19 else slice(None)
        close(computed[head][mask], expected[mask], 4e-6)

    bert_jax.save(bert, tmp_path / "converted", to=to)
    converted = bert_jax.load(tmp_path / "converted")
    assert converted.config == bert.config
    assert converted.labels == bert.labels
    assert jax.tree.structure(converted.params) == jax.tree.structure(bert.params)
    jax.tree.map(np.testing.assert_array_equal, converted.params, bert.params)

    bert_jax.save(converted, tmp_path / "back", to="hf")
    first, second = ((tmp_path / path / "model.safetensors").read_bytes() for path in ("hf", "back"))
    assert first == second
    reloaded, info = type(model).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info.values())
    assert reloaded.config.num_labels == model.config.num_labels
    assert reloaded.config.problem_type in (None, "regression", model.config.problem_type)
    for key, value in model.float().state_dict().items():
        torch.testing.assert_close(reloaded.state_dict()[key], value, rtol=0, atol=0)
    for head, expected in outputs(model, inputs).items():
        # The order of PyTorch's sums depends on the memory alignment of its arrays.
        torch.testing.assert_close(outputs(reloaded.eval(), inputs)[head], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("zipped", [False, True])
def test_pickles_of_pytorch(zipped, tmp_path):
    model = transformers_model("BertForPreTraining")
    model.save_pretrained(tmp_path / "hf")
    directory = tmp_path / "bin"
    directory.mkdir()
    torch.save(model.state_dict(), directory / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    (directory / "config.json").write_bytes((tmp_path / "hf" / "config.json").read_bytes())
    expected, loaded = bert_jax.load(tmp_path / "hf"), bert_jax.load(directory)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected.params)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files(dtype, tmp_path):
    model = transformers_model("BertForMaskedLM").to(dtype)
    model.save_pretrained(tmp_path / "safe")
    (tmp_path / "bin").mkdir()
    torch.save(model.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    (tmp_path / "bin" / "config.json").write_bytes((tmp_path / "safe" / "config.json").read_bytes())
    expected = model.state_dict()["bert.embeddings.word_embeddings.weight"].float().numpy()
    for kind in ("safe", "bin"):
        word = bert_jax.load(tmp_path / kind).params["bert"]["embeddings"]["word"]
        assert word.dtype == np.float32
        np.testing.assert_array_equal(word, expected)


def test_files_in_parts(tmp_path):
    model = transformers_model("BertForPreTraining")
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "parts", max_shard_size="30KB")
    assert len([*(tmp_path / "parts").glob("*.safetensors")]) > 1
    expected, loaded = (bert_jax.load(tmp_path / name) for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected.params)


def test_the_original_code_in_tensorflow():
    """Google's modeling.py and run_pretraining.py, run by TensorFlow; the checkpoint also contains Adam's moments."""
    stored = np.load(GOLDEN / "google" / "outputs.npz")
    bert = bert_jax.load(GOLDEN / "google" / "pretraining")
    # Since February 2019 Google's code computes "gelu" in the tanh form; its published checkpoints are older.
    bert = dataclasses.replace(bert, config=dataclasses.replace(bert.config, hidden_act="gelu_tanh"))
    batch, valid = as_batch(bert, stored_arrays(stored)), stored["segments"] > 0
    # Here both sides are rounded to float32.
    close(hidden_states(bert.config, bert.params, batch)[:, valid], stored["hidden"][:, valid], 2e-6)
    encoded = bert_jax.encode(bert.config, bert.params, batch)
    close(encoded.pooled[:, 0], stored["pooled"], 2e-6)
    mlm_logits = bert_jax.mlm_logits(bert.config, bert.params, encoded.hidden, jnp.asarray(stored["places"]))
    close(jax.nn.log_softmax(mlm_logits).reshape(6, -1), stored["mlm"], 2e-6)
    close(jax.nn.log_softmax(bert_jax.nsp_logits(bert.config, bert.params, encoded))[:, 0], stored["nsp"], 2e-6)


def test_fine_tuned_checkpoints_of_the_original():
    stored = np.load(GOLDEN / "google" / "outputs.npz")
    heads = {"sequence_classification": ("classify", ""), "question_answering": ("span", "cls|squad|")}
    for head, (directory, name) in heads.items():
        classifier = head if head == "sequence_classification" else None
        params = bert_jax.load(GOLDEN / "google" / directory, head=classifier).params
        assert [*params] == ["bert", head]
        np.testing.assert_array_equal(params[head]["kernel"], stored[f"{name}output_weights"].T)
        np.testing.assert_array_equal(params[head]["bias"], stored[f"{name}output_bias"])


def test_the_former_flax_classes():
    stored = np.load(GOLDEN / "flax" / "outputs.npz")
    bert = bert_jax.load(GOLDEN / "flax")
    inputs, valid = stored_arrays(stored), stored["segments"] > 0
    computed = all_outputs(bert, inputs)
    close(hidden_states(bert.config, bert.params, as_batch(bert, inputs))[:, valid], stored["hidden"][:, valid], 2e-6)
    close(computed["mlm"][valid], stored["mlm"][valid], 2e-6)
    close(computed["nsp"], stored["nsp"], 2e-6)
