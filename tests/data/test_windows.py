"""Windows hold every piece once, whatever the length; batches hold every window once, in few shapes."""

from __future__ import annotations

import itertools
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.data import windows
from bert_jax.errors import UserError
from bert_jax.tokenizers.protocol import Aligned, Pieces, Specials, Tokenizer
from tests.conftest import MODEL


class Letters:
    """A tokenizer whose pieces are letters."""

    files: ClassVar[dict[str, bytes]] = {}
    pieces: ClassVar[list[str]] = []
    specials = Specials(0, 1, 2, 3, 4)

    def doubts(self):
        return []

    def decode(self, ids):
        return "".join(map(chr, ids))

    def encode(self, texts):
        return [Pieces(*aligned[:2]) for aligned in self.align(texts)]

    def align(self, texts):
        spans = [np.arange(len(text), dtype=np.int32)[:, None] + np.array([0, 1], np.int32) for text in texts]
        ids = [np.array([*map(ord, text)], np.int32) for text in texts]
        return [Aligned(mine, np.ones(len(mine), bool), span) for mine, span in zip(ids, spans, strict=True)]


def cut(texts, **options):
    return windows.cut(Letters(), texts, **options)


def test_letters_are_a_tokenizer():
    """The stand-in has every method that the protocol asks for."""
    assert isinstance(Letters(), Tokenizer)
    (aligned,) = Letters().align(["abc"])
    np.testing.assert_array_equal(aligned.spans, [[0, 1], [1, 2], [2, 3]])


def letters(count, first=0):
    return "".join(chr(200 + first + number) for number in range(count))


@given(st.lists(st.integers(0, 60), max_size=5), st.integers(5, 20), st.sampled_from(["chunk", "stride"]))
def test_windows_keep_cls_each_piece_once_and_sep(sizes, limit, long):
    rows = cut([letters(size) for size in sizes], limit=limit, long=long)
    for number, size in enumerate(sizes):
        mine = [row for row in rows if row.text == number]
        kept = np.concatenate([row.ids[row.keep] for row in mine])
        np.testing.assert_array_equal(kept, [2, *map(ord, letters(size)), 3])
        for row in mine:
            assert len(row.ids) <= limit
            assert row.first == len(row.ids)
            assert (row.ids[0], row.ids[-1]) == (2, 3)


def test_a_stride_takes_each_piece_where_it_stands_deeper():
    room = 8
    rows = cut([letters(50)], limit=room + 2, long="stride")
    inside = {}
    for row in rows:
        for place, piece in enumerate(row.ids[1:-1].tolist()):
            inside.setdefault(piece, []).append(min(place, len(row.ids) - 3 - place))
    for row in rows:
        for place in range(*row.keep.indices(len(row.ids))):
            piece = int(row.ids[place])
            if piece > 4:
                depth = min(place - 1, len(row.ids) - 2 - place)
                assert depth >= max(inside[piece]) - 1
    # Away from the ends of the text, no piece stands closer than a quarter of the window to the window's.
    depths = [max(inside[ord(letter)]) for letter in letters(50)[2:-2]]
    assert min(depths) >= room // 4 - 1


@given(st.integers(0, 30), st.integers(0, 30), st.integers(5, 20))
def test_pairs_are_truncated_as_the_original_does(first, second, limit):
    (row,) = cut([(letters(first), letters(second, 100))], limit=limit, long="truncate")
    a, b = [*letters(first)], [*letters(second, 100)]
    while len(a) + len(b) > limit - 3:  # _truncate_seq_pair of the original's extract_features.py
        (a if len(a) > len(b) else b).pop()
    np.testing.assert_array_equal(row.ids, [2, *map(ord, a), 3, *map(ord, b), 3])
    assert row.first == len(a) + 2


