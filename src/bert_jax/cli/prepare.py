"""bert-jax prepare."""

from __future__ import annotations

import dataclasses
import importlib
import shlex
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from bert_jax import tokenizers
from bert_jax.data.building import Done, build_corpus
from bert_jax.data.duplicates import Duplicates
from bert_jax.data.google import GoogleFlags, write_records
from bert_jax.data.readers import Input, Sentences, find_inputs
from bert_jax.data.reading import BuildOptions
from bert_jax.errors import UserError
from bert_jax.tokenizers import Rules, Tokenizer, WordPiece

_GOOGLE = GoogleFlags()
# Options that only the builder of documents has.
_DOCUMENT_OPTIONS = ("held_out", "sentences", "language", "field", "duplicates", "mix", "smoothing", "workers", "beam")


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Tokenize text into a corpus: a TFDS data set of documents in ArrayRecord, with a held-out split.

    Documents are stored whole. Sequence length, sentence pairs and masks are chosen when a run reads them.

    With --builder google, write the TFRecord files of the original's create_pretraining_data.py instead: the same masked sentence
    pairs in the same order for the same text, vocabulary, flags and seed. All of them are held in memory.

    Example: bert-jax prepare wiki.txt --vocab vocab --out corpus
    """

    text: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT [TEXT ...]", help_behavior_hint="(required)")
    ]
    """Files, patterns such as 'wiki/*.jsonl.gz', directories, - for standard input, or tfds:NAME for a data set of TFDS.
    Text files have one sentence per line and a blank line between documents; .jsonl, .json and .parquet a record for each document.
    .xml is a dump of MediaWiki.
    Each may be compressed: .gz, .bz2, .xz, .zst."""
    vocab: str
    """Directory written by `bert-jax vocab`, or any directory with vocab.txt, tokenizer.json or spiece.model."""
    out: str
    """Directory to create."""
    held_out: float = 0.05
    """Fraction of the documents kept for evaluation: every n-th, n = round(1 / fraction)."""
    sentences: Sentences = "auto"
    """Sentence boundaries: lines (one sentence per line), split (of running text), auto (lines in text files, else split)."""
    language: str = "en"
    """Language of the sentence splitter, an ISO 639 code; or those of named sources: german=de,french=fr."""
    field: str = "text"
    """Field of .jsonl and .parquet records that contains the text."""
    mix: str | None = None
    """Shares of named sources in the tokens of an epoch, as in wiki=2,books=1; the text is then given as wiki=PATH books=PATH.
    No document is left out; those of the sources that need more are repeated, with other pairs and masks."""
    smoothing: float | None = None
    """Shares by the sizes of the sources to this power instead, 0.7 for the balance of multilingual BERT."""
    duplicates: Duplicates = "keep"
    """Documents that are dropped: exact, those that repeat an earlier one; near, also those that share most runs of five words."""
    workers: int | None = None
    """Processes that tokenize; by default one for each core."""
    beam: str | None = None
    """Options of Apache Beam, whose workers tokenize instead: "--runner=FlinkRunner --flink_master=HOST:8081".
    All of them must reach the text and the directory of --out."""
    tokenizer: Rules | None = None
    """Unicode rules of a WordPiece vocabulary: google, those of the original's tokenization.py, or transformers.
    By default as the vocabulary's directory says, and google with --builder google."""
    lowercase: bool | None = None
    """Fold case and strip accents; by default as the vocabulary's directory says, or as its tokens look."""
    builder: Literal["documents", "google"] = "documents"
    """What is written: documents, or the original's masked sentence pairs."""
    google: GoogleFlags = _GOOGLE
    """Flags of --builder google."""
    shards: int = 1
    """Number of files of --builder google, which get the pairs in turn."""

    def __post_init__(self) -> None:
        if not self.text:
            raise UserError("No text is given; name one or more files.")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        unused = _DOCUMENT_OPTIONS if self.builder == "google" else ("google", "shards")
        for name in unused:
            if getattr(self, name) != defaults[name]:
                raise UserError(f"--{name.replace('_', '-')} has no effect with --builder {self.builder}; leave it out.")
        if self.beam is not None and self.workers is not None:
            raise UserError("--workers has no effect with --beam, whose runner has an option of its own; leave it out.")


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    options = tyro.cli(Prepare, prog="bert-jax prepare", args=arguments)
    tokenizer = _tokenizer(options)
    inputs = find_inputs(options.text)
    if isinstance(tokenizer, WordPiece) and options.builder == "google":
        sizes = {"pairs": _write_records(options, [found.path for found in inputs], tokenizer)}
    else:
        build = BuildOptions(**{field.name: getattr(options, field.name) for field in dataclasses.fields(BuildOptions)})
        if options.beam is None:
            sizes = _build_corpus(options, build, inputs, tokenizer)
        else:
            sizes = _beam().build_corpus(inputs, options.out, tokenizer, build, shlex.split(options.beam))
    for split, size in sizes.items():
        print(f"{options.out} {split}: " + ", ".join(f"{count:,} {name}" for name, count in size.items()))
    return 0


def _write_records(options: Prepare, texts: list[str], tokenizer: WordPiece) -> dict[str, int]:
    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} pairs"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)
        return write_records(
            texts, options.out, tokenizer, options.google, shards=options.shards, progress=lambda done: bar.advance(task, done)
        )


def _beam() -> Any:
    try:
        return importlib.import_module("bert_jax.data.beam")
    except ModuleNotFoundError as error:
        raise UserError(f"--beam needs {error.name}; install it with `pip install 'bert-jax[beam]'`.") from None


def _build_corpus(options: Prepare, build: BuildOptions, inputs: list[Input], tokenizer: Tokenizer) -> dict[str, dict[str, int]]:
    known = [found.size for found in inputs if found.size is not None]
    columns = (
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[speed]}"),
        TextColumn("{task.fields[documents]:,} documents"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=sum(known) if len(known) == len(inputs) else None, documents=0, speed="")

        def advance(done: Done) -> None:
            bar.update(task, advance=done.bytes, documents=bar.tasks[task].fields["documents"] + done.texts)
            # Chunks are finished in bursts, so the speed is that of the whole build.
            bar.update(task, speed=f"{bar.tasks[task].completed / (bar.tasks[task].elapsed or 1) / 1e6:.1f} MB/s")

        return build_corpus(inputs, options.out, tokenizer, build, workers=options.workers, progress=advance)


def _tokenizer(options: Prepare) -> Tokenizer:
    tokenizer = tokenizers.load(options.vocab)
    rules = options.tokenizer or ("google" if options.builder == "google" else None)
    if rules is None and options.lowercase is None:
        return tokenizer
    if not isinstance(tokenizer, WordPiece):
        raise UserError(f"{options.vocab} is a SentencePiece model; --builder google, --tokenizer and --lowercase need vocab.txt.")
    return tokenizer.with_rules(rules or tokenizer.settings.rules, lowercase=options.lowercase)
