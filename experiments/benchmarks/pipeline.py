"""The input pipeline: alone, beside the same examples one record at a time, and under a train step.

    python experiments/benchmarks/pipeline.py CORPUS [--length 128 512] [--batch 256] [--seconds 10]
    python experiments/benchmarks/pipeline.py CORPUS --step mini --rounds 5     # real against resident input

Ours starts at the beginning of an epoch, with nothing read yet: plans, packing, reading, assembling, all in its one thread.
"One at a time" is what is usually written with Grain: a map over example numbers that reads the documents of each, cuts and
pads it, then a batch; it makes the same unpacked examples from the same plan, which is given to it.
"""

from __future__ import annotations

import argparse
import statistics
import time

import grain
import jax
import numpy as np

import bert_jax
from bert_jax.data import corpus as corpora
from bert_jax.data import pipeline, sentence_pairs
from bert_jax.training import optimizers, step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--length", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=4, help="reading threads of the pipeline that is compared with")
    parser.add_argument("--step", choices=bert_jax.config.run.SIZES)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    (under_a_step if options.step else alone)(options)


def alone(options: argparse.Namespace) -> None:
    print("| tokens a row | pipeline | tokens/s | examples/s | rows/s | full | ours is faster by (examples/s) |")
    print("|---|---|---|---|---|---|---|")
    for length in options.length:
        speeds = {}
        for name in ("one at a time", "ours, single", "ours, packed"):
            corpus = corpora.open_corpus(options.corpus)
            packing = bert_jax.DataConfig("").packing if name == "ours, packed" else 1
            config = bert_jax.DataConfig(options.corpus, length, options.batch, packing=packing)
            batches = one_at_a_time(corpus, config, options.threads) if name == "one at a time" else ours(corpus, config)
            start, tokens, examples, rows = time.perf_counter(), 0, 0, 0
            while (spent := time.perf_counter() - start) < options.seconds:
                segments = next(batches)["segments"]
                tokens += (segments > 0).sum()
                examples += segments.max(axis=1).sum()
                rows += len(segments)
            # What it has begun to read ahead would run beside the next one.
            batches.close()
            speeds[name] = examples / spent
            faster = f"{speeds[name] / speeds['one at a time']:.0f}" if name != "one at a time" else ""
            print(
                f"| {length} | {name} | {tokens / spent:,.0f} | {examples / spent:,.0f} | {rows / spent:,.0f} | "
                f"{tokens / rows / length:.4f} | {faster} |",
                flush=True,
            )


def ours(corpus: corpora.Corpus, config: bert_jax.DataConfig) -> grain.DatasetIterator:
    rows = np.arange(config.batch_size)
    return pipeline.train_batches(corpus.train, corpus.tokenizer.specials, config, seed=0, rows=rows)


def one_at_a_time(corpus: corpora.Corpus, config: bert_jax.DataConfig, threads: int) -> grain.DatasetIterator:
    plan = sentence_pairs.plan(corpus.train, config, seed=0, epoch=0, block=0)
    documents = corpus.train.documents._source
    specials, width = corpus.tokenizer.specials, config.sequence_length

    def one(number: int) -> dict[str, np.ndarray]:
        a = slice(plan.start_a[number], plan.start_a[number] + plan.length_a[number])
        b = slice(plan.start_b[number], plan.start_b[number] + plan.length_b[number])
        first = second = documents[int(plan.document_a[number])]
        if plan.random_next[number]:
            second = documents[int(plan.document_b[number])]
        parts = [[specials.cls], first["pieces"][a], [specials.sep], second["pieces"][b], [specials.sep]]
        starts = [[True], first["starts"][a], [True], second["starts"][b], [True]]
        ids, length = np.concatenate(parts), sum(map(len, parts))
        padding = (0, width - length)
        is_special = np.isin(np.arange(length), (0, len(parts[1]) + 1, length - 1))
        return {
            "ids": np.pad(ids, padding, constant_values=specials.pad).astype(np.int32),
            "types": np.pad((np.arange(length) > len(parts[1]) + 1).astype(np.int32), padding),
            "positions": np.pad(np.arange(length, dtype=np.int32), padding),
            "segments": np.pad(np.ones(length, np.int32), padding),
            "words": np.pad(np.where(is_special, -1, np.cumsum(np.concatenate(starts))), padding, constant_values=-1),
            "nsp_labels": plan.random_next[number],
        }

    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * config.batch_size)
    examples = grain.MapDataset.range(len(plan.example)).map(one).repeat().to_iter_dataset(read)
    return iter(examples.batch(config.batch_size))


def under_a_step(options: argparse.Namespace) -> None:
    """The same step fed from the corpus, and with a batch that stays where it is, in turn."""
    corpus = corpora.open_corpus(options.corpus)
    pieces = len(corpus.tokenizer.pieces)
    config = bert_jax.Config(
        run="",
        data=bert_jax.DataConfig(options.corpus, options.length[0], options.batch),
        model=bert_jax.ModelConfig.size(options.step, vocab_size=pieces, dtype="bfloat16"),
        mask=bert_jax.MaskPolicy(mask_id=corpus.tokenizer.specials.mask, vocab_size=pieces),
    )
    optimizer = optimizers.make_optimizer(config.optim, config.train.steps)
    train_step = jax.jit(step.make_train_step(step.pretraining(config), optimizer), donate_argnums=0)
    state = jax.jit(lambda: step.init_state(config, optimizer))()
    batches = ours(corpus, config.data)
    resident = jax.device_put(next(batches))
    seconds: dict[str, list[float]] = {"resident": [], "corpus": []}
    for turn in range(options.rounds + 1):
        for name, taken in seconds.items():
            count = 0
            began = time.perf_counter()
            # As the training loop does: the next batch is taken while the step runs.
            batch = resident
            while (spent := time.perf_counter() - began) < options.seconds:
                state, metrics = train_step(state, batch)
                batch = jax.device_put(next(batches)) if name == "corpus" else resident
                jax.block_until_ready(metrics)
                count += 1
            if turn:
                taken.append(spent / count)
    ratios = [real / fixed for real, fixed in zip(seconds["corpus"], seconds["resident"], strict=True)]
    for name, taken in seconds.items():
        print(f"{name:9} {1e3 * statistics.median(taken):,.1f} ms a step of {options.batch} x {options.length[0]}, {options.step}")
    print(f"ratio     {statistics.median(ratios):.4f} ({min(ratios):.4f} to {max(ratios):.4f} in {len(ratios)} rounds)")


if __name__ == "__main__":
    main()
