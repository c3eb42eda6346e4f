"""bert-jax prepare."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bert_jax import tokenizers
from bert_jax.data.corpus import write_corpus
from bert_jax.data.readers import Sentences, read_documents
from bert_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Tokenize text into a corpus: a TFDS data set of documents in ArrayRecord, with a held-out split.

    Documents are stored whole. Sequence length, sentence pairs and masks are chosen when a run reads them.

    Example: bert-jax prepare wiki.txt --vocab vocab --out corpus
    """

    text: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT [TEXT ...]")]
    """Text files (one sentence per line, a blank line between documents), .jsonl or .parquet; also .gz."""
    vocab: str
    """Directory written by `bert-jax vocab`, or any directory with vocab.txt, tokenizer.json or spiece.model."""
    out: str
    """Directory to create."""
    held_out: float = 0.05
    """Fraction of the documents kept for evaluation: every n-th, n = round(1 / fraction)."""
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
    options = tyro.cli(Prepare, prog="bert-jax prepare", args=arguments)
    tokenizer = tokenizers.load(options.vocab)
    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} documents"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)
        sizes = write_corpus(
            lambda: read_documents(options.text, sentences=options.sentences, language=options.language, field=options.field),
            options.out,
            tokenizer,
            held_out=options.held_out,
            progress=lambda documents: bar.advance(task, documents),
        )
    for split, size in sizes.items():
        print(f"{options.out} {split}: " + ", ".join(f"{count:,} {name}" for name, count in size.items()))
    return 0
