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
from bert_jax.data.readers import read_texts
from bert_jax.data.windows import Long, Text
from bert_jax.errors import UserError
from bert_jax.inference.bert import Pooling
from bert_jax.io import atomic
from bert_jax.training.logging import progress_bar


@dataclasses.dataclass(frozen=True)
class Embed:
    """Turn each text into one vector.

    A text file holds a text a line, " ||| " between the two texts of a pair; .jsonl holds records. The order and the
    number of vectors are those of the texts, empty lines included. All vectors are held in memory.

    Example: bert-jax embed all-MiniLM-L6-v2 sentences.txt --out vectors.npy --normalize
    """

    model: Annotated[str, tyro.conf.Positional]
    """Run directory, or a model of any format that `bert-jax convert` reads."""
    text: Annotated[str, tyro.conf.Positional]
    """Text file or .jsonl, also .gz."""
    out: str
    """File to make: .npy (float32 [N, D]), .parquet or .jsonl (each with columns text and embedding)."""
    pooling: Pooling = "mean"
    """mean or max over all pieces, [CLS] and [SEP] included; or cls. Of a text in several windows each piece counts
    once; cls is the mean of the windows' [CLS]."""
    normalize: bool = False
    """Divide by the Euclidean norm."""
    long: Long = "error"
    """What to do with texts that are too long: error; truncate; chunk, windows that touch; stride, windows that overlap
    by half."""
    limit: int | None = None
    """Most pieces in a window, special ones counted; as many as the model has positions where not given."""
    field: str = "text"
    """Name of the text, or of the list of two, in .jsonl records."""


def main(arguments: list[str]) -> int:
    options = tyro.cli(Embed, prog="bert-jax embed", args=arguments)
    out = epath.Path(options.out)
    if out.suffix not in _WRITERS:
        raise UserError(f"{out} has none of the endings {', '.join(_WRITERS)}.")
    with atomic.new(out) as path:
        texts = read_texts(options.text, field=options.field)
        bert = bert_jax.load(options.model)
        with progress_bar("windows") as progress:
            vectors = bert.embed(
                texts,
                pooling=options.pooling,
                normalize=options.normalize,
                long=options.long,
                limit=options.limit,
                progress=progress,
            )
        _WRITERS[out.suffix](path, texts, vectors)
    print(f"{out}: {len(vectors):,} vectors of {vectors.shape[1]} numbers")
    return 0


def _npy(path: epath.Path, texts: list[Text], vectors: np.ndarray) -> None:
    del texts
    with path.open("wb") as file:
        np.save(file, vectors)


def _parquet(path: epath.Path, texts: list[Text], vectors: np.ndarray) -> None:
    rows = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.reshape(-1)), vectors.shape[1])
    with path.open("wb") as file:
        pyarrow.parquet.write_table(pyarrow.table({"text": [_shown(text) for text in texts], "embedding": rows}), file)


def _jsonl(path: epath.Path, texts: list[Text], vectors: np.ndarray) -> None:
    with path.open("w") as file:
        for text, vector in zip(texts, vectors, strict=True):
            # Nine digits give a float32 back as it was.
            numbers = [float(f"{value:.9g}") for value in vector]
            file.write(json.dumps({"text": text, "embedding": numbers}, ensure_ascii=False) + "\n")


def _shown(text: Text) -> str:
    return text if isinstance(text, str) else " ||| ".join(text)


_WRITERS: dict[str, Callable[[epath.Path, list[Text], np.ndarray], None]] = {".npy": _npy, ".parquet": _parquet, ".jsonl": _jsonl}
