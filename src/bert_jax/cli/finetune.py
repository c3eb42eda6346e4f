"""bert-jax finetune."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from bert_jax.config.finetuning import FinetuneConfig, TaskDataConfig, TaskName
from bert_jax.evaluation import seeds
from bert_jax.evaluation.seeds import Grid

_LISTS = ("--learning-rates", "--batch-sizes", "--epoch-counts", "--columns", "--labels", "--thresholds")


@dataclasses.dataclass(frozen=True)
class Finetune(FinetuneConfig):
    """Fine-tune a pretrained model on a task, or resume the run. The same command resumes a run that was stopped.

    Tasks: classify, regress, multilabel (your own tables: .tsv, .csv, .jsonl, .json, .parquet, as DIR/train.* and DIR/dev.* or
    PREFIX.train.* and PREFIX.dev.*); cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli (GLUE's files, or tfds:glue/NAME); squad,
    squad2 (JSON); swag (CSV); ner, pos (CoNLL). Each evaluation logs the task's official scores; the model with the best score is
    kept in RUN/best, which `bert-jax evaluate`, `predict` and `convert` read.

    Several --seeds or --learning-rates are trained as an ensemble in one program, and statistics of their scores are reported and
    drawn; --batch-sizes and --epoch-counts combine them into a grid. --paper-grid is the grid of the paper (appendix A.3). Lists
    are separated by commas or spaces.

    Example: bert-jax finetune rte --init runs/mnli --data GLUE --run runs/rte --seeds 8 --learning-rates 2e-5,3e-5
    """

    task: Annotated[TaskName, tyro.conf.Positional] = dataclasses.field(kw_only=False)
    """Name of the task."""
    task_data: tyro.conf.OmitArgPrefixes[TaskDataConfig] = dataclasses.field(default_factory=TaskDataConfig)
    """How files are read and how texts become examples."""
    grid: tyro.conf.OmitArgPrefixes[Grid] = dataclasses.field(default_factory=Grid)
    """Combinations of batch sizes and numbers of epochs."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    options = tyro.cli(Finetune, prog="bert-jax finetune", args=split_lists(arguments))
    fields = {field.name: getattr(options, field.name) for field in dataclasses.fields(FinetuneConfig)}
    report = seeds.finetune_all(FinetuneConfig(**fields), options.grid)
    if report.signal:
        return 128 + report.signal
    print(report.text)
    return 0


def split_lists(arguments: list[str]) -> list[str]:
    """Return the arguments with the values of list options as separate words: ``2e-5,3e-5`` becomes ``2e-5 3e-5``."""
    words = [part for word in arguments for part in (word.split("=", 1) if word.split("=")[0] in _LISTS else [word])]
    split: list[str] = []
    for previous, word in zip(["", *words], words, strict=False):
        split += word.split(",") if previous in _LISTS else [word]
    return split
