"""Held-out losses at fixed masking rates: a scale on which runs with any policy can be compared.

The fewer tokens are hidden, the easier are the others to guess (Wettig et al. 2023, section 3): training losses of runs with
different policies say nothing about each other. While a run goes on, it is scored at the paper's 15 % whatever its policy; here
several rates are, each kind of token by itself.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int

from bert_jax import ops
from bert_jax.config.run import DataConfig, MeshConfig, ModelConfig
from bert_jax.config.validation import require
from bert_jax.data import corpus as corpora
from bert_jax.data import pipeline
from bert_jax.errors import UserError
from bert_jax.inference.bert import Bert
from bert_jax.masking import replacement
from bert_jax.masking.policy import MaskPolicy
from bert_jax.masking.replacement import mask_tokens
from bert_jax.models.encoder import Batch, Params, encode
from bert_jax.models.heads import mlm_states
from bert_jax.training import launchers, losses
from bert_jax.training.losses import Sums

RATES = (0.15, 0.3, 0.4, 0.8)
KINDS = {"masked": replacement.MASKED, "random": replacement.RANDOM, "kept": replacement.KEPT}
FREQUENCIES = {"common": 0.5, "middle": 0.9, "rare": 1.0}
"""Classes of pieces: those that, the most frequent first, make up this share of the training text."""


def score_at_rates(
    model: Bert,
    corpus: epath.PathLike,
    *,
    rates: Sequence[float] = RATES,
    length: int = 128,
    batch_size: int = 32,
    limit: int | None = None,
) -> dict[str, float]:
    """Masked-word losses of a model on the held-out split, at several rates in one pass.

    The examples and the masks are the same for every model: they depend on the corpus, the length and the rate alone.

    Args:
      model: with the tokenizer of the corpus.
      corpus: directory that ``bert-jax prepare`` wrote.
      rates: shares of tokens that are chosen and predicted, 80/10/10.
      length: S, tokens in a row.
      batch_size: B, rows that are scored at a time.
      limit: batches that are scored; all where not given.

    Returns:
      Nats under "0.15" for each rate, and of its parts under "0.15/masked", "0.15/random", "0.15/kept" (what became of the
      token) and "0.15/common", "0.15/middle", "0.15/rare" (:data:`FREQUENCIES`).

    Raises:
      UserError: a rate is outside of (0, 1], the corpus is of another tokenizer, or holds nothing held out.
    """
    require(len(rates) > 0 and all(0 < rate <= 1 for rate in rates), f"rates are {(*rates,)}; they must lie in (0, 1].")
    opened = corpora.open_corpus(corpus)
    if model.tokenizer is None or model.tokenizer.pieces != opened.tokenizer.pieces:
        raise UserError(f"{corpus} was prepared with another vocabulary than the model's; prepare it with --vocab and the model's.")
    launcher = launchers.for_model(model.config, MeshConfig(), "mesh")
    size = -(-batch_size // launcher.shards) * launcher.shards
    data, rows = DataConfig(str(corpus), sequence_length=length, batch_size=size), launcher.rows(size)
    each = np.asarray(rates, np.float32)
    policy = MaskPolicy(
        rate=lambda step: jnp.asarray(each)[step],
        steps=len(rates) - 1 or 1,
    ).of(opened.tokenizer)
    score = launcher.compile(functools.partial(_sums, model.config, policy, len(rates), _classes(opened.train.counts)))
    total = None
    with launcher.context():
        params = jax.device_put(model.params, launcher.shardings(jax.eval_shape(lambda: model.params)))
        for batch in pipeline.eval_batches(opened.held_out, opened.tokenizer.specials, data, rows=rows, limit=limit):
            sums = score(params, launcher.place(batch))
            total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    if total is None:
        raise UserError(f"{corpus} holds no held-out example.")
    return {
        f"{rate:g}" + (f"/{name}" if name else ""): float(sums[number] / max(weights[number], 1.0))
        for number, rate in enumerate(rates)
        for name, (sums, weights) in jax.device_get(total).items()
    }


def _classes(counts: Int[np.ndarray, " V"]) -> Int[np.ndarray, " V"]:
    """Of each piece, the number of its class of frequency."""
    order = np.argsort(-counts, kind="stable")
    # What stands before a piece, so that the most frequent one is common, however much of the text it is.
    before = np.concatenate([[0], np.cumsum(counts[order])[:-1]]) / max(counts.sum(), 1)
    classes = np.empty(len(counts), np.int32)
    classes[order] = np.minimum(np.searchsorted([*FREQUENCIES.values()], before, side="right"), len(FREQUENCIES) - 1)
    return classes


def _sums(
    config: ModelConfig, policy: MaskPolicy, count: int, classes: Int[np.ndarray, " V"], params: Params, batch: Batch
) -> dict[str, tuple[Float[Array, " R"], Float[Array, " R"]]]:
    """Sums and weights of each part, at each of R rates."""
    key = jax.random.key(0)

    def at(number: Int[Array, ""]) -> Sums:
        masked = mask_tokens(key, batch, policy, number)
        states, decoder = mlm_states(config, params, encode(config, params, masked).hidden, masked["mlm_positions"])
        labels, weights = masked["mlm_ids"], masked["mlm_weights"]
        each = losses.word_losses(states, decoder, labels)
        frequency = ops.lookup(jnp.asarray(classes), labels)
        parts = {"": weights}
        parts |= {name: weights * (masked["mlm_kinds"] == kind) for name, kind in KINDS.items()}
        parts |= {name: weights * (frequency == number) for number, name in enumerate(FREQUENCIES)}
        return {name: ((part * each).sum(), part.sum()) for name, part in parts.items()}

    found: dict[str, tuple[Array, Array]] = jax.lax.map(at, jnp.arange(count))
    return found
