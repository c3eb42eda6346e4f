"""What is counted in a corpus and in TFRecord files, against counts of the tests' own."""

from __future__ import annotations

import collections
import dataclasses
import random
import shutil

import jax
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax import ops, tokenizers
from bert_jax.config.data import DataConfig
from bert_jax.config.masking import MaskPolicy
from bert_jax.data import building, inspection, pipeline, sentence_pairs
from bert_jax.data import corpus as corpora
from bert_jax.data.distribution import PERCENTILES, Distribution
from bert_jax.data.google import GoogleFlags, write_records
from bert_jax.data.record_inspection import sample_records
from bert_jax.data.records import REQUIRED, find_files
from bert_jax.data.unknown_words import count_unknown_words
from bert_jax.errors import BertWarning, UserError
from bert_jax.evaluation.inspection import TextOptions, inspect_corpus, inspect_records, to_json
from bert_jax.evaluation.masked_examples import KINDS
from bert_jax.io import tfrecord
from bert_jax.masking import mask_tokens, resolve
from bert_jax.tokenizers.protocol import SPECIAL_TOKENS
from bert_jax.training import step

# Tokens of each word; the last two words have characters that no token has.
WORDS = {
    "the": ["the"],
    "cat": ["cat"],
    "cats": ["cat", "##s"],
    "dogs": ["dog", "##s"],
    "undo": ["un", "##do"],
    "undogs": ["un", "##do", "##g", "##s"],
    ".": ["."],
    "zebra": ["[UNK]"],
    "été": ["[UNK]"],
}
PIECES = [*SPECIAL_TOKENS, *dict.fromkeys(piece for pieces in WORDS.values() for piece in pieces if piece != "[UNK]"), "unused"]
EVERY = 5
LENGTH = 32


def make_documents(seed=0, count=60):
    """Documents as lists of sentences as lists of words, the held-out ones among them, with planted copies."""
    rng = random.Random(seed)
    words, weights = zip(*((word, 1 if pieces == ["[UNK]"] else 6) for word, pieces in WORDS.items()), strict=True)

    def sentence():
        return rng.choices(words, weights, k=rng.randint(1, 9))

    documents = [[sentence() for _ in range(rng.randint(1, 5))] for _ in range(count)]
    # Every fifth one is held out. Two copies of 0 in train, one of 1 in held_out, one of 4 (held out) in held_out.
    for copy, original in ((10, 0), (21, 0), (14, 1), (19, 4)):
        documents[copy] = documents[original]
    return documents


@pytest.fixture(scope="module")
def vocabulary():
    return tokenizers.WordPiece({"vocab.txt": "".join(f"{piece}\n" for piece in PIECES).encode()})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, vocabulary):
    """A corpus, the documents of its splits, and the file of its text."""
    documents = make_documents()
    directory = tmp_path_factory.mktemp("prepared")
    text = directory / "text.txt"
    text.write_text("\n\n".join("\n".join(map(" ".join, document)) for document in documents))
    lines = [[" ".join(sentence) for sentence in document] for document in documents]
    building.write_corpus(lines, directory / "corpus", vocabulary, held_out=1 / EVERY)
    held_out = documents[EVERY - 1 :: EVERY]
    train = [document for index, document in enumerate(documents) if index % EVERY != EVERY - 1]
    return directory / "corpus", {"train": train, "held_out": held_out}, text


@pytest.fixture(scope="module")
def report(prepared):
    return inspect_corpus(prepared[0], lengths=(16, 32), sequence_length=16, examples=4, text=TextOptions([prepared[2]]))


def tokens_of(document):
    return [piece for sentence in document for word in sentence for piece in WORDS[word]]


