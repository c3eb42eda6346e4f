"""Each word is scored once, where it stands deepest, and predictions find their way back."""

from __future__ import annotations

import collections
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.errors import BertWarning, UserError
from bert_jax.tasks import token_classification
from bert_jax.tasks.conll import Sentence
from bert_jax.tokenizers.protocol import SpecialTokens, TokenizedText

LABELS = ("B-X", "I-X", "O")


class Counted:
    """A tokenizer of words such as 7x3, which has the tokens 7000, 7001 and 7002."""

    files: ClassVar[dict[str, bytes]] = {}
    tokens: ClassVar[list[str]] = []
    special_tokens = SpecialTokens(0, 1, 2, 3, 4)

    def warnings(self):
        return []

    def decode(self, ids):
        return " ".join(map(str, ids))

    def align(self, texts):
        raise NotImplementedError

    def encode(self, texts):
        assert len(texts) == len(set(texts))
        numbers = [tuple(map(int, text.split("x"))) for text in texts]
        return [TokenizedText(np.arange(size, dtype=np.int32) + 1000 * word, np.arange(size) == 0) for word, size in numbers]


def make(sizes, *, tags=True):
    """Sentences of documents of sentences of words with as many tokens, each word another one."""
    sentences, number = [], 1
    for document, parts in enumerate(sizes):
        for part in parts:
            words = tuple(f"{number + place}x{size}" for place, size in enumerate(part))
            given = tuple(LABELS[(number + place) % 3] for place in range(len(part))) if tags else None
            sentences.append(Sentence(words, given, document, number, "a.conll"))
            number += len(part)
    return sentences


def words_of(ids):
    return [number // 1000 for number in ids[1:-1].tolist()]


DOCUMENTS = st.lists(st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=12), max_size=5), max_size=4)


@given(DOCUMENTS, st.integers(3, 24), st.sampled_from(["document", "sentence"]))
def test_each_word_is_scored_once_at_its_first_token(sizes, length, context):
    sentences = make(sizes)
    tagged = token_classification.encode(Counted(), sentences, LABELS, sequence_length=length, context=context)
    scored = [tuple(word) for window in tagged for word in window.words.tolist()]
    assert scored == [(row, place) for row, sentence in enumerate(sentences) for place in range(len(sentence.words))]
    for window in tagged:
        (text,) = window.example.texts
        assert len(text.ids) == text.first_length <= length
        assert (text.ids[0], text.ids[-1]) == (2, 3)
        assert len(window.places) == len(window.words) > 0
        expected = np.full(len(text.ids), -1)
        for (row, word), place in zip(window.words.tolist(), window.places.tolist(), strict=True):
            assert text.ids[place] == 1000 * int(sentences[row].words[word].split("x")[0])
            expected[place] = LABELS.index(sentences[row].tags[word])
        np.testing.assert_array_equal(window.example.label, expected)
        assert {text.ids.dtype, window.words.dtype, window.places.dtype, window.example.label.dtype} == {np.dtype(np.int32)}


