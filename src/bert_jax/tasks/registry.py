"""Every task by its name: what is learned, how it is scored, how a stream of questions is answered."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from bert_jax.config.validation import require
from bert_jax.tasks import conll, metrics, question_answering, sequence, swag, tagging
from bert_jax.tasks.conll import Sentence
from bert_jax.tasks.example import Asked, Example, Scores, Source, Split, find_split, probabilities
from bert_jax.tasks.metrics import entities

_CHUNK = 1024


def head(task: str) -> str:
    """The head that a task stands on."""
    return {"squad": "span", "squad2": "span", "swag": "choose", "ner": "tag", "pos": "tag"}.get(task) or sequence.head(task)


def main_score(task: str) -> str:
    """The score by which models of a task are compared, greater being better."""
    known = {"squad": "f1", "squad2": "best_f1", "swag": "accuracy", "ner": "f1", "pos": "accuracy"}
    return known.get(task) or sequence.main_score(task)


def outputs(task: str, labels: Sequence[str]) -> int:
    """Outputs of a task's head."""
    return {"span": 2, "choose": 1, "regress": 1}.get(head(task), len(labels))


def splits(task: str) -> tuple[str, ...]:
    """Splits that a task is evaluated on after training, the one that counts first."""
    return ("dev",) if head(task) in ("span", "choose", "tag") else sequence.splits(task)


def train(source: Source) -> tuple[list[Example], tuple[str, ...]]:
    """Training examples, and the names of the head's outputs where they have any.

    Raises:
      UserError: a file is missing or refused; the sentence names file and line, or the question.
    """
    kind = head(source.task)
    if kind == "span":
        return question_answering.train(source), ()
    if kind == "choose":
        questions = _labelled(swag.read(find_split(source.data, "train", _SWAG, _SWAG_ENDINGS)))
        return swag.examples(source.tokenizer, questions, length=source.reading.length), ()
    if kind == "tag":
        read = _tagged(source, "train")
        labels = conll.labels(read)
        return [window.example for window in _windows(source, read, labels)], labels
    return sequence.train(source)


def split(source: Source, name: str, labels: Sequence[str], *, threshold: float = 0.0) -> Split:
    """A split with its official scores.

    Args:
      source: the task.
      name: "dev" or "test"; of MNLI also "dev_mismatched" and "test_mismatched".
      labels: names of the model's outputs, in their order.
      threshold: of SQuAD 2.0, the null odds above which no answer is given.

    Raises:
      UserError: as :func:`train`; or it holds a label that the model does not know.
    """
    kind = head(source.task)
    if kind == "span":
        return question_answering.split(source, name, threshold)
    if kind == "choose":
        questions = swag.read(find_split(source.data, name, _SWAG, _SWAG_ENDINGS))
        examples = swag.examples(source.tokenizer, questions, length=source.reading.length)
        ids = [question.id for question in questions]
        return Split(examples, functools.partial(_right, questions), lambda found, path: _write_swag(ids, found, path))
    if kind == "tag":
        return _tag_split(source, name, labels)
    return sequence.split(source, name, labels)


def stream(source: Source, path: epath.PathLike, labels: Sequence[str], *, threshold: float = 0.0) -> Iterator[Asked]:
    """The questions of a file, as many at a time as are answered at a time; arguments as for :func:`split`."""
    kind = head(source.task)
    if kind == "span":
        yield from question_answering.stream(source, path, threshold)
    elif kind == "choose":
        questions = iter(swag.read(path, labelled=False))
        while chunk := list(itertools.islice(questions, _CHUNK)):
            examples = swag.examples(source.tokenizer, chunk, length=source.reading.length)
            yield Asked(examples, functools.partial(_choices, [question.id for question in chunk]))
    elif kind == "tag":
        read = conll.read(path, tagged=False)
        # A document is not torn apart.
        for part in _documents(read):
            windows = _windows(source, [sentence._replace(tags=None) for sentence in part], labels)
            yield Asked([window.example for window in windows], functools.partial(_tags, windows, part, labels))
    else:
        yield from sequence.stream(source, path, labels)


