"""Tokenizers against a second implementation of the original's algorithm, and damaged vocabularies."""

from __future__ import annotations

import functools
import json
import unicodedata

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Engine

from bert_jax import tokenizers
from bert_jax.errors import BertWarning, UserError
from bert_jax.tokenizers.protocol import SPECIAL_TOKENS

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
    """BasicTokenizer of the original's tokenization.py, implemented from its description."""
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
    """WordpieceTokenizer of the original: greedy, longest match first, at most 200 characters."""
    if len(word) > 200:
        return ["[UNK]"]
    tokens, start = [], 0
    while start < len(word):
        for end in range(len(word), start, -1):
            token = ("##" if start else "") + word[start:end]
            if token in vocab:
                tokens.append(token)
                start = end
                break
        else:
            return ["[UNK]"]
    return tokens


def vocabulary(texts, lowercase, size=400):
    return tokenizers.train(lambda: texts, kind="wordpiece", size=size, lowercase=lowercase)


@pytest.mark.parametrize("lowercase", [True, False])
def test_wordpiece_equals_the_original(lowercase):
    tokenizer = vocabulary([*TORTURE, "hello world brulee it is a text of words"], lowercase)
    vocab = set(tokenizer.tokens)
    for text, tokens in zip(TORTURE, tokenizer.encode(TORTURE, match_special=False), strict=True):
        expected = [token for word in basic_words(text, lowercase) for token in wordpieces(word, vocab)]
        assert [tokenizer.tokens[token_id] for token_id in tokens.ids] == expected, text
        np.testing.assert_array_equal(tokens.word_starts, [not token.startswith("##") for token in expected])


# The library's tables are of an older Unicode version than Python's; only characters whose category has not changed are drawn.
CHARACTERS = st.characters(codec="utf-8", exclude_categories=("Cs", "Cn", "Co"), max_codepoint=0x2FFF).filter(
    lambda character: unicodedata.ucd_3_2_0.category(character) == unicodedata.category(character)
)


@settings(max_examples=150, deadline=None)
@given(st.text(CHARACTERS, max_size=40))
def test_wordpiece_equals_the_original_on_any_text(text):
    tokenizer = FUZZED
    expected = [token for word in basic_words(text, True) for token in wordpieces(word, set(tokenizer.tokens))]
    assert [tokenizer.tokens[token_id] for token_id in tokenizer.encode([text], match_special=False)[0].ids] == expected


FUZZED = vocabulary([*TORTURE, "the quick brown fox jumps over the lazy dog"], True)


def check_alignment(tokenizer, text):
    (aligned,), (tokens,) = tokenizer.align([text]), tokenizer.encode([text])
    np.testing.assert_array_equal(aligned.ids, tokens.ids)
    np.testing.assert_array_equal(aligned.word_starts, tokens.word_starts)
    assert aligned.spans.shape == (len(tokens.ids), 2)
    assert {aligned.ids.dtype, aligned.spans.dtype} == {np.dtype(np.int32)}
    assert (np.diff(aligned.spans, axis=0) >= 0).all()
    assert ((aligned.spans >= 0) & (aligned.spans <= len(text))).all()
    assert (aligned.spans[:, 0] <= aligned.spans[:, 1]).all()
    return [text[start:end] for start, end in aligned.spans.tolist()], [tokenizer.tokens[token_id] for token_id in aligned.ids]


@pytest.mark.parametrize("kind", ["google", "transformers", "unigram", "bpe"])
def test_names_of_special_tokens_are_aligned_as_they_are_encoded(kind):
    tokenizer = FUZZED.with_rules(kind) if kind in ("google", "transformers") else sentencepiece(kind, True)
    texts = ["the [UNK] quick [MASK][SEP]", "brown [CLS] fox"]
    for match_special in (True, False):
        aligned = tokenizer.align(texts, match_special=match_special)
        encoded = tokenizer.encode(texts, match_special=match_special)
        for row, expected in zip(aligned, encoded, strict=True):
            np.testing.assert_array_equal(row.ids, expected.ids)
            np.testing.assert_array_equal(row.word_starts, expected.word_starts)
        assert (tokenizer.special_tokens.mask in aligned[0].ids) == match_special


