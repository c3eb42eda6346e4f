"""The data of a pretraining run: a corpus of documents, from which examples are made, or files of finished examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import grain
import numpy as np

from bert_jax.batch import HostBatch
from bert_jax.config.data import DataConfig
from bert_jax.config.lengths import Rates
from bert_jax.data import corpus as corpora
from bert_jax.data import pipeline, sentence_pairs
from bert_jax.data.corpus import Corpus
from bert_jax.data.records import Records, is_records
from bert_jax.errors import UserError
from bert_jax.tokenizers import Tokenizer

# Blocks of a plan on which rates are measured.
_MEASURED_BLOCKS = 4


@runtime_checkable
class PretrainingData(Protocol):
    """Batches for training and for evaluation, and what else a run needs to know of its data."""

    tokenizer: Tokenizer
    static_masks: bool
    """Whether batches are masked already."""

    def digest(self) -> str:
        """A hex digest of the content that runs depend on."""
        ...

    def unigram_log_probabilities(self) -> np.ndarray:
        """float32 [V], log-probability of each token by its frequency alone."""
        ...

    def rates(self, *, seed: int) -> Rates:
        """What a step takes from the data, on average."""
        ...

    def train_batches(self, *, seed: int, rows: np.ndarray) -> grain.DatasetIterator[HostBatch]:
        """An endless iterator of the rows of global batches that this process makes."""
        ...

    def eval_batches(self, *, rows: np.ndarray, limit: int | None) -> Iterator[HostBatch]:
        """Yield the held-out examples once, or ``limit`` batches of them."""
        ...


class Documents:
    """A corpus as the data of a pretraining run; a [`PretrainingData`][bert_jax.data.sources.PretrainingData].

    Args:
      corpus: the opened corpus.
      config: how examples are made.
    """

    static_masks = False

    def __init__(self, corpus: Corpus, config: DataConfig) -> None:
        self.corpus, self._config = corpus, config
        self.tokenizer, self.digest = corpus.tokenizer, corpus.digest

    def unigram_log_probabilities(self) -> np.ndarray:
        """float32 [V], log-probability of each token by its frequency in the documents."""
        return corpora.unigram_log_probabilities(self.corpus.train)

    def rates(self, *, seed: int) -> Rates:
        """What a step takes from the documents, measured on the plan of the first blocks of the first epoch.

        Raises:
          UserError: the corpus does not know its number of words.
        """
        split, config = self.corpus.train, self._config
        if self.corpus.words_per_token is None:
            raise UserError(f"{config.corpus} was prepared before words were counted; prepare it again, or give steps.")
        blocks = sentence_pairs.blocks(split)
        measured = range(min(blocks, _MEASURED_BLOCKS))
        rows = tokens = text = 0
        for block in measured:
            plan = sentence_pairs.plan(split, config, seed=seed, epoch=0, block=block)
            rows += len(pipeline.packed_rows(plan, config, seed=seed))
            tokens += int(plan.tokens(config).sum())
            text += int((plan.length_a + plan.length_b).sum())
        share = config.batch_size / rows
        return Rates(text * share * self.corpus.words_per_token, tokens * share, share * len(measured) / blocks)

    def train_batches(self, *, seed: int, rows: np.ndarray) -> grain.DatasetIterator[HostBatch]:
        """An endless iterator of batches; see [`train_batches`][bert_jax.data.pipeline.train_batches]."""
        return pipeline.train_batches(self.corpus.train, self.tokenizer.special_tokens, self._config, seed=seed, rows=rows)

    def eval_batches(self, *, rows: np.ndarray, limit: int | None) -> Iterator[HostBatch]:
        """Yield the examples of held-out documents; see [`eval_batches`][bert_jax.data.pipeline.eval_batches]."""
        return pipeline.eval_batches(self.corpus.held_out, self.tokenizer.special_tokens, self._config, rows=rows, limit=limit)


def open_data(config: DataConfig) -> Documents | Records:
    """Open a corpus, or TFRecord files.

    Raises:
      UserError: there is neither at ``config.corpus``, or ``config`` contradicts what is there.
    """
    if is_records(config.corpus):
        return Records(config)
    for name in ("vocab", "held_out", "nsp_label"):
        if getattr(config, name) != getattr(DataConfig, name):
            raise UserError(f"data.{name} is for TFRecord files; {config.corpus} has its own, so leave it out.")
    return Documents(corpora.open_corpus(config.corpus), config)
