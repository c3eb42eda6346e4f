"""Which tokens shorten a text most, when they are added to a WordPiece vocabulary."""

from __future__ import annotations

import collections
import heapq
from collections.abc import Collection, Iterator, Mapping

from bert_jax.tokenizers.pieces import CONTINUATION, match

# An unknown character makes a word [UNK], and so costs more than any token; of this cost the first token with it saves a part.
_UNKNOWN_COST = 2


def choose(words: Mapping[str, int], vocab: Mapping[str, int], candidates: Collection[str], count: int) -> list[str]:
    """Choose tokens one after the other, each time the one that saves most tokens in the text beside those chosen before.

    What a token saves is, summed over the words that contain it, the word's frequency times the number of tokens by which the word
    becomes shorter, where longest match decides which tokens a word has. It is negative in a word whose longest match becomes
    worse. A character that no token expresses counts as two tokens. Of tokens that save equally much, the first in the order of
    code points is chosen.

    Args:
      words: frequency of each word.
      vocab: token -> id of the tokens that are there.
      candidates: the tokens to choose from.
      count: number of tokens to choose; fewer are chosen where no further token saves anything.

    Examples:
      >>> vocab = {token: row for row, token in enumerate(["a", "b", "##a", "##b"])}
      >>> choose({"abab": 3, "abb": 2}, vocab, ["abab", "ab", "##bb"], count=2)
      ['abab', '##bb']
    """
    savings = _Savings(words, vocab, candidates)
    queue = [(-saved, token) for token, saved in savings.total.items()]
    heapq.heapify(queue)
    chosen: list[str] = []
    while queue and len(chosen) < count:
        saved, token = heapq.heappop(queue)
        # Numbers that changed since they were put into the queue are in it again.
        if -saved != savings.total.get(token):
            continue
        if saved >= 0:
            break
        chosen.append(token)
        for changed in savings.take(token):
            heapq.heappush(queue, (-savings.total[changed], changed))
    return chosen


class _Savings:
    """The number of tokens that each candidate saves beside those that were taken.

    Args:
      words: frequency of each word.
      vocab: token -> id.
      candidates: tokens that can be taken.
    """

    def __init__(self, words: Mapping[str, int], vocab: Mapping[str, int], candidates: Collection[str]) -> None:
        self._words, self._vocab = words, dict(vocab)
        self._candidates = {*candidates} - {*vocab}
        self._longest = max(map(len, [*vocab, *candidates]), default=1)
        # Candidate -> the words that contain it, and word -> what each candidate saves in one occurrence.
        self._places: dict[str, list[str]] = collections.defaultdict(list)
        self._by_word: dict[str, dict[str, int]] = {}
        self.total: dict[str, int] = {}
        """Candidate -> tokens that it saves in the text."""
        for word in words:
            # No longest match shortens or changes a word that is a token itself.
            if self._cost(word) > 1 and (found := dict.fromkeys(self._find(word), 0)):
                self._by_word[word] = found
                for token in found:
                    self._places[token].append(word)
                    self.total.setdefault(token, 0)
                self._measure(word)

    def take(self, token: str) -> set[str]:
        """Add a candidate to the vocabulary, and return those of which the savings changed."""
        self._vocab[token] = len(self._vocab)
        del self.total[token]
        changed: set[str] = set()
        for word in self._places.pop(token):
            del self._by_word[word][token]
            changed |= self._measure(word)
        return changed

    def _measure(self, word: str) -> set[str]:
        """Compute what candidates save in a word, and return those of which it changed."""
        changed: set[str] = set()
        frequency, before, savings = self._words[word], self._cost(word), self._by_word[word]
        for token, last in savings.items():
            saved = 0
            if before > 1:
                self._vocab[token] = len(self._vocab)
                saved = before - self._cost(word)
                del self._vocab[token]
            if saved != last:
                savings[token] = saved
                self.total[token] += frequency * (saved - last)
                changed.add(token)
        return changed

    def _cost(self, word: str) -> int:
        return sum(_UNKNOWN_COST if token is None else 1 for token, _ in match(word, self._vocab, self._longest))

    def _find(self, word: str) -> Iterator[str]:
        """Yield the candidates that are pieces of a word."""
        for start in range(len(word)):
            prefix = CONTINUATION if start else ""
            for end in range(start + 1, min(len(word), start + self._longest) + 1):
                token = prefix + word[start:end]
                if token in self._candidates:
                    yield token
