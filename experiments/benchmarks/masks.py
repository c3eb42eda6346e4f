"""What masks cost: each policy's time beside a whole training step, and how often its program is compiled in a run.

    python experiments/benchmarks/masks.py --size base --rows 8 --length 128
    python experiments/benchmarks/masks.py --size mini --rows 32 --length 128 --rounds 40

Times are medians over rounds, in each of which the step and all policies take their turn.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import bert_jax
from bert_jax.evaluation import benchmark
from bert_jax.masking import replacement
from bert_jax.training import launchers, optimizers, step

POLICIES = {
    "0.15": {},
    '"linear(0.3, 0.15)"': {"rate": "linear(0.3, 0.15)"},
    "a function of the step and the loss": {"rate": lambda step, loss: 0.15 + 0.15 * jax.nn.sigmoid(loss - step / 100)},
    '"linear(0.3, 0.15)", 0.15 predicted': {"rate": "linear(0.3, 0.15)", "predict": 0.15},
    "word": {"select": "word"},
    "ngram": {"select": "ngram"},
    "span": {"select": "span"},
    "t5": {"select": "t5"},
    "weights": {"weights": lambda batch: 1 + batch["ids"] % 7},
}
STEPS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    data = bert_jax.DataConfig("", sequence_length=options.length, batch_size=options.rows)
    model = bert_jax.ModelConfig.size(options.size, vocab_size=30_522, dtype=options.dtype)
    plain = bert_jax.MaskPolicy(mask_id=103, vocab_size=30_522, steps=STEPS)
    config = bert_jax.Config(run="", data=data, model=model, mask=plain)
    launcher = launchers.launch(config)
    batch = launcher.place(benchmark.random_batch(data, model.vocab_size))
    turns = {"a training step": trained(config, launcher, batch)}
    programs = {}
    for name, changed in POLICIES.items():
        programs[name] = jax.jit(functools.partial(masked, dataclasses.replace(plain, **changed)))
        turns[name] = functools.partial(programs[name], batch)
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(options.rounds + 1):
        for name, turn in turns.items():
            began = time.perf_counter()
            jax.block_until_ready(turn(number * STEPS // options.rounds))
            # The first round compiles.
            if number:
                seconds[name].append(time.perf_counter() - began)
    whole = np.median(seconds["a training step"])
    print(f"{options.size}, {options.dtype}, {options.rows} x {options.length}: a training step takes {whole:.3f} s")
    print("| policy | ms | share of a step | programs |")
    print("|---|---|---|---|")
    for name, program in programs.items():
        took = np.median(seconds[name])
        print(f"| {name} | {took * 1e3:.1f} | {took / whole:.2%} | {program._cache_size()} |")


def trained(config: bert_jax.Config, launcher: launchers.Launcher, batch: dict[str, Any]) -> Callable[[int], Any]:
    optimizer = optimizers.make_optimizer(config.optim, STEPS)
    state = jax.jit(lambda: step.init_state(config, optimizer))()
    train = jax.jit(step.make_train_step(step.pretraining(config), optimizer), donate_argnums=0)

    def turn(number: int) -> Any:
        nonlocal state
        state, metrics = train(state, batch)
        return metrics

    return turn


def masked(policy: bert_jax.MaskPolicy, batch: dict[str, Any], number: Any) -> dict[str, Any]:
    return replacement.mask_tokens(jax.random.key(0), batch, policy, number, loss=7 - number / STEPS)


if __name__ == "__main__":
    main()
