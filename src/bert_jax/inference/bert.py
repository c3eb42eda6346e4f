"""A pretrained model to use: parameters, config and tokenizer together."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Float

from bert_jax import convert
from bert_jax.config.run import ModelConfig
from bert_jax.config.validation import require
from bert_jax.convert import Format, Head
from bert_jax.data import windows
from bert_jax.data.windows import Long, Text, Window
from bert_jax.errors import Doubt, Failure, UserError
from bert_jax.inference import compiled
from bert_jax.inference.compiled import Pooling
from bert_jax.models.encoder import Batch, Encoded, Params
from bert_jax.tokenizers import MASK, Tokenizer

_PROBES: tuple[Text, ...] = (
    "Paris is the capital of France.",
    "x",
    ("How many pieces does a text have?", "It depends on the vocabulary, 1234567890."),
)
# Texts whose states are held at once.
_BLOCK = 256

# Where float32 probabilities end.
_LEAST = float(np.finfo(np.float32).tiny)

Progress = Callable[[int, int], None]
"""Called with the number of windows computed, and of all windows."""


class Guess(NamedTuple):
    """A piece that may stand under a mask."""

    piece: str
    probability: float


class Features(NamedTuple):
    """States of one text."""

    pieces: list[str]
    """[CLS], the text's pieces, [SEP]."""
    values: np.ndarray
    """float32 [layers asked for, N, D]."""


