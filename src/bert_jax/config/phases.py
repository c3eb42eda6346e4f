"""Later parts of a pretraining run, with other rows or another learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass

from bert_jax.config.validation import require_positive
from bert_jax.errors import UserError


@dataclass(frozen=True)
class Phase:
    """A later part of a pretraining run, such as the paper's last tenth with 512 tokens (Devlin et al. 2018, appendix A.2).

    Parameters, the state of the optimizer and the step are carried over. A field that is None is as in the run's config.

    Raises:
      UserError: a value is outside its range.

    Examples:
      >>> Phase(900_000, sequence_length=512).corpus is None
      True
    """

    start: int
    """Updates of the run before this part."""
    sequence_length: int | None = None
    """Tokens in a row."""
    batch_size: int | None = None
    """Rows in a global batch."""
    accumulate: int | None = None
    """Micro-batches whose gradients make one step."""
    corpus: str | None = None
    """The corpus; needed for TFRecord files, whose rows have one length."""
    peak_lr: float | None = None
    """Peak of a learning-rate schedule of this part, which ends where the part ends, as does the schedule before it.
    None: the schedule goes on."""
    warmup_steps: int = 0
    """Steps of linear warm-up, with peak_lr."""

    def __post_init__(self) -> None:
        for name in ("start", "sequence_length", "batch_size", "accumulate", "peak_lr"):
            if (value := getattr(self, name)) is not None:
                require_positive(f"phases.{name}", value)
        if self.warmup_steps < 0:
            raise UserError(f"phases.warmup_steps is {self.warmup_steps}; it must not be negative.")
        if self.warmup_steps and self.peak_lr is None:
            raise UserError("phases.warmup_steps needs a schedule of its own; give phases.peak_lr, or leave it out.")
