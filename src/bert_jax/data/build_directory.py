"""The directory ``.NAME.partial`` of a corpus that is being built: its finished shards, and the step that joins them.

On an object store the chunks are there, too, so that workers on any machine add to them. What joins them is made locally; the
shards are copied by the store itself, and the file that makes the corpus one comes last.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import filelock
import tensorflow_datasets as tfds
from etils import epath

from bert_jax import tokenizers
from bert_jax.data import chunks, joining
from bert_jax.data import corpus as corpora
from bert_jax.data.chunks import SPLITS, Files
from bert_jax.data.corpus import DATASET_INFO, PROVENANCE, VERSION
from bert_jax.data.joining import Joined
from bert_jax.data.readers import Input
from bert_jax.data.reading import BuildOptions
from bert_jax.errors import UserError
from bert_jax.io import atomic, lease, remote
from bert_jax.tokenizers import Tokenizer

_PUBLISHING = "publishing"
"""File in the directory of a build that has begun to copy to the final name, on an object store."""


class BuildDirectory:
    """A context manager that creates, locks and removes the directory.

    When the block is left by an error that does not come from the input, the directory stays, and a build with the same plan
    continues in it.

    Args:
      out: the corpus to create.
      tokenizer: its files are stored with the corpus.
      options: how texts become documents.
      plan: from [`plan_of`][bert_jax.data.build_directory.plan_of].

    Raises:
      UserError: ``out`` exists, is being built, or cannot be created.
    """

    def __init__(self, out: epath.PathLike, tokenizer: Tokenizer, options: BuildOptions, plan: Mapping[str, Any] | None) -> None:
        self._out, self._tokenizer, self._options = remote.open_path(out), tokenizer, options
        self._plan = json.dumps(plan, indent=2) if plan else None
        self._work = self._out.parent / f".{self._out.name}.partial"
        # A process that has lost its lease must not write among the files of another plan.
        suffix = hashlib.sha256((self._plan or os.urandom(16).hex()).encode()).hexdigest()[:16]
        self.files = self._work / (f"files-{suffix}" if remote.is_remote(out) else "files")
        """Where [`Files`][bert_jax.data.chunks.Files] of the chunks are written."""
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> BuildDirectory:
        if remote.is_remote(self._out):
            return self._enter_remote()
        atomic.require_new(self._out)
        self._missing_parents = [parent for parent in self._out.parents if not parent.exists()]
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

    def _enter_remote(self) -> BuildDirectory:
        self._lease: lease.Lease = self._stack.enter_context(lease.held(self._work, str(self._out)))
        try:
            publishing = (self._work / _PUBLISHING).exists()
            if (self._out / DATASET_INFO).exists() or not publishing:
                atomic.require_new(self._out)
            if publishing and (self._work / "plan.json").read_text() != self._plan:
                self._out.rmtree(missing_ok=True)
            self._clear()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _clear(self) -> None:
        """Remove what another build has left."""
        stored = self._work / "plan.json"
        if not self._plan or not stored.exists() or stored.read_text() != self._plan:
            self._remove_content()
        if self._plan:
            stored.write_text(self._plan)
        self.files.mkdir(exist_ok=True)
        for path in self.files.glob(f"{chunks.UNFINISHED}*"):
            path.rmtree()

    def _remove_content(self) -> None:
        for path in self._work.iterdir():
            if path.name != "lock" and not lease.is_lease(path):
                path.rmtree() if path.is_dir() else path.unlink()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        # A mistake in the input does not go away by itself; what was stopped from outside can continue.
        stopped = self._plan is not None and kind is not None and not issubclass(kind, UserError)
        keep = stopped and any(self.files.glob("*.npz"))
        if remote.is_remote(self._out):
            if not keep:
                self._remove_content()
            self._stack.close()
            return
        self._stack.close()
        if not keep:
            shutil.rmtree(self._work, ignore_errors=True)
            if not self._out.exists():
                for parent in self._missing_parents:
                    with contextlib.suppress(OSError):
                        parent.rmdir()

    def finish(
        self, sources: Sequence[str], described: Mapping[str, list[dict[str, Any]]], dropped: int
    ) -> dict[str, dict[str, int]]:
        """Join the chunks into a corpus and rename it to its final name.

        Args:
          sources: of each chunk.
          described: path, size and hash of the files of each source.
          dropped: number of repeated documents that were left out.

        Returns:
          Number of documents, sentences, words and tokens of each split.

        Raises:
          UserError: there are too few documents.
        """
        with self._local_files(len(sources)) as (files, corpus):
            joined = {split: joining.join(files, split, corpus) for split in SPLITS}
            self._require_enough(sum(sizes.documents for found in joined.values() for sizes in found.chunks))
            stored = [Files(self.files, number) for number in range(len(sources))]
            shards = [joining.name_shards(stored, split, found, corpus) for split, found in joined.items()]
            places = [place for found in shards for place in found.places]
            for source, target in places:
                if remote.is_remote(source):
                    # TFDS reads the names of shards from the directory.
                    target.touch()
                elif source.exists():
                    source.rename(target)
            tfds.folder_dataset.write_metadata(
                data_dir=str(corpus),
                features=chunks.features(),
                version=VERSION,
                split_infos=[found.info for found in shards],
                description="Tokenized documents: token ids, whether a token is the first of a word, tokens of each sentence.",
                check_data=False,
            )
            tokenizers.save(self._tokenizer, corpus)
            provenance = self._provenance(sources, described, dropped, joined)
            tokenizer = tokenizers.load(corpus)
            arrays = [values for found in joined.values() for values in (found.first, found.lengths, found.counts)]
            digest = corpora.compute_digest(tokenizer, arrays, corpora.mixture_of(provenance))
            provenance |= {"tokenizer": tokenizers.digest(tokenizer), "digest": digest}
            (corpus / PROVENANCE).write_text(json.dumps(provenance, indent=2))
            self._publish(corpus, places)
            counts: dict[str, dict[str, int]] = provenance["counts"]
            return counts

    @contextlib.contextmanager
    def _local_files(self, number: int) -> Iterator[tuple[list[Files], epath.Path]]:
        """The files of the chunks, of remote ones without their documents, and a directory for the corpus."""
        with contextlib.ExitStack() as stack:
            work, directory = self._work, self.files
            if remote.is_remote(work):
                work = epath.Path(stack.enter_context(tempfile.TemporaryDirectory()))
                directory = work / "files"
                directory.mkdir()
                remote.download(self.files, directory, suffix=".npz")
            (work / "corpus").mkdir(exist_ok=True)
            yield [Files(directory, chunk) for chunk in range(number)], work / "corpus"

    def _publish(self, corpus: epath.Path, places: Sequence[tuple[epath.Path, epath.Path]]) -> None:
        """Bring the corpus to its final name; on an object store, where that was stopped, continue."""
        if not remote.is_remote(self._out):
            corpus.rename(self._out)
            return
        for _, target in places:
            target.unlink()
        self._lease.check()
        (self._work / _PUBLISHING).write_text("")
        remote.copy([(source, self._out / target.name) for source, target in places])
        self._lease.check()
        remote.upload(corpus, self._out, last=lambda name: name == DATASET_INFO)

    def _provenance(
        self,
        sources: Sequence[str],
        described: Mapping[str, list[dict[str, Any]]],
        dropped: int,
        joined: Mapping[str, Joined],
    ) -> dict[str, Any]:
        provenance: dict[str, Any] = {
            "format_version": 1,
            "sources": [
                {
                    "name": name,
                    "files": described.get(name, []),
                    "counts": _counts(joined, [name == source for source in sources]),
                }
                for name in dict.fromkeys(sources)
            ],
            "options": asdict(self._options),
            "dropped_duplicates": dropped,
            "counts": _counts(joined, [True] * len(sources)),
        }
        tokens = {source["name"]: source["counts"]["train"]["tokens"] for source in provenance["sources"]}
        return provenance | {"mix": self._options.weights(tokens)}

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


def plan_of(inputs: Sequence[Input], tokenizer: Tokenizer, options: BuildOptions, chunk: int) -> dict[str, Any] | None:
    """What a build must share with a stopped one to continue it; None where it cannot be continued.

    Args:
      inputs: what is read.
      tokenizer: tokenizes it.
      options: how texts become documents.
      chunk: characters of a chunk.
    """
    # What was read from standard input cannot be read again.
    if any(found.size is None for found in inputs):
        return None
    return {
        "version": str(VERSION),
        "inputs": [[found.path, found.size, remote.version(found.path)] for found in inputs],
        "options": asdict(options),
        "tokenizer": tokenizers.digest(tokenizer),
        "chunk": chunk,
    }
