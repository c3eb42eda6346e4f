"""Running the recipes of a table: every row is pretrained and fine-tuned with every seed, and finished runs are not repeated."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jaxtyping import Float

from bert_jax import convert
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.config.model import ModelConfig
from bert_jax.config.run import Config
from bert_jax.errors import UserError
from bert_jax.io import atomic
from bert_jax.io.parsing import read_json
from bert_jax.recipes import python_files
from bert_jax.recipes.tables import PRETRAINING, Inputs, Scale, Table
from bert_jax.tasks import registry
from bert_jax.training.finetuning import finetune
from bert_jax.training.logging import log, read_metrics
from bert_jax.training.pretraining import pretrain

RESULT = "result.json"
"""File in the directory of a finished run: its config and its scores."""

_SHAPE = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")


class Cell(NamedTuple):
    """Scores of a row in a column."""

    row: str
    column: str
    scores: Float[np.ndarray, "P F"]
    """In percent, or as a perplexity: of each pretraining seed and fine-tuning seed, NaN where the run is not finished."""

    @property
    def finished(self) -> int:
        """Number of finished runs."""
        return int(np.isfinite(self.scores).sum())


class Run(NamedTuple):
    """A run of a table."""

    row: str
    name: str
    """"pretraining", or the name of the fine-tuning run."""
    seeds: tuple[int, int]
    """Index of the pretraining seed, and of the fine-tuning seed."""
    config: Config | FinetuneConfig


class Reproduction:
    """The runs of a table in a directory.

    Args:
      table: the recipes.
      directory: where the runs are; the same directory resumes them.

    Examples:
      >>> from bert_jax.recipes import Column, Row
      >>> row = Row(checkpoint="bert", finetuning={"rte": bert_jax.FinetuneConfig("", "rte", "", "GLUE")})
      >>> table = Table("Table 1", {"BERT": row}, {"RTE": Column("rte", "accuracy")}, baseline="BERT", finetuning_seeds=2)
      >>> [run.config.run for run in Reproduction(table, Path("runs/table1")).runs()]
      ['runs/table1/BERT/0/rte-0', 'runs/table1/BERT/0/rte-1']
    """

    def __init__(self, table: Table, directory: Path) -> None:
        self.table, self.directory = table, directory

    def runs(self) -> Iterator[Run]:
        """Yield every run in the order in which they are trained: all rows with the first pretraining seed, then with the next."""
        shared: dict[str, str] = {}
        for model in range(self.table.pretraining_seeds):
            for name, row in self.table.rows.items():
                if model and row.pretraining is None:
                    # A released checkpoint is one model.
                    continue
                directory = self.directory / _slug(name) / str(model)
                init = row.checkpoint
                if row.pretraining is not None:
                    config = row.pretraining
                    config = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=config.train.seed + model))
                    # Rows that differ in fine-tuning alone share a model.
                    init = shared.setdefault(config.to_json(), str(directory / PRETRAINING))
                    yield Run(name, PRETRAINING, (model, 0), dataclasses.replace(config, run=init))
                for task, finetuning in row.finetuning.items():
                    for seed in range(self.table.finetuning_seeds):
                        path = str(directory / f"{task}-{seed}")
                        run = dataclasses.replace(finetuning, run=path, init=str(init), seed=finetuning.seed + seed)
                        yield Run(name, task, (model, seed), run)

    def run(self) -> signal.Signals | None:
        """Train what is not finished; return the signal that stopped a run, if any.

        Raises:
          UserError: a checkpoint has another size than its row says; and as [`pretrain`][bert_jax.pretrain] and
            [`finetune`][bert_jax.finetune].
          RunError: as these.
        """
        for name, row in self.table.rows.items():
            if row.checkpoint is not None and row.size is not None:
                _check_size(name, row.checkpoint, row.size)
        runs = [*self.runs()]
        for number, run in enumerate(runs, 1):
            if _scores(run.config) is not None:
                continue
            log(f"{number} of {len(runs)}: {run.config.run}")
            result = pretrain(run.config) if isinstance(run.config, Config) else finetune(run.config)
            if result.signal:
                return result.signal
            _store(run.config)
            # Programs of finished runs would stay in memory.
            jax.clear_caches()
        return None

    def cells(self) -> list[Cell]:
        """Every cell of the table, with the scores of its finished runs."""
        found = {(run.row, run.name, run.seeds): _scores(run.config) for run in self.runs()}
        cells = []
        for row, title in self.table.cells():
            column = self.table.columns[title]
            seeds = 1 if column.run == PRETRAINING else self.table.finetuning_seeds
            models = 1 if self.table.rows[row].pretraining is None else self.table.pretraining_seeds
            scores = np.full((models, seeds), math.nan)
            for place in np.ndindex(*scores.shape):
                values = found[row, column.run, place]
                if values is not None:
                    scores[place] = _value(values, column.score, title)
            cells.append(Cell(row, title, scores))
        return cells


def load_table(name: str, scale: Scale, inputs: Inputs, recipes: Path) -> Table:
    """The table that a Python file describes by a function ``table(scale, inputs)``.

    Args:
      name: of a file in ``recipes``, without ``.py``; or the path of a file.
      scale: size of the runs.
      inputs: where the table finds its data; what it needs is entered there.
      recipes: directory of the files.

    Raises:
      UserError: there is no such table, or its file does not make one.
    """
    path = Path(name) if name.endswith(".py") else recipes / f"{name}.py"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in recipes.glob("*.py"))) or "none"
        raise UserError(
            f"There is no table {name!r} in {recipes}, which has: {known}. Run the command in a clone of the repository, or name "
            "the directory with --recipes."
        )
    return python_files.call(path, "table(scale, inputs)", Table, scale, inputs)


def _slug(name: str) -> str:
    """A row's name as that of a directory."""
    words = "".join(letter if letter.isalnum() else " " for letter in name).split()
    return "-".join(words)


