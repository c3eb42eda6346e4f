"""What the data of a pretraining run contains, and examples with their masks, before the run is started.

`inspect_corpus` and `inspect_records` gather what [`bert_jax.data.inspection`][bert_jax.data.inspection] and
[`bert_jax.data.record_inspection`][bert_jax.data.record_inspection] count. Examples of a corpus are masked as those of a run.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from bert_jax.config.data import DataConfig, Meaning
from bert_jax.data import inspection, nsp_labels
from bert_jax.data.corpus import HELD_OUT, TRAIN, Corpus, open_corpus
from bert_jax.data.distribution import Distribution
from bert_jax.data.inspection import Duplicate, Frequencies, RowReport
from bert_jax.data.nsp_labels import LabelMeaning
from bert_jax.data.readers import read_documents
from bert_jax.data.record_inspection import RecordSample, sample_records
from bert_jax.data.records import find_files
from bert_jax.data.unknown_words import UnknownWords, count_unknown_words
from bert_jax.evaluation.masked_examples import Example, corpus_examples, record_example
from bert_jax.tokenizers import Tokenizer

LENGTHS = (64, 128, 256, 512)
"""Default sequence lengths of which rows are planned."""
ProgressBar = Callable[[str], AbstractContextManager[Callable[[int, int | None], None]]]
"""As [`progress_bar`][bert_jax.training.logging.progress_bar]."""


@contextlib.contextmanager
def _no_bar(unit: str) -> Any:
    del unit
    yield lambda done, total: None


@dataclass(frozen=True)
class SplitReport:
    """A split of a corpus."""

    documents: int
    sentences: int
    words: int
    """Tokens that begin a word; an estimate from the documents that were read, if these are not all."""
    tokens: int
    read: int
    """Documents that were read, the first ones; words and duplicates are counted in them."""
    unknown: int
    """Tokens that are [UNK]."""
    unknown_share: float
    duplicates: int
    """Documents that were read and are equal to an earlier one."""
    duplicate_share: float
    commonest_duplicates: list[Duplicate]
    in_train: int | None
    """Documents that were read and are equal to one that was read of the training split; None for that split itself."""
    tokens_per_document: Distribution
    tokens_per_sentence: Distribution


@dataclass(frozen=True)
class CorpusReport:
    """A corpus of documents."""

    dataset: str
    kind: str
    tokenizer: str
    """WordPiece or SentencePiece."""
    special_tokens: list[str]
    splits: dict[str, SplitReport]
    frequencies: Frequencies
    """Of the training split."""
    rows: list[RowReport]
    """Of the training split, one for each sequence length."""
    unknown_words: UnknownWords | None
    """None without a text."""
    examples: list[Example]
    """Of the training split, the first ones of a run with the seed."""


@dataclass(frozen=True)
class RecordsReport:
    """TFRecord files of masked sentence pairs."""

    dataset: str
    kind: str
    tokenizer: str
    """WordPiece or SentencePiece."""
    special_tokens: list[str]
    sample: RecordSample
    label_meanings: list[LabelMeaning]
    """Of each file, from its first pairs; empty without pairs."""
    unknown_words: UnknownWords | None
    """None without a text."""
    examples: list[Example]


@dataclass(frozen=True)
class TextOptions:
    """The text in which the causes of [UNK] are looked for."""

    paths: Sequence[epath.PathLike] = ()
    field: str = "text"
    """Field of .jsonl and .parquet records that contains the text."""
    documents: int | None = None
    """Maximum number of documents; None for all."""


def inspect_corpus(
    path: epath.PathLike,
    *,
    lengths: Sequence[int] = LENGTHS,
    pairs: bool = True,
    sequence_length: int = 128,
    examples: int = 10,
    seed: int = 0,
    documents: int | None = None,
    text: TextOptions = TextOptions(),
    listed: int = 20,
    progress_bar: ProgressBar = _no_bar,
) -> CorpusReport:
    """Look at everything that is in a corpus.

    Args:
      path: directory written by ``bert-jax prepare``.
      lengths: sequence lengths of which the first block of rows is planned.
      pairs: whether rows and examples are sentence pairs.
      sequence_length: tokens of an example that is shown, at most.
      examples: number of examples.
      seed: seed of the plan, the examples and the masks: they are those of a run with this seed.
      documents: maximum number of documents that are read of each split; None for all.
      text: text in which the causes of [UNK] are looked for.
      listed: length of the lists of tokens and words.
      progress_bar: shows progress.

    Raises:
      UserError: there is no corpus at this path, it is damaged, or it has too few documents for pairs.
    """
    configs = [DataConfig(str(path), sequence_length=length, pairs=pairs) for length in (*lengths, sequence_length)]
    corpus = open_corpus(path)
    splits = _inspect_splits(corpus, documents, progress_bar)
    return CorpusReport(
        dataset=str(path),
        kind="corpus",
        tokenizer=type(corpus.tokenizer).__name__,
        special_tokens=[corpus.tokenizer.tokens[token] for token in corpus.tokenizer.special_tokens],
        splits=splits,
        frequencies=inspection.frequencies(corpus.train.counts, corpus.tokenizer, listed=listed),
        rows=[inspection.rows(corpus.train, config, seed=seed) for config in configs[:-1]],
        unknown_words=_unknown_words(text, corpus.tokenizer, listed, progress_bar),
        examples=corpus_examples(corpus.train, corpus.tokenizer, configs[-1], seed=seed, count=examples),
    )


def _inspect_splits(corpus: Corpus, limit: int | None, progress_bar: ProgressBar) -> dict[str, SplitReport]:
    reports: dict[str, SplitReport] = {}
    in_train = np.zeros(0, np.uint64)
    parts = {TRAIN: corpus.train, HELD_OUT: corpus.held_out}
    for name, split in parts.items():
        inspection.check_tables(split, f"{corpus.path}, split {name}")
    sizes = {name: len(split.first) - 1 for name, split in parts.items()}
    total = sum(size if limit is None else min(size, limit) for size in sizes.values())
    done = 0
    with progress_bar("documents") as progress:

        def advance(documents: int) -> None:
            nonlocal done
            done += documents
            progress(done, total)

        for name, split in parts.items():
            scan = inspection.scan_documents(split, corpus.tokenizer, f"{corpus.path}, split {name}", limit=limit, progress=advance)
            tokens, unknown = int(split.counts.sum()), int(split.counts[corpus.tokenizer.special_tokens.unk])
            reports[name] = SplitReport(
                documents=sizes[name],
                sentences=len(split.lengths),
                words=round(scan.words * tokens / max(scan.tokens, 1)) if split.words is None else split.words,
                tokens=tokens,
                read=scan.documents,
                unknown=unknown,
                unknown_share=unknown / tokens,
                duplicates=scan.duplicates,
                duplicate_share=scan.duplicates / scan.documents,
                commonest_duplicates=scan.commonest,
                in_train=None if name == TRAIN else int(np.isin(scan.hashes, in_train).sum()),
                tokens_per_document=inspection.document_lengths(split),
                tokens_per_sentence=inspection.sentence_lengths(split),
            )
            in_train = scan.hashes if name == TRAIN else in_train
    return reports


def inspect_records(
    path: str,
    *,
    vocab: str | None = None,
    records: int = 10_000,
    verify: bool = False,
    nsp_label: Meaning = "random",
    examples: int = 10,
    seed: int = 0,
    text: TextOptions = TextOptions(),
    listed: int = 20,
    progress_bar: ProgressBar = _no_bar,
) -> RecordsReport:
    """Look at TFRecord files of masked sentence pairs.

    Args:
      path: a file, a directory, or a pattern.
      vocab: directory of the vocabulary; None: that of the files.
      records: maximum number of records in the sample.
      verify: whether to compute the checksum of every record.
      nsp_label: what label 1 says of the second segment.
      examples: number of examples, which are taken from the sample.
      seed: seed of their choice.
      text: text in which the causes of [UNK] are looked for.
      listed: length of the lists of tokens and words.
      progress_bar: shows progress.

    Raises:
      UserError: there are no such files, they are damaged, have other contents, or there is no vocabulary.
    """
    with progress_bar("files") as progress:
        sample, tokenizer, rows = sample_records(
            path,
            vocab,
            limit=records,
            listed=listed,
            kept=examples,
            seed=seed,
            verify=verify,
            nsp_label=nsp_label,
            progress=progress,
        )
    meanings = nsp_labels.label_meanings(find_files(path), tokenizer.special_tokens, pairs=records) if sample.pairs else ()
    return RecordsReport(
        dataset=path,
        kind="records",
        tokenizer=type(tokenizer).__name__,
        special_tokens=[tokenizer.tokens[token] for token in tokenizer.special_tokens],
        sample=sample,
        label_meanings=[*meanings],
        unknown_words=_unknown_words(text, tokenizer, listed, progress_bar),
        examples=[record_example(row, tokenizer, nsp_label=nsp_label) for row in rows],
    )


def _unknown_words(text: TextOptions, tokenizer: Tokenizer, listed: int, progress_bar: ProgressBar) -> UnknownWords | None:
    if not text.paths:
        return None
    done = 0
    with progress_bar("documents of the text") as progress:

        def advance(documents: int) -> None:
            nonlocal done
            done += documents
            progress(done, None)

        # Where sentences end does not matter for words.
        read = read_documents(text.paths, sentences="lines", field=text.field)
        return count_unknown_words(read, tokenizer, listed=listed, limit=text.documents, progress=advance)


def to_json(value: Any) -> Any:
    """A report as JSON values: fields by name, and of a distribution its mean, extremes, percentiles and histogram."""
    if isinstance(value, Distribution):
        return value.summary()
    if dataclasses.is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(name): to_json(entry) for name, entry in value.items()}
    return [to_json(entry) for entry in value] if isinstance(value, list | tuple) else value
