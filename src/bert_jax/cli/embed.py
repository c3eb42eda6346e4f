"""bert-jax embed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Annotated

import numpy as np
import pyarrow
import pyarrow.parquet
import tyro
from etils import epath

import bert_jax
from bert_jax.data.readers import PAIR_SEPARATOR, read_texts
from bert_jax.data.windows import Long, Text
from bert_jax.errors import UserError
from bert_jax.inference.bert import Pooling
from bert_jax.io import atomic
from bert_jax.training.logging import progress_bar


@dataclasses.dataclass(frozen=True)
class Embed:
    """Compute one vector for each text.

    A text file has one text per line, with " ||| " between the two texts of a pair; .jsonl has one record per line. There is one
    vector for each text, in the same order, empty lines included. All vectors are held in memory. If a text has several windows,
    its mean and max are over the tokens of all windows, each token once, and its cls is the mean of the [CLS] states.

    Example: bert-jax embed all-MiniLM-L6-v2 sentences.txt --out vectors.npy --normalize
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Run directory, or a model of any format that `bert-jax convert` reads."""
    text: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")]
    """Text file or .jsonl; also .gz."""
    out: str
    """File to create: .npy (float32 [N, D]), .parquet or .jsonl (both with columns text and embedding)."""
    pooling: Pooling = "mean"
    """mean or max over all tokens, [CLS] and [SEP] included, or cls, the state of [CLS]."""
    normalize: bool = False
    """Divide each vector by its Euclidean norm."""
    long: Long = "error"
    """Texts that are too long: error, truncate, chunk (adjacent windows) or stride (windows that overlap by half)."""
    sequence_length: int | None = None
    """Maximum tokens of a window, special tokens included; by default the number of positions of the model."""
    field: str = "text"
    """Field of .jsonl records that contains the text, or the list of two texts."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    options = tyro.cli(Embed, prog="bert-jax embed", args=arguments)
    out = epath.Path(options.out)
    if out.suffix not in _WRITERS:
        raise UserError(f"{out} has none of the suffixes {', '.join(_WRITERS)}; name a file with one of them.")
    with atomic.new_path(out) as path:
        texts = read_texts(options.text, field=options.field)
        bert = bert_jax.load(options.model)
        with progress_bar("windows") as progress:
            vectors = bert.embed(
                texts,
                pooling=options.pooling,
                normalize=options.normalize,
                long=options.long,
                sequence_length=options.sequence_length,
                progress=progress,
            )
        _WRITERS[out.suffix](path, texts, vectors)
    print(f"{out}: {len(vectors):,} vectors of {vectors.shape[1]} numbers")
    return 0


def _write_npy(path: epath.Path, texts: list[Text], vectors: np.ndarray) -> None:
    del texts
    with path.open("wb") as file:
        np.save(file, vectors)


def _write_parquet(path: epath.Path, texts: list[Text], vectors: np.ndarray) -> None:
    lines = [text if isinstance(text, str) else PAIR_SEPARATOR.join(text) for text in texts]
    rows = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.reshape(-1)), vectors.shape[1])
    with path.open("wb") as file:
        pyarrow.parquet.write_table(pyarrow.table({"text": lines, "embedding": rows}), file)


def _write_jsonl(path: epath.Path, texts: list[Text], vectors: np.ndarray) -> None:
    with path.open("w") as file:
        for text, vector in zip(texts, vectors, strict=True):
            # Nine significant digits represent every float32 exactly.
            values = [float(f"{value:.9g}") for value in vector]
            file.write(json.dumps({"text": text, "embedding": values}, ensure_ascii=False) + "\n")


_WRITERS: dict[str, Callable[[epath.Path, list[Text], np.ndarray], None]] = {
    ".npy": _write_npy,
    ".parquet": _write_parquet,
    ".jsonl": _write_jsonl,
}
