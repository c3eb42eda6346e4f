"""A WordPiece vocabulary with further tokens, in which every token keeps its id."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tokenizers import Tokenizer as Engine
from tokenizers import models, pre_tokenizers

from bert_jax.errors import UserError
from bert_jax.tokenizers.google import AddedTokens, GoogleRules
from bert_jax.tokenizers.pieces import CONTINUATION, learn, match
from bert_jax.tokenizers.protocol import SPECIAL_TOKENS, Tokenizer
from bert_jax.tokenizers.selection import choose
from bert_jax.tokenizers.settings import Settings
from bert_jax.tokenizers.wordpiece import VOCAB, WordPiece, make_normalizer, split_lines

_UNUSED = re.compile(r"\[unused\d+\]")
# Settings by which texts become words; a vocabulary that was learned under others is for other words.
_SETTINGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "rules")
# Copies of a word that are given to the library in one string.
_COPIES = 1000


class Length(NamedTuple):
    """How many tokens a text has."""

    tokens: int
    """Tokens of the words that the vocabulary before the extension can express."""
    unknown: int
    """Words that are [UNK]."""


class Extension(NamedTuple):
    """A vocabulary with further tokens, and what they do for the text that they were learned from."""

    tokenizer: WordPiece
    tokens: list[str]
    """The new tokens, the most useful first."""
    reused: int
    """How many of them are in slots that were unused, the first ones."""
    words: int
    """Words of the text."""
    before: Length
    after: Length


def extend(tokenizer: Tokenizer, texts: Iterable[str], count: int) -> Extension:
    """Add the tokens that shorten a text most; the result is deterministic.

    A WordPiece vocabulary is learned from the words into which the tokenizer splits the text, as large as its own and ``count``
    together. Of the tokens that are new, [`choose`][bert_jax.tokenizers.selection.choose] takes the most useful. They get the ids
    of ``[unused0]``, ``[unused1]`` and so on, whose names disappear, and then new ids after the last one. They are ordinary tokens
    of words, not added tokens.

    Args:
      tokenizer: a WordPiece tokenizer; it is not changed.
      texts: the text.
      count: number of new tokens; there are fewer where no further one shortens the text.

    Raises:
      UserError: it is not a WordPiece tokenizer, the text has no words, or ids could not be kept.

    Examples:
      >>> from bert_jax import tokenizers
      >>> old = tokenizers.train(lambda: ["a cat sat", "a dog ran"] * 9, kind="wordpiece", size=40)
      >>> extension = extend(old, ["the catalogue of a catalogue"], count=2)
      >>> extension.tokens, extension.tokenizer.tokens[len(old.tokens):]
      (['catalogue', 'the'], ['catalogue', 'the'])
    """
    old = require_wordpiece(tokenizer)
    lines, split = _lines(old), _splitter(old.settings)
    words = collections.Counter(word for text in texts for word in split(text))
    if not words:
        raise UserError("The text has no words; give another text.")
    short = {word: number for word, number in words.items() if len(word) <= old.settings.max_word_length}
    tokens = choose(short, old.vocab, _learn(short, len(lines) + count) - {*lines}, count)
    slots = unused_slots(old)[: len(tokens)]
    for slot, token in zip(slots, tokens, strict=False):
        lines[slot] = token
    new = _with_lines(old, lines + tokens[len(slots) :])
    known = _count_tokens(old, words)
    before, after = (_length(words, known, _count_tokens(each, words)) for each in (old, new))
    return Extension(new, tokens, len(slots), sum(words.values()), before, after)


def require_wordpiece(tokenizer: Tokenizer) -> WordPiece:
    """Return a tokenizer that is WordPiece.

    Raises:
      UserError: it is not.
    """
    if not isinstance(tokenizer, WordPiece):
        raise UserError(
            f"A {type(tokenizer).__name__} vocabulary cannot be extended, only a WordPiece vocabulary ({VOCAB}); "
            "give it added tokens instead (--added-tokens)."
        )
    return tokenizer


def unused_slots(tokenizer: WordPiece) -> list[int]:
    """Ids of the tokens ``[unused0]``, ``[unused1]`` and so on that are not added tokens, in their order."""
    added = {token.content for token in tokenizer.settings.added}
    return [row for row, token in enumerate(tokenizer.tokens) if _UNUSED.fullmatch(token) and token not in added]


def join(tokenizer: Tokenizer, vocabulary: Tokenizer, name: str) -> tuple[WordPiece, list[int]]:
    """Give a tokenizer the tokens of an extension of its vocabulary; its settings and its added tokens remain.

    Args:
      tokenizer: the tokenizer; it is not changed.
      vocabulary: the extension.
      name: of the extension, in error messages.

    Returns:
      The tokenizer with all tokens, and the ids of its unused slots that are other tokens now.

    Raises:
      UserError: one of them is not WordPiece, or the vocabulary is not an extension of the tokenizer's: it is for texts of another
        case, say, or a token has another id or is missing.
    """
    before, after = require_wordpiece(tokenizer), require_wordpiece(vocabulary)
    lines, given, slots = _lines(before), _lines(after), {*unused_slots(before)}
    start = f"{name} is not an extension of the model's vocabulary"
    end = "extend that one with `bert-jax vocab --extend`."
    for setting in _SETTINGS:
        ours, theirs = (getattr(each.settings, setting) for each in (before, after))
        if ours != theirs:
            raise UserError(f"{start}: its {setting} is {theirs}, that of the model {ours}; {end}")
    if len(given) < len(lines):
        raise UserError(f"{start}: it has only {len(given):,} of its {len(lines):,} tokens; {end}")
    for row, (ours, theirs) in enumerate(zip(lines, given, strict=False)):
        if ours != theirs and row not in slots:
            raise UserError(f"{start}: the token with the id {row} is {theirs!r}, in the model {ours!r}; {end}")
    # Of a token on two lines, text gets the second.
    for token, row in before.vocab.items():
        if row not in slots and (other := after.vocab.get(token, row)) != row:
            raise UserError(f"{start}: {token!r} has the id {other}, in the model {row}; {end}")
    known = {token.content for token in before.settings.added}
    if added := [token.content for token in after.settings.added if token.content not in known]:
        raise UserError(f"{start}: {added[0]!r} is an added token there; give it to the model with added_tokens (--added-tokens).")
    return _with_lines(before, given), [row for row in sorted(slots) if given[row] != lines[row]]


def parts(tokenizer: WordPiece, tokens: Sequence[str], *, rows: int | None = None) -> list[list[int]]:
    """Ids of the tokens into which texts are split, each a word or, like ``##ing``, the rest of one.

    Args:
      tokenizer: the tokenizer.
      tokens: the texts.
      rows: use only tokens with lower ids; None: all.
    """
    vocab, unk = tokenizer.vocab, [tokenizer.special_tokens.unk]
    if rows is not None:
        vocab = {token: row for token, row in vocab.items() if row < rows}
    longest = max(map(len, vocab))
    found: list[list[int]] = []
    for token in tokens:
        text = token.removeprefix(CONTINUATION)
        pieces = match(text, vocab, longest, inside=text != token)
        ids = [row for row, _ in pieces if row is not None]
        # A word with a character that no token expresses is [UNK].
        found.append(ids if len(ids) == len(pieces) else unk)
    return found


def _lines(tokenizer: WordPiece) -> list[str]:
    """The tokens of every id, so that those that are added after the last line have one, too.

    Raises:
      UserError: as a line, such a token would change how words are split.
    """
    words = _splitter(dataclasses.replace(tokenizer.settings, added=()))
    for token in tokenizer.settings.added:
        is_restricted = token.single_word or not token.normalized
        if token.content not in tokenizer.vocab and is_restricted and [*words(token.content)] == [token.content]:
            raise UserError(
                f"The vocabulary cannot be extended, since its added token {token.content!r} is not in {VOCAB}, and would be found "
                "in more words if it were; remove it."
            )
    lines = split_lines(tokenizer.files[VOCAB])
    return lines + tokenizer.tokens[len(lines) :]


def _with_lines(tokenizer: WordPiece, lines: list[str]) -> WordPiece:
    return WordPiece({**tokenizer.files, VOCAB: "".join(f"{line}\n" for line in lines).encode()})


def _splitter(settings: Settings) -> Callable[[str], Iterable[str]]:
    """A function that splits a text into words, without the added tokens."""
    normalizer = make_normalizer(settings)
    if settings.rules == "google":
        return GoogleRules({}, 0, settings, normalizer).words
    added, pre_tokenizer = AddedTokens(settings.added, normalizer), pre_tokenizers.BertPreTokenizer()

    def split(text: str) -> Iterator[str]:
        for part in added.split(text):
            if part.token_id is None:
                yield from (word for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(part.text)))

    return split


def _count_tokens(tokenizer: WordPiece, words: Iterable[str]) -> dict[str, int]:
    """The number of tokens of each word that the vocabulary can express."""
    longest_word, unk = tokenizer.settings.max_word_length, [tokenizer.special_tokens.unk]
    short = [word for word in words if len(word) <= longest_word]
    return {word: len(ids) for word, ids in zip(short, parts(tokenizer, short), strict=True) if ids != unk}


def _length(words: Mapping[str, int], known: Iterable[str], tokens: Mapping[str, int]) -> Length:
    unknown = sum(number for word, number in words.items() if word not in tokens)
    return Length(sum(words[word] * tokens[word] for word in known), unknown)


def _learn(words: Mapping[str, int], size: int) -> set[str]:
    """Learn the tokens of a vocabulary of ``size`` tokens, beside the characters."""
    continuations = sorted({CONTINUATION + character for word in words for character in word[1:]})
    starts = {word[0] for word in words}
    engine = Engine(models.WordPiece(unk_token=SPECIAL_TOKENS[1]))
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    copies = (
        " ".join(itertools.repeat(word, min(_COPIES, number - first)))
        for word, number in words.items()
        for first in range(0, number, _COPIES)
    )
    tokens = learn(copies, len(SPECIAL_TOKENS) + len(continuations) + len(starts) + size, engine, continuations)
    # A line of a file cannot hold white space at its ends.
    return {token for token in tokens if token == token.strip() and token not in SPECIAL_TOKENS}
