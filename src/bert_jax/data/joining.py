"""The files of all chunks as one TFDS data set: shards under their final names, and the arrays that examples are planned from."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from tensorflow_datasets.core import naming, splits

from bert_jax.data.chunks import Files

_NAME = "corpus"


class Sizes(NamedTuple):
    """How much text there is."""

    documents: int
    sentences: int
    words: int
    """Separated by white space."""
    tokens: int


def total(sizes: Iterable[Sizes]) -> Sizes:
    """Add sizes."""
    return Sizes(*map(sum, zip(*sizes, Sizes(0, 0, 0, 0), strict=True)))


class Joined(NamedTuple):
    """What is known of a split with D documents, N sentences and V tokens in the vocabulary."""

    first: np.ndarray
    """int64 [D + 1], index of the first sentence of each document."""
    lengths: np.ndarray
    """int32 [N], tokens of each sentence."""
    counts: np.ndarray
    """int64 [V], occurrences of each token."""
    bytes: int
    """Of the documents as they are stored."""
    chunks: list[Sizes]
    """Of each chunk."""


def join(files: Sequence[Files], split: str, out: epath.Path) -> Joined:
    """Write ``SPLIT.first.npy``, ``SPLIT.lengths.npy`` and ``SPLIT.counts.npy``, in the memory of one chunk.

    Args:
      files: the files of the chunks, in order.
      split: the split.
      out: the directory.
    """

    def each(name: str) -> Iterator[np.ndarray]:
        for chunk in files:
            with np.load(chunk.statistics) as arrays:
                yield arrays[f"{split}.{name}"]

    sizes, size = [], 0
    for sentences, lengths, counts, (words, stored) in zip(*map(each, ("sentences", "lengths", "counts", "sizes")), strict=True):
        sizes.append(Sizes(len(sentences), len(lengths), int(words), int(counts.sum())))
        size += int(stored)
    whole = total(sizes)
    first = np.lib.format.open_memmap(out / f"{split}.first.npy", "w+", np.int64, (whole.documents + 1,))
    lengths = np.lib.format.open_memmap(out / f"{split}.lengths.npy", "w+", np.int32, (whole.sentences,))
    place = 0
    for sentences in each("sentences"):
        np.cumsum(sentences, out=first[place + 1 : place + 1 + len(sentences)])
        first[place + 1 : place + 1 + len(sentences)] += first[place]
        place += len(sentences)
    place = 0
    for values in each("lengths"):
        lengths[place : place + len(values)] = values
        place += len(values)
    counts = functools.reduce(np.add, each("counts"))
    first.flush()
    lengths.flush()
    np.save(out / f"{split}.counts.npy", counts)
    return Joined(first, lengths, counts, size, sizes)


class Shards(NamedTuple):
    """The shards of a split."""

    info: splits.SplitInfo
    places: list[tuple[epath.Path, epath.Path]]
    """File with the documents of a chunk, and the place where TFDS looks for it."""


def name_shards(files: Sequence[Files], split: str, joined: Joined, out: epath.Path) -> Shards:
    """Name the documents of the chunks as shards of the corpus ``out``."""
    template = naming.ShardedFileTemplate(data_dir=out, dataset_name=_NAME, split=split, filetype_suffix="array_record")
    full = [(chunk, count) for chunk, count in zip(files, (sizes.documents for sizes in joined.chunks), strict=True) if count]
    places = [
        (chunk.documents(split), epath.Path(template.sharded_filepath(shard_index=shard, num_shards=len(full))))
        for shard, (chunk, _) in enumerate(full)
    ]
    info = splits.SplitInfo(
        name=split, shard_lengths=[count for _, count in full], num_bytes=joined.bytes, filename_template=template
    )
    return Shards(info, places)
