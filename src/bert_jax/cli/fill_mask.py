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
    """Print the most probable tokens for each [MASK] of a text, with their probabilities.

    With --long stride each [MASK] is taken from the window in which it has more context.

    Example: bert-jax fill-mask runs/quickstart "Paris is the [MASK] of France."
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Run directory, or a model of any format that `bert-jax convert` reads."""
    text: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")]
    """Text with one or more [MASK]."""
    top_k: int = 5
    """Number of tokens for each [MASK]."""
    long: Long = "error"
    """A text that is too long: error, truncate, chunk (adjacent windows) or stride (windows that overlap by half)."""
    json: bool = False
    """Print JSON: a list of {token, probability} for each [MASK]."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    options = tyro.cli(FillMask, prog="bert-jax fill-mask", args=arguments)
    predictions = bert_jax.load(options.model).fill_mask(options.text, top_k=options.top_k, long=options.long)
    if options.json:
        print(json.dumps([[prediction._asdict() for prediction in mask] for mask in predictions], ensure_ascii=False))
        return 0
    for number, mask in enumerate(predictions, 1):
        if len(predictions) > 1:
            print(f"[MASK] {number}")
        for prediction in mask:
            print(f"{prediction.probability:7.2%}  {prediction.token}")
    return 0
