"""Pieces of words, the tokens of a WordPiece vocabulary: learned from text, and found in a word by longest match."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tokenizers import Tokenizer as Engine
from tokenizers import trainers

from bert_jax.tokenizers.protocol import SPECIAL_TOKENS

CONTINUATION = "##"
"""Prefix of pieces that do not begin a word."""


def learn(texts: Iterable[str], size: int, engine: Engine, continuations: Sequence[str]) -> list[str]:
    """Learn the pieces of a vocabulary, after the special tokens and ``continuations``.

    Args:
      texts: the text.
      size: number of tokens at most; special tokens, ``continuations`` and the characters of the text are always among them.
      engine: normalizes texts and splits them into words.
      continuations: characters inside of words, as pieces. The library numbers characters in the order of a randomly seeded hash
        table and breaks ties between merges by these numbers; those that are given here get fixed numbers.
    """
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*SPECIAL_TOKENS, *continuations],
        continuing_subword_prefix=CONTINUATION,
        show_progress=False,
    )
    engine.train_from_iterator(texts, trainer)
    vocab = engine.get_vocab()
    return sorted(vocab, key=vocab.__getitem__)


def match(word: str, vocab: Mapping[str, int], longest: int, *, inside: bool = False) -> list[tuple[int | None, int]]:
    """Greedy longest-match-first pieces of a word: the id of each, and the number of its characters.

    Args:
      word: the word.
      vocab: token -> id.
      longest: length of the longest token.
      inside: whether the word continues another one, so that its first piece is a continuation, too.

    Returns:
      The pieces; a character with which no piece begins has None for its id.

    Examples:
      >>> match("walked", {"walk": 7, "##e": 8}, longest=4)
      [(7, 4), (8, 1), (None, 1)]
    """
    pieces: list[tuple[int | None, int]] = []
    start = 0
    while start < len(word):
        prefix = CONTINUATION if start or inside else ""
        for end in range(min(len(word), start + longest), start, -1):
            token = vocab.get(prefix + word[start:end])
            if token is not None:
                break
        pieces.append((token, end - start))
        start = end
    return pieces
