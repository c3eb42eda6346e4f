"""The form in which every task hands its examples to a model and reads the outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from bert_jax.config.finetuning import TaskDataConfig
from bert_jax.errors import UserError
from bert_jax.tokenizers import Tokenizer

Scores = dict[str, float]
"""Official scores of a task, by name."""
Outputs = Sequence[np.ndarray]
"""A model's outputs for each example; their shape depends on the task (``tasks/label_layout.py``)."""


class EncodedText(NamedTuple):
    """One text, or a pair of texts, as token ids."""

    ids: np.ndarray
    """int32 [N], [CLS] and [SEP] included."""
    first_length: int
    """Tokens of the first text, [CLS] and its [SEP] included; the others have token type 1."""
    truncated: bool = False
    """Whether tokens were cut off."""

    @property
    def is_pair(self) -> bool:
        """Whether there is a second text."""
        return len(self.ids) > self.first_length

    @property
    def is_empty(self) -> bool:
        """Whether the text, or one of a pair, has no tokens."""
        return self.first_length == 2 or len(self.ids) == self.first_length + 1


class Example(NamedTuple):
    """A training or evaluation example: one text, or one for each choice of a multiple-choice question."""

    texts: tuple[EncodedText, ...]
    label: np.ndarray | None
    """int32 [] a class or the right choice; float32 [] a score; float32 [C] 1 for each label of a multi-label example; int32 [2]
    first and last token of an answer in ``ids``; int32 [N] a tag for each token, -1 for tokens without one. None if unknown."""


class Source(NamedTuple):
    """A task's data and how to read them."""

    data: str
    """Directory, prefix of file names, or tfds:NAME."""
    task_data: TaskDataConfig
    tokenizer: Tokenizer
    pairs: bool | None = None
    """Whether the texts must be pairs; None if both are accepted."""
    strict: bool = False
    """Whether a stream refuses an empty text, which otherwise has the result null."""


class Split(NamedTuple):
    """Examples that are scored together."""

    examples: Sequence[Example]
    score: Callable[[Outputs], Scores]
    """Computes the task's official scores from the outputs for each example."""
    write: Callable[[Outputs, epath.Path], None]
    """Writes the files that a test server or an official script reads into a directory."""
    files: tuple[str, ...]
    """Names of the files that ``write`` creates."""


class StreamChunk(NamedTuple):
    """Some examples of a stream, and the conversion of a model's outputs to results."""

    examples: Sequence[Example]
    results: Callable[[Outputs], list[dict[str, Any]]]
    """Computes a JSON object for each record or question from the outputs for each example."""


def find_split(data: epath.PathLike, split: str, names: Mapping[str, Sequence[str]], endings: Sequence[str]) -> epath.Path:
    """Find the file of a split: in the directory ``data``, or with a prefix, as ``data``.train or ``data``_train.

    Args:
      data: directory or prefix.
      split: "train", "dev" or "test".
      names: possible names of the file of each split, without the ending.
      endings: possible endings, "" among them if none is needed.

    Raises:
      UserError: there is no such file, or more than one.
    """
    data = epath.Path(data)
    if split not in names:
        raise UserError(f"split is {split!r}; choose one of {', '.join(names)}.")
    directory, prefixes = (data, [""]) if data.is_dir() else (data.parent, [f"{data.name}.", f"{data.name}_"])
    stems = [f"{prefix}{name}" for prefix in prefixes for name in names[split]]
    paths = [path for stem in stems for ending in endings if (path := directory / f"{stem}{ending}").is_file()]
    if len(paths) > 1:
        several = ", ".join(path.name for path in paths)
        raise UserError(f"{several} in {directory} could each be the {split} split; remove all but one.")
    if not paths:
        hint = f" {data} is a file; name its directory, or the part of its name before the split." if data.is_file() else ""
        known = ", ".join(ending for ending in endings if ending)
        raise UserError(f"There is no {split} split at {data}: {' or '.join(stems)} in {directory}, with one of {known}.{hint}")
    return paths[0]


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, float64.

    Examples:
      >>> probabilities(np.zeros(4)).tolist()
      [0.25, 0.25, 0.25, 0.25]
    """
    exponentials = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    normalized: np.ndarray = exponentials / exponentials.sum(-1, keepdims=True)
    return normalized
