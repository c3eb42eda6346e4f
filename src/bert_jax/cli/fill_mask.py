"""bert-jax fill-mask."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import tyro

import bert_jax
from bert_jax.data.windows import Long


@dataclasses.dataclass(frozen=True)
class FillMask:
    """Print the likeliest pieces under each [MASK] of a text, with their probabilities.

    Example: bert-jax fill-mask runs/quickstart "Paris is the [MASK] of France."
    """

    model: Annotated[str, tyro.conf.Positional]
    """Run directory, or a model of any format that `bert-jax convert` reads."""
    text: Annotated[str, tyro.conf.Positional]
    """Text with one or more [MASK]."""
    top_k: int = 5
    """Pieces to print for each [MASK]."""
    long: Long = "error"
    """What to do with a text that is too long: error; truncate; chunk, windows that touch; stride, windows that overlap
    by half, of which each [MASK] is taken from the one where it stands deeper."""
    json: bool = False
    """Print JSON: for each [MASK] a list of {piece, probability}."""


def main(arguments: list[str]) -> int:
    options = tyro.cli(FillMask, prog="bert-jax fill-mask", args=arguments)
    guesses = bert_jax.load(options.model).fill_mask(options.text, top_k=options.top_k, long=options.long)
    if options.json:
        print(json.dumps([[guess._asdict() for guess in place] for place in guesses], ensure_ascii=False))
        return 0
    for number, place in enumerate(guesses, 1):
        if len(guesses) > 1:
            print(f"[MASK] {number}")
        for guess in place:
            print(f"{guess.probability:7.2%}  {guess.piece}")
    return 0
