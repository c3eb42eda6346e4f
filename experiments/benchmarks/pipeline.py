"""What the input pipeline alone gives, in one thread: plans, packing, reading, assembling.

    python experiments/benchmarks/pipeline.py CORPUS [--length 128 512] [--batch 256] [--seconds 10]

Printed are real tokens, examples and rows a second, how full rows are, and the seconds it takes to plan and to pack a block.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import bert_jax
from bert_jax.data import corpus as corpora
from bert_jax.data import packing, pairs, pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--length", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    corpus = corpora.open_corpus(options.corpus)
    print("| tokens a row | examples a row | plan s | pack s | tokens/s | examples/s | rows/s | full |")
    print("|---|---|---|---|---|---|---|---|")
    for length in options.length:
        for most in (1, bert_jax.DataConfig("").packing):
            config = bert_jax.DataConfig(options.corpus, length, options.batch, packing=most)
            began = time.perf_counter()
            plan = pairs.plan(corpus.train, config, seed=0, epoch=0, block=0)
            planned = time.perf_counter()
            rows = packing.pack(plan.tokens(config), length, most)
            packed = time.perf_counter()
            whole = plan.tokens(config).sum() / rows.shape[0] / length
            tokens = examples = count = 0
            start = time.perf_counter()
            while (spent := time.perf_counter() - start) < options.seconds:
                chosen = rows[np.arange(count, count + options.batch) % len(rows)]
                batch = pipeline.assemble(corpus.train, corpus.tokenizer.specials, config, plan.take(chosen))
                count += options.batch
                tokens += (batch["segments"] > 0).sum()
                examples += batch["segments"].max(axis=1).sum()
            print(
                f"| {length} | {most} | {planned - began:.2f} | {packed - planned:.2f} | {tokens / spent:,.0f} | "
                f"{examples / spent:,.0f} | {count / spent:,.0f} | {whole:.4f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
