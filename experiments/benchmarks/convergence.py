"""Held-out loss of a small pretraining run under several optimizers or dtypes, with several seeds.

    python experiments/benchmarks/convergence.py CORPUS optimizers --out runs/optimizers
    python experiments/benchmarks/convergence.py CORPUS precision --out runs/precision

The model has two layers, hidden size 128 and 64 tokens; results hold for this size. Every optimizer first runs at each learning
rate with one seed, then at its best rate with all seeds. Data, masks and initial parameters of a seed are the same in all variants.

The output shows the final held-out loss of each seed, the number of steps after which the mean over seeds stays below the final
loss of the first variant, and the time of a step. Runs whose results are in ``--out`` are not repeated.
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
    parser.add_argument("--batch-size", type=int, default=32)
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
    """Train one variant, or read its result: steps of the held-out losses, the losses, and the seconds of each step."""
    settings = "-".join(map(str, (name.replace(" ", "_"), rate, seed, options.steps, options.batch_size, options.every)))
    path = options.out / f"{Path(options.corpus).name}-{settings}.json"
    if not path.exists():
        path.write_text(json.dumps(train(options, name, rate, seed)))
    return json.loads(path.read_text())


def train(options: argparse.Namespace, name: str, rate: float, seed: int) -> dict[str, list[float]]:
    corpus = corpora.open_corpus(options.corpus)
    config = config_for(options, corpus, name, rate, seed)
    optimizer = optimizers.make_optimizer(config.optim, config.train.steps)
    if "parameters" in name:
        optimizer = optax.chain(optimizer, round_parameters(seed, stochastic="stochastic" in name))
    policy = bert_jax.resolve_policy(config.mask, corpus.tokenizer)
    train_step = jax.jit(step.make_train_step(step.pretraining(config.model, policy), optimizer), donate_argnums=0)
    unigram = corpora.unigram_log_probabilities(corpus.train)
    eval_step = jax.jit(step.make_eval_step(config.model, policy.held_out(), unigram))
    state = jax.jit(lambda: step.init_state(config, optimizer))()
    rows, special_tokens = np.arange(config.data.batch_size), corpus.tokenizer.special_tokens
    batches = pipeline.train_batches(corpus.train, special_tokens, config.data, seed=seed, rows=rows)
    held_out = list(pipeline.eval_batches(corpus.held_out, special_tokens, config.data, rows=rows, limit=16))
    result: dict[str, list[float]] = {"steps": [], "losses": [], "seconds": []}
    for index in range(1, config.train.steps + 1):
        batch = next(batches)
        start = time.perf_counter()
        state, metrics = train_step(state, batch)
        jax.block_until_ready(metrics)
        result["seconds"].append(time.perf_counter() - start)
        if index % options.every == 0:
            sums = [eval_step(state.params, part) for part in held_out]
            means = losses.means(jax.tree.map(lambda *parts: sum(parts), *sums))
            result["steps"].append(index)
            result["losses"].append(float(means["mlm_loss"]))
    batches.close()
    print(f"{name}, rate {rate}, seed {seed}: {result['losses'][-1]:.4f}", flush=True)
    return result


def config_for(options: argparse.Namespace, corpus: corpora.Corpus, name: str, rate: float, seed: int) -> bert_jax.Config:
    """The model and schedule of the quickstart, with the optimizer or dtype of the variant."""
    tokens = len(corpus.tokenizer.tokens)
    return bert_jax.Config(
        run="",
        data=bert_jax.DataConfig(options.corpus, sequence_length=64, batch_size=options.batch_size),
        model=bert_jax.ModelConfig.size(
            "tiny",
            vocab_size=tokens,
            initializer_range=0.05,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            dtype="bfloat16" if options.what == "precision" and name != "float32" else "float32",
        ),
        optim=bert_jax.OptimConfig(
            name=name if options.what == "optimizers" else "adamw", peak_lr=rate, warmup_steps=50, decay="from_peak"
        ),
        train=bert_jax.TrainConfig(steps=options.steps, seed=seed),
    )


def round_parameters(seed: int, *, stochastic: bool) -> optax.GradientTransformation:
    """Round parameters to bfloat16 after each update: to nearest, or stochastically."""

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
        below = next((index for index in range(len(curve)) if (curve[index:] <= target).all()), None)
        steps = runs[0]["steps"][below] if below is not None else None
        taken = statistics.median(second for run in runs for second in run["seconds"][5:])
        reached = f"{steps:,} | {1e3 * taken:.0f} | {steps * taken:,.0f}" if steps else f"not reached | {1e3 * taken:.0f} |"
        deviation = statistics.stdev(final) if len(final) > 1 else 0.0
        losses = ", ".join(f"{loss:.4f}" for loss in final)
        print(f"| {name} | {rate} | {statistics.mean(final):.4f} ± {deviation:.4f} | {losses} | {reached} |")


if __name__ == "__main__":
    main()
