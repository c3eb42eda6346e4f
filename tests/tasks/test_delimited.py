"""Cells of delimited files are those that pandas reads, whatever their size, and a doubtful reading of quotes is said."""

from __future__ import annotations

import csv
import io
import tempfile
import warnings
from pathlib import Path

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.errors import BertWarning, UserError
from bert_jax.tasks import delimited, table_files
from bert_jax.tasks.delimited import Dialect

CELLS = st.text(st.sampled_from("ab \"\n\t,;'"), min_size=1, max_size=12).filter(str.strip)


def save(path, content):
    path.write_text(content, newline="")
    return path


def rows(path, **how):
    return [tuple(row.fields.values()) for row in table_files.rows(path, **how)]


def pandas_rows(path, **how):
    return [*pandas.read_csv(path, dtype=str, keep_default_na=False, **how).itertuples(index=False, name=None)]


@given(
    st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5), st.sampled_from([",", ";", "\t"]), st.sampled_from(["\n", "\r\n"])
)
def test_what_pandas_writes_is_read_as_pandas_reads_it(cells, delimiter, end):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / ("a.tsv" if delimiter == "\t" else "a.csv")
        pandas.DataFrame(cells, columns=["label", "text"]).to_csv(path, sep=delimiter, index=False, lineterminator=end)
        assert rows(path, quoting="minimal") == pandas_rows(path, sep=delimiter) == cells


@pytest.mark.parametrize(
    ("name", "content", "how"),
    [
        ("a.csv", "label,text\r\nx,one\r\n", {}),
        ("a.csv", "\ufefflabel,text\nx,one\n", {}),
        ("a.csv", "label;text\nx;one, two\n", {"sep": ";"}),
        ("a.csv", 'text\none\n\n""\ntwo\n\n', {}),
        ("a.csv", 'label\ttext\nx\t"one, ""two"""\n', {"sep": "\t"}),
        ("a.tsv", "label\ttext\nx\t5' 3\" tall\n", {"sep": "\t", "quoting": csv.QUOTE_NONE}),
        ("a.tsv", 'label\ttext\nx\t"never closed\n', {"sep": "\t", "quoting": csv.QUOTE_NONE}),
    ],
)
def test_dialects_are_found_from_the_file(tmp_path, name, content, how):
    path = save(tmp_path / name, content)
    assert rows(path) == pandas_rows(path, **how)
    quoting = "none" if "quoting" in how else "minimal"
    assert delimited.dialect(path) == Dialect(how.get("sep", ","), quoting)


def test_the_names_of_columns_tell_whether_a_first_row_is_separated(tmp_path):
    path = save(tmp_path / "a.csv", "one; two\n")
    assert rows(path, order=["text"]) == [("one; two",)]
    assert rows(path, order=["label", "text"]) == [("one", " two")]


def test_cells_of_any_size(tmp_path):
    """The limit of the csv module, which belongs to the process, is as before afterwards."""
    text = "word " * 40_000
    path, limit = save(tmp_path / "a.csv", f'label,text\npos,"{text}"\nneg,b\n'), csv.field_size_limit()
    stream = table_files.rows(path)
    assert next(stream).fields["text"] == text
    assert csv.field_size_limit() == limit
    assert next(stream).fields == {"label": "neg", "text": "b"}
    assert pandas_rows(path)[0] == ("pos", text)
    # Files of SWAG as well.
    assert [row for _, row in delimited.csv_rows(path)][1] == ["pos", text]


def test_quoted_cells_of_a_tsv_file_are_said(tmp_path):
    path = save(tmp_path / "a.tsv", 'label\ttext\npos\t"He said ""hi"" to me"\nneg\tb\n')
    with pytest.warns(
        BertWarning, match=r"a.tsv has 1 cell in quotes, .*; --quoting minimal removes them .*, --quoting none keeps"
    ):
        found = rows(path)
    assert found == [("pos", '"He said ""hi"" to me"'), ("neg", "b")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rows(path, quoting="none") == found == pandas_rows(path, sep="\t", quoting=csv.QUOTE_NONE)
        assert rows(path, quoting="minimal") == pandas_rows(path, sep="\t") == [("pos", 'He said "hi" to me'), ("neg", "b")]


def test_readings_with_other_numbers_of_rows_are_refused(tmp_path):
    text = io.StringIO()
    pandas.DataFrame({"label": ["a", "b"], "text": ["one\nb\ttwo", "three"]}).to_csv(text, sep="\t", index=False)
    path = save(tmp_path / "a.tsv", text.getvalue())
    with pytest.raises(UserError, match=r"a.tsv has 4 lines .*, and 3 .*; choose the first with --quoting none, the second with"):
        rows(path)
    assert rows(path, quoting="minimal") == pandas_rows(path, sep="\t")
    assert rows(path, quoting="none") == pandas_rows(path, sep="\t", quoting=csv.QUOTE_NONE)
