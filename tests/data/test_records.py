"""TFRecord files as the data of a run: batches, positions, other programs' files, and damaged files."""

from __future__ import annotations

import dataclasses
import gzip
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import tensorboardX.record_writer

import bert_jax
from bert_jax import DataConfig, tokenizers
from bert_jax.batch import KEPT, MASKED, RANDOM
from bert_jax.config.masking import MaskPolicy
from bert_jax.data.google import GoogleFlags, write_records
from bert_jax.data.records import Records, find_files, is_records
from bert_jax.data.sources import open_data
from bert_jax.errors import UserError
from bert_jax.io import tfrecord
from bert_jax.tokenizers.protocol import SPECIAL_TOKENS
from bert_jax.training.logging import read_metrics
from bert_jax.training.pretraining import pretrain

pytestmark = pytest.mark.usefixtures("unoptimized")

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "google_records"
LENGTH = 32


@pytest.fixture(scope="module")
def written(tmp_path_factory, text, tokenizer):
    out = tmp_path_factory.mktemp("records") / "records"
    flags = GoogleFlags(max_seq_length=LENGTH, max_predictions_per_seq=5, dupe_factor=2)
    write_records([text], out, tokenizer, flags, shards=3)
    return out


@pytest.fixture
def config(written):
    return DataConfig(str(written), sequence_length=LENGTH, batch_size=8)


def take(config, count, *, seed=0, rows=None, state=None):
    batches = Records(config).train_batches(seed=seed, rows=np.arange(config.batch_size) if rows is None else np.asarray(rows))
    if state:
        batches.set_state(state)
    taken = [next(batches) for _ in range(count)]
    state = batches.get_state()
    batches.close()
    return taken, state


def same(a, b):
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
        assert a[name].dtype == b[name].dtype


def test_an_epoch_contains_every_record_once_and_the_next_one_in_another_order(config):
    examples = [tfrecord.decode_example(data) for file in find_files(config.corpus) for data in tfrecord.stream(file)]
    expected = sorted(tuple(row["input_ids"]) + tuple(row["masked_lm_ids"]) for row in examples)
    config = dataclasses.replace(config, batch_size=1)
    batches, _ = take(config, 2 * len(examples))
    rows = [tuple(batch["input_ids"][0]) + tuple(batch["mlm_ids"][0]) for batch in batches]
    assert sorted(rows[: len(examples)]) == sorted(rows[len(examples) :]) == expected
    assert rows[: len(examples)] != rows[len(examples) :]
    ids = [int(batch["example_ids"][0, 0]) for batch in batches]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_make_the_batches_of_one(config, hosts):
    whole, _ = take(config, 30, seed=3)
    parts = [take(config, 30, seed=3, rows=np.arange(8)[host::hosts])[0] for host in range(hosts)]
    for step, batch in enumerate(whole):
        for host in range(hosts):
            same(parts[host][step], {name: values[host::hosts] for name, values in batch.items()})


def test_batches_continue_from_any_position(config):
    whole, _ = take(config, 40)
    for stop in (1, 7, 19, 33):
        _, state = take(config, stop)
        assert json.loads(json.dumps(state)) == state
        for batch, expected in zip(take(config, 3, state=state)[0], whole[stop : stop + 3], strict=True):
            same(batch, expected)


def test_arrays_of_a_batch(config, tokenizer):
    (batch,), _ = take(config, 1)
    lengths = (batch["segment_ids"] > 0).sum(1)
    assert (batch["position_ids"].max(1) == lengths - 1).all()
    special = tokenizer.special_tokens
    assert (batch["input_ids"][:, 0] == special.cls).all()
    counts = (batch["mlm_weights"] > 0).sum(1)
    assert (counts == batch["mlm_selected"]).all()
    assert (counts == np.minimum(5, np.maximum(1, [round(0.15 * length) for length in lengths]))).all()
    here = batch["mlm_weights"] > 0
    inputs = np.take_along_axis(batch["input_ids"], batch["mlm_positions"], axis=1)[here]
    kinds, labels = batch["mlm_kinds"][here], batch["mlm_ids"][here]
    assert ((kinds == MASKED) == (inputs == special.mask)).all()
    assert ((kinds == KEPT) == (inputs == labels)).all()
    assert set(kinds.tolist()) <= {MASKED, KEPT, RANDOM}
    assert set(batch["nsp_labels"].ravel().tolist()) == {0, 1}
    assert (batch["nsp_weights"] == 1).all()


