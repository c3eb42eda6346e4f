"""bert-jax inspect: text with and without colours, JSON, the picture, and errors."""

from __future__ import annotations

import importlib
import io
import json
import re
import shutil
import types

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from bert_jax import cli, tokenizers
from bert_jax.cli import inspect_text
from bert_jax.data.google import GoogleFlags, write_records
from bert_jax.data.records import find_files
from bert_jax.evaluation.inspection import inspect_corpus, inspect_records, to_json
from bert_jax.evaluation.masked_examples import Example, Prediction
from tests.cli.test_cli import bert_jax as command
from tests.cli.test_cli import here, ok, refused

pytestmark = pytest.mark.usefixtures("unoptimized")

ESCAPE = "\x1b["


@pytest.fixture(scope="module")
def records(tmp_path_factory, text, tokenizer):
    out = tmp_path_factory.mktemp("records") / "records"
    write_records([text], out, tokenizer, GoogleFlags(max_seq_length=32, max_predictions_per_seq=5, dupe_factor=1), shards=2)
    return out


def row(out, name):
    """The cells of a line of a table."""
    (line,) = (line for line in out.splitlines() if line.startswith(name + "  "))
    return re.split(r"  +", line.removeprefix(name).strip())


def test_a_corpus_is_described(corpus, text):
    out = ok(here("inspect", corpus.path, "--text", text, "--lengths", 16, 64, "--sequence-length", 32, "--examples", 3))
    report = inspect_corpus(corpus.path, lengths=(16, 64), sequence_length=32, examples=3)
    splits = [*report.splits.values()]
    assert row(out, "documents") == [f"{split.documents:,}" for split in splits] == ["72", "8"]
    assert row(out, "tokens") == [f"{split.tokens:,}" for split in splits]
    assert row(out, "[UNK]") == ["0 (0.000%)"] * 2
    for found in report.rows:
        cells = [f"{found.examples:,}"]
        cells += [f"{share:.1%}" for share in (found.random, found.cut, found.lost, found.padding[1], found.padding[6])]
        assert row(out, str(found.sequence_length)) == cells
    (token, count), *_ = report.frequencies.most
    assert f"{count:,} {token}" in out
    assert "[UNK] in 80 documents of the text: 0 of" in out
    assert len(re.findall(r"^\d+\. \d+ tokens, \d+ predictions, (?:random )?next sentence$", out, re.MULTILINE)) == 3
    # Each mask is text, because this is no terminal.
    assert ESCAPE not in out
    masks = [prediction for example in report.examples for prediction in example.predictions]
    assert out.count("[MASK→") == sum(prediction.kind == "masked" for prediction in masks) + 1
    assert all(len(line) <= 123 for line in out.partition("\nexamples: ")[2].splitlines()[1:])


def test_records_are_described(records):
    done = here("inspect", records, "--verify", "--records", 20, "--examples", 2)
    sample = inspect_records(str(records), records=20).sample
    assert row(ok(done), "records") == [f"{sample.records:,}"]
    assert row(done.stdout, "padding") == [f"{sample.padding:.1%}"]
    assert row(done.stdout, "predictions per record") == [f"{sample.predictions:.1f} of 5"]
    assert f"Shares, lengths and tokens are those of 20 of {sample.records:,} records (--records).\nAll checksums" in done.stdout
    assert "flags of the builder: max_seq_length 32, max_predictions_per_seq 5" in done.stdout


def test_limits_are_reported(corpus, text):
    out = ok(here("inspect", corpus.path, "--documents", 5, "--text", text, "--examples", 0, "--lengths", 32))
    assert "Duplicates are those of the first 5 documents of train and the first 5 documents of held_out" in out
    assert "[UNK] in the first 5 documents (--documents) of the text" in out
    assert "examples: " not in out
    whole = ok(here("inspect", corpus.path, "--examples", 0))
    assert "--documents" not in whole


