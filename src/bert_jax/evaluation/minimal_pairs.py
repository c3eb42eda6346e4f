"""Minimal pairs: of two sentences that differ in one thing, is the right one likelier? (BLiMP, Warstadt et al. 2020.)

A file is a table (.tsv, .csv, .jsonl) with the columns ``good`` and ``bad``, and ``phenomenon`` if there are several. BLiMP's own
files have other names for them: ``Columns(text="sentence_good", text_b="sentence_bad", label="UID")``.
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
ALL = "all"


def score(model: Bert, path: epath.PathLike, *, columns: Columns = COLUMNS) -> dict[str, float]:
    """Share of pairs whose good sentence has the higher pseudo-log-likelihood (Salazar et al. 2020); equal ones count half.

    Args:
      model: with an MLM head.
      path: the file of pairs.
      columns: what its columns are called.

    Returns:
      The share of each phenomenon, where the file names them, and that of "all" pairs.

    Raises:
      UserError: the file cannot be read, or a sentence is longer than the model's positions.
    """
    records = [*tables.read(path, columns, labelled=False)]
    alone = next((record for record in records if len(record.texts) < 2), None)
    if alone is not None or not records:
        where = alone.where if alone else f"{path}"
        raise UserError(
            f"{where}: there is no second sentence; a file of minimal pairs has columns {columns.text} and {columns.text_b}."
        )
    sums = model.pseudo_log_likelihood([text for record in records for text in record.texts])
    good, bad = sums[::2], sums[1::2]
    right = np.where(good == bad, 0.5, good > bad)
    groups: dict[str, list[float]] = collections.defaultdict(list)
    for record, value in zip(records, right.tolist(), strict=True):
        if record.label:
            groups[record.label].append(value)
    return {name: float(np.mean(values)) for name, values in groups.items()} | {ALL: float(right.mean())}
