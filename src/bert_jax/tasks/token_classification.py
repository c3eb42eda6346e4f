"""Token classification of CoNLL files: named entities and parts of speech (Devlin et al. 2018, section 5.3)."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from etils import epath

from bert_jax.config.finetuning import Scheme
from bert_jax.errors import BertWarning, UserError
from bert_jax.tasks import conll
from bert_jax.tasks.conll import Sentence
from bert_jax.tasks.example import EncodedText, Example, Outputs, Scores, Source, Split, StreamChunk, find_split
from bert_jax.tasks.label_layout import TokenLabels
from bert_jax.tasks.tag_scores import Tags
from bert_jax.tokenizers import Tokenizer

Context = Literal["document", "sentence"]
"""What surrounds a word in a window: as much of its document as fits, as in the paper, or its sentence alone."""

_FILES = {
    "train": ("train", "eng.train"),
    "dev": ("dev", "valid", "validation", "testa", "eng.testa"),
    "test": ("test", "testb", "eng.testb"),
}
_ENDINGS = [f"{ending}{packed}" for ending in ("", ".conll", ".txt", ".bio", ".iob2", ".tsv") for packed in ("", ".gz")]
_PREDICTIONS = "predictions.conll"
# Sentences that are read and tagged at a time, rounded up to whole documents.
_CHUNK = 1024


class TagWindow(NamedTuple):
    """A window of text, and the words that are scored in it."""

    example: Example
    """``label`` int32 [N] has the index of the tag at the first token of each scored word, and -1 elsewhere."""
    words: np.ndarray
    """int32 [K, 2], indices of the sentence and of the word in it, in order."""
    places: np.ndarray
    """int32 [K], indices in ``ids`` of the first token of each of these words."""


@dataclasses.dataclass(frozen=True)
class TokenClassification:
    """A tag for each word, predicted at its first token.

    Examples:
      >>> from bert_jax.tasks.tag_scores import entity_scores
      >>> TokenClassification("ner", kind="ner", main_score="f1", score_tags=entity_scores).outputs(("B-LOC", "I-LOC", "O"))
      3
    """

    name: str
    kind: conll.Kind
    main_score: str
    score_tags: Callable[[Tags, Tags, Sequence[str], Scheme], Scores]
    """Computes scores from right tags, predicted tags, the names of all tags, and their scheme."""

    head = "token_classification"
    dev_splits = ("dev",)
    perfect = 1.0
    named_outputs = True

    def outputs(self, labels: Sequence[str]) -> int:
        """One for each tag."""
        return len(labels)

    def label_layout(self, outputs: int) -> TokenLabels:
        """int32 [B, S]."""
        return TokenLabels()

    def train(self, source: Source) -> tuple[list[Example], tuple[str, ...]]:
        """Windows of the training text and the sorted tags."""
        sentences = self._read(source, "train")
        labels = conll.labels(sentences)
        return [window.example for window in _encode(source, sentences, labels)], labels

    def split(self, source: Source, name: str, labels: Sequence[str], *, threshold: float = 0.0) -> Split:
        """A split with its scores; predictions are written as a file for conlleval."""
        sentences = self._read(source, name)
        windows = _encode(source, sentences, labels)
        gold = [sentence.tags or () for sentence in sentences]

        def score(outputs: Outputs) -> Scores:
            return self.score_tags(gold, decode(windows, outputs, sentences, labels), labels, source.task_data.scheme)

        def write(outputs: Outputs, directory: epath.Path) -> None:
            conll.write(directory / _PREDICTIONS, sentences, decode(windows, outputs, sentences, labels))

        return Split([window.example for window in windows], score, write, (_PREDICTIONS,))

    def stream(
        self, source: Source, path: epath.PathLike, labels: Sequence[str], *, threshold: float = 0.0
    ) -> Iterator[StreamChunk]:
        """The sentences of a file, about a thousand at a time, in whole documents."""
        for sentences in _document_chunks(conll.read(path, tagged=False)):
            windows = _encode(source, sentences, labels)
            yield StreamChunk([window.example for window in windows], functools.partial(_results, windows, sentences, labels))

    def facts(self, source: Source, split: str) -> dict[str, str | int]:
        """The file."""
        return {"file": str(find_split(source.data, split, _FILES, _ENDINGS))}

    def constant_score(self, examples: Sequence[Example], labels: Sequence[str], split: Split) -> float:
        """Score of the most frequent tag of the training text."""
        known = np.concatenate([example.label for example in examples if example.label is not None])
        constant = np.eye(len(labels))[np.argmax(np.bincount(known[known >= 0], minlength=len(labels)))]
        outputs = [np.tile(constant, (len(example.texts[0].ids), 1)) for example in split.examples]
        return split.score(outputs)[self.main_score]

    def _read(self, source: Source, split: str) -> list[Sentence]:
        sentences = conll.read(find_split(source.data, split, _FILES, _ENDINGS))
        conll.check_tags(sentences, self.kind, source.task_data.scheme)
        return sentences


def tag_ids(sentences: Iterable[Sentence], labels: Sequence[str]) -> list[np.ndarray]:
    """Indices of the tags of each sentence, int32 [words]; -1 for a tag that is not among the labels.

    Such a tag can be neither learned nor predicted: it has no loss, and counts as wrong in the scores, which compare tags.

    Raises:
      UserError: a sentence has no tags.

    Warns:
      BertWarning: there are such tags; it counts them and names the first by file and line.
    """
    index = {label: index for index, label in enumerate(labels)}
    encoded, unknown, first = [], 0, ""
    for sentence in sentences:
        if sentence.tags is None:
            raise UserError(f"{sentence.at(0)}: the sentence has no tags.")
        row = np.array([index.get(tag, -1) for tag in sentence.tags], np.int32)
        for word in np.flatnonzero(row < 0).tolist():
            first = first or f"{sentence.at(word)}: the tag {sentence.tags[word]!r}"
            unknown += 1
        encoded.append(row)
    if unknown:
        more = "" if unknown == 1 else f", the first of {unknown:,} such words,"
        warnings.warn(f"{first}{more} is not among the labels of the training data; it counts as wrong.", BertWarning, stacklevel=2)
    return encoded


def encode(
    tokenizer: Tokenizer,
    sentences: Sequence[Sentence],
    labels: Sequence[str],
    *,
    sequence_length: int = 128,
    context: Context = "document",
) -> list[TagWindow]:
    """Windows of documents or sentences, in order, in which each word is scored once, at its first token.

    A text that does not fit is cut between words into windows that overlap by half, or by less next to a long word. A word is
    scored in the window in which it has most context: most tokens on the side that has fewer. Sentences of a document are
    joined without a separator. A word without tokens becomes [UNK]; a word longer than a window loses its end.

    Args:
      tokenizer: the model's; words are tokenized one by one.
      sentences: sentences of any number of files.
      labels: tags in the order of the model's outputs; unused if no sentence has tags.
      sequence_length: maximum tokens of a window, special tokens included.
      context: see ``Context``.

    Raises:
      UserError: the sequence length leaves no room for text, or some sentences have tags and others have none.
    """
    if context not in get_args(Context):
        raise UserError(f"context is {context!r}; choose one of {', '.join(get_args(Context))}.")
    if sequence_length < 3:
        raise UserError(f"A sequence_length of {sequence_length} tokens leaves no room for text; use at least 3.")
    special_tokens = tokenizer.special_tokens
    sizes = np.array([len(sentence.words) for sentence in sentences], np.int64)
    all_words = [word for sentence in sentences for word in sentence.words]
    tokens, offsets = _tokenize(tokenizer, all_words, sequence_length - 2)
    tags = np.full(len(offsets) - 1, -1, np.int32)
    tagged = any(sentence.tags is not None for sentence in sentences)
    if tagged:
        tags = np.concatenate(tag_ids(sentences, labels))
    sentence_ids = np.repeat(np.arange(len(sizes)), sizes)
    words = np.stack([sentence_ids, np.arange(len(sentence_ids)) - (np.cumsum(sizes) - sizes)[sentence_ids]], 1).astype(np.int32)
    windows = []
    for begin, stop in _texts(sentences, sizes, context):
        for start, end, first, last in _windows(offsets[begin : stop + 1], sequence_length - 2):
            row = tokens[offsets[begin + start] : offsets[begin + end]]
            ids = np.array([special_tokens.cls, *row, special_tokens.sep], np.int32)
            scored = slice(begin + first, begin + last)
            places = (offsets[scored] - offsets[begin + start] + 1).astype(np.int32)
            label = np.full(len(ids), -1, np.int32)
            label[places] = tags[scored]
            example = Example((EncodedText(ids, len(ids)),), label if tagged else None)
            windows.append(TagWindow(example, words[scored], places))
    return windows


def decode(
    windows: Sequence[TagWindow], predicted: Iterable[Any], sentences: Sequence[Sentence], labels: Sequence[str]
) -> list[tuple[str, ...]]:
    """Predicted tags of each sentence.

    Args:
      windows: the result of ``encode`` for the sentences.
      predicted: for each window logits [N, labels]; N may include padding after the window.
      sentences: the same sentences.
      labels: the same labels.

    Raises:
      UserError: predictions are missing, or are for other labels.
    """
    rows = [np.asarray(row) for row in predicted]
    if len(rows) != len(windows):
        raise UserError(f"Predictions of {len(rows):,} windows are given for {len(windows):,} windows.")
    starts = np.cumsum([0, *(len(sentence.words) for sentence in sentences)])
    tag_of_word = np.full(starts[-1], -1, np.int64)
    for position, (window, row) in enumerate(zip(windows, rows, strict=True), 1):
        size = len(window.example.texts[0].ids)
        if len(row) < size:
            raise UserError(f"Window {position} has {size} tokens; {len(row)} predictions are given for it.")
        if row.ndim != 2 or row.shape[1] != len(labels):
            raise UserError(f"Predictions of window {position} have shape {row.shape}; there are {len(labels)} labels.")
        tag_of_word[starts[window.words[:, 0]] + window.words[:, 1]] = row[window.places].argmax(-1)
    if np.any(tag_of_word < 0):
        raise UserError("Some words have no prediction; give all windows of the sentences.")
    names = [labels[tag] for tag in tag_of_word.tolist()]
    return [tuple(names[start:end]) for start, end in itertools.pairwise(starts.tolist())]


def _encode(source: Source, sentences: Sequence[Sentence], labels: Sequence[str]) -> list[TagWindow]:
    task_data = source.task_data
    return encode(source.tokenizer, sentences, labels, sequence_length=task_data.sequence_length, context=task_data.context)


def _results(
    windows: Sequence[TagWindow], sentences: Sequence[Sentence], labels: Sequence[str], outputs: Outputs
) -> list[dict[str, Any]]:
    return [
        {"line": sentence.line, "words": list(sentence.words), "tags": list(tags)}
        for sentence, tags in zip(sentences, decode(windows, outputs, sentences, labels), strict=True)
    ]


def _document_chunks(sentences: Sequence[Sentence]) -> Iterator[list[Sentence]]:
    """Chunks of whole documents, because the other sentences of a document are context."""
    chunk: list[Sentence] = []
    for _, document in itertools.groupby(sentences, key=lambda sentence: sentence.document):
        chunk += document
        if len(chunk) >= _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _tokenize(tokenizer: Tokenizer, words: Sequence[str], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of all words, at most ``most`` of each, int32 [N], and where each word begins and the last one ends, int64."""
    index: dict[str, int] = {}
    order = np.array([index.setdefault(word, len(index)) for word in words], np.int64)
    unknown = np.array([tokenizer.special_tokens.unk], np.int32)
    rows = [row.ids[:most] if len(row.ids) else unknown for row in tokenizer.encode([*index])]
    counts = np.array([len(row) for row in rows], np.int64)
    begins = np.cumsum(counts) - counts
    offsets = np.concatenate([[0], np.cumsum(counts[order])])
    tokens = np.concatenate([*rows, np.empty(0, np.int32)])
    return tokens[np.arange(offsets[-1]) + np.repeat(begins[order] - offsets[:-1], counts[order])], offsets


