"""MLM decoders that are not tied to the word embeddings, beside transformers."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

import bert_jax
from bert_jax import sharding
from bert_jax.data import windows
from bert_jax.errors import BertWarning, UserError
from bert_jax.models import heads
from bert_jax.training import launchers, losses
from tests.conftest import MODEL, make_batch

WORD, DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
BIAS, OWN_BIAS = "cls.predictions.bias", "cls.predictions.decoder.bias"
IDS = np.array([[2, 17, 4, 30, 3], [2, 4, 9, 9, 3]])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A directory of transformers in which decoder, word embeddings and both biases differ, and its tensors."""
    torch.manual_seed(0)
    shape = dict(vocab_size=41, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    model = transformers.BertForMaskedLM(transformers.BertConfig(**shape, max_position_embeddings=16, tie_word_embeddings=False))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    path = tmp_path_factory.mktemp("untied")
    model.save_pretrained(path)
    return path, safetensors.numpy.load_file(path / "model.safetensors")


def directory(whole, tmp_path, *, tied, without=(), **more):
    """The model without some tensors, and with what its config says about them."""
    source, tensors = whole
    kept = {name: value for name, value in tensors.items() if name not in without} | more
    safetensors.numpy.save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    description = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(description | {"tie_word_embeddings": tied}))
    return tmp_path


def logits(bert):
    batch = jax.tree.map(jnp.asarray, windows.from_arrays({"input_ids": IDS}, bert.config))
    hidden = bert_jax.encode(bert.config, bert.params, batch).hidden
    return np.asarray(bert_jax.mlm_logits(bert.config, bert.params, hidden, batch["position_ids"]))


def reference(path):
    model = transformers.BertForMaskedLM.from_pretrained(path).eval()
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


@pytest.mark.parametrize(
    ("tied", "without", "untied", "sentence"),
    [
        (False, (), True, None),
        (False, (BIAS,), True, None),
        (True, (), True, "decoder.weight differs from .*word_embeddings.weight, so .* tie_word_embeddings false"),
        (True, (DECODER,), False, "decoder.bias differs from cls.predictions.bias, which was not read"),
        (True, (OWN_BIAS,), True, "decoder.weight differs from"),
        (True, (BIAS,), True, "decoder.weight differs from"),
        (True, (DECODER, OWN_BIAS), False, None),
        (True, (DECODER, BIAS), False, None),
        (True, (WORD,), False, "decoder.bias differs from"),
    ],
)
def test_weights_and_biases_are_those_of_transformers(whole, tmp_path, tied, without, untied, sentence):
    path = directory(whole, tmp_path, tied=tied, without=without)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bert = bert_jax.load(path)
    sentences = [str(warning.message) for warning in caught if warning.category is BertWarning]
    assert bool(sentences) == (sentence is not None)
    assert sentence is None or any(re.search(sentence, said) for said in sentences)
    assert ("decoder" in bert.params["mlm"], bert.config.tie_word_embeddings) == (untied, not untied)
    np.testing.assert_allclose(logits(bert), reference(path), rtol=1e-5, atol=1e-5)


def test_an_equal_copy_stays_untied_if_the_config_says_so(whole, tmp_path):
    bert = bert_jax.load(directory(whole, tmp_path, tied=False, **{DECODER: whole[1][WORD]}))
    np.testing.assert_array_equal(bert.params["mlm"]["decoder"], bert.params["bert"]["embeddings"]["word"])


def test_a_bias_that_transformers_would_not_read_is_read(whole, tmp_path):
    """Files of transformers 4 have one bias, which its decoder shares; transformers 5 leaves its own at 0."""
    path = directory(whole, tmp_path, tied=False, without=(OWN_BIAS,))
    with pytest.warns(BertWarning, match=r"cls.predictions.bias was read as the decoder's bias"):
        bert = bert_jax.load(path)
    np.testing.assert_allclose(logits(bert) - whole[1][BIAS], reference(path), rtol=1e-5, atol=1e-5)