def test_too_long_is_said_with_the_number_of_the_text():
    texts = [letters(3), letters(9)]
    with pytest.raises(UserError, match="Text 2 has 11 pieces, special ones counted; the limit is 10"):
        cut(texts, limit=10)
    assert len(cut(texts, limit=11)) == 2
    with pytest.raises(UserError, match="pairs can only be truncated"):
        cut([(letters(5), letters(5))], limit=10, long="stride")
    with pytest.raises(UserError, match="holds half a surrogate pair"):
        cut(["\ud800"], limit=20)
    with pytest.raises(UserError, match="leaves no room"):
        cut(texts, limit=4)


def test_mask_in_a_text_is_the_mask_piece():
    (row,) = cut(["ab[MASK]c"], limit=20)
    np.testing.assert_array_equal(row.ids, [2, ord("a"), ord("b"), 4, ord("c"), 3])


@given(st.lists(st.integers(0, 200), min_size=1, max_size=60), st.sampled_from([64, 512, 4096]))
def test_every_window_is_in_one_batch(sizes, tokens):
    rows = cut([letters(size) for size in sizes], limit=300)
    seen = []
    for numbers, batch in windows.batches(rows, tokens=tokens, limit=300, pad=0):
        seen += numbers
        assert batch["ids"].size <= max(tokens, batch["ids"].shape[1])
        for place, number in enumerate(numbers):
            length = len(rows[number].ids)
            np.testing.assert_array_equal(batch["ids"][place, :length], rows[number].ids)
            np.testing.assert_array_equal(batch["segments"][place], np.arange(batch["ids"].shape[1]) < length)
            np.testing.assert_array_equal(batch["positions"][place, :length], np.arange(length))
            assert batch["keep"][place].sum() == length
        assert not batch["segments"][len(numbers) :].any()
    assert sorted(seen) == [*range(len(rows))]


def test_a_thousand_texts_make_a_dozen_shapes():
    rng = np.random.default_rng(0)
    rows = cut([letters(size) for size in np.minimum(rng.geometric(0.03, 1000), 500)], limit=512)
    shapes = {batch["ids"].shape for _, batch in windows.batches(rows, tokens=1024, limit=512, pad=0)}
    assert len(shapes) <= 13
    padded = sum(rows * width for rows, width in (b["ids"].shape for _, b in windows.batches(rows, tokens=1024, limit=512, pad=0)))
    assert padded <= 1.34 * sum(len(row.ids) for row in rows)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"types": [[0]]}, "not only the last two"),
        ({"ids": [[1]], "mask": [[1]]}, "not mask"),
        ({"ids": [1, 2]}, r"ids has shape \(2,\)"),
        ({"ids": [[0.5]]}, "dtype float64"),
        ({"ids": [[97]]}, r"ids holds 97; its values must lie in \[0, 97\)"),
        ({"ids": [[-1]]}, "ids holds -1"),
        ({"ids": [[1]], "types": [[2]]}, "types holds 2"),
        ({"ids": [[1]], "segments": [[1, 1]]}, r"segments has shape \(1, 2\), ids has \(1, 1\)"),
        ({"ids": [[1]], "segments": [[2]]}, "segments holds 2"),
        ({"ids": [[1] * 65]}, "ids has 65 columns; the model has 64 positions"),
    ],
)
def test_bad_arrays(given, sentence):

    with pytest.raises(UserError, match=sentence):
        windows.from_arrays(given, MODEL)


def test_arrays_are_completed():

    batch = windows.from_arrays({"ids": np.array([[5, 6, 7]])}, MODEL)
    np.testing.assert_array_equal(batch["segments"], [[1, 1, 1]])
    np.testing.assert_array_equal(batch["types"], [[0, 0, 0]])
    np.testing.assert_array_equal(batch["positions"], [[0, 1, 2]])
    assert {value.dtype for value in batch.values()} == {np.dtype(np.int32)}
    assert list(itertools.chain(batch)) == ["ids", "types", "segments", "positions", "cls_positions"]
