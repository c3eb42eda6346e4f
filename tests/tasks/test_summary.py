"""What is said about the data before training, counted here from the files themselves by other means."""

from __future__ import annotations

import collections
import csv
import json
import random

import pandas
import pytest

from bert_jax.tasks import registry, summary
from bert_jax.tasks.example import Source
from tests.runs import TASK_DATA, write_data, write_pairs


def summarized(task, data, tokenizer):
    """The summaries of both splits, as a program reads them, and the lines for the user."""
    task, source = registry.get(task), Source(str(data), TASK_DATA, tokenizer)
    examples, labels = task.train(source)
    splits = {"train": examples, "dev": task.split(source, "dev", labels).examples}
    summaries = summary.summarize(task, source, splits, labels)
    stored = json.loads(summary.to_file(summaries))
    assert stored.pop("format_version") == 2
    assert stored == summaries
    return stored, summary.lines(task, summaries, sequence_length=TASK_DATA.sequence_length)


def test_classes_empty_texts_and_truncated_texts(tmp_path, tokenizer):
    write_data(tmp_path / "data", "classify")
    train = tmp_path / "data" / "train.tsv"
    train.write_text(train.read_text() + "no\t\u200b\nyes\t" + "alpha " * 22 + "\nno\t" + "alpha " * 23 + "\n")
    stored, (line, _) = summarized("classify", tmp_path / "data", tokenizer)
    for split in ("train", "dev"):
        frame = pandas.read_csv(tmp_path / "data" / f"{split}.tsv", sep="\t")
        counts = frame["label"].value_counts().to_dict()
        assert stored[split] == {
            "file": f"{tmp_path}/data/{split}.tsv",
            "delimiter": "\t",
            "quoting": "none",
            "examples": len(frame),
            "pairs": False,
            "empty": int(split == "train"),
            "truncated": int(split == "train"),
            "classes": counts,
        }
    classes = stored["train"]["classes"]
    assert line == (
        f"train: {train} (separated by tabs, quoting none); 99 examples, 1 with an empty text, 1 truncated to 24 tokens; "
        f"2 classes: no {classes['no']}, yes {classes['yes']}"
    )


def test_pairs_and_scores_and_several_labels(tmp_path, tokenizer):
    (tmp_path / "pairs").mkdir()
    write_pairs(tmp_path / "pairs", {"train": 9, "dev": 5}, random.Random(1))
    stored, lines = summarized("classify", tmp_path / "pairs", tokenizer)
    assert [stored[split]["pairs"] for split in stored] == [True, True]
    assert "train.csv (separated by commas, quoting minimal); 9 pairs, 0 with" in lines[0]
    write_data(tmp_path / "regress", "regress")
    stored, lines = summarized("regress", tmp_path / "regress", tokenizer)
    scores = pandas.read_csv(tmp_path / "regress" / "train.tsv", sep="\t")["label"]
    found = [stored["train"][name] for name in ("min", "max", "mean")]
    assert found == pytest.approx([scores.min(), scores.max(), scores.mean()], rel=1e-6)
    assert f"scores from {scores.min():g} to {scores.max():g}, mean {scores.mean():.4g}" in lines[0]
    write_data(tmp_path / "multilabel", "multilabel")
    stored, lines = summarized("multilabel", tmp_path / "multilabel", tokenizer)
    with open(tmp_path / "multilabel" / "train.csv") as file:
        labels = [row["label"].split(", ") for row in csv.DictReader(file)]
    counts = collections.Counter(label for row in labels for label in row)
    assert stored["train"]["without_labels"] == counts.pop("")
    assert stored["train"]["classes"] == counts
    assert lines[0].endswith(" without a label")


def test_tags_questions_and_endings(tmp_path, tokenizer):
    write_data(tmp_path / "ner", "ner")
    stored, lines = summarized("ner", tmp_path / "ner", tokenizer)
    rows = [line.split() for line in (tmp_path / "ner" / "train.txt").read_text().splitlines()]
    assert stored["train"]["classes"] == collections.Counter(row[1] for row in rows if row and row[0] != "-DOCSTART-")
    assert f"train.txt; {stored['train']['examples']} windows; 3 tags: B-LOC " in lines[0]
    write_data(tmp_path / "squad2", "squad2")
    stored, lines = summarized("squad2", tmp_path / "squad2", tokenizer)
    assert (stored["dev"]["questions"], stored["dev"]["impossible"]) == (37, 13)
    assert stored["dev"]["examples"] > 37
    assert f"dev-v2.0.json; 37 questions, 13 without an answer; {stored['dev']['examples']} windows" in lines[1]
    write_data(tmp_path / "swag", "swag")
    stored, lines = summarized("swag", tmp_path / "swag", tokenizer)
    with open(tmp_path / "swag" / "val.csv") as file:
        assert stored["dev"]["classes"] == collections.Counter(row["label"] for row in csv.DictReader(file))
    assert "val.csv; 37 examples, 0 with an empty text" in lines[1]
    assert "; 3 right positions: 0 " in lines[1]


def test_files_of_glue(tmp_path, tokenizer):
    data = write_data(tmp_path / "data", "cola")
    stored, lines = summarized("cola", data, tokenizer)
    assert stored["dev"]["file"] == f"{data}/CoLA/dev.tsv"
    assert list(stored["dev"]["classes"]) == ["unacceptable", "acceptable"]
    assert lines[1].startswith(f"dev: {data}/CoLA/dev.tsv; 37 examples, ")
