"""bert-jax checkpoints."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import tyro
from etils import epath

from bert_jax.checkpoints import BEST, DIRECTORY, report
from bert_jax.checkpoints.report import Entry
from bert_jax.config.retention import Retention
from bert_jax.config.validation import require_positive
from bert_jax.errors import RunError, UserError
from bert_jax.io import remote
from bert_jax.training.logging import held_out_losses

_UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclasses.dataclass(frozen=True)
class ListCheckpoints:
    """List the checkpoints of a run: step, time, size, why it is kept, and whether it is whole.

    Descriptions, sizes and small files are always checked, all arrays only with --verify; the exit status is 1 if a step is
    damaged. The options --keep... replace the rules of the run's config. Steps that no rule keeps are listed as "not kept";
    --prune deletes exactly these, and what damage and unfinished saves have left. Do not prune while the run is training.

    Example: bert-jax checkpoints runs/mine --verify
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, or a directory that `bert-jax convert --to orbax` wrote."""
    verify: bool = False
    """Read every array of every step, and compare it with its checksum."""
    prune: bool = False
    """Verify all steps, then delete what is listed as not kept, set aside or unfinished. Damaged steps stay.
    An unfinished directory also stays if it changed in the last ten minutes, because a run may be writing it."""
    keep: int | None = None
    """Number of newest steps to keep."""
    keep_best: int | None = None
    """Number of evaluated steps with the lowest held-out MLM loss to keep."""
    keep_every: int | None = None
    """Keep multiples of this step."""
    keep_hours: float | None = None
    """Keep the first step, and then the first one after so many hours, and so on."""
    json: bool = False
    """Print JSON."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    options = tyro.cli(ListCheckpoints, prog="bert-jax checkpoints", args=arguments)
    run = epath.Path(options.run)
    if not (run / DIRECTORY).is_dir():
        raise UserError(f"{run} has no checkpoints; name the directory of a run.")
    verify = options.verify or options.prune
    entries = report.read(run, retention=_retention(options, run), losses=held_out_losses(run), verify=verify)
    best = report.read(run / BEST, verify=verify) if (run / BEST / DIRECTORY).is_dir() else []
    listed = [dataclasses.replace(entry, kept=("best model",)) for entry in best if entry.kind == "step"] + entries
    if options.json:
        print(json.dumps([entry.to_dict() for entry in listed], indent=2))
    else:
        _print(run, listed, verified=verify)
    if options.prune:
        count, freed = sum(entry.removable for entry in entries), report.prune(entries)
        if not options.json:
            print(f"{run}: deleted {count} of {len(entries)} directories, {_bytes(freed)}")
    if damaged := [entry for entry in listed if entry.problems]:
        first = damaged[0]
        raise RunError(
            f"{len(damaged)} of {sum(entry.kind == 'step' for entry in listed)} checkpoints are damaged, first "
            f"{first.path.relative_to(remote.absolute(run))} ({first.problems[0]}); resuming uses the newest one that can be read."
        )
    return 0


def _retention(options: ListCheckpoints, run: epath.Path) -> Retention | None:
    """The rules of the run, with those of the options instead."""
    fields = {"newest": "keep", "best": "keep_best", "every": "keep_every", "hours": "keep_hours"}
    chosen = {name: value for name, option in fields.items() if (value := getattr(options, option)) is not None}
    for name, value in chosen.items():
        require_positive(fields[name], value)
    stored = report.stored_retention(run)
    if stored is None and chosen and options.keep is None:
        raise UserError(f"{run} has no config.json with the number of newest checkpoints; give it with --keep.")
    return dataclasses.replace(stored or Retention(1), **chosen) if stored or chosen else None


def _print(run: epath.Path, entries: list[Entry], *, verified: bool) -> None:
    rows = [("", "saved", "size", "format", "kept", "state")]
    for entry in entries:
        step = entry.kind == "step"
        kept = ", ".join(entry.kept) or ("" if entry.problems or not step else "not kept")
        state = "; ".join(entry.problems) or ("verified" if verified else "whole")
        name, version = str(entry.path.relative_to(remote.absolute(run))), str(entry.version or "")
        saved = f"{entry.saved.astimezone():%Y-%m-%d %H:%M:%S}"
        rows.append((name, saved, _bytes(entry.size), version, kept, state if step else entry.kind))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip())


def _bytes(size: int) -> str:
    power = next(power for power in range(len(_UNITS)) if size < 1000 ** (power + 1) or power == len(_UNITS) - 1)
    return f"{size / 1000**power:.{1 if power else 0}f} {_UNITS[power]}"
