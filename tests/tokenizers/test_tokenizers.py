"""Tokenizers against the original's algorithm written a second time, and against damaged vocabularies."""

from __future__ import annotations

import functools
import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Engine

from bert_jax import tokenizers
from bert_jax.errors import UserError
from bert_jax.tokenizers.protocol import SPECIALS

CHINESE = [
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
]
TORTURE = [
    "Hello, World! it's 3.14",
    "Crème brûlée, NAÏVE façade",
    "漢字とかな mixed 中文text",
    "tabs\tand\nnewlines\u00a0and\u2003spaces",
    "zero\u200bwidth\x00null\ufffdbad\x07bell",
    "a-b_c/d\\e `tick` ~tilde^",
    "x" * 199 + " " + "y" * 201,
    "[MASK] [CLS] is text",
    "İstanbul ǅ ﬁ ß",
    "emoji 😀 and ♥ and ½",
    "",
    "   ",
]


def basic_words(text, lowercase):
    """BasicTokenizer of the original's tokenization.py, from its description."""
    out = []
    for char in text:
        code, kind = ord(char), unicodedata.category(char)
        if char in "\t\n\r" or kind == "Zs":
            out.append(" ")
        elif code in (0, 0xFFFD) or kind in ("Cc", "Cf"):
            continue
        elif any(low <= code <= high for low, high in CHINESE):
            out.append(f" {char} ")
        else:
            out.append(char)
    words = []
    for word in "".join(out).split():
        if lowercase:
            word = "".join(c for c in unicodedata.normalize("NFD", word.lower()) if unicodedata.category(c) != "Mn")
        start = True
        for char in word:
            code = ord(char)
            punctuation = (
                33 <= code <= 47
                or 58 <= code <= 64
                or 91 <= code <= 96
                or 123 <= code <= 126
                or unicodedata.category(char).startswith("P")
            )
            if punctuation or start:
                words.append(char)
            else:
                words[-1] += char
            start = punctuation
    return [part for word in words for part in word.split()]


def wordpieces(word, vocab):
    """WordpieceTokenizer of the original: greedy, longest match first, 200 letters at most."""
    if len(word) > 200:
        return ["[UNK]"]
    pieces, start = [], 0
    while start < len(word):
        for end in range(len(word), start, -1):
            piece = ("##" if start else "") + word[start:end]
            if piece in vocab:
                pieces.append(piece)
                start = end
                break
        else:
            return ["[UNK]"]
    return pieces


def vocabulary(texts, lowercase, size=400):
    return tokenizers.train(lambda: texts, kind="wordpiece", size=size, lowercase=lowercase)


@pytest.mark.parametrize("lowercase", [True, False])
def test_wordpiece_is_the_originals(lowercase):
    tokenizer = vocabulary([*TORTURE, "hello world brulee it is a text of words"], lowercase)
    vocab = set(tokenizer.pieces)
    for text, pieces in zip(TORTURE, tokenizer.encode(TORTURE), strict=True):
        expected = [piece for word in basic_words(text, lowercase) for piece in wordpieces(word, vocab)]
        assert [tokenizer.pieces[number] for number in pieces.ids] == expected, text
        np.testing.assert_array_equal(pieces.starts, [not piece.startswith("##") for piece in expected])


# The library's tables are of an older Unicode than Python's: letters that an old one knows are classified alike.
LETTERS = st.characters(codec="utf-8", exclude_categories=("Cs", "Cn", "Co"), max_codepoint=0x2FFF).filter(
    lambda letter: unicodedata.ucd_3_2_0.category(letter) == unicodedata.category(letter)
)


@settings(max_examples=150, deadline=None)
@given(st.text(LETTERS, max_size=40))
def test_wordpiece_is_the_originals_on_any_text(text):
    tokenizer = FUZZED
    expected = [piece for word in basic_words(text, True) for piece in wordpieces(word, set(tokenizer.pieces))]
    assert [tokenizer.pieces[number] for number in tokenizer.encode([text])[0].ids] == expected


