"""The original's builder: instances that its own program wrote, and the command."""

from __future__ import annotations

import array
import collections
import dataclasses
import itertools
import json
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax import cli, tokenizers
from bert_jax.data import google
from bert_jax.data.google import GoogleFlags, make_instances, write_records
from bert_jax.errors import UserError
from bert_jax.io import tfrecord
from bert_jax.tokenizers.protocol import SPECIAL_TOKENS

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "google_records"
TEXTS = [GOLDEN / "text_0.txt", GOLDEN / "text_1.txt"]
RUNS = json.loads((GOLDEN / "flags.json").read_text())
TYPES = {field.name: type(field.default) for field in dataclasses.fields(GoogleFlags)}


def parse(name, value):
    return value == "True" if TYPES[name] is bool else TYPES[name](value)


def records(files):
    return [[tfrecord.decode_example(data) for data in tfrecord.stream(file)] for file in sorted(files)]


@pytest.mark.parametrize("name", RUNS)
def test_instances_are_those_of_the_original(name, tmp_path):
    flags = dict(RUNS[name])
    lowercase = flags.pop("do_lower_case", "True") == "True"
    tokenizer = tokenizers.load(GOLDEN).with_rules("google", lowercase=lowercase)
    theirs = records(GOLDEN.glob(f"{name}-*.gz"))
    counts = write_records(
        TEXTS,
        tmp_path / "out",
        tokenizer,
        GoogleFlags(**{key: parse(key, value) for key, value in flags.items()}),
        shards=len(theirs),
    )
    ours = records((tmp_path / "out").glob("*.tfrecord"))
    assert counts["instances"] == sum(map(len, theirs)) > 20
    assert [len(file) for file in ours] == [len(file) for file in theirs]
    for our_file, their_file in zip(ours, theirs, strict=True):
        for our, their in zip(our_file, their_file, strict=True):
            assert set(our) == set(their)
            for feature, values in their.items():
                assert our[feature].dtype == values.dtype
                np.testing.assert_array_equal(our[feature], values)


