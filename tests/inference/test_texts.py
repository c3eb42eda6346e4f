"""Texts of files of every format, standard input and the command line, beside pandas."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys

import pandas
import pytest

from bert_jax.errors import UserError
from bert_jax.inference.texts import read

TEXTS = ["a man, eating", 'he said "yes"', "two\nlines", "", "é 東京", "x" * 140_000]


@pytest.fixture
def frame():
    return pandas.DataFrame({"id": range(len(TEXTS)), "sentence": TEXTS, "other": TEXTS[::-1]})


WRITERS = {
    "a.csv": lambda frame, path: frame.to_csv(path, index=False),
    "a.csv.gz": lambda frame, path: frame.to_csv(path, index=False),
    "semicolons.csv": lambda frame, path: frame.to_csv(path, index=False, sep=";"),
    "a.json": lambda frame, path: frame.to_json(path, orient="records"),
    "a.jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    "lines.json": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    "a.parquet": lambda frame, path: frame.to_parquet(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_files_of_pandas(frame, tmp_path, name):
    WRITERS[name](frame, tmp_path / name)
    path = str(tmp_path / name)
    assert read([path]) == TEXTS
    assert read([path], field=["other"]) == TEXTS[::-1]
    assert read([path], field=["sentence", "other"]) == [*zip(TEXTS, TEXTS[::-1], strict=True)]
    with pytest.raises(UserError, match="there is no column 'text' but 'id', 'sentence', 'other'"):
        read([path], field=["text"])


def test_quoted_tsv(frame, tmp_path):
    path = str(tmp_path / "a.tsv")
    frame.to_csv(path, index=False, sep="\t")
    with pytest.raises(UserError, match="--quoting minimal"):
        read([path])
    assert read([path], quoting="minimal") == TEXTS


def test_lines_lists_and_other_endings(tmp_path):
    content = "a man\n\na ||| b\n"
    (tmp_path / "a.txt").write_text(content)
    (tmp_path / "sentences").write_text(content)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content.encode()))
    for name in ("a.txt", "sentences", "a.txt.gz"):
        assert read([str(tmp_path / name)]) == ["a man", "", ("a", "b")]
    (tmp_path / "list.json").write_text(json.dumps(["a man", "a ||| b"]))
    assert read([str(tmp_path / "list.json")]) == ["a man", "a ||| b"]
    (tmp_path / "pairs.jsonl").write_text('{"text": ["a", "b"]}\n{"text": "c"}\n')
    assert read([str(tmp_path / "pairs.jsonl")]) == [("a", "b"), "c"]


@pytest.mark.parametrize(
    ("content", "texts"), [("a man\na ||| b\n", ["a man", ("a", "b")]), ('{"text": "a man"}\n{"text": "b"}\n', ["a man", "b"])]
)
def test_standard_input(tmp_path, content, texts):
    command = "from bert_jax.inference.texts import read; print(read(['-']))"
    result = subprocess.run([sys.executable, "-c", command], input=content, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(texts)


def test_texts_of_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines").write_text("from a file\n")
    assert read(["a text", "lines", "first ||| second", "a sentence that ends in a.txt", "y" * 5000, "nul\0"]) == [
        "a text", "from a file", ("first", "second"), "a sentence that ends in a.txt", "y" * 5000, "nul\0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", "label,body\n1,a\n", "the columns are 'label', 'body'; name that of the text with --field"),
        ("a.csv", "text,text_b\na,b\n", "or those of both texts of a pair"),
        ("a.csv", "text,sentence\na,b\n", "the columns are 'text', 'sentence'"),
        ("a.csv", "A man eats.\nIt is cold.\n", "without the names of its columns has to end in .txt"),
        ("a.csv", "text\n", "holds no rows below the line that names the columns"),
        ("a.jsonl", '{"text": 3}\n', "line 1: no text under 'text'"),
        ("a.jsonl", '{"text": "a"}\n{"text": null}\n', "line 2: no text under 'text'"),
        ("a.jsonl", '{"text": "a"}\n{"b": "a"}\n', "line 2: no text under 'text'"),
        ("a.json", '{"a": [1', "is not JSON"),
        ("a.txt", "", "no"),
        ("lines", "", "contains no text"),
    ],
)
def test_what_is_refused(tmp_path, name, content, sentence):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=sentence):
        read([str(tmp_path / name)])


def test_missing_files_are_no_texts():
    for name in ("none.csv", "some/none.txt", "none.parquet"):
        with pytest.raises(UserError, match=f"There is no file {name}"):
            read([name])
    with pytest.raises(UserError, match="There is no text; name a file"):
        read([])
