"""A loaded model with its methods on texts: encoding, mask filling, embeddings, features, likelihoods."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bert_jax.data import windows
from bert_jax.data.windows import Long, Text
from bert_jax.errors import UserError
from bert_jax.inference import compiled, embedding, likelihood
from bert_jax.inference.batching import Progress, TextFeatures, compute, cut_texts, text_features, to_device
from bert_jax.inference.likelihood import Scoring
from bert_jax.models.encoder import Encoded
from bert_jax.models.loaded import LoadedModel, tokenizer_of
from bert_jax.models.sentence_embedding import Normalize, Pooling, SentenceEmbedding
from bert_jax.models.sentence_embedding import normalize as normalize_vectors


class Prediction(NamedTuple):
    """A token predicted in place of a mask token."""

    token: str
    probability: float


@dataclasses.dataclass(frozen=True)
class Bert(LoadedModel):
    """A model with methods on texts, as returned by [`load`][bert_jax.load].

    A text is a string or a pair of strings. Texts of similar length are computed in one batch, and batches have few different
    shapes, so that any number of texts compiles a dozen programs at most.

    Examples:
      >>> from bert_jax import tokenizers
      >>> from bert_jax.models import init_params
      >>> tokenizer = tokenizers.train(lambda: ["a cat sat", "a dog ran"] * 9, kind="wordpiece", size=40)
      >>> config = bert_jax.ModelConfig.size("tiny", vocab_size=len(tokenizer.tokens))
      >>> bert = bert_jax.Bert(config, init_params(config, jax.random.key(0)), tokenizer)
      >>> bert.embed(["a cat", ("a dog", "a cat")]).shape
      (2, 128)
      >>> len(bert.fill_mask("a [MASK] sat", top_k=3)[0])
      3
    """

    def encode(self, texts: Sequence[Text] | Mapping[str, Any]) -> Encoded:
        """Encode texts, or a batch of arrays such as a tokenizer of transformers returns.

        Args:
          texts: texts; or ``input_ids`` [B, S] with one example in a row, and optionally ``attention_mask`` (by default 1; 0
            marks padding) and ``token_type_ids`` (by default 0), as in [`from_arrays`][bert_jax.data.windows.from_arrays].

        Returns:
          hidden [B, S, D], zero beyond the end of each text, and pooled [B, D], None without a pooler.

        Raises:
          UserError: a text has more tokens than the model has positions, or arrays do not fit the model.

        Examples:
          >>> from bert_jax.models import init_params
          >>> config = bert_jax.ModelConfig.size("tiny", vocab_size=100)
          >>> bert = bert_jax.Bert(config, init_params(config, jax.random.key(0)))
          >>> arrays = {"input_ids": [[2, 7, 3], [2, 3, 0]], "attention_mask": [[1, 1, 1], [1, 1, 0]]}
          >>> bert.encode(arrays).pooled.shape
          (2, 128)
        """
        if isinstance(texts, Mapping):
            batch = windows.from_arrays(texts, self.config)
            hidden, pooled = compiled.encode_batch(self.config, self.params, to_device(batch))
            return Encoded(hidden, None if pooled is None else pooled[:, 0])
        rows = cut_texts(self, texts, "error", None)
        shape = len(rows), max((len(row.ids) for row in rows), default=0), self.config.hidden_size
        all_hidden, all_pooled = np.zeros(shape, self.config.dtype), np.zeros((len(rows), shape[2]), self.config.dtype)
        for indices, (hidden, pooled) in compute(self, compiled.encode_batch, rows):
            for batch_row, index in enumerate(indices):
                length = len(rows[index].ids)
                all_hidden[index, :length] = hidden[batch_row, :length]
            if pooled is not None:
                all_pooled[indices] = pooled[: len(indices), 0]
        return Encoded(jnp.asarray(all_hidden), jnp.asarray(all_pooled) if "pooler" in self.params["bert"] else None)

    def fill_mask(
        self, text: str, *, top_k: int = 5, long: Long = "error", sequence_length: int | None = None
    ) -> list[list[Prediction]]:
        """The ``top_k`` most probable tokens for each [MASK] of a text, in order of decreasing probability.

        Args:
          text: a text with at least one [MASK].
          top_k: predictions for each [MASK].
          long, sequence_length: as for ``embed``.

        Raises:
          UserError: the text has no [MASK], or too many tokens; the model has no MLM head or no vocabulary.
        """
        if not isinstance(top_k, int) or top_k < 1:
            raise UserError(f"top_k is {top_k}; it must be at least 1.")
        self.check("mlm")
        tokens, mask_id = tokenizer_of(self).tokens, tokenizer_of(self).special_tokens.mask
        mask = tokens[mask_id]
        if not isinstance(text, str):
            raise UserError(f"{text!r} is not a text; give a string with a {mask}.")
        if mask not in text:
            raise UserError(f"The text has no {mask}.")
        rows = cut_texts(self, [text], long, sequence_length)
        counts = [int((row.ids[row.keep] == mask_id).sum()) for row in rows]
        if not any(counts):
            raise UserError(f"Truncation removed every {mask} of the text; use chunk or stride for long.")
        # The model's vocabulary may be padded beyond the tokenizer's.
        function = functools.partial(compiled.mask_probabilities, mask_id=mask_id, max_masks=max(counts), vocab_size=len(tokens))
        by_window: dict[int, np.ndarray] = {}
        for indices, values in compute(self, function, rows):
            by_window |= {index: values[batch_row, : counts[index]] for batch_row, index in enumerate(indices)}
        probabilities = np.concatenate([by_window[index] for index in range(len(rows))])
        best = np.argsort(-probabilities, axis=-1)[:, :top_k]
        return [
            [Prediction(tokens[token_id], float(row[token_id])) for token_id in token_ids]
            for row, token_ids in zip(probabilities, best, strict=True)
        ]

    def embed(
        self,
        texts: Sequence[Text],
        *,
        pooling: Pooling | Sequence[Pooling] | None = None,
        normalize: bool | None = None,
        long: Long | None = None,
        sequence_length: int | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        progress: Progress | None = None,
    ) -> Float[np.ndarray, "N D"]:
        """Compute one float32 vector for each text.

        Where the files of the model say how (a sentence-transformers directory; see ``embedding``), each argument that is None
        follows them, and the vectors equal those of sentence-transformers.

        Args:
          texts: strings and pairs of strings.
          pooling: "mean" or "max" over all tokens, [CLS] and [SEP] included, or "cls", the state of [CLS]; further ones are
            "mean_sqrt_len_tokens" (the sum divided by the square root of the number of tokens), "weightedmean" (weights 1, 2,
            ... by position) and "lasttoken"; several are concatenated. For a text in several windows, each token counts once,
            with [CLS] of the first window and [SEP] of the last; "cls" is the mean of the windows' [CLS]. By default "mean".
          normalize: divide each vector by its Euclidean norm. By default False.
          long: what to do with texts of more than ``sequence_length`` tokens. By default "truncate" where the files of the model
            give a length, else "error".
          sequence_length: maximum number of tokens in a window, special tokens included. By default the number of positions.
          prompt: text to put before each text; an empty one overrides the default prompt of the model.
          prompt_name: name of a prompt of the model.
          progress: called with the number of windows computed, and of all windows.

        Raises:
          UserError: an option is out of range; ``pooling`` is None, and the files of the model describe what cannot be computed;
            and as [`cut`][bert_jax.data.windows.cut].
        """
        if pooling is None:
            self.check("embedding")
        described = self.embedding or SentenceEmbedding()
        modes = described.pooling if pooling is None else (pooling,) if isinstance(pooling, str) else tuple(pooling)
        if not modes or any(mode not in get_args(Pooling) for mode in modes):
            raise UserError(f"pooling is {pooling!r}; choose from {', '.join(get_args(Pooling))}.")
        text_before = described.find_prompt(prompt, prompt_name)
        if isinstance(texts, Sequence) and not isinstance(texts, str) and text_before:
            texts = [embedding.with_prompt(text, text_before) for text in texts]
        length = sequence_length
        if length is None and described.sequence_length:
            length = min(described.sequence_length, self.config.max_position_embeddings)
        rows = cut_texts(self, texts, long or ("truncate" if described.sequence_length else "error"), length)
        first = 0
        if text_before and not described.include_prompt:
            rows, first = embedding.exclude_prompt(self, rows, text_before)
        vectors = embedding.pool(self, rows, modes, count=len(texts), first=first, progress=progress)
        for layer in described.layers:
            if normalize is not False or not isinstance(layer, Normalize):
                vectors = layer(vectors).astype(np.float32)
        return normalize_vectors(vectors) if normalize else vectors

    def similarity(self, first: Sequence[Text], second: Sequence[Text], **options: Any) -> Float[np.ndarray, "N M"]:
        """Cosine similarity of the embeddings of N texts and M texts; options as for ``embed``.

        Raises:
          UserError: an argument is a single text; and as ``embed``.
        """
        if isinstance(first, str) or isinstance(second, str):
            raise UserError("Give two lists of texts, not a single text.")
        vectors = self.embed([*first, *second], **{**options, "normalize": True})
        return vectors[: len(first)] @ vectors[len(first) :].T

    def pseudo_log_likelihood(
        self, texts: Sequence[Text], *, scoring: Scoring = "token", progress: Progress | None = None
    ) -> Float[np.ndarray, " N"]:
        """Sum over a text's tokens of the log-probability of each when it is masked, in nats, float32.

        A masked row that several texts share is computed once.

        Args:
          texts: strings and pairs of strings.
          scoring: what is masked with a token: "token", nothing else (Salazar et al. 2020), or "within-word", the later tokens of
            its word (Kauf and Ivanova 2023).
          progress: called with the number of predictions computed, and of all predictions.

        Raises:
          UserError: a text has more tokens than the model has positions; the model has no MLM head.
        """
        self.check("mlm")
        return likelihood.pseudo_log_likelihood(self, texts, scoring=scoring, progress=progress)

    def features(
        self,
        texts: Sequence[Text],
        *,
        layers: Sequence[int] = (-1, -2, -3, -4),
        long: Long = "error",
        sequence_length: int | None = None,
        progress: Progress | None = None,
    ) -> Iterator[TextFeatures]:
        """States of every token after some layers, text by text, as the original's ``extract_features.py`` writes them.

        Args:
          texts: strings and pairs of strings.
          layers: indices of layers, 0 the first, -1 the last.
          long, sequence_length, progress: as for ``embed``; each token's states come from the window that keeps it.

        Raises:
          UserError: there is no such layer; and as [`cut`][bert_jax.data.windows.cut].
        """
        count = self.config.num_hidden_layers
        if len(layers) == 0:
            raise UserError("layers is empty; give at least one layer.")
        for layer in layers:
            if not isinstance(layer, int) or not -count <= layer < count:
                raise UserError(f"There is no layer {layer}; the model has {count}: 0 to {count - 1}, or -{count} to -1.")
        rows = cut_texts(self, texts, long, sequence_length)
        function = functools.partial(compiled.layer_states, layers=tuple(layer % count for layer in layers))
        return text_features(self, function, rows, progress)