@pytest.mark.parametrize("kind", ["corpus", "records"])
def test_json_is_everything_and_nothing_else(corpus, records, kind, text):
    """In a process of its own, because libraries may print."""
    path = {"corpus": corpus.path, "records": records}[kind]
    done = command("inspect", path, "--json", "--text", text, "--examples", 2)
    report = json.loads(ok(done))
    assert "Traceback" not in done.stderr
    whole = inspect_corpus(path, examples=2) if kind == "corpus" else inspect_records(str(path), examples=2)
    assert report.pop("unknown_words")["unknown"] == 0
    expected = json.loads(json.dumps(to_json(whole)))
    del expected["unknown_words"]
    assert report == expected
    assert report["kind"] == kind
    assert {prediction["kind"] for example in report["examples"] for prediction in example["predictions"]} <= {
        "masked",
        "random",
        "kept",
    }


@pytest.mark.parametrize("kind", ["corpus", "records"])
def test_the_picture_is_written_once(corpus, records, tmp_path, kind):
    path = tmp_path / "new" / "lengths.png"
    options = ("inspect", {"corpus": corpus.path, "records": records}[kind], "--plot", path, "--examples", 0)
    assert ok(here(*options)).endswith(f"\n{path}: histograms of the lengths\n")
    pixels = imread(path)
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 20
    assert [*path.parent.iterdir()] == [path]
    content = path.read_bytes()
    refused(here(*options), "lengths.png exists already; remove it or choose another name.")
    assert path.read_bytes() == content
    refused(here(*options[:3], tmp_path / "a.jpg"), "does not end in .png")
    refused(here("inspect", tmp_path / "none", "--plot", tmp_path / "other" / "a.png"), "There is no data set")
    assert [*tmp_path.iterdir()] == [path.parent]


EXAMPLE = Example(
    tokens=["[CLS]", "[MASK]", "##s", "cat", "on", "the", "##do", "[SEP]", "##g", "[MASK]", "[SEP]"],
    predictions=[
        Prediction(1, "[MASK]", "dog", "masked"),
        Prediction(3, "cat", "sat", "random"),
        Prediction(5, "the", "the", "kept"),
        Prediction(9, "[MASK]", "##s", "masked"),
    ],
    random_next=True,
)
SPECIAL = ["[CLS]", "[SEP]", "[MASK]"]


def test_masks_are_text_without_colours():
    text = inspect_text.example_text(EXAMPLE, special_tokens=SPECIAL, sentencepiece=False, coloured=False)
    assert text.plain == "[CLS] [MASK→dog]s [cat→sat] on [the→the]do [SEP] g[MASK→##s] [SEP]"
    assert not text.spans


def test_masks_are_coloured_by_kind():
    text = inspect_text.example_text(EXAMPLE, special_tokens=SPECIAL, sentencepiece=False, coloured=True)
    assert text.plain == "[CLS] dogs cat→sat on thedo [SEP] gs [SEP]"
    shown = [(text.plain[span.start : span.end], span.style) for span in text.spans]
    kinds = [("dog", "masked"), ("cat→sat", "random"), ("the", "kept"), ("s", "masked")]
    assert shown == [(word, inspect_text.STYLES[kind]) for word, kind in kinds]
    assert len({*inspect_text.STYLES.values()}) == 3


def test_words_of_sentencepiece_begin_at_spaces():
    example = Example(["[CLS]", "▁the", "[MASK]", "▁cat", "[SEP]"], [Prediction(2, "[MASK]", "▁do", "masked")], None)
    text = inspect_text.example_text(example, special_tokens=SPECIAL, sentencepiece=True, coloured=False)
    assert text.plain == "[CLS] the [MASK→▁do] cat [SEP]"


@pytest.mark.parametrize(
    ("terminal", "environment", "coloured"), [(True, {}, True), (False, {}, False), (True, {"NO_COLOR": "1"}, False)]
)
def test_colours_are_for_terminals(corpus, capsys, terminal, environment, coloured):
    report = inspect_corpus(corpus.path, lengths=(), examples=2)
    console = Console(force_terminal=terminal, color_system="standard", width=80, _environ={"TERM": "xterm", **environment})
    inspect_text.show(report, console)
    out = capsys.readouterr().out
    assert (ESCAPE in out) == coloured
    assert ("[MASK→" in out) == (not coloured)
    plain = re.sub(r"\x1b\[[\d;]*m", "", out)
    assert max(map(len, plain.partition("\nexamples: ")[2].splitlines()[1:])) <= (80 if terminal else 123)
    assert (" masked  " in plain) == coloured


