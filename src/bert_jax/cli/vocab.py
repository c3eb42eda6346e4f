"""bert-jax vocab."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated

import tyro
from etils import epath

from bert_jax import tokenizers
from bert_jax.data.readers import Sentences, read_documents
from bert_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Vocab:
    """Learn a vocabulary from text and write it as a directory.

    WordPiece writes vocab.txt and tokenizer_config.json, which BERT tokenizers of other libraries read;
    SentencePiece (unigram or bpe) writes spiece.model. [PAD], [UNK], [CLS], [SEP] and [MASK] get the first ids.

    Example: bert-jax vocab wiki.txt --out vocab --kind wordpiece --size 30522
    """

    text: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Text files (a sentence a line, a blank line between documents), .jsonl or .parquet, also .gz."""
    out: str
    """Directory to make."""
    kind: tokenizers.Kind = "wordpiece"
    """Which model to learn."""
    size: int = 30522
    """Number of pieces, special ones included."""
    lowercase: bool = True
    """Fold case; WordPiece then also strips accents."""
    sentences: Sentences = "auto"
    """How sentences are found: auto, a line each in text files and split in .jsonl and .parquet; lines; split."""
    language: str = "en"
    """Language of the sentence splitter, an ISO 639 code."""
    field: str = "text"
    """Name of the text in .jsonl and .parquet records."""


def main(arguments: list[str]) -> int:
    options = tyro.cli(Vocab, prog="bert-jax vocab", args=arguments)
    out = epath.Path(options.out)
    if out.exists():
        raise UserError(f"{out} exists already; remove it or choose another name.")

    def texts() -> Iterator[str]:
        documents = read_documents(options.text, sentences=options.sentences, language=options.language, field=options.field)
        return (sentence for document in documents for sentence in document)

    tokenizer = tokenizers.train(texts, kind=options.kind, size=options.size, lowercase=options.lowercase)
    tokenizers.create(tokenizer, out)
    print(f"{out}: {options.kind}, {len(tokenizer.pieces):,} pieces")
    return 0
