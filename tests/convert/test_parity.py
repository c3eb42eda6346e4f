"""The same numbers as independent programs: transformers with PyTorch in float64, and what Google's own code and the
former Flax classes once computed (``golden/``).

A tolerance is relative to the largest value of the array that is compared; the reference is exact, so the difference is
our float32 rounding alone. Each layer adds a few units of 6e-8 times the number of terms in its sums.
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
from bert_jax.inference import compiled as programs
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
# transformers' classes, what they are given beside the shape, and our heads.
CLASSES = {
    "pretraining": ("BertForPreTraining", {}, {"mlm": 101, "nsp": 2}),
    "masked words": ("BertForMaskedLM", {}, {"mlm": 101}),
    "next sentence": ("BertForNextSentencePrediction", {}, {"nsp": 2}),
    "classification": ("BertForSequenceClassification", {"id2label": {0: "no", 1: "yes", 2: "both"}}, {"classify": 3}),
    "regression": ("BertForSequenceClassification", {"num_labels": 1}, {"regress": 1}),
    "tagging": ("BertForTokenClassification", {"num_labels": 4}, {"tag": 4}),
    "span": ("BertForQuestionAnswering", {}, {"span": 2}),
    "choice": ("BertForMultipleChoice", {}, {"choose": 1}),
    "encoder": ("BertModel", {}, {}),
}


def close(found, expected, tolerance):
    expected = np.asarray(expected, np.float64)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(found) / scale, expected / scale, rtol=0, atol=tolerance)


def theirs(name, **changes):
    """A model of transformers with every parameter at random, biases and norms too."""
    torch.manual_seed(0)
    config = transformers.BertConfig(**(SHAPE | changes))
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def arrays(types=2):
    """A full row, a padded one and one with a single token."""
    rng = np.random.default_rng(1)
    segments = (np.arange(19) < np.array([[19], [7], [1]])).astype(np.int32)
    return {
        "ids": rng.integers(0, 101, (3, 19), np.int32),
        "types": rng.integers(0, types, (3, 19), np.int32),
        "segments": segments,
    }


def as_torch(batch):
    names = {"input_ids": "ids", "token_type_ids": "types", "attention_mask": "segments"}
    return {theirs: torch.tensor(batch[ours]).long() for theirs, ours in names.items()}


def as_batch(bert, given):
    return jax.tree.map(jnp.asarray, windows.from_arrays(given, bert.config))


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def pair(request, tmp_path):
    """The same model here and there, and a batch."""
    model = theirs("BertForPreTraining", **request.param)
    model.save_pretrained(tmp_path / "hf")
    bert = bert_jax.load(tmp_path / "hf")
    # One layer is compiled, not twelve; test_model.py shows that both ways compute the same.
    bert = dataclasses.replace(bert, config=dataclasses.replace(bert.config, layers="scan"))
    return bert, model.double(), arrays(model.config.type_vocab_size)


def test_every_layer_and_both_heads(pair):
    bert, model, given = pair
    batch, valid = as_batch(bert, given), given["segments"] > 0
    with torch.no_grad():
        out = model(**as_torch(given), output_hidden_states=True)
    # The embeddings are a sum of three and a norm; a layer rounds sums of up to 64 terms, and its norm stops errors from
    # growing with depth; the pooler and the heads add one product more.
    tolerances = [5e-7] + [2e-6] * bert.config.num_hidden_layers
    layers = jax.jit(hidden_states, static_argnums=0)(bert.config, bert.params, batch)
    for found, expected, tolerance in zip(layers, out.hidden_states, tolerances, strict=True):
        close(found[valid], expected[valid], tolerance)
    encoded = jax.jit(bert_jax.encode, static_argnums=0)(bert.config, bert.params, batch)
    np.testing.assert_array_equal(encoded.hidden[valid], layers[-1][valid])
    with torch.no_grad():
        close(encoded.pooled[:, 0], model.bert(**as_torch(given)).pooler_output, 4e-6)
    everywhere = jnp.broadcast_to(jnp.arange(19), (3, 19))
    close(
        bert_jax.mlm_logits(bert.config, bert.params, encoded.hidden, everywhere)[valid],
        out.prediction_logits[valid],
        4e-6,
    )
    close(bert_jax.nsp_logits(bert.config, bert.params, encoded)[:, 0], out.seq_relationship_logits, 4e-6)


def test_gradients_of_the_pretraining_loss(pair):
    bert, model, given = pair
    rng = np.random.default_rng(2)
    positions = np.array([[3, 11], [6, 0], [0, 0]], np.int32)
    weights = np.array([[1, 1], [1, 0], [1, 0]], np.float32)
    labels, order = rng.integers(0, 101, (3, 2), np.int32), np.array([[1], [0], [1]], np.int32)
    everywhere = np.full((3, 19), -100)
    for row, place in zip(*np.nonzero(weights), strict=True):
        everywhere[row, positions[row, place]] = labels[row, place]
    out = model(**as_torch(given), labels=torch.tensor(everywhere), next_sentence_label=torch.tensor(order[:, 0]).long())
    out.loss.backward()

    def loss(params):
        batch = as_batch(bert, given) | {
            "mlm_positions": jnp.asarray(positions),
            "mlm_ids": jnp.asarray(labels),
            "mlm_weights": jnp.asarray(weights),
            "nsp_labels": jnp.asarray(order),
            "nsp_weights": jnp.ones((3, 1)),
        }
        return losses.means(losses.pretraining(bert.config, params, batch))["loss"]

    value, gradient = jax.jit(jax.value_and_grad(loss))(bert.params)
    close(value, out.loss.detach(), 1e-6)
    found = tree.write(gradient, bert.config, "hf")
    expected = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    assert found.keys() == expected.keys()
    largest = max(np.abs(value).max() for value in expected.values())
    for name, value in expected.items():
        # What flows back through softmax and norms is small differences of large numbers: where a hundredth or less of the
        # largest gradient is left of it, rounding is that of the large ones. A key's bias moves all scores of a query
        # alike: its gradient is nothing but rounding.
        scale = max(np.abs(value).max(), 1e-2 * largest)
        np.testing.assert_allclose(found[name] / scale, value / scale, rtol=0, atol=1e-5, err_msg=name)


def outputs(model, given):
    """Every output of a model of transformers, under our names."""
    with torch.no_grad():
        if isinstance(model, transformers.BertForMultipleChoice):
            choices = {name: value[None] for name, value in as_torch(given).items()}
            return {"choose": model(**choices).logits.reshape(-1, 1)}
        out = model(**as_torch(given))
    match type(model).__name__:
        case "BertForPreTraining":
            return {"mlm": out.prediction_logits, "nsp": out.seq_relationship_logits}
        case "BertForQuestionAnswering":
            return {"span": torch.stack([out.start_logits, out.end_logits], -1)}
        case "BertModel":
            return {"hidden": out.last_hidden_state, "pooled": out.pooler_output}
        case "BertForSequenceClassification":
            return {"regress" if out.logits.shape[1] == 1 else "classify": out.logits}
        case "BertForTokenClassification":
            return {"tag": out.logits}
        case name:
            return {"mlm" if name == "BertForMaskedLM" else "nsp": out.logits}


def ours(bert, given):
    """Every output of ours; [B, S, …] for tokens, [B, …] for examples."""
    batch = as_batch(bert, given)
    found = programs.every(bert.config, bert.params, batch)
    return {name: value[:, 0] if value.shape[1] == 1 else value for name, value in found.items()}


@pytest.mark.parametrize("to", ["hf", "google", "flax", "orbax"])
@pytest.mark.parametrize(("name", "changes", "heads"), CLASSES.values(), ids=CLASSES)
def test_every_head_through_every_format(name, changes, heads, to, tmp_path):
    """In, out in a format, in again, out to transformers, which reads the same bytes and gives the same logits."""
    model, given = theirs(name, **changes), arrays()
    model.save_pretrained(tmp_path / "hf")
    bert = bert_jax.load(tmp_path / "hf")
    assert bert_jax.models.heads.heads_of(bert.params) == heads
    # transformers knows no pooler where it has no use for one, and neither has the file.
    assert ("pooler" in bert.params["bert"]) == any("pooler" in key for key in model.state_dict())
    found, valid = ours(bert, given), given["segments"] > 0
    for head, expected in outputs(model.double(), given).items():
        mask = valid if expected.shape[1] == 19 else slice(None)
        close(found[head][mask], expected[mask], 4e-6)

    bert_jax.save(bert, tmp_path / "there", to=to)
    again = bert_jax.load(tmp_path / "there")
    assert again.config == bert.config
    assert again.labels == bert.labels
    assert jax.tree.structure(again.params) == jax.tree.structure(bert.params)
    jax.tree.map(np.testing.assert_array_equal, again.params, bert.params)

    bert_jax.save(again, tmp_path / "back", to="hf")
    first, second = ((tmp_path / path / "model.safetensors").read_bytes() for path in ("hf", "back"))
    assert first == second
    read, info = type(model).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info.values())
    assert read.config.num_labels == model.config.num_labels
    for key, value in model.float().state_dict().items():
        torch.testing.assert_close(read.state_dict()[key], value, rtol=0, atol=0)
    for head, expected in outputs(model, given).items():
        # PyTorch sums in another order where its arrays lie elsewhere in memory.
        torch.testing.assert_close(outputs(read.eval(), given)[head], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["old", "new"])
def test_pickles_of_pytorch(kind, tmp_path):
    model = theirs("BertForPreTraining")
    model.save_pretrained(tmp_path / "hf")
    directory = tmp_path / "bin"
    directory.mkdir()
    torch.save(model.state_dict(), directory / "pytorch_model.bin", _use_new_zipfile_serialization=kind == "new")
    (directory / "config.json").write_bytes((tmp_path / "hf" / "config.json").read_bytes())
    expected, found = bert_jax.load(tmp_path / "hf"), bert_jax.load(directory)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files(dtype, tmp_path):
    model = theirs("BertForMaskedLM").to(dtype)
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
    model = theirs("BertForPreTraining")
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "parts", max_shard_size="30KB")
    assert len([*(tmp_path / "parts").glob("*.safetensors")]) > 1
    expected, found = (bert_jax.load(tmp_path / name) for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


def test_the_original_code_in_tensorflow():
    """Google's modeling.py and run_pretraining.py, run by TensorFlow; the file also holds Adam's moments."""
    stored = np.load(GOLDEN / "google" / "outputs.npz")
    bert = bert_jax.load(GOLDEN / "google" / "pretraining")
    # Google's code computes "gelu" in the tanh form since February 2019; its checkpoints are older.
    bert = dataclasses.replace(bert, config=dataclasses.replace(bert.config, hidden_act="gelu_tanh"))
    batch, valid = as_batch(bert, {name: stored[name] for name in ("ids", "types", "segments")}), stored["segments"] > 0
    # Both sides round float32 here.
    close(hidden_states(bert.config, bert.params, batch)[:, valid], stored["hidden"][:, valid], 2e-6)
    encoded = bert_jax.encode(bert.config, bert.params, batch)
    close(encoded.pooled[:, 0], stored["pooled"], 2e-6)
    words = jax.nn.log_softmax(bert_jax.mlm_logits(bert.config, bert.params, encoded.hidden, jnp.asarray(stored["places"])))
    close(words.reshape(6, -1), stored["mlm"], 2e-6)
    close(jax.nn.log_softmax(bert_jax.nsp_logits(bert.config, bert.params, encoded))[:, 0], stored["nsp"], 2e-6)


def test_fine_tuned_files_of_the_original():
    stored = np.load(GOLDEN / "google" / "outputs.npz")
    for head, name in {"classify": "", "span": "cls|squad|"}.items():
        params = bert_jax.load(GOLDEN / "google" / head).params
        assert [*params] == ["bert", head]
        np.testing.assert_array_equal(params[head]["kernel"], stored[f"{name}output_weights"].T)
        np.testing.assert_array_equal(params[head]["bias"], stored[f"{name}output_bias"])


def test_the_former_flax_classes():
    stored = np.load(GOLDEN / "flax" / "outputs.npz")
    bert = bert_jax.load(GOLDEN / "flax")
    given = {name: stored[name] for name in ("ids", "types", "segments")}
    valid, found = stored["segments"] > 0, ours(bert, given)
    close(hidden_states(bert.config, bert.params, as_batch(bert, given))[:, valid], stored["hidden"][:, valid], 2e-6)
    close(found["mlm"][valid], stored["mlm"][valid], 2e-6)
    close(found["nsp"], stored["nsp"], 2e-6)
