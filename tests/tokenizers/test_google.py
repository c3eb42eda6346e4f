"""The original's tokenizer: the rules "google" against an implementation from its description, and alignment."""

from __future__ import annotations

import json
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax import tokenizers
from bert_jax.errors import UserError
from bert_jax.tokenizers.protocol import SPECIAL_TOKENS
from tests.tokenizers.test_tokenizers import TORTURE, basic_words

# Few of those whose neighbours are alike: letters without case, characters of private use, and unassigned ones.
CHARACTERS = [
    chr(code)
    for code in range(sys.maxunicode + 1)
    if not 0xD800 <= code < 0xE000 and (code % 31 == 0 or unicodedata.category(chr(code)) not in ("Lo", "Co", "Cn"))
]
# Every character is a token, alone and inside of a word, so that no difference hides behind [UNK].
PIECES = [*SPECIAL_TOKENS, *dict.fromkeys(part for text in TORTURE for part in text.lower() if part.strip()), "##x", "##y", "ab"]

ODD = "abxyΣσİßé\u0301\u0316\u302eﬁ가 ."  # noqa: RUF001 - Greek letters, whose case depends on their neighbours


def make(pieces, *, lowercase=True, **config):
    settings = {"do_lower_case": lowercase, "basic_tokenizer": "google", **config}
    return tokenizers.WordPiece(
        {"vocab.txt": "".join(f"{piece}\n" for piece in pieces).encode(), "tokenizer_config.json": json.dumps(settings).encode()}
    )


def expected(tokenizer, text, *, lowercase):
    """Greedy longest-match-first tokens of the words of the second implementation."""
    ids = []
    for word in basic_words(text, lowercase):
        found, start = [], 0
        while start < len(word) and len(word) <= 200:
            ends = [end for end in range(len(word), start, -1) if "##" * bool(start) + word[start:end] in tokenizer.vocab]
            if not ends:
                break
            found.append(tokenizer.vocab["##" * bool(start) + word[start : ends[0]]])
            start = ends[0]
        ids += found if start == len(word) else [tokenizer.special_tokens.unk]
    return ids


@pytest.mark.parametrize("lowercase", [True, False])
def test_every_character(lowercase):
    """The words of each character, which decide the tokens whatever the vocabulary."""
    tokenizer = make([*SPECIAL_TOKENS, "a", "b"], lowercase=lowercase)
    rules = tokenizer._google
    for character in CHARACTERS:
        words = [part for word in f"a{character}b".translate(rules._characters).split() for part in rules._split(word)]
        assert words == basic_words(f"a{character}b", lowercase), hex(ord(character))


@given(st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(ODD)), max_size=30))
def test_ids_and_spans_of_any_text(text):
    for lowercase in (True, False):
        tokenizer = make([*PIECES, *dict.fromkeys(set("".join(basic_words(text, lowercase))) - set(PIECES))], lowercase=lowercase)
        (plain,) = tokenizer.encode([text], match_special=False)
        assert plain.ids.tolist() == expected(tokenizer, text, lowercase=lowercase)
        (aligned,), (matching,) = tokenizer.align([text]), tokenizer.encode([text])
        assert aligned.ids.tolist() == matching.ids.tolist()
        spans = aligned.spans
        assert spans.shape == (len(aligned.ids), 2)
        assert (np.diff(spans, axis=0) >= 0).all()
        assert (spans[:, 0] < spans[:, 1]).all()
        assert not len(spans) or spans.max() <= len(text)


@pytest.mark.parametrize("text", TORTURE)
def test_torture(text):
    for lowercase in (True, False):
        tokenizer = make(PIECES, lowercase=lowercase)
        assert tokenizer.encode([text], match_special=False)[0].ids.tolist() == expected(tokenizer, text, lowercase=lowercase)


def test_spans_point_into_the_text():
    text = "Crème \u200bBRÛLÉE, İab\u0301 東京 [MASK]."
    pieces = [*SPECIAL_TOKENS, "creme", "brulee", ",", "iab", "東", "京", "."]
    (aligned,) = make(pieces).align([text])
    found = [text[first:last] for first, last in aligned.spans]
    assert found == ["Crème", "BRÛLÉE", ",", "İab\u0301", "東", "京", "[MASK]", "."]
    assert [pieces[token] for token in aligned.ids] == ["creme", "brulee", ",", "iab", "東", "京", "[MASK]", "."]


def test_added_tokens_are_matched_as_by_the_library():
    """lstrip, rstrip, single_word and normalized against the tokenizer of the other rules."""
    pieces = [*SPECIAL_TOKENS, "a", "b", "x", "##b", "[", "]", "<", ">", "mask"]
    flags = ["lstrip", "rstrip", "single_word", "normalized"]
    for chosen in range(16):
        token = {"content": "<x>", "special": False} | {flag: bool(chosen >> place & 1) for place, flag in enumerate(flags)}
        config = {"added_tokens_decoder": {str(len(pieces)): token}}
        google = make(pieces, **config)
        other = make(pieces, **config).with_rules("transformers")
        for text in ["a <x> b", "a<x>b", "a <X> b", "ab  <x>  ab <x>", "<x><x>[MASK]a", "", "a [MASK] <x>b"]:
            (ours,), (theirs,) = google.align([text]), other.align([text])
            assert ours.ids.tolist() == theirs.ids.tolist(), (token, text)
            assert ours.spans.tolist() == theirs.spans.tolist(), (token, text)
            assert google.encode([text])[0].ids.tolist() == theirs.ids.tolist()


def test_the_rules_survive_saving(tmp_path):
    tokenizer = make([*SPECIAL_TOKENS, "a"])
    tokenizers.save(tokenizer, tmp_path / "t")
    again = tokenizers.load(tmp_path / "t")
    assert again.settings.rules == "google"
    assert tokenizers.digest(again) == tokenizers.digest(tokenizer)


def test_unknown_rules_are_refused():
    with pytest.raises(UserError, match="basic_tokenizer is 'icu'"):
        make([*SPECIAL_TOKENS], basic_tokenizer="icu")


def test_the_original_takes_longer_words():
    tokenizer = make([*SPECIAL_TOKENS, "x", "##x"], max_input_chars_per_word=100).with_rules("google")
    assert len(tokenizer.encode(["x" * 200])[0].ids) == 200
    assert tokenizer.encode(["x" * 201])[0].ids.tolist() == [tokenizer.special_tokens.unk]
