"""Losses as (sum, weight), divided once, by the weight of the whole global batch.

A mean of per-device or per-micro-batch means would weigh a token by the company it is in; sums do not.
"""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bert_jax import ops, sharding
from bert_jax.config.run import ModelConfig
from bert_jax.models.encoder import Batch, Encoded, Params, encode
from bert_jax.models.heads import Decoder, head_logits, mlm_states, nsp_logits
from bert_jax.models.readout import readout

Sum = tuple[Float[Array, ""], Float[Array, ""]]
"""(sum, weight), to be divided by whoever knows the weight of the whole."""
Sums = dict[str, Sum]

PRETRAINING = ("mlm_loss", "nsp_loss")
"""Losses of pretraining."""

LOGITS = 2**26
"""Most scores of pieces that a device holds at a time: 256 MiB."""


def label_scores(logits: Float[Array, "*B C"], labels: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """The logit of each label; a sum, not a lookup, because the class axis may be divided over devices."""
    return jnp.where(jnp.arange(logits.shape[-1]) == labels[..., None], logits, 0.0).sum(-1)


def cross_entropy(logits: Float[Array, "*B C"], labels: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Negative log-likelihood in nats, in float32."""
    logits = logits.astype(jnp.float32)
    return jax.nn.logsumexp(logits, axis=-1) - label_scores(logits, labels)


def classification(logits: Float[Array, "*B C"], labels: Int[Array, "*B"], weights: Float[Array, "*B"]) -> tuple[Sum, Sum]:
    """Weighted cross-entropy and accuracy over all places; a label is right if no class scores higher."""
    with jax.named_scope("loss"):
        weight = weights.sum()
        loss = (weights * cross_entropy(logits, labels)).sum()
        # argmax would say the same and is fifty times slower than max on a CPU.
        right = label_scores(logits, labels) >= logits.max(-1)
        return (loss, weight), ((weights * right).sum(), weight)


def masked_words(
    states: Float[Array, "B M D"], decoder: Decoder, labels: Int[Array, "B M"], weights: Float[Array, "B M"]
) -> tuple[Sum, Sum]:
    """:func:`classification` over all pieces, of a part of the M positions at a time where all their scores would be too many.

    Each part's scores are computed again in the backward pass.
    """
    rows, count, _ = states.shape
    parts = min(count, -(-rows * count * decoder.bias.size // (LOGITS * sharding.devices())))
    if parts == 1:
        return classification(decoder.logits(states), labels, weights)
    size = -(-count // parts)

    def split(values: Array) -> Array:
        padded = jnp.pad(values, ((0, 0), (0, parts * size - count), *((0, 0),) * (values.ndim - 2)))
        return jnp.moveaxis(padded.reshape(rows, parts, size, *values.shape[2:]), 1, 0)

    @jax.checkpoint
    def add(total: tuple[Sum, Sum], part: tuple[Array, Array, Array]) -> tuple[tuple[Sum, Sum], None]:
        sums = classification(decoder.logits(part[0]), *part[1:])
        return jax.tree.map(jnp.add, total, sums), None

    zero = (jnp.float32(0), jnp.float32(0))
    return jax.lax.scan(add, (zero, zero), (split(states), split(labels), split(weights)))[0]


def word_losses(states: Float[Array, "B M D"], decoder: Decoder, labels: Int[Array, "B M"]) -> Float[Array, "B M"]:
    """Cross-entropy of each label, in nats, of a part of the M positions at a time where all their scores would be too many."""
    rows = states.shape[0]
    size = max(1, min(states.shape[1], LOGITS * sharding.devices() // (rows * decoder.bias.size)))

    def one(column: tuple[Array, Array]) -> Array:
        return cross_entropy(decoder.logits(column[0][:, None]), column[1][:, None])[:, 0]

    return jax.lax.map(one, (jnp.moveaxis(states, 1, 0), labels.T), batch_size=size).T


def pretraining(config: ModelConfig, params: Params, batch: Batch, *, key: Key[Array, ""] | None = None) -> Sums:
    """Masked-word and next-sentence losses and accuracies of a masked batch (Devlin et al. 2018, appendix A.2).

    Args:
      config, params: the model.
      batch: what ``mask_tokens`` returns.
      key: dropout key, or None for evaluation.

    Returns:
      Sums under ``mlm_loss, mlm_accuracy, nsp_loss, nsp_accuracy``, losses in nats.
    """
    encoded = encode(config, params, batch, key=key)
    with jax.named_scope("mlm"):
        states, decoder = mlm_states(config, params, encoded.hidden, batch["mlm_positions"])
        mlm_loss, mlm_accuracy = masked_words(states, decoder, batch["mlm_ids"], batch["mlm_weights"])
    with jax.named_scope("nsp"):
        logits = nsp_logits(config, params, encoded)
        nsp_loss, nsp_accuracy = classification(logits, batch["nsp_labels"], batch["nsp_weights"])
    return {"mlm_loss": mlm_loss, "mlm_accuracy": mlm_accuracy, "nsp_loss": nsp_loss, "nsp_accuracy": nsp_accuracy}


def task_logits(
    config: ModelConfig, params: Params, batch: Batch, *, head: str, key: Key[Array, ""] | None = None, frozen: bool = False
) -> Float[Array, "B N C"]:
    """float32 scores of a task's head, with dropout on the states it stands on (section 4 and appendix A.3).

    ``span`` has none, as in the original's ``run_squad.py``. Arguments as for :func:`bert_jax.models.readout.readout`.
    """
    encoded = readout(config, params, batch, key=key, frozen=frozen)
    rate = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
    with jax.named_scope("head"):
        if key is not None and head != "span":
            # No layer has this number.
            rows = ops.fold_rows(ops.row_keys(key, batch["examples"]), config.num_hidden_layers + 1)
            hidden, pooled = encoded
            encoded = Encoded(ops.dropout(hidden, rows, rate), None if pooled is None else ops.dropout(pooled, rows, rate))
        return head_logits(config, params, head, encoded)


def task(
    config: ModelConfig, params: Params, batch: Batch, *, head: str, key: Key[Array, ""] | None = None, frozen: bool = False
) -> Sums:
    """Loss and accuracy of a task on a batch with its ``labels`` and ``weights``, whose shapes depend on the head.

    Cross-entropy in nats: of each example ([B, E]; "classify"), each token ([B, S]; "tag"), each question's choices
    ([B, E / choices]; "choose"), or the mean of a span's first and last place, among the places of its own example
    (labels [B, E, 2]; "span"). Squared error of a score ([B, E] float32; "regress"), which has no accuracy.
    """
    logits = task_logits(config, params, batch, head=head, key=key, frozen=frozen)
    labels, weights = batch["labels"], batch["weights"]
    if head == "regress":
        errors = jnp.square(logits[..., 0] - labels)
        return {"task_loss": ((weights * errors).sum(), weights.sum())}
    if head == "choose":
        logits = logits[..., 0].reshape(*labels.shape, -1)
    if head == "span":
        segments = batch["segments"][:, None, None, :]
        mine = segments == 1 + jnp.arange(labels.shape[1])[:, None, None]
        places = jnp.where(mine, jnp.moveaxis(logits, -1, 1)[:, None], jnp.finfo(jnp.float32).min)
        # Both ends count half.
        (loss, weight), right = classification(places, labels, jnp.broadcast_to(weights[..., None] / 2, labels.shape))
    else:
        (loss, weight), right = classification(logits, labels, weights)
    return {"task_loss": (loss, weight), "accuracy": right}


def means(sums: Sums, losses: Iterable[str] = PRETRAINING) -> dict[str, Array]:
    """Divide each sum by its weight; 0 where there was nothing to weigh (no pairs, say).

    ``loss`` is the sum of the means that ``losses`` names: the paper's, the mean masked-word loss plus the mean
    next-sentence loss, where nothing else is said.
    """
    values = {name: jnp.where(weight > 0, total / jnp.maximum(weight, 1.0), 0.0) for name, (total, weight) in sums.items()}
    return {"loss": sum((values[name] for name in losses), jnp.float32(0)), **values}
