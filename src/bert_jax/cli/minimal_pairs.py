"""bert-jax minimal-pairs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from typing import Annotated

import tyro

import bert_jax
from bert_jax.evaluation import minimal_pairs
from bert_jax.evaluation.minimal_pairs import Report, Score
from bert_jax.inference.likelihood import Scoring
from bert_jax.io import atomic
from bert_jax.training.logging import progress_bar


@dataclasses.dataclass(frozen=True)
class MinimalPairs:
    """Compute how often a model prefers the acceptable one of two sentences, as for BLiMP.

    A sentence's score is its pseudo-log-likelihood: the sum over its tokens of the log-probability of each when it is masked, as in
    the evaluation of BabyLM. Files are BLiMP's own JSON lines, or tables with columns good and bad, and optionally paradigm and
    phenomenon. Accuracies are printed by paradigm, by phenomenon, and as the mean over the paradigms; a tie counts half.

    Example: bert-jax minimal-pairs runs/mine blimp/data
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Run directory, or a model of any format that `bert-jax convert` reads."""
    files: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE", help_behavior_hint="(required)")]
    """Files of pairs, or directories of them."""
    scoring: Scoring = "token"
    """What is masked when a token is predicted: token, it alone; within-word, it and the later tokens of its word."""
    good: str | None = None
    """Column of the acceptable sentence; by default sentence_good, else good."""
    bad: str | None = None
    """Column of the other sentence; by default sentence_bad, else bad."""
    out: str | None = None
    """File of JSON lines to create, with the log-likelihoods of each pair."""
    json: bool = False
    """Print JSON."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    options = tyro.cli(MinimalPairs, prog="bert-jax minimal-pairs", args=arguments)
    with atomic.new_path(options.out) if options.out else contextlib.nullcontext() as out:
        model = bert_jax.load(options.model)
        began = time.perf_counter()
        with progress_bar("predictions") as progress:
            report = minimal_pairs.score(
                model, options.files, scoring=options.scoring, good=options.good, bad=options.bad, progress=progress
            )
        speed = len(report.pairs) / (time.perf_counter() - began)
        if out:
            out.write_text("".join(f"{line}\n" for line in _lines(report)))
    print(json.dumps(report.to_dict(), indent=2) if options.json else "\n".join([*table(report), f"{speed:,.1f} pairs/s"]))
    return 0


def table(report: Report) -> list[str]:
    """Lines with the accuracies."""
    width = max(len(name) for name in (*report.paradigms, *report.phenomena, "mean of paradigms"))
    lines = []
    for heading, scores in (("paradigm", report.paradigms), ("phenomenon", report.phenomena)):
        if scores:
            lines += [f"{heading:{width}}  accuracy   pairs   ties"]
            lines += [*(_line(name, width, score) for name, score in scores.items()), ""]
    return [*lines, _line("all pairs", width, report.all), f"{'mean of paradigms':{width}}  {report.mean:8.2%}"]


def _line(name: str, width: int, score: Score) -> str:
    return f"{name:{width}}  {score.accuracy:8.2%} {score.pairs:7,} {score.ties:6,}"


def _lines(report: Report) -> Iterator[str]:
    for pair, (good, bad) in zip(report.pairs, report.likelihoods.tolist(), strict=True):
        yield json.dumps(pair._asdict() | {"good_log_likelihood": good, "bad_log_likelihood": bad}, ensure_ascii=False)
