"""Speed of the train step and the encoder, of bert_jax and of other projects, on the same batches and machine.

    python experiments/benchmarks/step.py                             # BERT-Base, 8 full rows of 128 tokens
    python experiments/benchmarks/step.py --corpus CORPUS             # real text: packed for bert_jax, padded for the others
    python experiments/benchmarks/step.py --what encode --size mini --sequence-length 512 --batch-size 2 --out runs/bench

Each program runs in its own process with the same allocator settings; it compiles, warms up and waits. In each round every
program takes one step on each batch. The output shows the median time of a step, tokens per second without padding, model FLOP/s
(operations for these tokens and predictions, times three for training, without recomputation), their share of the speed of a
square product measured in the same rounds, peak memory, the time to the first step, and the ratio to bert_jax over the rounds.

Give the interpreter of a program that needs another environment: ``--python FlaxBert=/path/to/bin/python``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rivals import RIVALS

import bert_jax
from bert_jax.batch import HostBatch
from bert_jax.cli.process import TUNABLES
from bert_jax.config.model import SIZES
from bert_jax.data import corpus as corpora
from bert_jax.data import pipeline, sentence_pairs
from bert_jax.evaluation import benchmark
from bert_jax.models import arithmetic

VOCAB = 30522
MASK_ID = 103


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=("train", "encode"), default="train")
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--corpus", help="directory written by `bert-jax prepare`; by default, rows are full and random")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=4, help="steps in a round, each on another batch")
    parser.add_argument("--rivals", nargs="*", choices=RIVALS, default=["transformers"])
    parser.add_argument("--python", action="append", default=[], metavar="RIVAL=PATH")
    parser.add_argument("--model", type=json.loads, default={}, help="fields of our ModelConfig, as JSON")
    parser.add_argument("--matmul", type=int, default=2048, help="side of the square product")
    parser.add_argument("--out", type=Path, help="directory for step.json and step.png")
    options = parser.parse_args()
    # This process only makes batches; the programs use the accelerator.
    jax.config.update("jax_platforms", "cpu")
    layers, width, heads = SIZES[options.size]
    settings = vars(options) | {"shape": (layers, width, heads), "warmup": 2, "out": None}
    names = ["matmul", "bert_jax", *options.rivals]
    with tempfile.TemporaryDirectory() as work:
        counts = write_batches(Path(work), options)
        Path(work, "options.json").write_text(json.dumps(settings))
        reports, times = alternate(names, work, dict(pair.split("=", 1) for pair in options.python), options.rounds)
    rows = table(names, counts, reports, times, options)
    show(rows, options)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "step.json").write_text(json.dumps({"options": settings, "batches": counts, "rows": rows}, indent=2))
        draw(rows, options, options.out / "step.png")


def write_batches(work: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Write the same examples twice: packed and unmasked for bert_jax, padded and masked for the others.

    Returns:
      Averages of a batch for "ours" and "theirs": tokens, share of filled slots, and GFLOP of a step.
    """
    if options.corpus:
        batches_by_kind = real_batches(options)
    else:
        shape = bert_jax.DataConfig("", options.sequence_length, options.batch_size)
        full = [benchmark.random_batch(shape, VOCAB, seed=seed) for seed in range(options.batches)]
        batches_by_kind = {"ours": full, "theirs": full}
    policy = bert_jax.ResolvedMaskPolicy(bert_jax.MaskPolicy(), mask_id=MASK_ID, vocab_size=VOCAB)
    counts = {}
    for kind, batches in batches_by_kind.items():
        masked = [{k: np.asarray(v) for k, v in mask(batch, policy).items()} for batch in batches]
        for index, (plain, batch) in enumerate(zip(batches, masked, strict=True)):
            np.savez(work / f"{kind}-{index:03}.npz", **(plain if kind == "ours" else theirs(plain, batch)))
        flops = [forward_flop(batch, options.size, options.what) for batch in masked]
        counts[kind] = {
            "tokens": float(np.mean([(batch["segment_ids"] > 0).sum() for batch in batches])),
            "fill": float(np.mean([(batch["segment_ids"] > 0).mean() for batch in batches])),
            "gflop": float(np.mean(flops)) * (3 if options.what == "train" else 1) / 1e9,
        }
    return counts


def mask(batch: HostBatch, policy: bert_jax.ResolvedMaskPolicy) -> dict[str, Any]:
    return jax.jit(bert_jax.mask_tokens, static_argnums=2)(jax.random.key(0), batch, policy, 0)


def real_batches(options: argparse.Namespace) -> dict[str, list[HostBatch]]:
    """Rows of sentence pairs of a corpus; packed rows contain more of them."""
    corpus = corpora.open_corpus(options.corpus)
    batches = {}
    for kind, packing in (("ours", bert_jax.DataConfig("").packing), ("theirs", 1)):
        config = bert_jax.DataConfig(options.corpus, options.sequence_length, options.batch_size, packing=packing)
        plan = sentence_pairs.plan(corpus.train, config, seed=0, epoch=0, block=0)
        rows = pipeline.packed_rows(plan, config, seed=0)[: options.batches * options.batch_size]
        parts = np.split(rows, options.batches)
        batches[kind] = [
            pipeline.assemble(corpus.train, corpus.tokenizer.special_tokens, config, plan.take(part)) for part in parts
        ]
    return batches


