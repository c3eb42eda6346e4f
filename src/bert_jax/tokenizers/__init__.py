"""Two tokenizers behind one protocol, told apart by their files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Literal

from etils import epath

from bert_jax.errors import UserError
from bert_jax.io import atomic
from bert_jax.tokenizers.protocol import MASK, Pieces, Specials, Tokenizer
from bert_jax.tokenizers.sentencepiece import MODEL, SentencePiece
from bert_jax.tokenizers.wordpiece import CONFIG, JSON, VOCAB, WordPiece, unpack

__all__ = [
    "CONFIG", "MASK", "ORIGINAL", "VOCABULARIES", "Kind", "Pieces", "Specials", "Tokenizer", "create", "digest", "from_files",
    "load", "save", "train",
]  # fmt: skip

VOCABULARIES = (VOCAB, JSON, MODEL)
"""Names of the files of which one holds the pieces."""
ORIGINAL = {"max_input_chars_per_word": 200}
"""What the original does where a WordPiece config says nothing and transformers does something else."""
Kind = Literal["wordpiece", "unigram", "bpe"]


def train(texts: Callable[[], Iterable[str]], *, kind: Kind, size: int, lowercase: bool = True) -> Tokenizer:
    """Learn a vocabulary from the sentences that ``texts()`` gives, the same ones each time it is called.

    Raises:
      UserError: the text does not yield what was asked.
    """
    if kind == "wordpiece":
        return WordPiece.train(texts, size, lowercase=lowercase)
    return SentencePiece.train(texts, size, model=kind, lowercase=lowercase)


def from_files(contents: dict[str, bytes]) -> Tokenizer:
    """The tokenizer that these files hold."""
    if VOCAB in contents:
        return WordPiece(contents)
    if MODEL in contents:
        return SentencePiece(contents)
    raise UserError(f"Neither {VOCAB} nor {MODEL} is among the files {sorted(contents)}.")


def load(directory: epath.PathLike) -> Tokenizer:
    """Read a tokenizer from a directory.

    Raises:
      UserError: the directory is missing, holds no vocabulary, or a bad one.
    """
    directory = epath.Path(directory)
    if not directory.is_dir():
        raise UserError(f"There is no directory {directory}; `bert-jax vocab` makes one.")
    contents = {name: (directory / name).read_bytes() for name in (*VOCABULARIES, CONFIG) if (directory / name).is_file()}
    if JSON in contents and MODEL not in contents:
        contents = unpack(contents)
    if VOCAB not in contents and MODEL not in contents:
        raise UserError(f"{directory} holds no {VOCAB}, {JSON} or {MODEL}; `bert-jax vocab` makes one.")
    return from_files(contents)


def save(tokenizer: Tokenizer, directory: epath.PathLike) -> None:
    """Write a tokenizer's files into a directory, which is made if need be."""
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in tokenizer.files.items():
        (directory / name).write_bytes(content)


def create(tokenizer: Tokenizer, directory: epath.PathLike) -> None:
    """Make a tokenizer's directory, which appears under its name only when it is whole.

    Raises:
      UserError: it exists already.
    """
    with atomic.new(directory) as path:
        save(tokenizer, path)


def digest(tokenizer: Tokenizer) -> str:
    """Hex digest of a tokenizer's files: equal for equal tokenizers."""
    summary = hashlib.blake2b(digest_size=16)
    for name, content in sorted(tokenizer.files.items()):
        summary.update(name.encode() + b"\0" + content)
    return summary.hexdigest()
