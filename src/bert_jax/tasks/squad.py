"""SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018): reading of questions, and windows of contexts as in ``run_squad.py``."""

from __future__ import annotations

import gzip
import math
import warnings
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from bert_jax.errors import BertWarning, UserError
from bert_jax.io.parsing import check_text, parse_json
from bert_jax.tasks.example import EncodedText
from bert_jax.tokenizers import Tokenizer


class Answer(NamedTuple):
    """An annotated answer."""

    text: str
    start: int
    """Index of its first character in the context."""


class Question(NamedTuple):
    """A question about a text."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]
    """One answer for training, those of several annotators for evaluation; empty if there is none or it is unknown."""
    impossible: bool
    """Whether the file marks the question as one without an answer in the context (SQuAD 2.0)."""
    where: str
    """File and id, for messages."""


class Feature(NamedTuple):
    """One window of a context, with its question."""

    question: int
    """Index of the question."""
    text: EncodedText
    """[CLS] question [SEP] window [SEP]."""
    offset: int
    """Index of the window's first token in ``text.ids``."""
    spans: np.ndarray
    """int32 [C, 2], start and end of the characters of each token of the window in the context; the end is exclusive."""
    max_context: np.ndarray
    """bool [C], whether this window has the most context on both sides of the token; true in exactly one window."""
    answer: np.ndarray | None
    """int32 [2], indices of the answer's first and last token in ``text.ids``; 0, 0 if the window does not contain all of it or
    there is none. None for evaluation."""


def read(path: epath.PathLike, *, training: bool, skip_misplaced: bool = False) -> list[Question]:
    """Questions of a file in the format of SQuAD 1.1 or 2.0, in order; ``.gz`` is decompressed.

    Args:
      path: a file, local or remote.
      training: whether answers are needed. For evaluation a question may have none, because it is impossible or, as in a test
        set, its answers are unknown. The original trains on one answer for each question; of several the first counts.
      skip_misplaced: accept answers with a text that is not at ``answer_start`` (the original warns, and skips those that it
        cannot find nearby). For training their questions are left out; for evaluation they are kept, because scores compare
        texts only.

    Raises:
      UserError: the file is missing or has another format, an id occurs twice, a value is missing or empty, an impossible
        question has answers, another one has none in training, or an answer is misplaced. The sentence names the file and
        the question.

    Warns:
      BertWarning: the number of misplaced answers.
    """
    path = epath.Path(path)
    questions: list[Question] = []
    seen: set[str] = set()
    misplaced: list[str] = []
    for context, entry, where in _entries(_load(path), str(path)):
        question = _question(context, entry, where, str(path))
        if question.id in seen:
            raise UserError(f"{question.where}: the id occurs twice; give every question a unique id.")
        seen.add(question.id)
        if training and not question.impossible and not question.answers:
            raise UserError(f"{question.where}: no answers; training needs one, or is_impossible set to true.")
        errors = [error for answer in question.answers if (error := _misplaced(question, answer))]
        misplaced += errors[:1]
        if errors and not skip_misplaced:
            raise UserError(f"{errors[0]}; repair it, or use --skip-misplaced.")
        if not (errors and training):
            questions.append(question)
    if not questions:
        raise UserError(f"{path} holds no questions{' with answers at their places' if misplaced else ''}.")
    if misplaced:
        action = "left out because" if training else "kept although"
        warnings.warn(
            f"{len(misplaced):,} of the questions of {path} were {action} an answer is misplaced; the first is {misplaced[0]}.",
            BertWarning,
            stacklevel=2,
        )
    return questions


def features(
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    *,
    sequence_length: int = 384,
    doc_stride: int = 128,
    max_query_length: int = 64,
    training: bool,
) -> list[Feature]:
    """Windows of all questions, in order; at least one for each.

    The original (``convert_examples_to_features``) finds the tokens of an answer by tokenizing it again and comparing tokens.
    This function compares characters: the answer runs from the first token with one of its characters to the last. If the
    answer occurs twice in a word ("1-1"), or its ends cut a token, the original takes the first or the whole word instead.

    Args:
      tokenizer: the model's.
      questions: consecutive questions from ``read``.
      sequence_length: maximum tokens of a window, question and special tokens included.
      doc_stride: tokens from the start of one window to the start of the next.
      max_query_length: maximum tokens of a question; the others are cut off.
      training: whether to find the tokens of the answers.

    Raises:
      UserError: ``sequence_length`` leaves no room for a context, or a context or an answer has no tokens.
    """
    if doc_stride <= 0 or max_query_length < 0:
        raise UserError(f"doc_stride is {doc_stride} and max_query_length {max_query_length}; they must be at least 1 and 0.")
    least = max_query_length + 3
    if sequence_length <= least:
        raise UserError(f"sequence_length is {sequence_length}; it must be greater than max_query_length + 3, which is {least}.")
    index = {context: index for index, context in enumerate(dict.fromkeys(question.context for question in questions))}
    contexts = tokenizer.align([*index])
    queries = tokenizer.encode([question.question for question in questions])
    cls, sep = tokenizer.special_tokens.cls, tokenizer.special_tokens.sep
    windows: list[Feature] = []
    for question_index, (question, query) in enumerate(zip(questions, queries, strict=True)):
        context = contexts[index[question.context]]
        if not len(context.ids):
            raise UserError(f"{question.where}: the context has no tokens; remove the question.")
        head = np.array([cls, *query.ids[:max_query_length].tolist(), sep], np.int32)
        starts, ends = _windows(len(context.ids), sequence_length - len(head) - 1, doc_stride)
        best = _max_context(starts, ends)
        answer = _answer_tokens(question, context.spans) if training else None
        for window, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
            ids = np.concatenate([head, context.ids[start:end], [sep]], dtype=np.int32)
            places = None
            if training:
                inside = answer is not None and start <= answer[0] and answer[1] < end
                shift = len(head) - start
                places = np.array([answer[0] + shift, answer[1] + shift] if answer and inside else [0, 0], np.int32)
            max_context = np.ones(end - start, np.bool_) if best is None else best[start:end] == window
            text = EncodedText(ids, len(head))
            windows.append(Feature(question_index, text, len(head), context.spans[start:end], max_context, places))
    return windows