FUZZED = vocabulary([*TORTURE, "the quick brown fox jumps over the lazy dog"], True)


def check_alignment(tokenizer, text):
    (aligned,), (pieces,) = tokenizer.align([text]), tokenizer.encode([text])
    np.testing.assert_array_equal(aligned.ids, pieces.ids)
    np.testing.assert_array_equal(aligned.starts, pieces.starts)
    assert aligned.spans.shape == (len(pieces.ids), 2)
    assert {aligned.ids.dtype, aligned.spans.dtype} == {np.dtype(np.int32)}
    assert (np.diff(aligned.spans, axis=0) >= 0).all()
    assert ((aligned.spans >= 0) & (aligned.spans <= len(text))).all()
    assert (aligned.spans[:, 0] <= aligned.spans[:, 1]).all()
    return [text[first:last] for first, last in aligned.spans.tolist()], [tokenizer.pieces[number] for number in aligned.ids]


@functools.cache
def sentencepiece(kind, lowercase):
    texts = ["the quick brown fox jumps over the lazy dog", "Some CAPITAL letters, too: half of it (or 2/3)"] * 30
    return tokenizers.train(lambda: texts, kind=kind, size=45 if lowercase else 48, lowercase=lowercase)


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(max_codepoint=127), max_size=40))
def test_spans_of_plain_text_are_its_pieces(text):
    slices, pieces = check_alignment(FUZZED, text)
    for piece, part in zip(pieces, slices, strict=True):
        kept = "".join(letter for letter in part.lower() if letter.isprintable())
        assert piece in ("[UNK]", kept, f"##{kept}")
    for kind in ("unigram", "bpe"):
        slices, pieces = check_alignment(sentencepiece(kind, True), text)
        if text.isprintable():
            for piece, part in zip(pieces, slices, strict=True):
                assert (piece == "[UNK]" and part) or part.lower() == piece.removeprefix("▁")


@settings(max_examples=300, deadline=None)
@given(
    st.text(
        st.one_of(st.characters(codec="utf-8"), st.sampled_from([*" aeE\u0301\u0327\u00a0\u200b\x07가½ﬁ漢😀İ\ufffd"])), max_size=30
    )
)
def test_spans_of_any_text(text):
    for tokenizer in (FUZZED, sentencepiece("unigram", True), sentencepiece("unigram", False), sentencepiece("bpe", True)):
        check_alignment(tokenizer, text)


@pytest.mark.parametrize(
    "noise", ["é", "e\u0301", "😀", "漢字", "\x07", "\x00", "\u200b", "\u00a0", "\u3000 ", "İ", "가", "½ﬁ", "\ufffd"]
)
@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe"])
def test_what_stands_before_a_word_does_not_shift_it(kind, noise):
    tokenizer = FUZZED if kind == "wordpiece" else sentencepiece(kind, True)
    text = f"{noise}Fox{noise} {noise} fox jumps{noise}"
    (aligned,) = tokenizer.align([text])
    place = text.index("fox")
    held = [n for n, (first, last) in enumerate(aligned.spans.tolist()) if first < place + 3 and last > place]
    assert "".join(tokenizer.pieces[aligned.ids[n]] for n in held).replace("##", "").replace("▁", "") == "fox"
    assert (aligned.spans[held[0], 0], aligned.spans[held[-1], 1]) == (place, place + 3)


