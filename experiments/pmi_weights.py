"""Weights by pointwise mutual information, for `--mask.weights`: pieces that foretell each other are hidden first.

    python experiments/pmi_weights.py CORPUS --out pmi.tsv
    bert-jax pretrain experiments/quickstart.py --mask.weights pmi.tsv

CORPUS is what `bert-jax prepare` wrote. A pair of neighbours has the weight 1 + its PMI (Church and Hanks 1990), in nats, where
that is above 0; a piece by itself has 1. PMI-masking (Levine et al., ICLR 2021) hides whole collocations, of up to five words;
this makes their pieces likelier, pair by pair.
"""

import argparse
import collections
from pathlib import Path

import numpy as np

import bert_jax
from bert_jax.data.corpus import open_corpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--least", type=int, default=20, help="occurrences that a pair must have")
    options = parser.parse_args()
    try:
        corpus = open_corpus(options.corpus)
    except bert_jax.UserError as error:
        raise SystemExit(f"pmi_weights.py: {error}") from None
    pieces, size = corpus.tokenizer.pieces, len(corpus.tokenizer.pieces)
    pairs: collections.Counter[int] = collections.Counter()
    for first in range(0, len(corpus.train.documents), 1000):
        numbers = range(first, min(first + 1000, len(corpus.train.documents)))
        for document in corpus.train.documents.__getitems__([*numbers]):
            ids = document["pieces"].astype(np.int64)
            keys, counts = np.unique(ids[:-1] * size + ids[1:], return_counts=True)
            pairs.update(dict(zip(keys.tolist(), counts.tolist(), strict=True)))
    kept = {pair: count for pair, count in pairs.items() if count >= options.least}
    if not kept:
        raise SystemExit(f"pmi_weights.py: no pair occurs {options.least} times in {options.corpus}; lower --least.")
    keys, counts = np.array([*kept]), np.array([*kept.values()], float)
    share = corpus.train.counts / corpus.train.counts.sum()
    with np.errstate(divide="ignore"):
        pmi = np.log(counts / pairs.total()) - np.log(share[keys // size]) - np.log(share[keys % size])
    rows = [f"{piece}\t1\n" for piece in pieces]
    for place in np.argsort(-pmi)[: (pmi > 0).sum()]:
        rows.append(f"{pieces[keys[place] // size]} {pieces[keys[place] % size]}\t{1 + pmi[place]:.4f}\n")
    options.out.write_text("".join(rows), encoding="utf-8")
    print(f"{options.out}: {len(rows) - size:,} pairs; first {', '.join(row.split(chr(9))[0] for row in rows[size : size + 5])}")


if __name__ == "__main__":
    main()
