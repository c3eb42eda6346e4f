"""bert-jax evaluate."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Annotated

import tyro

from bert_jax.cli.finetune import spread
from bert_jax.config.finetuning import Reading, TaskName
from bert_jax.inference.predictor import Asker, run_config


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Score a fine-tuned model by the official scores of its task; each example counts once, on any number of devices.

    --out DIR writes what a server or an official script reads: GLUE's submission (with --split test), SQuAD's predictions.json,
    nbest_predictions.json and null_odds.json, SWAG's csv, tags beside the right ones for conlleval; of other splits and tables
    the answers as JSON lines.

    Example: bert-jax evaluate runs/mnli --data GLUE --split test --out submission
    """

    model: Annotated[str, tyro.conf.Positional]
    """Fine-tuning run, or a model of any format that `bert-jax convert` reads."""
    data: str
    """Directory, a prefix of file names, or tfds:NAME, as for fine-tuning."""
    reading: tyro.conf.OmitArgPrefixes[Reading]
    """How files are read; as the run read its own where nothing is said."""
    task: TaskName | None = None
    """The task, where the model is no fine-tuning run; ax for GLUE's diagnostics with a model of MNLI."""
    split: str | None = None
    """dev, test, of MNLI also dev_mismatched and test_mismatched; all development splits where not given."""
    labels: tuple[str, ...] = ()
    """Names of the head's outputs, in their order, where the model does not know them."""
    threshold: float | None = None
    """SQuAD 2.0: null odds above which no answer is given; the run's best where not given."""
    out: str | None = None
    """Directory for files."""
    json: bool = False
    """Print JSON."""


def main(arguments: list[str]) -> int:
    known = next((config for word in arguments if not word.startswith("-") and (config := run_config(word))), None)
    command = functools.partial(Evaluate, reading=known.reading if known else Reading())
    options = tyro.cli(command, prog="bert-jax evaluate", args=spread(arguments))
    asker = Asker.load(
        options.model, task=options.task, reading=options.reading, labels=options.labels, threshold=options.threshold
    )
    scores = asker.evaluate(options.data, split=options.split, out=options.out)
    if options.json:
        print(json.dumps(scores))
        return 0
    for split, values in scores.items():
        print(f"{split}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
    if options.out:
        print(f"{options.out}: written")
    return 0
