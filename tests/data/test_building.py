"""Building of a corpus: one pass, any number of processes, stopped and continued, inputs of all kinds, provenance."""

from __future__ import annotations

import bz2
import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import lzma
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import filelock
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds

from bert_jax import cli, tokenizers
from bert_jax.config.data import DataConfig
from bert_jax.data import building, chunks, reading, sentence_pairs
from bert_jax.data.corpus import open_corpus
from bert_jax.data.readers import find_inputs, read_documents
from bert_jax.data.reading import BuildOptions
from bert_jax.errors import RunError, UserError
from tests.conftest import files_below, write_text

OPTIONS = BuildOptions(held_out=0.1)


@pytest.fixture
def small_chunks(monkeypatch):
    """About 20 chunks."""
    monkeypatch.setattr(reading, "CHUNK_CHARACTERS", 1_000)


@pytest.fixture
def inputs(text):
    return find_inputs([text])


def build(inputs, out, tokenizer, *, workers=1, **options):
    return building.build_corpus(inputs, out, tokenizer, OPTIONS, workers=workers, **options)


def contents(corpus):
    """Every array of every document of the splits."""
    stored = []
    for split in (corpus.train, corpus.held_out):
        for document in split.documents.__getitems__([*range(len(split.first) - 1)]):
            stored.append({name: values.tolist() for name, values in document.items()})
    return stored


@pytest.mark.parametrize("workers", [1, 3])
def test_the_corpus_depends_neither_on_chunks_nor_on_processes(small_chunks, inputs, corpus, tokenizer, tmp_path, workers):
    sizes = build(inputs, tmp_path / "c", tokenizer, workers=workers)
    again = open_corpus(tmp_path / "c")
    assert again.digest() == corpus.digest()
    assert contents(again) == contents(corpus)
    assert len([*(tmp_path / "c").glob("corpus-train.array_record-*")]) > 10
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert sizes["train"]["documents"] + sizes["held_out"]["documents"] == 80
    builder = tfds.builder_from_directory(tmp_path / "c")
    assert builder.info.splits["train"].num_examples == sizes["train"]["documents"]


def test_counts_and_provenance(inputs, tokenizer, text, tmp_path):
    sizes = build(inputs, tmp_path / "c", tokenizer)
    stored = json.loads((tmp_path / "c" / "provenance.json").read_text())
    assert stored["counts"] == sizes
    digest = hashlib.sha256(text.read_bytes()).hexdigest()
    files = [{"path": str(text), "bytes": text.stat().st_size, "sha256": digest}]
    assert stored["sources"] == [{"name": "", "files": files, "counts": sizes}]
    assert stored["options"] == dataclasses.asdict(OPTIONS)
    assert stored["mix"] is None
    assert stored["digest"] == open_corpus(tmp_path / "c").compute_digest()
    documents = [*read_documents([text])]
    assert sum(split["words"] for split in sizes.values()) == len(text.read_text().split())
    assert sum(split["sentences"] for split in sizes.values()) == sum(map(len, documents))


class Stopped(Exception):
    """Stands for whatever ends a build from outside."""


def stop_after(count):
    calls = []

    def progress(done):
        calls.append(done)
        if len(calls) == count:
            raise Stopped

    return progress


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stopped_build_continues_without_writing_a_chunk_twice(
    small_chunks, inputs, corpus, tokenizer, tmp_path, workers, monkeypatch
):
    out = tmp_path / "c"
    with pytest.raises(Stopped):
        build(inputs, out, tokenizer, workers=workers, progress=stop_after(5))
    assert not out.exists()
    partial = tmp_path / ".c.partial" / "files"
    done = {path.name: path.stat().st_mtime_ns for path in partial.glob("*.npz")}
    assert len(done) >= 5
    written, original = [], chunks.Writer.write
    monkeypatch.setattr(chunks.Writer, "write", lambda self, chunk: written.append(chunk.number) or original(self, chunk))
    build(inputs, out, tokenizer, workers=1)
    assert not {f"{number:06}.npz" for number in written} & set(done)
    assert open_corpus(out).digest() == corpus.digest()
    assert contents(open_corpus(out)) == contents(corpus)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_build_stopped_while_shards_are_renamed_continues(small_chunks, inputs, corpus, tokenizer, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tfds.folder_dataset, "write_metadata", lambda **_: (_ for _ in ()).throw(Stopped()))
        with pytest.raises(Stopped):
            build(inputs, tmp_path / "c", tokenizer)
    build(inputs, tmp_path / "c", tokenizer)
    assert contents(open_corpus(tmp_path / "c")) == contents(corpus)


