"""The masking policy as a user writes it."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

from bert_jax.config import schedules
from bert_jax.config.schedules import Schedule
from bert_jax.config.validation import check_choices, require_positive
from bert_jax.errors import UserError

# Words of an n-gram, words of a span, tokens of a T5 span: ALBERT's 3, SpanBERT's 10, and all but one in 400,000 of the spans
# of T5's mean length of 3.
_MAX_SPAN_LENGTH = {"ngram": 3, "span": 10, "t5": 32}
# Probability that a span ends after each word or token: SpanBERT's, and the one with T5's mean length of 3.
_SPAN_END = {"span": 0.2, "t5": 1 / 3}


@dataclass(frozen=True)
class MaskPolicy:
    """Which tokens are selected, what replaces them, and which are predicted (Devlin et al. 2018, section 3.1, appendix A.1).

    Each number is a ``bert_jax.config.schedules.Schedule``: a constant, text such as "linear(0.3, 0.15)", an Optax
    schedule, or a function of the step that JAX can compile. Random draws belong to the token and are shared by all policies:
    tokens that two policies both select are replaced alike if their shares are equal, and a higher rate selects the tokens of
    a lower one and more, except for words that are skipped because they do not fit.

    Raises:
      UserError: a value is outside its range.

    Examples:
      >>> MaskPolicy(rate="linear(0.3, 0.15)", select="word").rate
      'linear(0.3, 0.15)'
    """

    rate: Schedule = 0.15
    """Mask rate: share of an example's tokens, special tokens counted, that are selected: round(rate · length), at least one."""
    select: Literal["token", "word", "ngram", "span", "t5", "next"] = "token"
    """What is selected as a unit; the last run of words or tokens is shortened to fit the count:
    "token": single tokens;
    "word": all tokens of a word or none; a word that would exceed the count is skipped;
    "ngram": runs of 1 to 3 words with probabilities of 1/n (ALBERT, and the original's successor in the TensorFlow Models);
    "span": runs of words with geometric lengths (SpanBERT);
    "t5": runs of tokens with geometric lengths (T5);
    "next": nothing is masked and each token's successor is predicted, for causal models."""
    replace: tuple[Schedule, Schedule, Schedule] = (0.8, 0.1, 0.1)
    """Shares of the selected tokens that become [MASK], become a random token, and stay unchanged."""
    prediction_rate: Schedule | None = None
    """Share of an example's tokens that are predicted, the first selected ones; None: all selected tokens."""
    span_end: Schedule | None = None
    """Probability that a span ends after each of its words or tokens; None: 0.2 for "span", 1/3 for "t5"."""
    max_span_length: int | None = None
    """Maximum words of an n-gram or a span, or tokens of a T5 span; None: 3, 10 and 32."""
    random_tokens: Literal["any", "ordinary"] = "any"
    """Source of random tokens: "any", the whole vocabulary, as in the original; "ordinary", without special and unused tokens."""
    token_weights: str | Callable[[Any], Any] | None = None
    """Weights that make some tokens likelier to be selected, by rarity or PMI, for example; words and spans have the mean weight.
    A file: on each line a token, or two and a space between, then a tab and a weight. Tokens without a positive weight come last.
    In Python also a function of the batch that returns weights [B, S]."""
    max_predictions: int | None = None
    """Maximum predictions per example (the original's max_predictions_per_seq); None: no limit."""
    steps: int | None = None
    """Steps over which schedules run, after which they keep their last value; None: those of the run."""

    def __post_init__(self) -> None:
        check_choices(self, "mask")
        for name, schedule in self.schedules().items():
            _check(name, schedule)
        if len(self.replace) != 3:
            raise UserError(f"mask.replace is {self.replace}; it has three shares.")
        if not any(map(schedules.varies, self.replace)):
            check_sum(sum(cast(tuple[float, ...], self.replace)), self.replace)
        if isinstance(self.prediction_rate, float) and isinstance(self.rate, float):
            check_subset(self.prediction_rate, self.rate)
        for name in ("max_predictions", "max_span_length", "steps"):
            if getattr(self, name) is not None:
                require_positive(f"mask.{name}", getattr(self, name))
        if self.max_span_length is not None and self.select not in _MAX_SPAN_LENGTH:
            raise UserError(f"mask.max_span_length applies to n-grams and spans; mask.select is {self.select!r}.")
        if self.span_end is not None and self.select not in _SPAN_END:
            raise UserError(f"mask.span_end applies to spans; mask.select is {self.select!r}.")

    def schedules(self) -> dict[str, Schedule]:
        """Every number that may be a schedule, by its name in error messages."""
        named: dict[str, Schedule] = {"mask.rate": self.rate}
        named |= {f"mask.replace[{index}]": share for index, share in enumerate(self.replace)}
        named |= {"mask.prediction_rate": self.prediction_rate} if self.prediction_rate is not None else {}
        return named | ({"mask.span_end": self.span_end} if self.span_end is not None else {})

    @property
    def predicted(self) -> Schedule:
        """Share of an example's tokens that are predicted."""
        return self.rate if self.prediction_rate is None else self.prediction_rate

    @property
    def span_limit(self) -> int:
        """Maximum words, or tokens, of a span."""
        return self.max_span_length or _MAX_SPAN_LENGTH[self.select]

    @property
    def span_end_probability(self) -> Schedule:
        """Probability that a span ends after each of its words or tokens."""
        return _SPAN_END[self.select] if self.span_end is None else self.span_end

    def depends_on_loss(self) -> bool:
        """Whether any schedule is a function of the loss."""
        return any(map(schedules.depends_on_loss, self.schedules().values()))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; functions by their ``bert_jax.config.schedules.identity``."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("rate", "prediction_rate", "span_end"):
            fields[name] = schedules.stored(fields[name])
        if callable(self.token_weights):
            # A run replaces the function by ``bert_jax.masking.TokenWeights``, which has an identity.
            name = getattr(self.token_weights, "identity", schedules.FUNCTION + schedules.name_of(self.token_weights))
            fields["token_weights"] = name
        return fields | {"replace": [schedules.stored(share) for share in self.replace]}


def check_sum(total: float, shown: Any) -> None:
    """Require that the shares of ``MaskPolicy.replace`` sum to 1."""
    if not abs(total - 1.0) <= 1e-6:
        raise UserError(f"mask.replace is {shown}; its three shares must not be negative and must sum to 1.")


def check_subset(prediction_rate: float, rate: float) -> None:
    """Require that no more tokens are predicted than selected."""
    if prediction_rate > rate:
        raise UserError(f"mask.prediction_rate is {prediction_rate} and mask.rate {rate}: only selected tokens can be predicted.")


def _check(name: str, schedule: Schedule) -> None:
    if isinstance(schedule, str):
        if not schedule.startswith(schedules.FUNCTION):
            schedules.parse(name, schedule)
    elif not callable(schedule):
        if not isinstance(schedule, numbers.Real) or isinstance(schedule, bool):
            raise UserError(f"{name} is {schedule!r}; it must be a number, text or a function.")
        if not 0.0 <= schedule <= 1.0:
            raise UserError(f"{name} is {schedule}; it must lie in [0, 1].")
