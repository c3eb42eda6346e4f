"""Minimal pairs: how often a model prefers the acceptable one of two sentences (BLiMP, Warstadt et al. 2020).

A file is a table (.tsv, .csv, .jsonl) with columns ``good`` and ``bad``, and optionally ``phenomenon``. BLiMP's own files have
other names for them: ``Columns(text="sentence_good", text_b="sentence_bad", label="UID")``.
"""

from __future__ import annotations

import collections

import numpy as np
from etils import epath

from bert_jax.errors import UserError
from bert_jax.inference.bert import Bert
from bert_jax.tasks import tables
from bert_jax.tasks.tables import Columns

COLUMNS = Columns(label="phenomenon", text="good", text_b="bad")
"""Default names of the columns."""
ALL = "all"
"""Key of the result for all pairs together."""


def score(model: Bert, path: epath.PathLike, *, columns: Columns = COLUMNS) -> dict[str, float]:
    """Share of pairs in which the good sentence has the higher pseudo-log-likelihood (Salazar et al. 2020); ties count half.

    Args:
      model: a model with an MLM head.
      path: the file of pairs.
      columns: names of its columns.

    Returns:
      The share for each phenomenon that the file names, and for "all" pairs.

    Raises:
      UserError: the file cannot be read, or a sentence has more tokens than the model has positions.

    Examples:
      >>> from bert_jax.evaluation import minimal_pairs
      >>> minimal_pairs.score(bert_jax.load("runs/base"), "pairs.tsv")  # doctest: +SKIP
      {'number': 0.93, 'all': 0.93}
    """
    records = [*tables.read(path, columns, labelled=False)]
    single = next((record for record in records if len(record.texts) < 2), None)
    if single is not None or not records:
        where = single.where if single else f"{path}"
        raise UserError(
            f"{where}: there is no second sentence; a file of minimal pairs needs the columns {columns.text} and {columns.text_b}."
        )
    likelihoods = model.pseudo_log_likelihood([text for record in records for text in record.texts])
    good, bad = likelihoods[::2], likelihoods[1::2]
    correct = np.where(good == bad, 0.5, good > bad)
    by_phenomenon: dict[str, list[float]] = collections.defaultdict(list)
    for record, value in zip(records, correct.tolist(), strict=True):
        if record.label:
            by_phenomenon[record.label].append(value)
    return {name: float(np.mean(values)) for name, values in by_phenomenon.items()} | {ALL: float(correct.mean())}
