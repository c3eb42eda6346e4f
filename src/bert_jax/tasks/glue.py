"""The tasks of GLUE (Wang et al. 2019): its files and TFDS's copy of them read, and submissions written.

Classes have names everywhere, never bare numbers: TFDS, GLUE's files and BERT's original number those of MNLI in three ways.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from bert_jax.config.validation import require
from bert_jax.errors import Doubt, UserError
from bert_jax.io import atomic
from bert_jax.tasks import tables
from bert_jax.tasks.tables import Record, Row, listed

_TFDS = "tfds:"
# Columns that give rows names; the server wants those of the test files back.
_IDS = ("index", "id")


class File(NamedTuple):
    """Where a split lies."""

    name: str
    texts: tuple[str, ...]
    """Columns with the texts."""
    label: str | None = None
    """Column with the label; None in test files, whose labels are secret."""
    tfds: str | None = None
    """The split in TFDS, None if it is not there."""
    order: tuple[str, ...] | None = None
    """All columns, in files without a header."""


@dataclasses.dataclass(frozen=True)
class Glue:
    """One task of GLUE."""

    directories: tuple[str, ...]
    """What its directory may be called, GLUE's own name first."""
    files: Mapping[str, File]
    """By the split: train, dev, test; of MNLI also dev_mismatched and test_mismatched."""
    metrics: tuple[str, ...]
    """GLUE's official ones, named as in :mod:`bert_jax.tasks.metrics`."""
    headline: str
    """The one that the BERT paper reports in its table 1, where that task is in it."""
    submissions: Mapping[str, str]
    """Names of the files that gluebenchmark.com wants, by the test split."""
    labels: tuple[str, ...] = ()
    """Names of the classes; none for scores."""
    aliases: tuple[str, ...] = ()
    """What GLUE's files and the server call the classes, if not by their names."""
    positive: str | None = None
    """Name of the class that F1 is about."""
    features: tuple[str, ...] = ()
    """Names of the texts in TFDS, if not those of the columns of the test file."""
    broken_lines: bool = False
    """Line breaks stand inside of some questions of the training and development files."""


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
_ACCURACY: dict[str, Any] = {"metrics": ("accuracy",), "headline": "accuracy"}
_DIGIT_ACCURACY: dict[str, Any] = {**_ACCURACY, "aliases": _DIGITS}
_F1: dict[str, Any] = {"metrics": ("f1", "accuracy"), "headline": "f1", "aliases": _DIGITS}

TASKS: dict[str, Glue] = {
    "cola": Glue(
        ("CoLA",),
        {
            "train": File("train.tsv", ("sentence",), "label", "train", _COLA),
            "dev": File("dev.tsv", ("sentence",), "label", "validation", _COLA),
            "test": File("test.tsv", ("sentence",), tfds="test"),
        },
        metrics=("matthews",),
        headline="matthews",
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
        headline="spearman",
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
        headline="matthews",
        submissions={"test": "AX.tsv"},
        labels=_INFERRED,
        features=("premise", "hypothesis"),
    ),
}
"""The nine tasks, and the diagnostics, for which a model of MNLI is used."""


def read(task: str, data: epath.PathLike, split: str) -> list[Record]:
    """Records of a split; labels are names of :attr:`Glue.labels`, or numbers as written, and None in test splits.

    Lines of QQP that a line break in a question has broken are passed over, with one Doubt that counts them. GLUE has pairs
    with an empty text; they stay.

    Args:
      task: one of :data:`TASKS`.
      data: the directory of GLUE or of the task, with GLUE's own files; "tfds:glue/cola", a name that TFDS knows and
        downloads; or "tfds:" and the directory of a data set that TFDS prepared in ArrayRecord.
      split: one of the task's :attr:`Glue.files`.

    Raises:
      UserError: there is no such task, split, file or data set, or it holds something else.
    """
    glue, file = _find(task, split)
    if str(data).startswith(_TFDS):
        return _read_tfds(task, glue, file, data=str(data))
    path = _path(glue, file, epath.Path(data))
    skipped: list[str] = []
    skip = skipped.append if glue.broken_lines and file.label else None
    records = [_record(task, glue, file, row, number) for number, row in enumerate(tables.rows(path, file.order, skip=skip))]
    if skipped:
        warnings.warn(
            Doubt(f"{path} has {len(skipped):,} broken lines, the first is {skipped[0].rpartition(', ')[2]}; they are left out."),
            stacklevel=2,
        )
    return records


