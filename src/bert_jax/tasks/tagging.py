"""Words with tags as windows of word pieces, and predictions back as tags (section 5.3 of the paper)."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from bert_jax.config.validation import require
from bert_jax.errors import Doubt
from bert_jax.tasks.conll import Sentence
from bert_jax.tasks.example import Example, Part
from bert_jax.tokenizers import Tokenizer

Context = Literal["document", "sentence"]
"""What is around a word: "document", as much of its document as fits, as in the paper; "sentence", its sentence."""


class Tagged(NamedTuple):
    """A window of text for the model, and which words are scored in it."""

    example: Example
    """One part; ``label`` int32 [N] has the number of the tag at the first piece of each scored word and -1 elsewhere."""
    words: np.ndarray
    """int32 [K, 2], numbers of the sentence and of the word in it, in order."""
    places: np.ndarray
    """int32 [K], where in ``ids`` the first piece of each of these words is."""


def encode(sentences: Iterable[Sentence], labels: Sequence[str]) -> list[np.ndarray]:
    """Numbers of the tags of each sentence, int32 [words]; -1 where the tag is not among the labels.

    Such a tag can be neither learnt nor predicted: no loss is taken there, and scores, which compare tags, count it as
    wrong. One Doubt says how many there are and names the first by file and line.

    Raises:
      UserError: a sentence has no tags.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    encoded, strange, first = [], 0, ""
    for sentence in sentences:
        require(sentence.tags is not None, f"{sentence.at(0)}: the sentence has no tags.")
        row = np.array([numbers.get(tag, -1) for tag in sentence.tags or ()], np.int32)
        for word in np.flatnonzero(row < 0).tolist():
            first = first or f"{sentence.at(word)}: the tag {(sentence.tags or ())[word]!r}"
            strange += 1
        encoded.append(row)
    if strange:
        more = "" if strange == 1 else f", the first of {strange:,} such words,"
        warnings.warn(f"{first}{more} is not among the labels of the training data; it counts as wrong.", Doubt, stacklevel=2)
    return encoded


def examples(
    tokenizer: Tokenizer,
    sentences: Sequence[Sentence],
    labels: Sequence[str],
    *,
    length: int = 128,
    context: Context = "document",
) -> list[Tagged]:
    """Windows of documents or sentences, in order, in which each word is scored once, at its first piece.

    A text that does not fit is cut between words into windows that overlap by half, or by less where a long word stands at
    the border. A word is scored in the window where it stands deepest: with most pieces on the side that has fewer. Sentences
    of a document are joined without anything between them. A word without pieces becomes [UNK]; a word longer than a window
    loses its end.

    Args:
      tokenizer: the model's; words are tokenized one by one.
      sentences: of any number of files.
      labels: tags in the order of the model's outputs; unused where no sentence has tags.
      length: most pieces in a window, special ones counted.
      context: see :data:`Context`.

    Raises:
      UserError: the length leaves no room, or some sentences have tags and others none.
    """
    require(context in get_args(Context), f"context is {context!r}; choose one of {', '.join(get_args(Context))}.")
    require(length >= 3, f"The length of {length} pieces leaves no room for text.")
    sizes = np.array([len(sentence.words) for sentence in sentences], np.int64)
    pieces, offsets = _tokenize(tokenizer, [word for sentence in sentences for word in sentence.words], length - 2)
    tags = np.full(len(offsets) - 1, -1, np.int32)
    known = any(sentence.tags is not None for sentence in sentences)
    if known:
        tags = np.concatenate(encode(sentences, labels))
    numbers = np.repeat(np.arange(len(sizes)), sizes)
    words = np.stack([numbers, np.arange(len(numbers)) - (np.cumsum(sizes) - sizes)[numbers]], 1).astype(np.int32)
    tagged = []
    for begin, stop in _texts(sentences, sizes, context):
        for start, end, first, last in _windows(offsets[begin : stop + 1], length - 2):
            row = pieces[offsets[begin + start] : offsets[begin + end]]
            ids = np.array([tokenizer.specials.cls, *row, tokenizer.specials.sep], np.int32)
            scored = slice(begin + first, begin + last)
            places = (offsets[scored] - offsets[begin + start] + 1).astype(np.int32)
            label = np.full(len(ids), -1, np.int32)
            label[places] = tags[scored]
            tagged.append(Tagged(Example((Part(ids, len(ids)),), label if known else None), words[scored], places))
    return tagged


