"""Predictions of fine-tuned models: the mapping of labels, files that are written, refusals, and files as streams."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import random
import shutil

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax.config.finetuning import TaskDataConfig
from bert_jax.errors import UserError
from bert_jax.inference.bert import Bert
from bert_jax.inference.predictor import Predictor, run_config
from bert_jax.tasks import multiple_choice, question_answering, records, token_classification
from tests.runs import (
    KEY,
    TASK_DATA,
    WORDS,
    config_of,
    entailment_rows,
    num_correct,
    save_model,
    write_data,
    write_squad,
    write_table,
)

pytestmark = pytest.mark.usefixtures("quick")

HEADS = {
    "classify": {"sequence_classification": 2},
    "regress": {"regression": 1},
    "multilabel": {"multilabel_classification": 2},
    "ner": {"token_classification": 3},
    "squad": {"question_answering": 2},
    "squad2": {"question_answering": 2},
    "swag": {"multiple_choice": 1},
    "mnli": {"sequence_classification": 3},
    "cola": {"sequence_classification": 2},
}
LABELS = {
    "classify": ("no", "yes"),
    "multilabel": ("golf", "india"),
    "ner": ("B-LOC", "B-PER", "O"),
    "mnli": ("contradiction", "entailment", "neutral"),
    "cola": ("unacceptable", "acceptable"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tokenizer):
    """A function from a task to a fine-tuning run of it with a model of random parameters, as if it had been trained."""

    @functools.cache
    def make(task):
        run = tmp_path_factory.mktemp(task) / "run"
        save_model(run / "best", tokenizer, heads=HEADS[task], labels=LABELS.get(task, ()), seed=3, initializer_range=0.5)
        if "sequence_classification" in HEADS[task]:
            balance(run)
        (run / "config.json").write_text(config_of(task, "init", "data", run).to_json())
        return run

    return make


def balance(run):
    """Set the bias of the head so that each class is predicted for some words."""
    model = bert_jax.load(run)
    head = model.params["sequence_classification"]
    logits = model.encode([*WORDS, KEY]).pooled @ head["kernel"]
    shutil.rmtree(run / "best")
    save_changed(model, run / "best", params=model.params | {"sequence_classification": head | {"bias": -logits.mean(0)}})


def save_changed(run, path, **changes):
    """Save a run's model with fields changed."""
    model = run if isinstance(run, Bert) else bert_jax.load(run)
    bert_jax.save(dataclasses.replace(model, **changes), path, to="orbax")
    return path


def predict(predictor, path):
    return [*predictor.predict(path)]


# Labels and heads.


@pytest.mark.slow
def test_labels_in_another_order_are_mapped_by_name(runs, tmp_path):
    """The model's outputs, and their names, in reverse order."""
    run, data = runs("mnli"), write_data(tmp_path / "data", "mnli", test=9)
    model = bert_jax.load(run)
    reversed_head = jax.tree.map(lambda leaf: leaf[..., ::-1], model.params["sequence_classification"])
    params = model.params | {"sequence_classification": reversed_head}
    reversed_run = save_changed(run, tmp_path / "reversed", params=params, labels=model.labels[::-1])
    predictors = Predictor.load(run), Predictor.load(reversed_run, task="mnli", task_data=TASK_DATA)
    scores, reversed_scores = (predictor.evaluate(data) for predictor in predictors)
    assert reversed_scores == scores
    assert set(scores) == {"dev", "dev_mismatched"}
    lines = (tmp_path / "data" / "MNLI" / "dev_matched.tsv").read_text().splitlines()[1:]
    rows = [((first, second), label) for _, first, second, label in (line.split("\t") for line in lines)]
    assert scores["dev"]["accuracy"] == num_correct(model, rows) / 37
    for index, predictor in enumerate(predictors):
        predictor.evaluate(data, split="test", out=tmp_path / f"out-{index}")
    assert (tmp_path / "out-0" / "MNLI-m.tsv").read_text() == (tmp_path / "out-1" / "MNLI-m.tsv").read_text()
    pairs = tmp_path / "pairs.tsv"
    write_table(pairs, ("sentence1", "sentence2"), [row[:2] for row in entailment_rows(random.Random(5), 6)])
    results, reversed_results = (predict(predictor, pairs) for predictor in predictors)
    assert reversed_results == results


