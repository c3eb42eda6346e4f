"""A masking policy together with what it takes from a tokenizer and a run, and the checks before a run."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from bert_jax.config.masking import MaskPolicy, check_subset, check_sum
from bert_jax.config.schedules import depends_on_loss, varies
from bert_jax.errors import UserError
from bert_jax.masking import schedules
from bert_jax.masking.token_weights import TokenWeights, check_function, read_token_weights
from bert_jax.tokenizers import Tokenizer

_UNUSED = re.compile(r"[\[<]unused_?\d+[\]>]")


@dataclass(frozen=True)
class ResolvedMaskPolicy:
    """What [`mask_tokens`][bert_jax.mask_tokens] needs: the policy, and what a tokenizer and a run add to it.

    Raises:
      UserError: the policy needs ``ordinary_ids`` or ``token_weights`` that are missing.

    Examples:
      >>> resolved = ResolvedMaskPolicy(MaskPolicy(rate=0.3), mask_id=4, vocab_size=100)
      >>> resolved.held_out().policy.rate
      0.15
    """

    policy: MaskPolicy
    mask_id: int
    """Id of [MASK]."""
    vocab_size: int
    """V; random tokens are drawn from [0, V)."""
    ordinary_ids: tuple[int, ...] = ()
    """Ranges of ids that are neither special nor unused, as first id and end of each; for ``random_tokens="ordinary"``."""
    steps: int | None = None
    """Steps over which schedules run."""
    token_weights: TokenWeights | None = None
    """Weights for the selection, or None for a uniform one."""

    def __post_init__(self) -> None:
        if self.policy.random_tokens == "ordinary" and not self.ordinary_ids:
            raise UserError("mask.random_tokens is ordinary, but no ordinary_ids are given; bert_jax.resolve_policy fills them in.")
        if self.policy.token_weights is not None and self.token_weights is None:
            raise UserError("The policy has token_weights that are not resolved; bert_jax.resolve_policy reads or checks them.")

    def held_out(self) -> ResolvedMaskPolicy:
        """The policy for held-out examples: the paper's, whatever this one is, so that losses of different policies can be
        compared; for causal models the next token is predicted."""
        if self.policy.select == "next":
            return self
        return ResolvedMaskPolicy(MaskPolicy(), self.mask_id, self.vocab_size)


def resolve(
    policy: MaskPolicy, tokenizer: Tokenizer, *, steps: int | None = None, sequence_length: int = 128
) -> ResolvedMaskPolicy:
    """Complete a policy with a tokenizer's ids and a run's length.

    Args:
      policy: the policy.
      tokenizer: gives the id of [MASK], the vocabulary, and the tokens that weights refer to.
      steps: steps of the run, used by schedules where the policy has no ``steps``.
      sequence_length: S, the length of rows on which a function of weights is checked.

    Raises:
      UserError: a file of weights cannot be read, or a function of weights does not return [B, S].

    Examples:
      >>> tokenizer = bert_jax.tokenizers.train(lambda: ["a b c"] * 9, kind="wordpiece", size=8)
      >>> resolve(MaskPolicy(rate="linear(0.3, 0.15)"), tokenizer, steps=100).mask_id
      4
    """
    tokens, special_tokens = tokenizer.tokens, tokenizer.special_tokens
    ordinary = [index not in special_tokens and not _UNUSED.fullmatch(token) for index, token in enumerate(tokens)]
    borders = np.flatnonzero(np.diff(np.array([False, *ordinary, False]).astype(np.int8)))
    weights = policy.token_weights
    if isinstance(weights, str):
        weights = read_token_weights(weights, tokens)
    elif callable(weights) and not isinstance(weights, TokenWeights):
        weights = check_function(weights, sequence_length, len(tokens))
    return ResolvedMaskPolicy(
        policy=policy,
        mask_id=special_tokens.mask,
        vocab_size=len(tokens),
        ordinary_ids=tuple(borders.tolist()) if policy.random_tokens == "ordinary" else (),
        steps=policy.steps or (steps if any(map(varies, policy.schedules().values())) else None),
        token_weights=weights,
    )


def check(resolved: ResolvedMaskPolicy, sequence_length: int) -> None:
    """Check every value that a policy's schedules take in a run.

    Args:
      resolved: the policy with the run's ``steps``.
      sequence_length: S, tokens in a row.

    Raises:
      UserError: a value is not finite or outside [0, 1]; shares do not sum to 1; more tokens are predicted than selected; or a
        schedule exceeds ``max_predictions``.
    """
    policy, named = resolved.policy, resolved.policy.schedules()
    for name, schedule in named.items():
        values = schedules.table([schedule], resolved.steps)[0]
        wrong = ~((values >= 0.0) & (values <= 1.0))
        if wrong.any():
            first = int(np.argmax(wrong))
            where = "for some loss" if depends_on_loss(schedule) else f"at step {first}"
            raise UserError(f"{name} is {values[first]:g} {where}; it must lie in [0, 1].")
    # Together, at the same steps and losses.
    together = dict(zip(named, schedules.table([*named.values()], resolved.steps), strict=True))
    totals = np.stack([together[f"mask.replace[{index}]"] for index in range(3)], -1).sum(-1)
    check_sum(float(totals[np.argmax(np.abs(totals - 1.0))]), policy.to_dict()["replace"])
    predicted, rate = together.get("mask.prediction_rate", together["mask.rate"]), together["mask.rate"]
    if (above := predicted > rate + 1e-6).any():
        check_subset(float(predicted[np.argmax(above)]), float(rate[np.argmax(above)]))
    limit, reached = policy.max_predictions, round(sequence_length * float(predicted.max()))
    if limit is not None and varies(policy.predicted) and reached > limit:
        raise UserError(
            f"The schedule reaches {predicted.max():g}, {reached} predictions of {sequence_length} tokens, but "
            f"mask.max_predictions is {limit}; raise it, or leave it out."
        )


def with_identity(policy: MaskPolicy, resolved: ResolvedMaskPolicy) -> MaskPolicy:
    """The policy as a run stores it: weights by their identity, schedules with their steps."""
    changes: dict[str, Any] = {"steps": resolved.steps}
    if resolved.token_weights is not None:
        changes["token_weights"] = resolved.token_weights
    return dataclasses.replace(policy, **changes)
