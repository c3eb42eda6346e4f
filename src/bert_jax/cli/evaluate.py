"""bert-jax evaluate."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Annotated

import tyro

from bert_jax.cli.finetune import split_lists
from bert_jax.config.finetuning import TaskDataConfig, TaskName
from bert_jax.inference.predictor import Predictor, run_config


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Compute the official scores of a fine-tuned model. Each example counts once, on any number of devices.

    With --out DIR it writes the files that a server or an official script reads: GLUE's submission (with --split test); SQuAD's
    predictions.json, nbest_predictions.json and null_odds.json; SWAG's CSV; the predicted and the correct tags for conlleval. For
    other splits and tables it writes the predictions as JSON Lines.

    Example: bert-jax evaluate runs/mnli --data GLUE --split test --out submission
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Fine-tuning run, or a model of any format that `bert-jax convert` reads."""
    data: str
    """Directory, a prefix of file names, or tfds:NAME, as for fine-tuning."""
    task_data: tyro.conf.OmitArgPrefixes[TaskDataConfig]
    """How files are read; the defaults are those of the fine-tuning run."""
    task: TaskName | None = None
    """Task, if the model is not a fine-tuning run; ax for GLUE's diagnostics with a model of MNLI."""
    split: str | None = None
    """dev, test, for MNLI also dev_mismatched and test_mismatched; by default all development splits."""
    labels: tuple[str, ...] = ()
    """Names of the head's outputs, in order, if they are not stored with the model."""
    threshold: float | None = None
    """SQuAD 2.0: null odds above which no answer is given; by default the best threshold of the run."""
    out: str | None = None
    """Directory for the output files."""
    json: bool = False
    """Print JSON."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    run = next((config for word in arguments if not word.startswith("-") and (config := run_config(word))), None)
    command = functools.partial(Evaluate, task_data=run.task_data if run else TaskDataConfig())
    options = tyro.cli(command, prog="bert-jax evaluate", args=split_lists(arguments))
    predictor = Predictor.load(
        options.model, task=options.task, task_data=options.task_data, labels=options.labels, threshold=options.threshold
    )
    scores = predictor.evaluate(options.data, split=options.split, out=options.out)
    if options.json:
        print(json.dumps(scores))
        return 0
    for split, values in scores.items():
        print(f"{split}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
    if options.out:
        print(f"{options.out}: written")
    return 0
