"""The tokenizer interface that the rest of the package uses, and the special tokens of every vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from bert_jax.errors import UserError

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class TokenizedText(NamedTuple):
    """Token ids of a text."""

    ids: np.ndarray
    """int32 [N]."""
    word_starts: np.ndarray
    """bool [N], whether a token is the first of a word."""


class AlignedText(NamedTuple):
    """Token ids of a text with the characters that each token covers."""

    ids: np.ndarray
    """int32 [N]."""
    word_starts: np.ndarray
    """bool [N], whether a token is the first of a word."""
    spans: np.ndarray
    """int32 [N, 2], index of the first character of each token and of the one after its last; both columns are
    non-decreasing. Tokens of one character (a Hangul syllable, a fraction) share its span; a token that is only a space has an
    empty span."""


class SpecialTokens(NamedTuple):
    """Ids of the five special tokens."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int


@runtime_checkable
class Tokenizer(Protocol):
    """Convert text to token ids and back; an instance is determined by its files, byte for byte."""

    files: dict[str, bytes]
    """Contents of its files by name, as stored in a directory, a corpus and a checkpoint."""
    tokens: list[str]
    """Token of each id."""
    special_tokens: SpecialTokens

    def encode(self, texts: Sequence[str], *, match_special: bool = True) -> list[TokenizedText]:
        """Tokenize each text, without adding [CLS] and [SEP].

        Args:
          texts: the texts.
          match_special: whether the name of a special token in a text, such as [MASK], becomes this token, as in transformers;
            otherwise it is ordinary text, as in the original. Added tokens are matched in both cases.
        """
        ...

    def align(self, texts: Sequence[str], *, match_special: bool = True) -> list[AlignedText]:
        """Tokenize each text as ``encode`` does, with the characters of each token."""
        ...

    def warnings(self) -> list[str]:
        """Return signs that its files contradict its settings, one sentence each."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        ...


def find_special_tokens(ids: Mapping[str, int], names: Sequence[str], where: str) -> SpecialTokens:
    """Find the ids of the special tokens.

    Args:
      ids: id of each token.
      names: names of the five special tokens.
      where: name of the vocabulary in error messages.

    Raises:
      UserError: a special token is missing.
    """
    missing = [name for name in names if name not in ids]
    if missing:
        raise UserError(f"{where} has no {', '.join(missing)}; a BERT vocabulary needs {' '.join(names)}.")
    return SpecialTokens(*(ids[name] for name in names))
