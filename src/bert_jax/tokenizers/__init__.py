"""Two tokenizers behind one protocol, told apart by their files."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable
from typing import Literal

from etils import epath

from bert_jax.errors import UserError
from bert_jax.tokenizers.base import MASK, Pieces, Specials, Tokenizer
from bert_jax.tokenizers.sentencepiece import MODEL, SentencePiece
from bert_jax.tokenizers.wordpiece import CONFIG, VOCAB, WordPiece

__all__ = ["MASK", "Kind", "Pieces", "Specials", "Tokenizer", "create", "digest", "from_files", "load", "save", "train"]

Kind = Literal["wordpiece", "unigram", "bpe"]


def train(texts: Callable[[], Iterable[str]], *, kind: Kind, size: int, lowercase: bool = True) -> Tokenizer:
    """Learn a vocabulary from the sentences that ``texts()`` gives, the same ones each time it is called.

    Raises:
      UserError: the text does not yield what was asked.
    """
    if kind == "wordpiece":
        return WordPiece.train(texts, size, lowercase=lowercase)
    return SentencePiece.train(texts, size, model=kind, lowercase=lowercase)


def from_files(files: dict[str, bytes]) -> Tokenizer:
    """The tokenizer that these files hold."""
    if VOCAB in files:
        return WordPiece(files)
    if MODEL in files:
        return SentencePiece(files)
    raise UserError(f"Neither {VOCAB} nor {MODEL} is among the files {sorted(files)}.")


def load(directory: epath.PathLike) -> Tokenizer:
    """Read a tokenizer from a directory.

    Raises:
      UserError: the directory is missing, holds no vocabulary, or a bad one.
    """
    directory = epath.Path(directory)
    if not directory.is_dir():
        raise UserError(f"There is no directory {directory}; `bert-jax vocab` makes one.")
    files = {name: (directory / name).read_bytes() for name in (VOCAB, CONFIG, MODEL) if (directory / name).exists()}
    if VOCAB not in files and MODEL not in files:
        raise UserError(f"{directory} holds neither {VOCAB} nor {MODEL}; `bert-jax vocab` makes one of them.")
    return from_files(files)


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
    directory = epath.Path(directory)
    if directory.exists():
        raise UserError(f"{directory} exists already; remove it or choose another name.")
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = epath.Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        save(tokenizer, work / directory.name)
        (work / directory.name).rename(directory)
    finally:
        work.rmtree()


def digest(tokenizer: Tokenizer) -> str:
    """Hex digest of a tokenizer's files: equal for equal tokenizers."""
    summary = hashlib.blake2b(digest_size=16)
    for name, content in sorted(tokenizer.files.items()):
        summary.update(name.encode() + b"\0" + content)
    return summary.hexdigest()
