"""A fine-tuned model asked again: whose labels are whose, what is written, what is refused; files as streams."""

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
from bert_jax.tasks import question_answering, registry, sequence
from tests.tasks.test_registry import (
    KEY,
    READING,
    WORDS,
    config_of,
    inferred,
    quickly,
    right_of,
    save_model,
    write_data,
    write_squad,
    write_table,
)

# A minute of compilation.
pytestmark = pytest.mark.slow

HEADS = {
    "classify": {"sequence_classification": 2},
    "regress": {"regression": 1},
    "ner": {"token_classification": 3},
    "squad": {"question_answering": 2},
    "squad2": {"question_answering": 2},
    "swag": {"multiple_choice": 1},
    "mnli": {"sequence_classification": 3},
    "cola": {"sequence_classification": 2},
}
LABELS = {"classify": ("no", "yes"), "ner": ("B-LOC", "B-PER", "O"), "mnli": ("contradiction", "entailment", "neutral"),
          "cola": ("unacceptable", "acceptable")}  # fmt: skip


@pytest.fixture(autouse=True)
def quick():
    with quickly():
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tokenizer):
    """A task -> a fine-tuning run of it with a model of random parameters, as if it had been trained."""
    made = {}

    def make(task):
        if task not in made:
            run = tmp_path_factory.mktemp(task) / "run"
            save_model(run / "best", tokenizer, heads=HEADS[task], labels=LABELS.get(task, ()), seed=3, initializer_range=0.5)
            if "sequence_classification" in HEADS[task]:
                balance(run)
            (run / "config.json").write_text(config_of(task, "init", "data", run).to_json())
            made[task] = run
        return made[task]

    return make


def balance(run):
    """Let each class be the answer to some words."""
    model = bert_jax.load(run)
    head = model.params["classify"]
    logits = model.encode([*WORDS, KEY]).pooled @ head["kernel"]
    shutil.rmtree(run / "best")
    renamed(model, run / "best", params=model.params | {"classify": head | {"bias": -logits.mean(0)}})


def renamed(run, path, **changes):
    """Its model with something changed."""
    model = run if isinstance(run, Bert) else bert_jax.load(run)
    bert_jax.save(dataclasses.replace(model, **changes), path, to="orbax")
    return path


def answers(asker, path):
    return [*asker.predict(path)]


# Labels and heads.


def test_labels_in_another_order_are_mapped_by_name(runs, tmp_path):
    """The model's outputs, and their names, turned around."""
    run, data = runs("mnli"), write_data(tmp_path / "data", "mnli", test=9)
    model = bert_jax.load(run)
    turned = jax.tree.map(lambda leaf: leaf[..., ::-1], model.params["classify"])
    other = renamed(run, tmp_path / "turned", params=model.params | {"classify": turned}, labels=model.labels[::-1])
    asked = Predictor.load(run), Predictor.load(other, task="mnli", task_data=READING)
    found, expected = (asker.evaluate(data) for asker in asked)
    assert found == expected
    assert set(found) == {"dev", "dev_mismatched"}
    lines = (tmp_path / "data" / "MNLI" / "dev_matched.tsv").read_text().splitlines()[1:]
    rows = [((first, second), label) for _, first, second, label in (line.split("\t") for line in lines)]
    assert found["dev"]["accuracy"] == right_of(model, rows) / 37
    for number, asker in enumerate(asked):
        asker.evaluate(data, split="test", out=tmp_path / f"out-{number}")
    assert (tmp_path / "out-0" / "MNLI-m.tsv").read_text() == (tmp_path / "out-1" / "MNLI-m.tsv").read_text()
    questions = tmp_path / "questions.tsv"
    write_table(questions, ("sentence1", "sentence2"), [row[:2] for row in inferred(random.Random(5), 6)])
    first, second = (answers(asker, questions) for asker in asked)
    assert [answer["label"] for answer in first] == [answer["label"] for answer in second]
    assert [answer["probabilities"] for answer in first] == [answer["probabilities"] for answer in second]


