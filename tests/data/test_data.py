"""From text to batches: file formats, splits, sentence pairs, packing, and batches that depend only on their index."""

from __future__ import annotations

import dataclasses
import gzip
import json
import shutil
import subprocess
import sys
import tracemalloc

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.config.data import DataConfig
from bert_jax.data import building, packing, pipeline, sentence_pairs
from bert_jax.data import corpus as corpora
from bert_jax.data.corpus import Split
from bert_jax.data.readers import StoredText, read_documents, sentences_of
from bert_jax.errors import UserError

DOCUMENTS = [["One sentence.", "Another one."], ["A second document. With two sentences in a line."]]
SPLIT = [DOCUMENTS[0], ["A second document.", "With two sentences in a line."]]


def write(path, kind):
    texts = ["\n".join(document) for document in DOCUMENTS]
    if kind == "txt":
        path.write_text("\n\n\n".join(texts) + "\n")
    elif kind == "txt.gz":
        path.write_bytes(gzip.compress("\n\n".join(texts).encode()))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in texts))
    else:
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    return path


@pytest.mark.parametrize("kind", ["txt", "txt.gz", "jsonl", "parquet"])
@pytest.mark.parametrize("sentences", ["auto", "lines", "split"])
def test_all_formats_give_the_same_documents(tmp_path, kind, sentences):
    path = write(tmp_path / f"text.{kind}", kind)
    split = sentences == "split" or (sentences == "auto" and kind in ("jsonl", "parquet"))
    assert list(read_documents([path], sentences=sentences)) == (SPLIT if split else DOCUMENTS)
    assert list(read_documents([path, path], sentences="lines")) == DOCUMENTS * 2


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b"", "contains no text"),
        ("a.txt", b"\n \n\n", "contains no text"),
        ("a.txt", b"fine\nnot \xff fine\n", "line 2: byte 0xff at column 5 is not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", b'{"body": "x"}\n', "line 1: no text under 'text'; name the field with --field"),
        ("a.parquet", b"PAR0", "not a whole Parquet file"),
        ("a.txt.gz", b"plain", "not a whole gzip file"),
        ("a.txt.gz", gzip.compress(b"text " * 100, mtime=0)[:-20], "not a whole gzip file"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": "half \\ud83d"}\n', "line 2: 'text' has half a surrogate pair at character 6"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence) as caught:
        list(read_documents([tmp_path / name]))
    assert name in str(caught.value)


def test_missing_files_directories_and_columns(tmp_path):
    with pytest.raises(UserError, match="no file"):
        list(read_documents([tmp_path / "none.txt"]))
    with pytest.raises(UserError, match="is a directory without text files"):
        list(read_documents([tmp_path]))
    write(tmp_path / "a.parquet", "parquet")
    with pytest.raises(UserError, match="no column 'body' but text"):
        list(read_documents([tmp_path / "a.parquet"], field="body"))


def test_a_corpus_contains_the_documents(corpus, text, tokenizer):
    documents = list(read_documents([text]))
    held_out = [document for index, document in enumerate(documents) if index % 10 == 9]
    train = [document for index, document in enumerate(documents) if index % 10 != 9]
    for split, expected in ((corpus.train, train), (corpus.held_out, held_out)):
        assert len(split.documents) == len(split.first) - 1 == len(expected)
        counts = np.zeros(len(tokenizer.tokens), int)
        for index, document in enumerate(expected):
            stored = split.documents[index]
            sentences = tokenizer.encode(document)
            np.testing.assert_array_equal(stored["tokens"], np.concatenate([sentence.ids for sentence in sentences]))
            np.testing.assert_array_equal(stored["word_starts"], np.concatenate([sentence.word_starts for sentence in sentences]))
            np.testing.assert_array_equal(stored["sentence_lengths"], [len(sentence.ids) for sentence in sentences])
            np.testing.assert_array_equal(stored["sentence_lengths"], split.lengths[split.first[index] : split.first[index + 1]])
            counts += np.bincount(stored["tokens"], minlength=len(counts))
        np.testing.assert_array_equal(split.counts, counts)
    assert np.exp(corpora.unigram_log_probabilities(corpus.train)).sum() == pytest.approx(1, rel=1e-4)


def test_documents_are_cached_up_to_a_limit():
    read_indices = []

    class Source:
        def __len__(self):
            return 6

        def __getitems__(self, indices):
            read_indices.extend(indices)
            return [{"tokens": np.full(10, index)} for index in indices]

    documents = corpora.Documents(Source(), cache_bytes=3 * (80 + corpora._DOCUMENT_OVERHEAD))
    assert len(documents) == 6
    for indices, expected_reads in (
        ([2, 0, 2], [2, 0]),
        ([0, 1], [1]),
        ([3], [3]),
        ([0, 1], []),
        ([2], [2]),
        ([5, 4, 3, 2, 1, 0], [5, 4, 3]),
        ([2, 1, 0], []),
    ):
        read_indices.clear()
        assert [int(document["tokens"][0]) for document in documents.__getitems__(indices)] == indices
        assert read_indices == expected_reads, indices


def test_a_corpus_is_a_tfds_data_set_and_needs_no_tensorflow(corpus):
    program = (
        "import sys, tensorflow_datasets as tfds\n"
        "from bert_jax.data.corpus import open_corpus\n"
        f"builder = tfds.builder_from_directory({str(corpus.path)!r})\n"
        "documents = open_corpus(builder.data_dir).train.documents\n"
        "assert 'tensorflow' not in sys.modules\n"
        "print(builder.info.splits['train'].num_examples, len(documents), builder.info.file_format.value)\n"
    )
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert out.split() == ["72", "72", "array_record"]


@pytest.mark.parametrize(
    ("documents", "sentence"), [(1, "has 1 document,"), (19, "needs at least 20; separate documents by a blank line")]
)
def test_too_few_documents(tmp_path, tokenizer, documents, sentence):
    with pytest.raises(UserError, match=sentence):
        building.write_corpus([["alpha bravo."]] * documents, tmp_path / "c", tokenizer, held_out=0.1)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing_behind(tmp_path, tokenizer):
    def read():
        yield from [["alpha bravo."]] * 30
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        building.write_corpus(read(), tmp_path / "c", tokenizer, held_out=0.1)
    assert list(tmp_path.iterdir()) == []


def test_a_corpus_is_not_overwritten(corpus, tokenizer):
    with pytest.raises(UserError, match="exists already"):
        building.write_corpus([], corpus.path, tokenizer, held_out=0.1)
    with pytest.raises(UserError, match="not a corpus"):
        corpora.open_corpus(corpus.path.parent)


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        ("1.0.0", r"was prepared by an earlier version of bert_jax \(format 1\); prepare it again with `bert-jax prepare`\."),
        ("3.0.0", r"was prepared by a later version of bert_jax \(format 3\); prepare it again"),
        (None, r"dataset_info.json has no version; prepare the corpus again"),
    ],
)
def test_a_corpus_of_another_format_is_refused(corpus, tmp_path, version, sentence):
    shutil.copytree(corpus.path, tmp_path / "corpus")
    path = tmp_path / "corpus" / "dataset_info.json"
    info = json.loads(path.read_text())
    assert info["version"] == "2.0.0"
    path.write_text(json.dumps({name: value for name, value in (info | {"version": version}).items() if value is not None}))
    with pytest.raises(UserError, match=sentence):
        corpora.open_corpus(tmp_path / "corpus")
    path.write_text(json.dumps(info | {"version": "2.1.0"}))
    assert corpora.open_corpus(tmp_path / "corpus").digest() == corpus.digest()