def _windows(tokens: int, room: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and exclusive end of each window, int64 [W]; the last window ends with the text."""
    step = min(room, stride)
    starts = np.arange(1 + max(0, -(-(tokens - room) // step))) * step
    return starts, np.minimum(starts + room, tokens)


def _max_context(starts: np.ndarray, ends: np.ndarray) -> np.ndarray | None:
    """Index of the window in which each token has the most context on both sides, int64 [N]; None if there is one window."""
    if len(starts) == 1:
        return None
    places = np.arange(ends[-1])
    left, right = places - starts[:, None], ends[:, None] - 1 - places
    score = np.minimum(left, right) + 0.01 * (ends - starts)[:, None]
    # Of equal windows the first, as in the original.
    return np.where((left >= 0) & (right >= 0), score, -math.inf).argmax(axis=0)


def _answer_tokens(question: Question, spans: np.ndarray) -> tuple[int, int] | None:
    """First and last token of the context with a character of the answer; None for an impossible question."""
    if question.impossible:
        return None
    if not question.answers:
        raise UserError(f"{question.where}: no answers; training needs one.")
    text, start = question.answers[0]
    first = int(np.searchsorted(spans[:, 1], start, side="right"))
    last = int(np.searchsorted(spans[:, 0], start + len(text), side="left")) - 1
    if first > last:
        raise UserError(f"{question.where}: the answer {text!r} has no tokens; remove the question.")
    return first, last


def _load(path: epath.Path) -> Any:
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except (IsADirectoryError, NotADirectoryError):
        raise UserError(f"{path} is a directory, not a file of SQuAD.") from None
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
    if not isinstance(value, dict):
        raise UserError(f"{where} is {_kind(value)}, not an object with {key!r} as in SQuAD's files.")
    items = _get(value, key, where)
    if not isinstance(items, list):
        raise UserError(f"{where}: {key!r} is {_kind(items)}, not a list as in SQuAD's files.")
    return ((item, f"{where}, {key}[{index}]") for index, item in enumerate(items))


def _get(value: dict[str, Any], key: str, where: str) -> Any:
    if key not in value:
        raise UserError(f"{where} has no {key!r}; SQuAD's files have it.")
    return value[key]


def _kind(value: Any) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"


def _text(value: Any, key: str, where: str) -> str:
    if not isinstance(value, dict):
        raise UserError(f"{where} is {_kind(value)}, not an object with {key!r} as in SQuAD's files.")
    text = _get(value, key, where)
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: {key!r} is {_short(text)}; it must be text, not empty.")
    return check_text(text, f"{where}: {key!r}")


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _question(context: str, entry: Any, where: str, path: str) -> Question:
    question_id = _text(entry, "id", where)
    where = f"{path}, question {question_id!r}"
    impossible = entry.get("is_impossible", False)
    if not isinstance(impossible, bool):
        raise UserError(f"{where}: is_impossible is {_short(impossible)}; it must be true or false.")
    answers = tuple(_answer(answer, place) for answer, place in _each({"answers": [], **entry}, "answers", where))
    if impossible and answers:
        raise UserError(f"{where}: is_impossible is true, but there is the answer {_short(answers[0].text)}.")
    return Question(question_id, _text(entry, "question", where), context, answers, impossible, where)


def _answer(value: Any, where: str) -> Answer:
    text = _text(value, "text", where)
    start = _get(value, "answer_start", where)
    if not isinstance(start, int) or isinstance(start, bool) or start < 0:
        raise UserError(f"{where}: answer_start is {_short(start)}; it must be the index of a character.")
    return Answer(text, start)


def _misplaced(question: Question, answer: Answer) -> str:
    """What is wrong with the place of an answer; empty if nothing is."""
    text = question.context[answer.start : answer.start + len(answer.text)]
    if text == answer.text:
        return ""
    length = f"{len(question.context):,} characters"
    actual = f"the context has {_short(text)} there" if text else f"the context ends before (it has {length})"
    return f"{question.where}: the answer {_short(answer.text)} should be at character {answer.start}, but {actual}"