@given(st.lists(st.integers(0, 300), min_size=1, max_size=80), st.lists(st.integers(0, 300), max_size=80))
def test_a_distribution_is_that_of_its_numbers(first, second):
    merged = Distribution.merge([Distribution.of(np.array(part, np.int32)) for part in (first, second)])
    numbers = np.array([*first, *second])
    assert merged.total == len(numbers)
    assert merged.mean() == pytest.approx(numbers.mean())
    summary = merged.summary()
    assert (summary["min"], summary["max"]) == (numbers.min(), numbers.max())
    for percent in PERCENTILES:
        assert summary["percentiles"][str(percent)] == np.percentile(numbers, percent, method="inverted_cdf")
    assert sum(entry["count"] for entry in summary["histogram"]) == len(numbers)
    for entry in summary["histogram"]:
        assert entry["count"] == ((numbers >= entry["from"]) & (numbers <= entry["to"])).sum()
    for before, after in zip(summary["histogram"], summary["histogram"][1:], strict=False):
        assert after["from"] == before["to"] + 1


def test_nothing_has_a_distribution():
    assert Distribution.merge([]).summary() == {"count": 0}
    assert Distribution.merge([]).histogram() == []


def test_sizes_and_lengths_of_splits(report, prepared):
    for name, documents in prepared[1].items():
        split = report.splits[name]
        sentences = [sentence for document in documents for sentence in document]
        assert (split.documents, split.read, split.sentences) == (len(documents), len(documents), len(sentences))
        assert split.words == sum(map(len, sentences))
        tokens = [token for document in documents for token in tokens_of(document)]
        assert split.tokens == len(tokens)
        assert split.unknown == tokens.count("[UNK]") > 0
        assert split.unknown_share == tokens.count("[UNK]") / len(tokens)
        per_document = [len(tokens_of(document)) for document in documents]
        per_sentence = [len(tokens_of([sentence])) for sentence in sentences]
        for distribution, lengths in ((split.tokens_per_document, per_document), (split.tokens_per_sentence, per_sentence)):
            np.testing.assert_array_equal(np.repeat(*distribution), sorted(lengths))


def test_lengths_are_the_same_in_small_parts(prepared, report, monkeypatch):
    monkeypatch.setattr(inspection, "_SENTENCES", 7)
    monkeypatch.setattr(inspection, "_DOCUMENTS", 3)
    train = corpora.open_corpus(prepared[0]).train
    for distribution, expected in (
        (inspection.document_lengths(train), report.splits["train"].tokens_per_document),
        (inspection.sentence_lengths(train), report.splits["train"].tokens_per_sentence),
    ):
        np.testing.assert_array_equal(distribution.values, expected.values)
        np.testing.assert_array_equal(distribution.counts, expected.counts)
    again = inspect_corpus(prepared[0], lengths=(), examples=0)
    assert to_json(again.splits) == to_json(report.splits)


def test_duplicates_are_found_within_and_between_splits(report, prepared, vocabulary):
    keys = {name: [tuple(tokens_of(document)) for document in documents] for name, documents in prepared[1].items()}
    for name, split in report.splits.items():
        counts = collections.Counter(keys[name])
        assert split.duplicates == len(keys[name]) - len(counts)
        assert split.duplicate_share == split.duplicates / len(keys[name])
        assert [duplicate.copies for duplicate in split.commonest_duplicates] == [n for _, n in counts.most_common(3) if n > 1]
    assert report.splits["train"].duplicates >= 2
    assert report.splits["train"].commonest_duplicates[0].copies == 3
    first = make_documents()[0]
    beginning = report.splits["train"].commonest_duplicates[0].beginning
    assert beginning.startswith(vocabulary.decode(vocabulary.encode([" ".join(first[0])])[0].ids.tolist()[:16]))
    assert report.splits["train"].in_train is None
    assert report.splits["held_out"].in_train == sum(key in set(keys["train"]) for key in keys["held_out"]) >= 1


def test_a_limit_reads_the_first_documents(prepared, report):
    limited = inspect_corpus(prepared[0], lengths=(), examples=0, documents=7)
    for name, documents in prepared[1].items():
        split, whole = limited.splits[name], report.splits[name]
        assert split.read == 7
        keys = [tuple(tokens_of(document)) for document in documents[:7]]
        assert split.duplicates == 7 - len(set(keys))
        # Whatever needs no document is that of the whole split.
        for field in ("documents", "sentences", "words", "tokens", "unknown"):
            assert getattr(split, field) == getattr(whole, field)


