"""bert-jax finetune."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from bert_jax.config.finetuning import FinetuneConfig, Reading, TaskName
from bert_jax.evaluation import seeds
from bert_jax.evaluation.seeds import Grid

_LISTS = ("--learning-rates", "--batch-sizes", "--epoch-counts", "--columns", "--labels")


@dataclasses.dataclass(frozen=True)
class Finetune(FinetuneConfig):
    """Fine-tune a pretrained model on a task, or go on with the run where it stopped.

    Tasks: classify, regress (one's own tables: .tsv, .csv, .jsonl, also .gz, in DIR/train.* and DIR/dev.*, or PREFIX.train.*);
    cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli (GLUE's own files, or tfds:glue/NAME); squad, squad2 (JSON); swag (CSV);
    ner, pos (CoNLL). For each evaluation the official scores are logged; the model with the best one is kept in RUN/best, which
    `bert-jax evaluate`, `predict` and `convert` read.

    Several --seeds or --learning-rates train side by side, in one program, and their spread is reported with a picture; with
    --batch-sizes and --epoch-counts they are a grid. --paper-grid is that of the paper (appendix A.3).

    Example: bert-jax finetune rte --init runs/mnli --data GLUE --run runs/rte --seeds 8 --learning-rates 2e-5,3e-5
    """

    task: Annotated[TaskName, tyro.conf.Positional] = dataclasses.field(kw_only=False)
    """What is learned."""
    reading: tyro.conf.OmitArgPrefixes[Reading] = dataclasses.field(default_factory=Reading)
    """How files are read, and how texts become examples."""
    grid: tyro.conf.OmitArgPrefixes[Grid] = dataclasses.field(default_factory=Grid)
    """More runs."""


def main(arguments: list[str]) -> int:
    options = tyro.cli(Finetune, prog="bert-jax finetune", args=spread(arguments))
    fields = {field.name: getattr(options, field.name) for field in dataclasses.fields(FinetuneConfig)}
    report = seeds.finetune_all(FinetuneConfig(**fields), options.grid)
    if report.signal:
        return 128 + report.signal
    print(report.text)
    return 0


def spread(arguments: list[str]) -> list[str]:
    """Arguments with lists written as words: ``2e-5,3e-5`` is ``2e-5 3e-5``."""
    found: list[str] = []
    parted = [part for word in arguments for part in (word.split("=", 1) if word.split("=")[0] in _LISTS else [word])]
    for before, word in zip(["", *parted], parted, strict=False):
        found += word.split(",") if before in _LISTS else [word]
    return found
