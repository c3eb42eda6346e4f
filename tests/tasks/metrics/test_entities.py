"""Entities are counted as conlleval counts them: against its printed results, and against seqeval where that agrees."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from seqeval.metrics import accuracy_score
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

from bert_jax.errors import UserError
from bert_jax.tasks.metrics.entities import score

# What conlleval.pl of 2004-01-26 printed: phrases, found, correct, and accuracy in percent. A slash divides sentences.
PRINTED = [
    ("O I-X I-X O B-X I-X", "O B-X I-X O I-X I-X", (2, 2, 2), 66.67),
    ("I-X I-X B-X I-X O", "B-X I-X B-X I-X O", (2, 2, 2), 80.00),
    ("B-X I-Y I-Y O", "B-X B-Y I-Y O", (2, 2, 2), 75.00),
    ("B-X I-X I-X", "B-X I-X O", (1, 1, 0), 66.67),
    ("B-X I-X I-X", "B-X I-Y I-X", (1, 3, 0), 66.67),
    ("B-X / I-X I-X", "B-X / B-X I-X", (2, 2, 2), 66.67),
    ("O O O", "I-X B-X I-X", (0, 2, 0), 0.00),
    ("B-X E-X B-X E-X", "B-X I-X B-X I-X", (1, 2, 0), 50.00),
    ("S-X S-X O S-Y", "B-X B-X O B-Y", (2, 3, 1), 25.00),
    ("B-X E-X E-X I-X O", "B-X I-X B-X B-X O", (3, 3, 3), 40.00),
    ("O E-X O I-X E-X", "O B-X O B-X I-X", (2, 2, 2), 40.00),
    ("U-X O B-X I-X L-X", "B-X O B-X I-X I-X", (2, 2, 2), 60.00),
    ("[-X ]-X O [-X", "B-X B-X O B-X", (3, 3, 3), 25.00),
    ("I-X [-X I-X O", "B-X B-X I-X O", (2, 2, 0), 50.00),
    ("B-X-Y I-X-Y O B-X", "B-X-Z I-X-Y O B-X", (2, 3, 1), 75.00),
    ("B I O B B", "B I O I B", (3, 3, 3), 80.00),
    ("B-X .-X I-X O", "B-X O I-X O", (1, 2, 0), 75.00),
    ("B-X S", "B-X B", (2, 2, 1), 50.00),
    ("B-X S", "B-X S", (2, 2, 2), 100.00),
    ("B-X I-X I-X", "B-X .-X B-Y", (1, 2, 0), 33.33),
    ("O", ".-X", (0, 0, 0), 0.00),
]


def totals(scores):
    return tuple(sum(row[name] for row in scores["by_type"].values()) for name in ("gold", "predicted", "correct"))


@pytest.mark.parametrize(("gold", "predicted", "counts", "accuracy"), PRINTED)
def test_counts_are_those_that_conlleval_printed(gold, predicted, counts, accuracy):
    scores = score(*([sentence.split() for sentence in tags.split("/")] for tags in (gold, predicted)))
    assert totals(scores) == counts
    in_gold, found, correct = counts
    assert (scores["precision"], scores["recall"]) == (correct / max(found, 1), correct / max(in_gold, 1))
    assert round(100 * scores["accuracy"], 2) == accuracy


def test_the_scripts_example_output():
    """The table on the script's own page, from sentences with as many right, missed and invented entities of each type."""
    # Right, in gold, found, and the printed precision, recall and FB1.
    table = {
        "ADJP": (0, 6, 1, 0.00, 0.00, 0.00),
        "ADVP": (5, 8, 11, 45.45, 62.50, 52.63),
        "NP": (206, 262, 317, 64.98, 78.63, 71.16),
        "PP": (89, 90, 107, 83.18, 98.89, 90.36),
        "SBAR": (2, 6, 3, 66.67, 33.33, 44.44),
        "VP": (69, 87, 100, 69.00, 79.31, 73.80),
    }
    gold, predicted = [], []
    for kind, (right, in_gold, found, *_) in table.items():
        gold += [[f"B-{kind}", f"I-{kind}", "O"]] * in_gold + [["O", "O", "O"]] * (found - right)
        predicted += [[f"B-{kind}", f"I-{kind}", "O"]] * right + [["O", "O", "O"]] * (in_gold - right)
        predicted += [["O", f"I-{kind}", "O"]] * (found - right)
    scores = score(gold, predicted)
    assert totals(scores) == (459, 539, 371)
    assert [round(100 * scores[name], 2) for name in ("precision", "recall", "f1")] == [68.83, 80.83, 74.35]
    assert list(scores["by_type"]) == sorted(table)
    for kind, row in scores["by_type"].items():
        assert tuple(round(100 * row[name], 2) for name in ("precision", "recall", "f1")) == table[kind][3:]


