"""Precision, recall and F1 of named entities in the schemes IOBES and BILOU, as seqeval's strict mode computes them."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from bert_jax.errors import UserError
from bert_jax.tasks.metrics.entities import rates

Scheme = Literal["iobes", "bilou"]
"""Schemes with a prefix for the last word of an entity, and one for an entity of one word."""
_LAST: dict[Scheme, str] = {"iobes": "E", "bilou": "L"}
_SINGLE: dict[Scheme, str] = {"iobes": "S", "bilou": "U"}


def entities(tags: Sequence[str], scheme: Scheme) -> Iterator[tuple[int, int, str]]:
    """Yield first word, end and type of each entity of a sentence; tags that form none are passed over.

    Examples:
      >>> list(entities(["B-LOC", "E-LOC", "S-PER", "I-PER"], "iobes"))
      [(0, 2, 'LOC'), (2, 3, 'PER')]
    """
    start, kind = -1, ""
    for index, tag in enumerate(tags):
        prefix, _, name = tag.partition("-")
        if prefix == _SINGLE[scheme]:
            yield index, index + 1, name
        elif prefix == _LAST[scheme] and start >= 0 and name == kind:
            yield start, index + 1, name
        elif prefix == "I" and start >= 0 and name == kind:
            continue
        start, kind = (index, name) if prefix == "B" else (-1, "")


def score(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], scheme: Scheme) -> dict[str, Any]:
    """Scores of predicted tags; an entity is right if its words and its type are right.

    Args:
      gold: the right tags of each sentence.
      predicted: the predicted tags of each sentence.
      scheme: scheme of both.

    Returns:
      ``precision``, ``recall`` and ``f1`` of all entities, and ``accuracy`` of tags, from 0 to 1; 0 if there is nothing to count.

    Raises:
      UserError: there are other numbers of tags in ``predicted`` than in ``gold``.

    Examples:
      >>> score([["S-LOC", "O", "S-PER"]], [["S-LOC", "O", "B-PER"]], "iobes")["recall"]
      0.5
    """
    if [*map(len, gold)] != [*map(len, predicted)]:
        raise UserError("The predicted tags are those of other sentences.")
    counts = collections.Counter[str]()
    for right_tags, guess_tags in zip(gold, predicted, strict=True):
        right, guess = (set(entities(tags, scheme)) for tags in (right_tags, guess_tags))
        counts.update(gold=len(right), predicted=len(guess), correct=len(right & guess))
        counts.update(tokens=len(right_tags), same=sum(map(str.__eq__, right_tags, guess_tags)))
    accuracy = counts["same"] / counts["tokens"] if counts["tokens"] else 0.0
    return rates(counts["gold"], counts["predicted"], counts["correct"]) | {"accuracy": accuracy}