def test_frequencies_are_counts_of_tokens(prepared, vocabulary):
    corpus = corpora.open_corpus(prepared[0])
    counts = collections.Counter(token for document in prepared[1]["train"] for token in tokens_of(document))
    found = inspection.frequencies(corpus.train.counts, vocabulary, listed=3)
    assert dict(found.most) == dict(counts.most_common(3))
    assert [count for _, count in found.least] == sorted(counts.values())[:3]
    assert all(counts[token] == count for token, count in found.least)
    assert (found.tokens, found.unknown, found.vocabulary) == (counts.total(), counts["[UNK]"], len(PIECES))
    assert found.never == len(set(PIECES) - set(SPECIAL_TOKENS) - set(counts)) == 1
    everything = inspection.frequencies(corpus.train.counts, vocabulary, listed=100)
    assert dict(everything.most) == dict(everything.least) == counts


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("length", [16, 40])
def test_rows_are_those_of_an_epoch(prepared, vocabulary, pairs, length):
    """Padding and random pairs, counted in the batches of a run's first epoch."""
    train = corpora.open_corpus(prepared[0]).train
    config = DataConfig("", sequence_length=length, batch_size=1, pairs=pairs)
    found = inspection.rows(train, config, seed=5)
    assert (found.sequence_length, found.documents) == (length, len(train.documents))
    for packing in (1, 6):
        one = dataclasses.replace(config, packing=packing)
        batches = pipeline.train_batches(train, vocabulary.special_tokens, one, seed=5, rows=np.arange(1))
        epoch = []
        while batches.get_state()["epoch"] == 0:
            epoch.append(next(batches))
        batches.close()
        assert found.rows[packing] == len(epoch)
        padding = np.mean([batch["segment_ids"] == 0 for batch in epoch])
        assert found.padding[packing] == pytest.approx(padding, abs=1e-12)
        assert found.examples == sum((np.diff(batch["segment_ids"]) > 0).sum() + 1 for batch in epoch)
        labels = sum(batch["nsp_labels"].sum() for batch in epoch)
        assert found.random == pytest.approx(labels / found.examples)
    # Hardly two examples fit into the short rows.
    assert found.padding[6] < found.padding[1] or length == 16


def test_cut_examples_are_counted(prepared):
    """Without pairs and short lengths, an example is as many sentences as reach the length of a row, and is then cut."""
    train, documents = corpora.open_corpus(prepared[0]).train, prepared[1]["train"]
    room, cut, lost, examples, tokens = 12 - 2, 0, 0, 0, 0
    for document in documents:
        gathered = 0
        for index, sentence in enumerate(document):
            gathered += len(tokens_of([sentence]))
            if gathered >= room or index == len(document) - 1:
                examples, tokens = examples + 1, tokens + gathered
                cut, lost = cut + (gathered > room), lost + max(0, gathered - room)
                gathered = 0
    found = inspection.rows(train, DataConfig("", sequence_length=12, pairs=False, short_sequences=0.0), seed=0)
    assert found.examples == examples
    assert found.cut == pytest.approx(cut / examples)
    assert found.lost == pytest.approx(lost / tokens)
    assert 0 < found.cut < 1


def test_a_pair_that_lost_no_tokens_has_whole_sentences(prepared):
    train = corpora.open_corpus(prepared[0]).train
    plan = sentence_pairs.plan(train, DataConfig("", sequence_length=16), seed=1, epoch=0, block=0)
    borders = [{0, *np.cumsum(train.lengths[begin:end]).tolist()} for begin, end in zip(train.first, train.first[1:], strict=False)]

    def whole(documents, starts, lengths):
        return np.array(
            [{s, s + n} <= borders[d] for d, s, n in zip(documents.tolist(), starts.tolist(), lengths.tolist(), strict=True)]
        )

    both = whole(plan.document_a, plan.start_a, plan.length_a) & whole(plan.document_b, plan.start_b, plan.length_b)
    assert both[plan.dropped == 0].all()
    assert (plan.dropped[~both] > 0).all()
    assert (~both).any()
    assert (plan.length_a + plan.length_b)[plan.dropped > 0].tolist() == [13] * int((plan.dropped > 0).sum())