def test_another_text_or_other_options_start_anew(small_chunks, text, tokenizer, tmp_path):
    copy = tmp_path / "text.txt"
    shutil.copy(text, copy)
    for change in (lambda: os.utime(copy, (1, 1)), lambda: None):
        with pytest.raises(Stopped):
            build(find_inputs([copy]), tmp_path / "c", tokenizer, progress=stop_after(3))
        partial = tmp_path / ".c.partial" / "files"
        before = {path.name: path.stat().st_mtime_ns for path in partial.glob("*.npz")}
        change()
        with pytest.raises(Stopped):
            build(find_inputs([copy]), tmp_path / "c", tokenizer, progress=stop_after(1))
        kept = before.items() & {path.name: path.stat().st_mtime_ns for path in partial.glob("*.npz")}.items()
        assert bool(kept) == (change.__code__.co_names == ())
    building.build_corpus(find_inputs([copy]), tmp_path / "c", tokenizer, BuildOptions(held_out=0.2), workers=1)
    assert len(open_corpus(tmp_path / "c").held_out.first) == 17


def test_two_builds_of_one_corpus_are_refused(inputs, tokenizer, tmp_path):
    (tmp_path / ".c.partial").mkdir()
    with filelock.FileLock(tmp_path / ".c.partial" / "lock"), pytest.raises(UserError, match="is being built by another process"):
        build(inputs, tmp_path / "c", tokenizer)


def test_a_full_disk_keeps_what_is_finished(small_chunks, inputs, corpus, tokenizer, tmp_path, monkeypatch):
    original, count = chunks.ArrayRecordFileAdapter.write_examples, []

    def fill(path, records):
        count.append(path)
        if len(count) == 8:
            raise OSError(28, "No space left on device", str(path))
        return original(path, records)

    with monkeypatch.context() as patch:
        patch.setattr(chunks.ArrayRecordFileAdapter, "write_examples", fill)
        with pytest.raises(OSError, match="No space"):
            build(inputs, tmp_path / "c", tokenizer, workers=1)
    assert [*(tmp_path / ".c.partial" / "files").glob("*.npz")]
    build(inputs, tmp_path / "c", tokenizer)
    assert contents(open_corpus(tmp_path / "c")) == contents(corpus)


def test_a_killed_process_is_a_failure_that_can_continue(small_chunks, inputs, corpus, tokenizer, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(chunks, "write_in_worker", _die)
        with pytest.raises(RunError, match="A process was killed"):
            build(inputs, tmp_path / "c", tokenizer, workers=2)
    build(inputs, tmp_path / "c", tokenizer)
    assert contents(open_corpus(tmp_path / "c")) == contents(corpus)


def _die(chunk):
    os.kill(os.getpid(), signal.SIGKILL)


def zstd(content):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return sink.getvalue().to_pybytes()


COMPRESSED = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}
TEXTS = ["One sentence here.\nAnother one.", "A second document.", "Über 東京."]


@pytest.mark.parametrize("compressed", COMPRESSED)
@pytest.mark.parametrize("suffix", ["txt", "jsonl", "json"])
def test_compressed_files(tmp_path, compressed, suffix):
    text = "\n\n".join(TEXTS) if suffix == "txt" else "\n".join(json.dumps({"text": text}) for text in TEXTS)
    path = tmp_path / f"a.{suffix}{compressed}"
    content = COMPRESSED[compressed](text.encode())
    path.write_bytes(content)
    expected = [["One sentence here.", "Another one."], ["A second document."], ["Über 東京."]]
    assert [*read_documents([path])] == expected
    if compressed:
        path.write_bytes(content[:-9])
        with pytest.raises(UserError, match="is not a whole") as error:
            [*read_documents([path])]
        assert str(path) in str(error.value)


def test_patterns_directories_and_standard_input(tmp_path, monkeypatch):
    data = tmp_path / "data"
    (data / "en").mkdir(parents=True)
    (data / ".cache").mkdir()
    (data / "b.txt").write_text("Second.")
    (data / "a.txt.gz").write_bytes(gzip.compress(b"First."))
    (data / "en" / "c.jsonl").write_text('{"text": "Third."}')
    pyarrow.parquet.write_table(pyarrow.table({"text": ["Fourth."]}), data / "en" / "train-00000-of-00001.parquet")
    (data / ".cache" / "d.txt").write_text("Hidden.")
    (data / "README.md").write_text("No text.")
    everything = [["First."], ["Second."], ["Third."], ["Fourth."]]
    assert [*read_documents([data])] == everything
    assert [*read_documents([str(data / "*.txt*"), data / "en"])] == everything
    with contextlib.chdir(tmp_path):
        assert [*read_documents(["data/*.txt"])] == [["Second."]]
        assert [*read_documents(["data/?.txt"])] == [["Second."]]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"From a pipe.\n\nAnd more.\n")))
    assert [*read_documents(["-"])] == [["From a pipe."], ["And more."]]
    for wrong, message in ((data / "*.csv", "No file matches"), (data / "x.txt", "There is no file")):
        with pytest.raises(UserError, match=message):
            find_inputs([wrong])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="directory without text files"):
        find_inputs([tmp_path / "empty"])


