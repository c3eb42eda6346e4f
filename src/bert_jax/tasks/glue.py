"""Reading the tasks of GLUE (Wang et al. 2019) from its files or TFDS, and writing submissions."""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from bert_jax.errors import BertWarning, UserError
from bert_jax.io import atomic
from bert_jax.tasks import table_files, tables
from bert_jax.tasks.glue_tasks import TASKS, File, Glue, class_name
from bert_jax.tasks.table_files import Row, listed
from bert_jax.tasks.tables import Record

__all__ = ["TASKS", "File", "Glue", "place", "read", "write_submission"]

_TFDS = "tfds:"
# Columns with ids; the server expects those of the test files.
_IDS = ("index", "id")


def read(task: str, data: epath.PathLike, split: str) -> list[Record]:
    """Records of a split; labels are names of ``Glue.labels``, or numbers as written, and None in test splits.

    GLUE has pairs with an empty text; they are kept. Lines of QQP that are broken by a line break in a question are skipped.

    Args:
      task: one of ``TASKS``.
      data: the directory of GLUE or of the task, with GLUE's own files; "tfds:glue/cola", a data set that TFDS downloads; or
        "tfds:" and the directory of a data set that TFDS prepared in ArrayRecord.
      split: one of the task's ``Glue.files``.

    Raises:
      UserError: there is no such task, split, file or data set, or it has other contents.

    Warns:
      BertWarning: the number of skipped lines.
    """
    glue, file = _find(task, split)
    if str(data).startswith(_TFDS):
        return _read_tfds(task, glue, file, data=str(data))
    path = _path(glue, file, epath.Path(data))
    skipped: list[str] = []
    skip = skipped.append if glue.broken_lines and file.label else None
    rows = table_files.rows(path, file.order, quoting="none", skip=skip)
    records = [_record(task, glue, file, row, number) for number, row in enumerate(rows)]
    if skipped:
        warnings.warn(
            BertWarning(
                f"{path} has {len(skipped):,} broken lines, the first is {skipped[0].rpartition(', ')[2]}; they are left out."
            ),
            stacklevel=2,
        )
    return records


def place(task: str, data: epath.PathLike, split: str) -> str:
    """The file that ``read`` reads, or the name of the data set of TFDS.

    Raises:
      UserError: there is no such task, split or file.
    """
    glue, file = _find(task, split)
    return str(data) if str(data).startswith(_TFDS) else str(_path(glue, file, epath.Path(data)))


def _find(task: str, split: str) -> tuple[Glue, File]:
    if task not in TASKS:
        raise UserError(f"There is no GLUE task {task!r}; choose one of {', '.join(TASKS)}.")
    glue = TASKS[task]
    if split not in glue.files:
        raise UserError(f"{task} has no split {split!r}; choose one of {', '.join(glue.files)}.")
    return glue, glue.files[split]


def _path(glue: Glue, file: File, data: epath.Path) -> epath.Path:
    paths = [directory / file.name for directory in (*(data / name for name in glue.directories), data)]
    for path in paths:
        if path.exists():
            return path
    raise UserError(f"There is no {file.name} of {glue.directories[0]} in {data}; looked for {', '.join(map(str, paths))}.")


def _record(task: str, glue: Glue, file: File, row: Row, number: int) -> Record:
    columns = (*file.texts, *([file.label] if file.label else []))
    missing = [name for name in columns if name not in row.fields]
    if missing:
        raise UserError(
            f"{row.where}: {task} has the columns {', '.join(map(repr, columns))}, this file has "
            f"{listed(repr(name[:40]) for name in row.fields)}; is it GLUE's {glue.directories[0]}/{file.name}?"
        )
    texts = tuple(tables.text_of(row, name, empty=True) for name in file.texts)
    if not any(map(str.strip, texts)):
        raise UserError(f"{row.where}: there is no text; is it GLUE's {glue.directories[0]}/{file.name}?")
    label = class_name(task, tables.label_of(row, file.label) or "", row.where) if file.label else None
    names = [row.fields[name] for name in _IDS if name in row.fields]
    return Record(texts, label, row.where, names[0] if names else str(number))