def theirs(plain: HostBatch, masked: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A masked batch with the names and labels of transformers."""
    labels = np.full(plain["input_ids"].shape, -100)
    for row, (positions, ids, weights) in enumerate(
        zip(masked["mlm_positions"], masked["mlm_ids"], masked["mlm_weights"], strict=True)
    ):
        labels[row, positions[weights > 0]] = ids[weights > 0]
    return {
        "input_ids": masked["input_ids"].astype(np.int64),
        "token_type_ids": plain["token_type_ids"].astype(np.int64),
        "attention_mask": (plain["segment_ids"] > 0).astype(np.int64),
        "labels": labels,
        "next_sentence_label": plain["nsp_labels"][:, 0].astype(np.int64),
    } | {name: masked[name] for name in ("mlm_positions", "mlm_ids", "mlm_weights")}


def forward_flop(batch: dict[str, np.ndarray], size: str, what: str) -> float:
    """Multiplications and additions for these examples, without padding."""
    lengths = np.concatenate([np.bincount(row[row > 0])[1:] for row in batch["segment_ids"]])
    phases = arithmetic.forward_flop(bert_jax.ModelConfig.size(size), lengths[lengths > 0], float(batch["mlm_weights"].sum()))
    return sum(flop for phase, flop in phases.items() if what == "train" or phase != "head")


def alternate(
    names: list[str], work: str, pythons: dict[str, str], rounds: int
) -> tuple[list[dict[str, float]], list[list[float]]]:
    """Start every program, then run their steps in alternation.

    Returns:
      The report of each program, and its mean seconds per step in each round.
    """
    environment = {**os.environ, "GLIBC_TUNABLES": TUNABLES}
    programs, reports = [], []
    for name in names:
        command = [pythons.get(name, sys.executable), str(Path(__file__).with_name("rivals.py")), name, work]
        program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        programs.append(program)
        reports.append(answer(program, name))
    times: list[list[float]] = [[] for _ in names]
    for _ in range(rounds):
        for name, program, taken, report in zip(names, programs, times, reports, strict=True):
            # The step after a pause has cold caches and is not counted.
            print(file=program.stdin, flush=True)
            answer(program, name)
            seconds = []
            for _ in range(int(report["batches"])):
                print(file=program.stdin, flush=True)
                seconds.append(answer(program, name))
            taken.append(statistics.mean(seconds))
    for program in programs:
        program.communicate()
    return reports, times


def answer(program: subprocess.Popen[str], name: str) -> Any:
    assert program.stdout
    for line in program.stdout:
        if line.startswith(("{", *"0123456789")):
            return json.loads(line)
    raise SystemExit(f"{name} ended with status {program.wait()}.")


def table(
    names: list[str], counts: dict[str, Any], reports: list[dict[str, float]], times: list[list[float]], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row for each program."""
    speeds = [statistics.median(taken) for taken in times]
    peak = 2 * options.matmul**3 / speeds[0] / 1e9
    ours = times[1]
    rate = counts["ours"]["tokens"]
    rows = [{"program": "matmul", "gflops": peak}]
    for name, report, taken, speed in list(zip(names, reports, times, speeds, strict=True))[1:]:
        held = counts["ours" if name == "bert_jax" else "theirs"]
        ratios = sorted((rate / a) / (held["tokens"] / b) for a, b in zip(ours, taken, strict=True))
        rows.append({
            "program": name, "step_ms": 1e3 * speed, "tokens_per_s": held["tokens"] / speed, "gflops": held["gflop"] / speed,
            "share_of_matmul": held["gflop"] / speed / peak, "peak_gib": report["peak_gib"], "first_step_s": report["first_step_s"],
            "ours_is": statistics.median(ratios), "from": ratios[0], "to": ratios[-1], "seconds": taken,
        })  # fmt: skip
    return rows


def show(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    kind = f"real text of {options.corpus}" if options.corpus else "full rows"
    shape = f"{options.batch_size} x {options.sequence_length}"
    print(f"{options.what}, {options.size}, {shape}, {options.dtype}, dropout {options.dropout}, {kind}")
    print(f"square product of {options.matmul}: {rows[0]['gflops']:,.0f} GFLOP/s")
    print("| program | ms | tokens/s | GFLOP/s | of product | peak GiB | first step s | ours is faster by |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows[1:]:
        ratio = "" if row["program"] == "bert_jax" else f"{row['ours_is']:.2f} ({row['from']:.2f} to {row['to']:.2f})"
        print(
            f"| {row['program']} | {row['step_ms']:,.0f} | {row['tokens_per_s']:,.0f} | {row['gflops']:,.0f} | "
            f"{row['share_of_matmul']:.2f} | {row['peak_gib']:.1f} | {row['first_step_s']:.1f} | {ratio} |"
        )


def draw(rows: list[dict[str, Any]], options: argparse.Namespace, path: Path) -> None:
    """Tokens per second of each program, with a dot for each round."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 0.5 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows[:0:-1]):
        tokens = row["tokens_per_s"] * row["step_ms"] / 1e3
        axes.barh(place, row["tokens_per_s"], color="C0" if row["program"] == "bert_jax" else "0.7")
        axes.plot([tokens / seconds for seconds in row["seconds"]], [place] * len(row["seconds"]), "k.", markersize=4)
    axes.set_yticks(range(len(rows) - 1), [row["program"] for row in rows[:0:-1]])
    shape = f"{options.batch_size} x {options.sequence_length}"
    axes.set_xlabel(f"tokens per second, {options.what}, BERT {options.size}, {shape}, {options.dtype}")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
