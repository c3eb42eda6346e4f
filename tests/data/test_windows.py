"""Windows keep every token once at any length; batches contain every window once, in few shapes; arrays of other tokenizers."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

import bert_jax
from bert_jax import convert, tokenizers
from bert_jax.data import windows
from bert_jax.errors import UserError
from bert_jax.models.encoder import encode
from bert_jax.models.loaded import LoadedModel
from bert_jax.tokenizers import AlignedText, SpecialTokens, TokenizedText, Tokenizer
from tests.conftest import MODEL


class CharacterTokenizer:
    """A tokenizer whose tokens are characters."""

    files: ClassVar[dict[str, bytes]] = {}
    tokens: ClassVar[list[str]] = []
    special_tokens = SpecialTokens(0, 1, 2, 3, 4)

    def warnings(self):
        return []

    def decode(self, ids):
        return "".join(map(chr, ids))

    def encode(self, texts):
        return [TokenizedText(*aligned[:2]) for aligned in self.align(texts)]

    def align(self, texts):
        spans = [np.arange(len(text), dtype=np.int32)[:, None] + np.array([0, 1], np.int32) for text in texts]
        ids = [np.array([*map(ord, text)], np.int32) for text in texts]
        return [AlignedText(row, np.ones(len(row), bool), span) for row, span in zip(ids, spans, strict=True)]


def cut(texts, **options):
    return windows.cut(CharacterTokenizer(), texts, **options)


def test_the_stand_in_follows_the_protocol():
    assert isinstance(CharacterTokenizer(), Tokenizer)
    (aligned,) = CharacterTokenizer().align(["abc"])
    np.testing.assert_array_equal(aligned.spans, [[0, 1], [1, 2], [2, 3]])


def letters(count, first=0):
    return "".join(chr(200 + first + index) for index in range(count))


@given(st.lists(st.integers(0, 60), max_size=5), st.integers(5, 20), st.sampled_from(["chunk", "stride"]))
def test_windows_keep_cls_each_token_once_and_sep(sizes, sequence_length, long):
    rows = cut([letters(size) for size in sizes], sequence_length=sequence_length, long=long)
    for index, size in enumerate(sizes):
        text_rows = [row for row in rows if row.text == index]
        kept = np.concatenate([row.ids[row.keep] for row in text_rows])
        np.testing.assert_array_equal(kept, [2, *map(ord, letters(size)), 3])
        for row in text_rows:
            assert len(row.ids) <= sequence_length
            assert row.first == len(row.ids)
            assert (row.ids[0], row.ids[-1]) == (2, 3)


def test_stride_takes_each_token_from_the_window_with_more_context():
    room = 8
    rows = cut([letters(50)], sequence_length=room + 2, long="stride")
    # The context of a token in a window is its distance to the nearer end of the window.
    contexts = {}
    for row in rows:
        for position, token in enumerate(row.ids[1:-1].tolist()):
            contexts.setdefault(token, []).append(min(position, len(row.ids) - 3 - position))
    for row in rows:
        for column in range(*row.keep.indices(len(row.ids))):
            token = int(row.ids[column])
            if token > 4:
                context = min(column - 1, len(row.ids) - 2 - column)
                assert context >= max(contexts[token]) - 1
    # Except near the ends of the text, every token has at least a quarter of the window as context.
    assert min(max(contexts[ord(letter)]) for letter in letters(50)[2:-2]) >= room // 4 - 1


@given(st.integers(0, 30), st.integers(0, 30), st.integers(5, 20))
def test_pairs_are_truncated_as_in_the_original(first, second, sequence_length):
    (row,) = cut([(letters(first), letters(second, 100))], sequence_length=sequence_length, long="truncate")
    a, b = [*letters(first)], [*letters(second, 100)]
    while len(a) + len(b) > sequence_length - 3:  # _truncate_seq_pair of the original's extract_features.py
        (a if len(a) > len(b) else b).pop()
    np.testing.assert_array_equal(row.ids, [2, *map(ord, a), 3, *map(ord, b), 3])
    assert row.first == len(a) + 2


def test_errors_name_the_text():
    texts = [letters(3), letters(9)]
    with pytest.raises(UserError, match="Text 2 has 11 tokens, special tokens included, more than the sequence length of 10"):
        cut(texts, sequence_length=10)
    assert len(cut(texts, sequence_length=11)) == 2
    with pytest.raises(UserError, match="pairs can only be truncated"):
        cut([(letters(5), letters(5))], sequence_length=10, long="stride")
    with pytest.raises(UserError, match="has half a surrogate pair"):
        cut(["\ud800"], sequence_length=20)
    with pytest.raises(UserError, match="leaves no room"):
        cut(texts, sequence_length=4)


def test_mask_in_a_text_is_the_mask_token(tokenizer):
    (row,) = windows.cut(tokenizer, ["alpha[MASK]bravo"], sequence_length=20)
    special_tokens = tokenizer.special_tokens
    alpha, bravo = (tokenizer.tokens.index(word) for word in ("alpha", "bravo"))
    np.testing.assert_array_equal(row.ids, [special_tokens.cls, alpha, special_tokens.mask, bravo, special_tokens.sep])


@given(st.lists(st.integers(0, 200), min_size=1, max_size=60), st.sampled_from([64, 512, 4096]))
def test_every_window_is_in_one_batch(sizes, tokens):
    rows = cut([letters(size) for size in sizes], sequence_length=300)
    seen = []
    for indices, batch in windows.batches(rows, tokens=tokens, sequence_length=300, pad=0):
        seen += indices
        assert batch["input_ids"].size <= max(tokens, batch["input_ids"].shape[1])
        for row, index in enumerate(indices):
            length = len(rows[index].ids)
            np.testing.assert_array_equal(batch["input_ids"][row, :length], rows[index].ids)
            np.testing.assert_array_equal(batch["segment_ids"][row], np.arange(batch["input_ids"].shape[1]) < length)
            np.testing.assert_array_equal(batch["position_ids"][row, :length], np.arange(length))
            assert batch["keep"][row].sum() == length
        assert not batch["segment_ids"][len(indices) :].any()
    assert sorted(seen) == [*range(len(rows))]


def test_a_thousand_texts_make_a_dozen_shapes():
    rng = np.random.default_rng(0)
    rows = cut([letters(size) for size in np.minimum(rng.geometric(0.03, 1000), 500)], sequence_length=512)
    shapes = [batch["input_ids"].shape for _, batch in windows.batches(rows, tokens=1024, sequence_length=512, pad=0)]
    assert len(set(shapes)) <= 13
    assert sum(rows * columns for rows, columns in shapes) <= 1.34 * sum(len(row.ids) for row in rows)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"token_type_ids": [[0]]}, "lack input_ids"),
        ({"input_ids": [[1]], "mask": [[1]], "labels": [[1]]}, "labels, mask cannot be encoded; give arrays named input_ids"),
        ({"input_ids": [[1]], "position_ids": [[0]]}, "position_ids cannot be encoded"),
        ({"input_ids": [[1]], "attention_mask": [[1]], "segment_ids": [[1]]}, "Both attention_mask and segment_ids are given"),
        ({"input_ids": [1, 2]}, r"input_ids has shape \(2,\)"),
        ({"input_ids": [[1, 2], [3]]}, "input_ids is not an array of shape .* pad the texts to equal length"),
        ({"input_ids": [[0.5]]}, "dtype float64"),
        ({"input_ids": [[97]]}, r"input_ids contains 97; its values must lie in \[0, 97\)"),
        ({"input_ids": [[-1]]}, "input_ids contains -1"),
        ({"input_ids": [[1]], "token_type_ids": [[2]]}, "token_type_ids contains 2"),
        ({"input_ids": [[1]], "segment_ids": [[1, 1]]}, r"segment_ids has shape \(1, 2\), but input_ids has shape \(1, 1\)"),
        ({"input_ids": [[1]], "segment_ids": [[2]]}, "segment_ids contains 2"),
        ({"input_ids": [[1]], "attention_mask": [[2]]}, "attention_mask contains 2"),
        ({"input_ids": [[1] * 65]}, "input_ids has 65 columns, but the model has 64 positions"),
    ],
)
def test_invalid_arrays(arrays, sentence):
    with pytest.raises(UserError, match=sentence):
        windows.from_arrays(arrays, MODEL)


def test_missing_arrays_are_added():
    batch = windows.from_arrays({"input_ids": np.array([[5, 6, 7]])}, MODEL)
    np.testing.assert_array_equal(batch["segment_ids"], [[1, 1, 1]])
    np.testing.assert_array_equal(batch["token_type_ids"], [[0, 0, 0]])
    np.testing.assert_array_equal(batch["position_ids"], [[0, 1, 2]])
    np.testing.assert_array_equal(batch["cls_positions"], [[0]])
    assert {value.dtype for value in batch.values()} == {np.dtype(np.int32)}
    assert set(batch) == {"input_ids", "token_type_ids", "segment_ids", "position_ids", "cls_positions"}


def assert_equal(batch, expected):
    assert batch.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(batch[name], values, err_msg=name)


@pytest.mark.parametrize("name", ["attention_mask", "segment_ids"])
@pytest.mark.parametrize("make", [np.array, jnp.array, torch.tensor, lambda values: values], ids=["numpy", "jax", "torch", "list"])
def test_arrays_of_any_library(make, name):
    ids, mask = [[5, 6, 7], [8, 9, 0]], [[1, 1, 1], [1, 1, 0]]
    expected = windows.from_arrays({"input_ids": np.array(ids), name: np.array(mask, bool)}, MODEL)
    np.testing.assert_array_equal(expected["segment_ids"], mask)
    assert_equal(windows.from_arrays({"input_ids": make(ids), name: make(mask)}, MODEL), expected)


@pytest.mark.parametrize("tensors", ["np", "pt", None])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_output_of_a_transformers_tokenizer(tokenizer, tmp_path, tensors, side):
    """Arrays that no model takes are ignored; both kinds of padding give the same tokens and positions."""
    tokenizers.save(tokenizer, tmp_path)
    theirs = transformers.BertTokenizerFast.from_pretrained(tmp_path)
    theirs.padding_side = side
    texts = [("alpha bravo", "charlie"), ("delta", "echo foxtrot golf hotel")]
    encoding = theirs(
        texts,
        padding=True,
        return_tensors=tensors,
        return_special_tokens_mask=True,
        return_offsets_mapping=True,
        return_length=True,
    )
    batch = windows.from_arrays(encoding, dataclasses.replace(MODEL, vocab_size=len(tokenizer.tokens)))
    for row, window in enumerate(windows.cut(tokenizer, texts, sequence_length=64)):
        attended = batch["segment_ids"][row] == 1
        np.testing.assert_array_equal(batch["input_ids"][row][attended], window.ids)
        np.testing.assert_array_equal(batch["token_type_ids"][row][attended], np.arange(len(window.ids)) >= window.first)
        np.testing.assert_array_equal(batch["position_ids"][row][attended], np.arange(len(window.ids)))
        assert batch["input_ids"][row, batch["cls_positions"][row, 0]] == tokenizer.special_tokens.cls


def padded(side, lengths, columns):
    """Arrays of rows with the same tokens, padded on one side."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, MODEL.vocab_size, length) for length in lengths]
    arrays = {name: np.zeros((len(rows), columns), int) for name in ("input_ids", "token_type_ids", "attention_mask")}
    for index, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(columns - len(row), columns)
        arrays["input_ids"][index, place] = row
        arrays["token_type_ids"][index, place] = np.arange(len(row)) > len(row) // 2
        arrays["attention_mask"][index, place] = 1
    return arrays


