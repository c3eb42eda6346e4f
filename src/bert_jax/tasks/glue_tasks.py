"""Descriptions of the tasks of GLUE (Wang et al. 2019): their files, classes and scores.

Classes have names everywhere, never bare numbers: TFDS, GLUE's files and BERT's original number those of MNLI in three ways.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from bert_jax.errors import UserError


class File(NamedTuple):
    """The file of a split."""

    name: str
    texts: tuple[str, ...]
    """Columns of the texts."""
    label: str | None = None
    """Column of the label; None in test files, which have no labels."""
    tfds: str | None = None
    """Name of the split in TFDS; None if TFDS does not have it."""
    order: tuple[str, ...] | None = None
    """All columns, in files without a header."""


@dataclasses.dataclass(frozen=True)
class Glue:
    """Description of one task of GLUE."""

    directories: tuple[str, ...]
    """Possible names of its directory, GLUE's own name first."""
    files: Mapping[str, File]
    """By split: train, dev, test; for MNLI also dev_mismatched and test_mismatched."""
    metrics: tuple[str, ...]
    """GLUE's official scores, named as in [`bert_jax.tasks.metrics`][bert_jax.tasks.metrics]."""
    main_score: str
    """The score that the BERT paper reports (table 1), if the task is in that table."""
    submissions: Mapping[str, str]
    """Names of the files that gluebenchmark.com expects, by test split."""
    labels: tuple[str, ...] = ()
    """Names of the classes; empty for scores."""
    aliases: tuple[str, ...] = ()
    """Names of the classes in GLUE's files and on the server, if different."""
    positive: str | None = None
    """Name of the positive class of F1."""
    features: tuple[str, ...] = ()
    """Names of the texts in TFDS, if different from the columns of the test file."""
    broken_lines: bool = False
    """Whether some questions of the training and development files contain line breaks."""


def _usual(*texts: str, label: str = "label") -> dict[str, File]:
    return {
        "train": File("train.tsv", texts, label, "train"),
        "dev": File("dev.tsv", texts, label, "validation"),
        "test": File("test.tsv", texts, tfds="test"),
    }


_COLA = ("source", "label", "star", "sentence")
_PAIR = ("sentence1", "sentence2")
_MRPC = ("#1 String", "#2 String")
_ENTAILED = ("entailment", "not_entailment")
_INFERRED = ("contradiction", "entailment", "neutral")
_DIGITS = ("0", "1")
_ACCURACY: dict[str, Any] = {"metrics": ("accuracy",), "main_score": "accuracy"}
_DIGIT_ACCURACY: dict[str, Any] = {**_ACCURACY, "aliases": _DIGITS}
_F1: dict[str, Any] = {"metrics": ("f1", "accuracy"), "main_score": "f1", "aliases": _DIGITS}

TASKS: dict[str, Glue] = {
    "cola": Glue(
        ("CoLA",),
        {
            "train": File("train.tsv", ("sentence",), "label", "train", _COLA),
            "dev": File("dev.tsv", ("sentence",), "label", "validation", _COLA),
            "test": File("test.tsv", ("sentence",), tfds="test"),
        },
        metrics=("matthews",),
        main_score="matthews",
        submissions={"test": "CoLA.tsv"},
        labels=("unacceptable", "acceptable"),
        aliases=_DIGITS,
    ),
    "sst2": Glue(
        ("SST-2",), _usual("sentence"), submissions={"test": "SST-2.tsv"}, labels=("negative", "positive"), **_DIGIT_ACCURACY
    ),
    "mrpc": Glue(
        ("MRPC",),
        _usual(*_MRPC, label="Quality"),
        submissions={"test": "MRPC.tsv"},
        labels=("not_equivalent", "equivalent"),
        positive="equivalent",
        features=_PAIR,
        **_F1,
    ),
    "qqp": Glue(
        ("QQP",),
        _usual("question1", "question2", label="is_duplicate"),
        submissions={"test": "QQP.tsv"},
        labels=("not_duplicate", "duplicate"),
        positive="duplicate",
        broken_lines=True,
        **_F1,
    ),
    "stsb": Glue(
        ("STS-B",),
        _usual(*_PAIR, label="score"),
        metrics=("pearson", "spearman"),
        main_score="spearman",
        submissions={"test": "STS-B.tsv"},
    ),
    "mnli": Glue(
        ("MNLI",),
        {
            "train": File("train.tsv", _PAIR, "gold_label", "train"),
            "dev": File("dev_matched.tsv", _PAIR, "gold_label", "validation_matched"),
            "dev_mismatched": File("dev_mismatched.tsv", _PAIR, "gold_label", "validation_mismatched"),
            "test": File("test_matched.tsv", _PAIR, tfds="test_matched"),
            "test_mismatched": File("test_mismatched.tsv", _PAIR, tfds="test_mismatched"),
        },
        submissions={"test": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv"},
        labels=_INFERRED,
        features=("premise", "hypothesis"),
        **_ACCURACY,
    ),
    "qnli": Glue(("QNLI",), _usual("question", "sentence"), submissions={"test": "QNLI.tsv"}, labels=_ENTAILED, **_ACCURACY),
    "rte": Glue(("RTE",), _usual(*_PAIR), submissions={"test": "RTE.tsv"}, labels=_ENTAILED, **_ACCURACY),
    "wnli": Glue(("WNLI",), _usual(*_PAIR), submissions={"test": "WNLI.tsv"}, labels=_ENTAILED[::-1], **_DIGIT_ACCURACY),
    "ax": Glue(
        ("diagnostic", "diagnostics", "AX"),
        {
            "dev": File("diagnostic-full.tsv", ("Premise", "Hypothesis"), "Label"),
            "test": File("diagnostic.tsv", _PAIR, tfds="test"),
        },
        metrics=("matthews",),
        main_score="matthews",
        submissions={"test": "AX.tsv"},
        labels=_INFERRED,
        features=("premise", "hypothesis"),
    ),
}
"""The nine tasks, and the diagnostics, which are evaluated with a model of MNLI."""


def class_name(task: str, label: str, where: str) -> str:
    """Our name of a class, from a name of GLUE's files; scores stay as they are.

    Raises:
      UserError: the task has no such class.

    Examples:
      >>> class_name("cola", "1", "train.tsv, line 1")
      'acceptable'
    """
    glue = TASKS[task]
    if not glue.labels or label in glue.labels:
        return label
    if label in glue.aliases:
        return glue.labels[glue.aliases.index(label)]
    raise UserError(f"{where}: the label {label[:40]!r} is none of {task}; its labels are {', '.join(glue.labels + glue.aliases)}.")
