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

from bert_jax.cli.pretrain import load_experiment, long_names, registry
from bert_jax.config.run import Config, DataConfig, ModelConfig
from bert_jax.config.validation import require_positive
from bert_jax.evaluation import benchmark
from bert_jax.evaluation.benchmark import Report
from bert_jax.io import atomic

DEFAULT = Config(run="", data=DataConfig("", batch_size=8), model=ModelConfig(dtype="bfloat16"))
"""What is measured without an experiment: BERT-Base, 8 rows of 128 tokens, bfloat16, everything else the paper's."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """Measure how fast a config trains here.

    Rows are full and random; no corpus is read and no run is made. An experiment's file may stand first, and every field
    of its config can be given as for `bert-jax pretrain`; without one it is BERT-Base, 8 rows of 128 tokens, bfloat16.

    Example: bert-jax bench --profile --model.layers scan
    """

    config: Annotated[Config, tyro.conf.arg(name="")]
    steps: int = 10
    """Steps to measure, after three that are not."""
    profile: bool = False
    """Also say where the time goes."""
    out: str | None = None
    """A JSON file to make, for the figures."""

    def __post_init__(self) -> None:
        require_positive("steps", self.steps)


def main(arguments: list[str]) -> int:
    given = bool(arguments) and not arguments[0].startswith("-")
    config = load_experiment(Path(arguments[0])) if given else DEFAULT
    options = tyro.cli(
        Bench,
        default=Bench(config),
        prog="bert-jax bench [EXPERIMENT.py]",
        args=long_names(arguments[given:]),
        registry=registry(),
    )
    # A path that cannot be written is refused before anything is measured.
    with atomic.new(options.out) if options.out else contextlib.nullcontext() as out:
        report = benchmark.run(options.config, steps=options.steps, profile=options.profile)
        if out:
            out.write_text(json.dumps(report._asdict(), indent=2))
    for line in (*summary(options.config, report), *(table(report, jax.device_count()) if report.phases else ())):
        print(line)
    return 0


def summary(config: Config, report: Report) -> list[str]:
    """What was measured, and the speed."""
    devices, step = jax.devices(), statistics.median(report.seconds)
    speed, peak = sum(report.flop.values()) / step, report.peak * len(devices)
    return [
        f"{len(devices)} x {devices[0].device_kind}, JAX {jax.__version__}, {config.model.dtype}, "
        f"{config.data.batch_size} x {config.data.sequence_length} tokens, attention {report.attention}",
        f"compilation and first step  {report.first:.1f} s",
        f"step                        {1e3 * step:,.1f} ms ({1e3 * min(report.seconds):,.1f} to {1e3 * max(report.seconds):,.1f})",
        f"tokens                      {report.tokens / step:,.0f} /s",
        f"model                       {speed / 1e9:,.0f} GFLOP/s, {speed / peak:.2f} of a large product's {peak / 1e9:,.0f}",
        f"memory, at most             {report.memory / 2**30:.2f} GiB",
    ]


def table(report: Report, devices: int) -> list[str]:
    """A row for each phase, the longest first; "least" is what its products would take at the speed of a large one."""
    assert report.phases
    total, peak = sum(report.phases.values()), report.peak * devices
    lines = ["", "| phase | ms | share | GFLOP | GFLOP/s | least ms |", "|---|---|---|---|---|---|"]
    for phase, seconds in sorted(report.phases.items(), key=lambda item: -item[1]):
        flop = report.flop.get(phase)
        products = f"{flop / 1e9:.1f} | {flop / seconds / 1e9:,.0f} | {1e3 * flop / peak:.1f}" if flop and seconds else "| |"
        lines.append(f"| {phase} | {1e3 * seconds:.1f} | {seconds / total:.1%} | {products} |")
    return [*lines, f"| all, while traced | {1e3 * total:.1f} | | {sum(report.flop.values()) / 1e9:.1f} | | |"]