def test_the_numbers_of_the_original_are_mapped_by_labels(runs, tmp_path):
    """A model without names: those that are given, in the order of its outputs."""
    run, data = runs("cola"), write_data(tmp_path / "data", "cola")
    nameless = renamed(run, tmp_path / "nameless", labels=())
    with pytest.raises(UserError, match="nameless does not say what its 2 outputs mean; name them, in order, with --labels"):
        Predictor.load(nameless, task="cola")
    with pytest.raises(UserError, match="3 labels are given for 2 outputs"):
        Predictor.load(nameless, task="cola", labels=("a", "b", "c"))
    expected = Predictor.load(run).evaluate(data)
    assert (
        Predictor.load(nameless, task="cola", task_data=READING, labels=("unacceptable", "acceptable")).evaluate(data) == expected
    )
    turned = Predictor.load(nameless, task="cola", task_data=READING, labels=("acceptable", "unacceptable")).evaluate(data)
    assert turned["dev"]["matthews"] == pytest.approx(-expected["dev"]["matthews"])
    assert expected["dev"]["matthews"] != 0


@pytest.mark.parametrize("task", ["classify", "ner"])
def test_labels_that_the_model_does_not_know(task, runs, tmp_path):
    """A class is refused with file and line; a tag, of which there may be one in a thousand, counts as wrong."""
    data = tmp_path / "data"
    write_data(data, task)
    if task == "classify":
        (data / "dev.tsv").write_text((data / "dev.tsv").read_text() + "perhaps\talpha\n")
        with pytest.raises(UserError, match=r"dev\.tsv, line 39: the label 'perhaps' is none of 'no', 'yes'\."):
            Predictor.load(runs(task)).evaluate(str(data))
    else:
        (data / "dev.txt").write_text("alpha O\nbravo B-ORG\n")
        with pytest.warns(bert_jax.errors.BertWarning, match=r"dev\.txt, line 2: the tag 'B-ORG' is not among the labels"):
            found = Predictor.load(runs(task)).evaluate(str(data))
        assert found["dev"]["accuracy"] <= 0.5


def test_models_that_cannot_answer_are_refused(runs, tokenizer, tmp_path):
    plain = save_model(tmp_path / "plain", tokenizer)
    nameless = renamed(runs("classify"), tmp_path / "nameless", tokenizer=None)
    for path, more, sentence in (
        (tmp_path / "none", {}, "There is no model .*none; give a fine-tuning run or a model's directory"),
        (plain, {}, "plain is not a fine-tuning run, so that its task is not known; name it with --task"),
        (plain, {"task": "rte"}, "plain has no classify head, which rte needs; its heads: none. Fine-tune it first"),
        (runs("ner"), {"task": "squad"}, "run has no span head, which squad needs; its heads: tag. Fine-tune it first"),
    ):
        with pytest.raises(UserError, match=sentence):
            Predictor.load(path, **more)
    data = write_data(tmp_path / "data", "classify")
    with pytest.raises(UserError, match=r"came without a vocabulary; put its vocab\.txt beside the weights"):
        Predictor.load(nameless, task="classify", task_data=READING).evaluate(data)
    with pytest.raises(UserError, match="length of 128 tokens is above the model's 64 positions"):
        Predictor.load(runs("classify"), task_data=TaskDataConfig()).evaluate(data)
    with pytest.raises(UserError, match="'exam'; choose one of train, dev, test"):
        Predictor.load(runs("classify")).evaluate(data, split="exam")
    with pytest.raises(UserError, match="label 'not_entailment' is none of 'contradiction', 'entailment', 'neutral'"):
        Predictor.load(runs("mnli"), task="rte").evaluate(write_data(tmp_path / "rte", "rte"))


def test_what_a_run_knows_is_taken_from_it(runs, tmp_path):
    run = runs("classify")
    for path in (run, f"{run}/", run / "best", str(run / "best")):
        asker = Predictor.load(path)
        assert (asker.task, asker.task_data, asker.bert.labels) == ("classify", READING, ("no", "yes"))
    assert Predictor.load(run, task_data=TaskDataConfig(length=9)).task_data.length == 9
    assert run_config(run).task == "classify"
    assert run_config(tmp_path) is None
    # What a pretraining run or another project calls so.
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert run_config(tmp_path) is None