def test_a_missing_shard_is_named(corpus, tmp_path):
    shutil.copytree(corpus.path, tmp_path / "corpus")
    (shard,) = (tmp_path / "corpus").glob("corpus-held_out.array_record-*")
    shard.unlink()
    with pytest.raises(UserError, match=f"lacks 1 of the 1 shards of held_out, such as {shard.name}; copy them"):
        corpora.open_corpus(tmp_path / "corpus")


def test_another_vocabulary_than_that_of_the_documents_is_refused(corpus, tmp_path):
    shutil.copytree(corpus.path, tmp_path / "corpus")
    vocab = tmp_path / "corpus" / "vocab.txt"
    lines = vocab.read_text().splitlines()
    vocab.write_text("\n".join([*lines[:-2], lines[-1], lines[-2]]) + "\n")
    with pytest.raises(UserError, match="is not the one that its documents were tokenized with"):
        corpora.open_corpus(tmp_path / "corpus")


class Multiples:
    """An array of multiples of a number, computed when it is read."""

    def __init__(self, size, factor):
        self._size, self._factor = size, factor

    def __len__(self):
        return self._size

    def __getitem__(self, index):
        return index * self._factor


def test_ten_billion_sentences_are_planned_in_bounded_memory():
    sentences, per_document = 10**10, 25
    split = Split(None, Multiples(sentences // per_document + 1, per_document), np.broadcast_to(np.int32(20), sentences), None)
    config = DataConfig("", sequence_length=128, batch_size=8)
    assert sentence_pairs.blocks(split) == 6104
    tracemalloc.start()
    plans = [sentence_pairs.plan(split, config, seed=0, epoch=1, block=block) for block in (0, 6103)]
    rows = pipeline.packed_rows(plans[0], config, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(rows) > 200_000
    assert peak < 500 * 2**20
    first, last = ({*plan.document_a.tolist()} for plan in plans)
    assert {len(first), len(last)} <= {65_530, 65_531}
    assert not first & last


def test_the_order_of_many_documents_is_a_permutation(monkeypatch):
    monkeypatch.setattr(sentence_pairs, "MAX_PERMUTATION", 100)
    for epoch in range(2):
        order = np.concatenate([sentence_pairs._order(1003, 7, 5, epoch, block) for block in range(7)])
        assert sorted(order.tolist()) == [*range(1003)]
        assert abs(np.corrcoef(order, np.arange(1003))[0, 1]) < 0.1
    assert sentence_pairs._order(1003, 7, 5, 0, 3).tolist() != sentence_pairs._order(1003, 7, 5, 1, 3).tolist()


def test_evaluation_is_planned_block_by_block(monkeypatch):
    """Every example of every block once, in batches of equal shape."""
    split, config = synthetic(300), DataConfig("", sequence_length=64, batch_size=16)
    monkeypatch.setattr(sentence_pairs, "DOCUMENTS_PER_BLOCK", 80)
    plans = [sentence_pairs.plan(split, config, seed=0, epoch=0, block=block) for block in range(sentence_pairs.blocks(split))]
    assert len(plans) == 4
    batches = [*pipeline.eval_batches(split, SPECIAL_TOKENS, config, rows=np.arange(16), limit=None)]
    found = np.concatenate([batch["example_ids"][batch["nsp_weights"] > 0] for batch in batches])
    assert sorted(found.tolist()) == sorted(np.concatenate([plan.example for plan in plans]).tolist())
    assert {batch["input_ids"].shape for batch in batches} == {(16, 64)}
    for limit in (1, 5):
        assert len([*pipeline.eval_batches(split, SPECIAL_TOKENS, config, rows=np.arange(16), limit=limit)]) == limit


def synthetic(documents=3000, seed=0, longest=40):
    """A split with random sentence lengths; token id = 1000 * document + position in the document, modulo 2**31."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 12, documents)
    lengths = rng.integers(1, longest, sizes.sum()).astype(np.int32)
    first = np.concatenate([[0], np.cumsum(sizes)])

    class Documents:
        def __getitems__(self, indices):
            stored = []
            for index in indices:
                positions = np.arange(lengths[first[index] : first[index + 1]].sum())
                stored.append({"tokens": np.int32(1000 * index + positions), "word_starts": positions % 2 == 0})
            return stored

    return Split(Documents(), first, lengths, np.ones(10, np.int64))


def sentence_borders(split, document):
    ends = np.cumsum(split.lengths[split.first[document] : split.first[document + 1]])
    return set(np.concatenate([[0], ends]))


def test_sentence_pairs_follow_the_paper():
    split, config = synthetic(), DataConfig("none", sequence_length=64)
    plan = sentence_pairs.plan(split, config, seed=3, epoch=0, block=0)
    assert ((plan.length_a + plan.length_b) <= 61).all()
    assert (plan.length_a >= 1).all()
    assert (plan.length_b >= 1).all()
    same = plan.document_a == plan.document_b
    np.testing.assert_array_equal(same, plan.random_next == 0)
    # A true next segment starts where A ends, unless tokens were truncated there.
    gap = (plan.start_b - plan.start_a - plan.length_a)[same]
    assert (gap >= 0).all()
    assert (gap == 0).mean() > 0.3
    whole = (plan.length_a + plan.length_b) < 61
    for row in np.flatnonzero(whole)[:400]:
        a, b = (sentence_borders(split, d) for d in (plan.document_a[row], plan.document_b[row]))
        assert {plan.start_a[row], plan.start_a[row] + plan.length_a[row]} <= a
        assert {plan.start_b[row], plan.start_b[row] + plan.length_b[row]} <= b


@settings(max_examples=200)
@given(
    st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=8), min_size=2, max_size=12),
    st.integers(5, 48),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 2**31),
)
def test_pairs_of_any_documents(sizes, length, random_next, short, seed):
    first = np.concatenate([[0], np.cumsum([len(document) for document in sizes])])
    split = Split(None, first, np.concatenate(sizes).astype(np.int32), np.ones(10, np.int64))
    totals = np.array([sum(document) for document in sizes])
    config = DataConfig("none", sequence_length=length, random_next=random_next, short_sequences=short)
    plan = sentence_pairs.plan(split, config, seed=seed, epoch=0, block=0)
    # Both segments lie in their documents, and a next one in that of the first, after it.
    for document, start, size in (
        (plan.document_a, plan.start_a, plan.length_a),
        (plan.document_b, plan.start_b, plan.length_b),
    ):
        assert ((start >= 0) & (size >= 1) & (start + size <= totals[document])).all()
    is_next = plan.random_next == 0
    assert (plan.document_a[is_next] == plan.document_b[is_next]).all()
    assert (plan.document_a[~is_next] != plan.document_b[~is_next]).all()
    assert (plan.start_b >= plan.start_a + plan.length_a)[is_next].all()
    # Only what is longer than a row is cut, to its length.
    used = plan.length_a + plan.length_b
    assert (used <= length - 3).all()
    assert (used[plan.dropped > 0] == length - 3).all()
    # Every document is in the plan.
    assert set(plan.document_a.tolist()) == set(range(len(sizes)))


ENDS = [*"aB é.!?…。\n\t \u2028\"')(1"]
SENTENCES = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(ENDS)), max_size=80)


@given(SENTENCES, st.sampled_from(["lines", "running"]), st.sampled_from(["en", "de", "zh", "ja", "xx"]))
def test_splitting_keeps_every_character_in_its_place(text, kind, language):
    sentences = sentences_of(StoredText(text, kind), language)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence and sentence == sentence.strip() for sentence in sentences)
    if kind == "lines":
        assert len(sentences) == sum(bool(line.strip()) for line in text.split("\n"))


def test_every_sentence_is_in_exactly_one_example_of_an_epoch():
    """Unused sentences before a random B are gathered again: the A and true B segments of a document make up the document."""
    split = synthetic(longest=4)
    plan = sentence_pairs.plan(split, DataConfig("none", sequence_length=512), seed=0, epoch=0, block=0)
    assert ((plan.length_a + plan.length_b) < 509).all()
    seen = {document: [] for document in range(3000)}
    for row in range(len(plan.example)):
        seen[plan.document_a[row]].append((plan.start_a[row], plan.length_a[row]))
        if not plan.random_next[row]:
            seen[plan.document_b[row]].append((plan.start_b[row], plan.length_b[row]))
    for document, parts in seen.items():
        place = 0
        for start, length in sorted(parts):
            assert start == place
            place += length
        assert place == max(sentence_borders(split, document))


def test_share_of_random_next_sentences():
    """A half, plus the chunks of one sentence, which have no true next sentence."""
    split = synthetic(longest=30)
    plan = sentence_pairs.plan(split, DataConfig("none", sequence_length=128), seed=0, epoch=0, block=0)
    assert 0.5 < plan.random_next.mean() < 0.65
    without_random = sentence_pairs.plan(split, DataConfig("none", sequence_length=128, random_next=0.0), seed=0, epoch=0, block=0)
    assert without_random.random_next.mean() < 0.2


def test_short_sequences():
    split = synthetic(longest=20)

    def mean(share):
        plan = sentence_pairs.plan(split, DataConfig("none", sequence_length=128, short_sequences=share), seed=0, epoch=0, block=0)
        return (plan.length_a + plan.length_b).mean()

    assert mean(1.0) < mean(0.1) < mean(0.0)


def test_truncation_drops_tokens_of_the_longer_segment_one_by_one():
    def truncate_one_by_one(a, b, room):
        while a + b > room:
            if a > b:
                a -= 1
            else:
                b -= 1
        return a, b

    planner = sentence_pairs._Planner(
        synthetic(20), DataConfig("none", sequence_length=40), np.arange(20), np.random.default_rng(0)
    )
    a, b = (x.ravel() for x in np.meshgrid(np.arange(1, 90), np.arange(1, 90)))
    starts_a, kept_a, starts_b, kept_b = planner._truncate(0 * a, a, 0 * b, b)
    np.testing.assert_array_equal(np.stack([kept_a, kept_b], 1), [truncate_one_by_one(x, y, 37) for x, y in zip(a, b, strict=True)])
    assert (starts_a + kept_a <= a).all()
    assert (starts_b + kept_b <= b).all()
    dropped = (a - kept_a).sum()
    assert abs(starts_a.sum() / dropped - 0.5) < 3 * 0.5 / np.sqrt(dropped)


def test_plans_depend_on_epoch_seed_and_dupe_factor():
    split, config = synthetic(200), DataConfig("none", sequence_length=64)

    def plan(config=config, **changes):
        return np.stack(sentence_pairs.plan(split, config, **{"seed": 0, "epoch": 0, "block": 0} | changes))

    np.testing.assert_array_equal(plan(), plan())
    for changes in ({"seed": 1}, {"epoch": 1}):
        assert not np.array_equal(plan(), plan(**changes))
    repeating = dataclasses.replace(config, dupe_factor=2)
    np.testing.assert_array_equal(plan(repeating, epoch=1), plan(repeating, epoch=5))
    ids = np.concatenate([plan(epoch=epoch)[-1] for epoch in range(5)])
    assert len(np.unique(ids)) == len(ids)


def test_rows_without_pairs_have_no_second_segment():
    split, config = synthetic(200), DataConfig("none", sequence_length=64, pairs=False, batch_size=8)
    plan = sentence_pairs.plan(split, config, seed=0, epoch=0, block=0)
    assert plan.length_a.sum() > 0.8 * split.lengths.sum()
    assert (plan.length_b == 0).all()
    batch = next(pipeline.train_batches(split, SPECIAL_TOKENS, config, seed=0, rows=np.arange(8)))
    assert batch["token_type_ids"].sum() == batch["nsp_weights"].sum() == 0
    assert ((batch["input_ids"] == SPECIAL_TOKENS.sep).sum(1) == 1).all()


def test_one_document_cannot_make_pairs():
    with pytest.raises(UserError, match="at least two documents"):
        sentence_pairs.plan(synthetic(1), DataConfig("none"), seed=0, epoch=0, block=0)


def test_a_sentence_longer_than_a_row_is_truncated():
    split = synthetic(50, longest=900)
    plan = sentence_pairs.plan(split, DataConfig("none", sequence_length=32), seed=0, epoch=0, block=0)
    assert (plan.length_a + plan.length_b).max() == 29


# Ids that no synthetic document contains.
SPECIAL_TOKENS = corpora.tokenizers.SpecialTokens(pad=-10, unk=-11, cls=-12, sep=-13, mask=-14)


def test_rows_follow_the_batch_contract():
    split, config = synthetic(200), DataConfig("none", sequence_length=48, batch_size=16)
    plan = sentence_pairs.plan(split, config, seed=0, epoch=0, block=0).take(np.arange(16))
    batch = pipeline.assemble(split, SPECIAL_TOKENS, config, plan.take(np.arange(16)[:, None]))
    for row in range(16):
        a = 1000 * plan.document_a[row] + plan.start_a[row] + np.arange(plan.length_a[row])
        b = 1000 * plan.document_b[row] + plan.start_b[row] + np.arange(plan.length_b[row])
        ids = [SPECIAL_TOKENS.cls, *a, SPECIAL_TOKENS.sep, *b, SPECIAL_TOKENS.sep]
        length, start_b = len(ids), len(a) + 2
        np.testing.assert_array_equal(batch["input_ids"][row], ids + [SPECIAL_TOKENS.pad] * (48 - length))
        np.testing.assert_array_equal(batch["segment_ids"][row], [1] * length + [0] * (48 - length))
        np.testing.assert_array_equal(batch["token_type_ids"][row], [0] * start_b + [1] * (length - start_b) + [0] * (48 - length))
        np.testing.assert_array_equal(batch["position_ids"][row, :length], np.arange(length))
        special = np.array([column in (0, start_b - 1, length - 1) or column >= length for column in range(48)])
        np.testing.assert_array_equal(batch["word_ids"][row] < 0, special)
        begins = np.concatenate([[True], (np.diff(a) != 1) | (a[1:] - 1000 * plan.document_a[row]) % 2 == 0])
        np.testing.assert_array_equal(batch["word_ids"][row, 1 : 1 + len(a)], np.cumsum(begins) - 1)
    assert batch["nsp_labels"].tolist() == plan.random_next[:, None].tolist()
    assert {name: values.dtype.name for name, values in batch.items() if values.dtype != np.int32} == {"nsp_weights": "float32"}


def test_a_packed_row_is_the_concatenation_of_its_examples():
    split, config = synthetic(200, longest=6), DataConfig("none", sequence_length=96, packing=3)
    plan = sentence_pairs.plan(split, config, seed=0, epoch=0, block=0)
    rows = pipeline.packed_rows(plan, config, seed=0)
    assert set((rows >= 0).sum(1)) == {2, 3}
    packed = pipeline.assemble(split, SPECIAL_TOKENS, config, plan.take(rows))
    alone = pipeline.assemble(split, SPECIAL_TOKENS, config, plan.take(np.arange(len(plan.example))[:, None]))
    lengths = alone["segment_ids"].sum(1)
    for row, examples in enumerate(rows):
        examples = examples[examples >= 0]
        total = lengths[examples].sum()
        for name in ("input_ids", "token_type_ids", "position_ids", "word_ids"):
            expected = np.concatenate([alone[name][example, : lengths[example]] for example in examples])
            np.testing.assert_array_equal(packed[name][row, :total], expected, err_msg=name)
        np.testing.assert_array_equal(
            packed["segment_ids"][row, :total], np.repeat(np.arange(len(examples)) + 1, lengths[examples])
        )
        assert (packed["segment_ids"][row, total:] == 0).all()
        assert (packed["word_ids"][row, total:] == -1).all()
        count = len(examples)
        for name in ("example_ids", "nsp_labels", "nsp_weights"):
            np.testing.assert_array_equal(packed[name][row, :count], alone[name][examples, 0])
        assert (packed["nsp_weights"][row, count:] == 0).all()
        np.testing.assert_array_equal(packed["input_ids"][row, packed["cls_positions"][row, :count]], SPECIAL_TOKENS.cls)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=80), st.integers(1, 6))
def test_packing_places_every_example_once(lengths, max_examples):
    lengths = np.array(lengths, int)
    rows = packing.pack(lengths, 40, max_examples)
    assert sorted(rows[rows >= 0]) == list(range(len(lengths)))
    assert rows.shape[1] == max_examples
    assert (rows[:, 0] >= 0).all()
    # Unused slots come after the examples.
    assert (np.diff((rows >= 0).astype(int), axis=1) <= 0).all()
    assert (np.where(rows >= 0, lengths[rows], 0).sum(1) <= 40).all()
    np.testing.assert_array_equal(rows, packing.pack(lengths, 40, max_examples))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=80))
def test_packing_is_as_good_as_best_fit_decreasing_of_single_examples(lengths):
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
            rooms.append(min(fitting) - length)
        else:
            rooms.append(40 - length)
    assert len(packing.pack(np.array(lengths), 40, len(lengths))) <= len(rooms) + 1


def test_packed_rows_are_shuffled():
    split, config = synthetic(100), DataConfig("none", sequence_length=64, batch_size=16)
    plan = sentence_pairs.plan(split, config, seed=0, epoch=0, block=0)
    first, second = (pipeline.packed_rows(plan, config, seed=seed) for seed in (0, 1))
    assert not np.array_equal(first, second)
    assert set(map(tuple, first)) == set(map(tuple, second))
    batches = pipeline.train_batches(split, SPECIAL_TOKENS, config, seed=1, rows=np.arange(16))
    assert next(batches)["example_ids"].shape == (16, 6)


def test_blocks_are_bounded_by_sentences(monkeypatch):
    split = synthetic(100)
    assert sentence_pairs.blocks(split) == 1
    monkeypatch.setattr(sentence_pairs, "SENTENCES_PER_BLOCK", split.lengths.size // 3)
    assert sentence_pairs.blocks(split) in (3, 4)


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_equal(first, second):
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_a_resumed_pipeline_gives_the_same_batches_across_epochs_and_blocks(monkeypatch):
    monkeypatch.setattr(sentence_pairs, "DOCUMENTS_PER_BLOCK", 30)
    split, config = synthetic(100), DataConfig("none", sequence_length=64, batch_size=32)

    def batches():
        return pipeline.train_batches(split, SPECIAL_TOKENS, config, seed=1, rows=np.arange(32))

    uninterrupted = batches()
    expected, states = [], []
    for _ in range(40):
        states.append(uninterrupted.get_state())
        expected.append(next(uninterrupted))
    assert states[-1]["epoch"] >= 2
    for start in (0, 1, 7, 25):
        resumed = batches()
        resumed.set_state(json.loads(json.dumps(states[start])))
        for resumed_batch, expected_batch in zip(take(resumed, 5), expected[start:], strict=False):
            assert_equal(resumed_batch, expected_batch)


def test_blocks_have_equal_sizes_and_cover_every_document(monkeypatch):
    monkeypatch.setattr(sentence_pairs, "DOCUMENTS_PER_BLOCK", 30)
    split, config = synthetic(61), DataConfig("none", sequence_length=64)
    seen = [
        set(sentence_pairs.plan(split, config, seed=0, epoch=0, block=block).document_a)
        for block in range(sentence_pairs.blocks(split))
    ]
    assert [len(documents) for documents in seen] == [20, 20, 21]
    assert set.union(*seen) == set(range(61))


def test_evaluation_on_a_host_without_rows_in_the_last_batch():
    split, config = synthetic(5), DataConfig("none", sequence_length=64, batch_size=64)
    assert len(sentence_pairs.plan(split, config, seed=0, epoch=0, block=0).example) <= 32
    (batch,) = pipeline.eval_batches(split, SPECIAL_TOKENS, config, rows=np.arange(32, 64), limit=None)
    assert batch["input_ids"].shape == (32, 64)
    assert batch["segment_ids"].sum() == batch["nsp_weights"].sum() == 0


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_rows_of_all_hosts_are_the_batches_of_one_host(hosts):
    split, config = synthetic(100), DataConfig("none", sequence_length=64, batch_size=16)
    whole = take(pipeline.train_batches(split, SPECIAL_TOKENS, config, seed=1, rows=np.arange(16)), 10)
    parts = [
        take(pipeline.train_batches(split, SPECIAL_TOKENS, config, seed=1, rows=rows), 10)
        for rows in np.split(np.arange(16), hosts)
    ]
    for batch, host_batches in zip(whole, zip(*parts, strict=True), strict=True):
        assert_equal(batch, {name: np.concatenate([host_batch[name] for host_batch in host_batches]) for name in batch})


def test_evaluation_has_every_example_once_in_equal_shapes(corpus):
    config = DataConfig(str(corpus.path), sequence_length=32, batch_size=16)
    special_tokens = corpus.tokenizer.special_tokens
    batches = list(pipeline.eval_batches(corpus.held_out, special_tokens, config, rows=np.arange(16), limit=None))
    assert {batch["input_ids"].shape for batch in batches} == {(16, 32)}
    ids = np.concatenate([batch["example_ids"][batch["nsp_weights"] > 0] for batch in batches])
    plan = sentence_pairs.plan(corpus.held_out, config, seed=0, epoch=0, block=0)
    assert sorted(ids) == sorted(plan.example)
    assert len(ids) > sum(len(batch["input_ids"]) for batch in batches)
    last = batches[-1]
    empty = last["nsp_weights"][:, 0] == 0
    assert (last["segment_ids"][empty] == 0).all()
    assert (last["word_ids"][empty] == -1).all()
    assert len(list(pipeline.eval_batches(corpus.held_out, special_tokens, config, rows=np.arange(16), limit=1))) == 1