def _find(task: str, split: str) -> tuple[Glue, File]:
    require(task in TASKS, f"There is no GLUE task {task!r}; choose one of {', '.join(TASKS)}.")
    glue = TASKS[task]
    require(split in glue.files, f"{task} has no split {split!r}; choose one of {', '.join(glue.files)}.")
    return glue, glue.files[split]


def _path(glue: Glue, file: File, data: epath.Path) -> epath.Path:
    tried = [directory / file.name for directory in (*(data / name for name in glue.directories), data)]
    for path in tried:
        if path.exists():
            return path
    raise UserError(f"There is no {file.name} of {glue.directories[0]} in {data}; looked for {', '.join(map(str, tried))}.")


def _record(task: str, glue: Glue, file: File, row: Row, number: int) -> Record:
    wanted = (*file.texts, *([file.label] if file.label else []))
    missing = [name for name in wanted if name not in row.fields]
    if missing:
        raise UserError(
            f"{row.where}: {task} has the columns {', '.join(map(repr, wanted))}, this file has "
            f"{listed(repr(name[:40]) for name in row.fields)}; is it GLUE's {glue.directories[0]}/{file.name}?"
        )
    texts = tuple(tables.text_of(row, name, empty=True) for name in file.texts)
    if not any(map(str.strip, texts)):
        raise UserError(f"{row.where}: there is no text; is it GLUE's {glue.directories[0]}/{file.name}?")
    label = _name(task, tables.label_of(row, file.label) or "", row.where) if file.label else None
    names = [row.fields[name] for name in _IDS if name in row.fields]
    return Record(texts, label, row.where, names[0] if names else str(number))


def _name(task: str, label: str, where: str) -> str:
    """Our name of a class; scores stay as they are."""
    glue = TASKS[task]
    if not glue.labels or label in glue.labels:
        return label
    if label in glue.aliases:
        return glue.labels[glue.aliases.index(label)]
    raise UserError(f"{where}: the label {label[:40]!r} is none of {task}; its labels are {', '.join(glue.labels + glue.aliases)}.")


def _read_tfds(task: str, glue: Glue, file: File, *, data: str) -> list[Record]:
    if file.tfds is None:
        raise UserError(f"TFDS has no labels for the diagnostics; give the directory of GLUE's {file.name}.")
    builder = _builder(data)
    splits, features = sorted(builder.info.splits), builder.info.features
    require(file.tfds in splits, f"{data} has no split {file.tfds!r}, which {task} needs, but {listed(splits) or 'none'}.")
    texts = glue.features or glue.files["test"].texts
    missing, other = [name for name in (*texts, "label") if name not in features], f"it is not {task} as TFDS has it"
    require(not missing, f"{data} has no feature {', '.join(missing)} but {listed(sorted(features))}; {other}.")
    names = getattr(features["label"], "names", None)
    require(bool(names) == bool(glue.labels), f"The labels of {data} are {features['label']}; {other}.")
    classes = [_name(task, name, data) for name in names or ()]
    try:
        rows = list(builder.as_data_source(split=file.tfds))
    except Exception as error:  # TFDS and its readers raise whatever a missing or damaged file leads them to.
        raise UserError(_say(data, error)) from None
    place = f"{data}, {file.tfds} example"
    return [_example(row, number, f"{place} {number + 1}", texts, file, classes) for number, row in enumerate(rows)]


