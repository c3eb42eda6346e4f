"""Documents that repeat an earlier one, exactly or nearly; the first one stays."""

from __future__ import annotations

import hashlib
import importlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from bert_jax.data.readers import StoredText
from bert_jax.errors import UserError

Duplicates = Literal["keep", "exact", "near"]
"""What is dropped: "keep", nothing; "exact", texts that differ in white space and case alone; "near", also those that share most of
their runs of five words (MinHash, Broder 1997)."""
THRESHOLD = 0.8
"""Share of common runs of words (Jaccard similarity) from which two documents count as near duplicates."""
_RUN = 5
_PERMUTATIONS = 128
_TEXTS_PER_CALL = 2048

Map = Callable[[Callable[[str], Any], Iterable[str]], Iterable[Any]]
"""As the built-in ``map``, perhaps in several processes."""


class Filter:
    """Passes texts on unless they repeat one before.

    Args:
      duplicates: what is dropped.
      apply: computes signatures.

    Raises:
      UserError: "near" is asked for and the extra ``duplicates`` is not installed.

    Examples:
      >>> from bert_jax.data.readers import StoredText
      >>> texts = [StoredText(text, "lines") for text in ("A text.", "Another one.", "a  TEXT.")]
      >>> found = Filter("exact")
      >>> [text.text for text in found(texts)], found.dropped
      (['A text.', 'Another one.'], 1)
    """

    def __init__(self, duplicates: Duplicates, apply: Map = map) -> None:
        self._duplicates, self._apply = duplicates, apply
        self.dropped = 0
        self._seen: set[bytes] = set()
        self._index: Any = _library().MinHashLSH(THRESHOLD, _PERMUTATIONS) if duplicates == "near" else None

    def __call__(self, texts: Iterable[StoredText]) -> Iterator[StoredText]:
        """Yield the texts that stay, in order."""
        if self._duplicates == "keep":
            yield from texts
            return
        iterator = iter(texts)
        while batch := list(itertools.islice(iterator, _TEXTS_PER_CALL)):
            for text, is_new in zip(batch, self._new([text.text for text in batch]), strict=True):
                self.dropped += not is_new
                if is_new:
                    yield text

    def _new(self, texts: list[str]) -> list[bool]:
        new = []
        for text in texts:
            key = hashlib.blake2b(" ".join(text.lower().split()).encode(), digest_size=8).digest()
            new.append(key not in self._seen)
            self._seen.add(key)
        if self._index is not None:
            chosen = [place for place, is_new in enumerate(new) if is_new]
            for place, hashes in zip(chosen, self._apply(signature, [texts[place] for place in chosen]), strict=True):
                new[place] = not self._index.query(hashes)
                if new[place]:
                    self._index.insert(len(self._index.keys), hashes)
        return new


def signature(text: str) -> Any:
    """The MinHash of the runs of five words of a text."""
    words = text.lower().split()
    runs = {" ".join(words[start : start + _RUN]) for start in range(max(1, len(words) - _RUN + 1))}
    hashes = _library().MinHash(_PERMUTATIONS)
    hashes.update_batch([run.encode() for run in sorted(runs)])
    return _library().LeanMinHash(hashes)


def _library() -> Any:
    try:
        return importlib.import_module("datasketch")
    except ImportError:
        raise UserError("Near duplicates are found by datasketch; install it with `pip install 'bert-jax[duplicates]'`.") from None
