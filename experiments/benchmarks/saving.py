"""Cost of checkpoints: the time of a step without and during a save, the part of a save that blocks training, and reading.

    python experiments/benchmarks/saving.py --size mini --batch-size 32
    python experiments/benchmarks/saving.py --size base --batch-size 8 --steps 6 --rounds 3

In each round some steps run alone, then a save begins, and steps run until it is committed. Times are medians.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax

import bert_jax
from bert_jax import tokenizers
from bert_jax.checkpoints import Checkpoints, Meta, abstract, manifest, report
from bert_jax.evaluation import benchmark
from bert_jax.training import launchers, optimizers, step

MASK_ID, VOCAB = 103, 30_522
TIMES = ("alone", "blocked", "during", "saved", "manifest", "read", "verified")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="mini")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10, help="steps without a save in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", default=None, help="where to save; by default the directory of temporary files")
    options = parser.parse_args()
    words = [" ".join(f"word{number}" for number in range(200))] * 10
    tokenizer = tokenizers.train(lambda: words, kind="wordpiece", size=200)
    data = bert_jax.DataConfig("", sequence_length=128, batch_size=options.batch_size)
    model = bert_jax.ModelConfig.size(options.size, vocab_size=VOCAB, layers="scan")
    config = bert_jax.Config(run="", data=data, model=model, optim=bert_jax.OptimConfig(warmup_steps=10))
    launcher = launchers.launch(config)
    batch = launcher.place(benchmark.random_batch(data, model.vocab_size))
    optimizer = optimizers.make_optimizer(config.optim, config.train.steps)
    policy = bert_jax.ResolvedMaskPolicy(config.mask, MASK_ID, VOCAB)
    train_step = launcher.compile_step(step.make_train_step(step.pretraining(model, policy), optimizer))
    with launcher.context(), tempfile.TemporaryDirectory(dir=options.directory) as run:
        shapes = jax.eval_shape(lambda: step.init_state(config, optimizer))
        shardings = launcher.shardings(shapes)
        state = launchers.create(lambda: step.init_state(config, optimizer), shardings)
        meta = Meta({}, model, tokenizer, "", {})
        checkpoints = Checkpoints(run, keep=1)
        times: dict[str, list[float]] = {
            name: [] for name in ("alone", "blocked", "during", "saved", "manifest", "read", "verified")
        }
        number = 0

        def one_step() -> float:
            nonlocal state
            began = time.perf_counter()
            state, _ = train_step(state, batch)
            jax.block_until_ready(state)
            return time.perf_counter() - began

        one_step()
        for number in range(options.rounds + 1):
            found: dict[str, list[float]] = {name: [] for name in times}
            found["alone"] = [one_step() for _ in range(options.steps)]
            began = time.perf_counter()
            checkpoints.save(number, state, meta)
            found["blocked"].append(time.perf_counter() - began)
            while not (Path(run) / "checkpoints" / str(number)).exists():
                found["during"].append(one_step())
            checkpoints.wait()
            found["saved"].append(time.perf_counter() - began)
            directory = checkpoints.path / str(number)
            began = time.perf_counter()
            manifest.problems(directory)
            found["manifest"].append(time.perf_counter() - began)
            began = time.perf_counter()
            checkpoints.restore(abstract(shapes, shardings))
            found["read"].append(time.perf_counter() - began)
            began = time.perf_counter()
            report.read(run, verify=True)
            found["verified"].append(time.perf_counter() - began)
            # The first round compiles and fills caches.
            for name, values in found.items() if number else ():
                times[name] += values
        size = sum(path.stat().length for path in manifest.files(directory))
        checkpoints.close()
    print(f"BERT-{options.size}, {options.batch_size} x 128, {size / 1e6:.0f} MB a checkpoint, {options.rounds} rounds")
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"| a step without a save | {1e3 * median['alone']:.0f} ms |")
    print(f"| a step during a save | {1e3 * median['during']:.0f} ms ({median['during'] / median['alone']:.2f} times) |")
    print(f"| the save blocks training for | {1e3 * median['blocked']:.0f} ms ({median['blocked'] / median['alone']:.2f} steps) |")
    print(f"| until the save is committed | {1e3 * median['saved']:.0f} ms |")
    print(f"| comparing files with the manifest | {1e3 * median['manifest']:.1f} ms |")
    print(f"| reading a checkpoint, checksums included | {1e3 * median['read']:.0f} ms |")
    print(f"| bert-jax checkpoints --verify | {1e3 * median['verified']:.0f} ms |")


if __name__ == "__main__":
    main()