def _documents(read: Sequence[Sentence]) -> Iterator[list[Sentence]]:
    chunk: list[Sentence] = []
    for _, document in itertools.groupby(read, key=lambda sentence: sentence.document):
        chunk += document
        if len(chunk) >= _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _tagged(source: Source, name: str) -> list[Sentence]:
    read = conll.read(find_split(source.data, name, _CONLL, _CONLL_ENDINGS))
    if source.reading.scheme == "strict":
        conll.check_tags(read, "ner" if source.task == "ner" else "pos")
    return read


def _windows(source: Source, read: Sequence[Sentence], labels: Sequence[str]) -> list[tagging.Tagged]:
    reading = source.reading
    return tagging.examples(source.tokenizer, read, labels, length=reading.length, context=reading.context)


def _tag_split(source: Source, name: str, labels: Sequence[str]) -> Split:
    read = _tagged(source, name)
    windows = _windows(source, read, labels)
    gold = [sentence.tags or () for sentence in read]

    def score(found: Sequence[np.ndarray]) -> Scores:
        predicted = tagging.decode(windows, found, read, labels)
        if source.task == "ner":
            scores = entities.score(gold, predicted)
            return {name: value for name, value in scores.items() if name != "by_type"}
        flat = ([tag for tags in side for tag in tags] for side in (gold, predicted))
        names = {tag: number for number, tag in enumerate(dict.fromkeys(itertools.chain(labels, *gold)))}
        numbers = (np.array([names[tag] for tag in side]) for side in flat)
        return metrics.score(("accuracy", "macro_f1"), *numbers)

    def write(found: Sequence[np.ndarray], directory: epath.Path) -> None:
        conll.write(directory / "predictions.conll", read, tagging.decode(windows, found, read, labels))

    return Split([window.example for window in windows], score, write)


def _tags(
    windows: Sequence[tagging.Tagged], read: Sequence[Sentence], labels: Sequence[str], found: Sequence[np.ndarray]
) -> list[dict[str, Any]]:
    # Sentences of a part of a file are numbered from its start.
    predicted = tagging.decode(windows, found, read, labels)
    return [
        {"line": sentence.line, "words": list(sentence.words), "tags": list(tags)}
        for sentence, tags in zip(read, predicted, strict=True)
    ]


def _labelled(questions: list[swag.Question]) -> list[swag.Question]:
    unknown = [question.where for question in questions if question.label is None]
    require(not unknown, f"{(unknown or [''])[0]} has no label; training and scoring need one.")
    return questions


def _right(questions: list[swag.Question], found: Sequence[np.ndarray]) -> Scores:
    gold = np.array([question.label for question in _labelled(questions)])
    return metrics.score(("accuracy",), gold, np.array([np.argmax(each) for each in found]))


def _choices(ids: Sequence[str], found: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    return [
        {"id": name, "choice": int(np.argmax(each)), "probabilities": [round(float(share), 6) for share in probabilities(each)]}
        for name, each in zip(ids, found, strict=True)
    ]


def _write_swag(ids: Sequence[str], found: Sequence[np.ndarray], directory: epath.Path) -> None:
    swag.write(directory / "predictions.csv", ids, [int(np.argmax(each)) for each in found])


_CONLL = {
    "train": ("train", "eng.train"),
    "dev": ("dev", "valid", "validation", "testa", "eng.testa"),
    "test": ("test", "testb", "eng.testb"),
}
_CONLL_ENDINGS = [f"{ending}{packed}" for ending in ("", ".conll", ".txt", ".bio", ".iob2", ".tsv") for packed in ("", ".gz")]
_SWAG = {"train": ("train",), "dev": ("val", "dev"), "test": ("test",)}
_SWAG_ENDINGS = (".csv", ".csv.gz")
