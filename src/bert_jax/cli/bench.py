"""bert-jax bench."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import statistics
from pathlib import Path
from typing import Annotated

import jax
import tyro

from bert_jax.cli.pretrain import load_experiment, parse
from bert_jax.config.data import DataConfig
from bert_jax.config.model import ModelConfig
from bert_jax.config.run import Config
from bert_jax.config.validation import require_positive
from bert_jax.evaluation import benchmark
from bert_jax.evaluation.benchmark import Report
from bert_jax.io import atomic

DEFAULT = Config(run="", data=DataConfig("", batch_size=8), model=ModelConfig(dtype="bfloat16"))
"""Config that is measured without an experiment: BERT-Base, 8 rows of 128 tokens, bfloat16, other fields as in the paper."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """Measure how fast a config trains on this machine.

    Batches are random tokens in full rows; no corpus is read and no run directory is created. The first argument can be the Python
    file of an experiment, and every field of its config is an option, as for `bert-jax pretrain`. Without an experiment the config
    is BERT-Base, 8 rows of 128 tokens, bfloat16.

    Example: bert-jax bench --profile --model.layers scan
    """

    config: Annotated[Config, tyro.conf.arg(name="")]
    steps: int = 10
    """Measured steps, after the first step, which compiles, and two warm-up steps."""
    profile: bool = False
    """Also print a table of the time of each phase."""
    out: str | None = None
    """JSON file to create with the measurements."""

    def __post_init__(self) -> None:
        require_positive("steps", self.steps)


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    has_experiment = bool(arguments) and not arguments[0].startswith("-")
    config = load_experiment(Path(arguments[0])) if has_experiment else DEFAULT
    options = parse(Bench(config), arguments[has_experiment:], prog="bert-jax bench [EXPERIMENT.py]")
    # Checks before the measurement that the file can be written.
    with atomic.new_path(options.out) if options.out else contextlib.nullcontext() as out:
        report = benchmark.run(options.config, steps=options.steps, profile=options.profile)
        if out:
            out.write_text(json.dumps(report._asdict(), indent=2))
    for line in (*summary(options.config, report), *(table(report, jax.device_count()) if report.phases else ())):
        print(line)
    return 0


def summary(config: Config, report: Report) -> list[str]:
    """Return lines with the devices, the config and the speed."""
    devices, step = jax.devices(), statistics.median(report.seconds)
    speed, peak = sum(report.flop.values()) / step, report.peak * len(devices)
    return [
        f"{len(devices)} x {devices[0].device_kind}, JAX {jax.__version__}, {config.model.dtype}, "
        f"{config.data.batch_size} x {config.data.sequence_length} tokens, attention {report.attention}",
        f"compilation and first step  {report.first:.1f} s",
        f"step                        {1e3 * step:,.1f} ms ({1e3 * min(report.seconds):,.1f} to {1e3 * max(report.seconds):,.1f})",
        f"tokens                      {report.tokens / step:,.0f} /s",
        f"model                       {speed / 1e9:,.0f} GFLOP/s, {speed / peak:.2f} of the {peak / 1e9:,.0f} of a large product",
        f"peak memory                 {report.memory / 2**30:.2f} GiB",
    ]


def table(report: Report, devices: int) -> list[str]:
    """Return a Markdown table of the phases, longest first; "min. ms" is the time at the speed of a large product."""
    assert report.phases
    total, peak = sum(report.phases.values()), report.peak * devices
    lines = ["", "| phase | ms | share | GFLOP | GFLOP/s | min. ms |", "|---|---|---|---|---|---|"]
    for phase, seconds in sorted(report.phases.items(), key=lambda item: -item[1]):
        flop = report.flop.get(phase)
        products = f"{flop / 1e9:.1f} | {flop / seconds / 1e9:,.0f} | {1e3 * flop / peak:.1f}" if flop and seconds else "| |"
        lines.append(f"| {phase} | {1e3 * seconds:.1f} | {seconds / total:.1%} | {products} |")
    return [*lines, f"| all, while traced | {1e3 * total:.1f} | | {sum(report.flop.values()) / 1e9:.1f} | | |"]
