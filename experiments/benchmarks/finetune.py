"""Scores over seeds and time of the same fine-tuning by bert_jax and by transformers with PyTorch.

    python experiments/benchmarks/finetune.py classify --init MODEL --data DIR/topic --columns label,text
    python experiments/benchmarks/finetune.py cola --init MODEL --data GLUE --learning-rate 5e-5 --epochs 3
    python experiments/benchmarks/finetune.py pos --init MODEL --data DIR/tagged --dtype bfloat16 --out runs/bench/pos

Both have the same examples in the same order, pretrained weights, learning rates, AdamW and dropout rates; initial heads and
dropout masks are drawn by each. bert_jax runs `bert-jax finetune` with its defaults, so that it packs examples; PyTorch pads to
the longest example of a batch (torch_tasks.py). Each run is a process of its own with the same allocator settings, one at a time,
and the order of the two alternates from seed to seed. One more run of bert_jax comes first, and fills an initially empty
compilation cache.

The output shows the development scores of each seed, their means and standard deviations, Welch's t-test of the difference, and the
seconds of a training, from the end of the imports to the last step, and of its parts: loading of model and data, the first step
with its compilation, and the other steps; then the seconds of an evaluation that has been compiled. Ratios are of runs of one seed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from bert_jax.cli.process import TUNABLES
from bert_jax.config.finetuning import FinetuneConfig, ModelOverrides, TaskDataConfig
from bert_jax.config.optimizer import OptimConfig
from bert_jax.errors import UserError
from bert_jax.io import atomic
from bert_jax.tasks import registry
from bert_jax.tasks.example import Example, Source
from bert_jax.tasks.task import Task

OURS, RIVAL = "bert_jax", "transformers"
HEADS = ("sequence_classification", "regression", "token_classification")
# torch_tasks.py supports one text or pair per example and one development split; AX has no training data.
TASKS = [name for name, task in registry.TASKS.items() if task.head in HEADS and task.dev_splits == ("dev",) and name != "ax"]
# Largest difference of float32 states, which are about 1.
_CLOSE = 1e-4
# Imported late by scores and logs (the log also imports torch, if it is installed), which is not part of training.
_IMPORTED = ("scipy.stats", "sklearn.metrics", "tensorboardX")

ReadTraining = Callable[[Task, Source], tuple[list[Example], tuple[str, ...]]]


class Stopwatch:
    """Seconds between the marks of a run."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}

    def mark(self, name: str) -> None:
        """Record the time at which the run is "ready", "loaded", or past its "first" or "last" step."""
        self._at[name] = time.perf_counter()

    def report(self) -> dict[str, float]:
        """Seconds of loading, of the first step, of the later steps, and of the whole training, as far as they were marked."""
        spans = {
            "load_s": ("ready", "loaded"),
            "first_step_s": ("loaded", "first"),
            "later_steps_s": ("first", "last"),
            "train_s": ("ready", "last"),
        }
        return {name: self._at[end] - self._at[begin] for name, (begin, end) in spans.items() if end in self._at}