def test_a_letter_and_its_accents_are_one():
    own = tokenizers.from_files({"vocab.txt": "".join(f"{p}\n" for p in [*SPECIALS, "caf", "##e", "fox", "ᄀ", "##ᅡ"]).encode()})
    text = "Cafe\u0301\u0301, cafe\u0301fox 가"
    slices, pieces = check_alignment(own, text)
    assert slices == ["Caf", "e\u0301\u0301", ",", "cafe\u0301fox", "가", "가"]
    assert pieces == ["caf", "##e", "[UNK]", "[UNK]", "ᄀ", "##ᅡ"]
    # Where accents are kept they are pieces of their own.
    vocab = "".join(f"{piece}\n" for piece in [*SPECIALS, "a", "##\u0301"]).encode()
    kept = tokenizers.from_files({"vocab.txt": vocab, "tokenizer_config.json": b'{"strip_accents": false}'})
    assert check_alignment(kept, "a\u0301") == (["a", "\u0301"], ["a", "##\u0301"])
    slices, pieces = check_alignment(sentencepiece("unigram", True), "a½ ﬁ")
    assert pieces == ["▁", "a", "[UNK]", "2", "▁", "f", "i"]
    assert slices == ["", "a", "½", "½", "", "ﬁ", "ﬁ"]
    # One letter that is four words.
    slices, pieces = check_alignment(sentencepiece("unigram", True), "\ufdfa")
    assert (pieces.count("▁"), {*slices[1:]}) == (4, {"\ufdfa"})
    assert own.align([]) == sentencepiece("bpe", True).align([]) == []


def test_wordpiece_training_is_the_same_each_time():
    texts = [f"word{number} stays where it is, {number % 7} times" for number in range(300)]
    assert len({tokenizers.digest(vocabulary(texts, True, 150)) for _ in range(4)}) == 1


def test_wordpiece_too_small_for_the_letters():
    with pytest.raises(UserError, match="letters"):
        vocabulary(TORTURE, True, size=20)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece_round_trip(kind, text):
    lines = [line for line in text.read_text().splitlines() if line]
    tokenizer = tokenizers.train(lambda: lines, kind=kind, size=36)
    assert len(tokenizer.pieces) == 36
    assert tuple(tokenizer.pieces[:5]) == SPECIALS
    for line, pieces in zip(lines[:20], tokenizer.encode(lines[:20]), strict=True):
        assert tokenizer.decode(pieces.ids.tolist()) == line.lower()
        assert pieces.starts.sum() == len(line.split())


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe"])
def test_saved_and_loaded_is_the_same(kind, text, tmp_path):
    lines = [line for line in text.read_text().splitlines() if line]
    tokenizer = tokenizers.train(lambda: lines, kind=kind, size=60 if kind == "wordpiece" else 36)
    tokenizers.save(tokenizer, tmp_path / "vocab")
    again = tokenizers.load(tmp_path / "vocab")
    assert tokenizers.digest(again) == tokenizers.digest(tokenizer)
    assert again.specials == tokenizer.specials
    np.testing.assert_array_equal(again.encode(lines[:1])[0].ids, tokenizer.encode(lines[:1])[0].ids)


def test_sentencepiece_text_too_small():
    with pytest.raises(UserError, match="cannot learn 5000 pieces"):
        tokenizers.train(lambda: ["one line"], kind="unigram", size=5000)


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe"])
def test_what_is_wrong_with_a_text_is_said_as_it_is(kind):
    def texts():
        yield from ["some text to learn from"] * 50
        raise UserError("a.txt, line 51: not UTF-8.")

    with pytest.raises(UserError, match=r"^a.txt, line 51: not UTF-8.$"):
        tokenizers.train(texts, kind=kind, size=60)


def test_mask_in_a_text_is_text():
    tokenizer = vocabulary(TORTURE, True)
    assert tokenizer.specials.mask not in tokenizer.encode(["[MASK]"])[0].ids


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nword\n", r"has no \[MASK\]"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nword\nword\n", "'word' twice, as ids 5 and 6"),
        (b"[PAD]\n\xff\n", "not UTF-8"),
    ],
)
def test_bad_vocabularies(tmp_path, content, sentence):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        tokenizers.load(tmp_path)