def test_outputs_without_names_are_named_by_labels_in_order(runs, tmp_path):
    """As for the numbered classes of the original's models."""
    run, data = runs("cola"), write_data(tmp_path / "data", "cola")
    nameless = save_changed(run, tmp_path / "nameless", labels=())
    with pytest.raises(UserError, match="nameless does not name its 2 outputs; name them, in order, with --labels"):
        Predictor.load(nameless, task="cola")
    with pytest.raises(UserError, match="3 labels are given for 2 outputs"):
        Predictor.load(nameless, task="cola", labels=("a", "b", "c"))
    expected = Predictor.load(run).evaluate(data)
    labels = ("unacceptable", "acceptable")
    named, swapped = (
        Predictor.load(nameless, task="cola", task_data=TASK_DATA, labels=names).evaluate(data) for names in (labels, labels[::-1])
    )
    assert named == expected
    assert swapped["dev"]["matthews"] == pytest.approx(-expected["dev"]["matthews"])
    assert expected["dev"]["matthews"] != 0


@pytest.mark.parametrize("task", ["classify", "ner"])
def test_labels_that_the_model_lacks(task, runs, tmp_path):
    """A class is refused with file and line; a tag, which may be rare, counts as wrong."""
    data = tmp_path / "data"
    write_data(data, task)
    if task == "classify":
        (data / "dev.tsv").write_text((data / "dev.tsv").read_text() + "perhaps\talpha\n")
        with pytest.raises(UserError, match=r"dev\.tsv, line 39: the label 'perhaps' is none of 'no', 'yes'\."):
            Predictor.load(runs(task)).evaluate(str(data))
    else:
        (data / "dev.txt").write_text("alpha O\nbravo B-ORG\n")
        with pytest.warns(bert_jax.errors.BertWarning, match=r"dev\.txt, line 2: the tag 'B-ORG' is not among the labels"):
            scores = Predictor.load(runs(task)).evaluate(str(data))
        assert scores["dev"]["accuracy"] <= 0.5


def test_models_without_task_head_or_vocabulary_are_refused(runs, tokenizer, tmp_path):
    plain = save_model(tmp_path / "plain", tokenizer)
    without_vocab = save_changed(runs("classify"), tmp_path / "without-vocab", tokenizer=None)
    for path, arguments, message in (
        (tmp_path / "none", {}, "There is no model .*none; give a fine-tuning run or a model's directory"),
        (plain, {}, "plain is not a fine-tuning run, so its task is unknown; name it with --task"),
        (plain, {"task": "rte"}, "plain has no sequence_classification head, which rte needs; its heads: none. Fine-tune it first"),
        (
            runs("ner"),
            {"task": "squad"},
            "run has no question_answering head, which squad needs; its heads: token_classification. Fine-tune it first",
        ),
    ):
        with pytest.raises(UserError, match=message):
            Predictor.load(path, **arguments)
    data = write_data(tmp_path / "data", "classify")
    with pytest.raises(UserError, match=r"has no vocabulary; put its vocab\.txt beside the weights"):
        Predictor.load(without_vocab, task="classify", task_data=TASK_DATA).evaluate(data)
    with pytest.raises(UserError, match="length of 128 tokens exceeds the model's 64 positions"):
        Predictor.load(runs("classify"), task_data=TaskDataConfig()).evaluate(data)
    with pytest.raises(UserError, match="'exam'; choose one of train, dev, test"):
        Predictor.load(runs("classify")).evaluate(data, split="exam")
    with pytest.raises(UserError, match="label 'not_entailment' is none of 'contradiction', 'entailment', 'neutral'"):
        Predictor.load(runs("mnli"), task="rte").evaluate(write_data(tmp_path / "rte", "rte"))