@given(DOCUMENTS, st.integers(9, 24), st.sampled_from(["document", "sentence"]))
def test_what_is_around_a_word_is_its_text_in_whole_words(sizes, length, context):
    sentences = make(sizes)
    texts = collections.defaultdict(list)
    for number, sentence in enumerate(sentences):
        texts[sentence.document if context == "document" else number] += sentence.words
    runs = [[1000 * int(word.split("x")[0]) + token for word in text for token in range(int(word[-1]))] for text in texts.values()]
    home = {token: run for run in runs for token in run}
    for window in token_classification.encode(Counted(), sentences, LABELS, sequence_length=length, context=context):
        ids = window.example.texts[0].ids[1:-1].tolist()
        run = home[ids[0]]
        begin = run.index(ids[0])
        end = begin + len(ids)
        assert ids == run[begin:end]
        assert ids[0] % 1000 == 0
        assert end == len(run) or run[end] % 1000 == 0
        if len(run) <= length - 2:
            assert ids == run
        elif end < len(run):
            # No further word would have fitted.
            following = [token for token in run if token // 1000 == run[end] // 1000]
            assert len(ids) + len(following) > length - 2


@given(st.lists(st.integers(1, 6), min_size=1, max_size=80), st.integers(8, 24))
def test_a_word_is_scored_in_the_window_with_most_context(sizes, length):
    tagged = token_classification.encode(Counted(), make([[sizes]]), LABELS, sequence_length=length)
    depths = collections.defaultdict(list)
    for window in tagged:
        found = words_of(window.example.texts[0].ids)
        for word in set(found):
            before = found.index(word)
            depths[word].append(min(before, len(found) - before - found.count(word)))
    for window in tagged:
        found = words_of(window.example.texts[0].ids)
        for word in (window.words[:, 1] + 1).tolist():
            before = found.index(word)
            assert min(before, len(found) - before - found.count(word)) == max(depths[word])


def test_windows_overlap_by_half_and_are_full():
    tagged = token_classification.encode(Counted(), make([[[1] * 50, [1] * 45]]), LABELS, sequence_length=22)
    firsts = [words_of(window.example.texts[0].ids)[0] for window in tagged]
    assert firsts == [1, 11, 21, 31, 41, 51, 61, 71, 76]
    assert {len(window.example.texts[0].ids) for window in tagged} == {22}
    for window in tagged:
        for word, place in zip(window.words.tolist(), window.places.tolist(), strict=True):
            number = 50 * word[0] + word[1]
            assert min(place - 1, 20 - place) >= min(4, number, 94 - number)


def test_the_context_is_the_sentence_or_the_document():
    sentences = make([[[1, 2], [1]], [[3]]])
    ids = {
        context: [
            window.example.texts[0].ids.tolist()
            for window in token_classification.encode(Counted(), sentences, LABELS, context=context)
        ]
        for context in ("document", "sentence")
    }
    assert ids["document"] == [[2, 1000, 2000, 2001, 3000, 3], [2, 4000, 4001, 4002, 3]]
    assert ids["sentence"] == [[2, 1000, 2000, 2001, 3], [2, 3000, 3], [2, 4000, 4001, 4002, 3]]
    other = [sentence._replace(where="b.conll", document=0) for sentence in make([[[1]]])]
    assert len(token_classification.encode(Counted(), [*make([[[1, 2]]]), *other], LABELS)) == 2


def test_unusual_words_have_a_position_too():
    sentences = [Sentence(("1x0", "2x50", "3x1"), ("O", "B-X", "O"), 0, 1, "a.conll")]
    tagged = token_classification.encode(Counted(), sentences, LABELS, sequence_length=8)
    assert [window.example.texts[0].ids.tolist() for window in tagged] == [
        [2, 1, 3],
        [2, 2000, 2001, 2002, 2003, 2004, 2005, 3],
        [2, 3000, 3],
    ]
    assert [window.places.tolist() for window in tagged] == [[1], [1], [1]]


def test_a_real_tokenizer_takes_words_one_by_one(tokenizer):
    words = ("alpha", "bravo.", "\x00", "alpha")
    (window,) = token_classification.encode(tokenizer, [Sentence(words, None, 0, 1, "a.conll")], ())
    expected = [tokenizer.encode([word])[0].ids for word in words]
    expected[2] = np.array([tokenizer.special_tokens.unk])
    np.testing.assert_array_equal(window.example.texts[0].ids[1:-1], np.concatenate(expected))
    np.testing.assert_array_equal(window.places, 1 + np.cumsum([0, *map(len, expected)])[:-1])
    assert window.example.label is None


@given(DOCUMENTS, st.integers(3, 24))
def test_predictions_return_to_their_words(sizes, length):
    sentences = make(sizes)
    tagged = token_classification.encode(Counted(), sentences, LABELS, sequence_length=length)
    predicted = []
    for window in tagged:
        row = np.concatenate([window.example.label, [-1, -1]])
        predicted.append(np.eye(4, dtype=np.float32)[row][:, :3])
    assert token_classification.decode(tagged, predicted, sentences, LABELS) == [sentence.tags for sentence in sentences]


def test_predictions_that_do_not_fit_are_refused():
    sentences = make([[[1, 2], [1]]])
    tagged = token_classification.encode(Counted(), sentences, LABELS, context="sentence")
    right = [np.eye(4, dtype=np.float32)[window.example.label][:, :3] for window in tagged]
    for predicted, windows, sentence in [
        (right[:1], tagged, "Predictions of 1 windows are given for 2 windows"),
        (right[:1], tagged[:1], "Some words have no prediction"),
        ([right[0][:-1], right[1]], tagged, "Window 1 has 5 tokens; 4 predictions are given"),
        ([np.zeros((9, 2)), right[1]], tagged, r"Predictions of window 1 have shape \(9, 2\); there are 3 labels"),
        ([right[0].argmax(-1), right[1]], tagged, r"Predictions of window 1 have shape \(5,\); there are 3 labels"),
    ]:
        with pytest.raises(UserError, match=sentence):
            token_classification.decode(windows, predicted, sentences, LABELS)


def test_an_unknown_tag_is_reported_once_and_ignored():
    sentences = [Sentence(("1x1", "2x1"), ("O", "B-Y"), 0, 4, "dev.conll"), Sentence(("3x2",), ("B-Z",), 0, 7, "dev.conll")]
    with pytest.warns(BertWarning) as caught:
        tagged = token_classification.encode(Counted(), sentences, LABELS)
    (warning,) = caught
    assert str(warning.message) == (
        "dev.conll, line 5: the tag 'B-Y', the first of 2 such words, is not among the labels of the training data; "
        "it counts as wrong."
    )
    assert tagged[0].example.label.tolist() == [-1, 2, -1, -1, -1, -1]
    assert tagged[0].places.tolist() == [1, 2, 3]


def test_bad_arguments():
    sentences = make([[[1]]])
    with pytest.raises(UserError, match="A sequence_length of 2 tokens leaves no room"):
        token_classification.encode(Counted(), sentences, LABELS, sequence_length=2)
    with pytest.raises(UserError, match=r"a.conll, line 1: the sentence has no tags"):
        token_classification.encode(Counted(), [*sentences, *make([[[1]]], tags=False)], LABELS)
    assert token_classification.encode(Counted(), [], LABELS) == []