def test_missing_and_foreign_directories(tmp_path):
    with pytest.raises(UserError, match="no directory"):
        tokenizers.load(tmp_path / "none")
    with pytest.raises(UserError, match=r"holds no vocab.txt, tokenizer.json or spiece.model"):
        tokenizers.load(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        tokenizers.load(tmp_path)


def tokenizer_json(tokenizer, **changes):
    """The file that other libraries keep, with padding and truncation baked in."""
    stored = json.loads(tokenizer._engine.to_str())
    stored["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    stored["padding"] = {
        "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "[PAD]",
    }  # fmt: skip
    for path, value in changes.items():
        *parents, last = path.split("__")
        functools.reduce(dict.__getitem__, parents, stored)[last] = value
    return json.dumps(stored).encode()


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("accents", [None, True, False])
def test_tokenizer_json_gives_the_ids_of_its_own_library(tmp_path, lowercase, accents):
    own = vocabulary([*TORTURE, "hello world brulee it is a text of words"], lowercase)
    content = tokenizer_json(own, normalizer__strip_accents=accents, model__max_input_chars_per_word=100)
    (tmp_path / "tokenizer.json").write_bytes(content)
    found = tokenizers.load(tmp_path)
    assert found.pieces == own.pieces
    library = Engine.from_str(content.decode())
    library.no_padding()
    library.no_truncation()
    texts = [*TORTURE, "a" * 99 + " " + "b" * 101]
    for text, pieces in zip(texts, found.encode(texts), strict=True):
        assert pieces.ids.tolist() == library.encode(text, add_special_tokens=False).ids, text
    # What is kept of it is enough to make it again.
    assert tokenizers.from_files(found.files).encode(texts)[0].ids.tolist() == found.encode(texts)[0].ids.tolist()


def test_the_config_beside_tokenizer_json_goes_before(tmp_path):
    own = vocabulary(TORTURE, True)
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json(own))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert not tokenizers.load(tmp_path).lowercase


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model__type": "BPE"}, "another tokenizer than BERT's WordPiece: BPE"),
        ({"pre_tokenizer__type": "ByteLevel"}, "ByteLevel"),
        ({"model__continuing_subword_prefix": "@@"}, "another tokenizer than BERT's WordPiece: .*@@"),
        ({"added_tokens": [{}]}, "does not describe a WordPiece tokenizer"),
        ({"normalizer__lowercase": "no"}, "do_lower_case is 'no'; it must be bool"),
        ({"model__max_input_chars_per_word": -1}, "max_input_chars_per_word is -1"),
        ({"normalizer": None}, "does not describe a WordPiece tokenizer"),
        ({"model__vocab": {"[PAD]": 0, "a": 2}}, "another tokenizer"),
        ({"added_tokens": [{"content": "<x>", "id": 500}]}, "adds pieces outside of its vocabulary, '<x>' among them"),
    ],
)
def test_other_tokenizers_are_refused(tmp_path, changes, sentence):
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json(vocabulary(TORTURE, True), **changes))
    with pytest.raises(UserError, match=sentence):
        tokenizers.load(tmp_path)


def test_two_vocabularies_that_differ(tmp_path):
    own = vocabulary(TORTURE, True)
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json(own))
    tokenizers.save(own, tmp_path)
    assert tokenizers.load(tmp_path).pieces == own.pieces
    pieces = own.files["vocab.txt"].decode().split("\n")
    pieces[7], pieces[8] = pieces[8], pieces[7]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    with pytest.raises(UserError, match=r"hold different pieces from number 7 on"):
        tokenizers.load(tmp_path)


def test_case_is_read_off_the_vocabulary_where_nothing_is_said():
    cased, uncased = vocabulary(["Paris Berlin Rome is a City"] * 5, False, 60), vocabulary(["paris berlin rome"] * 5, True, 60)
    for own, lowercase in ((cased, False), (uncased, True)):
        found = tokenizers.from_files({"vocab.txt": own.files["vocab.txt"]})
        assert found.lowercase is lowercase
        assert found.doubts() == []
    (doubt,) = tokenizers.from_files(cased.files | {"tokenizer_config.json": b'{"do_lower_case": true}'}).doubts()
    assert "seems to be cased" in doubt
    (doubt,) = tokenizers.from_files(uncased.files | {"tokenizer_config.json": b'{"do_lower_case": false}'}).doubts()
    assert "seems to be uncased" in doubt