def _texts(sentences: Sequence[Sentence], sizes: np.ndarray, context: Context) -> Iterator[tuple[int, int]]:
    """First word and end of each text that is cut into windows."""
    keys = [(sentence.where, sentence.document, 0 if context == "document" else index) for index, sentence in enumerate(sentences)]
    begin = 0
    for _, group in itertools.groupby(range(len(keys)), keys.__getitem__):
        end = begin + int(sum(sizes[index] for index in group))
        if end > begin:
            yield begin, end
        begin = end


def _windows(offsets: np.ndarray, room: int) -> Iterator[tuple[int, int, int, int]]:
    """Windows of a text: first word and end of each, and first word and end of the words that are scored in it.

    Args:
      offsets: int64 [words + 1], tokens before each word, and all tokens.
      room: maximum tokens of a window; no word has more.
    """
    count, base = len(offsets) - 1, offsets - offsets[0]
    starts, ends = [0], [int(np.searchsorted(base, room, side="right")) - 1]
    while ends[-1] < count:
        half = int(np.searchsorted(base, base[starts[-1]] + room // 2, side="right")) - 1
        final = int(np.searchsorted(base, base[-1] - room))
        starts.append(min(max(half, starts[-1] + 1), final))
        ends.append(int(np.searchsorted(base, base[starts[-1]] + room, side="right")) - 1)
    # A word belongs to the later of two windows if it has at least as many tokens before it there as after it in the earlier
    # one; then the smaller of both numbers is no smaller there. Twice the middle of a word is compared with twice the middle
    # of the overlap.
    middles, borders = base[:-1] + base[1:], base[starts[1:]] + base[ends[:-1]]
    cuts = [0, *np.searchsorted(middles, borders).tolist(), count]
    for start, end, first, last in zip(starts, ends, cuts[:-1], cuts[1:], strict=True):
        if first < last:
            yield start, end, first, last
