"""Malicious files: none runs code, reads or writes outside of its directory, or exhausts memory; secrets are not stored.

Each artefact would create or change a canary file, or would make the reader take its content.
"""

from __future__ import annotations

import collections
import contextlib
import io
import json
import os
import pickle
import shutil
import struct
import zipfile

import jax
import msgpack
import numpy as np
import pytest

import bert_jax
from bert_jax import convert, processes, tokenizers
from bert_jax.checkpoints import Checkpoints, report
from bert_jax.data import corpus as corpora
from bert_jax.data.readers import find_inputs
from bert_jax.errors import RunError, UserError
from bert_jax.models.loaded import LoadedModel
from bert_jax.training.logging import RunLog
from bert_jax.training.run_directory import open_run_dir
from tests.conftest import MODEL


class Calls:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


@pytest.fixture
def model(tmp_path, params, tokenizer):
    """A directory of the format "hf", whose weights the tests replace."""
    convert.write(LoadedModel(MODEL, jax.tree.map(np.asarray, params), tokenizer), tmp_path / "model", "hf")
    (tmp_path / "model" / "model.safetensors").unlink()
    return tmp_path / "model"


def archive(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as written:
        for name, content in members.items():
            written.writestr(name, content)
    return file.getvalue()


def zipped(content):
    return archive({"archive/data.pkl": content, "archive/version": b"3"})


def safetensors(header, data=b"", *, size=None):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def tensor(start, stop, shape=(2,)):
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [start, stop]}


def touches(canary):
    """Pickles that create the canary."""
    command = f"touch {canary}"
    yield "os.system", pickle.dumps(Calls(os.system, command))
    yield "eval", pickle.dumps(Calls(eval, f"open({str(canary)!r}, 'w')"))
    yield "exec", pickle.dumps(Calls(exec, f"open({str(canary)!r}, 'w')"))
    yield "open", pickle.dumps(Calls(open, str(canary), "w"))
    yield "makedirs", pickle.dumps(Calls(os.makedirs, str(canary)))
    yield "in a state dict", pickle.dumps({"state_dict": {"weight": Calls(os.system, command)}})
    yield "as a key", pickle.dumps(collections.OrderedDict([(Calls(os.system, command), 1)]))
    yield "protocol 0", pickle.dumps(Calls(os.system, command), 0)
    yield "protocol 5", pickle.dumps(Calls(os.system, command), 5)
    # A dotted name below an allowed one.
    yield "dotted", b"\x80\x04\x8c\x0bcollections\x8c\x18OrderedDict.fromkeys.mro\x93."


@pytest.mark.parametrize("kind", [name for name, _ in touches("")])
@pytest.mark.parametrize("container", ["zip", "plain"])
def test_a_pickle_is_not_executed(model, canary, kind, container):
    content = dict(touches(canary))[kind]
    (model / "pytorch_model.bin").write_bytes(zipped(content) if container == "zip" else content)
    with pytest.raises(UserError):
        bert_jax.load(model)
    assert not canary.exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_these_pickles_would_create_the_canary(canary):
    """Otherwise the test above would prove nothing."""
    for kind, content in touches(canary):
        if kind not in ("dotted", "as a key"):
            with contextlib.suppress(Exception):
                pickle.loads(content)
            assert canary.exists(), kind
            canary.rmdir() if canary.is_dir() else canary.unlink()


HUGE = {
    "a memo of 16 GB": ("pytorch_model.bin", zipped(b"\x80\x02}r\xff\xff\xff\x7f.")),
    "a zip bomb": ("pytorch_model.bin", zipped(b"\x80\x02" + b"0" * (1 << 25) + b".")),
    "a header of 2**60 bytes": ("model.safetensors", safetensors({"a": tensor(0, 8)}, bytes(8), size=2**60)),
    "overlapping tensors": ("model.safetensors", safetensors({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12))),
    "a tensor beyond the end": ("model.safetensors", safetensors({"a": tensor(0, 2**40, (2**38,))}, bytes(8))),
    "another size than the shape": ("model.safetensors", safetensors({"a": tensor(0, 8, (2**40,))}, bytes(8))),
    "an array of objects": (
        "flax_model.msgpack",
        msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((1,), "object", pickle.dumps(1)[:8].ljust(8))))}),
    ),
}


@pytest.mark.parametrize("artefact", HUGE)
def test_a_file_that_lies_about_sizes_is_refused(model, artefact):
    name, content = HUGE[artefact]
    (model / name).write_bytes(content)
    with pytest.raises(UserError):
        bert_jax.load(model)


@pytest.mark.parametrize("name", ["../outside.safetensors", "{root}/outside.safetensors", "x/../../outside.safetensors"])
def test_an_index_does_not_lead_out_of_its_directory(model, tmp_path, name):
    (tmp_path / "outside.safetensors").write_bytes(safetensors({"secret": tensor(0, 8)}, bytes(8)))
    index = {"weight_map": {"secret": name.format(root=tmp_path)}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"There is no file .*, which model\.safetensors\.index\.json lists"):
        bert_jax.load(model)


@pytest.mark.parametrize("path", ["../outside", "/outside", "1_Pooling/../../outside", "..\\outside"])
def test_modules_do_not_lead_out_of_their_directory(model, path):
    prefix = "sentence_transformers.models."
    modules = [{"type": f"{prefix}Transformer", "path": ""}, {"type": f"{prefix}Pooling", "path": path}]
    (model / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match="lies outside of the directory"):
        bert_jax.load(model)