def test_left_padding_gives_the_hidden_states_of_right_padding(params):
    """Attended tokens have equal positions and equal context, so only the order of float32 sums differs."""
    lengths, columns = [12, 7, 1], 12
    outputs = {}
    for side in ("left", "right"):
        arrays = padded(side, lengths, columns)
        batch = jax.tree.map(jnp.asarray, windows.from_arrays(arrays, MODEL))
        encoded = jax.jit(encode, static_argnums=0)(MODEL, params, batch)
        outputs[side] = np.asarray(encoded.hidden)[arrays["attention_mask"] == 1], np.asarray(encoded.pooled)
    for left, right in zip(outputs["left"], outputs["right"], strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=2e-6 * np.abs(right).max())


def test_right_padding_equals_transformers(params, tmp_path):
    """Hidden states of all attended tokens and pooled states, against BertModel in float64; tolerance of float32 rounding."""
    convert.write(LoadedModel(MODEL, {"bert": params["bert"]}), tmp_path / "model", "hf")
    model = transformers.BertModel.from_pretrained(tmp_path / "model").double().eval()
    arrays = padded("right", [12, 7, 1], 12)
    with torch.no_grad():
        expected = model(**{name: torch.tensor(values) for name, values in arrays.items()})
    encoded = bert_jax.load(tmp_path / "model").encode(arrays)
    attended = arrays["attention_mask"] == 1
    for ours, theirs in (
        (np.asarray(encoded.hidden)[attended], expected.last_hidden_state.numpy()[attended]),
        (np.asarray(encoded.pooled), expected.pooler_output.numpy()),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=4e-6 * np.abs(theirs).max())