def _check_size(name: str, checkpoint: str, size: ModelConfig) -> None:
    found = convert.read(checkpoint).config
    if wrong := [field for field in _SHAPE if getattr(found, field) != getattr(size, field)]:
        differences = ", ".join(f"{field} {getattr(found, field)} instead of {getattr(size, field)}" for field in wrong)
        raise UserError(f"{checkpoint} has another size than {name}: {differences}; put the right checkpoint there.")


def _stored(config: Config | FinetuneConfig) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(config.to_json())
    return content


def _scores(config: Config | FinetuneConfig) -> dict[str, float] | None:
    """Scores of a run that was finished with this config, or None."""
    path = Path(config.run) / RESULT
    if not path.exists():
        return None
    content = read_json(path)
    if content["config"] != _stored(config):
        return None
    scores: dict[str, float] = content["scores"]
    return scores


def _store(config: Config | FinetuneConfig) -> None:
    """Store the scores of a run that has just ended."""
    split = "held_out" if isinstance(config, Config) else "dev"
    line = read_metrics(config.run, split=split)[-1]
    scores = {name: float(value) for name, value in line.items() if name not in ("step", "split", "seconds")}
    if isinstance(config, Config):
        scores["perplexity"] = math.exp(scores["mlm_loss"])
    else:
        scores["perfect"] = registry.get(config.task).perfect
    with atomic.replaced_path(epath.Path(config.run) / RESULT) as part:
        part.write_text(json.dumps({"config": _stored(config), "scores": scores}, indent=2) + "\n")


def _value(scores: dict[str, float], name: str, column: str) -> float:
    """A score in percent, or a perplexity or loss as it is."""
    if name not in scores:
        raise UserError(f"The column {column!r} shows the score {name!r}; the run has {', '.join(scores)}.")
    if "perfect" in scores:
        return 100 * scores[name] / scores["perfect"]
    return 100 * scores[name] if name.endswith("accuracy") else scores[name]
