"""Rows of files that are no tables, standard input among them, are those that pandas reads."""

from __future__ import annotations

import json
import subprocess
import sys

import pandas
import pytest

from bert_jax.errors import UserError
from bert_jax.tasks import table_files

FRAME = pandas.DataFrame({"text": ["one", "zwei, \u2028 drei", "x"], "label": [1, 0, 1]})


def fields(path, **how):
    return [row.fields for row in table_files.rows(path, **how)]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.parquet", lambda path: FRAME.to_parquet(path)),
        ("a.json", lambda path: FRAME.to_json(path, orient="records", force_ascii=False)),
        ("lines.json", lambda path: FRAME.to_json(path, orient="records", lines=True, force_ascii=False)),
        ("a.jsonl", lambda path: FRAME.to_json(path, orient="records", lines=True)),
        ("a.json.gz", lambda path: FRAME.to_json(path, orient="records")),
    ],
)
def test_records_that_pandas_writes(tmp_path, name, write):
    write(tmp_path / name)
    assert fields(tmp_path / name) == FRAME.to_dict("records")


def test_texts_without_names(tmp_path):
    texts = ["one", "two, three", '"four"']
    (tmp_path / "a.json").write_text(json.dumps(texts, indent=1))
    (tmp_path / "a.txt").write_text("\n".join(texts) + "\n")
    for name in ("a.json", "a.txt"):
        assert fields(tmp_path / name, text="sentence") == [{"sentence": text} for text in texts]
    assert [row.where for row in table_files.rows(tmp_path / "a.json")][2] == f"{tmp_path}/a.json, element 3"


def test_missing_values_of_parquet(tmp_path):
    pandas.DataFrame({"text": ["one", None], "label": [1.0, None]}).to_parquet(tmp_path / "a.parquet")
    assert fields(tmp_path / "a.parquet") == [{"text": "one", "label": 1.0}, {"text": None, "label": None}]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.json", '{"data": 1}\n', None),
        ("a.json", '{\n"data": 1}', r"a.json, line 1 is not JSON"),
        ("a.json", "[1]", r"a.json, element 1 holds 1; it must be a JSON object"),
        ("a.json", "[]", r"a.json holds no rows\."),
        ("a.json", '["a",', r"a.json is not JSON"),
        ("a.txt", "text\none\n", r"a.txt, line 1: the line holds the name of the column of the texts; remove it"),
        ("a.parquet", "PAR1 no", r"a.parquet is not a whole Parquet file: "),
        ("none.parquet", None, r"There is no file .*none.parquet"),
        ("a.xlsx", "x", r"The format of .*a.xlsx is unknown; .* .json, .txt, each also with .gz, .parquet"),
    ],
)
def test_files_that_are_refused(tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_text(content)
    if sentence is None:
        assert fields(tmp_path / name) == [{"data": 1}]
        return
    with pytest.raises(UserError, match=sentence):
        fields(tmp_path / name)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("one\ntwo, three\n", [{"text": "one"}, {"text": "two, three"}]),
        ('{"text": "one", "id": 3}\n\n{"text": "two"}\n', [{"text": "one", "id": 3}, {"text": "two"}]),
    ],
)
def test_standard_input(given, found):
    program = "import json; from bert_jax.tasks import table_files; print(json.dumps([r.fields for r in table_files.rows('-')]))"
    done = subprocess.run([sys.executable, "-c", program], input=given, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == found
