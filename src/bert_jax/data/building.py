"""Building of a corpus: texts are read once, and tokenized in several processes, chunk by chunk.

A stopped build leaves its finished chunks in a directory ``.NAME.partial`` beside the corpus; the same build continues from them.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import functools
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

from etils import epath

from bert_jax.data import build_directory, chunks, reading
from bert_jax.data.build_directory import BuildDirectory
from bert_jax.data.chunks import Files, Writer
from bert_jax.data.duplicates import Map
from bert_jax.data.readers import Document, Input, StoredText
from bert_jax.data.reading import BuildOptions, Reader
from bert_jax.errors import RunError
from bert_jax.tokenizers import Tokenizer

# A fork of this process could inherit locks of JAX's threads; the server of processes has imported what they need.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["bert_jax.data.chunks"])


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
    plan = build_directory.plan_of(inputs, tokenizer, options, reading.CHUNK_CHARACTERS)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(BuildDirectory(out, tokenizer, options, plan))
        apply: Map = map
        if options.duplicates == "near" and workers > 1:
            pool = stack.enter_context(concurrent.futures.ProcessPoolExecutor(workers, _CONTEXT))
            apply = functools.partial(pool.map, chunksize=64)
        return _run(directory, tokenizer, options, Reader(inputs, options, apply), workers, progress)


def write_corpus(
    documents: Iterable[Document], out: epath.PathLike, tokenizer: Tokenizer, *, held_out: float
) -> dict[str, dict[str, int]]:
    """Tokenize documents into a new corpus, in this process; see [`build_corpus`][bert_jax.data.building.build_corpus]."""
    options = BuildOptions(held_out=held_out)
    texts = (StoredText("\n".join(document), "lines") for document in documents)
    with BuildDirectory(out, tokenizer, options, None) as directory:
        return _run(directory, tokenizer, options, Reader.of_texts(texts), 1, lambda done: None)


def _run(
    directory: BuildDirectory,
    tokenizer: Tokenizer,
    options: BuildOptions,
    reader: Reader,
    workers: int,
    progress: Callable[[Done], None],
) -> dict[str, dict[str, int]]:
    sources = []
    for source, done in _write(directory.files, tokenizer, options.every, reader, workers):
        progress(done)
        sources.append(source)
    return directory.finish(sources, reader.files, reader.dropped)


def _write(directory: epath.Path, tokenizer: Tokenizer, every: int, reader: Reader, workers: int) -> Iterator[tuple[str, Done]]:
    """Write the chunks that are missing, and yield the source of each one when it is finished."""
    found = iter(reader)
    ahead = [chunk for chunk in (next(found, None), next(found, None)) if chunk]
    several, found = len(ahead) > 1, itertools.chain(ahead, found)
    # The texts of a chunk are freed as soon as it is written, or on its way to a worker.
    del ahead
    if not several or workers == 1:
        writer = Writer(str(directory), tokenizer, every)
        for chunk, size in found:
            if not Files(directory, chunk.number).statistics.exists():
                writer.write(chunk)
            source, done = chunk.source, Done(len(chunk.texts), size)
            del chunk
            yield source, done
        return
    stop = _CONTEXT.Event()
    arguments = (str(directory), tokenizer.files, every, stop)
    pool = concurrent.futures.ProcessPoolExecutor(workers, _CONTEXT, chunks.start_worker, arguments)
    pending: collections.deque[tuple[concurrent.futures.Future[int] | None, str, Done]] = collections.deque()
    try:
        for chunk, size in found:
            exists = Files(directory, chunk.number).statistics.exists()
            future = None if exists else pool.submit(chunks.write_in_worker, chunks.compress(chunk))
            pending.append((future, chunk.source, Done(len(chunk.texts), size)))
            del chunk
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


def _result(future: concurrent.futures.Future[int] | None, source: str, done: Done) -> tuple[str, Done]:
    if future:
        future.result()
    return source, done