def test_words_behind_unk(report, prepared):
    found = report.unknown_words
    words = collections.Counter(
        word for documents in prepared[1].values() for document in documents for sentence in document for word in sentence
    )
    unknown = {word: count for word, count in words.items() if WORDS[word] == ["[UNK]"]}
    assert dict(found.words) == unknown
    assert [count for _, count in found.words] == sorted(unknown.values(), reverse=True)
    assert found.unknown == sum(unknown.values()) == sum(split.unknown for split in report.splits.values())
    assert found.tokens == sum(split.tokens for split in report.splits.values())
    assert (found.documents, found.all_read, found.distinct, found.at_least) == (60, True, len(unknown), False)


@pytest.mark.parametrize("rules", ["google", "transformers"])
def test_unknown_words_of_both_rules(vocabulary, rules):
    """Names of special tokens in a text are ordinary text there, as in a corpus."""
    documents = [["the Zebra, the zebra"], ["[UNK] cat", "zebra"], ["été"]]
    tokenizer = vocabulary.with_rules(rules)
    found = count_unknown_words(documents, tokenizer, listed=9)
    assert dict(found.words) == {"zebra": 2, "Zebra": 1, ",": 1, "[": 1, "UNK": 1, "]": 1, "été": 1}
    encoded = tokenizer.encode([sentence for document in documents for sentence in document], match_special=False)
    assert found.unknown == sum(int((row.ids == 1).sum()) for row in encoded) == 8
    limited = count_unknown_words(documents, tokenizer, listed=1, limit=2)
    assert (limited.documents, limited.all_read, limited.words, limited.unknown) == (2, False, [("zebra", 2)], 7)


def test_too_many_unknown_words_are_counted_at_least(vocabulary, monkeypatch):
    monkeypatch.setattr("bert_jax.data.unknown_words._MOST_WORDS", 8)
    monkeypatch.setattr("bert_jax.data.unknown_words._CHUNK", 2)
    documents = [[f"zebra q{number}"] for number in range(30)]
    found = count_unknown_words(documents, vocabulary, listed=1)
    assert found.at_least
    assert found.words == [("zebra", 30)]
    assert found.unknown == 60
    assert found.distinct <= 10


def damage(path, change):
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def flip(place):
    def change(content):
        content[place] ^= 4

    return change


def copied(source, tmp_path):
    return shutil.copytree(source, tmp_path / "copy")


def test_a_damaged_document_is_named(prepared, tmp_path):
    path = copied(prepared[0], tmp_path)
    (file,) = path.glob("corpus-held_out*")
    damage(file, flip(110))
    with pytest.raises(UserError, match=r"split held_out: document 0 cannot be read: .* at byte \d+") as error:
        inspect_corpus(path, lengths=(), examples=0)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", ["first", "lengths", "counts", "swap", "move"])
