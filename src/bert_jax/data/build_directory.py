"""The directory ``.NAME.partial`` of a corpus that is being built: its finished shards, and the step that joins them."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import filelock
import tensorflow_datasets as tfds
from etils import epath

from bert_jax import tokenizers
from bert_jax.data import chunks, joining
from bert_jax.data.chunks import SPLITS, Files
from bert_jax.data.corpus import PROVENANCE, VERSION, open_corpus
from bert_jax.data.joining import Joined
from bert_jax.data.readers import Input
from bert_jax.data.reading import BuildOptions
from bert_jax.errors import UserError
from bert_jax.io import atomic
from bert_jax.tokenizers import Tokenizer


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
        self._out, self._tokenizer, self._options = epath.Path(out), tokenizer, options
        self._plan = json.dumps(plan, indent=2) if plan else None
        self._work = self._out.parent / f".{self._out.name}.partial"
        self.files = self._work / "files"
        """Where [`Files`][bert_jax.data.chunks.Files] of the chunks are written."""
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> BuildDirectory:
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

    def _clear(self) -> None:
        """Remove what another build has left."""
        stored = self._work / "plan.json"
        if not self._plan or not stored.exists() or stored.read_text() != self._plan:
            for path in self._work.iterdir():
                if path.name != "lock":
                    path.rmtree() if path.is_dir() else path.unlink()
        if self._plan:
            stored.write_text(self._plan)
        self.files.mkdir(exist_ok=True)
        for path in self.files.glob(f"{chunks.UNFINISHED}*"):
            path.rmtree()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        # A mistake in the input does not go away by itself; what was stopped from outside can continue.
        stopped = self._plan is not None and kind is not None and not issubclass(kind, UserError)
        keep = stopped and any(self.files.glob("*.npz"))
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
        files = [Files(self.files, number) for number in range(len(sources))]
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
                    "files": described.get(name, []),
                    "counts": _counts(joined, [name == source for source in sources]),
                }
                for name in dict.fromkeys(sources)
            ],
            "options": asdict(self._options),
            "dropped_duplicates": dropped,
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
        "inputs": [[found.path, found.size, epath.Path(found.path).stat().mtime] for found in inputs],
        "options": asdict(options),
        "tokenizer": tokenizers.digest(tokenizer),
        "chunk": chunk,
    }