def assert_as_seqeval(gold, predicted):
    scores = score(gold, predicted)
    assert scores["accuracy"] == pytest.approx(accuracy_score(gold, predicted))
    names = ("precision", "recall", "f1")
    overall = precision_recall_fscore_support(gold, predicted, average="micro", zero_division=0)
    assert [scores[name] for name in names] == pytest.approx([float(value) for value in overall[:3]])
    each = precision_recall_fscore_support(gold, predicted, average=None, zero_division=0)
    rows = scores["by_type"].values()
    for name, theirs in zip((*names, "gold"), each, strict=True):
        assert [row[name] for row in rows] == pytest.approx([float(value) for value in theirs])


def pairs_of_tags(tags):
    sentence = st.integers(1, 12).flatmap(lambda size: st.tuples(*[st.lists(tags, min_size=size, max_size=size)] * 2))
    return st.lists(sentence, min_size=1, max_size=5)


@given(pairs_of_tags(st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y"])))
def test_any_iob_tags_score_as_with_seqeval(sentences):
    gold, predicted = map(list, zip(*sentences, strict=True))
    assume(any(tag != "O" for tags in gold + predicted for tag in tags))
    assert_as_seqeval(gold, predicted)


# What conlleval takes for the inside of one entity and seqeval for the border of two, where types are equal.
APART = {("B", "S"), ("I", "S"), ("E", "B"), ("E", "S"), ("S", "B"), ("S", "I"), ("S", "E"), ("S", "S")}


@given(pairs_of_tags(st.sampled_from(["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in "XY")])))
def test_iobes_tags_score_as_with_seqeval_where_conlleval_has_a_rule(sentences):
    gold, predicted = map(list, zip(*sentences, strict=True))
    assume(any(tag != "O" for tags in gold + predicted for tag in tags))
    for tags in gold + predicted:
        for place, (before, tag) in enumerate(itertools.pairwise(tags), 1):
            if (before[0], tag[0]) in APART and before[1:] == tag[1:]:
                tags[place] = "O"
    assert_as_seqeval(gold, predicted)


@pytest.mark.parametrize("pair", sorted(APART))
def test_where_conlleval_and_seqeval_differ(pair):
    tags = [[f"{prefix}-X" for prefix in pair]]
    assert totals(score(tags, tags)) == (1, 1, 1)
    *_, support = precision_recall_fscore_support(tags, tags, average="micro", zero_division=0)
    assert support == 2


def test_nothing_to_count_scores_zero():
    assert score([], []) == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "accuracy": 0.0, "by_type": {}}
    assert score([["O"]], [["O"]]) == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "accuracy": 1.0, "by_type": {}}


def test_tags_have_to_match():
    with pytest.raises(UserError, match="Tags of 1 sentences are given for 2 sentences"):
        score([["O"], ["O"]], [["O"]])
    with pytest.raises(UserError, match="Sentence 2 has 1 words; 2 tags are given"):
        score([["O"], ["O"]], [["O"], ["O", "O"]])
