"""Held-out MLM losses at fixed mask rates, on which runs with any mask policy can be compared.

The fewer tokens are masked, the easier the others are to predict (Wettig et al. 2023, section 3), so that training losses under
different policies cannot be compared. Evaluations during a run use the paper's 15 % whatever the policy; this module measures
several rates, and each kind of token separately.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int

from bert_jax import masking, ops
from bert_jax.batch import KEPT, MASKED, RANDOM, Batch, Params
from bert_jax.config.data import DataConfig
from bert_jax.config.masking import MaskPolicy
from bert_jax.config.mesh import MeshConfig
from bert_jax.config.model import ModelConfig
from bert_jax.data import corpus as corpora
from bert_jax.data import pipeline
from bert_jax.errors import UserError
from bert_jax.inference.bert import Bert
from bert_jax.masking import ResolvedMaskPolicy
from bert_jax.masking.replacement import mask_tokens
from bert_jax.models.encoder import encode
from bert_jax.models.heads import mlm_states
from bert_jax.training import launchers, losses
from bert_jax.training.losses import Sums

RATES = (0.15, 0.3, 0.4, 0.8)
"""Default mask rates."""
KINDS = {"masked": MASKED, "random": RANDOM, "kept": KEPT}
"""Kinds of predicted tokens, by what replaced them."""
FREQUENCIES = {"common": 0.5, "middle": 0.9, "rare": 1.0}
"""Frequency classes of tokens: the most frequent tokens that make up half of the training text, those that follow them up to
90 %, and the rest."""


def score_at_rates(
    model: Bert,
    corpus: epath.PathLike,
    *,
    rates: Sequence[float] = RATES,
    sequence_length: int = 128,
    batch_size: int = 32,
    max_batches: int | None = None,
) -> dict[str, float]:
    """MLM losses of a model on the held-out split, at several mask rates in one pass.

    The examples and masks depend on the corpus, the sequence length and the rate only, and are the same for every model.

    Args:
      model: a model with an MLM head and the tokenizer of the corpus.
      corpus: directory written by ``bert-jax prepare``.
      rates: shares of tokens that are selected and predicted, with 80/10/10 replacement.
      sequence_length: S, tokens in a row.
      batch_size: B, rows in a batch, rounded up to a multiple of the devices.
      max_batches: maximum number of batches; None: the whole split.

    Returns:
      Losses in nats, under "0.15" for each rate, under "0.15/masked", "0.15/random", "0.15/kept" for each of ``KINDS``, and
      under "0.15/common", "0.15/middle", "0.15/rare" for each of ``FREQUENCIES``.

    Raises:
      UserError: a rate is outside (0, 1]; rows are too long for the model; the corpus has another tokenizer, or no held-out text.

    Examples:
      >>> score_at_rates(bert_jax.load("runs/base"), "wiki", rates=(0.15,))["0.15"]  # doctest: +SKIP
      1.62
    """
    if len(rates) == 0 or not all(0 < rate <= 1 for rate in rates):
        raise UserError(f"rates are {(*rates,)}; give at least one, and each must lie in (0, 1].")
    opened = corpora.open_corpus(corpus)
    if model.tokenizer is None or model.tokenizer.tokens != opened.tokenizer.tokens:
        raise UserError(f"{corpus} was prepared with another vocabulary than the model's; prepare it with --vocab and the model's.")
    model.config.check_length(sequence_length)
    launcher = launchers.for_model(model.config, MeshConfig(), "mesh")
    size = -(-batch_size // launcher.shards) * launcher.shards
    pairs, rows = model.config.type_vocab_size > 1, launcher.rows(size)
    data = DataConfig(str(corpus), sequence_length=sequence_length, batch_size=size, pairs=pairs)
    # The index of the rate takes the place of the step.
    rate_table = np.asarray(rates, np.float32)
    policy = MaskPolicy(rate=lambda index: jnp.asarray(rate_table)[index], steps=max(len(rates) - 1, 1))
    resolved = masking.resolve(policy, opened.tokenizer)
    function = functools.partial(_sums_at_rates, model.config, resolved, len(rates), _frequency_classes(opened.train.counts))
    score, total = launcher.compile(function), None
    with launcher.context():
        params = jax.device_put(model.params, launcher.shardings(jax.eval_shape(lambda: model.params)))
        for batch in pipeline.eval_batches(opened.held_out, opened.tokenizer.special_tokens, data, rows=rows, limit=max_batches):
            sums = score(params, launcher.place(batch))
            total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    if total is None:
        raise UserError(f"{corpus} has no held-out examples; prepare it with a larger --held-out.")
    return {
        f"{rate:g}" + (f"/{part}" if part else ""): float(sums[index] / max(weights[index], 1.0))
        for index, rate in enumerate(rates)
        for part, (sums, weights) in jax.device_get(total).items()
    }


def _frequency_classes(counts: Int[np.ndarray, " V"]) -> Int[np.ndarray, " V"]:
    """Index of each token's class in ``FREQUENCIES``."""
    order = np.argsort(-counts, kind="stable")
    # The share of the text before a token, so that the most frequent one is common whatever its own share.
    before = np.concatenate([[0], np.cumsum(counts[order])[:-1]]) / max(counts.sum(), 1)
    classes = np.empty(len(counts), np.int32)
    classes[order] = np.minimum(np.searchsorted([*FREQUENCIES.values()], before, side="right"), len(FREQUENCIES) - 1)
    return classes


def _sums_at_rates(
    config: ModelConfig, policy: ResolvedMaskPolicy, count: int, classes: Int[np.ndarray, " V"], params: Params, batch: Batch
) -> dict[str, tuple[Float[Array, " R"], Float[Array, " R"]]]:
    """Loss sums and weights of all predictions (""), of each kind and of each frequency class, at each of R rates."""
    key = jax.random.key(0, impl=ops.GENERATOR)

    def at_rate(index: Int[Array, ""]) -> Sums:
        masked = mask_tokens(key, batch, policy, index)
        states, decoder = mlm_states(config, params, encode(config, params, masked).hidden, masked["mlm_positions"])
        labels, weights = masked["mlm_ids"], masked["mlm_weights"]
        token_losses = losses.token_losses(states, decoder, labels)
        label_class = ops.lookup(jnp.asarray(classes), labels)
        parts = {"": weights}
        parts |= {name: weights * (masked["mlm_kinds"] == kind) for name, kind in KINDS.items()}
        parts |= {name: weights * (label_class == position) for position, name in enumerate(FREQUENCIES)}
        return {name: ((part * token_losses).sum(), part.sum()) for name, part in parts.items()}

    sums: dict[str, tuple[Array, Array]] = jax.lax.map(at_rate, jnp.arange(count))
    return sums
