"""Lengths of runs in words, tokens or epochs, and their conversion into steps."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

from bert_jax.errors import UserError

UNITS = ("words", "tokens", "epochs")
"""Units of length beside steps."""
_FACTORS = {"k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


class Rates(NamedTuple):
    """What a step of a run takes from its data, on average."""

    words: float
    """Words of text; those of documents that are used again count again."""
    tokens: float
    """Tokens, special tokens included."""
    epochs: float
    """Share of an epoch."""


def parse_amount(text: str | int | float, where: str) -> float:
    """Read a positive amount such as 500, "10k", "100M" or "1.5B".

    Raises:
      UserError: it is none.

    Examples:
      >>> parse_amount("1.5M", "train.words")
      1500000.0
    """
    factor = _FACTORS.get(text[-1:], 1.0) if isinstance(text, str) else 1.0
    digits = text[:-1] if isinstance(text, str) and factor != 1.0 else text
    try:
        amount = float(digits) * factor
    except ValueError:
        amount = math.nan
    if not 0 < amount < math.inf:
        raise UserError(f"{where} is {text}; it must be a positive number such as 500, 10k, 100M or 1.5B.")
    return amount


def parse_amounts(text: str, where: str) -> list[float]:
    """Read amounts that are separated by commas.

    Raises:
      UserError: one is not positive.

    Examples:
      >>> parse_amounts("1M, 2M", "train.save_at_words")
      [1000000.0, 2000000.0]
    """
    return [parse_amount(part.strip(), where) for part in text.split(",")]


def has_lengths(train: object) -> bool:
    """Whether a training config has a length or a point in another unit than steps."""
    return any(getattr(train, name) is not None for unit in UNITS for name in (unit, f"save_at_{unit}"))


def resolve(train: Any, rates: Rates) -> Any:
    """Convert the lengths of a [`TrainConfig`][bert_jax.TrainConfig] into its ``steps`` and ``save_at``.

    A run ends at the step that comes closest to its length, and saves at the first step that reaches a point. Points beyond
    the end are left out.

    Examples:
      >>> train = bert_jax.TrainConfig(words="1M", save_at_words="100k, 0.5M, 2M")
      >>> train = resolve(train, Rates(words=1000.0, tokens=1300.0, epochs=0.01))
      >>> train.steps, train.save_at
      (1000, (100, 500))
    """
    steps, points = train.steps, {*train.save_at}
    for unit in UNITS:
        rate, length, saves = getattr(rates, unit), getattr(train, unit), getattr(train, f"save_at_{unit}")
        if length is not None:
            steps = max(1, round(parse_amount(length, f"train.{unit}") / rate))
        if saves is not None:
            points |= {math.ceil(amount / rate) for amount in parse_amounts(saves, f"train.save_at_{unit}")}
    save_at = tuple(sorted(point for point in points if point <= steps))
    return dataclasses.replace(train, steps=steps, save_at=save_at)
