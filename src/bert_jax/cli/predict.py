"""bert-jax predict."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Annotated

import tyro

from bert_jax.cli.finetune import spread
from bert_jax.config.finetuning import Reading, TaskName
from bert_jax.inference.predictor import Asker, run_config
from bert_jax.io import atomic
from bert_jax.training.logging import progress_bar


@dataclasses.dataclass(frozen=True)
class Predict:
    """Answer a file's questions with a fine-tuned model; files may be of any size.

    Tables (.tsv, .csv, .jsonl, also .gz) are read and answered a few thousand rows at a time. Each line of the output is an
    object: id, label and probabilities; a score; an answer with its candidates; or the words of a sentence and their tags.

    Example: bert-jax predict runs/topic articles.tsv --out topics.jsonl
    """

    model: Annotated[str, tyro.conf.Positional]
    """Fine-tuning run, or a model of any format that `bert-jax convert` reads."""
    file: Annotated[str, tyro.conf.Positional]
    """Questions, in a format of the task; labels need not be there and are not looked at."""
    out: str
    """File of JSON lines to make."""
    reading: tyro.conf.OmitArgPrefixes[Reading]
    """How the file is read; as the run read its own where nothing is said."""
    task: TaskName | None = None
    """The task, where the model is no fine-tuning run."""
    labels: tuple[str, ...] = ()
    """Names of the head's outputs, in their order, where the model does not know them."""
    threshold: float | None = None
    """SQuAD 2.0: null odds above which no answer is given; the run's best where not given."""


def main(arguments: list[str]) -> int:
    known = next((config for word in arguments if not word.startswith("-") and (config := run_config(word))), None)
    command = functools.partial(Predict, reading=known.reading if known else Reading())
    options = tyro.cli(command, prog="bert-jax predict", args=spread(arguments))
    count = 0
    with atomic.new(options.out) as path:
        asker = Asker.load(
            options.model, task=options.task, reading=options.reading, labels=options.labels, threshold=options.threshold
        )
        with path.open("w") as file, progress_bar("answers") as progress:
            for count, found in enumerate(asker.predict(options.file), 1):
                file.write(json.dumps(found, ensure_ascii=False) + "\n")
                progress(count, None)
    print(f"{options.out}: {count:,} answers")
    return 0
