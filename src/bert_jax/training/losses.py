"""Losses as (sum, weight) pairs, divided once, by the weight of the whole global batch.

A mean of the means of devices or micro-batches would weight tokens unequally; sums do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from bert_jax import ops, sharding
from bert_jax.batch import Batch, Params
from bert_jax.config.model import ModelConfig
from bert_jax.models.encoder import Encoded, encode
from bert_jax.models.heads import Decoder, head_logits, mlm_states, nsp_logits
from bert_jax.models.readout import readout

Sum = tuple[Float[Array, ""], Float[Array, ""]]
"""(sum, weight), to be divided when the weight of the whole batch is known."""
Sums = dict[str, Sum]
"""Sums by the name of a loss or score."""

PRETRAINING = ("mlm_loss", "nsp_loss")
"""Losses of pretraining."""

MAX_LOGITS_PER_DEVICE = 2**26
"""Maximum number of MLM logits that a device holds at a time: 256 MiB in float32."""


def label_logits(logits: Float[Array, "*B C"], labels: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """The logit of each label; a masked sum, not a lookup, because the class axis may be sharded.

    Examples:
      >>> label_logits(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([1, 0])).tolist()
      [2.0, 3.0]
    """
    return jnp.where(jnp.arange(logits.shape[-1]) == labels[..., None], logits, 0.0).sum(-1)


def cross_entropy(logits: Float[Array, "*B C"], labels: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Negative log-likelihood in nats, in float32."""
    logits = logits.astype(jnp.float32)
    return jax.nn.logsumexp(logits, axis=-1) - label_logits(logits, labels)


def classification(logits: Float[Array, "*B C"], labels: Int[Array, "*B"], weights: Float[Array, "*B"]) -> tuple[Sum, Sum]:
    """Weighted cross-entropy and accuracy; a label is right if no class has a higher logit.

    Args:
      logits: class logits.
      labels: class indices.
      weights: 0 excludes a label.

    Returns:
      (loss, weight) in nats and (right, weight).

    Examples:
      >>> (loss, weight), (right, _) = classification(jnp.zeros((3, 2)), jnp.array([0, 1, 1]), jnp.ones(3))
      >>> round(float(loss / weight), 4), float(right)
      (0.6931, 3.0)
    """
    with jax.named_scope("loss"):
        weight = weights.sum()
        loss = (weights * cross_entropy(logits, labels)).sum()
        # argmax would be equivalent, but is fifty times slower than max on a CPU.
        right = label_logits(logits, labels) >= logits.max(-1)
        return (loss, weight), ((weights * right).sum(), weight)