@dataclasses.dataclass(frozen=True)
class Bert:
    """What :func:`load` returns: a model and its methods on texts.

    A text is a string or a pair of strings. Texts of about one length are computed together; so any number of them
    compiles a dozen shapes at most.
    """

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer | None = None
    """None where there was no vocabulary beside the weights; then only arrays can be encoded."""
    labels: tuple[str, ...] = ()
    """Names of a classifier's outputs, where they are known."""

    def encode(self, texts: Sequence[Text] | Mapping[str, Any]) -> Encoded:
        """Encode texts, or a batch of arrays.

        Args:
          texts: texts; or ``ids`` [B, S] with, if need be, ``types`` (0 where not given) and ``segments`` (1 where not
            given, 0 for padding), one example in a row.

        Returns:
          hidden [B, S, D], zero beyond the end of each text, and pooled [B, D], None without a pooler.

        Raises:
          UserError: a text has more pieces than the model has positions, or an id or a type is none of the model's.
        """
        if isinstance(texts, Mapping):
            hidden, pooled = compiled.encoded(self.config, self.params, _on_device(windows.from_arrays(texts, self.config)))
            return Encoded(hidden, None if pooled is None else pooled[:, 0])
        rows = self._cut(texts, "error", None)
        shape = len(rows), max((len(row.ids) for row in rows), default=0), self.config.hidden_size
        hidden, pooled = np.zeros(shape, self.config.dtype), np.zeros((len(rows), shape[2]), self.config.dtype)
        for numbers, (states, firsts) in self._run(compiled.encoded, rows, None):
            for place, number in enumerate(numbers):
                length = len(rows[number].ids)
                hidden[number, :length] = states[place, :length]
            if firsts is not None:
                pooled[numbers] = firsts[: len(numbers), 0]
        return Encoded(jnp.asarray(hidden), jnp.asarray(pooled) if "pooler" in self.params["bert"] else None)

    def fill_mask(self, text: str, *, top_k: int = 5, long: Long = "error") -> list[list[Guess]]:
        """The ``top_k`` likeliest pieces under each [MASK] of a text, likeliest first.

        Raises:
          UserError: the text has no [MASK], or more pieces than the model has positions; the model has no MLM head.
        """
        require(isinstance(top_k, int) and top_k >= 1, f"top_k is {top_k}; it must be at least 1.")
        require(isinstance(text, str), f"{text!r} is not a text.")
        require(MASK in text, f"The text has no {MASK}.")
        rows = self._cut([text], long, None)
        tokenizer = self._tokenizer()
        mask = tokenizer.specials.mask
        counts = [int((row.ids[row.keep] == mask).sum()) for row in rows]
        require(any(counts), f"Nothing is left of the text's {MASK} after truncation.")
        # Rows of the model beyond the tokenizer's pieces, if any, are padding.
        scores = functools.partial(compiled.masked, mask=mask, most=max(counts), pieces=len(tokenizer.pieces))
        found: dict[int, np.ndarray] = {}
        for numbers, probabilities in self._run(scores, rows, None):
            found |= {number: probabilities[place, : counts[number]] for place, number in enumerate(numbers)}
        probabilities = np.concatenate([found[number] for number in range(len(rows))])
        best = np.argsort(-probabilities, axis=-1)[:, :top_k]
        return [
            [Guess(tokenizer.pieces[piece], float(row[piece])) for piece in pieces]
            for row, pieces in zip(probabilities, best, strict=True)
        ]

    def embed(
        self,
        texts: Sequence[Text],
        *,
        pooling: Pooling = "mean",
        normalize: bool = False,
        long: Long = "error",
        limit: int | None = None,
        progress: Progress | None = None,
    ) -> Float[np.ndarray, "N D"]:
        """One float32 vector for each text.

        Args:
          texts: texts and pairs.
          pooling: "mean" or "max" over all pieces, [CLS] and [SEP] included, or the state of [CLS]. Of a text in several
            windows each piece counts once, with [CLS] of the first window and [SEP] of the last; "cls" is the mean of
            the windows' [CLS].
          normalize: divide by the Euclidean norm.
          long: what to do with texts of more than ``limit`` pieces.
          limit: most pieces at once, special ones counted; as many as the model has positions where not given.
          progress: called with the number of windows computed, and of all windows.

        Raises:
          UserError: as :func:`bert_jax.data.windows.cut`.
        """
        require(pooling in ("mean", "cls", "max"), f"pooling is {pooling!r}; choose one of mean, cls, max.")
        rows = self._cut(texts, long, limit)
        total = np.full((len(texts), self.config.hidden_size), -np.inf if pooling == "max" else 0.0, np.float32)
        weight = np.zeros((len(texts), 1), np.float32)
        for numbers, values in self._run(compiled.POOLED[pooling], rows, progress):
            owners = [rows[number].text for number in numbers]
            (np.maximum if pooling == "max" else np.add).at(total, owners, values[: len(numbers)])
            counts = [rows[n].keep.stop - rows[n].keep.start if pooling == "mean" else 1 for n in numbers]
            np.add.at(weight, (owners, 0), counts)
        vectors = total if pooling == "max" else total / np.maximum(weight, 1)
        return _unit(vectors) if normalize else vectors

    def similarity(self, first: Sequence[Text], second: Sequence[Text], **options: Any) -> Float[np.ndarray, "N M"]:
        """Cosine of the embeddings of every text of one list with every text of another; options as for :meth:`embed`."""
        require(not isinstance(first, str) and not isinstance(second, str), "Give two lists of texts, not a single text.")
        both = self.embed([*first, *second], **{**options, "normalize": True})
        return both[: len(first)] @ both[len(first) :].T

    def pseudo_log_likelihood(self, texts: Sequence[Text]) -> Float[np.ndarray, " N"]:
        """Sum, over a text's pieces, of each piece's log-probability when it alone is masked, in nats (Salazar et al. 2020).

        Raises:
          UserError: a text has more pieces than the model has positions; the model has no MLM head.
        """
        mask, rows, labels = self._tokenizer().specials.mask, list[Window](), list[int]()
        for whole in self._cut(texts, "error", None):
            # All but [CLS], the [SEP] between two texts, and the last one.
            for place in {*range(1, len(whole.ids) - 1)} - {whole.first - 1}:
                ids = whole.ids.copy()
                ids[place] = mask
                rows.append(whole._replace(ids=ids, keep=slice(place, place + 1)))
                labels.append(int(whole.ids[place]))
        total = np.zeros(len(texts), np.float64)
        scores = functools.partial(compiled.masked, mask=mask, most=1, pieces=len(self._tokenizer().pieces))
        for numbers, probabilities in self._run(scores, rows, None):
            for place, number in enumerate(numbers):
                total[rows[number].text] += math.log(max(probabilities[place, 0, labels[number]], _LEAST))
        return total.astype(np.float32)

    def features(
        self,
        texts: Sequence[Text],
        *,
        layers: Sequence[int] = (-1, -2, -3, -4),
        long: Long = "error",
        limit: int | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Features]:
        """States of every piece after chosen layers, as the original's ``extract_features.py`` gives them, text by text.

        Args:
          texts: texts and pairs.
          layers: numbers of layers, 0 the first, -1 the last.
          long, limit, progress: as for :meth:`embed`; each piece comes from the window in which it is kept.

        Raises:
          UserError: there is no such layer; and as :func:`bert_jax.data.windows.cut`.
        """
        count = self.config.num_hidden_layers
        wrong = [layer for layer in layers if not isinstance(layer, int) or not -count <= layer < count]
        require(not wrong, f"There is no layer {(wrong or [0])[0]}; the model has {count}: 0 to {count - 1}, or -{count} to -1.")
        require(len(layers) > 0, "No layers are asked for.")
        rows = self._cut(texts, long, limit)
        states = functools.partial(compiled.states, layers=tuple(layer % count for layer in layers))
        return self._features(states, rows, progress)

    def _features(self, states: Callable[..., Any], rows: Sequence[Window], progress: Progress | None) -> Iterator[Features]:
        pieces, done = self._tokenizer().pieces, 0
        mine = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row.text)]
        for start in range(0, len(mine), _BLOCK):
            block = mine[start : start + _BLOCK]
            some = [*itertools.chain.from_iterable(block)]
            kept: dict[int, np.ndarray] = {}
            for numbers, values in self._run(states, some, None):
                for place, number in enumerate(numbers):
                    kept[number] = values[:, place, : len(some[number].ids)][:, some[number].keep].astype(np.float32)
            parts = iter(range(len(some)))
            for group in block:
                values = np.concatenate([kept[next(parts)] for _ in group], axis=1)
                yield Features([pieces[piece] for row in group for piece in row.ids[row.keep]], values)
            done += len(some)
            if progress:
                progress(done, len(rows))

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise UserError("The model came without a vocabulary; put its vocab.txt beside the weights and load it again.")
        return self.tokenizer

    def _cut(self, texts: Sequence[Text], long: Long, limit: int | None) -> list[Window]:
        most = self.config.max_position_embeddings
        require(isinstance(texts, Sequence) and not isinstance(texts, str), "Give a list of texts.")
        limit = most if limit is None else limit
        require(isinstance(limit, int), f"The limit is {limit!r}; it must be a number of pieces.")
        require(limit <= most, f"The limit of {limit} pieces is above the model's {most} positions.")
        rows = windows.cut(self._tokenizer(), texts, limit=limit, long=long)
        if self.config.type_vocab_size < 2:
            require(all(row.first == len(row.ids) for row in rows), "The model has one token type and takes no pairs.")
        return rows

    def _run(
        self, function: Callable[..., Any], rows: Sequence[Window], progress: Progress | None
    ) -> Iterator[tuple[list[int], Any]]:
        """Results of a function on batches of windows, as NumPy, with the numbers of the windows in their rows."""
        pad, limit = self._tokenizer().specials.pad, self.config.max_position_embeddings
        before: tuple[list[int], Any] | None = None
        done = 0
        for numbers, batch in windows.batches(rows, tokens=_tokens(), limit=limit, pad=pad):
            # The device computes this batch while the host handles the one before.
            result = function(self.config, self.params, _on_device(batch))
            if before:
                yield before[0], jax.device_get(before[1])
            before = numbers, result
            done += len(numbers)
            if progress:
                progress(done, len(rows))
        if before:
            yield before[0], jax.device_get(before[1])


