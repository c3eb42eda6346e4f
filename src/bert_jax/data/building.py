"""Building of a corpus: texts are read once, and tokenized in several processes, chunk by chunk.

A stopped build leaves its finished chunks in a directory ``.NAME.partial`` beside the corpus; the same build continues from them.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from typing import Any, NamedTuple

import filelock
import tensorflow_datasets as tfds
from etils import epath

from bert_jax import tokenizers
from bert_jax.data import chunks, joining, reading
from bert_jax.data.chunks import SPLITS, Chunk, Files, Writer
from bert_jax.data.corpus import PROVENANCE, VERSION, open_corpus
from bert_jax.data.duplicates import Map
from bert_jax.data.joining import Joined
from bert_jax.data.readers import Document, Input, StoredText
from bert_jax.data.reading import BuildOptions, Reader
from bert_jax.errors import RunError, UserError
from bert_jax.io import atomic
from bert_jax.tokenizers import Tokenizer

# A fork of this process could inherit locks of JAX's threads; the server of processes has imported what they need.
_CONTEXT = multiprocessing.get_context("forkserver")


class Done(NamedTuple):
    """What has been finished since the last call."""

    texts: int
    bytes: int
    """Of the files as they are stored."""


def build_corpus(
    inputs: Sequence[Input],
    out: epath.PathLike,
    tokenizer: Tokenizer,
    options: BuildOptions,
    *,
    workers: int | None = None,
    progress: Callable[[Done], None] = lambda done: None,
) -> dict[str, dict[str, int]]:
    """Tokenize files into a corpus, which appears under its name only when it is complete.

    A script that calls this needs ``if __name__ == "__main__":``, because the processes import it.

    Args:
      inputs: from [`find_inputs`][bert_jax.data.readers.find_inputs].
      out: directory to create.
      tokenizer: its files are stored with the corpus.
      options: how texts become documents.
      workers: processes that tokenize, where there is more than one chunk; None: one for each core. The corpus does not depend on
        it.
      progress: called when a chunk is finished.

    Returns:
      Number of documents, sentences, words and tokens of each split.

    Raises:
      UserError: ``out`` exists or is being built, an input cannot be read, or there are too few documents.
      RunError: a process was killed.
    """
    workers = workers or len(os.sched_getaffinity(0))
    plan = {
        "version": str(VERSION),
        "inputs": [_identity(found) for found in inputs],
        "options": asdict(options),
        "tokenizer": tokenizers.digest(tokenizer),
        "chunk": reading.CHUNK_CHARACTERS,
    }
    # What was read from standard input cannot be read again.
    continued = all(found.size is not None for found in inputs)
    with contextlib.ExitStack() as stack:
        build = stack.enter_context(_Build(out, tokenizer, options, plan if continued else None))
        apply: Map = map
        if options.duplicates == "near" and workers > 1:
            pool = stack.enter_context(concurrent.futures.ProcessPoolExecutor(workers, _CONTEXT))
            apply = functools.partial(pool.map, chunksize=64)
        return build.run(Reader(inputs, options, apply), workers, progress)


def write_corpus(
    documents: Iterable[Document], out: epath.PathLike, tokenizer: Tokenizer, *, held_out: float
) -> dict[str, dict[str, int]]:
    """Tokenize documents into a new corpus, in this process; see [`build_corpus`][bert_jax.data.building.build_corpus]."""
    options = BuildOptions(held_out=held_out)
    texts = (StoredText("\n".join(document), "lines") for document in documents)
    with _Build(out, tokenizer, options, None) as build:
        return build.run(Reader.of_texts(texts), 1, lambda done: None)


class _Build:
    """A build in progress, with its directory."""

    def __init__(self, out: epath.PathLike, tokenizer: Tokenizer, options: BuildOptions, plan: Mapping[str, Any] | None) -> None:
        self._out, self._tokenizer, self._options = epath.Path(out), tokenizer, options
        self._plan = json.dumps(plan, indent=2) if plan else None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> _Build:
        atomic.require_new(self._out)
        self._missing_parents = [parent for parent in self._out.parents if not parent.exists()]
        self._work = self._out.parent / f".{self._out.name}.partial"
        try:
            self._work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self._out} cannot be created: {error.strerror}.") from None
        lock = filelock.FileLock(self._work / "lock", timeout=0)
        try:
            self._stack.enter_context(lock)
        except filelock.Timeout:
            raise UserError(f"{self._out} is being built by another process; wait for it, or choose another name.") from None
        try:
            self._clear()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _clear(self) -> None:
        """Remove what another build has left."""
        self._files = self._work / "files"
        stored = self._work / "plan.json"
        if not self._plan or not stored.exists() or stored.read_text() != self._plan:
            for path in self._work.iterdir():
                if path.name != "lock":
                    path.rmtree() if path.is_dir() else path.unlink()
        if self._plan:
            stored.write_text(self._plan)
        self._files.mkdir(exist_ok=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        # A mistake in the input does not go away by itself; what was stopped from outside can continue.
        stopped = self._plan is not None and kind is not None and not issubclass(kind, UserError)
        keep = stopped and any(self._files.glob("*.npz"))
        self._stack.close()
        if not keep:
            shutil.rmtree(self._work, ignore_errors=True)
            if not self._out.exists():
                for parent in self._missing_parents:
                    with contextlib.suppress(OSError):
                        parent.rmdir()

    def run(self, reader: Reader, workers: int, progress: Callable[[Done], None]) -> dict[str, dict[str, int]]:
        sources = []
        for chunk, size in self._write(reader, workers):
            progress(Done(len(chunk.texts), size))
            sources.append(chunk.source)
        return self._finish(sources, reader)

    def _write(self, reader: Reader, workers: int) -> Iterator[tuple[Chunk, int]]:
        """Write the chunks that are missing, and yield each one when it is finished."""
        found = iter(reader)
        ahead = [chunk for chunk in (next(found, None), next(found, None)) if chunk]
        every = self._options.every
        if len(ahead) < 2 or workers == 1:
            writer = Writer(str(self._files), self._tokenizer, every)
            for chunk, size in itertools.chain(ahead, found):
                if not Files(self._files, chunk.number).statistics.exists():
                    writer.write(chunk)
                yield chunk, size
            return
        stop = _CONTEXT.Event()
        arguments = (str(self._files), self._tokenizer.files, every, stop)
        pool = concurrent.futures.ProcessPoolExecutor(workers, _CONTEXT, chunks.start_worker, arguments)
        pending: collections.deque[tuple[Chunk, int, concurrent.futures.Future[int] | None]] = collections.deque()
        try:
            for chunk, size in itertools.chain(ahead, found):
                done = Files(self._files, chunk.number).statistics.exists()
                pending.append((chunk, size, None if done else pool.submit(chunks.write_in_worker, chunk)))
                while len(pending) > workers + 1:
                    yield _result(*pending.popleft())
            while pending:
                yield _result(*pending.popleft())
        except BrokenProcessPool:
            raise RunError(
                "A process was killed, perhaps because memory ran out; run the same command with fewer --workers to continue."
            ) from None
        finally:
            # Without it, the processes would finish their chunks first.
            stop.set()
            pool.shutdown(cancel_futures=True)

    def _finish(self, sources: list[str], reader: Reader) -> dict[str, dict[str, int]]:
        """Join the chunks, which come from these sources, into a corpus and rename it to its final name."""
        files = [Files(self._files, number) for number in range(len(sources))]
        corpus = self._work / "corpus"
        corpus.mkdir(exist_ok=True)
        joined = {split: joining.join(files, split, corpus) for split in SPLITS}
        self._require_enough(sum(sizes.documents for found in joined.values() for sizes in found.chunks))
        tfds.folder_dataset.write_metadata(
            data_dir=str(corpus),
            features=chunks.features(),
            version=VERSION,
            split_infos=[joining.name_shards(files, split, found, corpus) for split, found in joined.items()],
            description="Tokenized documents: token ids, whether a token is the first of a word, tokens of each sentence.",
            check_data=False,
        )
        tokenizers.save(self._tokenizer, corpus)
        provenance: dict[str, Any] = {
            "format_version": 1,
            "sources": [
                {
                    "name": name,
                    "files": reader.files.get(name, []),
                    "counts": _counts(joined, [name == source for source in sources]),
                }
                for name in dict.fromkeys(sources)
            ],
            "options": asdict(self._options),
            "dropped_duplicates": reader.dropped,
            "counts": (sizes := _counts(joined, [True] * len(sources))),
        }
        tokens = {source["name"]: source["counts"]["train"]["tokens"] for source in provenance["sources"]}
        provenance["mix"] = self._options.weights(tokens)
        (corpus / PROVENANCE).write_text(json.dumps(provenance))
        # The digest depends on the mixture, which is opened with the rest.
        opened = open_corpus(corpus)
        provenance |= {"tokenizer": tokenizers.digest(opened.tokenizer), "digest": opened.compute_digest()}
        (corpus / PROVENANCE).write_text(json.dumps(provenance, indent=2))
        corpus.rename(self._out)
        return sizes

    def _require_enough(self, documents: int) -> None:
        required = 2 * self._options.every
        if documents < required:
            raise UserError(
                f"The text has {documents} document{'s' * (documents != 1)}, but a held-out fraction of {self._options.held_out} "
                f"needs at least {required}; separate documents by a blank line or raise the fraction."
            )


def _counts(joined: Mapping[str, Joined], chosen: Sequence[bool]) -> dict[str, dict[str, int]]:
    """Documents, sentences, words and tokens of some chunks, for each split."""
    return {split: joining.total(itertools.compress(found.chunks, chosen))._asdict() for split, found in joined.items()}


def _result(chunk: Chunk, size: int, future: concurrent.futures.Future[int] | None) -> tuple[Chunk, int]:
    if future:
        future.result()
    return chunk, size


def _identity(found: Input) -> list[Any]:
    changed = epath.Path(found.path).stat().mtime if found.size is not None else None
    return [found.path, found.size, changed]