def test_a_decoder_that_is_missing_is_a_problem_of_the_head(whole, tmp_path):
    """transformers leaves it at random values; here only --partial does."""
    path = directory(whole, tmp_path, tied=False, without=(DECODER,))
    with pytest.warns(BertWarning, match=r"mlm head was not read: its config says tie_word_embeddings false; it lacks"):
        bert = bert_jax.load(path)
    assert bert.encode({"input_ids": IDS}).hidden.shape == (2, 5, 32)
    with pytest.raises(UserError, match=r"the mlm head was not read: .*it lacks cls.predictions.decoder.weight"):
        bert.fill_mask("a [MASK]")
    with pytest.warns(BertWarning, match="left at their initial values: mlm/decoder"):
        assert "decoder" in bert_jax.load(path, partial=True).params["mlm"]


def test_exports(whole, tmp_path):
    """The file for transformers is the one that it writes itself; the original's format has no such decoder."""
    path = directory(whole, tmp_path, tied=False, **{BIAS: whole[1][OWN_BIAS]})
    bert = bert_jax.load(path)
    for to in ("hf", "flax", "orbax"):
        bert_jax.save(bert, tmp_path / to, to=to)
        loaded = bert_jax.load(tmp_path / to)
        assert loaded.config == bert.config
        jax.tree.map(np.testing.assert_array_equal, loaded.params, bert.params)
    model, info = transformers.BertForMaskedLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not info["missing_keys"]
    model.save_pretrained(tmp_path / "theirs")
    assert (tmp_path / "hf/model.safetensors").read_bytes() == (tmp_path / "theirs/model.safetensors").read_bytes()
    with pytest.raises(UserError, match="The format google has no decoder that is not tied to the word embeddings; use"):
        bert_jax.save(bert, tmp_path / "google", to="google")


UNTIED = dataclasses.replace(MODEL, num_hidden_layers=1, tie_word_embeddings=False, initializer_range=0.3)
BATCH = make_batch([[20], [32]] * 4, 32) | {
    "mlm_positions": np.tile(np.array([1, 5], np.int32), (8, 1)),
    "mlm_ids": np.tile(np.array([7, 8], np.int32), (8, 1)),
    "mlm_weights": np.ones((8, 2), np.float32),
}


@functools.partial(jax.jit, static_argnums=0)
def mlm_loss_and_gradient(config, params, batch):
    return jax.value_and_grad(lambda params: losses.means(losses.pretraining(config, params, batch))["mlm_loss"])(params)


def test_the_loss_of_an_equal_decoder_is_the_tied_one_and_the_gradients_divide():
    params = heads.init_params(UNTIED, jax.random.key(0))
    word = params["bert"]["embeddings"]["word"]
    params["mlm"]["decoder"] = word
    tied = params | {"mlm": {name: value for name, value in params["mlm"].items() if name != "decoder"}}
    loss, gradient = mlm_loss_and_gradient(UNTIED, params, BATCH)
    expected, joint = mlm_loss_and_gradient(dataclasses.replace(UNTIED, tie_word_embeddings=True), tied, BATCH)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    both = gradient["mlm"]["decoder"] + gradient["bert"]["embeddings"]["word"]
    np.testing.assert_allclose(both, joint["bert"]["embeddings"]["word"], rtol=1e-4, atol=1e-6)
    assert np.abs(gradient["mlm"]["decoder"]).max() > 0


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_a_mesh_gives_the_same_loss_and_gradients(axes):
    config = dataclasses.replace(UNTIED, vocab_size=98)
    params = heads.init_params(config, jax.random.key(0))
    loss, gradient = mlm_loss_and_gradient(config, params, BATCH)
    launcher = launchers.MeshLauncher(config, sharding.make_mesh(**axes))
    placed = jax.device_put(params, launcher.shardings(jax.eval_shape(lambda: params)))
    assert not placed["mlm"]["decoder"].sharding.is_fully_replicated
    with launcher.context():
        result = mlm_loss_and_gradient(config, placed, launcher.place(BATCH))
    np.testing.assert_allclose(result[0], loss, rtol=1e-5)
    np.testing.assert_allclose(result[1]["mlm"]["decoder"], gradient["mlm"]["decoder"], rtol=1e-3, atol=1e-6)
