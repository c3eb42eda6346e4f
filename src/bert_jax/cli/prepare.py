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


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Tokenize text into a corpus: a TFDS data set of documents in ArrayRecord, with a held-out split.

    Documents are stored whole; sequence length, sentence pairs and masks are chosen when a run reads them.

    Example: bert-jax prepare wiki.txt --vocab vocab --out corpus
    """

    text: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Text files (a sentence a line, a blank line between documents), .jsonl or .parquet, also .gz."""
    vocab: str
    """Directory that `bert-jax vocab` wrote, or any with vocab.txt or spiece.model."""
    out: str
    """Directory to make."""
    held_out: float = 0.05
    """Share of documents kept for evaluation: every n-th, n = round(1 / share)."""
    sentences: Sentences = "auto"
    """How sentences are found: auto, a line each in text files and split in .jsonl and .parquet; lines; split."""
    language: str = "en"
    """Language of the sentence splitter, an ISO 639 code."""
    field: str = "text"
    """Name of the text in .jsonl and .parquet records."""


def main(arguments: list[str]) -> int:
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
