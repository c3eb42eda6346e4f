"""bert-jax features."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import numpy as np
import tyro

import bert_jax
from bert_jax.config.finetuning import Quoting
from bert_jax.data.windows import Long
from bert_jax.inference import texts as text_files
from bert_jax.io import atomic
from bert_jax.training.logging import progress_bar

_DECIMALS = 6


@dataclasses.dataclass(frozen=True)
class Features:
    """Write the hidden states of every token of each text, in the format of the original's extract_features.py.

    Each line is an object with linex_index, the index of the text, and features: an object for each token with token and layers,
    of which each has index and values, rounded to six decimals. With --long stride each token is taken from the window in which it
    has more context. The options of the original are --long truncate --sequence-length 128.

    Example: bert-jax features bert-base-uncased sentences.txt --out features.jsonl --layers -1 -2
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Run directory, or a model of any format that `bert-jax convert` reads."""
    text: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT", help_behavior_hint="(required)")]
    """Files of any format that `bert-jax embed` reads, - for standard input, or texts."""
    out: str
    """JSON Lines file to create."""
    layers: tuple[int, ...] = (-1, -2, -3, -4)
    """Layers: 0 is the first, -1 the last."""
    long: Long = "error"
    """Texts that are too long: error, truncate, chunk (adjacent windows) or stride (windows that overlap by half)."""
    sequence_length: int | None = None
    """Maximum tokens of a window, special tokens included; by default the number of positions of the model."""
    field: tuple[str, ...] = ()
    """Column or field of the text, or those of the two texts of a pair; by default the one that is called text, sentence or so."""
    quoting: Quoting | None = None
    """Cells of .tsv and .csv: minimal, in quotes as CSV has them, or none; by default minimal for .csv, none for .tsv."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    options = tyro.cli(Features, prog="bert-jax features", args=arguments)
    with atomic.new_path(options.out) as path:
        texts = text_files.read(options.text, field=options.field, quoting=options.quoting)
        bert = bert_jax.load(options.model)
        with progress_bar("windows") as progress, path.open("w") as file:
            features = bert.features(
                texts,
                layers=options.layers,
                long=options.long,
                sequence_length=options.sequence_length,
                progress=progress,
            )
            for index, (tokens, values) in enumerate(features):
                record = {"linex_index": index, "features": _token_records(tokens, values, options.layers)}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    print(f"{options.out}: {len(texts):,} texts")
    return 0


def _token_records(tokens: list[str], values: np.ndarray, layers: tuple[int, ...]) -> list[dict[str, object]]:
    """Return the features of a text; ``values`` are float32 [layers, N, D]."""
    rounded = values.astype("float64").round(_DECIMALS)
    return [
        {
            "token": token,
            "layers": [{"index": layer, "values": rounded[row, column].tolist()} for row, layer in enumerate(layers)],
        }
        for column, token in enumerate(tokens)
    ]
