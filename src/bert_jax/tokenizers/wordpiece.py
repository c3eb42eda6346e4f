"""WordPiece as in the original's ``tokenization.py``, computed by the ``tokenizers`` library."""

from __future__ import annotations

import codecs
import collections
import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from bert_jax.errors import UserError
from bert_jax.io.parsing import parse_object
from bert_jax.tokenizers.google import GoogleRules
from bert_jax.tokenizers.pieces import CONTINUATION, learn
from bert_jax.tokenizers.protocol import SPECIAL_TOKENS, AlignedText, TokenizedText, find_special_tokens
from bert_jax.tokenizers.settings import CONFIG, MAX_WORD_LENGTH_KEY, RULES_KEY, AddedToken, Rules, Settings, add_tokens, place
from bert_jax.tokenizers.spans import add_accents

VOCAB = "vocab.txt"
# A vocabulary counts as cased when more than this share of its tokens has capital letters: in the published uncased
# vocabularies hardly any token has, in the cased ones a fifth of them.
_CASED_SHARE = 0.01
# Texts that are encoded in one call: an encoding of the library takes some hundred bytes per token, an array eight.
_TEXTS_PER_CALL = 1024


class _Numbered(NamedTuple):
    """A tokenizer of the library, whose ids are consecutive, and ours of the same tokens."""

    engine: Engine
    ids: np.ndarray
    """int32, our id of each of its ids."""


