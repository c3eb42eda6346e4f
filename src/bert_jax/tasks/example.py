"""What all tasks share: the one form in which a task's examples reach a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from bert_jax.config.finetuning import Reading
from bert_jax.config.validation import require
from bert_jax.errors import UserError
from bert_jax.tokenizers import Tokenizer


class Part(NamedTuple):
    """One text, or pair of texts, as the model reads it."""

    ids: np.ndarray
    """int32 [N], [CLS] and [SEP] included."""
    first: int
    """Pieces of the first text, [CLS] and its [SEP] counted; the rest has the second type."""


class Example(NamedTuple):
    """What is asked of a model at once: one part, or the choices of a question."""

    parts: tuple[Part, ...]
    label: np.ndarray | None
    """int32 [] a class or the right choice; float32 [] a score; int32 [2] first and last place of a span in ``ids``; int32 [N]
    a tag for each piece, -1 where none counts. None where it is not known."""


Scores = dict[str, float]


class Source(NamedTuple):
    """A task's data, and how it is read."""

    task: str
    data: str
    """Directory, prefix, or tfds:NAME."""
    reading: Reading
    tokenizer: Tokenizer


class Split(NamedTuple):
    """Examples to be scored."""

    examples: Sequence[Example]
    score: Callable[[Sequence[np.ndarray]], Scores]
    """A model's scores of each example -> the task's official scores."""
    write: Callable[[Sequence[np.ndarray], epath.Path], None]
    """The same and a directory -> the files that a server or a script wants, if there are any."""


class Asked(NamedTuple):
    """Some examples of a stream, and what is made of a model's scores for them."""

    examples: Sequence[Example]
    results: Callable[[Sequence[np.ndarray]], list[dict[str, Any]]]
    """A model's scores of each example -> a JSON object for each of the user's questions."""


def find_split(data: epath.PathLike, split: str, names: Mapping[str, Sequence[str]], endings: Sequence[str]) -> epath.Path:
    """The file that holds a split: in the directory ``data``, or with a prefix before its name: ``data``.train or ``data``_train.

    Args:
      data: directory or prefix.
      split: "train", "dev" or "test".
      names: what the file of each split may be called, without its ending.
      endings: what may follow, "" among them if nothing has to.

    Raises:
      UserError: there is none, or more than one.
    """
    data = epath.Path(data)
    require(split in names, f"split is {split!r}; choose one of {', '.join(names)}.")
    directory, prefixes = (data, [""]) if data.is_dir() else (data.parent, [f"{data.name}.", f"{data.name}_"])
    stems = [f"{prefix}{name}" for prefix in prefixes for name in names[split]]
    found = [path for stem in stems for ending in endings if (path := directory / f"{stem}{ending}").is_file()]
    several = ", ".join(path.name for path in found)
    require(len(found) < 2, f"{several} in {directory} could each be the {split} split; remove all but one.")
    if not found:
        hint = f" {data} is a file; name its directory, or the part of its name before the split." if data.is_file() else ""
        known = ", ".join(ending for ending in endings if ending)
        raise UserError(f"There is no {split} split at {data}: {' or '.join(stems)} in {directory}, with one of {known}.{hint}")
    return found[0]


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(-1, keepdims=True)
    return shares
