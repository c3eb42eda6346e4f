"""bert-jax features."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import tyro

import bert_jax
from bert_jax.data.readers import read_texts
from bert_jax.data.windows import Long
from bert_jax.io import atomic
from bert_jax.training.logging import progress_bar


@dataclasses.dataclass(frozen=True)
class Features:
    """Write the states of every piece of each text, in the format of the original's extract_features.py.

    Each line is an object with linex_index, the number of the text, and features: for each piece its token and its
    layers, each with index and values, rounded to six places.

    Example: bert-jax features bert-base-uncased sentences.txt --out features.jsonl --layers -1 -2
    """

    model: Annotated[str, tyro.conf.Positional]
    """Run directory, or a model of any format that `bert-jax convert` reads."""
    text: Annotated[str, tyro.conf.Positional]
    """Text file (a text a line, " ||| " between the two of a pair) or .jsonl, also .gz."""
    out: str
    """File of JSON lines to make."""
    layers: tuple[int, ...] = (-1, -2, -3, -4)
    """Layers: -1 is the last, 0 the first."""
    long: Long = "error"
    """What to do with texts that are too long: error; truncate, as the original does; chunk, windows that touch; stride,
    windows that overlap by half, of which each piece is taken from the one where it stands deeper."""
    limit: int | None = None
    """Most pieces in a window, special ones counted (the original's max_seq_length, 128 there); as many as the model has
    positions where not given."""
    field: str = "text"
    """Name of the text, or of the list of two, in .jsonl records."""


def main(arguments: list[str]) -> int:
    options = tyro.cli(Features, prog="bert-jax features", args=arguments)
    with atomic.new(options.out) as path:
        texts = read_texts(options.text, field=options.field)
        bert = bert_jax.load(options.model)
        with progress_bar("windows") as progress, path.open("w") as file:
            found = bert.features(texts, layers=options.layers, long=options.long, limit=options.limit, progress=progress)
            for number, (pieces, values) in enumerate(found):
                rounded = values.astype("float64").round(6)
                features = [
                    {
                        "token": piece,
                        "layers": [
                            {"index": layer, "values": rounded[row, place].tolist()} for row, layer in enumerate(options.layers)
                        ],
                    }
                    for place, piece in enumerate(pieces)
                ]
                file.write(json.dumps({"linex_index": number, "features": features}, ensure_ascii=False) + "\n")
    print(f"{options.out}: {len(texts):,} texts")
    return 0