def test_tables_that_are_not_those_of_the_documents_are_found(prepared, tmp_path, change):
    path = copied(prepared[0], tmp_path)
    name = {"swap": "lengths", "move": "counts"}.get(change, change)
    table = np.load(path / f"train.{name}.npy")
    if change in ("swap", "move"):
        # Sums stay as they are, so that only the documents tell.
        places = [int(np.flatnonzero(table != table[0])[0]), 0]
        table[places] = table[places[::-1]]
        message = "are not those of its tables" if change == "swap" else "the table of counts is not that of the documents"
    else:
        table[-1] += 1
        message = "contradict each other"
    np.save(path / f"train.{name}.npy", table)
    with pytest.raises(UserError, match=f"split train: .*{message}"):
        inspect_corpus(path, lengths=(), examples=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: (path / "train.first.npy").unlink(), r"train\.first\.npy cannot be read: No such file"),
        (lambda path: (path / "train.counts.npy").write_bytes(b""), r"train\.counts\.npy cannot be read: "),
        (lambda path: damage(path / "train.lengths.npy", lambda content: content.__delitem__(slice(150, None))), "cannot be read"),
        (lambda path: (path / "features.json").unlink(), "cannot be opened: "),
        (lambda path: next(path.glob("corpus-train*")).unlink(), "lacks 1 of the 1 shards of train, such as corpus-train"),
        (lambda path: next(path.glob("corpus-train*")).write_bytes(b""), "split train: document 0 cannot be read: "),
    ],
)
def test_missing_and_damaged_files_are_named(prepared, tmp_path, change, message):
    path = copied(prepared[0], tmp_path)
    change(path)
    with pytest.raises(UserError, match=message) as error:
        inspect_corpus(path, lengths=(), examples=0)
    assert "\n" not in str(error.value)


def test_examples_are_those_of_a_run(corpus):
    """The same examples, packed into the rows of a run and masked there, have the same masks."""
    config = DataConfig(str(corpus.path), sequence_length=LENGTH, batch_size=64)
    found = inspect_corpus(corpus.path, lengths=(), sequence_length=LENGTH, examples=9, seed=3).examples
    assert len(found) == 9
    batches = pipeline.train_batches(corpus.train, corpus.tokenizer.special_tokens, config, seed=3, rows=np.arange(64))
    key = jax.random.fold_in(jax.random.key(3, impl=ops.GENERATOR), step._MASK)
    policy = resolve(MaskPolicy(), corpus.tokenizer)
    mask = jax.jit(lambda batch: mask_tokens(key, batch, policy, 0))
    run = {}
    while batches.get_state()["epoch"] == 0:
        batch = next(batches)
        masked = jax.device_get(mask(batch))
        for row, slot in zip(*np.nonzero(batch["nsp_weights"]), strict=True):
            here = batch["segment_ids"][row] == slot + 1
            start = int(np.flatnonzero(here)[0])
            places = [
                (int(position) - start, int(label), int(kind))
                for position, label, kind, weight in zip(
                    *(masked[f"mlm_{name}"][row] for name in ("positions", "ids", "kinds", "weights")), strict=True
                )
                if weight and here[position]
            ]
            ids = tuple(masked["input_ids"][row][here].tolist())
            run[ids] = (places, bool(batch["nsp_labels"][row, slot]))
    batches.close()
    names = corpus.tokenizer.tokens
    for example in found:
        places, random_next = run[tuple(names.index(token) for token in example.tokens)]
        assert example.random_next == random_next
        assert len(example.predictions) == max(1, round(0.15 * len(example.tokens)))
        for prediction, (position, label, kind) in zip(example.predictions, places, strict=True):
            assert (prediction.position, prediction.label, prediction.kind) == (position, names[label], KINDS[kind])
            assert prediction.input == example.tokens[position]
            assert (prediction.kind == "masked") == (prediction.input == "[MASK]")


def test_a_step_masks_with_the_key_of_the_examples():
    seen = []

    def prepare(key, batch, state):
        seen.append(jax.random.key_data(key))
        raise StopIteration

    objective = step.Objective({}, lambda params, batch, key: {}, prepare)
    root = jax.random.key(7, impl=ops.GENERATOR)
    state = step.TrainState(jax.numpy.zeros((), int), {}, (), jax.random.key_data(root), None)
    with pytest.raises(StopIteration):
        step.make_train_step(objective, optax.identity())(state, {})
    np.testing.assert_array_equal(seen[0], jax.random.key_data(step.mask_key(root)))


def test_examples_without_pairs(corpus):
    (example,) = inspect_corpus(corpus.path, lengths=(16,), sequence_length=16, examples=1, pairs=False).examples
    assert example.random_next is None
    assert example.tokens.count("[SEP]") == 1


