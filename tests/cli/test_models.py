"""The commands that use pretrained models: embed, features, convert, and fill-mask on files of other projects."""

from __future__ import annotations

import dataclasses
import json
import shlex
import signal
import subprocess
import time

import jax
import numpy as np
import pyarrow.parquet
import pytest

import bert_jax
from bert_jax import cli, tokenizers
from bert_jax.inference.bert import Bert
from bert_jax.models.heads import init_params
from bert_jax.models.sentence_embedding import Normalize, SentenceEmbedding
from tests.cli.test_cli import PROGRAM, here, ok, refused
from tests.cli.test_cli import bert_jax as command
from tests.conftest import MODEL

pytestmark = pytest.mark.usefixtures("unoptimized")

LINES = ["alpha bravo", "", "charlie delta. ||| echo foxtrot.", "golf hotel india"]


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    """A Hugging Face directory."""
    path = tmp_path_factory.mktemp("model") / "hf"
    config = dataclasses.replace(MODEL, vocab_size=len(tokenizer.tokens), initializer_range=0.3, layers="unroll")
    bert_jax.save(Bert(config, init_params(config, jax.random.key(0)), tokenizer), path, to="hf")
    return path


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(LINES) + "\n")
    return path


@pytest.fixture
def run(capsys):
    """Run the command in this process; returns status, standard output and standard error."""

    def call(*arguments):
        status = cli.main([*map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def expected(model):
    texts = [tuple(line.split(" ||| ")) if "|||" in line else line for line in LINES]
    return bert_jax.load(model).embed(texts, normalize=True)


def test_embed_in_every_format(model, lines, tmp_path, run):
    for ending in ("npy", "parquet", "jsonl"):
        out = tmp_path / f"vectors.{ending}"
        status, output, _ = run("embed", model, lines, "--out", out, "--normalize")
        assert (status, output) == (0, f"{out}: 4 vectors of 32 numbers\n")
    np.testing.assert_array_equal(np.load(tmp_path / "vectors.npy"), expected(model))
    table = pyarrow.parquet.read_table(tmp_path / "vectors.parquet").to_pydict()
    assert table["text"] == LINES
    np.testing.assert_array_equal(np.array(table["embedding"], np.float32), expected(model))
    records = [json.loads(line) for line in (tmp_path / "vectors.jsonl").read_text().splitlines()]
    assert [record["text"] for record in records] == ["alpha bravo", "", ["charlie delta.", "echo foxtrot."], "golf hotel india"]
    np.testing.assert_array_equal(np.array([record["embedding"] for record in records], np.float32), expected(model))


def test_embed_json_lines(model, tmp_path, run):
    path = tmp_path / "texts.jsonl"
    texts = ["alpha bravo", "", ["charlie delta.", "echo foxtrot."], "golf hotel india"]
    records = [{"sentence": text} for text in texts]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert run("embed", model, path, "--out", tmp_path / "v.npy", "--field", "sentence", "--normalize")[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), expected(model))


def test_texts_on_the_command_line(model, run):
    status, output, _ = run("embed", model, "alpha bravo", "charlie ||| echo", "--pooling", "max", "cls")
    assert status == 0
    records = [json.loads(line) for line in output.splitlines()]
    assert [record["text"] for record in records] == ["alpha bravo", ["charlie", "echo"]]
    vectors = bert_jax.load(model).embed(["alpha bravo", ("charlie", "echo")], pooling=("max", "cls"))
    np.testing.assert_array_equal(np.array([record["embedding"] for record in records], np.float32), vectors)


def test_options_override_what_the_files_say(model, tmp_path, run):
    bert = dataclasses.replace(bert_jax.load(model), embedding=SentenceEmbedding(("cls",), (Normalize(),), 8, {"q": "alpha "}))
    bert_jax.save(bert, tmp_path / "model", to="hf")

    def embed(*options):
        _, output, _ = run("embed", tmp_path / "model", "bravo " * 9, *options)
        return np.array(json.loads(output)["embedding"], np.float32)

    text = ["bravo " * 9]
    np.testing.assert_array_equal(embed(), bert.embed(text)[0])
    np.testing.assert_array_equal(
        embed("--unnormalized", "--prompt", "golf "), bert.embed(text, normalize=False, prompt="golf ")[0]
    )
    np.testing.assert_array_equal(
        embed("--prompt-name", "q", "--pooling", "max"), bert.embed(text, prompt_name="q", pooling="max")[0]
    )
    assert run("embed", model, "a", "--normalize", "--unnormalized")[0] == 2


def test_info(model, tmp_path, run):
    bert = dataclasses.replace(
        bert_jax.load(model), embedding=SentenceEmbedding(("cls", "max"), (Normalize(),), 8, {"q": "alpha "})
    )
    bert_jax.save(bert, tmp_path / "model", to="hf")
    status, output, _ = run("info", tmp_path / "model", "--json")
    described = json.loads(output)
    assert status == 0
    assert described["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(bert.params))
    assert described["config"]["hidden_size"] == 32
    assert set(described["heads"]) == {"mlm", "nsp"}
    assert described["tokenizer"]["special_tokens"]["mask"] == "[MASK]"
    assert described["embedding"] == ["pooling cls + max", "normalize", "truncate to 8 tokens", "prompt 'q': 'alpha '"]
    lines = run("info", tmp_path / "model")[1].splitlines()
    assert "embedding: pooling cls + max; normalize; truncate to 8 tokens; prompt 'q': 'alpha '" in lines
    assert "  do_lower_case: yes" in lines
    assert run("info", tmp_path / "none")[0] == 2


def test_features_in_the_format_of_the_original(model, lines, tmp_path, run):
    assert run("features", model, lines, "--out", tmp_path / "f.jsonl", "--layers", -1, -2)[0] == 0
    records = [json.loads(line) for line in (tmp_path / "f.jsonl").read_text().splitlines()]
    assert [record["linex_index"] for record in records] == [0, 1, 2, 3]
    bert = bert_jax.load(model)
    texts = [tuple(line.split(" ||| ")) if "|||" in line else line for line in LINES]
    for record, (tokens, values) in zip(records, bert.features(texts, layers=(-1, -2)), strict=True):
        assert [feature["token"] for feature in record["features"]] == tokens
        for column, feature in enumerate(record["features"]):
            assert [layer["index"] for layer in feature["layers"]] == [-1, -2]
            for row, layer in enumerate(feature["layers"]):
                assert layer["values"] == [round(float(value), 6) for value in values[row, column]]


def test_long_texts(model, tmp_path, run):
    path = tmp_path / "long.txt"
    path.write_text("alpha\n" + "bravo " * 100 + "\n")
    status, _, messages = run("embed", model, path, "--out", tmp_path / "v.npy")
    assert status == 2
    assert "Text 2 has 102 tokens, special tokens included, more than the sequence length of 64" in messages
    for (name, *options), ending in ((("embed",), "npy"), (("features", "--layers", -1), "jsonl")):
        for long in ("truncate", "chunk", "stride"):
            out = tmp_path / f"{long}.{ending}"
            assert run(name, model, path, "--out", out, "--long", long, "--sequence-length", 32, *options)[0] == 0
            assert out.exists()
    for long, tokens in {"truncate": 32, "chunk": 102, "stride": 102}.items():
        record = json.loads((tmp_path / f"{long}.jsonl").read_text().splitlines()[1])
        assert len(record["features"]) == tokens


def test_convert_around(model, tmp_path, run):
    """Conversion through every format and back reproduces the files byte for byte."""
    path = model
    for to in ("google", "flax", "orbax", "hf"):
        status, output, _ = run("convert", path, tmp_path / to, "--to", to, "--verify")
        assert status == 0
        _, own, *rest = output.splitlines()
        assert own == f"read by bert_jax {bert_jax.__version__}:"
        assert rest[:4] == [f"  {name:12}  largest difference 0" for name in ("hidden", "mlm", "nsp", "pooled")]
        assert len(rest) == (9 if to == "hf" else 4)
        path = tmp_path / to
    for name in ("model.safetensors", "config.json", "vocab.txt", "tokenizer_config.json"):
        assert (path / name).read_bytes() == (model / name).read_bytes()
    status, output, _ = run("fill-mask", tmp_path / "google" / "bert_model.ckpt", "alpha [MASK] charlie.", "--json")
    assert status == 0
    assert json.loads(output)[0][0]["token"] == bert_jax.load(model).fill_mask("alpha [MASK] charlie.")[0][0].token


def test_a_model_for_a_new_domain(model, tmp_path, run):
    """An extended vocabulary, and a model that starts with it, from a directory of transformers and from a checkpoint."""
    text = tmp_path / "text.txt"
    text.write_text("golfhotel kilofox\n\nthe golfhotel\n" * 3)
    before = bert_jax.load(model).tokenizer
    status, output, _ = run("vocab", text, "--extend", model, "--add", 2, "--out", tmp_path / "vocab")
    assert status == 0
    tokens = tokenizers.load(tmp_path / "vocab").tokens
    size, words, lengths = len(before.tokens), 12, []
    for tokenizer in (before, tokenizers.load(tmp_path / "vocab")):
        rows = [row.ids for row in tokenizer.encode(text.read_text().split())]
        lengths.append(sum(len(ids) for ids in rows))
        assert not any(tokenizer.special_tokens.unk in ids for ids in rows)
    assert output.splitlines() == [
        f"{tmp_path / 'vocab'}: wordpiece, {size + 2} tokens, 2 of them new: 0 in unused slots, 2 at the end",
        f"tokens per word: {lengths[0] / words:.3f} before, {lengths[1] / words:.3f} now",
        f"first new tokens: {' '.join(tokens[size:])}",
    ]
    assert lengths[1] < lengths[0]
    assert tokens[:size] == before.tokens
    assert run("convert", model, tmp_path / "hf", "--to", "hf", "--vocab", tmp_path / "vocab")[0] == 0
    assert bert_jax.load(tmp_path / "hf").tokenizer.tokens == tokens
    # A checkpoint has no files of a tokenizer.
    run("convert", model, tmp_path / "orbax", "--to", "orbax")
    assert run("vocab", text, "--extend", tmp_path / "orbax", "--add", 2, "--out", tmp_path / "again")[0] == 0
    assert tokenizers.load(tmp_path / "again").tokens == tokens


def test_bad_extensions(model, tmp_path):
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text("golfhotel\n")
    tokenizers.create(tokenizers.train(lambda: ["a cat sat", "a dog ran"] * 9, kind="bpe", size=20), tmp_path / "bpe")
    for arguments, sentence in (
        (("--extend", model), "--extend needs the number of new tokens; give it with --add."),
        (("--add", 5), "--add is the number of tokens that --extend adds; set the size of a new vocabulary with --size."),
        (("--extend", model, "--add", 0), "--add is 0; it must be greater than 0."),
        (("--extend", model, "--add", 5, "--size=90"), "--size is for a new vocabulary; leave it out"),
        (("--extend", model, "--add", 5, "--no_lowercase"), "--no-lowercase is for a new vocabulary; leave it out"),
        (("--extend", model, "--add", 5, "--kind", "bpe"), "--kind is for a new vocabulary; leave it out"),
        (("--extend", tmp_path / "bpe", "--add", 5), "A SentencePiece vocabulary cannot be extended"),
        (("--extend", tmp_path / "none", "--add", 5), "There is no directory"),
        (("--extend", tmp_path, "--add", 5), "contains no vocab.txt, tokenizer.json or spiece.model"),
    ):
        refused(here("vocab", text, "--out", out, *arguments), sentence)
    refused(here("convert", model, out, "--to", "hf", "--vocab", tmp_path / "bpe"), "A SentencePiece vocabulary cannot be extended")
    refused(here("convert", model, out, "--to", "hf", "--vocab", tmp_path / "none"), "There is no directory")
    assert not out.exists()


def test_partial_conversion_names_what_it_left_out(model, tmp_path, run):
    broken = tmp_path / "broken"
    run("convert", model, broken, "--to", "hf")
    description = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(description | {"num_hidden_layers": 2}))
    status, _, messages = run("convert", broken, tmp_path / "out", "--to", "hf")
    assert status == 2
    assert "contains tensors that have no place in this model: bert.encoder.layer.2" in messages
    status, _, messages = run("convert", broken, tmp_path / "out", "--to", "hf", "--partial")
    assert status == 0
    assert "bert-jax: warning: " in messages
    assert "left out: all of bert.encoder.layer.2" in messages


def test_bad_input(model, lines, tmp_path):
    out = tmp_path / "v.npy"
    (tmp_path / "bad.jsonl").write_text('{"text": 3}\n')
    (tmp_path / "empty.txt").write_text("")
    for arguments, sentence in (
        (("embed", model, tmp_path / "none.txt", "--out", out), "There is no file"),
        (("embed", model, tmp_path, "--out", out), "is a directory"),
        (("embed", model, tmp_path / "empty.txt", "--out", out), "empty.txt holds no rows"),
        (("embed", model, tmp_path / "bad.jsonl", "--out", out), "bad.jsonl, line 1: no text under 'text'"),
        (("embed", tmp_path / "none", lines, "--out", out), "There is no model"),
        (("embed", model, lines, "--out", tmp_path / "v.txt"), "none of the suffixes .npy, .parquet, .jsonl"),
        (
            ("embed", model, lines, "--out", lines.with_suffix(".npy"), "--sequence-length", 100),
            "more than the model's 64 positions",
        ),
        (("features", model, lines, "--out", tmp_path / "f", "--layers", 7), "There is no layer 7"),
        (("convert", tmp_path, tmp_path / "c", "--to", "hf"), "contains no model"),
        (("convert", model, tmp_path / "c", "--to", "onnx"), "onnx"),
        (("embed", tmp_path / "none", lines, "--out", tmp_path / "new" / "deep" / "v.npy"), "There is no model"),
        (("embed", model, lines, "--out", lines / "v.npy"), "cannot be created: "),
        (("embed", model, lines, "--out", out, "--sequence-length", 0), "leaves no room"),
        (("convert", model, model, "--to", "hf"), "exists already"),
    ):
        refused(here(*arguments), sentence)
    assert {path.name for path in tmp_path.iterdir()} == {"lines.txt", "bad.jsonl", "empty.txt"}


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_leaves_nothing_behind(model, tmp_path, number):
    """While the command reads, tokenizes and computes."""
    path = tmp_path / "many.txt"
    path.write_text("alpha bravo charlie.\n" * 600_000)
    for delay in (0.2, 2.0, 5.0):
        running = subprocess.Popen(
            [*PROGRAM, "embed", str(model), str(path), "--out", str(tmp_path / "new" / "v.npy")], stderr=subprocess.PIPE, text=True
        )
        while not (tmp_path / "new").exists():
            assert running.poll() is None
            time.sleep(0.01)
        time.sleep(delay)
        running.send_signal(number)
        _, messages = running.communicate(timeout=60)
        assert running.returncode == 128 + number, messages
        assert "Traceback" not in messages
        assert f"stopped by {'Ctrl-C' if number == signal.SIGINT else 'SIGTERM'}; incomplete output was removed." in messages
        assert {path.name for path in tmp_path.iterdir()} == {"many.txt"}


@pytest.mark.parametrize("command", ["fill-mask {model} 'alpha [MASK]' --top-k 80", "embed --help", "--help", "--version"])
def test_output_to_a_closed_pipe(model, command):
    command_line = [*PROGRAM, *shlex.split(command.format(model=model))]
    running = subprocess.Popen(command_line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    running.stdout.close()
    assert (running.wait(60), running.stderr.read()) == (0, "")
    running.stderr.close()


def test_compiled_programs_are_cached_across_processes(model, lines, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    ok(command("embed", model, lines, "--out", tmp_path / "first.npy"))
    cached = {path.name: path.stat().st_size for path in (tmp_path / "cache" / "bert_jax").rglob("*-cache")}
    assert cached
    ok(second := command("embed", model, lines, "--out", tmp_path / "second.npy"))
    assert {path.name: path.stat().st_size for path in (tmp_path / "cache" / "bert_jax").rglob("*-cache")} == cached
    assert second.stderr.count("\n") <= 2
    np.testing.assert_array_equal(np.load(tmp_path / "first.npy"), np.load(tmp_path / "second.npy"))
