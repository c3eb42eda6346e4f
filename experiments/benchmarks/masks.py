"""Cost of masking: the time of each policy and of a whole training step, and how often its program is compiled.

    python experiments/benchmarks/masks.py --size base --batch-size 8 --sequence-length 128
    python experiments/benchmarks/masks.py --size mini --batch-size 32 --sequence-length 128 --rounds 40

Times are medians over rounds; each round runs the training step and every policy once.
"""

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import bert_jax
from bert_jax.evaluation import benchmark
from bert_jax.masking import replacement
from bert_jax.masking.token_weights import check_function
from bert_jax.training import launchers, optimizers, step

POLICIES = {
    "0.15": {},
    '"linear(0.3, 0.15)"': {"rate": "linear(0.3, 0.15)"},
    "a function of the step and the loss": {"rate": lambda step, loss: 0.15 + 0.15 * jax.nn.sigmoid(loss - step / 100)},
    '"linear(0.3, 0.15)", 0.15 predicted': {"rate": "linear(0.3, 0.15)", "prediction_rate": 0.15},
    "word": {"select": "word"},
    "ngram": {"select": "ngram"},
    "span": {"select": "span"},
    "t5": {"select": "t5"},
    "token_weights": {"token_weights": lambda batch: 1 + batch["input_ids"] % 7},
}
STEPS = 100
OPTIM = bert_jax.OptimConfig(warmup_steps=10)
MASK_ID, VOCAB = 103, 30_522


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    data = bert_jax.DataConfig("", sequence_length=options.sequence_length, batch_size=options.batch_size)
    model = bert_jax.ModelConfig.size(options.size, vocab_size=VOCAB, dtype=options.dtype)
    config = bert_jax.Config(run="", data=data, model=model, train=bert_jax.TrainConfig(steps=STEPS), optim=OPTIM)
    launcher = launchers.launch(config)
    batch = launcher.place(benchmark.random_batch(data, model.vocab_size))
    turns = {"a training step": trained(config, launcher, batch)}
    programs = {}
    for name, fields in POLICIES.items():
        programs[name] = jax.jit(functools.partial(masked, resolved(bert_jax.MaskPolicy(**fields), options.sequence_length)))
        turns[name] = functools.partial(programs[name], batch)
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for index in range(options.rounds + 1):
        for name, turn in turns.items():
            start = time.perf_counter()
            jax.block_until_ready(turn(index * STEPS // options.rounds))
            # The first round compiles.
            if index:
                seconds[name].append(time.perf_counter() - start)
    whole = np.median(seconds["a training step"])
    print(f"{options.size}, {options.dtype}, {options.batch_size} x {options.sequence_length}: a training step takes {whole:.3f} s")
    print("| policy | ms | share of a step | programs |")
    print("|---|---|---|---|")
    for name, program in programs.items():
        took = np.median(seconds[name])
        print(f"| {name} | {took * 1e3:.1f} | {took / whole:.2%} | {program._cache_size()} |")


def resolved(policy: bert_jax.MaskPolicy, sequence_length: int) -> bert_jax.ResolvedMaskPolicy:
    """The policy with the ids of BERT's vocabulary."""
    weights = policy.token_weights
    function = None if weights is None else check_function(weights, sequence_length, VOCAB)
    return bert_jax.ResolvedMaskPolicy(policy, MASK_ID, VOCAB, steps=STEPS, token_weights=function)


def trained(config: bert_jax.Config, launcher: launchers.Launcher, batch: dict[str, Any]) -> Callable[[int], Any]:
    optimizer = optimizers.make_optimizer(config.optim, STEPS)
    state = jax.jit(lambda: step.init_state(config, optimizer))()
    objective = step.pretraining(config.model, resolved(config.mask, config.data.sequence_length))
    train = jax.jit(step.make_train_step(objective, optimizer), donate_argnums=0)

    def turn(index: int) -> Any:
        nonlocal state
        state, metrics = train(state, batch)
        return metrics

    return turn


def masked(policy: bert_jax.ResolvedMaskPolicy, batch: dict[str, Any], index: Any) -> dict[str, Any]:
    return replacement.mask_tokens(jax.random.key(0), batch, policy, index, loss=7 - index / STEPS)


if __name__ == "__main__":
    main()