@pytest.fixture(scope="module")
def records(tmp_path_factory, text, tokenizer):
    out = tmp_path_factory.mktemp("records") / "records"
    flags = GoogleFlags(max_seq_length=LENGTH, max_predictions_per_seq=4, dupe_factor=2)
    write_records([text], out, tokenizer, flags, shards=3)
    return out


def test_records_are_counted(records, tokenizer):
    rows = [tfrecord.decode_example(data) for file in find_files(str(records)) for data in tfrecord.stream(file)]
    report = inspect_records(str(records), examples=5, listed=1000)
    sample = report.sample
    assert (sample.files, sample.records, sample.sampled) == (3, len(rows), len(rows))
    assert (sample.sequence_length, sample.slots, sample.pairs, sample.verified) == (LENGTH, 4, True, False)
    assert sample.padding == pytest.approx(1 - np.mean([row["input_mask"] for row in rows]))
    assert sample.random == pytest.approx(np.mean([row["next_sentence_labels"] for row in rows]))
    assert sample.predictions == pytest.approx(np.mean([row["masked_lm_weights"].sum() for row in rows]))
    np.testing.assert_array_equal(np.repeat(*sample.tokens_per_record), sorted(row["input_mask"].sum() for row in rows))
    kinds, counts = collections.Counter(), collections.Counter()
    for row in rows:
        ids = row["input_ids"].tolist()
        for position, label, weight in zip(row["masked_lm_positions"], row["masked_lm_ids"], row["masked_lm_weights"], strict=True):
            if weight:
                mask = ids[position] == tokenizer.special_tokens.mask
                kinds["masked" if mask else "kept" if ids[position] == label else "random"] += 1
                ids[position] = int(label)
        counts.update(tokenizer.tokens[token] for token in ids[: int(row["input_mask"].sum())])
    assert sample.kinds == pytest.approx({kind: kinds[kind] / kinds.total() for kind in KINDS})
    del counts["[CLS]"], counts["[SEP]"]
    assert dict(sample.frequencies.most) == counts
    assert sample.frequencies.tokens == counts.total()
    assert sample.description["flags"]["max_predictions_per_seq"] == 4
    stored = {tuple(row["input_ids"][: int(row["input_mask"].sum())].tolist()): row for row in rows}
    for example in report.examples:
        row = stored[tuple(tokenizer.tokens.index(token) for token in example.tokens)]
        predicted = row["masked_lm_weights"] > 0
        assert [prediction.position for prediction in example.predictions] == row["masked_lm_positions"][predicted].tolist()
        assert [prediction.label for prediction in example.predictions] == [
            tokenizer.tokens[label] for label in row["masked_lm_ids"][predicted]
        ]
        assert example.random_next == bool(row["next_sentence_labels"][0])


def test_a_sample_is_spread_over_all_files(records):
    report = inspect_records(str(records), records=7, examples=10)
    assert report.sample.sampled == 7
    assert len(report.examples) == 7
    rows = [tfrecord.decode_example(data) for file in find_files(str(records)) for data in tfrecord.stream(file)]
    chosen = [rows[round(place * (len(rows) - 1) / 6)] for place in range(7)]
    assert report.sample.padding == pytest.approx(1 - np.mean([row["input_mask"] for row in chosen]))
    assert inspect_records(str(records), records=7, examples=3, seed=1).examples != report.examples[:3]


def test_every_checksum_is_verified(records, tmp_path, monkeypatch):
    path = copied(records, tmp_path)
    file = find_files(str(path))[1]
    content = file.read_bytes()
    first = 16 + int.from_bytes(content[:8], "little")
    second = first + 16 + int.from_bytes(content[first : first + 8], "little")
    damage(path / file.name, flip(second + 40))
    with monkeypatch.context() as patch:
        # The meaning of NSP labels is found from further records.
        patch.setattr("bert_jax.data.nsp_labels.label_meanings", lambda *args, **kwargs: [])
        assert inspect_records(str(path), records=2, examples=0).sample.sampled == 2
    with pytest.raises(UserError, match=f"{file.name}: the record at byte {second:,} is damaged"):
        inspect_records(str(path), records=2, examples=0, verify=True)
    assert inspect_records(str(records), verify=True, examples=0).sample.verified


