"""The corpus of a pretraining run, and how examples are made from its documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bert_jax.config.validation import check_choices, require_positive
from bert_jax.errors import UserError

Meaning = Literal["random", "next"]
"""What an NSP label says of the second segment: that it comes from another document, or that it is the next one."""


@dataclass(frozen=True)
class DataConfig:
    """The corpus of a pretraining run, and how examples are made from its documents (``create_pretraining_data.py``).

    Raises:
      UserError: a value is outside its range.

    Examples:
      >>> DataConfig("wiki", sequence_length=512, packing=1).batch_size
      256
    """

    corpus: str
    """Directory written by `bert-jax prepare`;
    or TFRecord files of masked sentence pairs: a file, a directory, or a pattern such as 'data/*.tfrecord'."""
    sequence_length: int = 128
    """S, tokens in a row, [CLS] and [SEP] included."""
    batch_size: int = 256
    """B, rows in a global batch, over all devices and hosts."""
    pairs: bool = True
    """Make sentence pairs with NSP labels. False: rows are contiguous sentences of one document, without an NSP loss."""
    random_next: float = 0.5
    """Probability that the second segment comes from another document."""
    short_sequences: float = 0.1
    """Probability that a document is cut to a random shorter target length."""
    packing: int = 6
    """Maximum number of examples packed into a row; no example attends to another. 1: one example and padding.
    Rows of TFRecord files have one."""
    dupe_factor: int | None = None
    """Epochs after which examples and masks repeat (the original's static masking); None: never."""
    vocab: str | None = None
    """Directory of the vocabulary of TFRecord files; None: the one that contains them."""
    held_out: str | None = None
    """TFRecord files for evaluations; None: a run on TFRecord files has no evaluations."""
    nsp_label: Meaning = "random"
    """What the NSP label 1 of TFRecord files says of the second segment:
    that it is random, as in the original, or that it is the next one, as some builders write it."""

    def __post_init__(self) -> None:
        if self.sequence_length < 5:
            raise UserError(f"data.sequence_length is {self.sequence_length}; a pair needs at least 5 tokens.")
        require_positive("data.batch_size", self.batch_size)
        require_positive("data.packing", self.packing)
        for name in ("random_next", "short_sequences"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"data.{name} is {getattr(self, name)}; it must lie in [0, 1].")
        if self.dupe_factor is not None:
            require_positive("data.dupe_factor", self.dupe_factor)
        check_choices(self, "data")