def test_task_and_labels_are_taken_from_the_run(runs, tmp_path):
    run = runs("classify")
    for path in (run, f"{run}/", run / "best", str(run / "best")):
        predictor = Predictor.load(path)
        assert (predictor.task, predictor.task_data, predictor.bert.labels) == ("classify", TASK_DATA, ("no", "yes"))
    assert Predictor.load(run, task_data=TaskDataConfig(sequence_length=9)).task_data.sequence_length == 9
    assert run_config(run).task == "classify"
    assert run_config(tmp_path) is None
    # The config of a pretraining run or of another project.
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert run_config(tmp_path) is None


def test_the_threshold_is_that_of_the_best_evaluation(runs, tmp_path):
    """SQuAD 2.0: by default the threshold of the evaluation at which the best model was kept."""
    run = tmp_path / "run"
    save_changed(runs("squad2"), run / "best")
    (run / "config.json").write_text(config_of("squad2", "init", "data", run).to_json())
    assert Predictor.load(run).threshold == 0.0
    scores = [(10.0, -1.5), (30.0, 2.5), (30.0, 9.0), (20.0, 4.0)]
    lines = [{"step": step, "split": "dev", "best_f1": f1, "best_f1_thresh": odds} for step, (f1, odds) in enumerate(scores, 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [Predictor.load(path).threshold for path in (run, run / "best")] == [2.5, 2.5]
    assert Predictor.load(run, threshold=-3.0).threshold == -3.0
    # It decides which questions are answered.
    data = write_data(tmp_path / "data", "squad2", dev=12)
    answered = []
    for threshold in (-1e9, 1e9):
        results = predict(Predictor.load(run, threshold=threshold), f"{data}/dev-v2.0.json")
        assert [set(result) for result in results] == [{"id", "answer", "candidates", "null_odds"}] * 12
        answered.append([bool(result["answer"]) for result in results])
    assert answered == [[False] * 12, [True] * 12]


# Files that are written.


def test_a_submission_for_glue(runs, tmp_path):
    """A test file without labels yields its ids and predictions, and no scores."""
    data, out = write_data(tmp_path / "data", "cola", test=11), tmp_path / "out"
    predictor = Predictor.load(runs("cola"))
    assert predictor.evaluate(data, split="test", out=out) == {}
    assert [path.name for path in out.iterdir()] == ["CoLA.tsv"]
    lines = (out / "CoLA.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction"
    results = predict(predictor, f"{data}/CoLA/test.tsv")
    expected = [f"{index}\t{int(result['label'] == 'acceptable')}" for index, result in enumerate(results, 100)]
    assert lines[1:] == expected
    with pytest.raises(UserError, match=r"CoLA\.tsv exists already"):
        predictor.evaluate(data, split="test", out=out)
    with pytest.raises(UserError, match="no labels to score against"):
        predictor.evaluate(data, split="test")


def test_files_for_official_scripts(runs, tmp_path):
    for task, names in {
        "squad": {"predictions.json", "nbest_predictions.json"},
        "squad2": {"predictions.json", "nbest_predictions.json", "null_odds.json"},
        "swag": {"predictions.csv"},
        "ner": {"predictions.conll"},
    }.items():
        data, out = write_data(tmp_path / f"data-{task}", task, dev=12), tmp_path / f"out-{task}"
        predictor = Predictor.load(runs(task))
        scores = predictor.evaluate(data, out=out)
        assert scores == predictor.evaluate(data)
        assert {path.name for path in out.iterdir()} == names, task
    written = json.loads((tmp_path / "out-squad" / "predictions.json").read_text())
    results = predict(Predictor.load(runs("squad")), tmp_path / "data-squad" / "dev-v1.1.json")
    assert written == {result["id"]: result["answer"] for result in results}
    with open(tmp_path / "out-swag" / "predictions.csv") as file:
        rows = [*csv.reader(file)]
    results = predict(Predictor.load(runs("swag")), tmp_path / "data-swag" / "val.csv")
    assert rows == [["", "pred"], *([result["id"], str(result["choice"])] for result in results)]
    tagged = predict(Predictor.load(runs("ner")), tmp_path / "data-ner" / "dev.txt")
    rows = [line.split() for line in (tmp_path / "out-ner" / "predictions.conll").read_text().splitlines() if line.strip()]
    rows = [row for row in rows if row[0] != "-DOCSTART-"]
    assert [row[2] for row in rows] == [tag for sentence in tagged for tag in sentence["tags"]]
    assert [row[0] for row in rows] == [word for sentence in tagged for word in sentence["words"]]


@pytest.mark.parametrize("task", ["classify", "multilabel", "ner"])
def test_a_labelled_test_split_is_scored_also_when_files_are_written(task, runs, tmp_path):
    data = write_data(tmp_path / "data", task, test=8)
    predictor = Predictor.load(runs(task))
    scores = predictor.evaluate(data, split="test")
    assert predictor.evaluate(data, split="test", out=tmp_path / "out") == scores
    assert set(scores) == {"test"}


@pytest.mark.parametrize("task", ["classify", "multilabel", "cola", "mnli"])
def test_results_of_other_splits_are_written_as_json_lines(task, runs, tmp_path):
    """For tables and for GLUE's development splits, the results of ``predict``."""
    predictor = Predictor.load(runs(task))
    predictor.evaluate(write_data(tmp_path / "data", task), out=tmp_path / "out")
    names = {"dev.jsonl"} | {"mnli": {"dev_mismatched.jsonl"}, "multilabel": {"thresholds.json"}}.get(task, set())
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    written = [json.loads(line) for line in (tmp_path / "out" / "dev.jsonl").read_text().splitlines()]
    assert len(written) == 37
    path = {"classify": "dev.tsv", "multilabel": "dev.csv"}.get(task)
    if path:
        assert written == predict(predictor, tmp_path / "data" / path)


# Streams.


@pytest.fixture
def small_chunks(monkeypatch):
    """Read five records or questions at a time."""
    for module in (records, multiple_choice, question_answering, token_classification):
        monkeypatch.setattr(module, "_CHUNK", 5)


def test_a_table_is_a_stream_in_order(runs, tmp_path, small_chunks):
    """Packed or not, whatever the size of a chunk; and results come before the whole file is read."""
    run, path = runs("classify"), tmp_path / "rows.tsv"
    data = write_data(tmp_path / "data", "classify", dev=23)
    texts = [line.split("\t")[1] for line in (tmp_path / "data" / "dev.tsv").read_text().splitlines()[1:]]
    path.write_text("text\n" + "".join(text + "\n" for text in texts))
    predictor = Predictor.load(run)
    results = predict(predictor, path)
    assert [result["id"] for result in results] == [str(index) for index in range(23)]
    assert [set(result) for result in results] == [{"id", "label", "probabilities"}] * 23
    head = predictor.bert.params["sequence_classification"]
    logits = np.asarray(predictor.bert.encode(texts).pooled @ head["kernel"] + head["bias"])
    for row, result in zip(logits, results, strict=True):
        probabilities = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        assert list(result["probabilities"]) == ["no", "yes"]
        np.testing.assert_allclose(list(result["probabilities"].values()), probabilities, atol=2e-6)
        assert result["label"] == max(result["probabilities"], key=result["probabilities"].get)
    packed = dataclasses.replace(predictor, task_data=dataclasses.replace(TASK_DATA, packing=32, sequence_length=48))
    assert [result["label"] for result in predict(packed, path)] == [result["label"] for result in results]
    labels = [line.split("\t")[0] for line in (tmp_path / "data" / "dev.tsv").read_text().splitlines()[1:]]
    right = sum(result["label"] == label for result, label in zip(results, labels, strict=True))
    assert predictor.evaluate(data)["dev"]["accuracy"] == right / 23
    # The rows before a broken line have their results.
    path.write_text(path.read_text().replace(f"{texts[7]}\n", f"{texts[7]}\tmore\n", 1))
    stream = predictor.predict(path)
    assert [next(stream)["label"] for _ in range(7)] == [result["label"] for result in results[:7]]
    with pytest.raises(UserError, match=r"rows\.tsv, line [0-9]+ has 2 fields"):
        next(stream)


@pytest.mark.parametrize("task", ["classify", "regress", "multilabel"])
def test_an_empty_text_has_a_null_result(task, runs, tmp_path, small_chunks):
    """Zero-width space is no token. All texts of the second chunk are empty."""
    path, predictor = tmp_path / "rows.jsonl", Predictor.load(runs(task))
    texts = ["alpha", "", "golf", None, "\u200b", *[" "] * 5, "bravo golf"]
    path.write_text("".join(json.dumps({"text": text, "label": {"any": "value"}}) + "\n" for text in texts))
    results = predict(predictor, path)
    assert [result["id"] for result in results] == [str(index) for index in range(11)]
    (tmp_path / "texts.json").write_text(json.dumps(["alpha", "golf", "bravo golf"]))
    answered = predict(predictor, tmp_path / "texts.json")
    assert [{**result, "id": ""} for result in (results[0], results[2], results[10])] == [
        {**result, "id": ""} for result in answered
    ]
    null = {name: None for name in results[0] if name != "id"}
    assert [results[index] for index in (1, 3, 4, 7)] == [{"id": str(index), **null} for index in (1, 3, 4, 7)]
    path.write_text('{"text": "alpha"}\n{"text": "\u200b"}\n')
    for content, sentence in ((path.read_text(), "a text has no tokens"), ('{"text": "alpha"}\n{"text": ""}\n', "'text' is empty")):
        path.write_text(content)
        stream = predictor.predict(path, strict=True)
        assert next(stream) == results[0]
        with pytest.raises(UserError, match=rf"rows\.jsonl, line 2: .*{sentence}"):
            next(stream)


@pytest.mark.parametrize("pairs", [True, False])
def test_pairs_and_single_texts_are_not_confused(pairs, runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs("classify"), run)
    (run / "data.json").write_text(json.dumps({"format_version": 2, "train": {"pairs": pairs}}))
    write_table(tmp_path / "single.csv", ("text",), [("alpha",)])
    (tmp_path / "pairs.csv").write_text("text,text_b,label\nalpha,bravo,yes\n")
    wrong, right = ("single.csv", "pairs.csv") if pairs else ("pairs.csv", "single.csv")
    predictor = Predictor.load(run / "best")
    assert len(predict(predictor, tmp_path / right)) == 1
    sentence = (
        "has a single text, and the model is trained on pairs" if pairs else "has a pair of texts, .* on single texts; remove"
    )
    with pytest.raises(UserError, match=rf"{wrong}, line 2 {sentence}"):
        predict(predictor, tmp_path / wrong)
    # A model whose data are unknown takes both.
    assert [len(predict(Predictor.load(runs("classify")), tmp_path / name)) for name in (wrong, right)] == [1, 1]


def test_multilabel_probabilities(runs, tmp_path, small_chunks):
    """Each label has its own probability, a sigmoid, and is predicted from 0.5 on; a text may have any number of labels."""
    predictor, data = Predictor.load(runs("multilabel")), write_data(tmp_path / "data", "multilabel", dev=23)
    texts = [row["text"] for row in csv.DictReader((tmp_path / "data" / "dev.csv").read_text().splitlines())]
    results = predict(predictor, f"{data}/dev.csv")
    head = predictor.bert.params["multilabel_classification"]
    probabilities = 1 / (1 + np.exp(-np.asarray(predictor.bert.encode(texts).pooled @ head["kernel"] + head["bias"])))
    assert [result["id"] for result in results] == [str(index) for index in range(23)]
    assert [list(result["probabilities"]) for result in results] == [["golf", "india"]] * 23
    np.testing.assert_allclose([[*result["probabilities"].values()] for result in results], probabilities, atol=2e-6)
    for result in results:
        assert result["labels"] == [label for label, probability in result["probabilities"].items() if probability >= 0.5]
    assert {len(result["labels"]) for result in results} == {0, 1, 2}


def test_scores_of_texts(runs, tmp_path, small_chunks):
    predictor = Predictor.load(runs("regress"))
    write_table(tmp_path / "rows.tsv", ("text",), [("alpha",), ("golf golf",), ("lima kilo",)] * 4)
    results = predict(predictor, tmp_path / "rows.tsv")
    assert [set(result) for result in results] == [{"id", "score"}] * 12
    model = predictor.bert
    pooled = model.encode(["alpha", "golf golf", "lima kilo"] * 4).pooled
    scores = pooled @ model.params["regression"]["kernel"] + model.params["regression"]["bias"]
    np.testing.assert_allclose([result["score"] for result in results], scores[:, 0], atol=1e-5)


def test_pairs_of_glue_are_read_by_its_columns_or_by_named_columns(runs, tmp_path):
    predictor = Predictor.load(runs("mnli"))
    rows = [row[:2] for row in entailment_rows(random.Random(1), 7)]
    write_table(tmp_path / "glue.tsv", ("index", "sentence1", "sentence2"), [(9, *row) for row in rows])
    write_table(tmp_path / "named.tsv", ("premise", "hypothesis"), rows)
    expected = predict(predictor, tmp_path / "glue.tsv")
    with pytest.raises(UserError, match=r"named\.tsv has no column 'sentence1' but 'premise', 'hypothesis'. Name the columns with"):
        predict(predictor, tmp_path / "named.tsv")
    # As the message says.
    named = dataclasses.replace(predictor, task_data=dataclasses.replace(TASK_DATA, text="premise", text_b="hypothesis"))
    assert predict(named, tmp_path / "named.tsv") == expected


def test_words_are_tagged_in_their_order(runs, tmp_path, small_chunks):
    """With and without tags in the file; chunks do not split a document."""
    predictor, data = Predictor.load(runs("ner")), write_data(tmp_path / "data", "ner", dev=12)
    lines = (tmp_path / "data" / "dev.txt").read_text().splitlines()
    (tmp_path / "words.txt").write_text("\n".join(line.split(" ")[0] for line in lines) + "\n")
    sentences = predict(predictor, f"{data}/dev.txt")
    assert predict(predictor, tmp_path / "words.txt") == sentences
    word_at = {number: line.split(" ")[0] for number, line in enumerate(lines, 1)}
    for sentence in sentences:
        assert set(sentence) == {"line", "words", "tags"}
        assert len(sentence["words"]) == len(sentence["tags"])
        assert set(sentence["tags"]) <= {"B-LOC", "B-PER", "O"}
        assert sentence["words"] == [word_at[sentence["line"] + index] for index in range(len(sentence["words"]))]
    gold = [line.split(" ")[1] for line in lines if line and "DOCSTART" not in line]
    tags = [tag for sentence in sentences for tag in sentence["tags"]]
    accuracy = sum(a == b for a, b in zip(gold, tags, strict=True)) / len(gold)
    assert predictor.evaluate(data)["dev"]["accuracy"] == pytest.approx(accuracy)


def test_questions_are_answered_in_their_order(runs, tmp_path, small_chunks):
    """Answers are spans of their contexts; candidates come best first."""
    predictor, data = Predictor.load(runs("squad")), write_data(tmp_path / "data", "squad", dev=13)
    content = json.loads((tmp_path / "data" / "dev-v1.1.json").read_text())
    contexts = {entry["qas"][0]["id"]: entry["context"] for entry in content["data"][0]["paragraphs"]}
    results = predict(predictor, f"{data}/dev-v1.1.json")
    assert [result["id"] for result in results] == [*contexts]
    for result in results:
        assert result["answer"] in contexts[result["id"]]
        assert result["candidates"][0]["text"] == result["answer"]
        probabilities = [candidate["probability"] for candidate in result["candidates"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1)
    exact = sum(result["answer"] == KEY for result in results)
    assert predictor.evaluate(data)["dev"]["exact"] == pytest.approx(100 * exact / 13)


def test_labels_of_endings_are_ignored(runs, tmp_path, small_chunks):
    data = write_data(tmp_path / "data", "swag", dev=12)
    predictor, path = Predictor.load(runs("swag")), tmp_path / "data" / "val.csv"
    expected = predict(predictor, path)
    assert [result["id"] for result in expected] == [f"q{index}" for index in range(12)]
    for result in expected:
        assert len(result["probabilities"]) == 3
        assert result["choice"] == int(np.argmax(result["probabilities"]))
    rows = [line.rsplit(",", 1) for line in path.read_text().splitlines()]
    right = sum(int(row[1]) == result["choice"] for row, result in zip(rows[1:], expected, strict=True))
    assert predictor.evaluate(data)["dev"]["accuracy"] == right / 12
    (tmp_path / "none.csv").write_text("".join(row[0] + "\n" for row in rows))
    assert predict(predictor, tmp_path / "none.csv") == expected
    for name, label in {"unknown": "gold", "empty": ""}.items():
        (tmp_path / f"{name}.csv").write_text(f"{rows[0][0]},label\n" + "".join(f"{row[0]},{label}\n" for row in rows[1:]))
        assert predict(predictor, tmp_path / f"{name}.csv") == expected, name


def test_questions_before_a_bad_row_are_answered(runs, tmp_path, small_chunks):
    write_data(tmp_path / "data", "swag", dev=12)
    predictor, path = Predictor.load(runs("swag")), tmp_path / "data" / "val.csv"
    expected = predict(predictor, path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:8], lines[8].rpartition(",")[0], *lines[9:]]))
    stream = predictor.predict(path)
    assert [next(stream) for _ in range(7)] == expected[:7]
    with pytest.raises(UserError, match=r"val\.csv, line 9 has 6 columns, the header has 7; repair the line"):
        next(stream)


@pytest.mark.parametrize("name", ["rows.tsv", "rows.csv"])
def test_a_quote_of_glue_is_an_ordinary_character(name, runs, tmp_path):
    """In .tsv files, such as its own; .csv files for its models are CSV."""
    predictor = Predictor.load(runs("cola"))
    (tmp_path / name).write_text('sentence\n"alpha ""golf"""\n')
    (tmp_path / "texts.json").write_text(json.dumps([json.loads('"\\"alpha \\"\\"golf\\"\\"\\""'), 'alpha "golf"']))
    literal, plain = predict(predictor, tmp_path / "texts.json")
    (result,) = predict(predictor, tmp_path / name)
    assert result["probabilities"] == (literal if name.endswith("tsv") else plain)["probabilities"]
    assert literal["probabilities"] != plain["probabilities"]


def test_many_windows_of_one_question(runs, tmp_path, small_chunks):
    """A context of many windows among short ones, at the end of a chunk."""
    directory = tmp_path / "data"
    directory.mkdir()
    write_squad(directory, {"dev": 11}, random.Random(3))
    content = json.loads((directory / "dev-v1.1.json").read_text())
    content["data"][0]["paragraphs"][4]["context"] += " lima kilo" * 60
    (directory / "dev-v1.1.json").write_text(json.dumps(content))
    predictor = Predictor.load(runs("squad"))
    results = predict(predictor, directory / "dev-v1.1.json")
    predictor.evaluate(str(directory), out=tmp_path / "out")
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {result["id"]: result["answer"] for result in results} == written