def limited(train: ReadTraining, limit: int | None) -> ReadTraining:
    """A method that reads the training examples and returns the first ones."""

    def first(task: Task, source: Source) -> tuple[list[Example], tuple[str, ...]]:
        examples, labels = train(task, source)
        return examples[:limit], labels

    return first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--init", required=True, help="directory of a pretrained model that both can read")
    parser.add_argument("--data", required=True, help="as of `bert-jax finetune`")
    parser.add_argument("--columns", type=lambda names: tuple(names.split(",")), help="of tables without a header")
    parser.add_argument("--epochs", type=float, default=5.0)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=128, help="most tokens of a text or pair")
    parser.add_argument("--dropout", type=float, help="by default that of the model")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of PyTorch; by default all cores")
    parser.add_argument("--limit", type=int, help="train on the first examples only, for a trial")
    parser.add_argument("--out", type=Path, help="directory to make, for finetune.json and finetune.png")
    parser.add_argument("--only", choices=("compare", "warm", OURS, RIVAL), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        if options.only:
            print(json.dumps(program(options)), flush=True)
        else:
            benchmark(options)
    except UserError as error:
        raise SystemExit(f"finetune.py: {error}") from None


def benchmark(options: argparse.Namespace) -> None:
    """All runs, the table, and the files."""
    config_of(options)
    # A path that cannot be written is refused before anything is measured.
    with atomic.new_path(options.out) if options.out else contextlib.nullcontext() as out:
        results = alternate(options)
        summary = compare_runs(options, results)
        show(options, results, summary)
        if out:
            out.mkdir()
            settings = {name: value for name, value in vars(options).items() if name not in ("only", "seed", "work", "out")}
            (out / "finetune.json").write_text(json.dumps({"options": settings} | results | {"summary": summary}, indent=2) + "\n")
            draw(options, results["runs"], out / "finetune.png")


def config_of(options: argparse.Namespace) -> FinetuneConfig:
    """The run of both programs.

    Raises:
      UserError: a value is refused.
    """
    return FinetuneConfig(
        run=str((options.work or Path()) / f"{options.only}-{options.seed}"),
        task=options.task,
        init=options.init,
        data=options.data,
        task_data=TaskDataConfig(columns=options.columns, sequence_length=options.sequence_length, context="sentence"),
        model=ModelOverrides(dtype=options.dtype, dropout=options.dropout),
        optim=OptimConfig(name="adamw", decay="from_peak"),
        batch_size=options.batch_size,
        epochs=options.epochs,
        learning_rates=(options.learning_rate,),
        seed=options.seed,
        seeds=1 if options.only else options.seeds,
        eval_every=options.epochs,
    )


def alternate(options: argparse.Namespace) -> dict[str, Any]:
    """Every run, one at a time.

    Returns:
      The task and data of both, the run that compiled everything, and the reports of each program by seed.
    """
    runs: dict[str, list[dict[str, Any]]] = {OURS: [], RIVAL: []}
    with tempfile.TemporaryDirectory() as work:
        task = start("compare", 0, work)
        if not task["difference"] < _CLOSE:
            raise SystemExit(
                f"The two programs read different weights from {options.init}: their states differ by {task['difference']:.1e}."
            )
        cold = start("warm", options.seeds, work)
        for seed in range(options.seeds):
            for name in (OURS, RIVAL) if seed % 2 == 0 else (RIVAL, OURS):
                report = start(name, seed, work)
                if report["steps"] != task["steps"]:
                    raise SystemExit(f"{name} took {report['steps']} steps of {task['steps']}.")
                runs[name].append(report)
                score = report["scores"][registry.get(options.task).main_score]
                print(f"seed {seed}, {name}: {score:.4f}, {report['train_s']:.1f} s", file=sys.stderr, flush=True)
    return {"task": task, "cold": cold, "runs": runs}


def start(name: str, seed: int, work: str) -> dict[str, Any]:
    """The report of a program, run to its end."""
    environment = {
        **os.environ,
        "GLIBC_TUNABLES": TUNABLES,
        "JAX_COMPILATION_CACHE_DIR": f"{work}/compiled",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    command = [sys.executable, __file__, *sys.argv[1:], "--only", name, "--seed", str(seed), "--work", work]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{name} ended with status {done.returncode}.")
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def program(options: argparse.Namespace) -> dict[str, Any]:
    """The work of one process."""
    config = config_of(options)
    for name in _IMPORTED:
        importlib.import_module(name)
    kind = type(registry.get(options.task))
    with mock.patch.object(kind, "train", limited(kind.train, options.limit)):
        if options.only in ("warm", OURS):
            return ours(config, warm=options.only == "warm")
        import torch_tasks

        if options.only == "compare":
            return torch_tasks.compare(config)
        return torch_tasks.train(config, Stopwatch(), threads=options.threads)


def ours(config: FinetuneConfig, *, warm: bool) -> dict[str, Any]:
    """A run of `bert_jax.finetune`, observed between its parts; a warm-up ends after an epoch, without scores."""
    import jax

    module = importlib.import_module("bert_jax.training.finetuning")
    jax.devices()
    report: dict[str, Any] = {}
    watch, fit = Stopwatch(), module.fit

    def observed(job: Any) -> Any:
        watch.mark("loaded")
        report["steps"] = steps = job.train.steps
        compile_step, score, done = job.launcher.compile_step, job.evaluate, 0

        def compile_observed(function: Any) -> Any:
            compiled = compile_step(function)

            def take_step(state: Any, batch: Any) -> Any:
                nonlocal done
                state, metrics = compiled(state, batch)
                done += 1
                if done in (1, steps):
                    report["loss"] = float(jax.block_until_ready((state, metrics))[1]["loss"])
                    watch.mark("last") if done == steps else None
                    watch.mark("first") if done == 1 else None
                if warm and done >= steps / config.epochs:
                    signal.raise_signal(signal.SIGTERM)
                return state, metrics

            return take_step

        def evaluate(params: Any, should_stop: Any) -> Any:
            for name in ("evaluate_first_s", "evaluate_s"):
                start = time.perf_counter()
                evaluated = score(params, should_stop)
                report[name] = time.perf_counter() - start
            report["scores"] = evaluated[0]
            return evaluated

        job.launcher.compile_step, job.evaluate = compile_observed, evaluate
        return fit(job)

    watch.mark("ready")
    with mock.patch.object(module, "fit", observed):
        module.finetune(config)
    return watch.report() | report


def compare_runs(options: argparse.Namespace, results: dict[str, Any]) -> dict[str, Any]:
    """Differences of scores with Welch's t-test over seeds, and ratios of times; bert_jax is faster where they exceed 1."""
    from scipy import stats

    main = registry.get(options.task).main_score
    scores = {name: [report["scores"][main] for report in reports] for name, reports in results["runs"].items()}
    means = {name: statistics.mean(values) for name, values in scores.items()}
    deviations = {name: statistics.stdev(values) if len(values) > 1 else 0.0 for name, values in scores.items()}
    summary = {"score": main, "means": means, "deviations": deviations, "difference": means[OURS] - means[RIVAL]}
    test = stats.ttest_ind(scores[OURS], scores[RIVAL], equal_var=False) if any(deviations.values()) else None
    summary |= {"welch_t": float(test.statistic) if test else None, "p": float(test.pvalue) if test else None}
    pairs = list(zip(results["runs"][OURS], results["runs"][RIVAL], strict=True))
    for name in ("train_s", "later_steps_s", "evaluate_s"):
        # A run of a single step has no later steps.
        ratios = sorted(theirs[name] / ours[name] for ours, theirs in pairs if ours[name] > 0)
        summary[f"{name.removesuffix('_s')}_ratio"] = [statistics.median(ratios), ratios[0], ratios[-1]] if ratios else None
    return summary


def show(options: argparse.Namespace, results: dict[str, Any], summary: dict[str, Any]) -> None:
    """The table and the comparison."""
    task, score = results["task"], summary["score"]
    dropout = "the model's own" if options.dropout is None else options.dropout
    print(
        f"{options.task}, {options.init}, {options.data}: {task['examples']:,} examples, {options.epochs:g} epochs of batches of "
        f"{options.batch_size}, {task['steps']:,} steps, at most {options.sequence_length} tokens, rate {options.learning_rate:g}, "
        f"dropout {dropout}, {options.dtype}; {task['dev']:,} to evaluate"
    )
    versions = ", ".join(f"{name} {version}" for name, version in task["versions"].items())
    apart = task["difference"]
    print(f"PyTorch on {options.threads} threads; {versions}; states of the encoders differ by {apart:.1e} at most before training")
    print(f"first step of ours with nothing compiled: {results['cold']['first_step_s']:.1f} s")
    print(f"| program | {score}, mean ± std | of each seed | training s | load s | first step s | ms a later step | evaluation s |")
    print("|---|---|---|---|---|---|---|---|")
    for name, reports in results["runs"].items():
        each = ", ".join(f"{report['scores'][score]:.4f}" for report in reports)
        times = {key: statistics.median(report[key] for report in reports) for key in ("train_s", "load_s", "first_step_s")}
        later = statistics.median(report["later_steps_s"] for report in reports) / max(task["steps"] - 1, 1)
        evaluation = statistics.median(report["evaluate_s"] for report in reports)
        columns = [
            name, f"{summary['means'][name]:.4f} ± {summary['deviations'][name]:.4f}", each,
            *(f"{value:,.1f}" for value in times.values()), f"{1e3 * later:,.1f}", f"{evaluation:.2f}",
        ]  # fmt: skip
        print(f"| {' | '.join(columns)} |")
    noise = f"Welch's t {summary['welch_t']:.2f}, p {summary['p']:.2f}" if summary["p"] is not None else "no deviation over seeds"
    print(f"{score}, bert_jax minus transformers: {summary['difference']:+.4f} ({noise})")
    labels = {"train": "training", "later_steps": "without the first step", "evaluate": "evaluation"}
    for name, label in labels.items():
        if ratio := summary[f"{name}_ratio"]:
            print(f"bert_jax is faster by, {label}: {ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f}, each seed)")


def draw(options: argparse.Namespace, runs: dict[str, list[dict[str, Any]]], path: Any) -> None:
    """Scores of each seed with their means, and where the seconds of a training went."""
    from matplotlib.figure import Figure

    main = registry.get(options.task).main_score
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    scores, times = figure.subplots(1, 2)
    for place, (name, reports) in enumerate(runs.items()):
        values, color = [report["scores"][main] for report in reports], "C0" if name == OURS else "0.6"
        scores.plot(values, [place] * len(values), "o", color=color, alpha=0.6)
        scores.vlines(statistics.mean(values), place - 0.25, place + 0.25, color=color)
        left = 0.0
        for key, strength in (("load_s", 0.3), ("first_step_s", 0.6), ("later_steps_s", 1.0)):
            width = statistics.median(report[key] for report in reports)
            times.barh(place, width, left=left, color=color, alpha=strength, label=None if place else key[:-2].replace("_", " "))
            left += width
        times.plot([report["train_s"] for report in reports], [place] * len(reports), "k.", markersize=4)
    for axes in (scores, times):
        axes.set_yticks(range(len(runs)), list(runs))
        axes.set_ylim(len(runs) - 0.5, -0.5)
        axes.spines[["top", "right"]].set_visible(False)
    scores.set(xlabel=f"{main}, development, each seed", title=f"{options.task}, {options.dtype}")
    times.set(xlabel="seconds, the median and each seed", title=f"training, {options.epochs:g} epochs")
    # Beside the bars, which it would hide.
    times.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    with path.open("wb") as file:
        figure.savefig(file, dpi=150, format="png")


if __name__ == "__main__":
    main()