@functools.cache
def sentencepiece(kind, lowercase):
    texts = ["the quick brown fox jumps over the lazy dog", "Some CAPITAL letters, too: half of it (or 2/3)"] * 30
    return tokenizers.train(lambda: texts, kind=kind, size=45 if lowercase else 48, lowercase=lowercase)


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(max_codepoint=127), max_size=40))
def test_spans_of_ascii_text_are_its_tokens(text):
    slices, tokens = check_alignment(FUZZED, text)
    for token, part in zip(tokens, slices, strict=True):
        kept = "".join(character for character in part.lower() if character.isprintable())
        assert token in ("[UNK]", kept, f"##{kept}")
    for kind in ("unigram", "bpe"):
        slices, tokens = check_alignment(sentencepiece(kind, True), text)
        if text.isprintable():
            for token, part in zip(tokens, slices, strict=True):
                assert (token == "[UNK]" and part) or part.lower() == token.removeprefix("▁")


@settings(max_examples=300, deadline=None)
@given(
    st.text(
        st.one_of(st.characters(codec="utf-8"), st.sampled_from([*" aeE\u0301\u0327\u00a0\u200b\x07가½ﬁ漢😀İ\ufffd"])), max_size=30
    )
)
def test_spans_of_any_text(text):
    for tokenizer in (FUZZED, sentencepiece("unigram", True), sentencepiece("unigram", False), sentencepiece("bpe", True)):
        check_alignment(tokenizer, text)


ACCENTED = "abcdefghijklmnopqrstuvwxyzABCEFÉÜñ漢字,.-?"


@functools.cache
def accented(kind):
    words = ["".join(ACCENTED[(start + step) % len(ACCENTED)] for step in range(5)) for start in range(len(ACCENTED))] * 3
    if kind in ("unigram", "bpe"):
        return tokenizers.train(lambda: words, kind=kind, size=80)
    return vocabulary(words, True, 150).with_rules(kind)


@pytest.mark.parametrize("kind", ["google", "transformers", "unigram", "bpe"])
@given(text=st.text(st.sampled_from([*ACCENTED, " ", " ", "\n", "\u00a0", "ß", "ø"]), max_size=40))
def test_the_span_of_a_token_is_its_text(kind, text):
    """Lower-cased, and for WordPiece without accents, because no character of these texts becomes several ones."""
    slices, tokens = check_alignment(accented(kind), text)
    for token, part in zip(tokens, slices, strict=True):
        part = unicodedata.normalize("NFC", part.lower())
        if kind in ("google", "transformers"):
            part = "".join(character for character in unicodedata.normalize("NFD", part) if not unicodedata.combining(character))
        assert (token == "[UNK]" and part) or token.removeprefix("##").removeprefix("▁") == part


@pytest.mark.parametrize(
    "noise", ["é", "e\u0301", "😀", "漢字", "\x07", "\x00", "\u200b", "\u00a0", "\u3000 ", "İ", "가", "½ﬁ", "\ufffd"]
)
@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe"])
def test_characters_before_a_word_do_not_shift_its_span(kind, noise):
    tokenizer = FUZZED if kind == "wordpiece" else sentencepiece(kind, True)
    text = f"{noise}Fox{noise} {noise} fox jumps{noise}"
    (aligned,) = tokenizer.align([text])
    word_start, word_end = text.index("fox"), text.index("fox") + 3
    inside = [n for n, (start, end) in enumerate(aligned.spans.tolist()) if start < word_end and end > word_start]
    assert "".join(tokenizer.tokens[aligned.ids[n]] for n in inside).replace("##", "").replace("▁", "") == "fox"
    assert (aligned.spans[inside[0], 0], aligned.spans[inside[-1], 1]) == (word_start, word_end)


def test_spans_include_accents_and_share_composed_characters():
    vocab = [*SPECIAL_TOKENS, "caf", "##e", "fox", "ᄀ", "##ᅡ"]
    own = tokenizers.from_files({"vocab.txt": "".join(f"{token}\n" for token in vocab).encode()})
    text = "Cafe\u0301\u0301, cafe\u0301fox 가"
    slices, tokens = check_alignment(own, text)
    assert slices == ["Caf", "e\u0301\u0301", ",", "cafe\u0301fox", "가", "가"]
    assert tokens == ["caf", "##e", "[UNK]", "[UNK]", "ᄀ", "##ᅡ"]
    # Accents that are not stripped are tokens of their own.
    vocab = "".join(f"{token}\n" for token in [*SPECIAL_TOKENS, "a", "##\u0301"]).encode()
    with_accents = tokenizers.from_files({"vocab.txt": vocab, "tokenizer_config.json": b'{"strip_accents": false}'})
    assert check_alignment(with_accents, "a\u0301") == (["a", "\u0301"], ["a", "##\u0301"])
    slices, tokens = check_alignment(sentencepiece("unigram", True), "a½ ﬁ")
    assert tokens == ["▁", "a", "[UNK]", "2", "▁", "f", "i"]
    assert slices == ["", "a", "½", "½", "", "ﬁ", "ﬁ"]
    # One character that becomes four words.
    slices, tokens = check_alignment(sentencepiece("unigram", True), "\ufdfa")
    assert (tokens.count("▁"), {*slices[1:]}) == (4, {"\ufdfa"})
    assert own.align([]) == sentencepiece("bpe", True).align([]) == []