def test_evaluation_takes_every_held_out_record_once(config):
    records = Records(dataclasses.replace(config, held_out=config.corpus))
    whole = [*records.eval_batches(rows=np.arange(8), limit=None)]
    count = sum(len(tfrecord.RecordFile(path)) for path in records.held_out)
    assert sum(int((batch["segment_ids"][:, 0] > 0).sum()) for batch in whole) == count
    assert sum(float(batch["nsp_weights"].sum()) for batch in whole) == count
    assert len(whole) == -(-count // 8)
    for host in range(2):
        part = [*records.eval_batches(rows=np.arange(8)[host::2], limit=3)]
        for batch, expected in zip(part, whole[:3], strict=True):
            same(batch, {name: values[host::2] for name, values in expected.items()})


def test_frequencies_are_those_of_the_text_before_masking(config, corpus):
    estimated = Records(config).unigram_log_probabilities()
    assert estimated.shape == (len(corpus.tokenizer.tokens),)
    assert abs(np.exp(estimated).sum() - 1) < 1e-4
    assert estimated[corpus.tokenizer.special_tokens.mask] == estimated.min()


def test_files_of_the_original_and_of_other_programs(tmp_path):
    """Gzip files, names of the TensorFlow Models, another program's framing, and a pattern with a vocabulary elsewhere."""
    original = [*tfrecord.stream(GOLDEN / "uncased-0.tfrecord.gz")]
    names = {"input_ids": "input_word_ids", "segment_ids": "input_type_ids"}
    for number, rows in enumerate((original[::2], original[1::2])):
        writer = tensorboardX.record_writer.RecordWriter(str(tmp_path / f"part-{number}"))
        for row in rows:
            features = tfrecord.decode_example(row)
            writer.write(tfrecord.encode_example({names.get(name, name): values.tolist() for name, values in features.items()}))
        writer.close()
    ours = DataConfig(str(tmp_path / "part-*"), sequence_length=LENGTH, batch_size=4, vocab=str(GOLDEN))
    theirs = DataConfig(str(GOLDEN / "uncased-0.tfrecord.gz"), sequence_length=LENGTH, batch_size=4)
    rows = []
    for config in (ours, theirs):
        batches, _ = take(config, len(original) // 4)
        rows.append({row.tobytes() for batch in batches for row in np.concatenate([batch["input_ids"], batch["mlm_ids"]], axis=1)})
    assert len(rows[0] & rows[1]) > 0.9 * len(original) - 8


def rewrite(path, change):
    content = bytearray(path.read_bytes())
    path.write_bytes(change(content) or content)


def flip(place):
    def change(content):
        content[place] ^= 4

    return change


def compressed(change):
    return lambda content: bytes(change(gzip.compress(bytes(content))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-3], r"truncated: the record at byte [\d,]+ is incomplete"),
        (lambda content: content[:5], "truncated: the record at byte 0 is incomplete"),
        (flip(40), "record at byte 0 is damaged; its checksum differs"),
        (flip(2), "is not a TFRecord file"),
        (lambda content: b"Some text that is no record.\n" * 9, "is not a TFRecord file"),
        (lambda content: b"\0", "truncated"),
        (compressed(lambda data: data[:-30]), "not a whole gzip file"),
        (compressed(lambda data: data[:40] + b"\xff" + data[41:]), "not a whole gzip file"),
    ],
)
def test_damaged_files_are_refused_with_name_and_offset(written, tmp_path, tokenizer, change, message):
    path = tmp_path / "damaged.tfrecord"
    path.write_bytes(sorted(written.glob("*.tfrecord"))[0].read_bytes())
    rewrite(path, change)
    tokenizers.save(tokenizer, tmp_path)
    with pytest.raises(UserError, match=message) as error:
        take(DataConfig(str(path), sequence_length=LENGTH, batch_size=4), 1)
    assert str(path) in str(error.value)


def test_an_empty_file_is_refused(tmp_path, tokenizer):
    (tmp_path / "empty.tfrecord").write_bytes(b"")
    tokenizers.save(tokenizer, tmp_path)
    with pytest.raises(UserError, match="is empty"):
        Records(DataConfig(str(tmp_path)))


def test_damage_in_a_later_record_names_its_offset(written, tmp_path, tokenizer):
    path = tmp_path / "damaged.tfrecord"
    content = bytearray(sorted(written.glob("*.tfrecord"))[0].read_bytes())
    first = 16 + int.from_bytes(content[:8], "little")
    content[first + 50] ^= 1
    path.write_bytes(content)
    tokenizers.save(tokenizer, tmp_path)
    with pytest.raises(UserError, match=f"record at byte {first:,} is damaged"):
        take(DataConfig(str(path), sequence_length=LENGTH, batch_size=1), 300)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence_length": 64}, "has 32 tokens, but data.sequence_length is 64; use --data.sequence-length 32"),
        ({"corpus": "nowhere/*.tfrecord"}, "There are no TFRecord files nowhere"),
        ({"held_out": "nowhere"}, "There are no TFRecord files nowhere"),
    ],
)
def test_what_does_not_fit_is_refused(config, changes, message):
    with pytest.raises(UserError, match=message):
        Records(dataclasses.replace(config, **changes))


