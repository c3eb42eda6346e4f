"""Labels of records become class indices, rows of a matrix or scores, or are refused by file and line."""

from __future__ import annotations

import numpy as np
import pytest

from bert_jax.errors import UserError
from bert_jax.tasks import record_labels
from bert_jax.tasks.tables import Record


def labelled(labels):
    return [Record(("t",), label, f"a.tsv, line {number}", str(number)) for number, label in enumerate(labels, 1)]


def test_classes_are_sorted_by_name_or_by_number():
    assert record_labels.class_labels(labelled(["b", "a", "c", "a"])) == ("a", "b", "c")
    assert record_labels.class_labels(labelled(["10", "9", "-1", "9"])) == ("-1", "9", "10")
    assert record_labels.class_labels(labelled(["10", "9", "x"])) == ("10", "9", "x")
    assert record_labels.class_labels(labelled([str(number % 9 / 2 + 1) for number in range(99)]))[:3] == ("1.0", "1.5", "2.0")
    many = [str(number % 1000) for number in range(5000)]
    assert record_labels.class_labels(iter(labelled(many))) == tuple(map(str, range(1000)))
    # Few rows may each have a class of their own; of a hundred, half.
    assert len(record_labels.class_labels(labelled([f"c{number}" for number in range(99)]))) == 99
    assert len(record_labels.class_labels(labelled([f"c{number}" for number in range(50)] + ["x"] * 50))) == 51


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ([], "The data: there must be at least two labels; there is none"),
        (["a", "a"], "a.tsv: there must be at least two labels; there is 'a'"),
        (["a", None], "a.tsv, line 2: there is no label"),
        ([str(number) for number in range(1001)] * 3, "line 1001: this is label 1,001, '1000'; that looks like a score or an id"),
        ([f"{number / 7:.3f}" for number in range(100)], "a.tsv: 100 of 100 rows have a label of their own.*task regress"),
        ([str(number % 101 / 8) for number in range(303)], "a.tsv has 101 labels that are fractions, '0.0', '0.125'"),
        ([str(number) for number in range(51)] + ["x"] * 49, "a.tsv: 51 of 100 rows have a label of their own"),
        (["pos", "neg", "Pos"], r"a.tsv, line 3: the label 'Pos' differs from 'pos' \(line 1\) only in case or white space"),
        (["not good", "good", "not  good"], "line 3: the label 'not  good' differs from 'not good' .*; write both alike"),
        (["0", "1", "1.0"], r"a.tsv, line 3: the label '1.0' differs from '1' \(line 2\) only in the format of the number"),
        (["007", "8", "7"], "line 3: the label '7' differs from '007' .* only in the format of the number"),
        (["pos", "neg", "nan"], "a.tsv, line 3: the label 'nan' stands for a missing value; remove the row, or write a label"),
        (["1.0", "NaN"], "a.tsv, line 2: the label 'NaN' stands for a missing value"),
    ],
)
def test_labels_that_are_no_classes(labels, sentence):
    with pytest.raises(UserError, match=sentence):
        record_labels.class_labels(labelled(labels))


def test_labels_of_several_are_written_in_one_way():
    rows = [Record(("t",), None, f"a.json, element {number}", "0", names) for number, names in enumerate([("a", "b"), ("B",)], 1)]
    with pytest.raises(UserError, match=r"a.json, element 2: the label 'B' differs from 'b' \(element 1\) only in case"):
        record_labels.label_names(rows)
    with pytest.raises(UserError, match=r"element 2: the label 'B' is none of 'a', 'b'; it differs from 'b' only in case"):
        record_labels.label_matrix(rows, ("a", "b"))


def test_class_ids():
    ids = record_labels.class_ids(labelled(["b", "a", "b"]), ("a", "b"))
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, [1, 0, 1])
    with pytest.raises(UserError, match=r"a.tsv, line 2: the label 'c' is none of 'a', 'b'"):
        record_labels.class_ids(labelled(["b", "c"]), ("a", "b"))
    with pytest.raises(UserError, match=r"the label '1' is none of '0.0', '1.0'; it differs from '1.0' only in the format of the"):
        record_labels.class_ids(labelled(["1"]), ("0.0", "1.0"))
    with pytest.raises(UserError, match=r"a.tsv, line 1: there is no label"):
        record_labels.class_ids(labelled([None]), ("a", "b"))


def test_scores():
    values = record_labels.scores(labelled(["1.5", "-2", "1e-3", "0"]))
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, np.array([1.5, -2, 0.001, 0], np.float32))
    for bad in ("nan", "inf", "-Infinity", "1e39", "one", "1,5", "1_0", "true", ""):
        with pytest.raises(UserError, match=r"a.tsv, line 2: the score .* is not a finite number"):
            record_labels.scores(labelled(["1", bad]))
    with pytest.raises(UserError, match=r"a.tsv, line 1: there is no label"):
        record_labels.scores(labelled([None]))
