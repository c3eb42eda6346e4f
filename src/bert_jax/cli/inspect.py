"""bert-jax inspect."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Annotated

import jax
import tyro
from etils import epath
from rich.console import Console

from bert_jax.cli import inspect_text
from bert_jax.config.data import Meaning
from bert_jax.config.validation import require_positive
from bert_jax.data.records import is_records
from bert_jax.errors import UserError
from bert_jax.evaluation import inspection
from bert_jax.evaluation.inspection import LENGTHS, CorpusReport, RecordsReport, TextOptions
from bert_jax.io import atomic
from bert_jax.io.lines import require_file
from bert_jax.training import plots
from bert_jax.training.logging import progress_bar

# Options that only one kind of data set has.
_CORPUS_OPTIONS = ("lengths", "pairs", "sequence_length", "documents")
_RECORD_OPTIONS = ("vocab", "records", "verify", "nsp_label")
# Tokens of the shortest pair: [CLS] A [SEP] B [SEP].
_SHORTEST = 5


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Show what a data set contains, before a run spends a week on it.

    DATASET is a corpus that `bert-jax prepare` wrote; or TFRecord files of masked sentence pairs, from `bert-jax prepare --builder
    google` or any other program: a file, a directory, or a pattern such as 'data/*.tfrecord'.

    Of a corpus: the documents, sentences, words and tokens of each split; how long documents and sentences are; exact duplicates,
    also between the splits; the share of [UNK]; for each sequence length the padding with one example in a row and, as by
    default in a run, with up to six, the share of random pairs, and the share of examples that are cut; the most and the least
    frequent tokens; and the first examples of a run with their masks.

    Of TFRecord files: files, records and lengths, and from a sample of the records the padding, the share of random pairs, the
    predictions and what replaced them, the frequencies of tokens, and examples with the masks that are stored; and for each file
    whether its NSP label 1 means a random second segment or the next one, by the rare tokens that segments share.

    A corpus stores no text, so the words behind [UNK] are found in the text from which it was made, with --text. Lengths, tokens
    and [UNK] are counted in the whole corpus; duplicates in the documents that are read; rows in the first block of a
    run's first epoch, at most 65,536 documents. Nothing is written but the file of --plot. Masks are computed on the CPU.

    In a terminal the masks of the examples are coloured; elsewhere, and if NO_COLOR is set, they are written as [MASK→word]: what
    the model sees, and what it predicts.

    Examples: bert-jax inspect corpus --text wiki.txt --plot lengths.png
              bert-jax inspect 'records/*.tfrecord' --verify --json
    """

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Corpus directory, or TFRecord files."""
    text: tuple[str, ...] = ()
    """Files of the text from which the data set was made, to list the commonest words behind [UNK]:
    text files, .jsonl or .parquet; also .gz."""
    field: str = "text"
    """Field of .jsonl and .parquet records that contains the text."""
    examples: int = 10
    """Number of examples to show; 0 for none."""
    top: int = 20
    """Length of the lists of tokens and words."""
    seed: int = 0
    """Seed of the rows and examples: those of a run with the same train.seed. For TFRecord files, of the choice of examples."""
    plot: str | None = None
    """File .png to create with histograms of the lengths."""
    json: bool = False
    """Print everything as one JSON object."""
    lengths: tuple[int, ...] = LENGTHS
    """Sequence lengths of which rows are planned; for a corpus."""
    pairs: bool = True
    """Make sentence pairs. With --no-pairs, rows and examples are contiguous sentences; for a corpus."""
    sequence_length: int = 128
    """Maximum tokens of an example that is shown; for a corpus."""
    documents: int = 1_000_000
    """Maximum number of documents of each split, and of --text, that are read; for a corpus and --text."""
    vocab: str | None = None
    """Directory of the vocabulary, by default the one that contains the files; for TFRecord files."""
    records: int = 10_000
    """Maximum number of records in the sample; for TFRecord files."""
    verify: bool = False
    """Compute the checksum of every record, not only of the sample; for TFRecord files."""
    nsp_label: Meaning = "random"
    """What the NSP label 1 means, as data.nsp_label of a run; for TFRecord files."""

    def __post_init__(self) -> None:
        for name in ("top", "documents", "records"):
            require_positive(name, getattr(self, name))
        for name in ("examples", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must not be negative.")
        if short := [length for length in (*self.lengths, self.sequence_length) if length < _SHORTEST]:
            raise UserError(f"A sequence length is {short[0]}; a pair needs at least {_SHORTEST} tokens.")
        if self.plot is not None and epath.Path(self.plot).suffix != ".png":
            raise UserError(f"{self.plot} does not end in .png; name a file that does.")


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    options = tyro.cli(Inspect, prog="bert-jax inspect", args=arguments)
    if not jax.config.values["jax_platforms"]:
        # Masks of a few examples need no accelerator, whose memory a run may be using.
        jax.config.update("jax_platforms", "cpu")
    # Checks before the work that the file can be written.
    with atomic.new_path(options.plot) if options.plot else contextlib.nullcontext() as plot:
        report = _inspect(options)
        if plot:
            with plot.open("wb") as file:
                _figure(report, options).savefig(file, dpi=150, format="png")
    if options.json:
        print(json.dumps(inspection.to_json(report), indent=2, ensure_ascii=False))
        return 0
    inspect_text.show(report, Console(highlight=False, markup=False, emoji=False))
    if options.plot:
        print(f"\n{options.plot}: histograms of the lengths")
    return 0


def _inspect(options: Inspect) -> CorpusReport | RecordsReport:
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    records = is_records(options.dataset)
    for name in _CORPUS_OPTIONS if records else _RECORD_OPTIONS:
        if getattr(options, name) != defaults[name] and not (name == "documents" and options.text):
            wanted, found = ("corpora", "TFRecord files") if records else ("TFRecord files", "a corpus")
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} is for {wanted}, but {options.dataset} names {found}; leave the option out.")
    for path in options.text:
        require_file(epath.Path(path))
    text = TextOptions(options.text, options.field, options.documents)
    if records:
        return inspection.inspect_records(
            options.dataset,
            vocab=options.vocab,
            records=options.records,
            verify=options.verify,
            nsp_label=options.nsp_label,
            examples=options.examples,
            seed=options.seed,
            text=text,
            listed=options.top,
            progress_bar=progress_bar,
        )
    if not epath.Path(options.dataset).exists():
        raise UserError(f"There is no data set {options.dataset}; name a corpus of `bert-jax prepare`, or TFRecord files.")
    return inspection.inspect_corpus(
        options.dataset,
        lengths=options.lengths,
        pairs=options.pairs,
        sequence_length=options.sequence_length,
        examples=options.examples,
        seed=options.seed,
        documents=options.documents,
        text=text,
        listed=options.top,
        progress_bar=progress_bar,
    )


def _figure(report: CorpusReport | RecordsReport, options: Inspect) -> plots.Figure:
    if isinstance(report, RecordsReport):
        return plots.lengths({"tokens per record": {"sample": report.sample.tokens_per_record}}, logarithmic=False)
    titles = {"tokens per document": "tokens_per_document", "tokens per sentence": "tokens_per_sentence"}
    panels = {title: {name: getattr(split, field) for name, split in report.splits.items()} for title, field in titles.items()}
    return plots.lengths(panels, marks=options.lengths)