def test_the_command(tmp_path, capsys):
    out = tmp_path / "out"
    command = ["prepare", *map(str, TEXTS), "--vocab", str(GOLDEN), "--out", str(out), "--builder", "google", "--lowercase", "True"]
    assert cli.main([*command, "--google.max-seq-length", "32", "--google.dupe-factor", "2", "--shards", "2"]) == 0
    stored = json.loads((out / "google.json").read_text())
    written = records(out.glob("*.tfrecord"))
    assert f"{stored['counts']['instances']:,} instances" in capsys.readouterr().out
    assert sum(map(len, written)) == stored["counts"]["instances"]
    assert abs(len(written[0]) - len(written[1])) <= 1
    assert stored["flags"]["max_seq_length"] == 32
    assert [*stored["sources"]] == [*map(str, TEXTS)]
    assert tokenizers.load(out).settings.rules == "google"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--builder", "google", "--held-out", "0.1"], "--held-out has no effect"),
        (["--google.dupe-factor", "2"], "--google has no effect"),
        (["--shards", "2"], "--shards has no effect"),
        (["--builder", "google", "--google.max-seq-length", "4"], "google.max_seq_length is 4"),
        (["--builder", "google", "--google.masked-lm-prob", "1.5"], "must lie in"),
        (["--builder", "google", "--shards", "0"], "shards is 0"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message, tmp_path, capsys):
    command = ["prepare", *map(str, TEXTS), "--vocab", str(GOLDEN), "--out", str(tmp_path / "out")]
    assert cli.main(command + options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_text_without_words_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n\u200b\n")
    with pytest.raises(UserError, match="there is no text"):
        write_records([tmp_path / "empty.txt"], tmp_path / "out", tokenizers.load(GOLDEN).with_rules("google"), GoogleFlags())
    assert not (tmp_path / "out").exists()


def test_after_a_disk_was_full_the_same_command_builds_everything(tmp_path, monkeypatch, capsys):
    command = ["prepare", *map(str, TEXTS), "--vocab", str(GOLDEN), "--builder", "google", "--google.dupe-factor", "1", "--out"]
    written, write = itertools.count(), tfrecord.write_record

    def fill(file, data):
        if next(written) == 20:
            raise OSError(28, "No space left on device", "examples")
        write(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(tfrecord, "write_record", fill)
        assert cli.main([*command, str(tmp_path / "out")]) == 1
    assert "the disk is full (examples); free space there, and run the same command again" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []
    for name in ("out", "whole"):
        assert cli.main([*command, str(tmp_path / name)]) == 0
    assert (tmp_path / "out/google.json").read_bytes() == (tmp_path / "whole/google.json").read_bytes()


def test_two_builds_into_one_directory_leave_the_first(tmp_path):
    tokenizer, flags = tokenizers.load(GOLDEN).with_rules("google"), GoogleFlags(dupe_factor=1)
    out = tmp_path / "out"
    before = []

    def other_build_ends(written):
        if not before:
            before.append(write_records(TEXTS[:1], out, tokenizer, flags))

    with pytest.raises(UserError, match="out exists already; remove it or choose another name"):
        write_records(TEXTS, out, tokenizer, flags, progress=other_build_ends)
    assert json.loads((out / "google.json").read_text())["counts"] == before[0]
    assert [*tmp_path.iterdir()] == [out]


# Of each word the beginning and a continuation, so that any number of tokens can be distinct.
DISTINCT = tokenizers.WordPiece(
    {"vocab.txt": "\n".join([*SPECIAL_TOKENS, *(f"{'##' * (n % 3 > 0)}w{n}" for n in range(700))]).encode()}
)


@given(
    st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=6), min_size=2, max_size=8),
    st.integers(5, 40),
    st.integers(1, 8),
    st.floats(0, 1),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_instances_of_any_documents(sizes, length, slots, rate, whole_words, seed):
    """Every token of the text occurs once, so that each token of an instance tells where it comes from."""
    numbers = iter(range(len(SPECIAL_TOKENS), 705))
    documents = [[array.array("i", itertools.islice(numbers, size)) for size in document] for document in sizes]
    place = {
        token: (number, position)
        for number, document in enumerate(documents)
        for position, token in enumerate(itertools.chain.from_iterable(document))
    }
    flags = GoogleFlags(length, slots, seed, dupe_factor=2, masked_lm_prob=rate, do_whole_word_mask=whole_words)
    special = DISTINCT.special_tokens
    for instance in make_instances(list(documents), DISTINCT, flags):
        tokens = instance.tokens.tolist()
        for position, label in zip(instance.positions, instance.labels, strict=True):
            tokens[position] = label
        a, b = tokens[1 : instance.first - 1], tokens[instance.first : -1]
        assert len(tokens) <= length
        assert min(len(a), len(b)) >= 1
        assert [tokens[0], tokens[instance.first - 1], tokens[-1]] == [special.cls, special.sep, special.sep]
        # A range of one document each; the next one of the same document, after the first.
        (first, start), (second, other) = place[a[0]], place[b[0]]
        assert [place[token] for token in a] == [(first, start + step) for step in range(len(a))]
        assert [place[token] for token in b] == [(second, other + step) for step in range(len(b))]
        assert instance.random_next or (first == second and other >= start + len(a))
        # The original draws ten times before it gives up.
        assert not instance.random_next or first != second or len(documents) == 2
        count = min(slots, max(1, round(len(tokens) * rate)))
        assert len(instance.positions) == len(set(instance.positions))
        assert len(instance.positions) == min(count, len(a) + len(b)) or (whole_words and len(instance.positions) < count)
        assert not set(instance.labels) & set(special)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(5, 40), st.integers(0, 2**31))
def test_truncation_takes_tokens_from_the_longer_segment(first, second, length, seed):
    """As ``truncate_seq_pair``: of two equal segments the second one."""
    documents = [[array.array("i", range(100, 100 + first)), array.array("i", range(300, 300 + second))]] * 2
    flags = GoogleFlags(length, short_seq_prob=0.0, random_seed=seed, dupe_factor=4, masked_lm_prob=0.0)
    builder = google._Builder(documents, DISTINCT, flags, google.random.Random(seed))
    whole = collections.Counter()
    for _ in range(4):
        a, b, random_next, _ = builder._pair(0, documents[0], 200)
        if not random_next:
            kept = [first, second]
            while sum(kept) > length - 3:
                kept[0 if kept[0] > kept[1] else 1] -= 1
            assert [len(a), len(b)] == kept
            assert a == [*range(a[0], a[0] + len(a))]
            assert b == [*range(b[0], b[0] + len(b))]
        whole[random_next] += 1
    assert whole.total() == 4