def test_the_threshold_is_the_runs_best(runs, tokenizer, tmp_path):
    """Of SQuAD 2.0: where the best model was kept, unless another is given."""
    run = tmp_path / "run"
    renamed(runs("squad2"), run / "best")
    (run / "config.json").write_text(config_of("squad2", "init", "data", run).to_json())
    assert Predictor.load(run).threshold == 0.0
    scores = [(10.0, -1.5), (30.0, 2.5), (30.0, 9.0), (20.0, 4.0)]
    lines = [{"step": step, "split": "dev", "best_f1": f1, "best_f1_thresh": odds} for step, (f1, odds) in enumerate(scores, 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [Predictor.load(path).threshold for path in (run, run / "best")] == [2.5, 2.5]
    assert Predictor.load(run, threshold=-3.0).threshold == -3.0
    # It decides who is answered.
    data = write_data(tmp_path / "data", "squad2", dev=12)
    answered = []
    for threshold in (-1e9, 1e9):
        found = answers(Predictor.load(run, threshold=threshold), f"{data}/dev-v2.0.json")
        assert [set(answer) for answer in found] == [{"id", "answer", "candidates", "null_odds"}] * 12
        answered.append([bool(answer["answer"]) for answer in found])
    assert answered == [[False] * 12, [True] * 12]


# Files that are written.


def test_a_submission_for_glue(runs, tmp_path):
    """Of test files without labels, with the ids that they give; and no scores."""
    data, out = write_data(tmp_path / "data", "cola", test=11), tmp_path / "out"
    asker = Predictor.load(runs("cola"))
    assert asker.evaluate(data, split="test", out=out) == {}
    assert [path.name for path in out.iterdir()] == ["CoLA.tsv"]
    lines = (out / "CoLA.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction"
    found = answers(asker, f"{data}/CoLA/test.tsv")
    expected = [f"{100 + number}\t{int(answer['label'] == 'acceptable')}" for number, answer in enumerate(found)]
    assert lines[1:] == expected
    with pytest.raises(UserError, match=r"CoLA\.tsv exists already"):
        asker.evaluate(data, split="test", out=out)
    with pytest.raises(UserError, match="no labels to score against"):
        asker.evaluate(data, split="test")


def test_files_for_official_scripts(runs, tmp_path):
    for task, names in {
        "squad": {"predictions.json", "nbest_predictions.json"},
        "squad2": {"predictions.json", "nbest_predictions.json", "null_odds.json"},
        "swag": {"predictions.csv"},
        "ner": {"predictions.conll"},
    }.items():
        data, out = write_data(tmp_path / f"data-{task}", task, dev=12), tmp_path / f"out-{task}"
        asker = Predictor.load(runs(task))
        found = asker.evaluate(data, out=out)
        assert found == asker.evaluate(data)
        assert {path.name for path in out.iterdir()} == names, task
    said = json.loads((tmp_path / "out-squad" / "predictions.json").read_text())
    assert said == {
        one["id"]: one["answer"] for one in answers(Predictor.load(runs("squad")), tmp_path / "data-squad" / "dev-v1.1.json")
    }
    with open(tmp_path / "out-swag" / "predictions.csv") as file:
        rows = [*csv.reader(file)]
    asked = answers(Predictor.load(runs("swag")), tmp_path / "data-swag" / "val.csv")
    assert rows == [["", "pred"], *([one["id"], str(one["choice"])] for one in asked)]
    tagged = answers(Predictor.load(runs("ner")), tmp_path / "data-ner" / "dev.txt")
    words = [line.split() for line in (tmp_path / "out-ner" / "predictions.conll").read_text().splitlines() if line.strip()]
    words = [row for row in words if row[0] != "-DOCSTART-"]
    assert [row[2] for row in words] == [tag for sentence in tagged for tag in sentence["tags"]]
    assert [row[0] for row in words] == [word for sentence in tagged for word in sentence["word_ids"]]


@pytest.mark.parametrize("task", ["classify", "ner"])
def test_a_test_split_with_labels_is_scored_also_where_files_are_written(task, runs, tmp_path):
    data = write_data(tmp_path / "data", task, test=8)
    asker = Predictor.load(runs(task))
    scores = asker.evaluate(data, split="test")
    assert asker.evaluate(data, split="test", out=tmp_path / "out") == scores
    assert set(scores) == {"test"}


@pytest.mark.parametrize("task", ["classify", "cola", "mnli"])
def test_answers_to_other_splits_are_written_as_json_lines(task, runs, tmp_path):
    """Of own tables and of GLUE's development splits: what predict says."""
    asker = Predictor.load(runs(task))
    asker.evaluate(write_data(tmp_path / "data", task), out=tmp_path / "out")
    names = {"dev.jsonl", "dev_mismatched.jsonl"} if task == "mnli" else {"dev.jsonl"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    found = [json.loads(line) for line in (tmp_path / "out" / "dev.jsonl").read_text().splitlines()]
    assert len(found) == 37
    if task == "classify":
        assert found == answers(asker, tmp_path / "data" / "dev.tsv")


# Streams.


@pytest.fixture
def few(monkeypatch):
    """Five questions at a time."""
    for module in (sequence, question_answering, registry):
        monkeypatch.setattr(module, "_CHUNK", 5)


def test_a_table_is_a_stream_in_order(runs, tmp_path, few):
    """Also packed, also unpacked, whatever the size of a chunk; and begun before the end is read."""
    run, path = runs("classify"), tmp_path / "rows.tsv"
    data = write_data(tmp_path / "data", "classify", dev=23)
    texts = [line.split("\t")[1] for line in (tmp_path / "data" / "dev.tsv").read_text().splitlines()[1:]]
    path.write_text("text\n" + "".join(text + "\n" for text in texts))
    asker = Predictor.load(run)
    found = answers(asker, path)
    assert [answer["id"] for answer in found] == [str(number) for number in range(23)]
    assert [set(answer) for answer in found] == [{"id", "label", "probabilities"}] * 23
    head = asker.bert.params["classify"]
    logits = np.asarray(asker.bert.encode(texts).pooled @ head["kernel"] + head["bias"])
    for row, answer in zip(logits, found, strict=True):
        shares = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        assert list(answer["probabilities"]) == ["no", "yes"]
        np.testing.assert_allclose(list(answer["probabilities"].values()), shares, atol=2e-6)
        assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)
    packed = dataclasses.replace(asker, task_data=dataclasses.replace(READING, packing=True, length=48))
    assert [answer["label"] for answer in answers(packed, path)] == [answer["label"] for answer in found]
    labels = [line.split("\t")[0] for line in (tmp_path / "data" / "dev.tsv").read_text().splitlines()[1:]]
    right = sum(answer["label"] == label for answer, label in zip(found, labels, strict=True))
    assert asker.evaluate(data)["dev"]["accuracy"] == right / 23
    # The second chunk is broken, and the first one is answered.
    path.write_text(path.read_text().replace(f"{texts[7]}\n", f"{texts[7]}\tmore\n", 1))
    stream = asker.predict(path)
    assert [next(stream)["label"] for _ in range(5)] == [answer["label"] for answer in found[:5]]
    with pytest.raises(UserError, match=r"rows\.tsv, line [0-9]+ has 2 fields"):
        next(stream)


def test_scores_of_texts(runs, tmp_path, few):
    asker = Predictor.load(runs("regress"))
    write_table(tmp_path / "rows.tsv", ("text",), [("alpha",), ("golf golf",), ("lima kilo",)] * 4)
    found = answers(asker, tmp_path / "rows.tsv")
    assert [set(answer) for answer in found] == [{"id", "score"}] * 12
    model = asker.bert
    pooled = model.encode(["alpha", "golf golf", "lima kilo"] * 4).pooled
    scores = pooled @ model.params["regress"]["kernel"] + model.params["regress"]["bias"]
    np.testing.assert_allclose([answer["score"] for answer in found], scores[:, 0], atol=1e-5)


def test_pairs_of_glue_are_read_by_its_columns_or_ones_own(runs, tmp_path):
    asker = Predictor.load(runs("mnli"))
    rows = [row[:2] for row in inferred(random.Random(1), 7)]
    write_table(tmp_path / "glue.tsv", ("index", "sentence1", "sentence2"), [(9, *row) for row in rows])
    write_table(tmp_path / "own.tsv", ("premise", "hypothesis"), rows)
    expected = answers(asker, tmp_path / "glue.tsv")
    with pytest.raises(UserError, match=r"own\.tsv has no column 'sentence1' but 'premise', 'hypothesis'. Name the columns with"):
        answers(asker, tmp_path / "own.tsv")
    # As the sentence says.
    own = dataclasses.replace(asker, task_data=dataclasses.replace(READING, text="premise", text_b="hypothesis"))
    assert answers(own, tmp_path / "own.tsv") == expected


def test_words_are_tagged_in_their_order(runs, tmp_path, few):
    """With and without tags in the file; a document is not torn apart."""
    asker, data = Predictor.load(runs("ner")), write_data(tmp_path / "data", "ner", dev=12)
    lines = (tmp_path / "data" / "dev.txt").read_text().splitlines()
    (tmp_path / "words.txt").write_text("\n".join(line.split(" ")[0] for line in lines) + "\n")
    found = answers(asker, f"{data}/dev.txt")
    assert answers(asker, tmp_path / "words.txt") == found
    at = {number: line.split(" ")[0] for number, line in enumerate(lines, 1)}
    for sentence in found:
        assert set(sentence) == {"line", "word_ids", "tags"}
        assert len(sentence["word_ids"]) == len(sentence["tags"])
        assert set(sentence["tags"]) <= {"B-LOC", "B-PER", "O"}
        assert sentence["word_ids"] == [at[sentence["line"] + number] for number in range(len(sentence["word_ids"]))]
    gold = [line.split(" ")[1] for line in lines if line and "DOCSTART" not in line]
    tags = [tag for sentence in found for tag in sentence["tags"]]
    accuracy = sum(a == b for a, b in zip(gold, tags, strict=True)) / len(gold)
    assert asker.evaluate(data)["dev"]["accuracy"] == pytest.approx(accuracy)


def test_questions_are_answered_in_their_order(runs, tmp_path, few):
    """Answers are parts of their contexts; as many as the original's file has, best first."""
    asker, data = Predictor.load(runs("squad")), write_data(tmp_path / "data", "squad", dev=13)
    content = json.loads((tmp_path / "data" / "dev-v1.1.json").read_text())
    contexts = {entry["qas"][0]["id"]: entry["context"] for entry in content["data"][0]["paragraphs"]}
    found = answers(asker, f"{data}/dev-v1.1.json")
    assert [answer["id"] for answer in found] == [*contexts]
    for answer in found:
        assert answer["answer"] in contexts[answer["id"]]
        assert answer["candidates"][0]["text"] == answer["answer"]
        shares = [candidate["probability"] for candidate in answer["candidates"]]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1)
    exact = sum(answer["answer"] == KEY for answer in found)
    assert asker.evaluate(data)["dev"]["exact"] == pytest.approx(100 * exact / 13)


def test_right_endings_in_a_file_are_not_looked_at(runs, tmp_path, few):
    data = write_data(tmp_path / "data", "swag", dev=12)
    asker, path = Predictor.load(runs("swag")), tmp_path / "data" / "val.csv"
    expected = answers(asker, path)
    assert [answer["id"] for answer in expected] == [f"q{number}" for number in range(12)]
    for answer in expected:
        assert len(answer["probabilities"]) == 3
        assert answer["choice"] == int(np.argmax(answer["probabilities"]))
    rows = [line.rsplit(",", 1) for line in path.read_text().splitlines()]
    right = sum(int(row[1]) == answer["choice"] for row, answer in zip(rows[1:], expected, strict=True))
    assert asker.evaluate(data)["dev"]["accuracy"] == right / 12
    (tmp_path / "none.csv").write_text("".join(row[0] + "\n" for row in rows))
    assert answers(asker, tmp_path / "none.csv") == expected
    for name, label in {"unknown": "gold", "empty": ""}.items():
        (tmp_path / f"{name}.csv").write_text(f"{rows[0][0]},label\n" + "".join(f"{row[0]},{label}\n" for row in rows[1:]))
        assert answers(asker, tmp_path / f"{name}.csv") == expected, name


def test_many_windows_of_one_question(runs, tmp_path, few):
    """A context of many windows among short ones, at the border of a chunk."""
    directory = tmp_path / "data"
    directory.mkdir()
    write_squad(directory, {"dev": 11}, random.Random(3))
    content = json.loads((directory / "dev-v1.1.json").read_text())
    content["data"][0]["paragraphs"][4]["context"] += " lima kilo" * 60
    (directory / "dev-v1.1.json").write_text(json.dumps(content))
    asker = Predictor.load(runs("squad"))
    found = answers(asker, directory / "dev-v1.1.json")
    asker.evaluate(str(directory), out=tmp_path / "out")
    assert {answer["id"]: answer["answer"] for answer in found} == json.loads((tmp_path / "out" / "predictions.json").read_text())
