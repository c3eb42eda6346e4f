"""The original's ``create_pretraining_data.py``: masked sentence pairs as TFRecord files, equal to its own on Python 3.

Everything is drawn from one ``random.Random``, so instances, their order and their masks are a function of the input files in
their order, the vocabulary, the flags and the seed. Like the original, the builder holds all documents and instances in memory.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from etils import epath

from bert_jax import tokenizers
from bert_jax.config.validation import require_positive
from bert_jax.errors import UserError
from bert_jax.io import atomic, tfrecord
from bert_jax.io.lines import lines
from bert_jax.tokenizers import WordPiece

DESCRIPTION = "google.json"
"""File that describes a directory of records: flags, digest of the tokenizer, sources and counts."""
FORMAT_VERSION = 1
# Lines that are tokenized together.
_CHUNK = 4096

Sentence = array.array
"""Token ids, four bytes each."""


@dataclasses.dataclass(frozen=True)
class GoogleFlags:
    """Flags of ``create_pretraining_data.py``, with its names and defaults.

    Raises:
      UserError: a value is outside its range.
    """

    max_seq_length: int = 128
    """Tokens of an instance, special tokens included; shorter ones are padded with 0."""
    max_predictions_per_seq: int = 20
    """Maximum number of predictions of an instance."""
    random_seed: int = 12345
    """Seed of everything that is drawn."""
    dupe_factor: int = 10
    """Times that the documents are gone through, with other pairs and masks."""
    masked_lm_prob: float = 0.15
    """Share of the tokens that are predicted."""
    short_seq_prob: float = 0.1
    """Probability that a document is cut to a random shorter target length."""
    do_whole_word_mask: bool = False
    """Select all tokens of a word together."""

    def __post_init__(self) -> None:
        if self.max_seq_length < 5:
            raise UserError(f"google.max_seq_length is {self.max_seq_length}; a pair needs at least 5 tokens.")
        for name in ("max_predictions_per_seq", "dupe_factor"):
            require_positive(f"google.{name}", getattr(self, name))
        for name in ("masked_lm_prob", "short_seq_prob"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"google.{name} is {getattr(self, name)}; it must lie in [0, 1].")


class Instance(NamedTuple):
    """A masked sentence pair."""

    tokens: array.array
    """Token ids [N] after masking, special tokens included."""
    first: int
    """Tokens of the first segment, with [CLS] and its [SEP]."""
    positions: array.array
    """Indices of the predicted tokens, in order."""
    labels: array.array
    """Ids of the predicted tokens."""
    random_next: bool

    def features(self, flags: GoogleFlags) -> dict[str, list[int] | list[float]]:
        """The seven features of the original, padded with 0."""

        def padded(values: Sequence[int], length: int) -> list[int]:
            return [*values] + [0] * (length - len(values))

        length, slots, predictions = flags.max_seq_length, flags.max_predictions_per_seq, len(self.positions)
        size = len(self.tokens)
        return {
            "input_ids": padded(self.tokens, length),
            "input_mask": padded([1] * size, length),
            "segment_ids": padded([0] * self.first + [1] * (size - self.first), length),
            "masked_lm_positions": padded(self.positions, slots),
            "masked_lm_ids": padded(self.labels, slots),
            "masked_lm_weights": [1.0] * predictions + [0.0] * (slots - predictions),
            "next_sentence_labels": [int(self.random_next)],
        }


def write_records(
    texts: Sequence[epath.PathLike],
    out: epath.PathLike,
    tokenizer: WordPiece,
    flags: GoogleFlags,
    *,
    shards: int = 1,
    progress: Callable[[int], None] = lambda instances: None,
) -> dict[str, int]:
    """Write a directory of TFRecord files, the tokenizer and a description, which appears when it is complete.

    Args:
      texts: files with one sentence per line and a blank line between documents, in their order.
      out: directory to create; its files are named ``examples-00000-of-00001.tfrecord``.
      tokenizer: a WordPiece tokenizer.
      flags: as the original's.
      shards: number of files, which get the instances in turn.
      progress: called with the number of instances written since the last call.

    Returns:
      Number of documents, sentences, tokens and instances.

    Raises:
      UserError: a file cannot be read, the directory exists, or there are no documents.
    """
    require_positive("shards", shards)
    with atomic.new_path(out) as path:
        documents = read_documents(texts, tokenizer)
        counts = {
            "documents": len(documents),
            "sentences": sum(map(len, documents)),
            "tokens": sum(len(sentence) for document in documents for sentence in document),
        }
        instances = make_instances(documents, tokenizer, flags)
        tokenizers.save(tokenizer, path)
        with contextlib.ExitStack() as stack:
            names = [f"examples-{shard:05}-of-{shards:05}.tfrecord" for shard in range(shards)]
            files = [stack.enter_context((path / name).open("wb")) for name in names]
            for index, instance in enumerate(instances):
                tfrecord.write_record(files[index % shards], tfrecord.encode_example(instance.features(flags)))
                progress(1)
        counts["instances"] = len(instances)
        description = {
            "format_version": FORMAT_VERSION,
            "flags": dataclasses.asdict(flags),
            "tokenizer": tokenizers.digest(tokenizer),
            "sources": {str(text): _sha256(epath.Path(text)) for text in texts},
            "counts": counts,
        }
        (path / DESCRIPTION).write_text(json.dumps(description, indent=2))
    return counts


def read_documents(texts: Sequence[epath.PathLike], tokenizer: WordPiece) -> list[list[Sentence]]:
    """Tokenize the documents of all files; as in the original, the end of a file does not end a document.

    Raises:
      UserError: a file cannot be read, or there is no document.
    """
    documents: list[list[Sentence]] = [[]]
    for chunk in _chunks(line.strip() for text in texts for _, line in lines(text, byte_order_mark=True)):
        tokenized = tokenizer.encode(chunk, match_special=False)
        for line, sentence in zip(chunk, tokenized, strict=True):
            if not line:
                documents.append([])
            elif len(sentence.ids):
                documents[-1].append(array.array("i", sentence.ids.tobytes()))
    documents = [document for document in documents if document]
    if not documents:
        raise UserError(f"{', '.join(map(str, texts))}: there is no text.")
    return documents


def _chunks(texts: Iterator[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    for text in texts:
        chunk.append(text)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    yield chunk


def make_instances(documents: list[list[Sentence]], tokenizer: WordPiece, flags: GoogleFlags) -> list[Instance]:
    """Make the instances of all documents, which are shuffled in place, in the order in which they are written."""
    rng = random.Random(flags.random_seed)
    rng.shuffle(documents)
    builder = _Builder(documents, tokenizer, flags, rng)
    instances = [
        instance for _ in range(flags.dupe_factor) for index in range(len(documents)) for instance in builder.instances(index)
    ]
    rng.shuffle(instances)
    return instances


class _Builder:
    """Makes the instances of one document after the other; each draw is one of the original's, in its order."""

    def __init__(self, documents: list[list[Sentence]], tokenizer: WordPiece, flags: GoogleFlags, rng: random.Random) -> None:
        self.documents, self.flags, self.rng = documents, flags, rng
        self.special_tokens = tokenizer.special_tokens
        self.is_continuation = (~tokenizer.is_word_start).tolist()
        # A token on two lines of the vocabulary counts once, with its last id.
        self.random_tokens = [*tokenizer.vocab.values()]
        self.room = flags.max_seq_length - 3

    def instances(self, index: int) -> Iterator[Instance]:
        rng, document = self.rng, self.documents[index]
        target = self.room
        if rng.random() < self.flags.short_seq_prob:
            target = rng.randint(2, self.room)
        chunk: list[Sentence] = []
        length = sentence = 0
        while sentence < len(document):
            chunk.append(document[sentence])
            length += len(document[sentence])
            if sentence == len(document) - 1 or length >= target:
                a, b, random_next, unused = self._pair(index, chunk, target)
                # Sentences that a random second segment replaced are used again.
                sentence -= unused
                yield self._mask(a, b, random_next)
                chunk, length = [], 0
            sentence += 1

    def _pair(self, index: int, chunk: list[Sentence], target: int) -> tuple[list[int], list[int], bool, int]:
        """Two segments, whether the second is random, and how many sentences of the chunk are then unused."""
        rng = self.rng
        end = rng.randint(1, len(chunk) - 1) if len(chunk) >= 2 else 1
        a = _joined(chunk[:end])
        if len(chunk) > 1 and rng.random() >= 0.5:
            b, random_next, unused = _joined(chunk[end:]), False, 0
        else:
            b, random_next, unused = self._random_segment(index, target - len(a)), True, len(chunk) - end
        while len(a) + len(b) > self.room:
            longer = a if len(a) > len(b) else b
            longer.pop(0 if rng.random() < 0.5 else -1)
        return a, b, random_next, unused

    def _random_segment(self, index: int, length: int) -> list[int]:
        rng = self.rng
        for _ in range(10):
            other = rng.randint(0, len(self.documents) - 1)
            if other != index:
                break
        document = self.documents[other]
        segment: list[int] = []
        for sentence in document[rng.randint(0, len(document) - 1) :]:
            segment.extend(sentence)
            if len(segment) >= length:
                break
        return segment

    def _mask(self, a: list[int], b: list[int], random_next: bool) -> Instance:
        rng, special = self.rng, self.special_tokens
        original = [special.cls, *a, special.sep, *b, special.sep]
        candidates: list[list[int]] = []
        for position, token in enumerate(original):
            if token in (special.cls, special.sep):
                continue
            if self.flags.do_whole_word_mask and candidates and self.is_continuation[token]:
                candidates[-1].append(position)
            else:
                candidates.append([position])
        rng.shuffle(candidates)
        share = round(len(original) * self.flags.masked_lm_prob)
        most = min(self.flags.max_predictions_per_seq, max(1, share))
        tokens, chosen = list(original), list[int]()
        for positions in candidates:
            if len(chosen) >= most:
                break
            if len(chosen) + len(positions) > most:
                continue
            for position in positions:
                tokens[position] = self._replacement(original[position])
                chosen.append(position)
        chosen.sort()
        labels = [original[position] for position in chosen]
        return Instance(_ints(tokens), len(a) + 2, _ints(chosen), _ints(labels), random_next)

    def _replacement(self, token: int) -> int:
        rng = self.rng
        if rng.random() < 0.8:
            return self.special_tokens.mask
        if rng.random() < 0.5:
            return token
        return self.random_tokens[rng.randint(0, len(self.random_tokens) - 1)]


def _joined(sentences: list[Sentence]) -> list[int]:
    return [token for sentence in sentences for token in sentence]


def _ints(values: list[int]) -> array.array:
    return array.array("i", values)


def _sha256(path: epath.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
