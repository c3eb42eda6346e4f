"""Evaluation and prediction with a fine-tuned model: label names, output files, errors, and files read as streams."""

from __future__ import annotations

import csv
import dataclasses
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
from bert_jax.tasks import multilabel, multiple_choice, question_answering, sequence, token_classification
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

# A minute of compilation.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick")]

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
    "multilabel": (KEY, "india"),
    "ner": ("B-LOC", "B-PER", "O"),
    "mnli": ("contradiction", "entailment", "neutral"),
    "cola": ("unacceptable", "acceptable"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tokenizer):
    """A function from a task to a fine-tuning run of it, whose best model has random parameters."""
    runs = {}

    def make(task):
        if task not in runs:
            run = tmp_path_factory.mktemp(task) / "run"
            save_model(run / "best", tokenizer, heads=HEADS[task], labels=LABELS.get(task, ()), seed=3, initializer_range=0.5)
            if "sequence_classification" in HEADS[task]:
                balance(run)
            (run / "config.json").write_text(config_of(task, "init", "data", run).to_json())
            runs[task] = run
        return runs[task]

    return make


def balance(run):
    """Set the bias so that each class is predicted for some of the words."""
    model = bert_jax.load(run)
    head = model.params["sequence_classification"]
    logits = model.encode([*WORDS, KEY]).pooled @ head["kernel"]
    shutil.rmtree(run / "best")
    save_changed(model, run / "best", params=model.params | {"sequence_classification": head | {"bias": -logits.mean(0)}})


def save_changed(model, path, **changes):
    """Save the model, or that of a run, with some of its fields changed."""
    model = model if isinstance(model, Bert) else bert_jax.load(model)
    bert_jax.save(dataclasses.replace(model, **changes), path, to="orbax")
    return path


def predict(predictor, path):
    return [*predictor.predict(path)]


# Labels and heads.


def test_labels_in_another_order_are_mapped_by_name(runs, tmp_path):
    """Reversing the model's outputs together with their names changes nothing."""
    run, data = runs("mnli"), write_data(tmp_path / "data", "mnli", test=9)
    model = bert_jax.load(run)
    head = jax.tree.map(lambda leaf: leaf[..., ::-1], model.params["sequence_classification"])
    params, labels = model.params | {"sequence_classification": head}, model.labels[::-1]
    reversed_model = save_changed(run, tmp_path / "reversed", params=params, labels=labels)
    predictors = Predictor.load(run), Predictor.load(reversed_model, task="mnli", task_data=TASK_DATA)
    scores, reversed_scores = (predictor.evaluate(data) for predictor in predictors)
    assert scores == reversed_scores
    assert set(scores) == {"dev", "dev_mismatched"}
    lines = (tmp_path / "data" / "MNLI" / "dev_matched.tsv").read_text().splitlines()[1:]
    rows = [((first, second), label) for _, first, second, label in (line.split("\t") for line in lines)]
    assert scores["dev"]["accuracy"] == num_correct(model, rows) / 37
    for index, predictor in enumerate(predictors):
        predictor.evaluate(data, split="test", out=tmp_path / f"out-{index}")
    assert (tmp_path / "out-0" / "MNLI-m.tsv").read_text() == (tmp_path / "out-1" / "MNLI-m.tsv").read_text()
    pairs = tmp_path / "pairs.tsv"
    write_table(pairs, ("sentence1", "sentence2"), [row[:2] for row in entailment_rows(random.Random(5), 6)])
    first, second = (predict(predictor, pairs) for predictor in predictors)
    assert first == second
    assert [row["id"] for row in first] == [str(index) for index in range(6)]


def test_class_numbers_of_glue_are_mapped_by_label_names(runs, tmp_path):
    """A model without label names takes the given ones, in the order of its outputs."""
    run, data = runs("cola"), write_data(tmp_path / "data", "cola")
    nameless = save_changed(run, tmp_path / "nameless", labels=())
    with pytest.raises(UserError, match="nameless does not name its 2 outputs; name them, in order, with --labels"):
        Predictor.load(nameless, task="cola")
    with pytest.raises(UserError, match="3 labels are given for 2 outputs"):
        Predictor.load(nameless, task="cola", labels=("a", "b", "c"))
    expected = Predictor.load(run).evaluate(data)
    labels = ("unacceptable", "acceptable")
    in_order, swapped = (
        Predictor.load(nameless, task="cola", task_data=TASK_DATA, labels=names).evaluate(data) for names in (labels, labels[::-1])
    )
    assert in_order == expected
    assert swapped["dev"]["matthews"] == pytest.approx(-expected["dev"]["matthews"])
    assert expected["dev"]["matthews"] != 0


