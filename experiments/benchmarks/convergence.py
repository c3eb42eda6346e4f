"""The same small run with other optimizers or other arithmetic: held-out loss along the way, several seeds.

    python experiments/benchmarks/convergence.py CORPUS optimizers --out runs/optimizers
    python experiments/benchmarks/convergence.py CORPUS precision --out runs/precision

Two layers, 128 wide, 64 tokens: what it says holds for that. Every optimizer is tried at each rate with one seed first and
then runs at its best rate with the seeds. Data, masks and initial parameters of a seed are the same in every variant.

Printed are the final held-out loss of each seed, the steps after which the mean of the seeds stays below the final loss of
the first variant, and the time of a step. Runs already in ``--out`` are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bert_jax
from bert_jax.data import corpus as corpora
from bert_jax.data import pipeline
from bert_jax.training import losses, optimizers, step

OPTIMIZERS = ("adamw", "muon", "schedule_free")
PRECISIONS = ("float32", "bfloat16", "bfloat16 parameters, stochastic rounding", "bfloat16 parameters, rounded to nearest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("what", choices=("optimizers", "precision"))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--every", type=int, default=100, help="steps between held-out losses")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3])
    parser.add_argument("--variants", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.steps % options.every:
        parser.error("--steps must be a multiple of --every, so that the last loss is the final one.")
    options.out.mkdir(parents=True, exist_ok=True)
    names = options.variants or (OPTIMIZERS if options.what == "optimizers" else PRECISIONS)
    results = {}
    for name in names:
        rate = options.rates[0]
        if options.what == "optimizers":
            swept = {rate: run(options, name, rate, 0)["losses"][-1] for rate in options.rates}
            print(name, {rate: round(loss, 4) for rate, loss in swept.items()}, flush=True)
            rate = min(swept, key=lambda rate: np.nan_to_num(swept[rate], nan=np.inf))
        results[name] = [rate, [run(options, name, rate, seed) for seed in range(options.seeds)]]
    show(results)


def run(options: argparse.Namespace, name: str, rate: float, seed: int) -> dict[str, list[float]]:
    """Train one variant: steps at which held-out loss was measured, the losses, and seconds of each step."""
    settings = "-".join(map(str, (name.replace(" ", "_"), rate, seed, options.steps, options.batch, options.every)))
    path = options.out / f"{Path(options.corpus).name}-{settings}.json"
    if not path.exists():
        path.write_text(json.dumps(train(options, name, rate, seed)))
    return json.loads(path.read_text())


def train(options: argparse.Namespace, name: str, rate: float, seed: int) -> dict[str, list[float]]:
    corpus = corpora.open_corpus(options.corpus)
    config = configured(options, corpus, name, rate, seed)
    optimizer = optimizers.make_optimizer(config.optim, config.train.steps)
    if "parameters" in name:
        optimizer = optax.chain(optimizer, narrow(seed, stochastic="stochastic" in name))
    train_step = jax.jit(step.make_train_step(step.pretraining(config), optimizer), donate_argnums=0)
    eval_step = jax.jit(step.make_eval_step(config, corpora.unigram_log_probabilities(corpus.train)))
    state = jax.jit(lambda: step.init_state(config, optimizer))()
    rows, specials = np.arange(config.data.batch_size), corpus.tokenizer.specials
    batches = pipeline.train_batches(corpus.train, specials, config.data, seed=seed, rows=rows)
    held_out = list(pipeline.eval_batches(corpus.held_out, specials, config.data, rows=rows, limit=16))
    result: dict[str, list[float]] = {"steps": [], "losses": [], "seconds": []}
    for number in range(1, config.train.steps + 1):
        batch = next(batches)
        began = time.perf_counter()
        state, metrics = train_step(state, batch)
        jax.block_until_ready(metrics)
        result["seconds"].append(time.perf_counter() - began)
        if number % options.every == 0:
            sums = [eval_step(state.params, part) for part in held_out]
            means = losses.means(jax.tree.map(lambda *parts: sum(parts), *sums))
            result["steps"].append(number)
            result["losses"].append(float(means["mlm_loss"]))
    batches.close()
    print(f"{name}, rate {rate}, seed {seed}: {result['losses'][-1]:.4f}", flush=True)
    return result


def configured(options: argparse.Namespace, corpus: corpora.Corpus, name: str, rate: float, seed: int) -> bert_jax.Config:
    """The quickstart's model and schedule, with the variant's optimizer or arithmetic."""
    pieces = len(corpus.tokenizer.pieces)
    return bert_jax.Config(
        run="",
        data=bert_jax.DataConfig(options.corpus, sequence_length=64, batch_size=options.batch),
        model=bert_jax.ModelConfig.size(
            "tiny",
            vocab_size=pieces,
            initializer_range=0.05,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            dtype="bfloat16" if options.what == "precision" and name != "float32" else "float32",
        ),
        mask=bert_jax.MaskPolicy(mask_id=corpus.tokenizer.specials.mask, vocab_size=pieces),
        optim=bert_jax.OptimConfig(
            name=name if options.what == "optimizers" else "adamw", peak_lr=rate, warmup_steps=50, decay="from_peak"
        ),
        train=bert_jax.TrainConfig(steps=options.steps, seed=seed),
    )


def narrow(seed: int, *, stochastic: bool) -> optax.GradientTransformation:
    """Updates that leave the parameters on bfloat16's grid: to the nearest number, or up or down at random, by the distance."""

    def rounded(value: jax.Array, key: jax.Array) -> jax.Array:
        noise = jax.random.bits(key, value.shape, jnp.uint16).astype(jnp.uint32) if stochastic else jnp.uint32(0x8000)
        bits = jax.lax.bitcast_convert_type(value, jnp.uint32) + noise
        return jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)

    def update(updates: optax.Updates, count: jax.Array, params: optax.Params) -> tuple[optax.Updates, jax.Array]:
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), count), len(leaves))
        exact = optax.tree.add(params, updates)
        new = jax.tree.map(rounded, exact, jax.tree.unflatten(structure, list(keys)))
        return optax.tree.sub(new, params), count + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


def show(results: dict[str, list]) -> None:
    target = statistics.mean(result["losses"][-1] for result in next(iter(results.values()))[1])
    print(f"held-out loss to reach: {target:.4f}")
    print(
        "| variant | peak rate | final loss, mean and standard deviation | of each seed | steps to it | ms a step | seconds to it |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, (rate, runs) in results.items():
        final = [run["losses"][-1] for run in runs]
        curve = np.mean([run["losses"] for run in runs], axis=0)
        below = next((number for number in range(len(curve)) if (curve[number:] <= target).all()), None)
        steps = runs[0]["steps"][below] if below is not None else None
        taken = statistics.median(second for run in runs for second in run["seconds"][5:])
        reached = f"{steps:,} | {1e3 * taken:.0f} | {steps * taken:,.0f}" if steps else f"not reached | {1e3 * taken:.0f} |"
        spread = statistics.stdev(final) if len(final) > 1 else 0.0
        each = ", ".join(f"{loss:.4f}" for loss in final)
        print(f"| {name} | {rate} | {statistics.mean(final):.4f} ± {spread:.4f} | {each} | {reached} |")


if __name__ == "__main__":
    main()
