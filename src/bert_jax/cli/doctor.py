"""bert-jax doctor."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from bert_jax import processes
from bert_jax.cli.pretrain import load_config, parse, print_usage
from bert_jax.cluster import doctor
from bert_jax.cluster.doctor import Finding
from bert_jax.config.run import Config

_USAGE = """usage: bert-jax doctor CONFIG [--json] [--section.field VALUE ...]

Check a pretraining run before it starts. `bert-jax doctor CONFIG --help` lists all options, which are those of `bert-jax pretrain`.

CONFIG is the Python file of an experiment, as for `bert-jax pretrain`, or the config.json of a run.

Example: bert-jax doctor experiments/dynamic_masking.py --run gs://bucket/run --mesh.fsdp 8
"""
_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


@dataclasses.dataclass(frozen=True)
class Options:
    """Check a pretraining run before it starts: data, vocabulary, settings, devices, memory, run directory, disk and checkpoints;
    of several processes also whether they agree, and how fast they exchange arrays.

    Nothing is changed. On a cluster, start the same command on every host. The exit status is 2 if the run would fail, otherwise 0.

    Example: bert-jax doctor experiments/dynamic_masking.py --run gs://bucket/run --mesh.fsdp 8
    """

    config: Annotated[Config, tyro.conf.arg(name="")]
    json: bool = False
    """Print JSON."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    if not arguments or arguments[0].startswith("-"):
        return print_usage(_USAGE, arguments)
    default = Options(load_config(Path(arguments[0])))
    options = parse(default, arguments[1:], prog=f"bert-jax doctor {arguments[0]}")
    found = []
    for finding in doctor.examine(options.config):
        found.append(finding)
        # Every process finds the same.
        if processes.group().index == 0 and not options.json:
            _print(finding)
    if processes.group().index == 0 and options.json:
        print(json.dumps([finding._asdict() for finding in found], indent=2))
    return 2 if doctor.worst(found) == "error" else 0


def _print(finding: Finding) -> None:
    console, style = Console(soft_wrap=True, highlight=False), _STYLES[finding.level]
    console.print(f"[{style}]{finding.level:8}[/{style}]{finding.check:14}", end="")
    console.print(finding.sentence, markup=False)