@pytest.mark.parametrize("task", ["classify", "ner"])
def test_labels_unknown_to_the_model(task, runs, tmp_path):
    """An unknown class is refused with file and line; an unknown tag, which may be one in a thousand, counts as an error."""
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


def test_unsuitable_models_are_refused(runs, tokenizer, tmp_path):
    plain = save_model(tmp_path / "plain", tokenizer)
    nameless = save_changed(runs("classify"), tmp_path / "nameless", tokenizer=None)
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
        Predictor.load(nameless, task="classify", task_data=TASK_DATA).evaluate(data)
    with pytest.raises(UserError, match="length of 128 tokens exceeds the model's 64 positions"):
        Predictor.load(runs("classify"), task_data=TaskDataConfig()).evaluate(data)
    with pytest.raises(UserError, match="'exam'; choose one of train, dev, test"):
        Predictor.load(runs("classify")).evaluate(data, split="exam")
    with pytest.raises(UserError, match="label 'not_entailment' is none of 'contradiction', 'entailment', 'neutral'"):
        Predictor.load(runs("mnli"), task="rte").evaluate(write_data(tmp_path / "rte", "rte"))


def test_task_settings_come_from_the_run(runs, tmp_path):
    run = runs("classify")
    for path in (run, f"{run}/", run / "best", str(run / "best")):
        predictor = Predictor.load(path)
        assert (predictor.task, predictor.task_data, predictor.bert.labels) == ("classify", TASK_DATA, ("no", "yes"))
    assert Predictor.load(run, task_data=TaskDataConfig(sequence_length=9)).task_data.sequence_length == 9
    assert run_config(run).task == "classify"
    assert run_config(tmp_path) is None
    # A config.json of a pretraining run or of another project.
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert run_config(tmp_path) is None


