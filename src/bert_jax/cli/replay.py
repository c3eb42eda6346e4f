"""bert-jax replay."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

from bert_jax.cli.pretrain import load_experiment
from bert_jax.cluster.replay import Replay, replay
from bert_jax.config.validation import require_positive


@dataclasses.dataclass(frozen=True)
class ReplayStep:
    """Compute an anomalous step of a pretraining run again, on one device.

    A run writes such a step to RUN/anomalies: the state before it, its batch and its metrics. The command prints whether loss and
    gradient norm come out as in the run, wrong inputs, parameters that were not finite already, the first part of the network with
    an output that is not finite, and parameters with such gradients. Of a run on one device the numbers have the same bits; sums of
    a run on several devices are rounded differently.

    Example: bert-jax replay runs/mine/anomalies/step-1234
    """

    dump: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DUMP")]
    """Directory of the step, such as RUN/anomalies/step-1234."""
    experiment: Path | None = None
    """The run's experiment, if its mask policy has functions or token weights, which a dump does not contain."""
    accumulate: int | None = None
    """Micro-batches, if the device has too little memory; by default those of the run, times the parts of its batches."""
    json: bool = False
    """Print JSON."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    options = tyro.cli(ReplayStep, prog="bert-jax replay", args=arguments)
    if options.accumulate is not None:
        require_positive("accumulate", options.accumulate)
    mask = load_experiment(options.experiment).mask if options.experiment else None
    result = replay(options.dump, mask=mask, accumulate=options.accumulate)
    print(json.dumps(result.to_dict(), indent=2) if options.json else "\n".join(report(result)))
    return 0


def report(result: Replay) -> list[str]:
    """The lines of a report."""
    devices = f"{result.devices} device" + "s" * (result.devices > 1)
    lines = [f"{result.dump}: {result.reason} at step {result.step}, on {devices}"]
    for name, value in result.replayed.items():
        recorded = result.recorded[name]
        lines.append(f"  {name:11} {value:.9g}, in the run {recorded:.9g}")
    if result.bit_equal:
        lines.append("  replay      the same bits as in the run")
    else:
        cause = f": the run had {devices}, whose sums are rounded differently" if result.devices > 1 else ""
        outcome = "an anomaly again" if result.happens_again else "no anomaly"
        lines.append(f"  replay      {outcome}; not the same bits as in the run{cause}")
    lines.append("  inputs      " + ("; ".join(result.inputs) or "all in range"))
    lines.append("  parameters  " + _list("not finite before the step", result.parameters))
    output = "all finite" if result.output is None else f"first not finite: {result.output.part}, in {_rows(result.output.rows)}"
    lines.append(f"  outputs     {output}")
    return [*lines, "  gradients   " + _list("not finite", result.gradients)]


def _list(what: str, names: tuple[str, ...]) -> str:
    if not names:
        return "all finite"
    more = f" to {names[-1]}" if len(names) > 1 else ""
    return f"{what}: {len(names)}, from {names[0]}{more}" if more else f"{what}: {names[0]}"


def _rows(rows: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
    return f"row{'s' * (len(rows) > 1)} {shown}"