def logit_chunks(rows: int, count: int, vocab_size: int) -> int:
    """Number of chunks in which the MLM logits of B rows with M positions are computed, on the devices of the current mesh."""
    return min(count, -(-rows * count * vocab_size // (MAX_LOGITS_PER_DEVICE * sharding.devices())))


def masked_lm(
    states: Float[Array, "B M D"], decoder: Decoder, labels: Int[Array, "B M"], weights: Float[Array, "B M"]
) -> tuple[Sum, Sum]:
    """``classification`` over the vocabulary, in chunks of the M positions if all logits would need too much memory.

    The backward pass recomputes the logits of each chunk.
    """
    rows, count, _ = states.shape
    chunks = logit_chunks(rows, count, decoder.bias.size)
    if chunks == 1:
        return classification(decoder.logits(states), labels, weights)
    size = -(-count // chunks)

    def split(values: Array) -> Array:
        padded = jnp.pad(values, ((0, 0), (0, chunks * size - count), *((0, 0),) * (values.ndim - 2)))
        return jnp.moveaxis(padded.reshape(rows, chunks, size, *values.shape[2:]), 1, 0)

    @jax.checkpoint
    def add(total: tuple[Sum, Sum], chunk: tuple[Array, Array, Array]) -> tuple[tuple[Sum, Sum], None]:
        sums = classification(decoder.logits(chunk[0]), *chunk[1:])
        return jax.tree.map(jnp.add, total, sums), None

    zero = (jnp.float32(0), jnp.float32(0))
    return jax.lax.scan(add, (zero, zero), (split(states), split(labels), split(weights)))[0]


def token_losses(states: Float[Array, "B M D"], decoder: Decoder, labels: Int[Array, "B M"]) -> Float[Array, "B M"]:
    """Cross-entropy of each label in nats, in chunks of the M positions if all logits would need too much memory."""
    rows = states.shape[0]
    size = max(1, min(states.shape[1], MAX_LOGITS_PER_DEVICE * sharding.devices() // (rows * decoder.bias.size)))

    def position_losses(column: tuple[Array, Array]) -> Array:
        return cross_entropy(decoder.logits(column[0][:, None]), column[1][:, None])[:, 0]

    return jax.lax.map(position_losses, (jnp.moveaxis(states, 1, 0), labels.T), batch_size=size).T


def pretraining(config: ModelConfig, params: Params, batch: Batch, *, key: Key[Array, ""] | None = None) -> Sums:
    """MLM and NSP losses and accuracies of a masked batch (Devlin et al. 2018, appendix A.2).

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
        mlm_loss, mlm_accuracy = masked_lm(states, decoder, batch["mlm_ids"], batch["mlm_weights"])
    with jax.named_scope("nsp"):
        logits = nsp_logits(config, params, encoded)
        nsp_loss, nsp_accuracy = classification(logits, batch["nsp_labels"], batch["nsp_weights"])
    return {"mlm_loss": mlm_loss, "mlm_accuracy": mlm_accuracy, "nsp_loss": nsp_loss, "nsp_accuracy": nsp_accuracy}


def task_logits(
    config: ModelConfig, params: Params, batch: Batch, *, head: str, key: Key[Array, ""] | None = None, freeze_encoder: bool = False
) -> Float[Array, "B N C"]:
    """float32 logits of a task's head, with dropout on its input (section 4 and appendix A.3).

    ``question_answering`` has no dropout there, as in the original's ``run_squad.py``. Arguments as for
    [`readout`][bert_jax.models.readout.readout].
    """
    encoded = readout(config, params, batch, key=key, freeze_encoder=freeze_encoder)
    rate = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
    with jax.named_scope("head"):
        if key is not None and head != "question_answering":
            # An index that no layer has.
            rows = ops.fold_rows(ops.row_keys(key, batch["example_ids"]), config.num_hidden_layers + 1)
            hidden, pooled = encoded
            encoded = Encoded(ops.dropout(hidden, rows, rate), None if pooled is None else ops.dropout(pooled, rows, rate))
        return head_logits(config, params, head, encoded)


def task(
    config: ModelConfig,
    params: Params,
    batch: Batch,
    *,
    head: str,
    key: Key[Array, ""] | None = None,
    freeze_encoder: bool = False,
    positive_weights: tuple[float, ...] | None = None,
) -> Sums:
    """Loss and accuracy of a task on a batch with ``labels`` and ``weights``, which have a shape that depends on the head.

    See ``TASK_LOSSES``. Arguments as for ``task_logits``; ``positive_weights`` are the weights of each label of a multi-label task
    where an example has it.

    Returns:
      Sums under ``task_loss`` and, except for regression, ``accuracy``.
    """
    logits = task_logits(config, params, batch, head=head, key=key, freeze_encoder=freeze_encoder)
    return TASK_LOSSES[head](logits, batch) if positive_weights is None else _multilabel_loss(logits, batch, positive_weights)


def _class_loss(logits: Float[Array, "B N C"], batch: Batch) -> Sums:
    """Cross-entropy of the class of each example, labels [B, E], or of each token, labels [B, S]."""
    loss, _ = classification(logits, batch["labels"], batch["weights"])
    # Weights of classes belong to the loss alone.
    _, accuracy = classification(logits, batch["labels"], (batch["weights"] > 0).astype(jnp.float32))
    return {"task_loss": loss, "accuracy": accuracy}


def _choice_loss(logits: Float[Array, "B E 1"], batch: Batch) -> Sums:
    """Cross-entropy over the choices of each question, labels [B, E / choices]."""
    labels = batch["labels"]
    loss, accuracy = classification(logits[..., 0].reshape(*labels.shape, -1), labels, batch["weights"])
    return {"task_loss": loss, "accuracy": accuracy}


def _span_loss(logits: Float[Array, "B S 2"], batch: Batch) -> Sums:
    """Mean cross-entropy of the start and the end, each over the tokens of its own example, labels [B, E, 2]."""
    labels = batch["labels"]
    segments = batch["segment_ids"][:, None, None, :]
    own = segments == 1 + jnp.arange(labels.shape[1])[:, None, None]
    masked = jnp.where(own, jnp.moveaxis(logits, -1, 1)[:, None], jnp.finfo(jnp.float32).min)
    loss, accuracy = classification(masked, labels, jnp.broadcast_to(batch["weights"][..., None] / 2, labels.shape))
    return {"task_loss": loss, "accuracy": accuracy}


def _squared_error(logits: Float[Array, "B E 1"], batch: Batch) -> Sums:
    """Squared error of each score, labels float32 [B, E]."""
    weights = batch["weights"]
    errors = jnp.square(logits[..., 0] - batch["labels"])
    return {"task_loss": ((weights * errors).sum(), weights.sum())}


def _multilabel_loss(logits: Float[Array, "B E C"], batch: Batch, positive_weights: tuple[float, ...] | None = None) -> Sums:
    """Binary cross-entropy, a mean over the labels of each example, labels float32 [B, E, C]; accuracy at the threshold 0.5."""
    labels, weights = batch["labels"], batch["weights"]
    with jax.named_scope("loss"):
        weight = weights.sum()
        losses = optax.sigmoid_binary_cross_entropy(logits, labels)
        if positive_weights is not None:
            losses = losses * jnp.where(labels > 0.5, jnp.array(positive_weights), 1.0)
        loss = (weights * losses.mean(-1)).sum()
        right = ((logits >= 0) == (labels > 0.5)).astype(jnp.float32).mean(-1)
        return {"task_loss": (loss, weight), "accuracy": ((weights * right).sum(), weight)}


TASK_LOSSES: dict[str, Callable[[Array, Batch], Sums]] = {
    "sequence_classification": _class_loss,
    "token_classification": _class_loss,
    "multiple_choice": _choice_loss,
    "question_answering": _span_loss,
    "regression": _squared_error,
    "multilabel_classification": _multilabel_loss,
}
"""The loss of each head, from its logits and a batch with ``labels`` and ``weights``; cross-entropies are in nats."""


def nonzero(weight: Float[Array, ""]) -> Float[Array, ""]:
    """The weight, or 1 where it is 0."""
    return jnp.where(weight > 0, weight, 1.0)


def means(sums: Sums, losses: Iterable[str] = PRETRAINING) -> dict[str, Array]:
    """Divide each sum by its weight; 0 if the weight is 0, for example without sentence pairs.

    ``loss`` is the sum of the means that ``losses`` names: by default the paper's, the mean MLM loss plus the mean NSP loss.

    Examples:
      >>> {name: float(value) for name, value in means({"task_loss": (jnp.float32(6), jnp.float32(4))}, ["task_loss"]).items()}
      {'loss': 1.5, 'task_loss': 1.5}
    """
    values = {name: jnp.where(weight > 0, total / nonzero(weight), 0.0) for name, (total, weight) in sums.items()}
    return {"loss": sum((values[name] for name in losses), jnp.float32(0)), **values}
