"""WordPiece and SentencePiece tokenizers behind one protocol, told apart by their files."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable
from typing import Literal

from etils import epath

from bert_jax.errors import UserError
from bert_jax.io import atomic
from bert_jax.tokenizers import transformers_files
from bert_jax.tokenizers.extension import Extension, extend
from bert_jax.tokenizers.protocol import AlignedText, SpecialTokens, TokenizedText, Tokenizer
from bert_jax.tokenizers.sentencepiece import MODEL, SentencePiece
from bert_jax.tokenizers.settings import CONFIG, AddedToken, Rules
from bert_jax.tokenizers.tokenizer_json import JSON, UnsupportedTokenizer
from bert_jax.tokenizers.transformers_files import ADDED, SPECIALS
from bert_jax.tokenizers.wordpiece import VOCAB, WordPiece

__all__ = [
    "CONFIG",
    "FILES",
    "VOCABULARIES",
    "AddedToken",
    "AlignedText",
    "Extension",
    "Kind",
    "Rules",
    "SentencePiece",
    "SpecialTokens",
    "TokenizedText",
    "Tokenizer",
    "UnsupportedTokenizer",
    "WordPiece",
    "create",
    "digest",
    "export",
    "extend",
    "from_files",
    "load",
    "save",
    "train",
]

VOCABULARIES = (VOCAB, JSON, MODEL)
"""File names of vocabularies; a tokenizer's directory contains one of them."""
FILES = (*VOCABULARIES, CONFIG, ADDED, SPECIALS)
"""File names of a tokenizer."""
export = transformers_files.export
Kind = Literal["wordpiece", "unigram", "bpe"]
"""Algorithm of a vocabulary; "unigram" and "bpe" are SentencePiece models."""


def train(texts: Callable[[], Iterable[str]], *, kind: Kind, size: int, lowercase: bool = True) -> Tokenizer:
    """Learn a vocabulary.

    Args:
      texts: returns the sentences to learn from, the same ones at every call; WordPiece reads them twice.
      kind: algorithm.
      size: number of tokens, special tokens included. WordPiece may return fewer.
      lowercase: fold case; WordPiece then also strips accents.

    Raises:
      UserError: the text does not yield a vocabulary of this size.

    Examples:
      >>> from bert_jax import tokenizers
      >>> texts = lambda: ["a small text to learn from", "and another small text"] * 10
      >>> tokenizer = tokenizers.train(texts, kind="wordpiece", size=60)
      >>> tokenizer.tokens[:5]
      ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
      >>> ids = tokenizer.encode(["another text"])[0].ids
      >>> tokenizer.decode(ids.tolist())
      'another text'
    """
    if kind == "wordpiece":
        return WordPiece.train(texts, size, lowercase=lowercase)
    return SentencePiece.train(texts, size, model=kind, lowercase=lowercase)


def from_files(files: dict[str, bytes]) -> Tokenizer:
    """Make a tokenizer from the contents of its files, by file name.

    Raises:
      UserError: no file is a vocabulary, or the vocabulary is invalid.
    """
    if VOCAB in files:
        return WordPiece(files)
    if MODEL in files:
        return SentencePiece(files)
    raise UserError(f"Neither {VOCAB} nor {MODEL} is among the files {sorted(files)}.")


def load(directory: epath.PathLike, *, original: bool = True) -> Tokenizer:
    """Read a tokenizer from a directory with ``vocab.txt``, ``tokenizer.json`` or ``spiece.model``.

    Args:
      directory: the directory.
      original: whether a ``vocab.txt`` without a file of transformers is one of the original's, which takes longer words.

    Raises:
      UserError: the directory is missing, contains no vocabulary, or contains an invalid one.
    """
    directory = epath.Path(directory)
    if not directory.is_dir():
        raise UserError(f"There is no directory {directory}; create a vocabulary with `bert-jax vocab`.")
    files = {name: (directory / name).read_bytes() for name in FILES if (directory / name).is_file()}
    if not any(name in files for name in VOCABULARIES):
        raise UserError(f"{directory} contains no {VOCAB}, {JSON} or {MODEL}; create a vocabulary with `bert-jax vocab`.")
    return from_files(files if MODEL in files else transformers_files.reduce(files, original=original))


def save(tokenizer: Tokenizer, directory: epath.PathLike) -> None:
    """Write a tokenizer's files into a directory, which is created if it does not exist."""
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in tokenizer.files.items():
        (directory / name).write_bytes(content)


def create(tokenizer: Tokenizer, directory: epath.PathLike, *, exported: bool = False) -> None:
    """Write a tokenizer as a new directory, which appears under its name only when it is complete.

    Args:
      tokenizer: the tokenizer.
      directory: directory to create.
      exported: whether to write the files of transformers, with ``tokenizer.json``, where it has a tokenizer with the same ids.

    Raises:
      UserError: the directory exists already or cannot be created.
    """
    with atomic.new_path(directory) as path:
        save(tokenizer, path)
        # transformers has no rules of the original.
        if exported and not (isinstance(tokenizer, WordPiece) and tokenizer.settings.rules == "google"):
            with contextlib.suppress(UnsupportedTokenizer):
                for name, content in export(tokenizer).items():
                    (path / name).write_bytes(content)


def digest(tokenizer: Tokenizer) -> str:
    """Return a hex digest of a tokenizer's files, equal for equal tokenizers."""
    summary = hashlib.blake2b(digest_size=16)
    for name, content in sorted(tokenizer.files.items()):
        summary.update(name.encode() + b"\0" + content)
    return summary.hexdigest()