def test_old_encodings_get_plain_characters(corpus):
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", file)
        inspect_text.show(inspect_corpus(corpus.path, lengths=(), examples=1), Console())
    file.flush()
    out = file.buffer.getvalue().decode()
    assert "[MASK->" in out
    assert "####" in out


def test_characters_that_act_on_a_terminal_are_escaped(capsys):
    example = Example(["\x1b[2J", "\u202eabc"], [Prediction(1, "\x07", "\u202eabc", "random")], None)
    for coloured in (True, False):
        text = inspect_text.example_text(example, special_tokens=(), sentencepiece=False, coloured=coloured).plain
        assert text.isprintable()
        assert "\\x1b[2J" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("none",), "There is no data set none; name a corpus of `bert-jax prepare`, or TFRecord files."),
        (("none*.tfrecord",), "There are no TFRecord files none*.tfrecord"),
        (("CORPUS", "--verify"), "--verify is for TFRecord files, but"),
        (("CORPUS", "--vocab", "v"), "--vocab is for TFRecord files, but"),
        (("RECORDS", "--sequence-length", "64"), "--sequence-length is for corpora, but"),
        (("RECORDS", "--documents", "64"), "--documents is for corpora, but"),
        (("CORPUS", "--lengths", "64", "4"), "A sequence length is 4; a pair needs at least 5 tokens."),
        (("CORPUS", "--top", "0"), "top is 0; it must be greater than 0."),
        (("CORPUS", "--examples", "-1"), "examples is -1; it must not be negative."),
        (("CORPUS", "--text", "none.txt"), "There is no file none.txt."),
        (("TEXT",), "is not a TFRecord file"),
        (("VOCAB",), "is not a corpus; create one with `bert-jax prepare`."),
    ],
)
def test_mistakes_are_one_sentence(corpus, records, text, tokenizer, tmp_path, options, message):
    tokenizers.save(tokenizer, tmp_path / "vocab")
    paths = {"CORPUS": corpus.path, "RECORDS": records, "TEXT": text, "VOCAB": tmp_path / "vocab"}
    done = here("inspect", *(paths.get(option, option) for option in options))
    refused(done, message)
    assert done.stdout == ""
    assert len([line for line in done.stderr.splitlines() if line.startswith("bert-jax: ")]) == 1


def test_other_versions_and_damage_are_refused(corpus, records, tmp_path):
    path = shutil.copytree(corpus.path, tmp_path / "corpus")
    info = (path / "dataset_info.json").read_text()
    for version, age in (("1.0.0", "an earlier"), ("3.0.0", "a later")):
        (path / "dataset_info.json").write_text(info.replace("2.0.0", version))
        refused(here("inspect", path, "--json"), f"was prepared by {age} version of bert_jax (format {version[0]})")
    (path / "dataset_info.json").write_text(info)
    for file in (next(path.glob("corpus-train*")), shutil.copy(find_files(str(records))[0], tmp_path / "a.tfrecord")):
        content = bytearray(file.read_bytes())
        content[110] ^= 4
        file.write_bytes(content)
    done = here("inspect", path, "--json")
    refused(done, "split train: document 0 cannot be read: ")
    assert done.stdout == ""
    refused(here("inspect", tmp_path / "a.tfrecord", "--vocab", records), "the record at byte 0 is damaged; its checksum differs")


def test_the_module_does_not_hide_the_standard_library_from_the_command():
    """A submodule `inspect` becomes an attribute of the package that imports it."""
    importlib.import_module("bert_jax.cli.inspect")

    async def read():
        pass

    coroutine = read()
    cli._unraisable(types.SimpleNamespace(exc_value=RuntimeError("Event loop is closed"), object=coroutine))
    coroutine.close()
