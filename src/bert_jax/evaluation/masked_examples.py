"""Examples of a pretraining run with their masks, as text."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax
import numpy as np

from bert_jax import masking, ops
from bert_jax.batch import HostBatch
from bert_jax.config.data import DataConfig, Meaning
from bert_jax.config.masking import MaskPolicy
from bert_jax.data import pipeline, sentence_pairs
from bert_jax.data.corpus import Split
from bert_jax.data.records import NSP, is_random, mask_kinds
from bert_jax.masking.replacement import mask_tokens
from bert_jax.tokenizers import Tokenizer
from bert_jax.training.step import mask_key

KINDS = ("masked", "random", "kept")
"""What replaced a predicted token, in the order of ``mlm_kinds``."""


@dataclass(frozen=True)
class Prediction:
    """A token of an example that is predicted."""

    position: int
    input: str
    """The token that the model sees."""
    label: str
    """The token that it predicts."""
    kind: str
    """One of ``KINDS``."""


@dataclass(frozen=True)
class Example:
    """A masked example."""

    tokens: list[str]
    """What the model sees, special tokens included, padding not."""
    predictions: list[Prediction]
    random_next: bool | None
    """Whether the second segment comes from another document; None where there is no pair."""


def corpus_examples(split: Split, tokenizer: Tokenizer, config: DataConfig, *, seed: int, count: int) -> list[Example]:
    """The first examples of a run, with the masks that they have there under the paper's policy.

    Args:
      split: the training split.
      tokenizer: the corpus's.
      config: sequence length and sampling of examples.
      seed: seed of the run.
      count: number of examples.
    """
    if not count:
        return []
    config = dataclasses.replace(config, packing=1)
    plan = sentence_pairs.plan(split, config, seed=seed, epoch=0, block=0)
    chosen = plan.take(np.arange(min(count, len(plan.example)))[:, None])
    batch = pipeline.assemble(split, tokenizer.special_tokens, config, chosen)
    policy = masking.resolve(MaskPolicy(), tokenizer, sequence_length=config.sequence_length)
    key = mask_key(jax.random.key(seed, impl=ops.GENERATOR))
    masked: HostBatch = jax.device_get(jax.jit(lambda batch: mask_tokens(key, batch, policy, 0))(batch))
    examples = []
    for row in range(len(masked["input_ids"])):
        ids = masked["input_ids"][row][masked["segment_ids"][row] > 0]
        places = masked["mlm_weights"][row] > 0
        positions, labels, kinds = (masked[f"mlm_{name}"][row][places] for name in ("positions", "ids", "kinds"))
        random_next = bool(masked["nsp_labels"][row, 0]) if config.pairs else None
        examples.append(_example(ids, positions, labels, kinds, tokenizer, random_next))
    return examples


def record_example(features: dict[str, np.ndarray], tokenizer: Tokenizer, *, nsp_label: Meaning = "random") -> Example:
    """A record with its stored masks, and with what its label says where label 1 means ``nsp_label``."""
    predicted = features["masked_lm_weights"] > 0
    positions, labels = features["masked_lm_positions"][predicted], features["masked_lm_ids"][predicted]
    kinds = mask_kinds(features["input_ids"][positions], labels, tokenizer.special_tokens.mask)
    shown = np.concatenate([np.flatnonzero(features["input_mask"]), positions])
    ids = features["input_ids"][: shown.max(initial=-1) + 1]
    random_next = is_random(features, nsp_label) if NSP in features else None
    return _example(ids, positions, labels, kinds, tokenizer, random_next)


def _example(
    ids: np.ndarray, positions: np.ndarray, labels: np.ndarray, kinds: np.ndarray, tokenizer: Tokenizer, random_next: bool | None
) -> Example:
    tokens = [tokenizer.tokens[token] for token in ids.tolist()]
    predictions = [
        Prediction(position, tokens[position], tokenizer.tokens[label], KINDS[kind])
        for position, label, kind in zip(positions.tolist(), labels.tolist(), kinds.tolist(), strict=True)
    ]
    return Example(tokens, predictions, random_next)
