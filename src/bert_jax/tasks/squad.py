"""SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018): questions from files, and windows of their contexts, as in ``run_squad.py``."""

from __future__ import annotations

import gzip
import math
import warnings
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from bert_jax.config.validation import parse_json, require
from bert_jax.errors import Doubt, UserError
from bert_jax.tasks.example import Part
from bert_jax.tokenizers import Tokenizer


class Answer(NamedTuple):
    """An annotated answer."""

    text: str
    start: int
    """Its first character in the context."""


class Question(NamedTuple):
    """A question about a text."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]
    """One when training, if the question is not impossible; several annotators' when evaluating. May be empty."""
    impossible: bool
    """The file says that the context holds no answer (SQuAD 2.0)."""
    where: str
    """File and id, for messages."""


class Feature(NamedTuple):
    """One window of a context, with its question."""

    question: int
    """Number of the question among those that were given."""
    part: Part
    """[CLS] question [SEP] window [SEP]."""
    offset: int
    """Place of the window's first piece in ``part.ids``."""
    spans: np.ndarray
    """int32 [C, 2], first character in the context of each piece of the window, and the one after its last."""
    max_context: np.ndarray
    """bool [C], whether no other window shows more on both sides of the piece; true for it in one window alone."""
    answer: np.ndarray | None
    """int32 [2], places of the answer's first and last piece in ``part.ids``; 0, 0 where the window does not hold all of it, or
    there is none. None when not training."""


def read(path: epath.PathLike, *, training: bool, skip_misplaced: bool = False) -> list[Question]:
    """Questions of a file in SQuAD's format, of either version, in order; ``.gz`` is unpacked.

    Args:
      path: a file, local or remote.
      training: whether answers are needed. Without, a question may have none: what has none is not answered (2.0) or not
        known, as in a test set. The original trains on files with one answer a question; of several, the first counts.
      skip_misplaced: pass over answers whose text is not at ``answer_start`` (the original warns and skips those it cannot find
        nearby): when training their questions are left out; else they stay, because scores look at the text alone.

    Raises:
      UserError: the file is missing or no such JSON, an id stands twice, something is missing or empty, an impossible question
        has answers, one that is not has none when training, or an answer is not where it should be. The sentence names the
        file and the question.

    Warns:
      Doubt: how many answers were passed over.
    """
    path = epath.Path(path)
    questions: list[Question] = []
    seen: set[str] = set()
    misplaced: list[str] = []
    for context, entry, where in _entries(_load(path), str(path)):
        question = _question(context, entry, where, str(path))
        require(question.id not in seen, f"{question.where}: the id stands twice; every question needs one of its own.")
        seen.add(question.id)
        require(
            not training or question.impossible or bool(question.answers),
            f"{question.where}: no answers; training needs one, or is_impossible set to true.",
        )
        wrong = [said for answer in question.answers if (said := _misplaced(question, answer))]
        misplaced += wrong[:1]
        require(not wrong or skip_misplaced, f"{''.join(wrong[:1])}; mend it, or skip such answers.")
        if not (wrong and training):
            questions.append(question)
    require(bool(questions), f"{path} holds no questions{' whose answers are where they should be' if misplaced else ''}.")
    if misplaced:
        done = "left out because" if training else "kept although"
        warnings.warn(
            f"{len(misplaced):,} of the questions of {path} were {done} an answer is misplaced; the first is {misplaced[0]}.",
            Doubt,
            stacklevel=2,
        )
    return questions


def features(
    tokenizer: Tokenizer, questions: Sequence[Question], *, length: int = 384, stride: int = 128, query: int = 64, training: bool
) -> list[Feature]:
    """Windows of all questions, in order: at least one for each.

    The original (``convert_examples_to_features``) finds an answer's pieces by tokenizing it once more and comparing; here
    characters are compared: from the first piece that holds one of the answer's to the last. Where the answer stands twice in
    a word ("1-1"), or its ends cut a piece, the original takes the first or the whole word instead.

    Args:
      tokenizer: the model's.
      questions: what :func:`read` returns, or a part of it.
      length: most pieces in a window, question and special pieces counted.
      stride: pieces from the start of one window to that of the next.
      query: pieces of a question that are kept.
      training: whether to find the places of the answers.

    Raises:
      UserError: ``length`` leaves no room for a context, a context has no pieces, or an answer has none.
    """
    require(stride > 0 and query >= 0, f"stride is {stride} and query {query}; they must be at least 1 and 0.")
    require(length > query + 3, f"length is {length}; it must be greater than query + 3, which is {query + 3}.")
    numbers = {context: number for number, context in enumerate(dict.fromkeys(question.context for question in questions))}
    contexts = tokenizer.align([*numbers])
    asked = tokenizer.encode([question.question for question in questions])
    cls, sep = tokenizer.specials.cls, tokenizer.specials.sep
    made: list[Feature] = []
    for number, (question, pieces) in enumerate(zip(questions, asked, strict=True)):
        context = contexts[numbers[question.context]]
        require(len(context.ids) > 0, f"{question.where}: the tokenizer finds nothing in its context; remove the question.")
        head = np.array([cls, *pieces.ids[:query].tolist(), sep], np.int32)
        starts, ends = _windows(len(context.ids), length - len(head) - 1, stride)
        best = _max_context(starts, ends)
        answer = _pieces(question, context.spans) if training else None
        for window, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
            ids = np.concatenate([head, context.ids[start:end], [sep]], dtype=np.int32)
            places = None
            if training:
                inside = answer is not None and start <= answer[0] and answer[1] < end
                shift = len(head) - start
                places = np.array([answer[0] + shift, answer[1] + shift] if answer and inside else [0, 0], np.int32)
            mine = np.ones(end - start, np.bool_) if best is None else best[start:end] == window
            made.append(Feature(number, Part(ids, len(head)), len(head), context.spans[start:end], mine, places))
    return made