def test_another_vocabulary_is_refused(config, written, tmp_path):
    small = tokenizers.WordPiece({"vocab.txt": "\n".join([*SPECIAL_TOKENS, "a", "b"]).encode()})
    tokenizers.save(small, tmp_path)
    with pytest.raises(UserError, match="but the vocabulary has 7 tokens; name the directory of the one with which it was made"):
        Records(dataclasses.replace(config, vocab=str(tmp_path)))
    alone = tmp_path / "alone" / "data.tfrecord"
    alone.parent.mkdir()
    shutil.copy(next(written.glob("*.tfrecord*")), alone)
    with pytest.raises(UserError, match="contains no vocabulary; name the directory"):
        Records(DataConfig(str(alone), sequence_length=LENGTH))
    with pytest.raises(UserError, match=r"make_flax.py is not a TFRecord file; text and JSON lines become a corpus by"):
        Records(DataConfig(str(GOLDEN.parent / "make_flax.py"), sequence_length=LENGTH))


def test_a_changed_vocabulary_of_the_same_size_is_refused(config, tmp_path):
    copy = shutil.copytree(config.corpus, tmp_path / "copy")
    config = dataclasses.replace(config, corpus=str(copy))
    assert Records(config).tokenizer
    lines = (copy / "vocab.txt").read_text().splitlines()
    (copy / "vocab.txt").write_text("\n".join([*lines[:-2], lines[-1], lines[-2]]) + "\n")
    with pytest.raises(UserError, match=r"vocabulary in .*copy is not the one that its files were made with; restore it"):
        Records(config)


def test_features_that_are_missing_are_named(tmp_path, tokenizer):
    tokenizers.save(tokenizer, tmp_path)
    with (tmp_path / "a.tfrecord").open("wb") as file:
        tfrecord.write_record(file, tfrecord.encode_example({"input_ids": [1] * LENGTH, "labels": [2]}))
    with pytest.raises(UserError, match=r"record 0 has no input_mask, .*, next_sentence_labels \(but input_ids, labels\)"):
        Records(DataConfig(str(tmp_path), sequence_length=LENGTH))
    with (tmp_path / "a.tfrecord").open("wb") as file:
        tfrecord.write_record(file, b"\xff\xff no example")
    with pytest.raises(UserError, match=r"record 0: not a tf.train.Example"):
        Records(DataConfig(str(tmp_path), sequence_length=LENGTH))


def test_a_corpus_is_told_from_records(config, corpus):
    assert not is_records(str(corpus.path))
    assert is_records(config.corpus)
    with pytest.raises(UserError, match=r"data\.vocab is for TFRecord files"):
        open_data(DataConfig(str(corpus.path), vocab="v"))


@pytest.fixture
def record_run(run_config, config, quick):
    data = dataclasses.replace(config, batch_size=16, held_out=config.corpus)
    return dataclasses.replace(run_config, data=data, model=dataclasses.replace(run_config.model, vocab_size=97))


def test_a_run_on_records_learns_and_resumes(record_run, tmp_path):
    """Losses of a run that was continued are those of an unbroken one."""
    result = pretrain(record_run)
    lines = [line for line in read_metrics(record_run.run) if line["split"] == "train"]
    assert 0.1 < lines[0]["mask_rate"] < 0.2
    assert lines[0]["examples_per_step"] == 16
    assert result.held_out["mlm_loss"] < lines[0]["mlm_loss"]
    half = dataclasses.replace(record_run, run=str(tmp_path / "half"))
    kept = bert_jax.checkpoints.Checkpoints(record_run.run)
    assert kept.latest() == 8
    params = jax.device_get(kept.restore_model().params)
    kept.close()
    pretrain(half)
    for path in (pathlib.Path(half.run) / "checkpoints").glob("8"):
        shutil.rmtree(path)
    assert pretrain(half).step == 8
    again = bert_jax.checkpoints.Checkpoints(half.run)
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(again.restore_model().params))
    again.close()


def test_without_held_out_files_there_is_no_evaluation(record_run, capsys):
    config = dataclasses.replace(record_run, data=dataclasses.replace(record_run.data, held_out=None))
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, steps=2, eval_every=2), optim=bert_jax.OptimConfig(warmup_steps=1)
    )
    assert pretrain(config).held_out is None
    assert "data.held_out names no files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mask": MaskPolicy(rate=0.3)}, "mask"),
        ({"data": {"random_next": 0.2, "dupe_factor": 3}}, "data.random_next, data.dupe_factor"),
    ],
)
def test_settings_that_the_files_have_decided_are_refused(record_run, changes, named):
    if "data" in changes:
        changes = {"data": dataclasses.replace(record_run.data, **changes["data"])}
    with pytest.raises(UserError, match=f"for which {named} cannot be chosen"):
        pretrain(dataclasses.replace(record_run, **changes))
