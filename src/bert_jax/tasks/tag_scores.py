"""Scores of the tags of token classification."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from bert_jax.config.finetuning import Scheme
from bert_jax.tasks import conll, metrics
from bert_jax.tasks.example import Scores
from bert_jax.tasks.metrics import entities, schemes

Tags = Sequence[Sequence[str]]
"""The tags of each sentence."""


def entity_scores(gold: Tags, predicted: Tags, labels: Sequence[str], scheme: Scheme) -> Scores:
    """Precision, recall and F1 of entities, and the accuracy of tags; IOBES and BILOU as in seqeval, others as in conlleval."""
    found = conll.find_scheme(labels, scheme)
    if found is not None:
        return schemes.score(gold, predicted, found)
    return {name: value for name, value in entities.score(gold, predicted).items() if name != "by_type"}


def accuracy_scores(gold: Tags, predicted: Tags, labels: Sequence[str], scheme: Scheme) -> Scores:
    """Accuracy and macro-averaged F1 of tags."""
    index = {tag: index for index, tag in enumerate(dict.fromkeys(itertools.chain(labels, *gold)))}
    gold_ids, predicted_ids = (np.array([index[tag] for tags in side for tag in tags]) for side in (gold, predicted))
    return metrics.score(("accuracy", "macro_f1"), gold_ids, predicted_ids)
