"""bert-jax doctor."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tyro
from rich.console import Console

from bert_jax import processes
from bert_jax.cli.pretrain import expand_names, load_config, registry
from bert_jax.cluster import doctor
from bert_jax.config.run import Config

_USAGE = """usage: bert-jax doctor CONFIG [--json] [--section.field VALUE ...]

Check a pretraining run before it starts: data, vocabulary, settings, devices, memory, run directory, disk, checkpoints, and, of
several processes, whether they agree and how fast they exchange arrays. Nothing is changed.

CONFIG is the Python file of an experiment, as for `bert-jax pretrain`, or the config.json of a run. Options are those of `bert-jax
pretrain`; on a cluster, start the same command on every host.

Exit status: 0 if nothing is wrong or only warnings were found, 2 if the run would fail.

Example: bert-jax doctor experiments/dynamic_masking.py --run gs://bucket/run --mesh.fsdp 8
"""
_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    if not arguments or arguments[0].startswith("-"):
        is_help = bool(arguments) and arguments[0] in ("-h", "--help")
        print(_USAGE, end="", file=sys.stdout if is_help else sys.stderr)
        return 0 if is_help else 2
    path, words = Path(arguments[0]), expand_names([word for word in arguments[1:] if word != "--json"])
    config = tyro.cli(Config, default=load_config(path), prog=f"bert-jax doctor {path}", args=words, registry=registry())
    as_json, console = "--json" in arguments[1:], Console(soft_wrap=True, highlight=False)
    found = []
    # Every process finds the same; the first one prints it.
    for finding in doctor.examine(config):
        found.append(finding)
        if not as_json and processes.group().index == 0:
            style = _STYLES[finding.level]
            console.print(f"[{style}]{finding.level:8}[/{style}]{finding.check:14}", end="")
            console.print(finding.sentence, markup=False)
    if as_json and processes.group().index == 0:
        print(json.dumps([finding._asdict() for finding in found], indent=2))
    return 2 if doctor.worst(found) == "error" else 0
