"""The meaning of NSP labels, found in real text that the original's builder pairs, and not found where there is none."""

from __future__ import annotations

import dataclasses
import gzip
import pathlib
import random
import re
import shutil
from pydoc_data.topics import topics

import numpy as np
import pytest
from scipy import stats

from bert_jax import DataConfig, tokenizers
from bert_jax.data import nsp_labels
from bert_jax.data.google import GoogleFlags, write_records
from bert_jax.data.nsp_labels import Pair, label_meaning
from bert_jax.data.records import Records, find_files
from bert_jax.data.sources import open_data
from bert_jax.errors import BertWarning, UserError
from bert_jax.evaluation.inspection import inspect_records
from bert_jax.io import tfrecord
from bert_jax.training.pretraining import pretrain
from tests.cli.test_cli import here, ok

LENGTH = 64


@pytest.fixture(scope="module")
def documents():
    """Python's own documentation, the longer entries."""
    found = []
    for topic in sorted(topics):
        sentences = [" ".join(part.split()) for part in re.split(r"(?<=[.:])\s+", topics[topic])]
        found.append([sentence for sentence in sentences if len(sentence.split()) > 3])
    return [document for document in found if len(document) > 10]


@pytest.fixture(scope="module")
def vocabulary(documents):
    sentences = [sentence for document in documents for sentence in document]
    return tokenizers.train(lambda: sentences, kind="wordpiece", size=2000)


def build(documents, vocabulary, path, *, shards=2, **flags):
    path.mkdir()
    text = path / "text.txt"
    text.write_text("\n\n".join("\n".join(document) for document in documents), encoding="utf-8")
    flags = GoogleFlags(**{"max_seq_length": LENGTH, "max_predictions_per_seq": 5, "dupe_factor": 1} | flags)
    write_records([text], path / "records", vocabulary, flags, shards=shards)
    return path / "records"


@pytest.fixture(scope="module")
def records(documents, vocabulary, tmp_path_factory):
    """Two files with some 300 pairs each."""
    return build(documents, vocabulary, tmp_path_factory.mktemp("nsp") / "a")


def flip(path):
    """Give the labels of a file the opposite meaning."""
    rows = []
    for data in tfrecord.stream(path):
        row = {name: values.tolist() for name, values in tfrecord.decode_example(data).items()}
        rows.append(row | {"next_sentence_labels": [1 - row["next_sentence_labels"][0]]})
    with path.open("wb") as file:
        for row in rows:
            tfrecord.write_record(file, tfrecord.encode_example(row))


@pytest.fixture
def copied(records, tmp_path):
    return shutil.copytree(records, tmp_path / "copy")


def config_of(path, **changes):
    return DataConfig(str(path), sequence_length=LENGTH, batch_size=8, **changes)


def check(path, **changes):
    config = config_of(path, **changes)
    nsp_labels.check(Records(config), config)


def meanings(path, vocabulary, pairs=8192):
    return [*nsp_labels.label_meanings(find_files(str(path)), vocabulary.special_tokens, pairs=pairs)]


@pytest.fixture(scope="module")
def pairs(records, vocabulary):
    return nsp_labels.read_pairs(find_files(str(records))[0], vocabulary.special_tokens, 1000)


def test_the_meaning_of_each_file_is_found(copied, vocabulary):
    files = find_files(str(copied))
    assert [meaning.label_1 for meaning in meanings(copied, vocabulary)] == ["random", "random"]
    flip(files[1])
    first, second = meanings(copied, vocabulary)
    assert (first.label_1, second.label_1) == ("random", "next")
    assert (first.file, second.file) == tuple(map(str, files))
    assert min(first.z, -second.z) > 6
    assert max(first.pairs_needed, second.pairs_needed) < min(first.pairs, second.pairs)


def test_files_that_contradict_each_other_are_refused(copied, run_config):
    flip(find_files(str(copied))[1])
    config = dataclasses.replace(run_config, data=config_of(copied), model=dataclasses.replace(run_config.model, vocab_size=2000))
    with pytest.raises(
        UserError, match=r"label 1 means a random .* in .*00000-of-00002\.tfrecord, but the next one in .*00001-of-"
    ):
        pretrain(config)
    assert not pathlib.Path(config.run).exists()
    # Held-out files belong to the same run.
    files = find_files(str(copied))
    with pytest.raises(UserError, match=r"means a random .* in .*00000-of-00002\.tfrecord, but the next one in .*00001-of-"):
        check(files[0], held_out=str(files[1]))


def test_another_meaning_than_the_configured_one_is_a_warning(copied):
    check(copied)
    for expected, found in (("next", "a random"), ("random", "the next")):
        if found == "the next":
            for path in find_files(str(copied)):
                flip(path)
        right = "next" if expected == "random" else "random"
        sentence = (
            rf"label 1 means {found} second segment in .*00000-of.*, but data.nsp_label is {expected}; use --data.nsp-label {right}"
        )
        with pytest.warns(BertWarning, match=sentence):
            check(copied, nsp_label=expected)
        check(copied, nsp_label=right)


def test_labels_of_both_kinds_make_the_same_batches(copied):
    def batch(**changes):
        batches = Records(config_of(copied, **changes)).train_batches(seed=3, rows=np.arange(4))
        taken = [next(batches) for _ in range(8)]
        batches.close()
        return taken

    expected = batch()
    for path in find_files(str(copied)):
        flip(path)
    for found, other, original in zip(batch(nsp_label="next"), batch(), expected, strict=True):
        assert all((found[name] == original[name]).all() for name in original)
        assert (other["nsp_labels"] == 1 - original["nsp_labels"]).all()
    assert len({int(label) for row in expected for label in row["nsp_labels"].ravel()}) == 2


