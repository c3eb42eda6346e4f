"""WordPiece on any Unicode text exactly as the original's ``tokenization.py``, with the Unicode tables of the running Python.

The tokenizers library, which the other rules use, has Unicode tables of its own: it deletes characters of private use, which the
original keeps, and knows fewer punctuation marks, accents and ideographs. The guide "Preparing data" counts the differences.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer as Engine
from tokenizers import models, normalizers

from bert_jax.tokenizers.pieces import match
from bert_jax.tokenizers.settings import AddedToken, Settings

# Of the ideographs, those that the original separates by spaces.
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
# Words of which the ids are remembered, some hundred bytes each.
_CACHED_WORDS = 500_000


class _Part(NamedTuple):
    """A part of a text between matched tokens, or a matched token."""

    start: int
    """Index of its first character in the text."""
    text: str
    token_id: int | None
    """Id of the token that it is, None for ordinary text."""


class AddedTokens:
    """Finds added tokens in a text, by the tokenizers library.

    Args:
      added: tokens with ids.
      normalizer: applied before tokens with ``normalized`` are searched for.
    """

    def __init__(self, added: Sequence[AddedToken], normalizer: normalizers.Normalizer) -> None:
        self._contents = [token.content for token in added]
        self._searches_normalized = any(token.normalized for token in added)
        # Everything else is one unknown word.
        self._engine = Engine(models.WordLevel({"": 0}, unk_token=""))
        self._engine.normalizer = normalizer
        self._engine.add_tokens([token.to_library() for token in added])
        self._ids = {self._engine.token_to_id(token.content): token.id for token in added}

    def split(self, text: str) -> Iterator[_Part]:
        """Yield the parts of a text in order, without empty ones."""
        start = 0
        if self._searches_normalized or any(content in text for content in self._contents):
            encoding = self._engine.encode(text, add_special_tokens=False)
            for number, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
                if number in self._ids:
                    yield from _ordinary(start, text[start:first])
                    yield _Part(first, text[first:last], self._ids[number])
                    start = last
        yield from _ordinary(start, text[start:])


def _ordinary(start: int, text: str) -> Iterator[_Part]:
    if text:
        yield _Part(start, text, None)


class GoogleRules:
    """Cleaning, splitting and WordPiece of ``FullTokenizer``, preceded by a search for added tokens.

    Args:
      vocab: token -> id.
      unk: id of words that the vocabulary cannot express.
      settings: case and length of words, and added tokens; the other settings are those of the original by default.
      normalizer: see [`AddedTokens`][bert_jax.tokenizers.google.AddedTokens].
    """

    def __init__(self, vocab: Mapping[str, int], unk: int, settings: Settings, normalizer: normalizers.Normalizer) -> None:
        self._vocab, self._unk, self._settings = vocab, unk, settings
        self._added = AddedTokens(settings.added, normalizer)
        self._longest = max(map(len, vocab), default=0)
        self._characters = _Characters(settings)
        self._words: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        ids: list[int] = []
        for part in self._added.split(text):
            ids += self._encode(part.text) if part.token_id is None else [part.token_id]
        return ids

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        words = self._words
        if len(words) > _CACHED_WORDS:
            words.clear()
        for word in text.translate(self._characters).split():
            found = words.get(word)
            if found is None:
                found = words[word] = [token for part in self._split(word) for token, _ in self._pieces(part)]
            ids += found
        return ids

    def words(self, text: str) -> Iterator[str]:
        """Yield the words of a text that are split into pieces, without the added tokens."""
        for part in self._added.split(text):
            if part.token_id is None:
                for word in part.text.translate(self._characters).split():
                    yield from self._split(word)

    def align(self, text: str) -> tuple[list[int], np.ndarray]:
        """Return the token ids of a text, and int32 [N, 2], the first character of each token and the one after its last."""
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for start, part, token_id in self._added.split(text):
            aligned = self._align(part) if token_id is None else [(token_id, 0, len(part))]
            for token, first, last in aligned:
                ids.append(token)
                spans.append((start + first, start + last))
        return ids, np.array(spans, np.int32).reshape(-1, 2)

    def _align(self, text: str) -> Iterator[tuple[int, int, int]]:
        """Yield the tokens of a text, with the first character of each and the one after its last."""
        cleaned = [(character, place) for place, code in enumerate(map(ord, text)) for character in self._characters[code] or ""]
        for is_space, group in itertools.groupby(cleaned, key=lambda item: item[0].isspace()):
            if is_space:
                continue
            word, places = zip(*group, strict=True)
            for part in self._split_with_places("".join(word), places):
                start = 0
                for token, length in self._pieces("".join(character for character, _ in part)):
                    places_of_token = [place for _, place in part[start : start + length]]
                    yield token, min(places_of_token), max(places_of_token) + 1
                    start += length

    def _split(self, word: str) -> list[str]:
        """Fold case and split at punctuation."""
        if self._settings.do_lower_case:
            word = word.lower()
        if self._settings.strip_accents:
            word = "".join(character for character in unicodedata.normalize("NFD", word) if unicodedata.category(character) != "Mn")
        return "".join(f" {character} " if is_punctuation(character) else character for character in word).split()

    def _split_with_places(self, word: str, places: Sequence[int]) -> list[list[tuple[str, int]]]:
        """As ``_split``, with the place in the text from which each character comes."""
        characters = [*zip(word, places, strict=True)]
        if self._settings.do_lower_case:
            # Only the last letter of a Greek word depends on its neighbours, and its length does not.
            sizes = [len(character.lower()) for character in word]
            characters = [*zip(word.lower(), np.repeat(places, sizes).tolist(), strict=True)]
        if self._settings.strip_accents:
            characters = [item for item in _decompose(characters) if unicodedata.category(item[0]) != "Mn"]
        parts: list[list[tuple[str, int]]] = [[]]
        for item in characters:
            if item[0].isspace() or is_punctuation(item[0]):
                parts += [[item], []]
            else:
                parts[-1].append(item)
        return [part for part in parts if part and not part[0][0].isspace()]

    def _pieces(self, word: str) -> list[tuple[int, int]]:
        """Greedy longest-match-first tokens of a word: ids, and the number of characters of each."""
        if len(word) > self._settings.max_word_length:
            return [(self._unk, len(word))]
        pieces = [(token, length) for token, length in match(word, self._vocab, self._longest) if token is not None]
        return pieces if sum(length for _, length in pieces) == len(word) else [(self._unk, len(word))]


class _Characters(dict[int, str | None]):
    """What ``_clean_text`` and ``_tokenize_chinese_chars`` make of each code point, computed when it is first met."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings

    def __missing__(self, code: int) -> str | None:
        self[code] = cleaned = self._clean(code)
        return cleaned

    def _clean(self, code: int) -> str | None:
        character = chr(code)
        if self._settings.clean_text:
            if character in "\t\n\r" or unicodedata.category(character) == "Zs":
                return " "
            if code in (0, 0xFFFD) or unicodedata.category(character) in ("Cc", "Cf"):
                return None
        if self._settings.tokenize_chinese_chars and any(first <= code <= last for first, last in _IDEOGRAPHS):
            return f" {character} "
        return character


def is_punctuation(character: str) -> bool:
    """Whether a character is a word of its own: punctuation, and the ASCII characters that are no letter, digit or space."""
    if character.isascii():
        return character.isprintable() and not character.isalnum() and character != " "
    return unicodedata.category(character).startswith("P")


def _decompose(characters: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """The canonical decomposition (NFD) of characters, with the places that they come from."""
    parts = [(part, place) for character, place in characters for part in unicodedata.normalize("NFD", character)]
    ordered: list[tuple[str, int]] = []
    for _, group in itertools.groupby(parts, key=lambda item: unicodedata.combining(item[0]) > 0):
        # Starters, whose class is 0, keep their order.
        ordered += sorted(group, key=lambda item: unicodedata.combining(item[0]))
    return ordered
