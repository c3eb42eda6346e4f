"""Tables and JSON lines give back what was written to them, and say in one sentence where they are wrong."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.config.finetuning import TaskDataConfig
from bert_jax.errors import BertWarning, UserError
from bert_jax.tasks import records, table_files, tables
from bert_jax.tasks.example import Source
from bert_jax.tasks.tables import Columns, Record

NAMES = ["label", "text", "text_b"]
WHOLE = st.characters(exclude_categories=["Cs"])
LABELS = st.text(WHOLE, min_size=1, max_size=8).filter(str.strip)
# The csv module knows no other white space than spaces; strings of it alone are empty texts.
TEXTS = st.text(WHOLE, min_size=1, max_size=30).filter(str.strip)
PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r"), min_size=1, max_size=30).filter(str.strip)


def save(path, content):
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(path, *, labelled=True, **columns):
    return [*tables.read(path, Columns(**columns), labelled=labelled)]


def lines(records):
    return [int(record.where.rpartition("line ")[2]) for record in records]


@given(st.lists(st.tuples(PLAIN, PLAIN, PLAIN), min_size=1, max_size=6), st.booleans(), st.booleans())
def test_tsv_keeps_every_letter(rows, header, zipped):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / ("data.tsv.gz" if zipped else "data.tsv")
        save(path, "".join("\t".join(row) + "\n" for row in ([NAMES] if header else []) + [*map(list, rows)]))
        records = read(path, order=None if header else tuple(NAMES), quoting="none")
    assert [(record.label, *record.texts) for record in records] == [(label.strip(), a, b) for label, a, b in rows]
    assert [record.id for record in records] == [str(number) for number in range(len(rows))]
    assert lines(records) == [number + 1 + header for number in range(len(rows))]


@given(st.lists(st.tuples(LABELS, TEXTS, TEXTS), min_size=1, max_size=6))
def test_csv_reads_what_the_csv_module_writes(rows):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "data.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([NAMES, *rows])
        records = read(path)
    assert [(record.label, *record.texts) for record in records] == [(label.strip(), a, b) for label, a, b in rows]


@given(
    st.lists(st.tuples(LABELS, TEXTS), min_size=1, max_size=6), st.sampled_from([".jsonl", ".ndjson", ".jsonl.gz"]), st.booleans()
)
def test_json_lines_read_what_the_json_module_writes(rows, ending, ascii):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"data{ending}"
        save(path, "".join(json.dumps({"text": text, "label": label}, ensure_ascii=ascii) + "\n" for label, text in rows))
        records = read(path)
    assert [(record.label, *record.texts) for record in records] == [(label.strip(), text) for label, text in rows]


def test_quotes_are_letters_in_tsv_and_quotes_in_csv(tmp_path):
    tsv = save(tmp_path / "a.tsv", 'label\ttext\nx\t"one\ny\ttwo"\n')
    assert [record.texts for record in read(tsv, quoting="none")] == [('"one',), ('two"',)]
    assert [record.texts for record in read(tsv, quoting="minimal")] == [("one\ny\ttwo",)]
    table = save(tmp_path / "a.csv", 'label,text\r\nx,"one ""and""\r\ntwo, three"\r\n\r\ny,four\r\n')
    records = read(table)
    assert [record.texts for record in records] == [('one "and"\r\ntwo, three',), ("four",)]
    assert lines(records) == [2, 5]


def test_json_numbers_and_booleans_are_labels(tmp_path):
    values = [1, 1.5, True, False, " x ", -3]
    path = save(tmp_path / "a.jsonl", "\n\n".join(json.dumps({"label": value, "text": "t"}) for value in values))
    records = read(path)
    assert [record.label for record in records] == ["1", "1.5", "true", "false", "x", "-3"]
    assert lines(records) == [1, 3, 5, 7, 9, 11]


def test_columns_have_other_names_and_other_order(tmp_path):
    path = save(tmp_path / "a.tsv", "\ufeffid\thypothesis\tgold\tpremise\n7\th\tyes\tp\n")
    (record,) = read(path, label="gold", text="premise", text_b="hypothesis")
    assert record == Record(("p", "h"), "yes", f"{path}, line 2", "0")
    path = save(tmp_path / "b.tsv", "yes\t7\tp\r\n\r\nno\t8\tq\r\n")
    records = read(path, order=("label", "id", "text"))
    assert [(record.label, record.texts) for record in records] == [("yes", ("p",)), ("no", ("q",))]
    assert lines(records) == [1, 3]


def test_unlabelled_files_may_have_labels_empty_ones_or_none(tmp_path):
    assert [r.label for r in read(save(tmp_path / "a.tsv", "text\none\ntwo\n"), labelled=False)] == [None, None]
    assert [r.label for r in read(save(tmp_path / "b.tsv", "label\ttext\nx\tone\n\ttwo\n"), labelled=False)] == ["x", None]
    objects = '{"text": "one", "label": null}\n{"text": "two"}\n{"text": "three", "label": "x"}'
    assert [r.label for r in read(save(tmp_path / "c.jsonl", objects), labelled=False)] == [None, None, "x"]


def test_reading_is_a_stream(tmp_path):
    path = save(tmp_path / "a.tsv", "label\ttext\n" + "x\ttext\n" * 5_000 + "broken\n")
    first = [*itertools.islice(tables.read(path, Columns()), 3)]
    assert lines(first) == [2, 3, 4]
    with pytest.raises(UserError, match=r"line 5002 has 1 field,"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.doc", "x", r"The format of .*a.doc is unknown; name the file with one of the endings .tsv, .csv, .jsonl, .ndjson"),
        ("a.tsv", "", "a.tsv holds no rows below the line that names the columns"),
        ("a.csv", "label,text\n", "a.csv holds no rows below"),
        ("a.jsonl", "\n\n", r"a.jsonl holds no rows\."),
        (
            "a.tsv",
            "label\tsentence\nx\ty\n",
            "a.tsv has no column 'text' but 'label', 'sentence'. Name the .* --text and --text-b, or",
        ),
        ("a.tsv", "gj04\t1\nx\ty\n", "no column 'label' but 'gj04', '1'.*--columns"),
        ("a.jsonl", '{"text": "x"}\n', "a.jsonl, line 1 has no column 'label' but 'text'.*--text-b.$"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"label": 1}', "line 2 has no column 'text' but 'label'"),
        (
            "a.jsonl",
            '{"text": "x", "label": 1}\n{"text": "x", "label": 1, "text_b": "y"}',
            "line 2: there is a second text, 'text_b'",
        ),
        ("a.jsonl", '{"text": "x", "text_b": "y", "label": 1}\n{"text": "x", "label": 1}', "line 2 has no column 'text_b'"),
        ("a.tsv", "label\ttext\nx\ty\nx\n", "a.tsv, line 3 has 1 field, the columns are 'label', 'text'"),
        ("a.tsv", "label\ttext\nx\ty\tz\n", "a.tsv, line 2 has 3 fields"),
        ("a.csv", 'label,text\n"x\n",y\n\nx,y,z\n', "a.csv, line 5 has 3 fields"),
        ("a.tsv", "label\ttext\nx\t \n", "a.tsv, line 2: the text 'text' is empty"),
        ("a.tsv", "label\ttext\ttext_b\nx\ty\t\n", "a.tsv, line 2: the text 'text_b' is empty"),
        ("a.tsv", "label\ttext\n \ty\n", "a.tsv, line 2: the label 'label' is empty"),
        ("a.jsonl", '{"text": "x", "label": null}', "line 1: the label 'label' is empty"),
        ("a.tsv", b"label\ttext\nx\ta\xff\n", "a.tsv, line 2: byte 0xff at column 4 is not UTF-8"),
        ("a.csv", b"\xff\xfel\x00", "a.csv, line 1: byte 0xff at column 1 is not UTF-8"),
        ("a.csv", 'label,text\nx,"y"z\n', "a.csv, line 2: the row that starts here is not CSV: text follows the quote that closes"),
        (
            "a.csv",
            'label,text\nx,y\nx,"y\nx,y\n',
            "a.csv, line 3: .* not CSV: a quote is opened and never closed; .* --quoting none",
        ),
        ("a.csv", "label,text\rx,y\r", "a.csv, line 1: .* not CSV: it contains a carriage return outside of quotes"),
        ("a.tsv", 'label\ttext\nx\t"one\ny\ttwo"\n', "a.tsv has 3 lines if quotes are ordinary characters, and 2 if they enclose"),
        ("a.tsv", 'label\ttext\nx\t"one\ttwo"\n', "a.tsv, line 2 has 3 fields, .* needs quotes, which --quoting minimal reads"),
        ("a.csv", "label,text\nx,y\nlabel,text\nx,z\n", "a.csv, line 3: the row repeats the names of the columns, .*; remove it"),
        (
            "a.jsonl",
            '{"text": "x", "label": 1}\n{"text": "x\\ud800", "label": 1}',
            "line 2: 'text' has half a surrogate pair at .* 2",
        ),
        ("a.jsonl", '{"text": "x", "label": "\\udc00"}', "line 1: 'label' has half a surrogate pair at character 1"),
        ("a.jsonl", '{"text": 3, "label": 1}', "line 1: 'text' is 3; a text must be a string"),
        ("a.jsonl", '{"text": null, "label": 1}', "line 1: 'text' is null; a text must be a string"),
        ("a.jsonl", '{"text": "x", "label": [1]}', r"line 1: 'label' is \[1\]; a label must be a string, a number, true or false"),
        ("a.jsonl", '["x", 1]', "line 1 holds .*; it must be a JSON object"),
        ("a.jsonl", '{"text": "x"', "line 1 is not JSON"),
        ("a.tsv", "label\ttext\tlabel\nx\ty\tz\n", "a.tsv, line 1 names the column 'label' twice"),
    ],
)
def test_errors_are_one_sentence(tmp_path, name, content, sentence):
    with pytest.raises(UserError, match=sentence):
        read(save(tmp_path / name, content))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"There is no file .*a.tsv"):
        read(tmp_path / "a.tsv")
    (tmp_path / "b.tsv").mkdir()
    with pytest.raises(UserError, match=r"b.tsv is a directory"):
        read(tmp_path / "b.tsv")
    whole = gzip.compress(b"label\ttext\n" + b"".join(b"%d\ttext %d\n" % (n, n * n) for n in range(999)))
    for content in (whole[:-20], whole[: len(whole) // 2], b"label\ttext\nx\ty\n", whole[:40] + b"\0\0\0\0" + whole[44:]):
        path = tmp_path / "c.tsv.gz"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"c.tsv.gz is not a whole gzip file"):
            read(path)


def test_columns_that_make_no_sense(tmp_path):
    with pytest.raises(UserError, match=r"name three different ones"):
        Columns(label="text")
    with pytest.raises(UserError, match=r"have a name twice"):
        Columns(order=("label", "text", "label"))
    path = save(tmp_path / "a.tsv", "label\ttext\nx\ty\n")
    # A second text that was asked for by name is not optional.
    with pytest.raises(UserError, match=r"no column 'sentence2'"):
        read(path, text_b="sentence2")
    with pytest.raises(UserError, match=r"no column 'text' but 'label', 'sentence'.*--text-b.$"):
        read(path, order=("label", "sentence"))
    with pytest.raises(UserError, match=r"names its fields itself; leave --columns out"):
        read(save(tmp_path / "a.jsonl", "{}"), order=("label", "text"))


def test_rows_of_a_wrong_length_can_be_skipped(tmp_path):
    path = save(tmp_path / "a.tsv", "label\ttext\nx\ty\nx\n\nx\ty\tz\nx\tz\n")
    skipped = []
    rows = [row.fields["text"] for row in table_files.rows(path, skip=skipped.append)]
    assert (rows, skipped) == (["y", "z"], [f"{path}, line 3", f"{path}, line 5"])


@pytest.mark.parametrize(
    ("files", "data", "split", "found"),
    [
        (["train.tsv", "dev.tsv"], "", "train", "train.tsv"),
        (["train.tsv", "dev.tsv"], "", "dev", "dev.tsv"),
        (["validation.jsonl.gz"], "", "dev", "validation.jsonl.gz"),
        (["valid.csv"], "", "dev", "valid.csv"),
        (["val.ndjson"], "", "dev", "val.ndjson"),
        (["topic.train.tsv.gz", "other.train.tsv", "train.tsv"], "topic", "train", "topic.train.tsv.gz"),
        (["topic.val.csv", "dev.csv"], "topic", "dev", "topic.val.csv"),
        (["test.csv"], "", "test", "test.csv"),
    ],
)
def test_a_split_is_found(tmp_path, files, data, split, found):
    for name in files:
        save(tmp_path / name, "")
    assert Path(tables.split_file(tmp_path / data, split)) == tmp_path / found


def test_splits_that_are_missing_or_not_clear(tmp_path):
    with pytest.raises(UserError, match=r"no dev split at .*: dev or validation or valid or val in .*, with one of .tsv, .csv"):
        tables.split_file(tmp_path, "dev")
    for name in ("dev.tsv", "dev.tsv.gz", "val.csv"):
        save(tmp_path / name, "")
    with pytest.raises(UserError, match=r"dev.tsv, dev.tsv.gz, val.csv in .* could each be the dev split"):
        tables.split_file(tmp_path, "dev")
    with pytest.raises(UserError, match=r"no train split at .*topic: topic.train or topic_train in"):
        tables.split_file(tmp_path / "topic", "train")
    with pytest.raises(UserError, match=r"dev.tsv is a file; name its directory"):
        tables.split_file(tmp_path / "dev.tsv", "dev")
    with pytest.raises(UserError, match=r"choose one of train, dev, test"):
        tables.split_file(tmp_path, "eval")


def test_the_header_is_no_example_although_columns_are_named(tmp_path):
    """Training refuses it; for prediction it names the columns, in its own order."""
    path = save(tmp_path / "a.csv", "Text,label\none,x\n")
    with pytest.raises(UserError, match=r"a.csv, line 1: the row holds the names of the columns, .*; leave --columns out"):
        read(path, order=("label", "text"))
    for names in ("text,label", "label,text"):
        save(path, f"{names}\none,one\n")
        (record,) = tables.read_texts(path, Columns(order=("label", "text")))
        assert record == Record(("one",), None, f"{path}, line 2", "0")
    save(path, "x,one\n")
    assert [record.texts for record in tables.read_texts(path, Columns(order=("label", "text")))] == [("one",)]


def test_texts_are_read_without_labels(tmp_path):
    """Whatever the label column holds; an empty or null text is accepted if asked for."""
    path = save(tmp_path / "a.jsonl", '{"text": "one", "label": [1, {}]}\n{"text": null}\n{"text": " "}')
    assert [record.texts for record in tables.read_texts(path, Columns(), empty=True)] == [("one",), ("",), (" ",)]
    with pytest.raises(UserError, match=r"a.jsonl, line 2: 'text' is null"):
        list(tables.read_texts(path, Columns()))
    # Names for a table without a header do not concern files that name their fields.
    assert next(tables.read_texts(path, Columns(order=("label", "text")))).texts == ("one",)


def test_a_header_of_other_names_than_columns_gives_is_pointed_out(tmp_path, tokenizer):
    for split in ("train", "dev"):
        save(tmp_path / f"{split}.csv", "Sentiment,Review\npos,a\nneg,b\npos,c\nneg,d\n")
    source = Source(str(tmp_path), TaskDataConfig(columns=("label", "text")), tokenizer)
    with pytest.warns(
        BertWarning, match=r"train.csv, line 1 has the label 'Sentiment', which no other row has; if the row is a head"
    ):
        records.read_split(source, "classify", "train")
    save(tmp_path / "train.csv", "5,a\n1,b\n1,c\n2,d\n2,e\n")
    assert len(records.read_split(source, "regress", "train")) == 5
    save(tmp_path / "test.csv", ",a\nneg,b\nneg,c\n")
    assert [record.label for record in records.read_split(source, "classify", "test")] == [None, "neg", "neg"]
    (tmp_path / "dev.csv").rename(tmp_path / "train.csv")
    named = Source(str(tmp_path), TaskDataConfig(label="Sentiment", text="Review"), tokenizer)
    assert [record.label for record in records.read_split(named, "classify", "train")] == ["pos", "neg"] * 2
