"""What the rest of the package knows of a tokenizer, and the names every vocabulary has to hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from bert_jax.errors import UserError

PAD, UNK, CLS, SEP, MASK = SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Pieces(NamedTuple):
    """A tokenized text."""

    ids: np.ndarray
    """int32 [N]."""
    starts: np.ndarray
    """bool [N], whether a piece begins a word."""


class Aligned(NamedTuple):
    """A tokenized text, and where in it each piece comes from."""

    ids: np.ndarray
    """int32 [N]."""
    starts: np.ndarray
    """bool [N], whether a piece begins a word."""
    spans: np.ndarray
    """int32 [N, 2], first character of each piece in the text and the one after its last. Neither column ever falls. Pieces of
    one character (a Hangul syllable, a fraction) share its span; a piece that is only a space has an empty one."""


class Specials(NamedTuple):
    """Ids of the five special pieces."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int


@runtime_checkable
class Tokenizer(Protocol):
    """Text to pieces and back; an instance is its files, byte for byte."""

    files: dict[str, bytes]
    """File name -> content; what a directory, a corpus and a checkpoint keep."""
    pieces: list[str]
    """Piece of each id."""
    specials: Specials

    def encode(self, texts: Sequence[str]) -> list[Pieces]:
        """Pieces of each text, without special pieces; a literal [MASK] in a text is ordinary text."""
        ...

    def align(self, texts: Sequence[str]) -> list[Aligned]:
        """What :meth:`encode` gives, with the characters of the text that each piece stands for."""
        ...

    def doubts(self) -> list[str]:
        """What in its files speaks against its settings, in sentences."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Readable text of pieces."""
        ...


def find_specials(pieces: Iterable[str], where: str) -> Specials:
    """Ids of the special pieces.

    Raises:
      UserError: one is missing, or a piece stands twice.
    """
    index: dict[str, int] = {}
    for number, piece in enumerate(pieces):
        if piece in index:
            raise UserError(f"{where} holds {piece!r} twice, as ids {index[piece]} and {number}.")
        index[piece] = number
    missing = [piece for piece in SPECIALS if piece not in index]
    if missing:
        raise UserError(f"{where} has no {', '.join(missing)}; a BERT vocabulary needs {' '.join(SPECIALS)}.")
    return Specials(*(index[piece] for piece in SPECIALS))