def _example(row: Mapping[str, Any], number: int, where: str, texts: Sequence[str], file: File, classes: Sequence[str]) -> Record:
    # TFDS has -1 for the secret labels.
    label = None
    if file.label:
        value = row["label"]
        require(not classes or value >= 0, f"{where}: there is no label.")
        label = classes[value] if classes else str(np.float32(value))
    return Record(tuple(row[name].decode() for name in texts), label, where, str(row.get("idx", number)))


def _builder(data: str) -> Any:
    # It takes long to import, and most runs read files.
    import tensorflow_datasets as tfds

    name = data.removeprefix(_TFDS)
    path = epath.Path(name).expanduser()
    try:
        if (path / "dataset_info.json").exists():
            return tfds.builder_from_directory(path)
        require(not name.startswith(("/", ".", "~")) and "://" not in name, f"There is no data set of TFDS at {name}.")
        if name.startswith("glue/"):
            # Without TensorFlow, TFDS finds none of its older data sets by itself.
            importlib.import_module("tensorflow_datasets.text.glue")
        builder = tfds.builder(name, file_format="array_record")
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare()
        return builder
    except UserError:
        raise
    except Exception as error:  # Downloads fail in as many ways as there are hosts.
        raise UserError(_say(data, error)) from None


def _say(data: str, error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "") or type(error).__name__
    return f"{data} cannot be had from TFDS ({first.strip('. ')[:300]}); GLUE's own files can be given as a directory."


def write_submission(
    task: str, split: str, ids: Sequence[str], predictions: np.ndarray, labels: Sequence[str], directory: epath.PathLike
) -> epath.Path:
    """Write predictions for a test split as gluebenchmark.com wants them: a new file of ids and predictions under a header.

    Args:
      task: one of :data:`TASKS`.
      split: one of its :attr:`Glue.submissions`.
      ids: [N], as :func:`read` gave them.
      predictions: [N] class numbers, or scores, which are clipped to those of STS-B, 0 to 5.
      labels: the model's names of its classes, in the order of their numbers; none for scores.
      directory: gets the file, under the name that the server wants.

    Returns:
      The file.

    Raises:
      UserError: the file exists, the split is no test split, the names are not the task's, or a score is not finite.
      ValueError: ids and predictions are not equally many, or a class has no name.
    """
    glue, _ = _find(task, split)
    require(split in glue.submissions, f"The server scores {' and '.join(glue.submissions)} of {task}, not {split}.")
    predictions = np.asarray(predictions)
    if predictions.shape != (len(ids),):
        raise ValueError(f"There are {len(ids)} ids and predictions of shape {predictions.shape}.")
    values = _classes(task, predictions, labels) if glue.labels else _scores(predictions)
    path = epath.Path(directory) / glue.submissions[split]
    with atomic.new(path) as new:
        new.write_text("index\tprediction\n" + "".join(f"{name}\t{value}\n" for name, value in zip(ids, values, strict=True)))
    return path


def _classes(task: str, predictions: np.ndarray, labels: Sequence[str]) -> Iterable[str]:
    glue = TASKS[task]
    names = [_name(task, label, "The model") for label in labels]
    if predictions.size and not 0 <= predictions.min() <= predictions.max() < len(names):
        raise ValueError(f"Predictions lie in {predictions.min()}…{predictions.max()}, and there are {len(names)} labels.")
    written = [glue.aliases[glue.labels.index(name)] if glue.aliases else name for name in names]
    return (written[place] for place in predictions.tolist())


def _scores(predictions: np.ndarray) -> Iterable[str]:
    require(bool(np.isfinite(predictions).all()), "A predicted score is not a finite number; the model has diverged.")
    # Adding 0 turns -0 into 0.
    return (f"{value:.3f}" for value in (np.clip(predictions, 0, 5) + 0.0).tolist())