def test_members_of_an_archive_are_not_written(model, canary):
    content = pickle.dumps(Calls(os.system, "true"))
    members = {"../../canary": b"", str(canary): b"", "archive/data.pkl": content, "archive/../../../canary": b""}
    (model / "pytorch_model.bin").write_bytes(archive(members))
    with pytest.raises(UserError):
        bert_jax.load(model)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["../../canary", "{canary}", "x/../../../canary"])
def test_names_of_tokenizer_files_in_a_checkpoint_are_not_written(tmp_path, canary, params, tokenizer, name):
    """Only files of known names are."""

    known = tokenizers.from_files(tokenizer.files)
    known.files = known.files | {name.format(canary=canary): b"x"}
    checkpoints = Checkpoints(tmp_path / "run", keep=1)
    checkpoints.save_model(LoadedModel(MODEL, jax.tree.map(np.asarray, params), known))
    checkpoints.wait()
    checkpoints.close()
    tokenizers.save(bert_jax.load(tmp_path / "run").tokenizer, tmp_path / "deep" / "deeper" / "out")
    assert not canary.exists()
    assert set(os.listdir(tmp_path / "deep" / "deeper" / "out")) <= set(tokenizers.FILES)


@pytest.fixture
def copied_corpus(corpus, tmp_path):
    return shutil.copytree(corpus.path, tmp_path / "corpus")


def test_a_pickle_in_a_table_of_a_corpus_is_not_executed(copied_corpus, canary):
    array = np.empty(1, object)
    array[0] = Calls(os.system, f"touch {canary}")
    np.save(copied_corpus / "train.first.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match="cannot be read"):
        corpora.open_corpus(copied_corpus)
    assert not canary.exists()


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
def test_a_corpus_does_not_import_modules(copied_corpus, canary, tmp_path, monkeypatch, key):
    (tmp_path / "evil_features.py").write_text(f"open({str(canary)!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    features = json.loads((copied_corpus / "features.json").read_text())
    entry = features["featuresDict"]["features"]["tokens"]
    del entry["pythonClassName"]
    entry[key] = "evil_features.Tensor"
    (copied_corpus / "features.json").write_text(json.dumps(features))
    with pytest.raises(UserError, match=r"evil_features\.Tensor, which is not a part of TFDS"):
        corpora.open_corpus(copied_corpus)
    assert not canary.exists()


@pytest.mark.parametrize("schedule", ["__import__('os').system('touch {canary}')", "linear(open('{canary}', 'w'), 0.1)"])
def test_a_schedule_is_not_evaluated_as_python(run_config, canary, schedule):
    rate = schedule.format(canary=canary)
    with pytest.raises(UserError):
        bert_jax.pretrain(bert_jax.Config(run_config.run, run_config.data, mask=bert_jax.MaskPolicy(rate=rate)))
    assert not canary.exists()


def test_links_in_a_run_are_not_followed_when_it_is_written(tmp_path, canary):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").symlink_to(canary)
    (run / ".metrics.jsonl").symlink_to(canary)
    (run / ".config.json").symlink_to(canary)
    (run / ".lock").symlink_to(canary)
    (run / "config.json").write_text("{}")
    with pytest.raises(UserError, match="symbolic link"), open_run_dir(run, "{}", lambda stored: [], processes.group()):
        pass
    (run / ".lock").unlink()
    with open_run_dir(run, "{}", lambda stored: [], processes.group()):
        pass
    log = RunLog(run, start=0, steps=1)
    log.write(1, "train", {"loss": 1.0})
    log.close()
    assert not canary.exists()
    assert '"loss": 1.0' in (run / "metrics.jsonl").read_text()


def test_links_among_checkpoints_are_not_followed_when_they_are_deleted(tmp_path, params, tokenizer):
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "file").write_text("precious")
    checkpoints = Checkpoints(tmp_path / "run", keep=1)
    checkpoints.save_model(LoadedModel(MODEL, jax.tree.map(np.asarray, params), tokenizer), step=7)
    checkpoints.wait()
    checkpoints.close()
    for name in ("damaged-3", "4.orbax-checkpoint-tmp"):
        (tmp_path / "run" / "checkpoints" / name).symlink_to(treasure)
    report.prune(report.read(tmp_path / "run"))
    with contextlib.suppress(OSError, RunError):
        Checkpoints(tmp_path / "run", keep=1).close()
    assert (treasure / "file").read_text() == "precious"


SECRET = "hunter2-canary"
ADDRESSES = [
    f"https://user:{SECRET}@data.org/wiki.txt.gz",
    f"https://{SECRET}@data.org/wiki.txt.gz",
    f"https://data.org/wiki.txt.gz?token={SECRET}",
    f"https://bucket.s3.amazonaws.com/wiki?X-Amz-Signature={SECRET}&x=1",
    f"s3://key:{SECRET}@bucket/wiki.txt",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_with_credentials_are_refused_and_not_repeated(address, tmp_path):
    for use in (
        lambda: find_inputs([address]),
        lambda: find_inputs([f"books={address}"]),
        lambda: bert_jax.Config(str(tmp_path), bert_jax.DataConfig(address)),
        lambda: bert_jax.Config(address, bert_jax.DataConfig("corpus")),
        lambda: bert_jax.FinetuneConfig(str(tmp_path), "mnli", address, "GLUE"),
        lambda: bert_jax.FinetuneConfig(str(tmp_path), "mnli", "model", address),
    ):
        with pytest.raises(UserError, match="with credentials, which would be stored in plain text") as raised:
            use()
        assert SECRET not in str(raised.value)


def test_the_environment_is_not_stored(run_config, quick, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    bert_jax.pretrain(run_config)
    output = capsys.readouterr()
    assert SECRET not in output.out + output.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
