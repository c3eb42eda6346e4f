"""Sentence embeddings per second of bert_jax and of transformers with PyTorch, on the same texts, weights and machine.

    python experiments/benchmarks/embed.py MODEL TEXT [--texts 10000] [--rounds 3]

Each program runs in its own process with the same allocator settings, and rounds alternate. Both tokenize, sort by length,
encode in float32, take the mean over all tokens and normalize. PyTorch's batch size is the fastest of several, tried on a tenth
of the texts. The first pass is not timed: it compiles and warms up. The output shows texts and tokens per second without padding,
the ratio of each round, and the largest difference between the vectors of the two programs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bert_jax.cli.process import TUNABLES

SEQUENCE_LENGTH = 256


def ours(model: str) -> Callable[[list[str]], np.ndarray]:
    """Embeddings by this package."""
    import bert_jax

    bert = bert_jax.load(model)
    return lambda texts: bert.embed(texts, normalize=True, long="truncate", sequence_length=SEQUENCE_LENGTH)


def rival(model: str, texts: list[str]) -> Callable[[list[str]], np.ndarray]:
    """Embeddings by transformers, with the batch size that is fastest on ``texts``."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    bert = transformers.BertModel.from_pretrained(model, add_pooling_layer=False).eval()

    def embed(texts: list[str], size: int) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        out = np.empty((len(texts), bert.config.hidden_size), np.float32)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            batch = tokenizer(
                [texts[index] for index in chosen], padding=True, truncation=True, max_length=SEQUENCE_LENGTH, return_tensors="pt"
            )
            with torch.inference_mode():
                hidden = bert(**batch).last_hidden_state
                weight = batch["attention_mask"][..., None]
                mean = (hidden * weight).sum(1) / weight.sum(1)
                out[chosen] = torch.nn.functional.normalize(mean, dim=-1).numpy()
        return out

    def seconds(size: int) -> float:
        embed(texts, size)
        start = time.perf_counter()
        embed(texts, size)
        return time.perf_counter() - start

    best = min((8, 16, 32, 64, 128), key=seconds)
    print(f"transformers: batches of {best} are fastest", file=sys.stderr)
    return lambda texts: embed(texts, best)


def measure(name: str, model: str, texts: list[str], out: str) -> None:
    """The work of one process: a warm-up pass, then a timed pass for each line on standard input."""
    embed = ours(model) if name == "bert_jax" else rival(model, texts[: len(texts) // 10])
    vectors = embed(texts)
    np.save(out, vectors)
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        embed(texts)
        print(json.dumps(time.perf_counter() - start), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    options = parser.parse_args()
    with gzip.open(options.text, "rt") if options.text.suffix == ".gz" else options.text.open() as file:
        texts = [line for line in map(str.strip, file) if line][: options.texts]
    if options.only:
        return measure(options.only, options.model, texts, options.out)

    import bert_jax
    from bert_jax.data import windows

    tokenizer = bert_jax.load(options.model).tokenizer
    assert tokenizer
    rows = windows.cut(tokenizer, texts, sequence_length=SEQUENCE_LENGTH, long="truncate")
    tokens = sum(len(row.ids) for row in rows)
    names, environment = ("bert_jax", "transformers"), {**os.environ, "GLIBC_TUNABLES": TUNABLES}
    with tempfile.TemporaryDirectory() as work:
        programs = {
            name: subprocess.Popen(
                [sys.executable, __file__, *sys.argv[1:], "--only", name, "--out", f"{work}/{name}.npy"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            )
            for name in names
        }  # fmt: skip
        for program in programs.values():
            assert program.stdout
            program.stdout.readline()
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(options.rounds):
            for name, program in programs.items():
                assert program.stdin
                assert program.stdout
                program.stdin.write("\n")
                program.stdin.flush()
                times[name].append(json.loads(program.stdout.readline()))
        for program in programs.values():
            program.communicate()
        first, second = (np.load(f"{work}/{name}.npy") for name in names)
    print(f"{len(texts):,} texts, {tokens:,} tokens, float32, {os.cpu_count()} cores")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:12}  {len(texts) / median:8,.0f} texts/s  {tokens / median:8,.0f} tokens/s")
    ratios = sorted(b / a for a, b in zip(*times.values(), strict=True))
    print(f"ratio         {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f} in {len(ratios)} rounds)")
    print(f"largest difference between vectors: {np.abs(first - second).max():.1e}")


if __name__ == "__main__":
    main()