def test_a_missing_file_of_records_is_noticed(records, tmp_path):
    path = copied(records, tmp_path)
    next(path.glob("*00002-of*")).unlink()
    with pytest.warns(BertWarning, match=r"tells of \d+ pairs, but the files have \d+"):
        inspect_records(str(path), examples=0)


def rewritten(records, tmp_path, tokenizer, change):
    """A file with the records of the first one, the sixth of which is changed."""
    tokenizers.save(tokenizer, tmp_path)
    with (tmp_path / "a.tfrecord").open("wb") as file:
        for number, data in enumerate(tfrecord.stream(find_files(str(records))[0])):
            features = {name: values.tolist() for name, values in tfrecord.decode_example(data).items()}
            if number == 5:
                change(features)
            tfrecord.write_record(file, tfrecord.encode_example(features))
    return str(tmp_path / "a.tfrecord")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(input_ids=row["input_ids"] + [0]), "record 5 has other features or sizes"),
        (lambda row: row.pop("masked_lm_ids"), "record 5 has other features or sizes"),
        (lambda row: row.update(masked_lm_ids=[97, 0, 0, 0]), "record 5 contains token id 97, but the vocabulary has 89 tokens"),
        (lambda row: row.update(masked_lm_positions=[99, 0, 0, 0]), "record 5 predicts position 99 of 32"),
        (lambda row: row.update(input_ids=[float(token) for token in row["input_ids"]]), "record 5 has other features"),
    ],
)
def test_records_that_differ_are_named(records, tmp_path, tokenizer, change, message):
    with pytest.raises(UserError, match=message):
        inspect_records(rewritten(records, tmp_path, tokenizer, change))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"input_ids": [1, 2], "labels": [3]}, r"has no input_mask, .* \(but input_ids, labels\); these are no masked"),
        ({name: [1, 2] for name in REQUIRED[:4]}, "has no masked_lm_ids, masked_lm_weights"),
        ({name: [1] * (2 + (name == "input_mask")) for name in REQUIRED}, "input_mask, segment_ids have 2, 3, 2 values"),
        ({name: [] for name in REQUIRED}, "input_ids, input_mask, segment_ids have 0, 0, 0 values"),
    ],
)
def test_other_records_are_refused(tmp_path, features, message):
    with (tmp_path / "a.tfrecord").open("wb") as file:
        tfrecord.write_record(file, tfrecord.encode_example(features))
    with pytest.raises(UserError, match=message):
        inspect_records(str(tmp_path))


def test_records_of_other_programs(records, tmp_path, tokenizer):
    """Names of the TensorFlow Models, no pairs, and a vocabulary elsewhere."""
    names = {"input_ids": "input_word_ids", "segment_ids": "input_type_ids"}
    with (tmp_path / "part-0").open("wb") as file:
        for data in tfrecord.stream(find_files(str(records))[0]):
            features = tfrecord.decode_example(data)
            del features["next_sentence_labels"]
            row = {names.get(name, name): values.tolist() for name, values in features.items()}
            tfrecord.write_record(file, tfrecord.encode_example(row))
    path = str(tmp_path / "part-*")
    with pytest.raises(UserError, match="contains no vocabulary; name the directory of the one that made the files with --vocab"):
        inspect_records(path)
    report = inspect_records(path, vocab=str(records), examples=1)
    assert not report.sample.pairs
    assert report.examples[0].random_next is None
    assert report.sample.description is None
    sample, _, rows = sample_records(path, str(records), limit=5, listed=1, kept=2)
    assert sample.sampled == 5
    assert len(rows) == 2
    small = tokenizers.WordPiece({"vocab.txt": "\n".join([*SPECIAL_TOKENS, "a", "b"]).encode()})
    tokenizers.save(small, tmp_path)
    with pytest.raises(UserError, match=r"but the vocabulary has 7 tokens; name the directory .* with --vocab"):
        inspect_records(path)
