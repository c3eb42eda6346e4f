"""Rows hold every example once and whole, whatever shares them; batches are a function of the seed and their number."""

from __future__ import annotations

import dataclasses
import itertools

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.config.finetuning import TaskDataConfig
from bert_jax.tasks import registry
from bert_jax.tasks.example import EncodedText, Example
from bert_jax.tasks.label_layout import ChoiceLabels, ExampleLabels, SpanLabels, TokenLabels
from bert_jax.tasks.layout import RowLayout, Shuffled, once

LABELS = {
    "sequence_classification": ExampleLabels(),
    "regression": ExampleLabels(np.float32),
    "multilabel_classification": ExampleLabels(np.float32, classes=4),
    "token_classification": TokenLabels(),
    "question_answering": SpanLabels(),
    "multiple_choice": ChoiceLabels(),
}
HEADS = tuple(LABELS)
PAD = 9999


def layout_of(head="sequence_classification", *, sequence_length=32, texts=None, packing=32, multiple=1):
    return RowLayout(head, LABELS[head], sequence_length, texts or (3 if head == "multiple_choice" else 1), packing, PAD, multiple)


def make_examples(head, count, *, seed=0, most=20, known=True, first=0):
    """Made-up examples; no token stands twice, so that a row says whose it is. A question's three choices fit into a row."""
    rng, tokens = np.random.default_rng(seed), itertools.count(first)
    examples = []
    for index in range(count):
        sizes = rng.integers(3, most // 3 + 1, 3) if head == "multiple_choice" else rng.integers(3, most + 1, 1)
        texts = []
        for size in sizes.tolist():
            ids = np.fromiter(itertools.islice(tokens, size), np.int32)
            texts.append(EncodedText(ids, int(rng.integers(2, size + 1))))
        labels = {
            "sequence_classification": np.int32(index % 5),
            "regression": np.float32(index / 4),
            "multiple_choice": np.int32(index % 3),
            "multilabel_classification": np.float32([index >> label & 1 for label in range(4)]),
            "token_classification": rng.integers(-1, 4, sizes[0]).astype(np.int32),
            "question_answering": np.sort(rng.integers(0, sizes[0], 2)).astype(np.int32),
        }
        examples.append(Example(tuple(texts), np.asarray(labels[head]) if known else None))
    return examples


def lay(layout, examples, *, rows=None, ids=None):
    assigned = layout.assign(examples)
    rows = layout.rows(len(assigned)) if rows is None else rows
    return layout.lay(examples, range(len(examples)) if ids is None else ids, assigned, rows)


def texts_of(batch):
    """(row, slot) -> columns of each text in a batch."""
    segments = batch["segment_ids"]
    return {
        (row, number - 1): np.flatnonzero(segments[row] == number)
        for row in range(len(segments))
        for number in np.unique(segments[row][segments[row] > 0]).tolist()
    }


several = st.builds(
    lambda head, count, seed, packing, sequence_length, multiple: (
        layout_of(head, sequence_length=sequence_length, packing=packing, multiple=multiple),
        make_examples(head, count, seed=seed),
    ),
    st.sampled_from(HEADS),
    st.integers(1, 40),
    st.integers(0, 10**6),
    st.sampled_from([1, 2, 32]),
    st.sampled_from([20, 32, 61]),
    st.sampled_from([1, 8]),
)


@settings(max_examples=150, deadline=None)
@given(several)
def test_every_example_is_whole_in_exactly_one_row(given):
    layout, examples = given
    batch, places = lay(layout, examples, ids=[7 * index + 100 for index in range(len(examples))])
    assert sorted(places) == [*range(len(examples))]
    columns, seen = texts_of(batch), 0
    for number, (row, slot, start) in places.items():
        assert slot % layout.texts == 0
        at = start
        for text_index, text in enumerate(examples[number].texts):
            here, size = columns.pop((row, slot + text_index)), len(text.ids)
            # Contiguous, and at their placement; the texts of an example follow one another.
            np.testing.assert_array_equal(here, np.arange(at, at + size))
            np.testing.assert_array_equal(batch["input_ids"][row, here], text.ids)
            np.testing.assert_array_equal(batch["position_ids"][row, here], np.arange(size))
            np.testing.assert_array_equal(batch["token_type_ids"][row, here], np.arange(size) >= text.first_length)
            assert batch["cls_positions"][row, slot + text_index] == at
            assert batch["example_ids"][row, slot + text_index] == 7 * number + 100
            at, seen = at + size, seen + size
    assert not columns, "a row holds what no example says"
    padding = batch["segment_ids"] == 0
    assert (~padding).sum() == seen
    assert (batch["input_ids"][padding] == PAD).all()
    assert not batch["token_type_ids"][padding].any()
    assert not batch["position_ids"][padding].any()


@settings(max_examples=60, deadline=None)
@given(several)
def test_shapes_and_dtypes_are_those_of_the_layout(given):
    layout, examples = given
    batch, _ = lay(layout, examples)
    rows, slots = len(batch["input_ids"]), layout.slots
    labels = {
        "token_classification": (rows, layout.sequence_length),
        "question_answering": (rows, slots, 2),
        "multiple_choice": (rows, slots // 3),
        "multilabel_classification": (rows, slots, 4),
    }.get(layout.head, (rows, slots))
    shapes = dict.fromkeys(("input_ids", "token_type_ids", "position_ids", "segment_ids"), (rows, layout.sequence_length))
    shapes |= dict.fromkeys(("example_ids", "cls_positions"), (rows, slots))
    shapes |= {"labels": labels, "weights": labels[:2]}
    assert {name: value.shape for name, value in batch.items()} == shapes
    dtypes = {name: value.dtype for name, value in batch.items()}
    kinds = dict.fromkeys(shapes, np.dtype(np.int32)) | {"weights": np.dtype(np.float32)}
    assert dtypes == kinds | (
        {"labels": np.dtype(np.float32)} if layout.head in ("regression", "multilabel_classification") else {}
    )
    # Segments count the slots of a row from 1, without a gap, in the order in which they stand.
    for row in batch["segment_ids"]:
        filled = row[row > 0]
        assert (np.diff(filled) >= 0).all()
        assert {*filled.tolist()} == {*range(1, int(row.max()) + 1)}
        assert not row[len(filled) :].any()


@pytest.mark.parametrize("packing", [32, 1])
@pytest.mark.parametrize("head", HEADS)
def test_labels_and_weights_stand_where_the_head_looks(head, packing):
    layout, examples = layout_of(head, sequence_length=64, packing=packing), make_examples(head, 23)
    # One whose answer is not known.
    examples[4] = examples[4]._replace(label=None)
    batch, places = lay(layout, examples)
    labels, weights = batch["labels"].copy(), batch["weights"].copy()
    for number, (row, slot, start) in places.items():
        label, size = examples[number].label, len(examples[number].texts[0].ids)
        if head == "token_classification":
            here = slice(start, start + size)
            counts = np.zeros(size) if label is None else label >= 0
            np.testing.assert_array_equal(weights[row, here], counts)
            if label is not None:
                np.testing.assert_array_equal(labels[row, here][label >= 0], label[label >= 0])
            labels[row, here] = weights[row, here] = 0
            continue
        at = slot // layout.texts
        assert weights[row, at] == (label is not None)
        if label is None:
            expected = 0
        elif head == "question_answering":
            # Relative to the row: what stands there is what stood there in the example.
            np.testing.assert_array_equal(batch["input_ids"][row, labels[row, at]], examples[number].texts[0].ids[label])
            expected = label + start
        else:
            expected = label
        np.testing.assert_array_equal(labels[row, at], expected)
        labels[row, at] = weights[row, at] = 0
    # And nowhere else.
    assert not labels.any()
    assert not weights.any()


def test_labels_are_never_negative():
    """They are compared with the numbers of classes; -1, which marks what does not count, is none of them."""
    examples = [Example((EncodedText(np.arange(4, dtype=np.int32), 4),), np.full(4, -1, np.int32))]
    batch, _ = lay(layout_of("token_classification"), examples)
    assert batch["labels"].min() == 0
    assert not batch["weights"].any()


@settings(max_examples=80, deadline=None)
@given(several, st.integers(1, 4))
def test_outputs_belong_to_their_examples(given, classes):
    layout, examples = given
    batch, places = lay(layout, examples)
    rows, tokens = len(batch["input_ids"]), layout.head in ("token_classification", "question_answering")
    if layout.head == "multiple_choice":
        classes = 1
    columns = layout.sequence_length if tokens else layout.slots
    # Each score says row, column and class.
    logits = np.arange(rows * columns * classes, dtype=np.float32).reshape(rows, columns, classes)
    for number, place in places.items():
        found = layout.outputs(logits, examples[number], place)
        if tokens:
            mine = np.isin(batch["input_ids"][place.row], examples[number].texts[0].ids)
            np.testing.assert_array_equal(found, logits[place.row, mine])
            assert found.shape == (len(examples[number].texts[0].ids), classes)
        elif layout.head == "multiple_choice":
            firsts = [np.flatnonzero(batch["input_ids"][place.row] == text.ids[0])[0] for text in examples[number].texts]
            slots = batch["segment_ids"][place.row, firsts] - 1
            np.testing.assert_array_equal(found, logits[place.row, slots, 0])
        else:
            first = np.flatnonzero(batch["input_ids"][place.row] == examples[number].texts[0].ids[0])[0]
            np.testing.assert_array_equal(found, logits[place.row, batch["segment_ids"][place.row, first] - 1])
            assert found.shape == (classes,)


@given(st.integers(1, 5000), st.sampled_from([1, 2, 3, 8, 24]))
def test_rows_are_enough_and_a_quarter_too_many_at_most(count, multiple):
    found = layout_of(multiple=multiple).rows(count)
    needed = -(-count // multiple) * multiple
    assert found % multiple == 0
    assert needed <= found <= 1.25 * needed
    # A batch that is filled up is not filled up further, and more examples never need fewer rows.
    assert layout_of(multiple=multiple).rows(found) == found
    assert layout_of(multiple=multiple).rows(count + 1) >= found


def test_rows_have_few_sizes():
    """A program is compiled for each."""
    assert len({layout_of().rows(count) for count in range(1, 1025)}) <= 4 * 10
    assert len({layout_of(multiple=8).rows(count) for count in range(1, 1025)}) <= 4 * 7
    # Batches of one size vary little: three or four programs.
    assert len({layout_of().rows(count) for count in range(60, 100)}) <= 4


@pytest.mark.parametrize("head", HEADS)
def test_without_packing_an_example_is_a_row(head):
    layout, examples = layout_of(head, packing=1), make_examples(head, 9)
    np.testing.assert_array_equal(layout.assign(examples), np.arange(9)[:, None])
    batch, places = lay(layout, examples, rows=12)
    assert {number: place for number, place in places.items()} == {number: (number, 0, 0) for number in range(9)}
    assert layout.slots == layout.texts
    np.testing.assert_array_equal(batch["segment_ids"].max(1), [layout.texts] * 9 + [0] * 3)


@pytest.mark.parametrize(("texts", "slots"), [(1, 32), (2, 32), (3, 30), (4, 32), (5, 30), (32, 32), (40, 40)])
def test_slots_are_a_multiple_of_the_texts_of_an_example(texts, slots):
    layout = layout_of("multiple_choice", texts=texts)
    assert layout.slots == slots
    assert dataclasses.replace(layout, packing=1).slots == texts
    assert dataclasses.replace(layout, packing=2 * texts + 1).slots == 2 * texts + (texts == 1)


def test_the_layout_of_a_task():
    task_data = TaskDataConfig(sequence_length=16, packing=8)
    layout = RowLayout.for_task(registry.get("swag"), task_data, texts=4, outputs=1, pad=PAD, multiple=2)
    assert layout == RowLayout("multiple_choice", ChoiceLabels(), 64, 4, 8, PAD, 2)
    layout = RowLayout.for_task(registry.get("multilabel"), task_data, texts=1, outputs=5, pad=PAD, multiple=1)
    assert layout == RowLayout("multilabel_classification", ExampleLabels(np.float32, classes=5), 16, 1, 8, PAD, 1)


def test_packing_shares_rows_up_to_their_slots():
    layout = layout_of(sequence_length=512)
    examples = [Example((EncodedText(np.arange(4, dtype=np.int32), 4),), np.int32(0))] * 70
    batch, _ = lay(layout, examples, rows=4)
    # 128 examples of four tokens would fit, a row takes 32.
    held = batch["segment_ids"].max(1)
    assert held.sum() == 70
    assert held.max() <= 32
    assert not held[3]


def test_numbers_beyond_32_bits_are_taken_modulo():
    (example,) = make_examples("sequence_classification", 1)
    for number, stored in ((2**31, -(2**31)), (2**32 - 1, -1), (2**32 + 5, 5)):
        batch, _ = lay(layout_of(), [example], ids=[number])
        assert batch["example_ids"][0, 0] == stored


@pytest.mark.parametrize("packing", [32, 1])
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_once_is_every_example_once_in_batches_of_one_shape(packing, rows):
    layout, examples = layout_of("sequence_classification", packing=packing), make_examples("sequence_classification", 50)
    seen, shapes = [], set()
    batches = list(once(examples, layout, rows))
    for batch, places in batches:
        shapes.add(batch["input_ids"].shape)
        for number, (row, slot, start) in places.items():
            seen.append(number)
            text = examples[number].texts[0]
            np.testing.assert_array_equal(batch["input_ids"][row, start : start + len(text.ids)], text.ids)
            assert batch["example_ids"][row, slot] == number
    assert sorted(seen) == [*range(50)]
    assert shapes == {(rows, layout.sequence_length)}
    assert len(batches) == -(-len(layout.assign(examples)) // rows)


def test_once_without_examples_is_nothing():
    assert list(once([], layout_of(), 4)) == []


def shuffled(count=10, *, size=4, seeds=0, local=np.arange, more=None, head="sequence_classification", multiple=1, packing=32):
    examples = make_examples(head, count)
    layout = layout_of(head, multiple=multiple, packing=packing)
    return iter(Shuffled(examples, layout, size=size, seeds=seeds, local=local, more=more or {}))


def members(batch, examples):
    """(number, index) of the examples of a batch, known by their first tokens."""
    index = {int(example.texts[0].ids[0]): at for at, example in enumerate(examples)}
    columns = texts_of(batch)
    return sorted(
        (int(batch["example_ids"][place]), index[int(batch["input_ids"][place[0], here[0]])]) for place, here in columns.items()
    )


def sequence(batches, count, examples):
    """Examples in the order of their numbers over some batches; the numbers must run from 0."""
    found = [pair for _ in range(count) for pair in members(next(batches), examples)]
    assert [number for number, _ in found] == [*range(len(found))]
    return [at for _, at in found]


@pytest.mark.parametrize(("count", "size"), [(10, 4), (7, 7), (3, 8), (1, 2)])
def test_every_epoch_is_every_example_once(count, size):
    """Batches straddle epochs, and may be larger than one."""
    found = sequence(shuffled(count, size=size), 12, make_examples("sequence_classification", count))
    assert len(found) == 12 * size
    epochs = [found[at : at + count] for at in range(0, len(found) - count + 1, count)]
    for epoch in epochs:
        assert sorted(epoch) == [*range(count)]


def test_orders_differ_between_epochs_and_seeds():
    examples = make_examples("sequence_classification", 30)
    orders = [tuple(sequence(shuffled(30, size=30, seeds=seed), 3, examples)) for seed in range(3)]
    epochs = {order[at : at + 30] for order in orders for at in (0, 30, 60)}
    assert len(epochs) == 9
    assert orders[1] == tuple(sequence(shuffled(30, size=30, seeds=1), 3, examples))


def same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@pytest.mark.parametrize("seeds", [3, (3, 4)])
def test_batches_are_a_function_of_the_seed_and_their_number(seeds):
    whole = shuffled(seeds=seeds)
    batches = [next(whole) for _ in range(9)]
    for start in (0, 1, 4, 7):
        going = shuffled(seeds=seeds)
        for _ in range(start):
            next(going)
        state = going.get_state()
        resumed = shuffled(seeds=seeds)
        resumed.set_state(state)
        for number in range(start, 9):
            same(next(resumed), batches[number])
        # Back again, in an iterator that is epochs further.
        resumed.set_state(state)
        same(next(resumed), batches[start])


def test_batches_resume_behind_a_thread_that_reads_ahead():
    """What is stored is the position of what was taken, not of what was read."""
    whole = shuffled()
    batches = [next(whole) for _ in range(9)]
    dataset = Shuffled(make_examples("sequence_classification", 10), layout_of(), size=4, seeds=0, local=np.arange, more={})
    ahead = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=4)
    going = iter(ahead)
    for number in range(3):
        same(next(going), batches[number])
    state = going.get_state()
    resumed = iter(ahead)
    resumed.set_state(state)
    for number in range(3, 9):
        same(next(resumed), batches[number])
    going.close()
    resumed.close()


def test_the_state_is_json():
    batches = shuffled()
    next(batches)
    assert batches.get_state() == {"next": 1}


@pytest.mark.parametrize("head", ["sequence_classification", "multiple_choice"])
def test_several_seeds_are_the_single_runs_side_by_side(head):
    """Up to rows of padding, because all runs of a program have as many."""
    both = shuffled(23, size=11, seeds=(5, 6, 8), head=head)
    alone = [shuffled(23, size=11, seeds=seed, head=head) for seed in (5, 6, 8)]
    for _ in range(5):
        stacked = next(both)
        rows = stacked["input_ids"].shape[1]
        each = [next(batches) for batches in alone]
        assert rows == max(len(batch["input_ids"]) for batch in each)
        for run, batch in enumerate(each):
            for name, value in batch.items():
                np.testing.assert_array_equal(stacked[name][run, : len(value)], value, err_msg=name)
                rest = stacked[name][run, len(value) :]
                assert (rest == (PAD if name == "input_ids" else 0)).all(), name


def test_a_single_run_of_several_has_the_axis_too():
    one, stacked = next(shuffled(seeds=5)), next(shuffled(seeds=[5]))
    same({name: value[None] for name, value in one.items()}, stacked)


@pytest.mark.parametrize("seeds", [2, (2, 3)])
def test_a_process_makes_only_its_rows(seeds):
    axis = 0 if isinstance(seeds, int) else 1
    whole = shuffled(40, size=20, seeds=seeds, multiple=4)
    asked = []

    def mine(of):
        def rows(count):
            asked.append(count)
            return np.arange(count).reshape(4, -1)[of]

        return shuffled(40, size=20, seeds=seeds, multiple=4, local=rows)

    processes = [mine(of) for of in range(4)]
    for _ in range(3):
        batch, local = next(whole), [next(process) for process in processes]
        same(batch, {name: np.concatenate([rows[name] for rows in local], axis) for name in batch})
        assert asked[-4:] == [batch["input_ids"].shape[axis]] * 4


def test_rows_of_a_batch_are_a_multiple():
    batches = shuffled(40, size=20, multiple=8)
    assert {len(next(batches)["input_ids"]) % 8 for _ in range(6)} == {0}


def test_extra_arrays_are_in_every_batch():
    scales = np.array([1.0, 0.5], np.float32)
    batches = shuffled(seeds=(0, 1), more={"rate": scales})
    for _ in range(3):
        np.testing.assert_array_equal(next(batches)["rate"], scales)
    assert "rate" not in next(shuffled())


@pytest.mark.parametrize("packing", [32, 1])
def test_packing_does_not_change_the_examples_of_a_batch(packing):
    examples = make_examples("sequence_classification", 10)
    batches, unpacked = shuffled(packing=packing), shuffled(packing=1)
    for _ in range(6):
        assert members(next(batches), examples) == members(next(unpacked), examples)
