"""Multi-label tables: any number of labels for each text, thresholds for each label, results and files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from etils import epath

from bert_jax.config.finetuning import TaskDataConfig
from bert_jax.errors import UserError
from bert_jax.tasks import record_labels, registry, tables
from bert_jax.tasks.example import Source
from bert_jax.tasks.tables import Columns

TASK = registry.get("multilabel")
ROWS = 'label,text\n"sport, news",alpha\n,bravo\nweather,charlie delta\n"news,sport",echo\n'
LABELS = ("news", "sport", "weather")
GOLD = [[1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 1, 0]]


def source(tmp_path, tokenizer, **options):
    return Source(str(tmp_path), TaskDataConfig(sequence_length=16, **options), tokenizer)


def write(path, content):
    path.write_text(content)
    return path


def logits(probabilities):
    values = np.array(probabilities, np.float64)
    return [*np.log(values / (1 - values)).astype(np.float32)]


def test_training_data_are_read(tmp_path, tokenizer):
    write(tmp_path / "train.csv", ROWS)
    examples, labels = TASK.train(source(tmp_path, tokenizer))
    assert labels == LABELS
    assert {example.label.dtype for example in examples} == {np.dtype(np.float32)}
    np.testing.assert_array_equal([example.label for example in examples], GOLD)
    assert [example.texts[0].first_length for example in examples] == [len(example.texts[0].ids) for example in examples]
    assert (TASK.outputs(labels), TASK.head) == (3, "multilabel_classification")


@pytest.mark.parametrize(
    ("name", "content", "labels"),
    [
        ("a.tsv", "label\ttext\nb,a\tx\n\ty\n a , b \tx\n", [("b", "a"), (), ("a", "b")]),
        ("a.csv", 'label,text\n"a,a",x\n  ,y\n', [("a",), ()]),
        ("a.jsonl", '{"label": ["b", "a,c", 3, true], "text": "x"}\n{"label": [], "text": "y"}', [("b", "a,c", "3", "true"), ()]),
    ],
)
def test_cells_and_lists_hold_several_labels(tmp_path, name, content, labels):
    records = [*tables.read(write(tmp_path / name, content), Columns(), multilabel=True)]
    assert [record.labels for record in records] == labels
    assert {record.label for record in records} == {None}


def test_labels_that_are_absent_are_unknown(tmp_path):
    without = [*tables.read(write(tmp_path / "a.tsv", "text\nx\n"), Columns(), labelled=False, multilabel=True)]
    null = [*tables.read(write(tmp_path / "a.jsonl", '{"text": "x", "label": null}'), Columns(), labelled=False, multilabel=True)]
    assert without[0].labels is null[0].labels is None


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.tsv", "label\ttext\na,,b\tx\n", "a.tsv, line 2: 'label' holds an empty label; separate labels with one comma"),
        ("a.jsonl", '{"label": ["a", ""], "text": "x"}', "line 1: 'label' holds an empty label"),
        ("a.jsonl", '{"label": "a,b", "text": "x"}', r"line 1: 'label' is \"a,b\"; several labels must be a list, \[\] for none"),
        ("a.jsonl", '{"label": {"a": 1}, "text": "x"}', "line 1: 'label' is .*; several labels must be a list"),
        ("a.jsonl", '{"label": [["a"]], "text": "x"}', "line 1: 'label' is .*; a label must be a string, a number, true or false"),
        ("a.jsonl", '{"label": null, "text": "x"}', r"line 1: the label 'label' is empty; write \[\] for no label"),
        ("a.jsonl", '{"text": "x"}', "line 1 has no column 'label' but 'text'"),
        ("a.jsonl", '{"label": ["\\ud800"], "text": "x"}', "line 1: 'label' has half a surrogate pair"),
    ],
)
def test_bad_labels_are_refused(tmp_path, name, content, sentence):
    with pytest.raises(UserError, match=sentence):
        list(tables.read(write(tmp_path / name, content), Columns(), multilabel=True))


def test_labels_without_sense_are_refused(tmp_path, tokenizer):
    write(tmp_path / "train.tsv", "label\ttext\n\tx\n\ty\n")
    with pytest.raises(UserError, match=r"train.tsv: no row has a label; training needs at least one"):
        TASK.train(source(tmp_path, tokenizer))
    write(tmp_path / "train.tsv", "label\ttext\n" + "".join(f"{n},{n + 1}\tx\n" for n in range(0, 1100, 2)))
    with pytest.raises(UserError, match=r"line 502: there are more than 1,000 labels up to here; that looks like a score or an id"):
        TASK.train(source(tmp_path, tokenizer))
    write(tmp_path / "dev.tsv", "label\ttext\nnews\tx\nrain\ty\n")
    with pytest.raises(UserError, match=r"dev.tsv, line 3: the label 'rain' is none of 'news', 'sport', 'weather'"):
        TASK.split(source(tmp_path, tokenizer), "dev", LABELS)
    write(tmp_path / "dev.tsv", "label\ttext\nnews\tx\n")
    with pytest.raises(UserError, match="There are 2 thresholds for 3 labels; give one for all, or one for each of news, sport"):
        TASK.split(source(tmp_path, tokenizer, thresholds=(0.5, 0.4)), "dev", LABELS)
    with pytest.raises(UserError, match="tfds:x: only the tasks of GLUE"):
        TASK.train(Source("tfds:x", TaskDataConfig(), tokenizer))
    with pytest.raises(UserError, match="multilabel has no split 'dev_mismatched'"):
        TASK.split(source(tmp_path, tokenizer), "dev_mismatched", LABELS)


def test_labels_are_sorted_by_name_or_by_number(tmp_path):
    def names(cells):
        path = write(tmp_path / "a.tsv", "label\ttext\n" + "".join(f"{cell}\tx\n" for cell in cells))
        return record_labels.label_names(tables.read(path, Columns(), multilabel=True))

    assert names(["b,c", "a"]) == ("a", "b", "c")
    assert names(["10,9", "-1"]) == ("-1", "9", "10")


def test_scores_are_their_definitions(tmp_path, tokenizer):
    """From counts of right, missed and false labels, with one threshold for all labels and one for each."""
    write(tmp_path / "dev.csv", ROWS)
    outputs = logits([[0.9, 0.6, 0.1], [0.2, 0.7, 0.3], [0.1, 0.1, 0.45], [0.8, 0.3, 0.2]])
    for thresholds, predicted in (
        ((), [[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]]),
        ((0.25,), [[1, 1, 0], [0, 1, 1], [0, 0, 1], [1, 1, 0]]),
        ((0.95, 0.65, 0.4), [[0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]),
    ):
        split = TASK.split(source(tmp_path, tokenizer, thresholds=thresholds), "dev", LABELS)
        gold, predicted = np.array(GOLD), np.array(predicted)
        right, total = (gold & predicted).sum(0), gold.sum(0) + predicted.sum(0)
        f1 = np.divide(2 * right, total, out=np.zeros(3), where=total > 0)
        assert split.score(outputs) == pytest.approx(
            {"micro_f1": 2 * right.sum() / total.sum(), "macro_f1": f1.mean(), "exact": (gold == predicted).all(1).mean()}
        )


def test_results_and_files(tmp_path, tokenizer):
    write(tmp_path / "dev.csv", ROWS)
    outputs = logits([[0.9, 0.6, 0.1], [0.2, 0.7, 0.3], [0.1, 0.1, 0.45], [0.8, 0.3, 0.2]])
    (chunk,) = TASK.stream(source(tmp_path, tokenizer, thresholds=(0.5, 0.65, 0.4)), tmp_path / "dev.csv", LABELS)
    assert {example.label for example in chunk.examples} == {None}
    results = chunk.results(outputs)
    assert [result["labels"] for result in results] == [["news"], ["sport"], ["weather"], ["news"]]
    assert [result["id"] for result in results] == ["0", "1", "2", "3"]
    assert results[0]["probabilities"] == pytest.approx({"news": 0.9, "sport": 0.6, "weather": 0.1}, abs=1e-6)
    TASK.split(source(tmp_path, tokenizer), "dev", LABELS).write(outputs, epath.Path(tmp_path) / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "dev.jsonl").read_text().splitlines()]
    assert [line["labels"] for line in lines] == [["news", "sport"], ["sport"], [], ["news"]]
    best = json.loads((tmp_path / "out" / "thresholds.json").read_text())
    # Between the lowest probability of a right label and the next one below; "sport" accepts all but the least probable.
    assert [*best] == [*LABELS]
    assert {name: entry["threshold"] for name, entry in best.items()} == pytest.approx(
        {"news": 0.5, "sport": 0.2, "weather": 0.375}
    )
    assert {name: entry["f1"] for name, entry in best.items()} == pytest.approx({"news": 1.0, "sport": 0.8, "weather": 1.0})
    tuned = source(tmp_path, tokenizer, thresholds=tuple(entry["threshold"] for entry in best.values()))
    assert TASK.split(tuned, "dev", LABELS).score(outputs)["macro_f1"] == pytest.approx(2.8 / 3)


def test_splits_without_labels_are_written_and_not_scored(tmp_path, tokenizer):
    write(tmp_path / "test.tsv", "text\nalpha\nbravo\n")
    split = TASK.split(source(tmp_path, tokenizer), "test", LABELS)
    outputs = logits([[0.9, 0.1, 0.1]] * 2)
    with pytest.raises(UserError, match="This split has no labels to score against; predict it instead"):
        split.score(outputs)
    split.write(outputs, epath.Path(tmp_path) / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["test.jsonl"]


def test_diverged_models_are_refused(tmp_path, tokenizer):
    write(tmp_path / "dev.csv", ROWS)
    outputs = logits([[0.9, 0.6, 0.1]] * 4)
    outputs[2][1] = np.nan
    with pytest.raises(UserError, match="1 of 4 predictions are not finite numbers, the first is example 3"):
        TASK.split(source(tmp_path, tokenizer), "dev", LABELS).score(outputs)


def test_the_constant_answer_has_the_labels_of_most_examples(tmp_path, tokenizer):
    write(tmp_path / "train.csv", 'label,text\n"news,sport",alpha\nnews,bravo\n"news,weather",charlie\n')
    write(tmp_path / "dev.csv", ROWS)
    examples, labels = TASK.train(source(tmp_path, tokenizer))
    split = TASK.split(source(tmp_path, tokenizer), "dev", labels)
    # "news" alone, which is right twice of four times; five labels are to be found.
    assert TASK.constant_score(examples, labels, split) == pytest.approx(2 * 2 / (4 + 5))
