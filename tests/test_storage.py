"""Object stores: corpora, runs, checkpoints and exports on ``gs://`` and ``s3://``, with real clients on emulators."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import uuid

import jax
import numpy as np
import pytest
from etils import epath

import bert_jax
from bert_jax import cli
from bert_jax.checkpoints import DIRECTORY, Checkpoints
from bert_jax.config.data import DataConfig
from bert_jax.config.retention import Retention
from bert_jax.data import beam, building, chunks, readers, reading
from bert_jax.data.corpus import open_corpus
from bert_jax.data.reading import BuildOptions
from bert_jax.data.records import Records, find_files
from bert_jax.errors import RunError, UserError
from bert_jax.io import atomic, lease, remote
from bert_jax.io.spool import Spool
from bert_jax.training.goodput import read_goodput
from bert_jax.training.logging import RunLog, read_metrics
from tests.conftest import files_below
from tests.runs import config_of, interrupt_at, lines_of, save_model, write_data
from tests.stores import BUCKET, SCHEMES, emulators

pytestmark = pytest.mark.usefixtures("unoptimized")


@pytest.fixture(scope="module", autouse=True)
def copies(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BERT_JAX_CACHE", str(directory := tmp_path_factory.mktemp("copies")))
        yield directory


@pytest.fixture(scope="module", autouse=True)
def addresses():
    with emulators() as found:
        yield found


@pytest.fixture(params=SCHEMES)
def store(request):
    """A new directory on each store."""
    return epath.Path(f"{request.param}://{BUCKET}/{uuid.uuid4().hex}")


@pytest.fixture
def unchecked():
    """Let buckets be checked again."""
    remote._check.cache_clear()
    yield
    remote._check.cache_clear()


@pytest.fixture
def stored_run(run_config, store):
    return dataclasses.replace(run_config, run=str(store / "run"))


def names(path):
    root = str(path).partition("://")[2]
    return sorted(name.removeprefix(f"{root}/") for name in remote.filesystem(path).find(root))


def assert_same_params(first, second):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), first.params, second.params)


def losses(run):
    return [(line["step"], line["split"], line.get("loss"), line.get("mlm_loss")) for line in read_metrics(run)]


# Paths and credentials.


@pytest.mark.parametrize(
    ("path", "package", "extra"), [("gs://bucket/corpus", "gcsfs", "gcs"), ("s3://bucket/corpus", "s3fs", "s3")]
)
def test_a_missing_package_is_named_with_its_extra(path, package, extra, unchecked, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == package else find(name, *more))
    expected = f"{path[:11]} needs the package {package}; run pip install 'bert-jax[{extra}]'."
    with pytest.raises(UserError) as caught:
        open_corpus(path)
    assert str(caught.value) == expected
    assert cli.main(["inspect", path]) == 2
    assert capsys.readouterr().err == f"bert-jax: {expected}\n"


@pytest.mark.parametrize(
    ("path", "hint"),
    [("gs://bucket/x", "run `gcloud auth application-default login`"), ("s3://bucket/x", "run `aws configure`")],
)
def test_missing_credentials_are_a_sentence_at_once(path, hint, unchecked, monkeypatch, tmp_path):
    for name in ("STORAGE_EMULATOR_HOST", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    # Neither files of a user nor the server of a virtual machine.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    began = time.monotonic()
    with pytest.raises(UserError, match=f"There are no credentials for {path[:11]}; {hint}"):
        Checkpoints(path)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_missing_bucket_is_a_sentence(scheme, capsys):
    assert cli.main(["info", f"{scheme}://no-such-bucket/model"]) == 2
    assert capsys.readouterr().err == f"bert-jax: There is no bucket {scheme}://no-such-bucket; create it, or correct its name.\n"
    with pytest.raises(UserError, match=f"{scheme}:// names no bucket"):
        remote.open_path(f"{scheme}:///model")


def test_another_store_is_a_sentence(capsys):
    assert cli.main(["info", "az://container/model"]) == 2
    assert "az://container is on a store that is not supported; use gs://, s3:// or files." in capsys.readouterr().err


def test_a_store_that_does_not_answer_is_a_sentence(unchecked, monkeypatch):
    monkeypatch.setattr(remote, "_TIMEOUT", 0.1)
    monkeypatch.setattr(remote, "filesystem", lambda path: time.sleep(1))
    with pytest.raises(UserError, match="s3://bucket does not answer within 0 seconds"):
        remote.open_path("s3://bucket/x")


def test_a_text_is_no_address(unchecked, monkeypatch):
    monkeypatch.setattr(remote, "_check", lambda scheme, bucket: pytest.fail(f"{bucket} was checked"))
    remote.check_arguments(["see gs://bucket/x", "gs://bucket/x is a path", "--model", "model"])


# Files and leases.


def test_outputs_are_whole_or_absent(store, tmp_path):
    with atomic.new_path(store / "scores.txt") as path:
        path.write_text("0.93")
        assert not (store / "scores.txt").exists()
    assert (store / "scores.txt").read_text() == "0.93"
    with pytest.raises(UserError, match=f"{store}/scores.txt exists already"), atomic.new_path(store / "scores.txt"):
        pass
    with atomic.replaced_path(store / "scores.txt") as path:
        path.write_text("0.94")
        assert (store / "scores.txt").read_text() == "0.93"
    assert (store / "scores.txt").read_text() == "0.94"
    with pytest.raises(FileNotFoundError), atomic.new_path(store / "model") as path:
        (path / "no-such-directory" / "config.json").write_text("{}")
    assert names(store) == ["scores.txt"]


def test_the_file_that_readers_look_for_comes_last(store, monkeypatch):
    filesystem, puts = remote.filesystem(store), []
    put = filesystem.put
    monkeypatch.setattr(filesystem, "put", lambda source, target: puts.append(target) or put(source, target))
    with atomic.new_path(store / "model") as path:
        path.mkdir()
        for name in ("a", "config.json", "z"):
            (path / name).write_text(name)
    assert puts == [[f"{store}/model/a", f"{store}/model/z"], [f"{store}/model/config.json"]]


def test_a_lease_is_exclusive_and_names_its_owner(store):
    with lease.held(store, "the corpus") as held:
        with pytest.raises(UserError, match=f"the corpus is being built by process {os.getpid()} on .*; wait for it"):
            lease.Lease(store, "the corpus")
        held.check()
    assert not store.exists()
    with lease.held(store, "the corpus"):
        pass


def test_a_lease_ends_when_its_owner_is_killed(store, monkeypatch):
    monkeypatch.setattr(lease, "TERM", 1.0)
    monkeypatch.setattr(lease.Lease, "_renew", lambda self: self._done.wait())
    lost = lease.Lease(store, "the corpus")
    time.sleep(1.1)
    with lease.held(store, "the corpus") as taken:
        taken.check()
        with pytest.raises(UserError, match="is being built by process"):
            lease.Lease(store, "the corpus")
        with pytest.raises(RunError, match="This process has lost the corpus"):
            lost.check()
    lost.release()


def test_a_paused_owner_goes_on_unless_another_process_had_the_directory(store, monkeypatch):
    monkeypatch.setattr(lease, "TERM", 1.0)
    monkeypatch.setattr(lease.Lease, "_renew", lambda self: self._done.wait())
    with lease.held(store, "the corpus") as paused:
        time.sleep(1.1)
        paused.check()
        with pytest.raises(UserError, match="is being built by process"):
            lease.Lease(store, "the corpus")
        time.sleep(1.1)
        with lease.held(store, "the corpus"):
            pass
        with pytest.raises(RunError, match="This process has lost the corpus"):
            paused.check()
    assert not store.exists()


def test_an_owner_whose_store_does_not_answer_stops_in_bounded_time(store, monkeypatch):
    async def hang(*arguments, **options):
        await asyncio.sleep(60)

    monkeypatch.setattr(lease, "TERM", 1.0)
    with lease.held(store, "the corpus") as held:
        with monkeypatch.context() as patch:
            patch.setattr(held._store, "_pipe_file", hang)
            patch.setattr(lease, "_ANSWER_SECONDS", 0.5)
            time.sleep(1.3)
            began = time.monotonic()
            with pytest.raises(RunError, match=r"The store of the corpus did not answer for 1 seconds \(FSTimeoutError\)"):
                held.check()
            assert time.monotonic() - began < 5
        held.check()


def test_a_lease_is_renewed(store, monkeypatch):
    monkeypatch.setattr(lease, "TERM", 0.8)
    with lease.held(store, "the corpus") as held:
        time.sleep(1.2)
        with pytest.raises(UserError, match="is being built by process"):
            lease.Lease(store, "the corpus")
        held.check()


# Corpora.


def prepare(texts, out, tokenizer):
    return building.build_corpus(readers.find_inputs(texts), out, tokenizer, BuildOptions(held_out=0.1), workers=1)


def assert_same_corpus(stored, local):
    assert stored.compute_digest() == local.compute_digest()
    for split in ("train", "held_out"):
        documents = [getattr(corpus, split).documents for corpus in (stored, local)]
        assert len(documents[0]) == len(documents[1]) > 0
        for index in range(len(documents[0])):
            jax.tree.map(np.testing.assert_array_equal, documents[0][index], documents[1][index])


def test_a_corpus_on_a_store_is_the_corpus_on_files(store, tmp_path, text, tokenizer, monkeypatch, capsys):
    monkeypatch.setattr(reading, "CHUNK_CHARACTERS", 8000)
    (store / "texts" / "a.txt").write_bytes(text.read_bytes())
    (store / "texts" / "below" / "b.txt.gz").write_bytes(gzip.compress(text.read_bytes()))
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(text.read_bytes())
    counts = prepare([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "corpus", tokenizer)
    local = open_corpus(tmp_path / "corpus")
    assert local.digest() == local.stored_digest
    for number, texts in enumerate(([store / "texts"], [store / "texts" / "*.txt", store / "texts" / "below" / "*.gz"])):
        assert prepare(texts, store / f"corpus{number}", tokenizer) == counts
        assert_same_corpus(open_corpus(store / f"corpus{number}"), local)
    assert sorted(path.name for path in store.iterdir()) == ["corpus0", "corpus1", "texts"]
    assert names(store / "corpus0") == sorted(path.name for path in (tmp_path / "corpus").iterdir())
    assert capsys.readouterr().err.count(f"bert-jax: copying {store}/corpus") == 2
    with pytest.raises(UserError, match=f"{store}/corpus0 exists already"):
        prepare([store / "texts"], store / "corpus0", tokenizer)
    with pytest.raises(UserError, match=f"No file matches {store}/texts/x"):
        readers.find_inputs([store / "texts" / "x*"])


def test_a_corpus_is_copied_once_and_its_errors_name_the_store(store, text, tokenizer, capsys, copies):
    prepare([text], store / "corpus", tokenizer)
    before = {*copies.iterdir()}
    first, second = open_corpus(store / "corpus"), open_corpus(store / "corpus")
    digest = first.compute_digest()
    assert capsys.readouterr().err.count("copying") == 1
    assert first.path == second.path == store / "corpus"
    # A copy with a file of another size is made again.
    [copy] = [path for path in {*copies.iterdir()} - before if path.is_dir()]
    (copy / "train.lengths.npy").write_bytes(b"short")
    assert open_corpus(store / "corpus").compute_digest() == digest
    assert capsys.readouterr().err.count("copying") == 1
    # Other content is another copy.
    (store / "corpus" / "train.lengths.npy").write_bytes(b"not an array")
    with pytest.raises(UserError, match=f"{store}/corpus/train.lengths.npy cannot be read"):
        open_corpus(store / "corpus")
    (store / "corpus" / "dataset_info.json").unlink()
    with pytest.raises(UserError, match=f"{store}/corpus is not a corpus"):
        open_corpus(store / "corpus")


def test_a_stopped_build_continues_on_the_store(store, tmp_path, text, tokenizer, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK_CHARACTERS", 4000)
    prepare([text], tmp_path / "corpus", tokenizer)
    upload, write, written = remote.upload, chunks.Writer.write, []

    def stop_at_the_third(writer, chunk):
        if chunk.number == 2:
            raise KeyboardInterrupt
        return write(writer, chunk)

    def stop_before_the_last_file(source, target, **how):
        if how:
            raise KeyboardInterrupt
        upload(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(chunks.Writer, "write", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            prepare([text], store / "corpus", tokenizer)
    assert [path.name for path in store.iterdir()] == [".corpus.partial"]
    monkeypatch.setattr(chunks.Writer, "write", lambda writer, chunk: written.append(chunk.number) or write(writer, chunk))
    # The second build is stopped while it copies to the final name, where it leaves shards that are no corpus.
    with monkeypatch.context() as patch:
        patch.setattr(remote, "upload", stop_before_the_last_file)
        with pytest.raises(KeyboardInterrupt):
            prepare([text], store / "corpus", tokenizer)
    assert min(written) == 2
    with pytest.raises(UserError, match="is not a corpus"):
        open_corpus(store / "corpus")
    written.clear()
    prepare([text], store / "corpus", tokenizer)
    assert not written
    assert_same_corpus(open_corpus(store / "corpus"), open_corpus(tmp_path / "corpus"))
    assert [path.name for path in store.iterdir()] == ["corpus"]


def test_beam_builds_a_corpus_on_a_store(store, tmp_path, text, tokenizer, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK_CHARACTERS", 8000)
    prepare([text], tmp_path / "corpus", tokenizer)
    (store / "text.txt").write_bytes(text.read_bytes())
    inputs = readers.find_inputs([store / "text.txt"])
    beam.build_corpus(inputs, store / "corpus", tokenizer, BuildOptions(held_out=0.1), ["--runner=FnApiRunner"])
    assert_same_corpus(open_corpus(store / "corpus"), open_corpus(tmp_path / "corpus"))
    assert sorted(path.name for path in store.iterdir()) == ["corpus", "text.txt"]


def test_two_builds_of_one_corpus_are_refused(store, text, tokenizer):
    with (
        lease.held(store / ".corpus.partial", str(store / "corpus")),
        pytest.raises(UserError, match=f"{store}/corpus is being built by process {os.getpid()} on"),
    ):
        prepare([text], store / "corpus", tokenizer)
    assert not store.exists()


def test_records_on_a_store_are_those_on_files(store, tmp_path, text, tokenizer):
    tokenizers = tmp_path / "vocab"
    bert_jax.tokenizers.create(tokenizer, tokenizers)
    options = ["--builder", "google", "--vocab", str(tokenizers), "--google.max-seq-length", "32", "--google.dupe-factor", "1"]
    assert cli.main(["prepare", str(text), "--out", str(tmp_path / "records"), *options]) == 0
    remote.upload(tmp_path / "records", store / "records")
    [name] = [path.name for path in (tmp_path / "records").iterdir() if ".tfrecord" in path.name]
    assert find_files(f"{store}/records/*.tfrecord*") == [store / "records" / name]
    config = DataConfig(str(tmp_path / "records"), sequence_length=32, batch_size=4)
    local, stored = Records(config), Records(dataclasses.replace(config, corpus=str(store / "records")))
    assert local.digest() == stored.digest()
    batches = [next(records.train_batches(seed=0, rows=np.arange(4))) for records in (local, stored)]
    jax.tree.map(np.testing.assert_array_equal, *batches)
    (store / "records" / name).write_bytes((tmp_path / "records" / name).read_bytes()[:-5])
    with pytest.raises(UserError, match=f"{store}/records/{name} is truncated"):
        Records(dataclasses.replace(config, corpus=str(store / "records")))


# Runs, checkpoints and exports.


@pytest.fixture(scope="module")
def finished(tmp_path_factory, corpus):
    """The run of ``run_config`` on files, made once."""
    return {}


def on_files(finished, config):
    if not finished:
        bert_jax.pretrain(config)
        finished["params"], finished["losses"] = bert_jax.load(config.run), losses(config.run)
    return finished["params"], finished["losses"]


@pytest.mark.parametrize("store", ["gs", pytest.param("s3", marks=pytest.mark.slow)], indirect=True)
def test_a_stopped_and_damaged_run_on_a_store_is_the_run_on_files(quick, run_config, stored_run, finished, monkeypatch, capsys):
    expected, expected_losses = on_files(finished, run_config)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5, lambda: signal.raise_signal(signal.SIGTERM))
        assert bert_jax.pretrain(stored_run).signal == signal.SIGTERM
    steps = epath.Path(stored_run.run) / DIRECTORY
    newest = max(steps.iterdir(), key=lambda path: int(path.name))
    [data] = [name for name in names(newest) if name.startswith("state/d/")]
    (newest / data).write_bytes(bytes(len((newest / data).read_bytes())))
    assert bert_jax.pretrain(stored_run).step == 8
    assert f"checkpoint {newest} is damaged" in capsys.readouterr().err
    assert_same_params(bert_jax.load(stored_run.run), expected)
    assert losses(stored_run.run) == expected_losses
    goodput = read_goodput(stored_run.run)
    assert (goodput["starts"], goodput["step"]) == (2, 8)
    assert goodput["productive_seconds"] + sum(goodput["lost_seconds"].values()) == pytest.approx(
        goodput["total_seconds"], abs=0.01
    )
    # The newest two of the steps 3, 4, 6 and 8 are kept.
    assert {path.name for path in steps.iterdir()} == {"6", "8", f"damaged-{newest.name}"}
    found = names(stored_run.run)
    assert {"config.json", "curves.png", "goodput.jsonl", "metrics.jsonl"} <= {*found}
    assert sum(name.startswith("tensorboard/events.out.tfevents") for name in found) == 2
    assert not {"gs:", "s3:"} & {*os.listdir()}
    capsys.readouterr()
    (steps / "9" / "state" / "manifest.ocdbt").write_text("part of a checkpoint")
    assert cli.main(["checkpoints", stored_run.run, "--verify", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    found = [(epath.Path(entry["path"]).name, entry["kind"], entry["kept"], entry["problems"]) for entry in entries]
    assert found == [
        ("6", "step", ["newest"], []),
        ("8", "step", ["newest"], []),
        ("9", "unfinished", [], []),
        (f"damaged-{newest.name}", "set aside", [], []),
    ]
    assert cli.main(["checkpoints", stored_run.run, "--prune", "--keep", "1"]) == 0
    # A run may still be writing step 9.
    assert {path.name for path in steps.iterdir()} == {"8", "9"}


def test_retention_applies_on_a_store(store, tokenizer, tmp_path):
    save_model(tmp_path / "model", tokenizer)
    model = bert_jax.load(tmp_path / "model")
    writer = Checkpoints(store, keep=Retention(1, every=3, best=1), losses=lambda: {2: 1.5, 4: 2.5})
    for step in range(1, 6):
        writer.save_model(model, step=step)
        writer.wait()
    writer.close()
    reader = Checkpoints(store)
    assert reader.steps() == [2, 3, 5]
    ages = [time.time() - reader.saved(step).timestamp() for step in reader.steps()]
    assert 60 > ages[0] > ages[1] > ages[2] >= 0
    reader.close()


def test_a_finished_log_has_every_line_once(store, tmp_path):
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        log = RunLog(store / "run", start=start, steps=4)
        for step in steps:
            log.write(step, "train", {"loss": float(10 * start + step)})
        log.sync()
        assert [line["loss"] for line in read_metrics(store / "run")][-1] == 10 * start + steps[-1]
        log.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(store / "run")] == [(1, 1), (2, 2), (3, 23), (4, 24)]


def test_a_store_that_cannot_be_written_is_reported_when_the_log_is_synced(store, monkeypatch):
    def forbidden(*args):
        raise PermissionError("Forbidden")

    spool = Spool(store)
    (spool.path / "metrics.jsonl").write_text("{}\n")
    with monkeypatch.context() as patch:
        patch.setattr(spool._store, "pipe_file", forbidden)
        with pytest.raises(RunError, match=f"{store} cannot be written: Forbidden"):
            spool.flush()
    spool.close()
    assert (store / "metrics.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize(
    ("store", "to"), [("gs", "hf"), ("s3", "google"), ("s3", "flax"), ("gs", "orbax"), ("s3", "orbax")], indirect=["store"]
)
def test_exports_are_written_to_and_read_from_a_store(store, to, tokenizer, tmp_path, monkeypatch):
    save_model(tmp_path / "model", tokenizer, to=to, heads={"mlm": 0} if to == "google" else {})
    source = bert_jax.load(tmp_path / "model")
    report = bert_jax.save(source, store / "model", to=to, verify=to == "orbax")
    assert_same_params(bert_jax.load(store / "model"), source)
    assert json.loads((store / "model" / "conversion.json").read_text()) == report
    if to != "orbax":
        assert names(store / "model") == sorted(files_below(tmp_path / "model"))


def test_commands_read_and_write_a_store(quick, store, tokenizer, tmp_path, capsys):
    save_model(tmp_path / "model", tokenizer, to="hf")
    assert cli.main(["convert", str(tmp_path / "model"), f"{store}/model", "--to", "flax"]) == 0
    (store / "texts.txt").write_text("alpha bravo\ncharlie\n")
    (tmp_path / "texts.txt").write_text("alpha bravo\ncharlie\n")
    assert cli.main(["embed", f"{store}/model", f"{store}/texts.txt", "--out", f"{store}/vectors.npy"]) == 0
    assert cli.main(["embed", str(tmp_path / "model"), str(tmp_path / "texts.txt"), "--out", str(tmp_path / "vectors.npy")]) == 0
    with (store / "vectors.npy").open("rb") as file:
        np.testing.assert_array_equal(np.load(file), np.load(tmp_path / "vectors.npy"))
    assert cli.main(["info", f"{store}/model"]) == 0
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("store", ["s3", pytest.param("gs", marks=pytest.mark.slow)], indirect=True)
def test_fine_tuning_reads_and_writes_a_store(quick, store, init, tmp_path, capsys):
    remote.upload(write_data(tmp_path / "data", "classify"), store / "data")
    for root in (str(tmp_path), str(store)):
        config = config_of("classify", init, f"{root}/data", f"{root}/run", epochs=2.0)
        bert_jax.finetune(config)
        assert cli.main(["evaluate", f"{root}/run", "--data", f"{root}/data", "--out", f"{root}/scores"]) == 0
        assert cli.main(["predict", f"{root}/run", f"{root}/data/dev.tsv", "--out", f"{root}/predictions.jsonl"]) == 0
    assert (store / "predictions.jsonl").read_text() == (tmp_path / "predictions.jsonl").read_text()
    assert names(store / "scores") == sorted(files_below(tmp_path / "scores"))
    assert_same_params(bert_jax.load(store / "run"), bert_jax.load(tmp_path / "run"))
    assert lines_of(store / "run") == lines_of(tmp_path / "run")
    assert "Traceback" not in capsys.readouterr().err


def test_an_unfinished_checkpoint_is_removed(store):
    steps = store / "run" / DIRECTORY
    (steps / "9" / "_CHECKPOINT_METADATA").write_text("{}")
    (steps / "9" / "state" / "manifest.ocdbt").write_text("part of a checkpoint")
    reader = Checkpoints(store / "run")
    assert reader.latest() is None
    reader.close()
    assert names(steps) == ["9/_CHECKPOINT_METADATA", "9/state/manifest.ocdbt"]
    writer = Checkpoints(store / "run", keep=2)
    assert writer.latest() is None
    # Orbax deletes in the background.
    for _ in range(50):
        if not names(steps):
            break
        time.sleep(0.1)
    writer.close()
    assert not names(steps)


KILLED = """
import os, signal, sys
from bert_jax import Config, pretrain
from tests.runs import interrupt_at, quickly

with quickly() as patch:
    interrupt_at(patch, int(sys.argv[2]), lambda: os.kill(os.getpid(), signal.SIGKILL))
    pretrain(Config.from_json(open(sys.argv[1]).read()))
"""


@pytest.mark.slow
def test_a_killed_run_on_a_store_ends_as_an_unbroken_one(quick, run_config, stored_run, finished, tmp_path):
    expected, expected_losses = on_files(finished, run_config)
    (tmp_path / "config.json").write_text(stored_run.to_json())
    # Step 3 is being written when step 4 is reported, and step 4 when step 5 is.
    for step in (4, 5, 7):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "config.json"), str(step)]
        killed = subprocess.run(command, capture_output=True, text=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert bert_jax.pretrain(stored_run).step == 8
    assert_same_params(bert_jax.load(stored_run.run), expected)
    assert losses(stored_run.run) == expected_losses
    assert {path.name for path in (epath.Path(stored_run.run) / DIRECTORY).iterdir()} == {"6", "8"}
