"""bert-jax embed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Annotated

import numpy as np
import pyarrow
import pyarrow.parquet
import tyro
from etils import epath

import bert_jax
from bert_jax.config.finetuning import Quoting
from bert_jax.data.windows import Long, Text
from bert_jax.errors import UserError
from bert_jax.inference import texts as text_files
from bert_jax.inference.texts import PAIR_SEPARATOR
from bert_jax.io import atomic
from bert_jax.models.sentence_embedding import Pooling
from bert_jax.training.logging import progress_bar


@dataclasses.dataclass(frozen=True)
class Embed:
    """Compute one vector for each text.

    TEXT is a file, - for standard input, or a text itself; several may be given. A text file (.txt) has one text on each line; the
    two texts of a pair have " ||| " between them; .csv, .tsv, .json, .jsonl and .parquet have columns or fields; each but .parquet
    also with .gz. There is one vector for each text, in the same order, empty lines included. All vectors are held in memory.

    The files of a model can say how a text becomes a vector, as those of sentence-transformers do; `bert-jax info MODEL` prints
    it. Otherwise the vector is the mean over all tokens. If a text has several windows, its mean and max are over the tokens of all
    windows, each token once, and its cls is the mean of the [CLS] states.

    Examples: bert-jax embed all-MiniLM-L6-v2 sentences.txt --out vectors.npy
              bert-jax embed all-MiniLM-L6-v2 "A man is eating food." "The weather is cold."
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Run directory, or a model of any format that `bert-jax convert` reads."""
    text: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT", help_behavior_hint="(required)")]
    """Files, - for standard input, or texts."""
    out: str | None = None
    """File to create: .npy (float32 [N, D]), .parquet or .jsonl (both with columns text and embedding).
    By default the lines of .jsonl are printed."""
    pooling: tuple[Pooling, ...] = ()
    """mean, max, mean_sqrt_len_tokens or weightedmean over all tokens, [CLS] and [SEP] included; cls or lasttoken, one state.
    Several are concatenated. By default as the files of the model say, else mean."""
    normalize: bool = False
    """Divide each vector by its Euclidean norm, whatever the files of the model say."""
    unnormalized: bool = False
    """Leave out the normalization that the files of the model describe."""
    long: Long | None = None
    """Texts that are too long: error, truncate, chunk (adjacent windows) or stride (windows that overlap by half).
    By default truncate where the files of the model give a length, else error."""
    sequence_length: int | None = None
    """Maximum tokens of a window, special tokens included.
    By default as the files of the model say, else the number of positions of the model."""
    prompt: str | None = None
    """Text to put before each text; an empty one overrides the default prompt of the model."""
    prompt_name: str | None = None
    """Name of a prompt of the model to put before each text."""
    field: tuple[str, ...] = ()
    """Column or field of the text, or those of the two texts of a pair; by default the one that is called text, sentence or so."""
    quoting: Quoting | None = None
    """Cells of .tsv and .csv: minimal, in quotes as CSV has them, or none; by default minimal for .csv, none for .tsv."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    options = tyro.cli(Embed, prog="bert-jax embed", args=arguments)
    if options.normalize and options.unnormalized:
        raise UserError("Choose --normalize or --unnormalized, not both.")
    if options.out is None:
        texts, vectors = _embed(options)
        for line in _json_lines(texts, vectors):
            print(line)
        return 0
    out = epath.Path(options.out)
    if out.suffix not in _WRITERS:
        raise UserError(f"{out} has none of the suffixes {', '.join(_WRITERS)}; name a file with one of them.")
    with atomic.new_path(out) as path:
        texts, vectors = _embed(options)
        _WRITERS[out.suffix](path, texts, vectors)
    print(f"{out}: {len(vectors):,} vectors of {vectors.shape[1]} numbers")
    return 0


def _embed(options: Embed) -> tuple[list[Text], np.ndarray]:
    texts = text_files.read(options.text, field=options.field, quoting=options.quoting)
    bert = bert_jax.load(options.model)
    with progress_bar("windows") as progress:
        vectors = bert.embed(
            texts,
            pooling=options.pooling or None,
            normalize=True if options.normalize else False if options.unnormalized else None,
            long=options.long,
            sequence_length=options.sequence_length,
            prompt=options.prompt,
            prompt_name=options.prompt_name,
            progress=progress,
        )
    return texts, vectors


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
        file.writelines(f"{line}\n" for line in _json_lines(texts, vectors))


def _json_lines(texts: list[Text], vectors: np.ndarray) -> Iterator[str]:
    for text, vector in zip(texts, vectors, strict=True):
        # Nine significant digits represent every float32 exactly.
        values = [float(f"{value:.9g}") for value in vector]
        yield json.dumps({"text": text, "embedding": values}, ensure_ascii=False)


_WRITERS: dict[str, Callable[[epath.Path, list[Text], np.ndarray], None]] = {
    ".npy": _write_npy,
    ".parquet": _write_parquet,
    ".jsonl": _write_jsonl,
}
