"""Why a corpus has [UNK]: the words of a text that its vocabulary cannot express."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bert_jax.data.readers import Document
from bert_jax.tokenizers import Tokenizer

# Documents that are tokenized together, different words that are counted, and characters of a word that are kept.
_CHUNK, _MOST_WORDS, _MOST_CHARACTERS = 256, 1_000_000, 200


@dataclass(frozen=True)
class UnknownWords:
    """The words of a text that became [UNK]."""

    documents: int
    """Documents that were read."""
    all_read: bool
    """Whether the text has no more of them."""
    tokens: int
    unknown: int
    """How many of the tokens are [UNK]."""
    distinct: int
    """Different words behind them."""
    at_least: bool
    """Whether there were too many different words to count all, so that counts are lower bounds."""
    words: list[tuple[str, int]]
    """The commonest ones, as they are written in the text, with counts."""


def count_unknown_words(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    *,
    listed: int,
    limit: int | None = None,
    progress: Callable[[int], None] = lambda documents: None,
) -> UnknownWords:
    """Tokenize a text as ``bert-jax prepare`` does and count the words that become [UNK].

    With a SentencePiece vocabulary these are the characters that it lacks, not whole words.

    Args:
      documents: the text.
      tokenizer: the tokenizer.
      listed: length of the list of words.
      limit: maximum number of documents; None for all.
      progress: called with the number of documents done since the last call.
    """
    unk = tokenizer.special_tokens.unk
    counts: collections.Counter[str] = collections.Counter()
    read = tokens = unknown = 0
    at_least = False
    remaining = iter(documents)
    chosen = itertools.islice(remaining, limit)
    while chunk := list(itertools.islice(chosen, _CHUNK)):
        sentences = [sentence for document in chunk for sentence in document]
        encoded = tokenizer.encode(sentences, match_special=False)
        tokens += sum(len(row.ids) for row in encoded)
        # Spans take much longer than ids, and few sentences need them.
        affected = [sentence for sentence, row in zip(sentences, encoded, strict=True) if (row.ids == unk).any()]
        for sentence, row in zip(affected, tokenizer.align(affected, match_special=False), strict=True):
            found = [sentence[start:end][:_MOST_CHARACTERS] for start, end in row.spans[row.ids == unk].tolist()]
            unknown += len(found)
            counts.update(found)
        if len(counts) > _MOST_WORDS:
            counts, at_least = collections.Counter(dict(counts.most_common(_MOST_WORDS // 2))), True
        read += len(chunk)
        progress(len(chunk))
    words = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:listed]
    return UnknownWords(read, next(remaining, None) is None, tokens, unknown, len(counts), at_least, words)