def test_wordpiece_training_is_deterministic():
    texts = [f"word{number} stays where it is, {number % 7} times" for number in range(300)]
    assert len({tokenizers.digest(vocabulary(texts, True, 150)) for _ in range(4)}) == 1


def test_wordpiece_vocabulary_too_small_for_the_characters():
    with pytest.raises(UserError, match="letters"):
        vocabulary(TORTURE, True, size=20)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece_round_trip(kind, text):
    lines = [line for line in text.read_text().splitlines() if line]
    tokenizer = tokenizers.train(lambda: lines, kind=kind, size=36)
    assert len(tokenizer.tokens) == 36
    assert tuple(tokenizer.tokens[:5]) == SPECIAL_TOKENS
    for line, tokens in zip(lines[:20], tokenizer.encode(lines[:20]), strict=True):
        assert tokenizer.decode(tokens.ids.tolist()) == line.lower()
        assert tokens.word_starts.sum() == len(line.split())


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe"])
def test_save_and_load(kind, text, tmp_path):
    lines = [line for line in text.read_text().splitlines() if line]
    tokenizer = tokenizers.train(lambda: lines, kind=kind, size=60 if kind == "wordpiece" else 36)
    tokenizers.save(tokenizer, tmp_path / "vocab")
    loaded = tokenizers.load(tmp_path / "vocab")
    assert tokenizers.digest(loaded) == tokenizers.digest(tokenizer)
    assert loaded.special_tokens == tokenizer.special_tokens
    np.testing.assert_array_equal(loaded.encode(lines[:1])[0].ids, tokenizer.encode(lines[:1])[0].ids)