def test_the_threshold_is_the_best_of_the_run(runs, tokenizer, tmp_path):
    """SQuAD 2.0: the threshold of the best evaluation, unless another one is given."""
    run = tmp_path / "run"
    save_changed(runs("squad2"), run / "best")
    (run / "config.json").write_text(config_of("squad2", "init", "data", run).to_json())
    assert Predictor.load(run).threshold == 0.0
    scores = [(10.0, -1.5), (30.0, 2.5), (30.0, 9.0), (20.0, 4.0)]
    lines = [
        {"step": step, "split": "dev", "best_f1": f1, "best_f1_thresh": threshold} for step, (f1, threshold) in enumerate(scores, 1)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [Predictor.load(path).threshold for path in (run, run / "best")] == [2.5, 2.5]
    assert Predictor.load(run, threshold=-3.0).threshold == -3.0
    # It decides which questions are answered.
    data = write_data(tmp_path / "data", "squad2", dev=12)
    answered = []
    for threshold in (-1e9, 1e9):
        predictions = predict(Predictor.load(run, threshold=threshold), f"{data}/dev-v2.0.json")
        assert [set(prediction) for prediction in predictions] == [{"id", "answer", "candidates", "null_odds"}] * 12
        answered.append([bool(prediction["answer"]) for prediction in predictions])
    assert answered == [[False] * 12, [True] * 12]


# Output files.


def test_a_submission_for_glue(runs, tmp_path):
    """A test file without labels yields a submission with its ids, and no scores."""
    data, out = write_data(tmp_path / "data", "cola", test=11), tmp_path / "out"
    predictor = Predictor.load(runs("cola"))
    assert predictor.evaluate(data, split="test", out=out) == {}
    assert [path.name for path in out.iterdir()] == ["CoLA.tsv"]
    lines = (out / "CoLA.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction"
    predictions = predict(predictor, f"{data}/CoLA/test.tsv")
    expected = [f"{100 + index}\t{int(row['label'] == 'acceptable')}" for index, row in enumerate(predictions)]
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
        assert predictor.evaluate(data, out=out) == predictor.evaluate(data)
        assert {path.name for path in out.iterdir()} == names, task
    answers = json.loads((tmp_path / "out-squad" / "predictions.json").read_text())
    predictions = predict(Predictor.load(runs("squad")), tmp_path / "data-squad" / "dev-v1.1.json")
    assert answers == {question["id"]: question["answer"] for question in predictions}
    with open(tmp_path / "out-swag" / "predictions.csv") as file:
        rows = [*csv.reader(file)]
    predictions = predict(Predictor.load(runs("swag")), tmp_path / "data-swag" / "val.csv")
    assert rows == [["", "pred"], *([question["id"], str(question["choice"])] for question in predictions)]
    tagged = predict(Predictor.load(runs("ner")), tmp_path / "data-ner" / "dev.txt")
    words = [line.split() for line in (tmp_path / "out-ner" / "predictions.conll").read_text().splitlines() if line.strip()]
    words = [row for row in words if row[0] != "-DOCSTART-"]
    assert [row[2] for row in words] == [tag for sentence in tagged for tag in sentence["tags"]]
    assert [row[0] for row in words] == [word for sentence in tagged for word in sentence["words"]]


@pytest.mark.parametrize("task", ["classify", "ner"])
def test_a_labelled_test_split_is_scored_with_and_without_output_files(task, runs, tmp_path):
    data = write_data(tmp_path / "data", task, test=8)
    predictor = Predictor.load(runs(task))
    scores = predictor.evaluate(data, split="test")
    assert predictor.evaluate(data, split="test", out=tmp_path / "out") == scores
    assert set(scores) == {"test"}


@pytest.mark.parametrize("task", ["classify", "cola", "mnli"])
def test_predictions_on_other_splits_are_written_as_json_lines(task, runs, tmp_path):
    """Tables and development splits of GLUE are written as what `predict` returns."""
    predictor = Predictor.load(runs(task))
    predictor.evaluate(write_data(tmp_path / "data", task), out=tmp_path / "out")
    names = {"dev.jsonl", "dev_mismatched.jsonl"} if task == "mnli" else {"dev.jsonl"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    predictions = [json.loads(line) for line in (tmp_path / "out" / "dev.jsonl").read_text().splitlines()]
    assert len(predictions) == 37
    if task == "classify":
        assert predictions == predict(predictor, tmp_path / "data" / "dev.tsv")


# Streams.


@pytest.fixture
def small_chunks(monkeypatch):
    """Read, score and write five records at a time."""
    for module in (multilabel, multiple_choice, question_answering, sequence, token_classification):
        monkeypatch.setattr(module, "_CHUNK", 5)


def test_a_table_is_a_stream_in_order(runs, tmp_path, small_chunks):
    """Packed or not, across chunks; the first predictions come before the rest of the file is read."""
    run, path = runs("classify"), tmp_path / "rows.tsv"
    data = write_data(tmp_path / "data", "classify", dev=23)
    texts = [line.split("\t")[1] for line in (tmp_path / "data" / "dev.tsv").read_text().splitlines()[1:]]
    path.write_text("text\n" + "".join(text + "\n" for text in texts))
    predictor = Predictor.load(run)
    predictions = predict(predictor, path)
    assert [prediction["id"] for prediction in predictions] == [str(index) for index in range(23)]
    assert [set(prediction) for prediction in predictions] == [{"id", "label", "probabilities"}] * 23
    head = predictor.bert.params["sequence_classification"]
    logits = np.asarray(predictor.bert.encode(texts).pooled @ head["kernel"] + head["bias"])
    for row, prediction in zip(logits, predictions, strict=True):
        probabilities = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        assert list(prediction["probabilities"]) == ["no", "yes"]
        np.testing.assert_allclose(list(prediction["probabilities"].values()), probabilities, atol=2e-6)
        assert prediction["label"] == max(prediction["probabilities"], key=prediction["probabilities"].get)
    packed = dataclasses.replace(predictor, task_data=dataclasses.replace(TASK_DATA, packing=32, sequence_length=48))
    assert [row["label"] for row in predict(packed, path)] == [row["label"] for row in predictions]
    labels = [line.split("\t")[0] for line in (tmp_path / "data" / "dev.tsv").read_text().splitlines()[1:]]
    correct = sum(prediction["label"] == label for prediction, label in zip(predictions, labels, strict=True))
    assert predictor.evaluate(data)["dev"]["accuracy"] == correct / 23
    # The second chunk is malformed; predictions for the first one come before the error.
    path.write_text(path.read_text().replace(f"{texts[7]}\n", f"{texts[7]}\tmore\n", 1))
    stream = predictor.predict(path)
    assert [next(stream)["label"] for _ in range(5)] == [row["label"] for row in predictions[:5]]
    with pytest.raises(UserError, match=r"rows\.tsv, line [0-9]+ has 2 fields"):
        next(stream)


def test_scores_of_texts(runs, tmp_path, small_chunks):
    predictor = Predictor.load(runs("regress"))
    write_table(tmp_path / "rows.tsv", ("text",), [("alpha",), ("golf golf",), ("lima kilo",)] * 4)
    predictions = predict(predictor, tmp_path / "rows.tsv")
    assert [set(prediction) for prediction in predictions] == [{"id", "score"}] * 12
    model = predictor.bert
    pooled = model.encode(["alpha", "golf golf", "lima kilo"] * 4).pooled
    scores = pooled @ model.params["regression"]["kernel"] + model.params["regression"]["bias"]
    np.testing.assert_allclose([prediction["score"] for prediction in predictions], scores[:, 0], atol=1e-5)


def test_sets_of_labels(runs, tmp_path, small_chunks):
    """In file order across chunks, whatever labels the file has; with the probabilities of independent sigmoids."""
    data, predictor = write_data(tmp_path / "data", "multilabel", dev=13), Predictor.load(runs("multilabel"))
    predictions = predict(predictor, tmp_path / "data" / "dev.csv")
    assert [prediction["id"] for prediction in predictions] == [str(index) for index in range(13)]
    with open(tmp_path / "data" / "dev.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    head = predictor.bert.params["multilabel_classification"]
    logits = np.asarray(predictor.bert.encode([row["text"] for row in rows]).pooled @ head["kernel"] + head["bias"])
    for row, prediction in zip(1 / (1 + np.exp(-logits)), predictions, strict=True):
        assert list(prediction["probabilities"]) == [KEY, "india"]
        np.testing.assert_allclose(list(prediction["probabilities"].values()), row, atol=2e-6)
        assert prediction["labels"] == [label for label, probability in prediction["probabilities"].items() if probability >= 0.5]
    exact = sum(", ".join(prediction["labels"]) == row["label"] for prediction, row in zip(predictions, rows, strict=True))
    assert predictor.evaluate(data)["dev"]["exact"] == pytest.approx(exact / 13)


def test_pairs_are_read_from_columns_of_glue_or_named_columns(runs, tmp_path):
    predictor = Predictor.load(runs("mnli"))
    rows = [row[:2] for row in entailment_rows(random.Random(1), 7)]
    write_table(tmp_path / "glue.tsv", ("index", "sentence1", "sentence2"), [(9, *row) for row in rows])
    write_table(tmp_path / "named.tsv", ("premise", "hypothesis"), rows)
    expected = predict(predictor, tmp_path / "glue.tsv")
    with pytest.raises(UserError, match=r"named\.tsv has no column 'sentence1' but 'premise', 'hypothesis'. Name the columns with"):
        predict(predictor, tmp_path / "named.tsv")
    # What the message recommends.
    named = dataclasses.replace(predictor, task_data=dataclasses.replace(TASK_DATA, text="premise", text_b="hypothesis"))
    assert predict(named, tmp_path / "named.tsv") == expected


def test_words_are_tagged_in_file_order(runs, tmp_path, small_chunks):
    """With and without tags in the file; a document is not split between chunks."""
    predictor, data = Predictor.load(runs("ner")), write_data(tmp_path / "data", "ner", dev=12)
    lines = (tmp_path / "data" / "dev.txt").read_text().splitlines()
    (tmp_path / "words.txt").write_text("\n".join(line.split(" ")[0] for line in lines) + "\n")
    predictions = predict(predictor, f"{data}/dev.txt")
    assert predict(predictor, tmp_path / "words.txt") == predictions
    words = {number: line.split(" ")[0] for number, line in enumerate(lines, 1)}
    for sentence in predictions:
        assert set(sentence) == {"line", "words", "tags"}
        assert len(sentence["words"]) == len(sentence["tags"])
        assert set(sentence["tags"]) <= {"B-LOC", "B-PER", "O"}
        assert sentence["words"] == [words[sentence["line"] + offset] for offset in range(len(sentence["words"]))]
    gold = [line.split(" ")[1] for line in lines if line and "DOCSTART" not in line]
    tags = [tag for sentence in predictions for tag in sentence["tags"]]
    accuracy = sum(a == b for a, b in zip(gold, tags, strict=True)) / len(gold)
    assert predictor.evaluate(data)["dev"]["accuracy"] == pytest.approx(accuracy)


def test_questions_are_answered_in_file_order(runs, tmp_path, small_chunks):
    """Answers are spans of their contexts; candidates are sorted by probability, which sums to 1."""
    predictor, data = Predictor.load(runs("squad")), write_data(tmp_path / "data", "squad", dev=13)
    content = json.loads((tmp_path / "data" / "dev-v1.1.json").read_text())
    contexts = {entry["qas"][0]["id"]: entry["context"] for entry in content["data"][0]["paragraphs"]}
    predictions = predict(predictor, f"{data}/dev-v1.1.json")
    assert [prediction["id"] for prediction in predictions] == [*contexts]
    for prediction in predictions:
        assert prediction["answer"] in contexts[prediction["id"]]
        assert prediction["candidates"][0]["text"] == prediction["answer"]
        probabilities = [candidate["probability"] for candidate in prediction["candidates"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1)
    exact = sum(prediction["answer"] == KEY for prediction in predictions)
    assert predictor.evaluate(data)["dev"]["exact"] == pytest.approx(100 * exact / 13)


def test_predictions_ignore_the_labels_of_a_multiple_choice_file(runs, tmp_path, small_chunks):
    data = write_data(tmp_path / "data", "swag", dev=12)
    predictor, path = Predictor.load(runs("swag")), tmp_path / "data" / "val.csv"
    expected = predict(predictor, path)
    assert [prediction["id"] for prediction in expected] == [f"q{index}" for index in range(12)]
    for prediction in expected:
        assert len(prediction["probabilities"]) == 3
        assert prediction["choice"] == int(np.argmax(prediction["probabilities"]))
    rows = [line.rsplit(",", 1) for line in path.read_text().splitlines()]
    correct = sum(int(row[1]) == prediction["choice"] for row, prediction in zip(rows[1:], expected, strict=True))
    assert predictor.evaluate(data)["dev"]["accuracy"] == correct / 12
    (tmp_path / "none.csv").write_text("".join(row[0] + "\n" for row in rows))
    assert predict(predictor, tmp_path / "none.csv") == expected
    for name, label in {"unknown": "gold", "empty": ""}.items():
        (tmp_path / f"{name}.csv").write_text(f"{rows[0][0]},label\n" + "".join(f"{row[0]},{label}\n" for row in rows[1:]))
        assert predict(predictor, tmp_path / f"{name}.csv") == expected, name


def test_windows_of_one_question_across_chunks(runs, tmp_path, small_chunks):
    """A context of many windows among short ones, at the end of a chunk."""
    directory = tmp_path / "data"
    directory.mkdir()
    write_squad(directory, {"dev": 11}, random.Random(3))
    content = json.loads((directory / "dev-v1.1.json").read_text())
    content["data"][0]["paragraphs"][4]["context"] += " lima kilo" * 60
    (directory / "dev-v1.1.json").write_text(json.dumps(content))
    predictor = Predictor.load(runs("squad"))
    predictions = predict(predictor, directory / "dev-v1.1.json")
    predictor.evaluate(str(directory), out=tmp_path / "out")
    answers = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {prediction["id"]: prediction["answer"] for prediction in predictions} == answers
