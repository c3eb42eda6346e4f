"""SWAG's files become questions, or are refused by file and line; predictions are written as CSV."""

from __future__ import annotations

import csv
import gzip

import numpy as np
import pytest

from bert_jax.errors import UserError
from bert_jax.tasks import swag

HEADER = ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3,label"
ROWS = """0,v-1,18313,Alpha bravo. She,Alpha bravo.,She,gold,"pats, then echo",golf hotel.,india,"a ""lima"".",2
17,v-2,18419,Delta. He,Delta.,He,gen,alpha,bravo,"two
lines",delta,0
18,v-3,1,Echo. It,Echo.,It,gen,alpha,bravo,charlie,delta,3
"""


def save(tmp_path, text, name="val.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_questions_are_read(tmp_path):
    path = save(tmp_path, f"{HEADER}\n{ROWS}")
    questions = swag.read(path)
    assert questions[0] == swag.Question(
        "Alpha bravo.", "She", ("pats, then echo", "golf hotel.", "india", 'a "lima".'), 2, "0", f"{path}, line 2"
    )
    assert [(question.id, question.label, question.where[-6:]) for question in questions[1:]] == [
        ("17", 0, "line 3"),
        ("18", 3, "line 5"),
    ]
    assert questions[1].endings[2] == "two\nlines"
    packed = save(tmp_path, gzip.compress(path.read_bytes().replace(b"\r\n", b"\n")), "val.csv.gz")
    assert [question[:5] for question in swag.read(packed)] == [question[:5] for question in questions]
    windows = save(tmp_path, "\ufeff" + path.read_text().replace("\n", "\r\n"), "dos.csv")
    assert [question.context for question in swag.read(windows)] == ["Alpha bravo.", "Delta.", "Echo."]


def test_test_files_have_no_label_and_other_files_other_numbers_of_endings(tmp_path):
    path = save(tmp_path, "sent1,sent2,ending0,ending1\na b,c,d,e\n\nf,g,h,i\n")
    assert [(question.label, question.id, question.endings) for question in swag.read(path)] == [
        (None, "0", ("d", "e")),
        (None, "1", ("h", "i")),
    ]
    path = save(tmp_path, "index,sent1,sent2,ending0,ending1,ending2,label\nq7,a,b,c,d,e,2\n")
    assert [(question.label, question.id, len(question.endings)) for question in swag.read(path)] == [(2, "q7", 3)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "val.csv is empty"),
        (f"{HEADER}\n", "val.csv holds no questions"),
        ("video-id,sent1,sent2,gold-ending\n", "has no column ending0 but video-id, sent1, sent2, gold-ending; SWAG's train.csv"),
        ("sent1,sent2,ending0,ending2\n", "has no column ending1"),
        ("sent1,sent2,ending0\n", "has no column ending1"),
        ("sent1,ending0,ending1\n", "has no column sent2"),
        ("sent1,sent2,ending0,ending1,ending1\n", "has two columns 'ending1'; remove one"),
        ("sent1,sent2,ending0,ending1\na,b,c\n", "line 2 has 3 columns, the header has 4; repair the line"),
        ("sent1,sent2,ending0,ending1\na,b,c,d\na, ,c,\n", "line 3 has no text under sent2, ending1"),
        ("sent1,sent2,ending0,ending1,label\na,b,c,d,2\n", "line 2 has '2' for a label; .* from 0 to 1"),
        ("sent1,sent2,ending0,ending1,label\na,b,c,d,-1\n", "line 2 has '-1' for a label"),
        ("sent1,sent2,ending0,ending1,label\na,b,c,d,1.0\n", "line 2 has '1.0' for a label"),
        ("sent1,sent2,ending0,ending1,label\na,b,c,d,\n", "line 2 has '' for a label"),
        ('sent1,sent2,ending0,ending1\na,b,c,d\na,b,"c,d\n\n', "line 3: .* is not CSV"),
        ('sent1,sent2,ending0,ending1\na,"b"b,c,d\n', "line 2: .* is not CSV"),
        (b"sent1,sent2,ending0,ending1\na,b,c,\xff\n", "line 2: byte 0xff at column 7 is not UTF-8"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, sentence):
    with pytest.raises(UserError, match=sentence):
        swag.read(save(tmp_path, text))


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(UserError, match="There is no file"):
        swag.read(tmp_path / "val.csv")
    with pytest.raises(UserError, match="is a directory"):
        swag.read(tmp_path)


def test_predictions_are_written_as_csv(tmp_path):
    path = tmp_path / "predictions.csv"
    swag.write(path, ["0", "a,b"], np.array([3, 1]).tolist())
    assert path.read_text() == ',pred\n0,3\n"a,b",1\n'
    with path.open() as file:
        assert [row["pred"] for row in csv.DictReader(file)] == ["3", "1"]
    with pytest.raises(UserError, match="exists already"):
        swag.write(path, ["0"], [1])
    with pytest.raises(UserError, match="1 predictions are given for 2 questions"):
        swag.write(tmp_path / "other.csv", ["0", "1"], [1])