def test_sentencepiece_text_too_small():
    with pytest.raises(UserError, match="cannot learn 5000 tokens"):
        tokenizers.train(lambda: ["one line"], kind="unigram", size=5000)


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe"])
def test_an_error_in_the_text_is_raised_unchanged(kind):
    def texts():
        yield from ["some text to learn from"] * 50
        raise UserError("a.txt, line 51: not UTF-8.")

    with pytest.raises(UserError, match=r"^a.txt, line 51: not UTF-8.$"):
        tokenizers.train(texts, kind=kind, size=60)


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_the_name_of_a_special_token_in_a_text(kind):
    tokenizer = FUZZED if kind == "wordpiece" else sentencepiece(kind, True)
    specials = tokenizer.special_tokens
    (matched,), (literal,) = (tokenizer.encode(["the [MASK] fox[SEP]"], match_special=match) for match in (True, False))
    (fox,) = tokenizer.encode(["fox"])
    assert [*matched.ids[-2 - len(fox.ids) :]] == [specials.mask, *fox.ids, specials.sep][-2 - len(fox.ids) :]
    assert not {specials.mask, specials.sep} & {*literal.ids}
    check_alignment(tokenizer, "the [MASK] fox[SEP]")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nword\n", r"has no \[MASK\]"),
        (b"[PAD]\n\xff\n", "not UTF-8"),
    ],
)
def test_bad_vocabularies(tmp_path, content, sentence):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        tokenizers.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("\ufeff{specials}the\nfox\n##es\n.\n", "vocab.txt has a byte order mark, which is dropped."),
        (
            "{specials}the\nfox\n##es\nthe\n.\nfox\n",
            "vocab.txt has tokens on several lines, of which text gets the last id: 2, such as 'the'.",
        ),
        ("{specials}the\n\n\nfox\n##es\n.\n\u3000\n\u2028\n\n", "vocab.txt has blank lines, whose ids no text gets: 5."),
        ("{specials}the\r\nfox\r\n##es\r\n.\r\n", None),
        ("{specials}the\nfox\n##es\n.", None),
    ],
)
def test_odd_lines_of_a_vocabulary(tmp_path, content, sentence):
    """The ids are those of transformers, except that it takes a byte order mark for a part of the first token."""
    content = content.format(specials="[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    (tmp_path / "vocab.txt").write_bytes(content.encode())
    tokenizer = tokenizers.load(tmp_path)
    assert tokenizer.warnings() == ([] if sentence is None else [sentence])
    (tmp_path / "vocab.txt").write_bytes(content.removeprefix("\ufeff").encode())
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    for text in ("the fox", "The foxes.", "a fox", "the\u3000fox\u2028."):
        assert tokenizer.encode([text])[0].ids.tolist() == theirs(text, add_special_tokens=False)["input_ids"]
    # Earlier ids of a token are decoded too.
    lines = [line.rstrip("\r") for line in content.removesuffix("\n").split("\n")]
    assert tokenizer.tokens[1:] == lines[1:]
    assert all(tokenizer.decode([token_id]).strip() == line.strip() for token_id, line in enumerate(lines) if token_id)
    assert b"\xef\xbb\xbf" not in tokenizer.files["vocab.txt"]


def test_directories_without_a_vocabulary(tmp_path):
    with pytest.raises(UserError, match="no directory"):
        tokenizers.load(tmp_path / "none")
    with pytest.raises(UserError, match=r"contains no vocab.txt, tokenizer.json or spiece.model"):
        tokenizers.load(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        tokenizers.load(tmp_path)


def tokenizer_json(tokenizer, **changes):
    """The file of the tokenizers library, with padding and truncation enabled."""
    stored = json.loads(tokenizer.to_json())
    stored["model"]["max_input_chars_per_word"] = 100
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
def test_tokenizer_json_gives_the_ids_of_the_library(tmp_path, lowercase, accents):
    own = vocabulary([*TORTURE, "hello world brulee it is a text of words"], lowercase)
    content = tokenizer_json(own, normalizer__strip_accents=accents)
    (tmp_path / "tokenizer.json").write_bytes(content)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    loaded = tokenizers.load(tmp_path)
    assert loaded.tokens == own.tokens
    library = Engine.from_str(content.decode())
    library.no_padding()
    library.no_truncation()
    texts = [*TORTURE, "a" * 99 + " " + "b" * 101]
    for text, tokens in zip(texts, loaded.encode(texts), strict=True):
        assert tokens.ids.tolist() == library.encode(text, add_special_tokens=False).ids, text
    # Its files are sufficient to make it again.
    assert tokenizers.from_files(loaded.files).encode(texts)[0].ids.tolist() == loaded.encode(texts)[0].ids.tolist()


def test_the_config_beside_tokenizer_json_takes_precedence(tmp_path):
    own = vocabulary(TORTURE, True)
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json(own))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    with pytest.warns(BertWarning, match="has do_lower_case true, strip_accents true, which is not followed, as in transformers"):
        assert not tokenizers.load(tmp_path).settings.do_lower_case


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
        ({"model__vocab": {"[PAD]": 0, "a": 2}}, r"has no \[UNK\]"),
    ],
)
def test_other_tokenizers_are_refused(tmp_path, changes, sentence):
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json(vocabulary(TORTURE, True), **changes))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    with pytest.raises(UserError, match=sentence):
        tokenizers.load(tmp_path)


def test_two_vocabularies_that_differ(tmp_path):
    own = vocabulary(TORTURE, True)
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json(own))
    tokenizers.save(own, tmp_path)
    assert tokenizers.load(tmp_path).tokens == own.tokens
    tokens = own.files["vocab.txt"].decode().split("\n")
    tokens[7], tokens[8] = tokens[8], tokens[7]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens))
    with pytest.raises(UserError, match=r"have different tokens from id 7 on"):
        tokenizers.load(tmp_path)


def test_case_is_inferred_from_the_vocabulary():
    cased, uncased = vocabulary(["Paris Berlin Rome is a City"] * 5, False, 60), vocabulary(["paris berlin rome"] * 5, True, 60)
    for own, lowercase in ((cased, False), (uncased, True)):
        inferred = tokenizers.from_files({"vocab.txt": own.files["vocab.txt"]})
        assert inferred.settings.do_lower_case is lowercase
        assert inferred.warnings() == []
    (warning,) = tokenizers.from_files(cased.files | {"tokenizer_config.json": b'{"do_lower_case": true}'}).warnings()
    assert "seems to be cased" in warning
    (warning,) = tokenizers.from_files(uncased.files | {"tokenizer_config.json": b'{"do_lower_case": false}'}).warnings()
    assert "seems to be uncased" in warning