DUMP = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10" xml:lang="en">
<siteinfo><sitename>W</sitename><dbname>w</dbname><namespaces><namespace key="0" case="first-letter" />
<namespace key="1" case="first-letter">Talk</namespace></namespaces></siteinfo>
{pages}
</mediawiki>"""
PAGE = """<page><title>{title}</title><ns>{ns}</ns><id>{id}</id>{redirect}<revision><id>1{id}</id>
<timestamp>2020-01-01T00:00:00Z</timestamp><contributor><username>u</username><id>1</id></contributor>
<model>wikitext</model><format>text/x-wiki</format><text xml:space="preserve">{text}</text></revision></page>"""
ARTICLE = """{{Infobox|name=x|text=No text.}}
'''Oslo''' is the [[capital city|capital]] of [[Norway]].&lt;ref&gt;A source.&lt;/ref&gt; It is old.
[[File:Oslo.jpg|thumb|A caption. [[Link]].]]
== History ==
* The town was ''founded'' in [[1040]].
{| class="wikitable"
| cell
|}
See [http://example.com the page].
[[Category:Capitals]]"""


def test_a_dump_of_mediawiki(tmp_path):
    pages = [
        PAGE.format(title="Oslo", ns=0, id=1, redirect="", text=ARTICLE),
        PAGE.format(title="Talk:Oslo", ns=1, id=2, redirect="", text="A discussion."),
        PAGE.format(title="Christiania", ns=0, id=3, redirect='<redirect title="Oslo" />', text="#REDIRECT [[Oslo]]"),
        PAGE.format(title="Bergen", ns=0, id=4, redirect="", text="Bergen is a city. It rains."),
    ]
    path = tmp_path / "wiki-pages-articles.xml.bz2"
    path.write_bytes(bz2.compress(DUMP.format(pages="\n".join(pages)).encode()))
    assert [*read_documents([path])] == [
        ["Oslo is the capital of Norway.", "It is old.", "The town was founded in 1040.", "See the page."],
        ["Bergen is a city.", "It rains."],
    ]
    path.write_bytes(bz2.compress(DUMP.format(pages="\n".join(pages)).encode()[:-200]))
    with pytest.raises(UserError, match="is not a dump of MediaWiki"):
        [*read_documents([path])]
    (tmp_path / "other.xml").write_text("<html><body>No dump.</body></html>")
    with pytest.raises(UserError, match="is not a dump of MediaWiki: its root element has another name"):
        [*read_documents([tmp_path / "other.xml"])]


@pytest.mark.parametrize("file_format", ["array_record"])
def test_a_data_set_of_tfds(tmp_path, monkeypatch, file_format):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "title": tfds.features.Text()})
    directory = tmp_path / "tiny_wiki" / "1.0.0"
    directory.mkdir(parents=True)
    marked = "\n_START_ARTICLE_\nTitle\n_START_SECTION_\nHistory\n_START_PARAGRAPH_\nOne sentence._NEWLINE_Two. Three."
    rows = [(0, features.serialize_example({"text": text, "title": "t"})) for text in ("Plain text. More.", marked)]
    chunks.ArrayRecordFileAdapter.write_examples(directory / "tiny_wiki-train.array_record-00000-of-00001", rows)
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    info = tfds.core.SplitInfo(
        name="train",
        shard_lengths=[2],
        num_bytes=9,
        filename_template=tfds.core.ShardedFileTemplate(
            data_dir=directory, template=template, dataset_name="tiny_wiki", split="train", filetype_suffix="array_record"
        ),
    )
    tfds.folder_dataset.write_metadata(data_dir=directory, features=features, split_infos=[info], check_data=False)
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    assert [*read_documents(["tfds:tiny_wiki"])] == [["Plain text.", "More."], ["One sentence.", "Two.", "Three."]]
    with pytest.raises(UserError, match="has no split 'test' but train"):
        [*read_documents(["tfds:tiny_wiki@test"])]
    with pytest.raises(UserError, match="has no feature 'body' but"):
        [*read_documents(["tfds:tiny_wiki"], field="body")]
    with pytest.raises(UserError, match="TFDS cannot prepare 'no_such_data_set'"):
        [*read_documents(["tfds:no_such_data_set"])]


def test_standard_input_becomes_a_corpus(text, tokenizer, corpus, tmp_path):
    tokenizers.save(tokenizer, tmp_path / "v")
    program = "import sys\nfrom bert_jax import cli\nsys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "prepare", "-", "--vocab", str(tmp_path / "v"), "--out", str(tmp_path / "c")]
    with text.open("rb") as file:
        subprocess.run([*command, "--held-out", "0.1"], stdin=file, check=True, capture_output=True)
    assert contents(open_corpus(tmp_path / "c")) == contents(corpus)


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow), pytest.param(signal.SIGKILL, marks=pytest.mark.slow)],
)
def test_a_signal_keeps_finished_shards(tokenizer, tmp_path, number):
    """The command is stopped when two shards are finished, and run again."""
    text, vocab, out = tmp_path / "text.txt", tmp_path / "v", tmp_path / "c"
    write_text(text, documents=9000)
    tokenizers.save(tokenizer, vocab)
    program = (
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from bert_jax.data import reading\nreading.CHUNK_CHARACTERS = 40_000\nfrom bert_jax import cli\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", program, "prepare", str(text), "--vocab", str(vocab), "--out", str(out), "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    files = tmp_path / ".c.partial" / "files"
    while process.poll() is None and len([*files.glob("*.npz")]) < 2:
        time.sleep(0.005)
    process.send_signal(number)
    _, message = process.communicate()
    assert process.returncode in (128 + number, -number), message
    assert not out.exists()
    done = files_below(files)
    assert len(done) >= 4
    if number == signal.SIGINT:
        assert "the same command continues after the last complete shard" in message
    subprocess.run(command, check=True, capture_output=True)
    build(find_inputs([text]), tmp_path / "whole", tokenizer)
    # With another fraction held out, so only the documents are compared.
    stored = open_corpus(out)
    assert len(stored.train.first) + len(stored.held_out.first) - 2 == 9000


def test_a_broken_input_leaves_nothing(small_chunks, text, tokenizer, tmp_path):
    bad = tmp_path / "bad.txt"
    bad.write_bytes(text.read_bytes() + b"\xff\n")
    with pytest.raises(UserError, match="is not UTF-8"):
        build(find_inputs([bad]), tmp_path / "deep" / "c", tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.txt"]


def test_the_command_shows_progress(text, tokenizer, tmp_path, capsys):
    tokenizers.save(tokenizer, tmp_path / "v")
    assert cli.main(["prepare", str(text), "--vocab", str(tmp_path / "v"), "--out", str(tmp_path / "c")]) == 0
    captured = capsys.readouterr()
    assert "100%" in captured.err
    assert "MB/s" in captured.err
    assert "80 documents" in captured.err
    assert captured.out.startswith(f"{tmp_path / 'c'} train: 76 documents")


def make_sources(tmp_path):
    """Three sources with 40, 20 and 60 documents, some of them in two files."""
    sizes = {"wiki": (25, 15), "books": (20,), "news": (60,)}
    texts = []
    for source, counts in sizes.items():
        for number, count in enumerate(counts):
            write_text(tmp_path / f"{source}-{number}.txt", documents=count, seed=len(texts))
            texts.append(f"{source}={tmp_path}/{source}-{number}.txt")
    # The files of a source need not be neighbours.
    return [texts[0], *texts[2:], texts[1]]


@pytest.mark.parametrize("options", [{"mix": "wiki=2,books=1.5,news=1"}, {"smoothing": 0.3}, {"smoothing": 1.0}])
def test_sources_are_mixed_by_weights(tmp_path, tokenizer, options):
    options = BuildOptions(held_out=0.1, **options)
    building.build_corpus(find_inputs(make_sources(tmp_path)), tmp_path / "c", tokenizer, options, workers=1)
    stored = json.loads((tmp_path / "c" / "provenance.json").read_text())
    tokens = {source["name"]: source["counts"]["train"]["tokens"] for source in stored["sources"]}
    assert [*tokens] == ["wiki", "books", "news"]
    weights = {"wiki": 2, "books": 1.5, "news": 1}
    if options.smoothing is not None:
        weights = {source: count**options.smoothing for source, count in tokens.items()}
    split = open_corpus(tmp_path / "c").train
    lengths = np.add.reduceat(split.lengths, split.first[:-1])
    uses = np.zeros(len(lengths), int)
    epochs = 40
    for epoch in range(epochs):
        order = sentence_pairs._order(sentence_pairs._uses(split), 1, 0, epoch, 0)
        documents, copies = sentence_pairs._documents(split, epoch, order)
        assert len({*zip(documents.tolist(), copies.tolist(), strict=True)}) == len(documents)
        now = np.bincount(documents, minlength=len(uses))
        assert now.min() >= 1
        uses += now
    found = [(uses * lengths)[part.start : part.stop].sum() for part in split.mixture]
    expected = np.array([weights[source] for source in tokens])
    np.testing.assert_allclose(found / np.sum(found), expected / expected.sum(), rtol=0.02)
    for part in split.mixture:
        # All documents of a source are used equally often, over epochs.
        assert np.ptp(uses[part.start : part.stop]) <= 1


def test_examples_of_repeated_documents_have_ids_of_their_own(tmp_path, tokenizer):
    options = BuildOptions(held_out=0.1, mix="wiki=9,books=1,news=1")
    building.build_corpus(find_inputs(make_sources(tmp_path)), tmp_path / "c", tokenizer, options, workers=1)
    split = open_corpus(tmp_path / "c").train
    config = DataConfig("", sequence_length=32, batch_size=8)
    plans = [sentence_pairs.plan(split, config, seed=0, epoch=epoch, block=0) for epoch in range(3)]
    ids = np.concatenate([plan.example for plan in plans])
    assert len(np.unique(ids)) == len(ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix": "wiki=2"}, "--mix gives weights to wiki, but the sources of the text are books, news, wiki"),
        ({"mix": "wiki=2,books=0,news=1"}, "--mix contains 'books=0'; give each source a positive number"),
        ({"mix": "wiki=2,books,news=1"}, "--mix contains 'books'"),
        ({"mix": "a=1", "smoothing": 0.5}, "leave one out"),
        ({"smoothing": 2.0}, "must lie in"),
        ({"language": "poetry=de"}, "--language names poetry, but no text is given as poetry=PATH"),
        ({"language": "wiki=de,fr"}, "give a code such as en"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, tokenizer, options, message):
    with pytest.raises(UserError, match=message):
        building.build_corpus(
            find_inputs(make_sources(tmp_path)), tmp_path / "c", tokenizer, BuildOptions(held_out=0.1, **options), workers=1
        )
    assert not (tmp_path / "c").exists()


def test_the_language_of_a_source_splits_its_sentences(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": "Am 3. Oktober ist Feiertag. Es regnet."}))
    options = BuildOptions(language="german=de")
    reader = reading.Reader(find_inputs([f"german={tmp_path}/a.jsonl", f"english={tmp_path}/b.jsonl"]), options)
    found = [(chunk.source, chunk.language) for chunk, _ in reader]
    assert found == [("german", "de"), ("english", "en")]


def test_repeated_documents_are_dropped(tmp_path, tokenizer):
    rng = random.Random(0)
    words = [f"w{number}" for number in range(1000)]
    texts = [" ".join(rng.choices(words, k=200)) for _ in range(60)]
    changed = {number: texts[number].split() for number in (3, 7)}
    for row in changed.values():
        row[100] = "another"
    near = [" ".join(row) for row in changed.values()]
    exact = [texts[5].upper(), "  ".join(texts[9].split())]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, *exact, *near, texts[11]]))
    expected = {"keep": (65, 0), "exact": (62, 3), "near": (60, 5)}
    for duplicates, (documents, dropped) in expected.items():
        for workers in (1, 2) if duplicates == "near" else (1,):
            out = tmp_path / f"{duplicates}-{workers}"
            options = BuildOptions(held_out=0.1, duplicates=duplicates)
            sizes = building.build_corpus(find_inputs([tmp_path / "text.jsonl"]), out, tokenizer, options, workers=workers)
            assert sum(split["documents"] for split in sizes.values()) == documents
            assert json.loads((out / "provenance.json").read_text())["dropped_duplicates"] == dropped


def test_lengths_are_memory_mapped(small_chunks, inputs, tokenizer, tmp_path):
    build(inputs, tmp_path / "c", tokenizer)
    corpus = open_corpus(tmp_path / "c")
    assert isinstance(corpus.train.lengths, np.memmap)
    assert pathlib.Path(corpus.train.lengths.filename).name == "train.lengths.npy"