def decode(
    tagged: Sequence[Tagged], predicted: Iterable[Any], sentences: Sequence[Sentence], labels: Sequence[str]
) -> list[tuple[str, ...]]:
    """Predicted tags of each sentence.

    Args:
      tagged: what :func:`examples` made of the sentences.
      predicted: for each window logits [N, labels], or numbers of labels, int [N]; N may count padding after the window.
      sentences: the same sentences.
      labels: the same labels.

    Raises:
      UserError: predictions are missing, or are of other labels.
    """
    rows = [np.asarray(row) for row in predicted]
    require(len(rows) == len(tagged), f"Predictions of {len(rows):,} windows are given for {len(tagged):,} windows.")
    starts = np.cumsum([0, *(len(sentence.words) for sentence in sentences)])
    found = np.full(starts[-1], -1, np.int64)
    for number, (window, row) in enumerate(zip(tagged, rows, strict=True), 1):
        enough = len(row) >= len(window.example.parts[0].ids)
        require(enough, f"Window {number} has {len(window.example.parts[0].ids)} pieces; {len(row)} predictions are given for it.")
        right = row.ndim == 1 or row.shape[1] == len(labels)
        require(right, f"Predictions of window {number} have shape {row.shape}; there are {len(labels)} labels.")
        chosen = row[window.places] if row.ndim == 1 else row[window.places].argmax(-1)
        fits = bool(np.all((chosen >= 0) & (chosen < len(labels))))
        require(fits, f"A prediction of window {number} is none of the {len(labels)} labels.")
        found[starts[window.words[:, 0]] + window.words[:, 1]] = chosen
    require(bool(np.all(found >= 0)), "Some words have no prediction; give all windows of the sentences.")
    tags = [labels[number] for number in found.tolist()]
    return [tuple(tags[start:end]) for start, end in itertools.pairwise(starts.tolist())]


def _tokenize(tokenizer: Tokenizer, words: Sequence[str], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of all words in a row, at most so many of each, int32 [N], and where each word begins and the last ends."""
    index: dict[str, int] = {}
    order = np.array([index.setdefault(word, len(index)) for word in words], np.int64)
    unknown = np.array([tokenizer.specials.unk], np.int32)
    rows = [row.ids[:most] if len(row.ids) else unknown for row in tokenizer.encode([*index])]
    counts = np.array([len(row) for row in rows], np.int64)
    begins = np.cumsum(counts) - counts
    offsets = np.concatenate([[0], np.cumsum(counts[order])])
    pieces = np.concatenate([*rows, np.empty(0, np.int32)])
    return pieces[np.arange(offsets[-1]) + np.repeat(begins[order] - offsets[:-1], counts[order])], offsets


def _texts(sentences: Sequence[Sentence], sizes: np.ndarray, context: Context) -> Iterator[tuple[int, int]]:
    """First word and end of each text that is cut into windows."""
    keys = [(sentence.where, sentence.document, 0 if context == "document" else n) for n, sentence in enumerate(sentences)]
    begin = 0
    for _, group in itertools.groupby(range(len(keys)), keys.__getitem__):
        end = begin + int(sum(sizes[number] for number in group))
        if end > begin:
            yield begin, end
        begin = end


def _windows(offsets: np.ndarray, room: int) -> Iterator[tuple[int, int, int, int]]:
    """Windows of a text, each as its first word and end, and the first word that is scored in it and the end of those.

    Args:
      offsets: int64 [words + 1], pieces before each word and at the end.
      room: most pieces in a window; no word has more.
    """
    count, base = len(offsets) - 1, offsets - offsets[0]
    starts, ends = [0], [int(np.searchsorted(base, room, side="right")) - 1]
    while ends[-1] < count:
        half = int(np.searchsorted(base, base[starts[-1]] + room // 2, side="right")) - 1
        final = int(np.searchsorted(base, base[-1] - room))
        starts.append(min(max(half, starts[-1] + 1), final))
        ends.append(int(np.searchsorted(base, base[starts[-1]] + room, side="right")) - 1)
    # A word goes to the later of two windows where it has as many pieces before it as after it in the earlier one: there
    # the smaller of both numbers is no smaller. Twice the middle of a word is compared with twice the middle of the overlap.
    middles, borders = base[:-1] + base[1:], base[starts[1:]] + base[ends[:-1]]
    cuts = [0, *np.searchsorted(middles, borders).tolist(), count]
    for start, end, first, last in zip(starts, ends, cuts[:-1], cuts[1:], strict=True):
        if first < last:
            yield start, end, first, last
