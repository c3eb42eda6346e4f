"""What is masked: the policy of a run, every number of which may be a schedule."""

from __future__ import annotations

import dataclasses
import numbers
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bert_jax.config.validation import check_choices, require, require_positive
from bert_jax.errors import UserError
from bert_jax.masking import schedules
from bert_jax.masking.schedules import Number

_UNUSED = re.compile(r"[\[<]unused_?\d+[\]>]")

# Words of an n-gram, words of a span, tokens of T5's: ALBERT's 3, SpanBERT's 10, and all but one in 400,000 of T5's mean of 3.
_LONGEST = {"ngram": 3, "span": 10, "t5": 32}
# The chance that a span ends after each word or token: SpanBERT's, and the one with T5's mean length of 3.
_END = {"span": 0.2, "t5": 1 / 3}


@dataclass(frozen=True)
class MaskPolicy:
    """What is chosen, what replaces it, and what is predicted (Devlin et al. 2018, section 3.1 and appendix A.1).

    A number may be a constant; text, such as "linear(0.3, 0.15)" (:data:`bert_jax.masking.schedules.SHAPES` has them all); an Optax
    schedule; or any function of the step, which JAX can compile. The noise of a token does not depend on the policy: what two
    policies both choose, they replace alike if they have the same shares, and of two rates the higher chooses what the lower one
    does and more, but for words that are passed over.
    """

    rate: Number = 0.15
    """Share of an example's tokens, specials counted, that are chosen: round(rate · length), at least one."""
    select: Literal["token", "word", "ngram", "span", "t5", "next"] = "token"
    """"word" chooses all pieces of a word or none, and passes over a word that would exceed the count. The next three choose runs
    of words or tokens, and of the last run those that fit: "ngram" 1 to 3 words with chances of 1/n (the original's successor in
    TF-models, ALBERT), "span" words with geometric lengths (SpanBERT), "t5" tokens with geometric lengths (T5-like). "next" masks
    nothing and predicts each token's successor, for causal models."""
    replace: tuple[Number, Number, Number] = (0.8, 0.1, 0.1)
    """Shares of the chosen tokens that become the mask token, become a random piece, and stay as they are."""
    predict: Number | None = None
    """Share of an example's tokens that are predicted, those of the chosen that were chosen first; none: all the chosen."""
    span_end: Number | None = None
    """The chance that a span ends after each of its words or tokens; 0.2 for "span" and 1/3 for "t5" where not given."""
    longest: int | None = None
    """Most words of an n-gram or a span, or tokens of T5's; 3, 10 and 32 where not given."""
    random: Literal["any", "ordinary"] = "any"
    """Random pieces are drawn from the whole vocabulary, special and unused pieces included, as the original does, or without
    them."""
    weights: str | Callable[[Any], Any] | None = None
    """What makes a token likelier to be chosen, such as its rarity or its PMI with its neighbours: a file with a piece, or two with
    a space between them, and a weight in each line, a tab before it (:func:`bert_jax.masking.token_weights.read_weights`); or a function of the
    batch that gives weights [B, S]. Words and spans have the mean of their tokens; what is not above 0 is chosen last."""
    max_predictions: int | None = None
    """Most predictions in one example (the original's max_predictions_per_seq); none by default."""
    steps: int | None = None
    """Steps that schedules take, after which they stay what they are; those of the run where not given."""
    mask_id: int | None = None
    """Id of the mask token; a run takes it from its tokenizer."""
    vocab_size: int | None = None
    """Pieces in the vocabulary; a run takes it from its tokenizer."""
    ordinary: tuple[int, ...] = ()
    """First id of each stretch of pieces that are neither special nor unused, and the id after its last, one stretch after the
    other; a run takes them from its tokenizer."""

    def __post_init__(self) -> None:
        check_choices(self, "mask")
        for name, number in self.numbers().items():
            _check(name, number)
        shares = self.replace
        require(len(shares) == 3, f"mask.replace is {shares}; it has three shares.")
        if not any(map(schedules.changes, shares)):
            _check_shares(np.array([shares]), shares)
        if isinstance(self.predict, float) and isinstance(self.rate, float):
            _check_subset(self.predict, self.rate)
        for name in ("max_predictions", "longest", "steps"):
            if getattr(self, name) is not None:
                require_positive(f"mask.{name}", getattr(self, name))
        require(
            self.longest is None or self.select in _LONGEST,
            f"mask.longest is the length of n-grams and spans; mask.select is {self.select!r}.",
        )
        require(
            self.span_end is None or self.select in _END,
            f"mask.span_end is for spans; mask.select is {self.select!r}.",
        )

    def numbers(self) -> dict[str, Number]:
        """Each number that may change, under the name it has where it is refused."""
        found: dict[str, Number] = {"mask.rate": self.rate}
        found |= {f"mask.replace[{place}]": share for place, share in enumerate(self.replace)}
        found |= {"mask.predict": self.predict} if self.predict is not None else {}
        return found | ({"mask.span_end": self.span_end} if self.span_end is not None else {})

    @property
    def predicted(self) -> Number:
        """Share of an example's tokens that are predicted."""
        return self.rate if self.predict is None else self.predict

    @property
    def most(self) -> int:
        """Most words, or tokens, of a span."""
        return self.longest or _LONGEST[self.select]

    @property
    def end(self) -> Number:
        """The chance that a span ends after each of its words."""
        return _END[self.select] if self.span_end is None else self.span_end

    def follows_loss(self) -> bool:
        """Whether any of its numbers depends on the loss."""
        return any(map(schedules.follows_loss, self.numbers().values()))

    def of(self, tokenizer: Any) -> MaskPolicy:
        """The policy with the ids of a tokenizer.

        Raises:
          UserError: it has other ones already.
        """
        pieces, specials = tokenizer.pieces, tokenizer.specials
        for name, value in {"mask_id": specials.mask, "vocab_size": len(pieces)}.items():
            if getattr(self, name) not in (None, value):
                raise UserError(f"mask.{name} is {getattr(self, name)}, but the tokenizer says {value}.")
        words = [number not in specials and not _UNUSED.fullmatch(piece) for number, piece in enumerate(pieces)]
        borders = np.flatnonzero(np.diff(np.array([False, *words, False]).astype(np.int8)))
        ordinary = tuple(borders.tolist()) if self.random == "ordinary" else self.ordinary
        return dataclasses.replace(self, mask_id=specials.mask, vocab_size=len(pieces), ordinary=ordinary)

    def held_out(self) -> MaskPolicy:
        """What held-out examples are masked by: as in the paper whatever the policy is, so that runs with different policies can
        be compared; of causal models each token's successor is predicted."""
        return self if self.select == "next" else MaskPolicy(mask_id=self.mask_id, vocab_size=self.vocab_size)

    def stored(self) -> dict[str, Any]:
        """The fields as JSON can hold them: a function by its name and some of its values."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("rate", "predict", "span_end"):
            fields[name] = schedules.describe(fields[name], self.steps)
        if callable(self.weights):
            fields["weights"] = schedules.FUNCTION + schedules.name_of(self.weights)
        return fields | {"replace": [schedules.describe(share, self.steps) for share in self.replace]}


def _check(name: str, number: Number) -> None:
    if isinstance(number, str):
        if not number.startswith(schedules.FUNCTION):
            schedules.parse(name, number)
    elif not callable(number):
        right = isinstance(number, numbers.Real) and not isinstance(number, bool)
        require(right, f"{name} is {number!r}; it must be a number, text or a function.")
        require(0.0 <= number <= 1.0, f"{name} is {number}; it must lie in [0, 1].")


def _check_shares(shares: np.ndarray, shown: Any) -> None:
    require(
        bool((np.abs(shares.sum(-1) - 1.0) <= 1e-6).all()),
        f"mask.replace is {shown}; its three shares must not be negative and must sum to 1.",
    )


def _check_subset(predict: float, rate: float) -> None:
    require(predict <= rate, f"mask.predict is {predict} and mask.rate {rate}: only what is chosen can be predicted.")


def check(policy: MaskPolicy, length: int) -> None:
    """Look at every value that a policy's schedules will have, before a run begins.

    Args:
      policy: with the run's ``steps``, or what is to be taken for them.
      length: S, tokens in a row.

    Raises:
      UserError: a value is not finite or outside of [0, 1]; shares do not sum to 1; more is predicted than chosen; or a schedule
        goes above ``max_predictions``.
    """
    given = policy.numbers()
    for name, number in given.items():
        values = schedules.table([number], policy.steps)[0]
        wrong = ~((values >= 0.0) & (values <= 1.0))
        if wrong.any():
            first = int(np.argmax(wrong))
            where = "for some loss" if schedules.follows_loss(number) else f"at step {first}"
            raise UserError(f"{name} is {values[first]:g} {where}; it must lie in [0, 1].")
    # Together, at the same steps and losses.
    found = dict(zip(given, schedules.table([*given.values()], policy.steps), strict=True))
    _check_shares(np.stack([found[f"mask.replace[{place}]"] for place in range(3)], -1), policy.stored()["replace"])
    predicted = found.get("mask.predict", found["mask.rate"])
    if (above := predicted > found["mask.rate"] + 1e-6).any():
        _check_subset(float(predicted[np.argmax(above)]), float(found["mask.rate"][np.argmax(above)]))
    most = policy.max_predictions
    if most is not None and schedules.changes(policy.predicted) and round(length * float(predicted.max())) > most:
        raise UserError(
            f"The schedule reaches {predicted.max():g}, {round(length * float(predicted.max()))} predictions of {length} tokens, "
            f"but mask.max_predictions is {most}; raise it, or leave it out."
        )
