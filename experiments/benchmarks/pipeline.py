"""Throughput of the input pipeline: by itself, compared with one record at a time, and during training.

    python experiments/benchmarks/pipeline.py CORPUS [--sequence-length 128 512] [--batch-size 256] [--seconds 10]
    python experiments/benchmarks/pipeline.py CORPUS --step mini --rounds 5     # a corpus, and a resident batch

The pipeline of bert_jax starts at the beginning of an epoch with empty caches; it plans, packs, reads and assembles in one thread.
"one at a time" is a usual Grain pipeline: a map over example indices that reads, cuts and pads one example, followed by batching.
It makes the same unpacked examples from the same plan, the time of which is not counted for it.
"""

from __future__ import annotations

import argparse
import statistics
import time

import grain
import jax
import numpy as np

import bert_jax
from bert_jax.config import SIZES
from bert_jax.data import corpus as corpora
from bert_jax.data import pipeline, sentence_pairs
from bert_jax.training import optimizers, step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--sequence-length", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=4, help="reading threads of the pipeline that is compared with")
    parser.add_argument("--step", choices=SIZES)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    (during_training if options.step else alone)(options)


def alone(options: argparse.Namespace) -> None:
    print("| tokens a row | pipeline | tokens/s | examples/s | rows/s | full | ours is faster by (examples/s) |")
    print("|---|---|---|---|---|---|---|")
    for length in options.sequence_length:
        speeds = {}
        for name in ("one at a time", "ours, single", "ours, packed"):
            corpus = corpora.open_corpus(options.corpus)
            packing = bert_jax.DataConfig("").packing if name == "ours, packed" else 1
            config = bert_jax.DataConfig(options.corpus, length, options.batch_size, packing=packing)
            batches = one_at_a_time(corpus, config, options.threads) if name == "one at a time" else ours(corpus, config)
            start, tokens, examples, rows = time.perf_counter(), 0, 0, 0
            while (spent := time.perf_counter() - start) < options.seconds:
                segments = next(batches)["segment_ids"]
                tokens += (segments > 0).sum()
                examples += segments.max(axis=1).sum()
                rows += len(segments)
            # Otherwise its prefetching would run beside the next pipeline.
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
    return pipeline.train_batches(corpus.train, corpus.tokenizer.special_tokens, config, seed=0, rows=rows)


def one_at_a_time(corpus: corpora.Corpus, config: bert_jax.DataConfig, threads: int) -> grain.DatasetIterator:
    plan = sentence_pairs.plan(corpus.train, config, seed=0, epoch=0, block=0)
    documents = corpus.train.documents._source
    special_tokens, width = corpus.tokenizer.special_tokens, config.sequence_length

    def read_example(index: int) -> dict[str, np.ndarray]:
        a = slice(plan.start_a[index], plan.start_a[index] + plan.length_a[index])
        b = slice(plan.start_b[index], plan.start_b[index] + plan.length_b[index])
        first = second = documents[int(plan.document_a[index])]
        if plan.random_next[index]:
            second = documents[int(plan.document_b[index])]
        parts = [[special_tokens.cls], first["tokens"][a], [special_tokens.sep], second["tokens"][b], [special_tokens.sep]]
        starts = [[True], first["word_starts"][a], [True], second["word_starts"][b], [True]]
        ids, length = np.concatenate(parts), sum(map(len, parts))
        padding = (0, width - length)
        is_special = np.isin(np.arange(length), (0, len(parts[1]) + 1, length - 1))
        return {
            "input_ids": np.pad(ids, padding, constant_values=special_tokens.pad).astype(np.int32),
            "token_type_ids": np.pad((np.arange(length) > len(parts[1]) + 1).astype(np.int32), padding),
            "position_ids": np.pad(np.arange(length, dtype=np.int32), padding),
            "segment_ids": np.pad(np.ones(length, np.int32), padding),
            "word_ids": np.pad(np.where(is_special, -1, np.cumsum(np.concatenate(starts))), padding, constant_values=-1),
            "nsp_labels": plan.random_next[index],
        }

    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * config.batch_size)
    examples = grain.MapDataset.range(len(plan.example)).map(read_example).repeat().to_iter_dataset(read)
    return iter(examples.batch(config.batch_size))


def during_training(options: argparse.Namespace) -> None:
    """The same training step with batches of the corpus, and with one batch that stays on the device, in alternation."""
    corpus = corpora.open_corpus(options.corpus)
    tokens = len(corpus.tokenizer.tokens)
    config = bert_jax.Config(
        run="",
        data=bert_jax.DataConfig(options.corpus, options.sequence_length[0], options.batch_size),
        model=bert_jax.ModelConfig.size(options.step, vocab_size=tokens, dtype="bfloat16"),
    )
    optimizer = optimizers.make_optimizer(config.optim, config.train.steps)
    objective = step.pretraining(config.model, bert_jax.resolve_policy(config.mask, corpus.tokenizer))
    train_step = jax.jit(step.make_train_step(objective, optimizer), donate_argnums=0)
    state = jax.jit(lambda: step.init_state(config, optimizer))()
    batches = ours(corpus, config.data)
    resident = jax.device_put(next(batches))
    seconds: dict[str, list[float]] = {"resident": [], "corpus": []}
    for turn in range(options.rounds + 1):
        for name, taken in seconds.items():
            count = 0
            start = time.perf_counter()
            # As in the trainer, the next batch is taken while the step runs.
            batch = resident
            while (spent := time.perf_counter() - start) < options.seconds:
                state, metrics = train_step(state, batch)
                batch = jax.device_put(next(batches)) if name == "corpus" else resident
                jax.block_until_ready(metrics)
                count += 1
            if turn:
                taken.append(spent / count)
    ratios = [real / fixed for real, fixed in zip(seconds["corpus"], seconds["resident"], strict=True)]
    shape = f"{options.batch_size} x {options.sequence_length[0]}"
    for name, taken in seconds.items():
        print(f"{name:9} {1e3 * statistics.median(taken):,.1f} ms a step of {shape}, {options.step}")
    print(f"ratio     {statistics.median(ratios):.4f} ({min(ratios):.4f} to {max(ratios):.4f} in {len(ratios)} rounds)")


if __name__ == "__main__":
    main()
