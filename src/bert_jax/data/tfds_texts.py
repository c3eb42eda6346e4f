"""Texts of data sets of TensorFlow Datasets, read without TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from bert_jax.errors import UserError
from bert_jax.io import tfrecord

PREFIX = "tfds:"
"""Start of the paths that name a data set: ``tfds:NAME`` or ``tfds:NAME@SPLIT``."""
# The article's and the sections' titles, each on the line after its mark, in wiki40b.
_WIKI40B_TITLES = re.compile(r"_START_(?:ARTICLE|SECTION)_\n[^\n]*\n?")
_WIKI40B_MARKS = {"_START_PARAGRAPH_": "", "_NEWLINE_": "\n"}


def texts(path: str, field: str) -> Iterator[str]:
    """Yield the texts of a split, by default "train", in order; the data set is downloaded and prepared where it is not yet.

    Args:
      path: ``tfds:NAME`` or ``tfds:NAME@SPLIT``, where NAME may include a config and a version.
      field: feature that contains the text.

    Raises:
      UserError: there is no such data set, split or text feature, or TFDS cannot prepare it.
    """
    name, _, split = path.removeprefix(PREFIX).partition("@")
    builder, split = _prepared(name), split or "train"
    if split not in builder.info.splits:
        raise UserError(f"{path} has no split {split!r} but {', '.join(builder.info.splits)}; name it as {PREFIX}{name}@SPLIT.")
    if field not in builder.info.features:
        raise UserError(f"{path} has no feature {field!r} but {', '.join(builder.info.features)}; name it with --field.")
    for example in _examples(builder, split):
        value = example[field]
        text = value.decode() if isinstance(value, bytes) else value
        if not isinstance(text, str):
            raise UserError(f"{path}: {field!r} is no text; name the feature with --field.")
        yield _without_marks(text) if "_START_ARTICLE_" in text else text


def _prepared(name: str) -> Any:
    try:
        builder = tfds.builder(name, try_gcs=True)
        if not builder.is_prepared():
            builder.download_and_prepare()
    except Exception as error:  # whatever a data set's own code raises
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"TFDS cannot prepare {name!r}: {reason or type(error).__name__}.") from None
    return builder


def _examples(builder: Any, split: str) -> Iterator[Any]:
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        yield from builder.as_data_source(split=split)
        return
    if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
        raise UserError(f"{builder.info.full_name} is stored as {builder.info.file_format.value}; prepare it as array_record.")
    for file in builder.info.splits[split].filepaths:
        yield from map(builder.info.features.deserialize_example_np, tfrecord.stream(file))


def _without_marks(text: str) -> str:
    text = _WIKI40B_TITLES.sub("", text)
    for mark, replacement in _WIKI40B_MARKS.items():
        text = text.replace(mark, replacement)
    return text