def test_small_files_raise_no_false_alarm(documents, vocabulary, tmp_path):
    """Warnings are errors here."""
    for seed in range(3):
        few = random.Random(seed).sample(sorted(documents, key=len)[:30], 8)
        path = build(few, vocabulary, tmp_path / str(seed), shards=4, dupe_factor=5, random_seed=seed)
        assert {meaning.label_1 for meaning in meanings(path, vocabulary)} <= {None, "random"}
        check(path)


def test_labels_without_meaning_are_undecided(pairs):
    """Under random labels, z is a standard normal variable."""
    rng = random.Random(0)
    found = []
    for _ in range(60):
        labels = rng.sample([pair.label for pair in pairs], len(pairs))
        found.append(label_meaning("", [pair._replace(label=label) for pair, label in zip(pairs, labels, strict=True)]))
    assert {meaning.label_1 for meaning in found} == {None}
    z = np.array([meaning.z for meaning in found])
    # The standard errors of mean and deviation of 60 numbers are 0.13 and 0.09.
    assert abs(z.mean()) < 0.5
    assert 0.7 < z.std() < 1.3
    # As many pairs as are needed for so weak a correlation are more than there are.
    assert all(meaning.pairs_needed > 2 * meaning.pairs for meaning in found)


def test_z_is_that_of_the_mann_whitney_test(pairs):
    pairs = nsp_labels._without_repeats(pairs)[:60]
    shared, labels = nsp_labels.shared_tokens(pairs), np.array([pair.label for pair in pairs])
    expected = stats.mannwhitneyu(shared[labels == 0], shared[labels == 1], method="asymptotic", use_continuity=False)
    z = label_meaning("", pairs).z
    assert z > 0
    assert 2 * stats.norm.sf(z) == pytest.approx(expected.pvalue, rel=1e-6)


@pytest.mark.parametrize("label", [0, 1])
def test_one_label_says_nothing(pairs, label):
    found = label_meaning("", [pair._replace(label=label) for pair in pairs])
    assert (found.z, found.label_1) == (0, None)
    assert label_meaning("", []) == nsp_labels.LabelMeaning("", 0, 0.0, None, 0)


def test_repeated_text_counts_once(pairs):
    assert label_meaning("", pairs * 20) == label_meaning("", pairs)
    other = [pair._replace(second=[*pair.second, 7], label=1) for pair in pairs]
    assert label_meaning("", [*pairs, *other]) == label_meaning("", pairs)


def test_documents_of_one_template_are_undecided():
    """Segments of two such documents share the words of the template, and those of one document do not."""
    rng = random.Random(0)

    def sentence(field):
        return [token for word in range(3) for token in (10 + 3 * field + word, rng.randrange(100, 9000))]

    found = []
    for _ in range(400):
        label = rng.randrange(2)
        fields = rng.sample(range(8), 4)
        first, second = fields[:2], rng.sample(range(8), 2) if label else fields[2:]
        found.append(Pair([*sentence(first[0]), *sentence(first[1])], [*sentence(second[0]), *sentence(second[1])], label))
    assert abs(label_meaning("", found).z) < 3


def test_inspect_shows_the_meaning_of_each_file(copied, vocabulary):
    files = find_files(str(copied))
    rows = [line.split() for line in ok(here("inspect", copied, "--examples", 0)).splitlines()]
    for path, meaning in zip(files, meanings(copied, vocabulary), strict=True):
        assert [str(path), "random", f"{meaning.pairs}", f"{meaning.z:.1f}", "about", f"{meaning.pairs_needed}"] in rows
    flip(files[1])
    lines = ok(here("inspect", copied, "--examples", 0)).splitlines()
    title = lines.index("what the NSP label 1 says of the second segment")
    assert [line.split()[1] for line in lines[title + 2 : title + 4]] == ["random", "next"]


def test_inspect_reads_labels_as_a_run_does(copied):
    for path in find_files(str(copied)):
        flip(path)
    as_random, as_next = (inspect_records(str(copied), examples=5, nsp_label=label) for label in ("random", "next"))
    assert as_random.sample.random == pytest.approx(1 - as_next.sample.random)
    assert as_random.sample.random < 0.5 < as_next.sample.random
    assert [example.random_next for example in as_random.examples] == [not example.random_next for example in as_next.examples]
    assert ok(here("inspect", copied, "--nsp-label", "next", "--examples", 0)).count(f"{as_next.sample.random:.1%}") == 1


def test_only_the_start_of_a_file_is_read(copied, vocabulary):
    path = find_files(str(copied))[0]
    first = tfrecord.first_records(path, 3)
    assert first == [*tfrecord.stream(path)][:3]
    content = path.read_bytes()
    path.write_bytes(gzip.compress(content))
    assert tfrecord.first_records(path, 3) == first
    path.write_bytes(content[:-9])
    assert tfrecord.first_records(path, 3) == first
    with pytest.raises(UserError, match=r"00000-of-00002\.tfrecord is truncated: the record at byte [\d,]+ is incomplete"):
        tfrecord.first_records(path, 10_000)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        tfrecord.first_records(path, 1)
    with path.open("wb") as file:
        tfrecord.write_record(file, tfrecord.encode_example({"input_ids": [1, 2]}))
    with pytest.raises(UserError, match=r"record 0 has no input_mask, .* these are no masked sentence pairs"):
        meanings(path, vocabulary)


def test_a_corpus_has_no_other_labels(corpus):
    with pytest.raises(UserError, match=r"data\.nsp_label is for TFRecord files"):
        open_data(DataConfig(str(corpus.path), nsp_label="next"))
