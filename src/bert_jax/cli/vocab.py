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

    WordPiece writes vocab.txt and tokenizer_config.json, which BERT tokenizers of other libraries read; SentencePiece (unigram or
    bpe) writes spiece.model. [PAD], [UNK], [CLS], [SEP] and [MASK] get the first ids.

    Example: bert-jax vocab wiki.txt --out vocab --kind wordpiece --size 30522
    """

    text: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT [TEXT ...]")]
    """Text files (one sentence per line, a blank line between documents), .jsonl or .parquet; also .gz."""
    out: str
    """Directory to create."""
    kind: tokenizers.Kind = "wordpiece"
    """Algorithm; unigram and bpe are SentencePiece models."""
    size: int = 30522
    """Number of tokens, special tokens included."""
    lowercase: bool = True
    """Fold case; WordPiece then also strips accents."""
    sentences: Sentences = "auto"
    """Sentence boundaries: lines (one sentence per line), split (of running text), auto (lines in text files, else split)."""
    language: str = "en"
    """Language of the sentence splitter, an ISO 639 code."""
    field: str = "text"
    """Field of .jsonl and .parquet records that contains the text."""

    def __post_init__(self) -> None:
        if not self.text:
            raise UserError("No text is given; name one or more files.")


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    options = tyro.cli(Vocab, prog="bert-jax vocab", args=arguments)
    out = epath.Path(options.out)
    if out.exists():
        raise UserError(f"{out} exists already; remove it or choose another name.")

    def texts() -> Iterator[str]:
        documents = read_documents(options.text, sentences=options.sentences, language=options.language, field=options.field)
        return (sentence for document in documents for sentence in document)

    tokenizer = tokenizers.train(texts, kind=options.kind, size=options.size, lowercase=options.lowercase)
    tokenizers.create(tokenizer, out)
    print(f"{out}: {options.kind}, {len(tokenizer.tokens):,} tokens")
    return 0
