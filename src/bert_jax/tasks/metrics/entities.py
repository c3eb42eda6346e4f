"""Precision, recall and F1 of named entities, as the CoNLL script ``conlleval`` (2004-01-26) computes them."""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Sequence
from typing import Any

from bert_jax.errors import UserError

# Prefixes of two consecutive words between which an entity ends, or begins, whatever their types. E ends an entity, but not
# before B. The script does not handle the prefixes S, L and U: such entities begin and end where types change.
_ENDS = frozenset({("B", "B"), ("B", "O"), ("I", "B"), ("I", "O"), ("E", "E"), ("E", "I"), ("E", "O")})
_STARTS = frozenset({("B", "B"), ("I", "B"), ("O", "B"), ("O", "I"), ("E", "E"), ("E", "I"), ("O", "E")})
_SINGLE = ("[", "]")
_OUTSIDE = ("O", ".")


def score(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Scores of predicted tags, as ``conlleval`` prints them for a file with an empty line after each sentence.

    An entity is right if its first word, its last word and its type are right. The rules of the script accept any sequence of
    tags: in IOB1 and IOB2, B begins an entity, and so does I after O or after another type. The type is the part of a tag after
    its first hyphen. The script has no rules for S, L and U, nor for B after E: ``E-X B-X`` and ``S-X S-X`` are one entity in
    the script and here, but two in seqeval; use IOB2 instead. A type named 0 is a type here, but not in the script.

    Args:
      gold: the right tags of each sentence.
      predicted: the predicted tags of each sentence.

    Returns:
      ``precision``, ``recall`` and ``f1`` of all entities and ``accuracy`` of tags, all from 0 to 1, and 0 if there is nothing to
      count; ``by_type``: for each type, in order, its ``precision``, ``recall`` and ``f1``, and the numbers of entities in
      ``gold``, of ``predicted`` entities, and of ``correct`` ones among these.

    Raises:
      UserError: a sentence has another number of tags in ``predicted`` than in ``gold``.

    Examples:
      >>> score([["B-LOC", "O", "B-PER"]], [["B-LOC", "O", "O"]])["recall"]
      0.5
    """
    if len(gold) != len(predicted):
        raise UserError(f"Tags of {len(predicted):,} sentences are given for {len(gold):,} sentences.")
    for index, (right, guess) in enumerate(zip(gold, predicted, strict=True), 1):
        if len(right) != len(guess):
            raise UserError(f"Sentence {index} has {len(right)} words; {len(guess)} tags are given for it.")
    counts = _count(gold, predicted)
    totals = [sum(count.values()) for count in counts]
    tokens = sum(map(len, gold))
    same = sum(
        _split(right) == _split(guess) for pair in zip(gold, predicted, strict=True) for right, guess in zip(*pair, strict=True)
    )
    by_type = {}
    for kind in sorted({*counts[0], *counts[1]}):
        in_gold, in_predicted, correct = (count[kind] for count in counts)
        by_type[kind] = rates(in_gold, in_predicted, correct) | {
            "gold": in_gold,
            "predicted": in_predicted,
            "correct": correct,
        }
    return rates(*totals) | {"accuracy": same / tokens if tokens else 0.0, "by_type": by_type}


def _count(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> tuple[collections.Counter[str], ...]:
    """Numbers of entities of each type: in gold, predicted, and correct."""
    in_gold, in_predicted, correct = (collections.Counter[str]() for _ in range(3))
    # Whether an open entity is right so far. The script compares while it reads; comparing sets of entities would differ if
    # prefixes leave an entity without an end.
    open_ = False
    right = guess = "O"
    for right_tags, guess_tags in zip(gold, predicted, strict=True):
        for next_right, next_guess in itertools.chain(zip(right_tags, guess_tags, strict=True), [("O", "O")]):
            right_ends, right_starts, right_kind = _step(right, next_right)
            guess_ends, guess_starts, guess_kind = _step(guess, next_guess)
            kind = _split(right)[1]
            if open_ and right_ends and guess_ends and kind == _split(guess)[1]:
                open_ = False
                correct[kind] += 1
            elif open_ and (right_ends != guess_ends or right_kind != guess_kind):
                open_ = False
            open_ |= right_starts and guess_starts and right_kind == guess_kind
            in_gold[right_kind] += right_starts
            in_predicted[guess_kind] += guess_starts
            right, guess = next_right, next_guess
    if open_:
        correct[_split(right)[1]] += 1
    return tuple(+count for count in (in_gold, in_predicted, correct))


@functools.lru_cache(maxsize=2**16)
def _split(tag: str) -> tuple[str, str]:
    prefix, _, kind = tag.partition("-")
    return prefix, kind


@functools.lru_cache(maxsize=2**16)
def _step(before: str, tag: str) -> tuple[bool, bool, str]:
    """Whether an entity ends after the first of two tags, whether one begins with the second, and the second's type."""
    (last, last_kind), (prefix, kind) = _split(before), _split(tag)
    other = last_kind != kind
    ends = (last, prefix) in _ENDS or last in _SINGLE or (other and last not in _OUTSIDE)
    starts = (last, prefix) in _STARTS or prefix in _SINGLE or (other and prefix not in _OUTSIDE)
    return ends, starts, kind


def rates(gold: int, predicted: int, correct: int) -> dict[str, Any]:
    """Precision, recall and F1 of numbers of entities, 0 if there is nothing to count."""
    precision = correct / predicted if predicted else 0.0
    recall = correct / gold if gold else 0.0
    both = precision + recall
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / both if both else 0.0}
