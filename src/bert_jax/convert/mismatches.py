"""Sentences on tensors that are missing, superfluous or do not fit."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bert_jax.convert import names
from bert_jax.convert.names import Entry, Family
from bert_jax.errors import UserError
from bert_jax.models.heads import POOLED_HEADS

# Tensors that a message names.
_MAX_NAMED = 3
_LAYER = re.compile(r"(?P<before>.*\blayer[._/])(?P<layer>\d+)(?P<after>[./].*)")
# Similarity from which a name may be meant as another, as difflib measures it.
_SIMILAR = 0.4


class Parts(NamedTuple):
    """The tensors of one parameter."""

    entry: Entry
    found: list[np.ndarray | None]
    """The tensor of each layer, or a single one; None where it is missing or does not fit."""
    missing: list[str]
    """Names of missing tensors."""
    wrong: list[str]
    """What is wrong with the tensors that do not fit."""

    @property
    def head(self) -> str:
        """The head that the parameter belongs to; "bert" for the encoder."""
        return self.entry.ours.partition("/")[0]


def check_encoder(path: Any, parts: Sequence[Parts], unexpected: Sequence[str], stored: Collection[str], *, partial: bool) -> None:
    """Check that the encoder is in a file.

    Args:
      path: the file.
      parts: the encoder's parameters.
      unexpected: tensors below the encoder's name that no parameter takes.
      stored: all names in the file.
      partial: whether tensors may be missing or superfluous, but no more than half of them.

    Raises:
      UserError: it is not, or the file contains another one.
    """
    missing = [name for part in parts for name in part.missing]
    wrong = [sentence for part in parts for sentence in part.wrong]
    total = sum(len(part.found) for part in parts)
    matching = total - len(missing) - len(wrong)
    if 2 * matching < total:
        whole = _whole_layers(parts)
        if wrong:
            detail = _some(wrong)
        elif whole and len(whole) < max(len(part.found) for part in parts):
            detail = f"the file does not have {_layers(whole)}; correct num_hidden_layers"
        else:
            detail = _nearest(missing[:_MAX_NAMED], stored)
        raise UserError(f"{path} has {matching} of the {total} tensors of the encoder, too few even for --partial: {detail}.")
    for problem, items in (
        ("lacks tensors", missing),
        ("does not fit its config", wrong),
        ("contains tensors that have no place in this model", unexpected),
    ):
        if items and not partial:
            raise UserError(f"{path} {problem}: {_some(items)}; --partial reads what matches.")


def head_problems(
    path: Any, parts: Iterable[Parts], unexpected: Iterable[str], family: Family, *, classifier: str, pooler: bool
) -> dict[str, str]:
    """Return the heads that cannot be read, with the reason in one sentence.

    Args:
      path: the file.
      parts: the parameters of heads.
      unexpected: tensors outside of the encoder that no parameter takes.
      family: family of these names.
      classifier: the head that a "classifier" is.
      pooler: whether the encoder has a pooler.
    """
    reasons, lacking, without_place = dict[str, list[str]](), dict[str, list[str]](), dict[str, list[str]]()
    for part in parts:
        reasons.setdefault(part.head, []).extend(part.wrong)
        lacking.setdefault(part.head, []).extend(part.missing)
        if part.entry.ours == "mlm/decoder" and part.missing:
            reasons[part.head].append("its config says tie_word_embeddings false")
    known = {*reasons, *names.HEADS}
    for name in sorted(unexpected):
        owner = names.head_of(family, name)
        without_place.setdefault(classifier if owner in names.CLASSIFIERS else owner, []).append(name)
    problems = {}
    for head in {**reasons, **without_place}:
        found = reasons.get(head, [])[:_MAX_NAMED]
        if missing := lacking.get(head):
            found.append(f"it lacks {_some(missing)}")
        if extra := without_place.get(head):
            found.append(f"it has {_some(extra)}, which a head of BERT does not have")
        if head in reasons and head in POOLED_HEADS and not pooler:
            found.append("it needs the pooler, which the file does not contain")
        if found and head in known:
            problems[head] = f"{path}: the {head} head was not read: {'; '.join(found)}."
        elif found:
            problems[head] = f"{path}: {_some(without_place[head])} belong to no head of BERT and were not read."
    return problems


def left_out(path: Any, wrong: Sequence[str], unexpected: Iterable[str], layers: int) -> list[str]:
    """Return a sentence on the tensors that were left out, or none.

    Args:
      path: the file.
      wrong: what is wrong with tensors that do not fit.
      unexpected: names of tensors that no parameter takes.
      layers: layers of the model.
    """
    groups: dict[str, list[int]] = {}
    for name in sorted(unexpected):
        match = _LAYER.fullmatch(name)
        if match and match["before"].startswith("bert") and int(match["layer"]) < layers:
            groups.setdefault(f"{match['before']}N{match['after']} of ", []).append(int(match["layer"]))
        elif match:
            groups.setdefault(f"all of {match['before']}", []).append(int(match["layer"]))
        else:
            groups[name] = []
    items = [
        *wrong,
        *(text + (_layers(numbers) if text.endswith(" of ") else _ranges(numbers)) for text, numbers in groups.items()),
    ]
    return [f"{path}: left out: {'; '.join(items)}."] if items else []


def left_at_init(path: Any, parts: Sequence[Parts]) -> list[str]:
    """Return a sentence on the parameters that keep initial values, with their layers, or none."""
    whole = _whole_layers(parts)
    items = [f"every parameter of {_layers(whole)}"] if whole else []
    for part in parts:
        fresh = [index for index, value in enumerate(part.found) if value is None]
        if part.entry.stacked and set(fresh) - whole:
            items.append(f"{part.entry.ours} of {_layers(set(fresh) - whole)}")
        elif fresh and not part.entry.stacked:
            items.append(part.entry.ours)
    return [f"{path}: left at their initial values: {'; '.join(items)}."] if items else []


def _whole_layers(parts: Iterable[Parts]) -> set[int]:
    """Return the layers of which nothing was found."""
    absent = [{index for index, value in enumerate(part.found) if value is None} for part in parts if part.entry.stacked]
    return set.intersection(*absent) if absent else set()


def _nearest(expected: Sequence[str], stored: Collection[str]) -> str:
    sentences = []
    for name in expected:
        near = difflib.get_close_matches(name, stored, n=1, cutoff=_SIMILAR)
        sentences.append(f"the nearest name to {name} is {near[0]}" if near else f"no name is near to {name}")
    return "; ".join(sentences)


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - _MAX_NAMED:,} more" if len(items) > _MAX_NAMED else ""
    return "; ".join(items[:_MAX_NAMED]) + more


def _layers(numbers: Collection[int]) -> str:
    return f"layer{'s' * (len(numbers) > 1)} {_ranges(numbers)}"


def _ranges(numbers: Iterable[int]) -> str:
    """Return numbers with runs as ranges.

    Examples:
      >>> _ranges([0, 3, 4, 5])
      '0, 3-5'
    """
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
