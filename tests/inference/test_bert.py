"""The methods of a loaded model: against a NumPy reference, one text at a time or in batches, and with invalid arguments."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bert_jax
from bert_jax.data import windows
from bert_jax.errors import UserError
from bert_jax.inference import compiled
from bert_jax.inference.bert import Bert
from tests import reference
from tests.conftest import MODEL

pytestmark = pytest.mark.usefixtures("unoptimized")


@pytest.fixture(scope="module")
def bert(tokenizer):
    config = dataclasses.replace(MODEL, vocab_size=len(tokenizer.tokens) + 3, initializer_range=0.3)
    return Bert(config, bert_jax.models.heads.init_params(config, jax.random.key(0)), tokenizer)


def test_fill_mask_gives_the_most_probable_tokens_of_the_reference(bert):
    predictions = bert.fill_mask("alpha [MASK] charlie [MASK].", top_k=7)
    special_tokens, tokens = bert.tokenizer.special_tokens, bert.tokenizer.tokens
    parts = [part.ids for part in bert.tokenizer.encode(["alpha", "charlie", "."])]
    ids = np.concatenate(
        [[special_tokens.cls], parts[0], [special_tokens.mask], parts[1], [special_tokens.mask], parts[2], [special_tokens.sep]]
    )
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), bert.params)
    hidden, _ = reference.encode_one(bert.config, params["bert"], ids, 0 * ids)
    probabilities = reference.softmax(
        reference.mlm_logits(bert.config, params, hidden[ids == special_tokens.mask])[:, : len(tokens)]
    )
    assert len(predictions) == 2
    for place, row in zip(predictions, probabilities, strict=True):
        best = np.argsort(-row)[:7]
        assert [prediction.token for prediction in place] == [tokens[token_id] for token_id in best]
        np.testing.assert_allclose([prediction.probability for prediction in place], row[best], rtol=1e-4)


def test_encoding_alone_or_in_a_batch_is_the_same(bert):
    texts = ["alpha", ("bravo charlie delta.", "echo"), "golf hotel india juliett kilo lima"]
    batch = bert.encode(texts)
    for row, text in enumerate(texts):
        alone = bert.encode([text])
        length = alone.hidden.shape[1]
        np.testing.assert_allclose(batch.hidden[row, :length], alone.hidden[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(batch.pooled[row], alone.pooled[0], rtol=1e-5, atol=1e-5)
    assert batch.pooled.shape == (3, bert.config.hidden_size)


def test_the_second_text_has_the_second_type(bert):
    pair, joined = bert.encode([("alpha", "bravo")]), bert.encode(["alpha"])
    assert pair.hidden.shape[1] == joined.hidden.shape[1] + len(bert.tokenizer.encode(["bravo"])[0].ids) + 1
    rows = windows.cut(bert.tokenizer, [("alpha", "bravo")], sequence_length=64)
    ((_, batch),) = windows.batches(rows, tokens=64, sequence_length=64, pad=0)
    first, last = 2 + len(bert.tokenizer.encode(["alpha"])[0].ids), len(rows[0].ids)
    column = np.arange(batch["token_type_ids"].shape[1])
    np.testing.assert_array_equal(batch["token_type_ids"][0], (column >= first) & (column < last))


def test_refusals(bert):
    with pytest.raises(UserError, match="no \\[MASK\\]"):
        bert.fill_mask("alpha")
    with pytest.raises(UserError, match="top_k is 0"):
        bert.fill_mask("[MASK]", top_k=0)
    with pytest.raises(UserError, match="Text 1 has 102 tokens, special tokens included, more than the sequence length of 64"):
        bert.encode(["alpha " * 100])


STATES = jax.jit(bert_jax.hidden_states, static_argnums=0)
TEXTS = ["alpha", "bravo charlie delta echo.", ("golf", "hotel india"), "", "juliett " * 20]


def alone(bert, text, layer=-1):
    """States [N, D] of one text by itself, after a layer."""
    (row,) = windows.cut(bert.tokenizer, [text], sequence_length=64)
    first = np.arange(len(row.ids)) >= row.first
    batch = windows.from_arrays({"input_ids": row.ids[None], "token_type_ids": first[None].astype(int)}, bert.config)
    return row, np.asarray(STATES(bert.config, bert.params, jax.tree.map(jnp.asarray, batch))[layer][0])


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_embeddings_are_pooled_states(bert, pooling, normalize):
    result = bert.embed(TEXTS, pooling=pooling, normalize=normalize)
    for vector, text in zip(result, TEXTS, strict=True):
        states = alone(bert, text)[1]
        expected = {"mean": states.mean(0), "cls": states[0], "max": states.max(0)}[pooling]
        expected = expected / np.linalg.norm(expected) if normalize else expected
        np.testing.assert_allclose(vector, expected, rtol=1e-5, atol=1e-5)
    assert bert.embed([]).shape == (0, 32)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("long", ["chunk", "stride"])
def test_a_long_text_is_pooled_over_its_windows(bert, long, pooling):
    text = "alpha bravo charlie delta echo foxtrot " * 10
    rows = windows.cut(bert.tokenizer, [text], sequence_length=20, long=long)
    assert len(rows) > 3
    states = [np.asarray(bert.encode({"input_ids": row.ids[None]}).hidden[0]) for row in rows]
    kept = np.concatenate([values[row.keep] for row, values in zip(rows, states, strict=True)])
    expected = {"mean": kept.mean(0), "max": kept.max(0), "cls": np.mean([values[0] for values in states], 0)}[pooling]
    result = bert.embed(["alpha", text], pooling=pooling, long=long, sequence_length=20)
    np.testing.assert_allclose(result[1], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result[0], bert.embed(["alpha"], pooling=pooling)[0], rtol=1e-5, atol=1e-5)


def test_similarity_is_the_cosine(bert):
    result = bert.similarity(TEXTS[:2], TEXTS, pooling="cls")
    vectors = bert.embed(TEXTS, pooling="cls")
    norms = np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose(result, (vectors[:2] @ vectors.T) / np.outer(norms[:2], norms), atol=1e-6)


def test_features_are_the_states_of_each_token(bert):
    result = [*bert.features(TEXTS, layers=(-1, 0, 1))]
    assert len(result) == len(TEXTS)
    for (tokens, values), text in zip(result, TEXTS, strict=True):
        row = alone(bert, text)[0]
        assert tokens == [bert.tokenizer.tokens[token_id] for token_id in row.ids]
        for layer, states in zip((3, 1, 2), values, strict=True):
            np.testing.assert_allclose(states, alone(bert, text, layer)[1], rtol=1e-5, atol=1e-5)


def test_features_of_a_long_text_come_from_its_windows(bert):
    text = "alpha bravo charlie delta echo foxtrot " * 10
    whole = windows.cut(bert.tokenizer, [text], sequence_length=10_000)[0]
    ((tokens, values),) = bert.features([text], layers=(-1,), long="stride", sequence_length=20)
    assert tokens == [bert.tokenizer.tokens[token_id] for token_id in whole.ids]
    rows = windows.cut(bert.tokenizer, [text], sequence_length=20, long="stride")
    expected = np.concatenate([np.asarray(bert.encode({"input_ids": row.ids[None]}).hidden[0])[row.keep] for row in rows])
    np.testing.assert_allclose(values[0], expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match=r"no layer 3; the model has 3: 0 to 2, or -3 to -1"):
        bert.features([text], layers=(3,))


def test_masks_in_a_long_text(bert):
    text = "alpha " * 40 + "[MASK] " + "bravo " * 40 + "[MASK] charlie"
    with pytest.raises(UserError, match="sequence length of 64"):
        bert.fill_mask(text)
    for long in ("chunk", "stride"):
        result = bert.fill_mask(text, long=long, top_k=2)
        assert [len(place) for place in result] == [2, 2]
    rows = windows.cut(bert.tokenizer, [text], sequence_length=64, long="chunk")
    row = next(row for row in rows if bert.tokenizer.special_tokens.mask in row.ids[row.keep])
    hidden = bert.encode({"input_ids": row.ids[None]}).hidden
    place = jnp.asarray([[row.ids.tolist().index(bert.tokenizer.special_tokens.mask)]])
    logits = np.asarray(bert_jax.mlm_logits(bert.config, bert.params, hidden, place))[0, 0, : len(bert.tokenizer.tokens)]
    assert bert.fill_mask(text, long="chunk")[0][0].token == bert.tokenizer.tokens[logits.argmax()]
    with pytest.raises(UserError, match=r"removed every \[MASK\]"):
        bert.fill_mask("alpha " * 100 + "[MASK]", long="truncate")


def test_many_texts_compile_few_programs(bert):
    rng = np.random.default_rng(0)
    texts = ["alpha " * size for size in np.minimum(rng.geometric(0.1, 1000), 60)]
    before = compiled.pool_windows._cache_size()
    calls = []
    result = bert.embed(texts, progress=lambda done, total: calls.append((done, total)))
    assert compiled.pool_windows._cache_size() - before <= 9
    assert calls[-1] == (1000, 1000)
    assert calls == sorted(calls)
    same = {text: vector for text, vector in zip(texts, result, strict=True)}
    np.testing.assert_allclose(result, [same[text] for text in texts], rtol=1e-5, atol=1e-5)


def test_arrays_and_texts_give_the_same(bert):
    row = windows.cut(bert.tokenizer, ["alpha bravo"], sequence_length=64)[0]
    padded = np.pad(row.ids, (0, 3))[None]
    arrays = bert.encode({"input_ids": padded, "segment_ids": (padded > 0).astype(int)})
    assert not np.asarray(arrays.hidden)[0, len(row.ids) :].any()
    texts = bert.encode(["alpha bravo"])
    np.testing.assert_allclose(arrays.hidden[:, : len(row.ids)], texts.hidden, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(arrays.pooled, texts.pooled, rtol=1e-5, atol=1e-5)


def test_arrays_of_a_transformers_tokenizer(bert):
    """input_ids, attention_mask and token_type_ids, with padding on either side."""
    row = windows.cut(bert.tokenizer, [("alpha bravo", "charlie")], sequence_length=64)[0]
    token_type_ids = (np.arange(len(row.ids)) >= row.first).astype(int)
    expected = bert.encode([("alpha bravo", "charlie")])
    for padding in ((0, 3), (3, 0)):
        arrays = {
            "input_ids": row.ids,
            "attention_mask": np.ones_like(row.ids),
            "token_type_ids": token_type_ids,
        }
        encoded = bert.encode({name: np.pad(values, padding)[None].tolist() for name, values in arrays.items()})
        columns = slice(padding[0], padding[0] + len(row.ids))
        np.testing.assert_allclose(encoded.hidden[:, columns], expected.hidden, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(encoded.pooled, expected.pooled, rtol=1e-5, atol=1e-5)


def test_without_pooler_and_heads(bert):
    encoder = {name: value for name, value in bert.params["bert"].items() if name != "pooler"}
    bare = dataclasses.replace(bert, params={"bert": encoder})
    encoded = bare.encode(["alpha"])
    assert encoded.pooled is None
    np.testing.assert_array_equal(encoded.hidden, bert.encode(["alpha"]).hidden)
    with pytest.raises(UserError, match="no mlm head; it has no heads"):
        bare.fill_mask("[MASK]")
    with pytest.raises(UserError, match="nsp head needs the pooler"):
        bert_jax.nsp_logits(bert.config, {**bare.params, "nsp": bert.params["nsp"]}, encoded)
    with pytest.raises(UserError, match="no token_classification head; it has mlm, nsp"):
        bert_jax.head_logits(bert.config, bert.params, "token_classification", encoded)


def test_one_token_type_takes_no_pairs(bert):
    one = dataclasses.replace(bert.config, type_vocab_size=1)
    model = Bert(one, bert_jax.models.heads.init_params(one, jax.random.key(0)), bert.tokenizer)
    assert model.embed(["alpha"]).shape == (1, 32)
    with pytest.raises(UserError, match="cannot encode pairs"):
        model.embed([("alpha", "bravo")])


def test_bad_options(bert):
    with pytest.raises(UserError, match="sequence_length is 65, more than the model's 64 positions"):
        bert.embed(["alpha"], sequence_length=65)
    with pytest.raises(UserError, match="a list of texts"):
        bert.encode("alpha")
    with pytest.raises(UserError, match="two lists of texts"):
        bert.similarity("alpha", ["bravo"])
    with pytest.raises(UserError, match="sequence length of 0 leaves no room"):
        bert.embed(["alpha"], sequence_length=0)
    with pytest.raises(UserError, match="layers is empty"):
        bert.features(["alpha"], layers=())


def test_load_refuses_other_directories(tmp_path):
    with pytest.raises(UserError, match="no model"):
        bert_jax.load(tmp_path / "none")
    with pytest.raises(UserError, match="contains no model"):
        bert_jax.load(tmp_path)
    assert list(tmp_path.iterdir()) == []
