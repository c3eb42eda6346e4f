"""Token weights by pointwise mutual information (PMI) for `--mask.token-weights`: tokens that predict each other are masked first.

    python experiments/pmi_weights.py CORPUS --out pmi.tsv
    bert-jax pretrain experiments/quickstart.py --mask.token-weights pmi.tsv

CORPUS is a directory written by `bert-jax prepare`. A pair of neighbouring tokens with a positive PMI (Church and Hanks 1990) has
the weight 1 + PMI, in nats; a single token has the weight 1. PMI-masking (Levine et al., ICLR 2021) masks whole collocations of up
to five words; these weights only make the tokens of collocations more likely to be masked, pair by pair.
"""

import argparse
import collections
from pathlib import Path

import numpy as np

import bert_jax
from bert_jax.data.corpus import open_corpus


def main() -> None:
    """Count pairs of neighbouring tokens and write their weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="directory written by `bert-jax prepare`")
    parser.add_argument("--out", type=Path, required=True, help="file of weights to write")
    parser.add_argument("--min-count", type=int, default=20, help="minimum number of occurrences of a pair")
    options = parser.parse_args()
    try:
        corpus = open_corpus(options.corpus)
    except bert_jax.UserError as error:
        raise SystemExit(f"pmi_weights.py: {error}") from None
    tokens, size = corpus.tokenizer.tokens, len(corpus.tokenizer.tokens)
    # A pair (a, b) of token ids is counted as the number a * size + b.
    pair_counts: collections.Counter[int] = collections.Counter()
    for start in range(0, len(corpus.train.documents), 1000):
        indices = range(start, min(start + 1000, len(corpus.train.documents)))
        for document in corpus.train.documents.__getitems__([*indices]):
            ids = document["tokens"].astype(np.int64)
            pairs, counts = np.unique(ids[:-1] * size + ids[1:], return_counts=True)
            pair_counts.update(dict(zip(pairs.tolist(), counts.tolist(), strict=True)))
    frequent = {pair: count for pair, count in pair_counts.items() if count >= options.min_count}
    if not frequent:
        raise SystemExit(f"pmi_weights.py: no pair occurs {options.min_count} times in {options.corpus}; lower --min-count.")
    pairs, counts = np.array([*frequent]), np.array([*frequent.values()], float)
    share = corpus.train.counts / corpus.train.counts.sum()
    with np.errstate(divide="ignore"):
        pmi = np.log(counts / pair_counts.total()) - np.log(share[pairs // size]) - np.log(share[pairs % size])
    lines = [f"{token}\t1\n" for token in tokens]
    for index in np.argsort(-pmi)[: (pmi > 0).sum()]:
        lines.append(f"{tokens[pairs[index] // size]} {tokens[pairs[index] % size]}\t{1 + pmi[index]:.4f}\n")
    options.out.write_text("".join(lines), encoding="utf-8")
    highest = ", ".join(line.split("\t")[0] for line in lines[size : size + 5])
    print(f"{options.out}: {len(lines) - size:,} pairs; those with the highest PMI: {highest}")


if __name__ == "__main__":
    main()
