"""WordPiece as in the original's ``tokenization.py``, computed by the ``tokenizers`` library."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from bert_jax.config.validation import check_types
from bert_jax.errors import UserError
from bert_jax.io.parsing import parse_json, parse_object
from bert_jax.tokenizers.protocol import SPECIAL_TOKENS, UNK, AlignedText, TokenizedText, find_special_tokens

VOCAB, CONFIG, JSON = "vocab.txt", "tokenizer_config.json", "tokenizer.json"
CONTINUATION = "##"
# The original replaces words of more than 200 characters by [UNK]; the default of the tokenizers library is 100.
_MAX_WORD_LENGTH_KEY, _MAX_WORD_LENGTH = "max_input_chars_per_word", 200
_SETTINGS: dict[str, Any] = {
    "do_lower_case": bool,
    "strip_accents": bool,
    "tokenize_chinese_chars": bool,
    _MAX_WORD_LENGTH_KEY: int,
}
# A vocabulary counts as cased when more than this share of its tokens has capital letters: in the published uncased
# vocabularies hardly any token has, in the cased ones a fifth of them.
_CASED_SHARE = 0.01
# Texts that are encoded in one call: an encoding of the library takes some hundred bytes per token, an array eight.
_TEXTS_PER_CALL = 1024


class WordPiece:
    """Greedy longest-match tokenization of words, which are split at spaces and punctuation.

    Args:
      files: ``vocab.txt``, with one token per line, and optionally ``tokenizer_config.json`` with ``do_lower_case``,
        ``strip_accents`` (defaults to ``do_lower_case``), ``tokenize_chinese_chars`` and ``max_input_chars_per_word``. Without
        ``do_lower_case``, text keeps its case when the vocabulary has capital letters.

    Raises:
      UserError: the vocabulary is not UTF-8, lacks a special token or contains a token twice, or a setting is invalid.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        try:
            text = files[VOCAB].decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{VOCAB} is not UTF-8 text (byte {error.start}).") from None
        # `splitlines` would also split at Unicode line separators, which can be tokens; in some vocabularies such a character is
        # a token by itself, hence `or line`.
        self.tokens = [line.strip() or line for line in text.removesuffix("\n").split("\n")]
        self.special_tokens = find_special_tokens(self.tokens, VOCAB)
        settings = _read_settings(files[CONFIG]) if CONFIG in files else {}
        self._capitalized = [token for token in self.tokens if token != token.lower() and token not in SPECIAL_TOKENS]
        self._cased = len(self._capitalized) > _CASED_SHARE * len(self.tokens)
        self.lowercase: bool = settings.get("do_lower_case", not self._cased)
        self.files = {VOCAB: files[VOCAB], CONFIG: files.get(CONFIG, _config_file(lowercase=self.lowercase))}
        vocab = {token: token_id for token_id, token in enumerate(self.tokens)}
        max_word_length = settings.get(_MAX_WORD_LENGTH_KEY, _MAX_WORD_LENGTH)
        self._engine = _make_engine(
            models.WordPiece(vocab, unk_token=UNK, max_input_chars_per_word=max_word_length),
            lowercase=self.lowercase,
            strip_accents=settings.get("strip_accents", self.lowercase),
            split_chinese=settings.get("tokenize_chinese_chars", True),
        )
        self._is_word_start = np.array([not token.startswith(CONTINUATION) for token in self.tokens])

    def warnings(self) -> list[str]:
        """Return a sentence if case is folded although the vocabulary is cased, or kept although it is uncased."""
        if self.lowercase and self._cased:
            return [
                f"Text is lower-cased, but {len(self._capitalized):,} tokens of {VOCAB}, such as {self._capitalized[-1]!r}, have "
                f"capital letters, so the model seems to be cased; set do_lower_case to false in {CONFIG}."
            ]
        if not self.lowercase and not self._capitalized:
            return [
                f"Text keeps its capital letters, but no token of {VOCAB} has any, so words with capital letters become {UNK} and "
                f"the model seems to be uncased; set do_lower_case to true in {CONFIG}."
            ]
        return []

    @classmethod
    def train(cls, texts: Callable[[], Iterable[str]], size: int, *, lowercase: bool) -> WordPiece:
        """Learn a vocabulary of at most ``size`` tokens that starts with the special tokens; the result is deterministic.

        Raises:
          UserError: the text has more than ``size`` different characters.
        """
        # The library numbers single characters in the order of a randomly seeded hash table and breaks ties between merges by
        # these numbers. A first pass collects the characters; passed in sorted order as special tokens, they get fixed numbers.
        characters = set(_learn(texts(), len(SPECIAL_TOKENS), lowercase, [])) - set(SPECIAL_TOKENS)
        continuations = sorted(character for character in characters if character.startswith(CONTINUATION))
        if size < len(SPECIAL_TOKENS) + len(characters):
            raise UserError(
                f"The text has {len(characters)} different letters, counted at the start and inside of words, which a vocabulary "
                f"of {size} tokens cannot hold; choose a larger size."
            )
        tokens = _learn(texts(), size, lowercase, continuations)
        lines = "".join(f"{token}\n" for token in tokens)
        return cls({VOCAB: lines.encode(), CONFIG: _config_file(lowercase=lowercase)})

    def encode(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Tokenize each text; see [`Tokenizer.encode`][bert_jax.tokenizers.protocol.Tokenizer.encode]."""
        tokenized = []
        # In several calls, because Python does not handle Ctrl-C while the library runs.
        for start in range(0, len(texts), _TEXTS_PER_CALL):
            chunk = list(texts[start : start + _TEXTS_PER_CALL])
            for encoding in self._engine.encode_batch_fast(chunk, add_special_tokens=False):
                ids = np.array(encoding.ids, np.int32)
                tokenized.append(TokenizedText(ids, self._is_word_start[ids]))
        return tokenized

    def align(self, texts: Sequence[str]) -> list[AlignedText]:
        """Tokenize each text, with spans; see [`Tokenizer.align`][bert_jax.tokenizers.protocol.Tokenizer.align]."""
        aligned = []
        for start in range(0, len(texts), _TEXTS_PER_CALL):
            chunk = list(texts[start : start + _TEXTS_PER_CALL])
            for text, encoding in zip(chunk, self._engine.encode_batch(chunk, add_special_tokens=False), strict=True):
                ids = np.array(encoding.ids, np.int32)
                spans = np.array(encoding.offsets, np.int32).reshape(-1, 2)
                aligned.append(AlignedText(ids, self._is_word_start[ids], spans if text.isascii() else _add_accents(text, spans)))
        return aligned

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens included."""
        return self._engine.decode(list(ids), skip_special_tokens=False)


def unpack(files: dict[str, bytes]) -> dict[str, bytes]:
    """Extract ``vocab.txt`` and ``tokenizer_config.json`` from the ``tokenizer.json`` of the tokenizers library.

    Padding and truncation in ``tokenizer.json`` are dropped. Settings in a ``tokenizer_config.json`` beside it take precedence.

    Args:
      files: contents by file name.

    Raises:
      UserError: ``tokenizer.json`` is not a BERT WordPiece tokenizer, or a ``vocab.txt`` beside it has other tokens.
    """
    stored = parse_json(files[JSON], JSON)
    try:
        model, normalizer = stored["model"], stored["normalizer"]
        vocab, tokens = model["vocab"], sorted(model["vocab"], key=model["vocab"].__getitem__)
        parts = (
            model.get("type", "WordPiece"),
            normalizer["type"],
            stored["pre_tokenizer"]["type"],
            model.get("continuing_subword_prefix", CONTINUATION),
            model.get("unk_token", UNK),
        )
        added = [token["content"] for token in stored.get("added_tokens") or () if token["content"] not in vocab]
        ids_are_consecutive = [vocab[token] for token in tokens] == [*range(len(tokens))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{JSON} does not describe a WordPiece tokenizer ({type(error).__name__}: {error}).") from None
    if parts != ("WordPiece", "BertNormalizer", "BertPreTokenizer", CONTINUATION, UNK) or not ids_are_consecutive:
        raise UserError(f"{JSON} describes another tokenizer than BERT's WordPiece: {', '.join(map(str, parts))}.")
    if added:
        raise UserError(f"{JSON} adds tokens outside of its vocabulary, such as {added[0]!r}, which is not supported.")
    settings = {
        "do_lower_case": normalizer.get("lowercase", True),
        "strip_accents": normalizer.get("strip_accents"),
        "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", True),
        _MAX_WORD_LENGTH_KEY: model.get(_MAX_WORD_LENGTH_KEY, 100),
    }
    if CONFIG in files:
        settings |= parse_object(files[CONFIG], CONFIG)
    text = "".join(f"{token}\n" for token in tokens)
    if VOCAB in files:
        _check_equal(files[VOCAB].decode("utf-8", "replace").split(), text.split())
    return {VOCAB: files.get(VOCAB, text.encode()), CONFIG: json.dumps(settings, indent=2).encode()}


def _check_equal(listed: list[str], packed: list[str]) -> None:
    """Check that ``vocab.txt`` and ``tokenizer.json`` have the same tokens."""
    if listed != packed:
        differing = (row for row, pair in enumerate(zip(listed, packed, strict=False)) if pair[0] != pair[1])
        row = next(differing, min(len(listed), len(packed)))
        raise UserError(f"{VOCAB} and {JSON} have different tokens from id {row} on; remove the file that is wrong.")


def _add_accents(text: str, spans: np.ndarray) -> np.ndarray:
    """Extend the spans of tokens over accents that follow their last letter and belong to no other token."""
    if not len(spans):
        return spans
    is_mark = np.array([unicodedata.category(character) == "Mn" for character in text] + [False])
    positions = np.arange(len(is_mark))
    # For each position the first one at or after it that is no combining mark.
    past_marks = np.minimum.accumulate(np.where(is_mark, len(is_mark), positions)[::-1])[::-1]
    next_starts = np.append(spans[1:, 0], len(text))
    ends = np.maximum(spans[:, 1], np.minimum(past_marks[spans[:, 1]], next_starts))
    return np.stack([spans[:, 0], ends], axis=1).astype(np.int32)


def _learn(texts: Iterable[str], size: int, lowercase: bool, characters: list[str]) -> list[str]:
    # Accents are stripped together with case, as in the original: words of a cased vocabulary keep their accents.
    engine = _make_engine(models.WordPiece(unk_token=UNK), lowercase=lowercase, strip_accents=lowercase)
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*SPECIAL_TOKENS, *characters],
        continuing_subword_prefix=CONTINUATION,
        show_progress=False,
    )
    engine.train_from_iterator(texts, trainer)
    vocab = engine.get_vocab()
    return sorted(vocab, key=vocab.__getitem__)


def _read_settings(content: bytes) -> dict[str, Any]:
    """Read the settings of a ``tokenizer_config.json``; null counts as absent."""
    value = parse_object(content, CONFIG)
    settings = {key: value[key] for key in _SETTINGS if value.get(key) is not None}
    check_types(settings, _SETTINGS, CONFIG)
    if settings.get(_MAX_WORD_LENGTH_KEY, 1) <= 0:
        raise UserError(f"{CONFIG}.{_MAX_WORD_LENGTH_KEY} is {settings[_MAX_WORD_LENGTH_KEY]}; it must be greater than 0.")
    return settings


def _make_engine(model: models.WordPiece, *, lowercase: bool, strip_accents: bool, split_chinese: bool = True) -> Engine:
    engine = Engine(model)
    engine.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=split_chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece(prefix=CONTINUATION)
    return engine


def _config_file(*, lowercase: bool) -> bytes:
    # The file that BERT checkpoints carry; other libraries need it to read the vocabulary correctly.
    return json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase}, indent=2).encode()
