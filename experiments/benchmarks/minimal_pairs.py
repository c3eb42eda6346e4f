"""Minimal pairs per second of bert_jax and of transformers with PyTorch, on the same pairs, weights and machine.

    python experiments/benchmarks/minimal_pairs.py MODEL FILE [--pairs 200] [--rounds 3]

MODEL is a directory of transformers, FILE has pairs as BLiMP's files do. transformers masks one token at a time: one row for each
token ("one mask at a time"), or all rows of a sentence in one batch ("one sentence at a time"). The programs alternate; the first
pass of each is not timed. The output shows pairs per second, the ratio of each round, and the largest difference between the
pseudo-log-likelihoods of two programs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers

import bert_jax
from bert_jax.evaluation import minimal_pairs


def rival(path: str) -> Callable[[list[str], int | None], np.ndarray]:
    """Pseudo-log-likelihoods by transformers, with so many rows in a batch."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model: Any = transformers.AutoModelForMaskedLM.from_pretrained(path).eval()

    def likelihood(text: str, size: int | None) -> float:
        ids = tokenizer(text, return_tensors="pt")["input_ids"][0]
        places = torch.arange(1, len(ids) - 1)
        rows = ids.repeat(len(places), 1)
        rows[torch.arange(len(places)), places] = tokenizer.mask_token_id
        total, size = 0.0, size or len(places)
        for start in range(0, len(places), size):
            part = places[start : start + size]
            with torch.inference_mode():
                logits = model(input_ids=rows[start : start + size]).logits[torch.arange(len(part)), part]
            total += float(torch.log_softmax(logits, -1).gather(1, ids[part][:, None]).sum())
        return total

    return lambda texts, size: np.array([likelihood(text, size) for text in texts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("file")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    # Evenly from the whole file, whose paradigms have sentences of different lengths.
    pairs = [*minimal_pairs.read(options.file)]
    pairs = pairs[:: max(1, len(pairs) // options.pairs)]
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    bert, torch_likelihoods = bert_jax.load(options.model), rival(options.model)
    programs: dict[str, Callable[[], np.ndarray]] = {
        "bert_jax": lambda: bert.pseudo_log_likelihood(texts),
        "transformers, one mask at a time": lambda: torch_likelihoods(texts, 1),
        "transformers, one sentence at a time": lambda: torch_likelihoods(texts, None),
    }
    results = {name: program() for name, program in programs.items()}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(options.rounds):
        for name, program in programs.items():
            start = time.perf_counter()
            program()
            times[name].append(time.perf_counter() - start)
    config = bert.config
    print(
        f"{len(pairs)} pairs, {config.num_hidden_layers} layers of {config.hidden_size}, vocabulary of {config.vocab_size:,}, "
        f"{config.dtype}, {os.cpu_count()} cores"
    )
    ours = times["bert_jax"]
    for name, values in times.items():
        ratios = sorted(other / own for own, other in zip(ours, values, strict=True))
        speed = len(pairs) / statistics.median(values)
        spread = f"{statistics.median(ratios):5.2f} times as long ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"{name:38}{speed:8,.1f} pairs/s   takes {spread}")
    difference = max(np.abs(result - results["bert_jax"]).max() for result in results.values())
    print(f"largest difference between likelihoods: {difference:.1e}")


if __name__ == "__main__":
    main()