def _windows(pieces: int, room: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """First piece of each window and the one after its last, int64 [W]; the last window ends with the text."""
    step = min(room, stride)
    starts = np.arange(1 + max(0, -(-(pieces - room) // step))) * step
    return starts, np.minimum(starts + room, pieces)


def _max_context(starts: np.ndarray, ends: np.ndarray) -> np.ndarray | None:
    """Number of the window in which each piece has the most on both sides, int64 [N]; None where there is one window."""
    if len(starts) == 1:
        return None
    places = np.arange(ends[-1])
    left, right = places - starts[:, None], ends[:, None] - 1 - places
    score = np.minimum(left, right) + 0.01 * (ends - starts)[:, None]
    # Of equal windows the first, as in the original.
    return np.where((left >= 0) & (right >= 0), score, -math.inf).argmax(axis=0)


def _pieces(question: Question, spans: np.ndarray) -> tuple[int, int] | None:
    """First and last piece of the context that hold a character of the answer; None for an impossible question."""
    if question.impossible:
        return None
    require(bool(question.answers), f"{question.where}: no answers; training needs one.")
    text, start = question.answers[0]
    first = int(np.searchsorted(spans[:, 1], start, side="right"))
    last = int(np.searchsorted(spans[:, 0], start + len(text), side="left")) - 1
    require(first <= last, f"{question.where}: the tokenizer finds nothing in its answer {text!r}; remove the question.")
    return first, last


def _load(path: epath.Path) -> Any:
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except (IsADirectoryError, NotADirectoryError):
        raise UserError(f"{path} is a directory, not a file of SQuAD's.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a whole gzip file: {error}.") from None
    return parse_json(content, str(path))


def _entries(value: Any, path: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The context, the object and the place of every question in the file."""
    for article, at in _each(value, "data", path):
        for paragraph, within in _each(article, "paragraphs", at):
            context = _text(paragraph, "context", within)
            for entry, where in _each(paragraph, "qas", within):
                yield context, entry, where


def _each(value: Any, key: str, where: str) -> Iterator[tuple[Any, str]]:
    require(isinstance(value, dict), f"{where} is {_kind(value)}, not an object with {key!r} as in SQuAD's files.")
    items = _get(value, key, where)
    require(isinstance(items, list), f"{where}: {key!r} is {_kind(items)}, not a list as in SQuAD's files.")
    return ((item, f"{where}, {key}[{number}]") for number, item in enumerate(items))


def _get(value: dict[str, Any], key: str, where: str) -> Any:
    require(key in value, f"{where} has no {key!r}; SQuAD's files have it.")
    return value[key]


def _kind(value: Any) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"


def _text(value: Any, key: str, where: str) -> str:
    require(isinstance(value, dict), f"{where} is {_kind(value)}, not an object with {key!r} as in SQuAD's files.")
    text = _get(value, key, where)
    require(isinstance(text, str) and bool(text.strip()), f"{where}: {key!r} is {_short(text)}; it must be text, not empty.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: {key!r} holds half a surrogate pair; the text is damaged.") from None
    return text


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _question(context: str, entry: Any, where: str, path: str) -> Question:
    name = _text(entry, "id", where)
    where = f"{path}, question {name!r}"
    impossible = entry.get("is_impossible", False)
    require(isinstance(impossible, bool), f"{where}: is_impossible is {_short(impossible)}; it must be true or false.")
    answers = tuple(_answer(answer, place) for answer, place in _each({"answers": [], **entry}, "answers", where))
    if impossible and answers:
        raise UserError(f"{where}: is_impossible is true, but there is the answer {_short(answers[0].text)}.")
    return Question(name, _text(entry, "question", where), context, answers, impossible, where)


def _answer(value: Any, where: str) -> Answer:
    text = _text(value, "text", where)
    start = _get(value, "answer_start", where)
    right = isinstance(start, int) and not isinstance(start, bool) and start >= 0
    require(right, f"{where}: answer_start is {_short(start)}; it must be the number of a character.")
    return Answer(text, start)


def _misplaced(question: Question, answer: Answer) -> str:
    """What is wrong with the place of an answer; empty if it is right."""
    there = question.context[answer.start : answer.start + len(answer.text)]
    if there == answer.text:
        return ""
    found = f"stands {_short(there)}" if there else f"the context has ended (it has {len(question.context):,} characters)"
    return f"{question.where}: the answer {_short(answer.text)} should be at character {answer.start}, but there {found}"