def load(path: epath.PathLike, *, partial: bool = False, head: Head | None = None) -> Bert:
    """Load a model: a run of ours, a Hugging Face directory, a TensorFlow checkpoint of the original, an old Flax file.

    The format is found out from the files; neither TensorFlow nor PyTorch is needed, and nothing in a file is executed.
    Doubtful things are warnings.

    Args:
      path: a directory, or a file of weights with its config and vocabulary beside it.
      partial: leave out tensors that do not match, and leave at their initial values parameters that are not given.
      head: what a classifier is ("classify", "regress", "tag", "choose"), where ``config.json`` does not say it.

    Raises:
      UserError: there is no model, or two, or one that is not BERT, or its parts do not fit each other.
      Failure: every checkpoint of a run is damaged.
    """
    return Bert(*convert.read(path, partial=partial, head=head))


def save(bert: Bert, path: epath.PathLike, *, to: Format, verify: bool = False) -> dict[str, Any]:
    """Write a model as a new directory: "hf" (safetensors), "google" (TensorFlow), "flax" (msgpack) or "orbax".

    Args:
      bert: the model.
      path: directory to make.
      to: its format.
      verify: read it again and compare every output of both on probe texts.

    Returns:
      What is also written as ``conversion.json``: name, shape and SHA-256 of each tensor, and the largest absolute
      difference of each output where it was verified.

    Raises:
      UserError: ``path`` exists already; or it is to be verified without a vocabulary.
      Failure: an output is not finite, or a checkpoint cannot be written.
    """

    def compare(written: epath.Path) -> dict[str, float]:
        with warnings.catch_warnings():
            # What is doubtful about the model was said when it was loaded.
            warnings.simplefilter("ignore", Doubt)
            before, after = (probe(model) for model in (bert, load(written)))
        differences = {name: float(np.abs(value - after[name]).max()) for name, value in before.items()}
        if not all(map(math.isfinite, differences.values())):
            raise Failure(f"{path} was not written: the model's outputs are not finite ({differences}).")
        return differences

    model = convert.Model(bert.config, bert.params, bert.tokenizer, bert.labels)
    return convert.write(model, path, to, compare=compare if verify else None)


def probe(bert: Bert) -> dict[str, np.ndarray]:
    """Every output of a model on a few texts: hidden, pooled, and the scores of each head."""
    rows = bert._cut(_PROBES if bert.config.type_vocab_size > 1 else _PROBES[:2], "truncate", None)
    ((_, batch),) = windows.batches(rows, tokens=1 << 20, limit=bert.config.max_position_embeddings, pad=0)
    return jax.device_get(compiled.every(bert.config, bert.params, _on_device(batch)))


def _on_device(batch: Mapping[str, np.ndarray]) -> Batch:
    return {name: jnp.asarray(value) for name, value in batch.items()}


def _tokens() -> int:
    # A CPU is fastest where a batch's states stay in its caches, an accelerator where there are many.
    return 1024 if jax.default_backend() == "cpu" else 65536


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), np.finfo(np.float32).tiny)
