"""Tables of papers as recipes: which models are trained, on which tasks they are scored, and what was published."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.config.model import ModelConfig
from bert_jax.config.run import Config
from bert_jax.errors import UserError

Scale = Literal["full", "small", "laptop"]
"""Size of the runs: the paper's; one that a node of accelerators finishes in hours; one that two CPU cores finish in minutes."""

PRETRAINING = "pretraining"
"""Name of the runs that [`Column.run`][bert_jax.recipes.tables.Column] has for a score of the pretrained model itself."""


@dataclass(frozen=True)
class Inputs:
    """Where a table finds what it does not make itself, and which of it is missing.

    Examples:
      >>> inputs = Inputs(Path("data"))
      >>> inputs.require(inputs.directory / "GLUE", "Get it from gluebenchmark.com/tasks.")
      'data/GLUE'
      >>> list(inputs.needs)
      ['data/GLUE']
    """

    directory: Path
    """Directory of data sets and released checkpoints."""
    needs: dict[str, str] = field(default_factory=dict)
    """Path -> how to get what belongs there."""

    def require(self, path: str | Path, how: str) -> str:
        """The path of something that must exist before the table is run.

        Args:
          path: a file, a directory, or the prefix of the files of a task.
          how: a sentence that says where it can be found.
        """
        self.needs[str(path)] = how
        return str(path)

    def missing(self) -> list[tuple[str, str]]:
        """What does not exist, and how to get it."""
        return [(path, how) for path, how in self.needs.items() if not _exists(Path(path))]

    def check(self) -> None:
        """Check that everything is there.

        Raises:
          UserError: something is missing; the sentence says where to get it and where to put it.
        """
        if missing := self.missing():
            path, how = missing[0]
            others = f" Also missing: {', '.join(path for path, _ in missing[1:])}." if missing[1:] else ""
            raise UserError(f"{path} does not exist. {how}{others}")


@dataclass(frozen=True)
class Row:
    """A system: the run that pretrains it, or a released checkpoint, and its fine-tuning runs.

    Raises:
      UserError: neither or both of ``pretraining`` and ``checkpoint`` are given.

    Examples:
      >>> Row(checkpoint="data/uncased_L-12_H-768_A-12", size=ModelConfig()).pretraining is None
      True
    """

    pretraining: Config | None = None
    """The run that is pretrained; its ``run`` and ``train.seed`` are those of each pretraining seed."""
    checkpoint: str | None = None
    """A released model, of any format that `bert-jax convert` reads."""
    size: ModelConfig | None = None
    """Shape that the checkpoint must have."""
    finetuning: Mapping[str, FinetuneConfig] = field(default_factory=dict)
    """Name of a task -> the run; its ``run``, ``init`` and ``seed`` are those of each model and seed.
    With several learning rates, each seed's score is that of the best one, chosen on the development set as in the paper."""

    def __post_init__(self) -> None:
        if (self.pretraining is None) == (self.checkpoint is None):
            raise UserError("A row of a table has either a run that is pretrained or a checkpoint.")


@dataclass(frozen=True)
class Column:
    """What a column shows.

    Examples:
      >>> Column("squad", "f1", paper="SQuAD F1").score
      'f1'
    """

    run: str
    """Name of the fine-tuning run; or "pretraining", whose score is "perplexity" or one of those of its last evaluation."""
    score: str
    """Name of the score."""
    paper: str | None = None
    """Column of the paper with which this one is compared; on a laptop, a task of the same kind."""


@dataclass(frozen=True)
class Table:
    """A table of a paper at one scale.

    Raises:
      UserError: the baseline is no row, or a row lacks the runs of all columns.

    Examples:
      >>> row = Row(checkpoint="bert", finetuning={"rte": FinetuneConfig("", "rte", "", "GLUE")})
      >>> Table("Table 1", rows={"BERT": row}, columns={"RTE": Column("rte", "accuracy")}, baseline="BERT").cells()
      [('BERT', 'RTE')]
    """

    title: str
    rows: Mapping[str, Row]
    columns: Mapping[str, Column]
    baseline: str
    """Row that the others are compared with."""
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Row -> column of the paper -> value as printed there."""
    bands: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    """Row -> column of the paper -> range in which a reproduction must fall; only where the setting is the paper's."""
    pretraining_seeds: int = 1
    finetuning_seeds: int = 1
    excluded: Mapping[str, str] = field(default_factory=dict)
    """Row, column or cell of the paper that this table has not -> the reason."""

    def __post_init__(self) -> None:
        if self.baseline not in self.rows:
            raise UserError(f"The baseline {self.baseline!r} is none of the rows {', '.join(self.rows)}.")
        for name in self.rows:
            if not any(row == name for row, _ in self.cells()):
                raise UserError(f"The row {name!r} has no run for any of the columns {', '.join(self.columns)}.")

    def cells(self) -> list[tuple[str, str]]:
        """Names of row and column of every cell that has runs."""
        return [
            (name, title)
            for name, row in self.rows.items()
            for title, column in self.columns.items()
            if (row.pretraining is not None if column.run == PRETRAINING else column.run in row.finetuning)
        ]


def _exists(path: Path) -> bool:
    """Whether there is a file or directory, or the files of a task with this prefix."""
    return path.exists() or any(path.parent.glob(f"{path.name}.*"))


def sampling_band(percent: float, examples: int) -> tuple[float, float]:
    """A published accuracy ± two standard errors of a sample of so many examples, in percent.

    It is the band for figures without a published spread over seeds.

    Examples:
      >>> sampling_band(84.4, 9815)
      (83.67, 85.13)
    """
    share = percent / 100
    error = 200 * math.sqrt(share * (1 - share) / examples)
    return round(percent - error, 2), round(percent + error, 2)
