"""Building on Apache Beam: the same corpus as on one machine, by any number of workers, stopped and continued."""

from __future__ import annotations

import gzip
import json
import shutil
import sys

import pytest

from bert_jax import cli, tokenizers
from bert_jax.data import beam, building, chunks, reading
from bert_jax.data.corpus import open_corpus
from bert_jax.data.readers import find_inputs, read_documents
from bert_jax.data.reading import BuildOptions
from bert_jax.errors import RunError, UserError
from tests.conftest import files_below, write_text
from tests.data.test_building import contents

OPTIONS = BuildOptions(held_out=0.1, mix="wiki=2,books=1", language="wiki=en,books=de")
THREADS = ["--runner=FnApiRunner", "--direct_num_workers=3", "--direct_running_mode=multi_threading"]


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(reading, "CHUNK_CHARACTERS", 1_000)


@pytest.fixture
def inputs(tmp_path):
    """Two sources in five files: several in a group, one of several chunks, one of another format."""
    (tmp_path / "texts").mkdir()
    for number, documents in enumerate((2, 1, 30, 20)):
        write_text(tmp_path / "texts" / f"{number}.txt", documents=documents, seed=number)
    records = [{"text": " ".join(document)} for document in read_documents([tmp_path / "texts" / "3.txt"])]
    (tmp_path / "texts" / "4.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, records)).encode()))
    named = [f"books={tmp_path}/texts/2.txt", f"wiki={tmp_path}/texts/[01].txt", f"wiki={tmp_path}/texts/[34].*"]
    return find_inputs(named)


def require_equal(ours, theirs):
    """Every document, array and figure is equal; only the borders of shards may differ."""
    assert contents(open_corpus(ours)) == contents(open_corpus(theirs))
    files, expected = (files_below(corpus) for corpus in (ours, theirs))
    kept = {name for name in expected if "array_record" not in name and name != "dataset_info.json"}
    assert kept >= {"provenance.json", "train.first.npy", "train.lengths.npy", "held_out.counts.npy", "vocab.txt"}
    assert {name: files[name] for name in kept} == {name: expected[name] for name in kept}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--runner=FnApiRunner"],
        THREADS,
        pytest.param(["--direct_num_workers=2", "--direct_running_mode=multi_processing"], marks=pytest.mark.slow),
    ],
)
def test_beam_builds_what_one_machine_builds(small_chunks, inputs, tokenizer, tmp_path, arguments):
    sizes = beam.build_corpus(inputs, tmp_path / "beam", tokenizer, OPTIONS, arguments)
    assert sizes == building.build_corpus(inputs, tmp_path / "local", tokenizer, OPTIONS, workers=1)
    require_equal(tmp_path / "beam", tmp_path / "local")
    assert len([*(tmp_path / "beam").glob("corpus-train.array_record-*")]) >= 3
    assert not (tmp_path / ".beam.partial").exists()


def test_a_pipeline_that_failed_continues(small_chunks, inputs, tokenizer, tmp_path, monkeypatch):
    original, written = chunks.Writer.write, []

    def write(self, chunk):
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(chunk.number)
        return original(self, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(chunks.Writer, "write", write)
        with pytest.raises(RunError, match=r"Beam's pipeline failed: .*No space left on device.*the same command continues"):
            beam.build_corpus(inputs, tmp_path / "beam", tokenizer, OPTIONS, ["--runner=FnApiRunner"])
    assert not (tmp_path / "beam").exists()
    finished = set(written)
    monkeypatch.setattr(chunks.Writer, "write", lambda self, chunk: written.append(chunk.number) or original(self, chunk))
    monkeypatch.setattr(beam, "_survey", None)
    beam.build_corpus(inputs, tmp_path / "beam", tokenizer, OPTIONS, ["--runner=FnApiRunner"])
    assert len(finished) == 3
    assert len(written) == len(set(written)) > 6
    building.build_corpus(inputs, tmp_path / "local", tokenizer, OPTIONS, workers=1)
    require_equal(tmp_path / "beam", tmp_path / "local")


def test_bad_input_is_named_and_leaves_nothing(inputs, tokenizer, tmp_path):
    (tmp_path / "texts" / "1.txt").write_bytes(b"Good.\nBad: \xff.\n")
    with pytest.raises(UserError, match=r"1\.txt, line 2: byte 0xff at column 6 is not UTF-8"):
        beam.build_corpus(inputs, tmp_path / "deep" / "beam", tokenizer, OPTIONS, THREADS)
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]
    for texts, options, message in (
        (["-"], BuildOptions(), "cannot read standard input"),
        ([tmp_path / "texts" / "0.txt"], BuildOptions(duplicates="exact"), "--duplicates compares all documents"),
        ([tmp_path / "texts" / "0.txt"], OPTIONS, "--mix gives weights to books, wiki"),
    ):
        with pytest.raises(UserError, match=message):
            beam.build_corpus(find_inputs(texts), tmp_path / "beam", tokenizer, options, THREADS)


def test_the_command(text, tokenizer, corpus, tmp_path, capsys, monkeypatch):
    tokenizers.save(tokenizer, tmp_path / "v")
    command = ["prepare", str(text), "--vocab", str(tmp_path / "v"), "--out", str(tmp_path / "c"), "--held-out", "0.1"]
    assert cli.main([*command, f"--beam={' '.join(THREADS)}"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'c'} train: 72 documents")
    assert contents(open_corpus(tmp_path / "c")) == contents(corpus)
    shutil.rmtree(tmp_path / "c")
    assert cli.main([*command, "--beam=--runner=NoSuchRunner"]) == 2
    assert "Beam refuses its options: Unexpected pipeline runner: NoSuchRunner" in capsys.readouterr().err
    assert cli.main([*command, "--beam=", "--workers", "2"]) == 2
    assert "--workers has no effect with --beam" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "bert_jax.data.beam")
    assert cli.main([*command, "--beam="]) == 2
    assert "pip install 'bert-jax[beam]'" in capsys.readouterr().err