class WordPiece:
    """Greedy longest-match tokenization of words, which are split at spaces and punctuation.

    Args:
      files: ``vocab.txt``, with one token per line (a token on two lines gets the later id in text, as in transformers, and both
        ids are decoded to it; a blank line is an id that no text gets), and optionally ``tokenizer_config.json`` with
        [`Settings`][bert_jax.tokenizers.settings.Settings]. Without ``do_lower_case``, text keeps its case when the vocabulary
        has capital letters.

    Raises:
      UserError: the vocabulary is not UTF-8, lacks a special token, or a setting is invalid.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        content = files[VOCAB].removeprefix(codecs.BOM_UTF8)
        self._has_byte_order_mark = content != files[VOCAB]
        self._lines = split_lines(content)
        self._vocab = {token: token_id for token_id, token in enumerate(self._lines)}
        settings = Settings.parse(files.get(CONFIG))
        added, self.tokens = place(settings.added, self._vocab, self._lines)
        ids = {token.content: token.id or 0 for token in added} | self._vocab
        if settings.names[1] not in self._vocab:
            raise UserError(f"{VOCAB} has no {settings.names[1]}, which stands for words that it cannot express.")
        self.special_tokens = find_special_tokens(ids, settings.names, VOCAB)
        self._capitalized = [token for token in self._lines if token != token.lower() and token not in settings.names]
        self._cased = len(self._capitalized) > _CASED_SHARE * len(self._lines)
        lowercase = settings.do_lower_case if settings.do_lower_case is not None else not self._cased
        strip_accents = settings.strip_accents if settings.strip_accents is not None else lowercase
        specials = [AddedToken(name, ids[name]) for name in settings.names if name not in {token.content for token in added}]
        self.settings = dataclasses.replace(
            settings, do_lower_case=lowercase, strip_accents=strip_accents, added=(*added, *specials)
        )
        _check_distinct(self.settings)
        self.files = {VOCAB: content, CONFIG: _complete(files.get(CONFIG), lowercase=lowercase)}
        # bool [V], whether a token begins a word.
        self.is_word_start = np.array([not token.startswith(CONTINUATION) for token in self.tokens])

    @property
    def vocab(self) -> dict[str, int]:
        """Token -> id of the tokens that text is split into, in the order of their first lines; a copy."""
        return dict(self._vocab)

    @functools.cached_property
    def _matching(self) -> _Numbered:
        return _number(self._vocab, self.settings)

    @functools.cached_property
    def _literal(self) -> _Numbered:
        """Takes the names of the five special tokens for ordinary text."""
        return _number(self._vocab, self.settings.without_specials())

    @functools.cached_property
    def _google(self) -> GoogleRules:
        return self._google_rules(self.settings)

    @functools.cached_property
    def _google_literal(self) -> GoogleRules:
        return self._google_rules(self.settings.without_specials())

    def _google_rules(self, settings: Settings) -> GoogleRules:
        # The original also strips the left of a line.
        vocab = {token.strip(): token_id for token, token_id in self._vocab.items()}
        return GoogleRules(vocab, self.special_tokens.unk, settings, make_normalizer(settings))

    def with_rules(self, rules: Rules, *, lowercase: bool | None = None) -> WordPiece:
        """The same vocabulary with other Unicode rules, and with another case unless it is None.

        "google" also stands for the original's other settings, such as words of up to 200 characters.
        """
        config = parse_object(self.files[CONFIG], CONFIG) | {RULES_KEY: rules}
        if lowercase is not None:
            config |= {"do_lower_case": lowercase, "strip_accents": lowercase}
        if rules == "google":
            original = Settings()
            config |= {
                "strip_accents": bool(config["do_lower_case"]),
                "clean_text": original.clean_text,
                "tokenize_chinese_chars": original.tokenize_chinese_chars,
                MAX_WORD_LENGTH_KEY: original.max_word_length,
            }
        return WordPiece({**self.files, CONFIG: json.dumps(config, indent=2, ensure_ascii=False).encode()})

    def with_max_word_length(self, length: int) -> WordPiece:
        """The same vocabulary with another number of characters above which a word becomes [UNK]."""
        config = parse_object(self.files[CONFIG], CONFIG) | {MAX_WORD_LENGTH_KEY: length}
        return WordPiece({**self.files, CONFIG: json.dumps(config, indent=2, ensure_ascii=False).encode()})

    def with_added(self, tokens: Sequence[AddedToken]) -> WordPiece:
        """The same tokenizer with further tokens, which have ids."""
        return WordPiece({**self.files, CONFIG: add_tokens(self.files[CONFIG], tokens)})

    def split(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of texts in which no added and no special token is matched."""
        if self.settings.rules == "google":
            rules = self._google_rules(dataclasses.replace(self.settings, added=()))
            return [np.array(rules.encode(text), np.int32) for text in texts]
        engine, ids = _number(self._vocab, dataclasses.replace(self.settings, added=()))
        return [ids[np.array(encoding.ids, np.int32)] for encoding in engine.encode_batch([*texts], add_special_tokens=False)]

    def to_json(self) -> bytes | None:
        """Content of a ``tokenizer.json`` that gives the same ids, None where the library would number the tokens otherwise."""
        engine, ids = _number(self._vocab, self.settings)
        if not np.array_equal(ids, np.arange(len(ids))):
            return None
        _, _, cls, sep, _ = self.settings.names
        engine.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} $B:1 {sep}:1",
            special_tokens=[(cls, self.special_tokens.cls), (sep, self.special_tokens.sep)],
        )
        return engine.to_str(pretty=True).encode()

    def warnings(self) -> list[str]:
        """Return a sentence on odd lines of the vocabulary, and one if its case contradicts the settings."""
        return self._warnings_on_lines() + self._warnings_on_case()

    def _warnings_on_lines(self) -> list[str]:
        counts = collections.Counter(self._lines)
        blank = sum(count for token, count in counts.items() if not token.strip())
        repeated = [token for token, count in counts.items() if count > 1 and token.strip()]
        found = ["a byte order mark, which is dropped"] if self._has_byte_order_mark else []
        if repeated:
            found.append(f"tokens on several lines, of which text gets the last id: {len(repeated):,}, such as {repeated[0]!r}")
        if blank:
            found.append(f"blank lines, whose ids no text gets: {blank:,}")
        return [f"{VOCAB} has {'; '.join(found)}."] if found else []

    def _warnings_on_case(self) -> list[str]:
        if self.settings.do_lower_case and self._cased:
            return [
                f"Text is lower-cased, but {len(self._capitalized):,} tokens of {VOCAB}, such as {self._capitalized[-1]!r}, have "
                f"capital letters, so the model seems to be cased; set do_lower_case to false in {CONFIG}."
            ]
        if not self.settings.do_lower_case and not self._capitalized:
            return [
                f"Text keeps its capital letters, but no token of {VOCAB} has any, so words with capital letters become "
                f"{self.settings.names[1]} and the model seems to be uncased; set do_lower_case to true in {CONFIG}."
            ]
        return []

    @classmethod
    def train(cls, texts: Callable[[], Iterable[str]], size: int, *, lowercase: bool) -> WordPiece:
        """Learn a vocabulary of at most ``size`` tokens that starts with the special tokens; the result is deterministic.

        Raises:
          UserError: the text has more than ``size`` different characters.
        """
        # Accents are stripped together with case, as in the original: words of a cased vocabulary keep their accents.
        settings = Settings(do_lower_case=lowercase, strip_accents=lowercase)
        # A first pass collects the characters, which get fixed numbers in the second one.
        characters = set(learn(texts(), len(SPECIAL_TOKENS), _make_engine(settings), [])) - set(SPECIAL_TOKENS)
        continuations = sorted(character for character in characters if character.startswith(CONTINUATION))
        if size < len(SPECIAL_TOKENS) + len(characters):
            raise UserError(
                f"The text has {len(characters)} different letters, counted at the start and inside of words, which a vocabulary "
                f"of {size} tokens cannot hold; choose a larger size."
            )
        tokens = learn(texts(), size, _make_engine(settings), continuations)
        lines = "".join(f"{token}\n" for token in tokens)
        return cls({VOCAB: lines.encode(), CONFIG: _config_file(lowercase=lowercase)})

    def encode(self, texts: Sequence[str], *, match_special: bool = True) -> list[TokenizedText]:
        """Tokenize each text; see [`Tokenizer.encode`][bert_jax.tokenizers.protocol.Tokenizer.encode]."""
        if self.settings.rules == "google":
            rules = self._google if match_special else self._google_literal
            rows = (np.array(rules.encode(text), np.int32) for text in texts)
            return [TokenizedText(ids, self.is_word_start[ids]) for ids in rows]
        tokenized = []
        engine, numbers = self._matching if match_special else self._literal
        # In several calls, because Python does not handle Ctrl-C while the library runs.
        for start in range(0, len(texts), _TEXTS_PER_CALL):
            chunk = list(texts[start : start + _TEXTS_PER_CALL])
            for encoding in engine.encode_batch_fast(chunk, add_special_tokens=False):
                ids = numbers[np.array(encoding.ids, np.int32)]
                tokenized.append(TokenizedText(ids, self.is_word_start[ids]))
        return tokenized

    def align(self, texts: Sequence[str], *, match_special: bool = True) -> list[AlignedText]:
        """Tokenize each text, with spans; see [`Tokenizer.align`][bert_jax.tokenizers.protocol.Tokenizer.align]."""
        if self.settings.rules == "google":
            rules = self._google if match_special else self._google_literal
            return [self._aligned(text, *rules.align(text)) for text in texts]
        aligned = []
        engine, numbers = self._matching if match_special else self._literal
        for start in range(0, len(texts), _TEXTS_PER_CALL):
            chunk = list(texts[start : start + _TEXTS_PER_CALL])
            for text, encoding in zip(chunk, engine.encode_batch(chunk, add_special_tokens=False), strict=True):
                spans = np.array(encoding.offsets, np.int32).reshape(-1, 2)
                aligned.append(self._aligned(text, numbers[np.array(encoding.ids, np.int32)], spans))
        return aligned

    def _aligned(self, text: str, ids: Sequence[int] | np.ndarray, spans: np.ndarray) -> AlignedText:
        row = np.asarray(ids, np.int32)
        return AlignedText(row, self.is_word_start[row], spans if text.isascii() else add_accents(text, spans))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens included; an id beyond the vocabulary has no text."""
        tokens = [self.tokens[token_id] for token_id in ids if token_id < len(self.tokens)]
        return decoders.WordPiece(prefix=CONTINUATION).decode(tokens)


def split_lines(vocab: bytes) -> list[str]:
    """The tokens of a ``vocab.txt``, one on each line.

    Raises:
      UserError: it is not UTF-8.
    """
    try:
        text = vocab.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{VOCAB} is not UTF-8 text (byte {error.start}).") from None
    # `splitlines` would also split at Unicode line separators, which can be tokens; in some vocabularies such a character is a
    # token by itself, hence `or line`.
    return [line.rstrip() or line for line in text.removesuffix("\n").split("\n")]


def _number(vocab: dict[str, int], settings: Settings) -> _Numbered:
    ordered = sorted(vocab, key=vocab.__getitem__)
    engine = _make_engine(settings, {token: index for index, token in enumerate(ordered)})
    engine.add_tokens([token.to_library() for token in settings.added])
    ids = np.zeros(engine.get_vocab_size(), np.int32)
    ids[: len(ordered)] = [vocab[token] for token in ordered]
    for token in settings.added:
        ids[engine.token_to_id(token.content)] = token.id or 0
    return _Numbered(engine, ids)


def _check_distinct(settings: Settings) -> None:
    """Refuse added tokens that are equal in the normalized text, of which the library finds one at random."""
    found: dict[str, str] = {}
    normalizer = make_normalizer(settings)
    for token in settings.added:
        if token.normalized:
            other = found.setdefault(normalizer.normalize_str(token.content), token.content)
            if other != token.content:
                raise UserError(f"The added tokens {other!r} and {token.content!r} are equal in the normalized text; remove one.")


def _make_engine(settings: Settings, vocab: dict[str, int] | None = None) -> Engine:
    unk = settings.names[1]
    engine = Engine(models.WordPiece(vocab, unk_token=unk, max_input_chars_per_word=settings.max_word_length))
    engine.normalizer = make_normalizer(settings)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece(prefix=CONTINUATION)
    return engine


def make_normalizer(settings: Settings) -> normalizers.Normalizer:
    """The library's cleaning and folding of texts."""
    return normalizers.BertNormalizer(
        clean_text=settings.clean_text,
        handle_chinese_chars=settings.tokenize_chinese_chars,
        strip_accents=settings.strip_accents,
        lowercase=bool(settings.do_lower_case),
    )


def _config_file(*, lowercase: bool) -> bytes:
    # The file that BERT checkpoints carry; other libraries need it to read the vocabulary correctly.
    return json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase}, indent=2).encode()


def _complete(config: bytes | None, *, lowercase: bool) -> bytes:
    """Write the case into a config that leaves it open."""
    stored = parse_object(config, CONFIG) if config is not None else {"tokenizer_class": "BertTokenizer"}
    if config is not None and stored.get("do_lower_case") is not None:
        return config
    return json.dumps(stored | {"do_lower_case": lowercase}, indent=2, ensure_ascii=False).encode()
