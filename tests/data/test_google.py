"""The original's builder: instances that its own program wrote, and the command."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from bert_jax import cli, tokenizers
from bert_jax.data.google import GoogleFlags, write_records
from bert_jax.errors import UserError
from bert_jax.io import tfrecord

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
