"""Building of a corpus on Apache Beam (the extra ``beam``), on as many machines as its runner has.

A first pipeline counts the texts of the inputs, so that each chunk knows its place; a second one reads them again, tokenizes the
chunks and writes each as a shard. The same [`Writer`][bert_jax.data.chunks.Writer] writes them as on one machine, so no document
travels between machines after it was tokenized, and a stopped build continues.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam
from apache_beam.options.pipeline_options import PipelineOptions
from etils import epath

from bert_jax import tokenizers
from bert_jax.data import build_directory, reading
from bert_jax.data.build_directory import BuildDirectory
from bert_jax.data.chunks import Chunk, Files, Writer
from bert_jax.data.readers import Input
from bert_jax.data.reading import BuildOptions, Reader
from bert_jax.errors import RunError, UserError
from bert_jax.io import atomic
from bert_jax.io.lines import STANDARD_INPUT
from bert_jax.tokenizers import Tokenizer


class _Group(NamedTuple):
    """Consecutive inputs of one source, which one worker reads."""

    number: int
    inputs: tuple[Input, ...]
    options: BuildOptions
    """With the language of the source."""
    first_chunk: int = 0
    first_text: int = 0

    @property
    def source(self) -> str:
        return self.inputs[0].source

    def survey(self, directory: epath.Path) -> epath.Path:
        """The file with the number of texts of each chunk, and with path, size and hash of each input."""
        return directory / f"{self.number:06}.json"


def build_corpus(
    inputs: Sequence[Input], out: epath.PathLike, tokenizer: Tokenizer, options: BuildOptions, arguments: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Tokenize files into the corpus that [`building.build_corpus`][bert_jax.data.building.build_corpus] makes of them.

    Args:
      inputs: from [`find_inputs`][bert_jax.data.readers.find_inputs], which every worker can read.
      out: directory to create, beside which every worker can write.
      tokenizer: its files are stored with the corpus.
      options: how texts become documents; duplicates are kept.
      arguments: Beam's options, such as ``--runner=FlinkRunner``.

    Returns:
      Number of documents, sentences, words and tokens of each split.

    Raises:
      UserError: texts come from standard input, duplicates are to be dropped, or as on one machine.
      RunError: a pipeline failed.
    """
    if any(found.path == STANDARD_INPUT for found in inputs):
        raise UserError("Several machines cannot read standard input; store the text in a file.")
    if options.duplicates != "keep":
        raise UserError("--duplicates compares all documents, on one machine; leave out --beam or --duplicates.")
    Reader(inputs, options)  # checks the options against the sources
    plan = build_directory.plan_of(inputs, tokenizer, options, reading.CHUNK_CHARACTERS)
    with BuildDirectory(out, tokenizer, options, plan and plan | {"engine": "beam"}) as directory:
        files = directory.files
        groups = _groups(inputs, options)
        if missing := [group for group in groups if not group.survey(files).exists()]:
            with _pipeline(arguments) as pipeline:
                pipeline | "Groups" >> apache_beam.Create(missing) | "Survey" >> apache_beam.Map(_survey, str(files))
        surveys = [json.loads(group.survey(files).read_text()) for group in groups]
        for survey in surveys:
            if "error" in survey:
                raise UserError(survey["error"])
        if missing := _missing(groups, surveys, files):
            with _pipeline(arguments) as pipeline:
                (
                    pipeline
                    | "Groups" >> apache_beam.Create(missing)
                    | "Read" >> apache_beam.FlatMap(_read, str(files)).with_output_types(Any)
                    | "Spread" >> apache_beam.Reshuffle()
                    | "Write" >> apache_beam.ParDo(_Write(str(files), tokenizer.files, options.every))
                )
        sources = [group.source for group, survey in zip(groups, surveys, strict=True) for _ in survey["texts"]]
        described: dict[str, list[dict[str, Any]]] = {}
        for group, survey in zip(groups, surveys, strict=True):
            described.setdefault(group.source, []).extend(survey["files"])
        return directory.finish(sources, described, 0)


@contextlib.contextmanager
def _pipeline(arguments: Sequence[str]) -> Iterator[apache_beam.Pipeline]:
    """A pipeline that runs when the block ends."""
    try:
        pipeline = apache_beam.Pipeline(options=PipelineOptions([*arguments]))
    except ValueError as error:
        raise UserError(f"Beam refuses its options: {error}") from None
    try:
        with pipeline:
            yield pipeline
    except Exception as error:  # each runner has its own
        details = getattr(error, "details", None)  # of an RPC
        lines = str(details() if callable(details) else error).strip().splitlines() or [type(error).__name__]
        reason = lines[-1].removesuffix(".")
        raise RunError(f"Beam's pipeline failed: {reason}; the same command continues after the last complete shard.") from error


def _groups(inputs: Sequence[Input], options: BuildOptions) -> list[_Group]:
    """Inputs that are large enough together for a chunk or more."""
    languages = options.languages()
    found: list[list[Input]] = []
    size = 0
    for item in inputs:
        if not found or item.source != found[-1][0].source or size >= reading.CHUNK_CHARACTERS:
            found.append([])
            size = 0
        found[-1].append(item)
        size += reading.CHUNK_CHARACTERS if item.size is None else item.size
    plain = dataclasses.replace(options, mix=None, smoothing=None)
    return [
        _Group(number, tuple(items), dataclasses.replace(plain, language=languages.get(items[0].source, languages[""])))
        for number, items in enumerate(found)
    ]


def _missing(groups: Sequence[_Group], surveys: Sequence[dict[str, Any]], directory: epath.Path) -> list[_Group]:
    """The groups with chunks that are not written yet, and the places of their first chunks."""
    missing = []
    chunk = text = 0
    for group, survey in zip(groups, surveys, strict=True):
        after = chunk + len(survey["texts"])
        if not all(Files(directory, number).statistics.exists() for number in range(chunk, after)):
            missing.append(group._replace(first_chunk=chunk, first_text=text))
        chunk, text = after, text + sum(survey["texts"])
    return missing


def _survey(group: _Group, directory: str) -> None:
    """Write the survey of a group."""
    reader = Reader(group.inputs, group.options)
    try:
        survey: dict[str, Any] = {"texts": [len(chunk.texts) for chunk, _ in reader], "files": reader.files[group.source]}
    except UserError as error:
        # Each runner would wrap the exception in its own.
        survey = {"error": str(error)}
    with atomic.replaced_path(group.survey(epath.Path(directory))) as part:
        part.write_text(json.dumps(survey))


def _read(group: _Group, directory: str) -> Iterator[Chunk]:
    """Read the chunks of a group that are not written yet."""
    for chunk, _ in Reader(group.inputs, group.options):
        number = group.first_chunk + chunk.number
        if not Files(epath.Path(directory), number).statistics.exists():
            yield chunk._replace(number=number, first=group.first_text + chunk.first)


class _Write(apache_beam.DoFn):
    """Writes chunks."""

    def __init__(self, directory: str, files: dict[str, bytes], every: int) -> None:
        self._directory, self._files, self._every = directory, files, every

    def setup(self) -> None:
        # Beam decides how many cores are used.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._writer = Writer(self._directory, tokenizers.from_files(self._files), self._every)

    def process(self, chunk: Chunk) -> None:
        self._writer.write(chunk)
