"""bert-jax predict."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable
from typing import Annotated, Any

import tyro
from etils import epath

from bert_jax.cli.finetune import split_lists
from bert_jax.config.finetuning import TaskDataConfig, TaskName
from bert_jax.errors import UserError
from bert_jax.inference.predictor import Predictor, run_config
from bert_jax.io import atomic
from bert_jax.training.logging import progress_bar


@dataclasses.dataclass(frozen=True)
class Predict:
    """Apply a fine-tuned model to a file of any size.

    Tables (.tsv, .csv, .jsonl, .json, .parquet) and texts (.txt, one a line) are processed a few thousand rows at a time; columns
    have the names of the run, or those of --text and --text-b. Each line of the output is an object: id with label and
    probabilities, with labels, or with a score; an answer with its candidates; or the words of a sentence and their tags. An empty
    text has null in their place. If a row cannot be read, the predictions before it are kept in OUT.partial.

    Example: bert-jax predict runs/topic articles.tsv --out topics.jsonl
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Fine-tuning run, or a model of any format that `bert-jax convert` reads."""
    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """Input in a format of the task; labels are not needed and are ignored. `-` is standard input: texts or JSON, one a line."""
    out: str
    """JSON Lines file to create."""
    task_data: tyro.conf.OmitArgPrefixes[TaskDataConfig]
    """How the file is read; the defaults are those of the fine-tuning run."""
    task: TaskName | None = None
    """Task, if the model is not a fine-tuning run."""
    labels: tuple[str, ...] = ()
    """Names of the head's outputs, in order, if they are not stored with the model."""
    threshold: float | None = None
    """SQuAD 2.0: null odds above which no answer is given; by default the best threshold of the run."""
    strict: bool = False
    """Stop at an empty text."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    run = next((config for word in arguments if not word.startswith("-") and (config := run_config(word))), None)
    command = functools.partial(Predict, task_data=run.task_data if run else TaskDataConfig())
    options = tyro.cli(command, prog="bert-jax predict", args=split_lists(arguments))
    with atomic.new_path(options.out) as path:
        predictor = Predictor.load(
            options.model, task=options.task, task_data=options.task_data, labels=options.labels, threshold=options.threshold
        )
        count, empty = _write(predictor.predict(options.file, strict=options.strict), path, epath.Path(f"{options.out}.partial"))
    nulls = f", {empty:,} of them null for an empty text" if empty else ""
    print(f"{options.out}: {count:,} prediction{'s' * (count != 1)}{nulls}")
    return 0


def _write(predictions: Iterable[dict[str, Any]], path: epath.Path, partial: epath.Path) -> tuple[int, int]:
    """Write predictions; those before an error to ``partial``. Returns the numbers of predictions and of empty texts."""
    count = empty = 0
    try:
        with path.open("w") as file, progress_bar("predictions") as progress:
            for count, prediction in enumerate(predictions, 1):
                empty += all(value is None for name, value in prediction.items() if name != "id")
                file.write(json.dumps(prediction, ensure_ascii=False) + "\n")
                progress(count, None)
    except UserError as error:
        if count == 0:
            raise
        atomic.move(path, partial)
        raise UserError(f"{error} The {count:,} predictions before it are in {partial}.") from None
    return count, empty
