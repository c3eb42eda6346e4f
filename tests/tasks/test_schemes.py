"""Entities in IOBES and BILOU, beside seqeval's strict mode."""

from __future__ import annotations

import random

import pytest
import seqeval.metrics
import seqeval.scheme

from bert_jax.errors import BertWarning, UserError
from bert_jax.tasks import conll
from bert_jax.tasks.conll import Sentence
from bert_jax.tasks.metrics import schemes

LETTERS = {"iobes": "IOBES", "bilou": "BILOU"}


def draw(rng, scheme, size):
    """Tags of entities, some of which are then replaced at random."""
    first, inside, last, single = {"iobes": "BIES", "bilou": "BILU"}[scheme]
    tags = []
    while len(tags) < size:
        kind, length = rng.choice("XY"), rng.randrange(4)
        match length:
            case 0:
                tags.append("O")
            case 1:
                tags.append(f"{single}-{kind}")
            case _:
                tags += [f"{first}-{kind}", *[f"{inside}-{kind}"] * (length - 2), f"{last}-{kind}"]
    noise = rng.random() * 0.4
    every = ["O", *(f"{letter}-{kind}" for letter in (first, inside, last, single) for kind in "XY")]
    return [rng.choice(every) if rng.random() < noise else tag for tag in tags[:size]]


@pytest.mark.parametrize("scheme", LETTERS)
def test_scores_equal_those_of_seqeval(scheme):
    rng = random.Random(0)
    for _ in range(300):
        sizes = [rng.randrange(1, 12) for _ in range(rng.randrange(1, 6))]
        gold, predicted = ([draw(rng, scheme, size) for size in sizes] for _ in range(2))
        how = {"mode": "strict", "scheme": getattr(seqeval.scheme, scheme.upper()), "zero_division": 0}
        expected = {
            "precision": seqeval.metrics.precision_score(gold, predicted, **how),
            "recall": seqeval.metrics.recall_score(gold, predicted, **how),
            "f1": seqeval.metrics.f1_score(gold, predicted, **how),
            "accuracy": seqeval.metrics.accuracy_score(gold, predicted),
        }
        assert schemes.score(gold, predicted, scheme) == pytest.approx(expected, abs=1e-12), (gold, predicted)


def test_adjacent_entities_are_two():
    tags = [["S-LOC", "S-LOC", "B-LOC", "E-LOC", "B-LOC", "E-LOC"]]
    assert [*schemes.entities(tags[0], "iobes")] == [(0, 1, "LOC"), (1, 2, "LOC"), (2, 4, "LOC"), (4, 6, "LOC")]
    with pytest.raises(UserError, match="those of other sentences"):
        schemes.score(tags, [["O"]], "iobes")


def sentences(*tags):
    return [Sentence(("w",) * len(tags), tags, 0, 1, "a.conll")]


@pytest.mark.parametrize(
    ("tags", "scheme", "found"),
    [
        (("S-X", "B-X", "I-X", "E-X", "O"), "strict", "iobes"),
        (("U-X", "B-X", "L-X"), "strict", "bilou"),
        (("B-X", "I-X"), "strict", "iob2"),
        (("I-X", "I-X"), "iob1", "iob1"),
        (("B-X", "E-X"), "iobes", "iobes"),
        (("Q-X", "I-Y"), "loose", ""),
    ],
)
def test_the_scheme_is_found(tags, scheme, found):
    assert conll.check_tags(sentences(*tags), "ner", scheme) == found


@pytest.mark.parametrize(
    ("tags", "scheme", "message"),
    [
        (("S-X", "B-X", "O"), "strict", r"line 3: the entity of X before it has no E-X \(IOBES\); .* with --scheme iobes"),
        (("S-X", "B-X"), "strict", "line 2: the entity of X before it has no E-X"),
        (("E-X",), "strict", "line 1: E-X continues no entity"),
        (("B-X", "E-Y"), "strict", "has no E-X"),
        (
            ("S-X", "U-X"),
            "strict",
            "line 2: 'U-X' is not a tag of an entity; convert the file to O, B-TYPE, I-TYPE, E-TYPE, S-TYPE",
        ),
        (("B-X", "I-X"), "iob1", r"line 1: B-X begins an entity"),
        (("B-X", "E-X"), "bilou", "'E-X' is not a tag"),
    ],
)
def test_tags_that_contradict_the_scheme_are_refused(tags, scheme, message):
    with pytest.raises(UserError, match=message):
        conll.check_tags(sentences(*tags), "ner", scheme)


def test_a_named_scheme_passes_over_what_is_no_entity():
    with pytest.warns(BertWarning, match="line 2: the entity of X before it has no E-X .*; 2 such tags are no entities"):
        assert conll.check_tags(sentences("B-X", "O", "S-Y", "E-X"), "ner", "iobes") == "iobes"
