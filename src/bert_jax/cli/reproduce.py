"""bert-jax reproduce."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from pathlib import Path
from typing import Annotated

import tyro

from bert_jax.recipes import report
from bert_jax.recipes.reproduction import Reproduction, load_table
from bert_jax.recipes.tables import Inputs, Scale


@dataclasses.dataclass(frozen=True)
class Reproduce:
    """Run the recipes of a table of a paper, and report our values beside the published ones.

    TABLE is the name of a file in experiments/tables, such as table5. Each row is pretrained, or starts from a released checkpoint,
    and is fine-tuned with every seed. The same command resumes a table that was stopped; finished runs are not repeated. The report
    is written as report.md, report.json and report.png into the directory of the runs.

    Example: bert-jax reproduce table5 --scale laptop

    Example: bert-jax reproduce table5 --scale full --data data --list
    """

    table: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TABLE")]
    """Name of a table, or a Python file with a function table(scale, inputs)."""
    scale: Scale = "laptop"
    """Size of the runs:
    full: the paper's;
    small: a smaller model and fewer steps, for a node of accelerators;
    laptop: minutes on two CPU cores, with other tasks of the same kind, to compare the order of the rows."""
    data: Path = Path("data")
    """Directory of data sets, corpora and released checkpoints."""
    out: Path | None = None
    """Directory of the runs and the report; by default runs/TABLE-SCALE."""
    recipes: Path = Path("experiments/tables")
    """Directory of the tables' files."""
    list: bool = False
    """Print the cells of the table and what is missing, and run nothing."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    options = tyro.cli(Reproduce, prog="bert-jax reproduce", args=arguments)
    inputs = Inputs(options.data)
    table = load_table(options.table, options.scale, inputs, options.recipes)
    path = Path(options.table) if options.table.endswith(".py") else options.recipes / f"{options.table}.py"
    reproduction = Reproduction(table, options.out or Path("runs") / f"{path.stem}-{options.scale}")
    if options.list:
        print("\n".join(_states(reproduction, inputs)))
        return 0
    inputs.check()
    began = time.monotonic()
    signal = reproduction.run()
    digests = {path: _digest(Path(path)) for path in inputs.needs}
    facts = report.facts(path, options.scale, digests, time.monotonic() - began)
    written = report.write(reproduction, facts)
    if signal:
        return 128 + signal
    print(written.read_text(), end="")
    return 0


def _states(reproduction: Reproduction, inputs: Inputs) -> list[str]:
    """A line for each cell, for each one that is left out, and for each input that is missing."""
    cells = reproduction.cells()
    width = max(len(f"{cell.row}, {cell.column}") for cell in cells)
    lines = [f"{f'{cell.row}, {cell.column}':{width}}  {cell.finished} of {cell.scores.size} runs finished" for cell in cells]
    lines += [f"not in this table: {name}: {reason}" for name, reason in reproduction.table.excluded.items()]
    return lines + [f"missing: {path}: {how}" for path, how in inputs.missing()]


def _digest(path: Path) -> str:
    """The first digits of the SHA-256 of a file, or of the names and contents of the files of a directory or with a prefix."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.is_file() else sorted(path.parent.glob(f"{path.name}.*"))
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            with file.open("rb") as content:
                digest.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
    return f"sha256 {digest.hexdigest()[:16]}"