def _read_tfds(task: str, glue: Glue, file: File, *, data: str) -> list[Record]:
    if file.tfds is None:
        raise UserError(f"TFDS has no labels for the diagnostics; give the directory of GLUE's {file.name}.")
    builder = _builder(data)
    splits, features = sorted(builder.info.splits), builder.info.features
    if file.tfds not in splits:
        raise UserError(f"{data} has no split {file.tfds!r}, which {task} needs, but {listed(splits) or 'none'}.")
    texts = glue.features or glue.files["test"].texts
    missing, hint = [name for name in (*texts, "label") if name not in features], f"it is not {task} as TFDS has it"
    if missing:
        raise UserError(f"{data} has no feature {', '.join(missing)} but {listed(sorted(features))}; {hint}.")
    names = getattr(features["label"], "names", None)
    if bool(names) != bool(glue.labels):
        raise UserError(f"The labels of {data} are {features['label']}; {hint}.")
    classes = [class_name(task, name, data) for name in names or ()]
    try:
        rows = list(builder.as_data_source(split=file.tfds))
    except Exception as error:  # TFDS and its readers raise many types for missing or damaged files.
        raise UserError(_tfds_error(data, error)) from None
    place = f"{data}, {file.tfds} example"
    return [_example(row, number, f"{place} {number + 1}", texts, file, classes) for number, row in enumerate(rows)]


def _example(row: Mapping[str, Any], number: int, where: str, texts: Sequence[str], file: File, classes: Sequence[str]) -> Record:
    # TFDS stores -1 for the labels of test splits.
    label = None
    if file.label:
        value = row["label"]
        if classes and value < 0:
            raise UserError(f"{where}: there is no label.")
        label = classes[value] if classes else str(np.float32(value))
    return Record(tuple(row[name].decode() for name in texts), label, where, str(row.get("idx", number)))


def _builder(data: str) -> Any:
    # The import is slow, and most runs read files.
    import tensorflow_datasets as tfds

    name = data.removeprefix(_TFDS)
    path = epath.Path(name).expanduser()
    try:
        if (path / "dataset_info.json").exists():
            return tfds.builder_from_directory(path)
        if name.startswith(("/", ".", "~")) or "://" in name:
            raise UserError(f"There is no data set of TFDS at {name}.")
        if name.startswith("glue/"):
            # Without TensorFlow, TFDS does not register its older data sets.
            importlib.import_module("tensorflow_datasets.text.glue")
        builder = tfds.builder(name, file_format="array_record")
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare()
        return builder
    except UserError:
        raise
    except Exception as error:  # Downloads raise many types.
        raise UserError(_tfds_error(data, error)) from None


def _tfds_error(data: str, error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "") or type(error).__name__
    return f"{data} cannot be read from TFDS ({first.strip('. ')[:300]}); give the directory of GLUE's own files instead."


def write_submission(
    task: str, split: str, ids: Sequence[str], predictions: np.ndarray, labels: Sequence[str], directory: epath.PathLike
) -> epath.Path:
    """Write predictions for a test split in the format of gluebenchmark.com: ids and predictions under a header.

    Args:
      task: one of ``TASKS``.
      split: one of its ``Glue.submissions``.
      ids: [N], from ``read``.
      predictions: [N] class indices, or scores, which are clipped to the range of STS-B, 0 to 5.
      labels: names of the model's classes, in the order of its outputs; empty for scores.
      directory: directory for the file, which gets the name that the server expects.

    Returns:
      The file.

    Raises:
      UserError: the file exists, the split is not a test split, the names are not those of the task, or a score is not finite.
      ValueError: the numbers of ids and predictions differ, or a class has no name.
    """
    glue, _ = _find(task, split)
    if split not in glue.submissions:
        raise UserError(f"The server scores {' and '.join(glue.submissions)} of {task}, not {split}.")
    predictions = np.asarray(predictions)
    if predictions.shape != (len(ids),):
        raise ValueError(f"There are {len(ids)} ids and predictions of shape {predictions.shape}.")
    values = _classes(task, predictions, labels) if glue.labels else _scores(predictions)
    path = epath.Path(directory) / glue.submissions[split]
    with atomic.new_path(path) as work:
        work.write_text("index\tprediction\n" + "".join(f"{name}\t{value}\n" for name, value in zip(ids, values, strict=True)))
    return path


def _classes(task: str, predictions: np.ndarray, labels: Sequence[str]) -> Iterable[str]:
    glue = TASKS[task]
    names = [class_name(task, label, "The model") for label in labels]
    if predictions.size and not 0 <= predictions.min() <= predictions.max() < len(names):
        raise ValueError(f"Predictions lie in {predictions.min()}…{predictions.max()}, and there are {len(names)} labels.")
    written = [glue.aliases[glue.labels.index(name)] if glue.aliases else name for name in names]
    return (written[index] for index in predictions.tolist())


def _scores(predictions: np.ndarray) -> Iterable[str]:
    if not np.isfinite(predictions).all():
        raise UserError("A predicted score is not a finite number; the model has diverged.")
    # Adding 0 turns -0 into 0.
    return (f"{value:.3f}" for value in (np.clip(predictions, 0, 5) + 0.0).tolist())
