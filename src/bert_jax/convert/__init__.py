"""Reading and writing models in the formats of other projects, without TensorFlow or PyTorch.

The format of a model is detected from its files. Every tensor must have its place in the table of
[`bert_jax.convert.names`][bert_jax.convert.names].
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from bert_jax import tokenizers
from bert_jax.checkpoints import DIRECTORY, Checkpoints
from bert_jax.convert import google, hf, locate, prefixes, sentence_files, tree, unread
from bert_jax.convert import tokenizer as tokenizer_files
from bert_jax.convert.names import Family
from bert_jax.errors import BertWarning, UserError
from bert_jax.io import atomic, remote
from bert_jax.io.parsing import read_json
from bert_jax.models import vocabulary
from bert_jax.models.heads import heads_of
from bert_jax.models.loaded import LoadedModel, tokenizer_of
from bert_jax.tokenizers import AddedToken, Tokenizer

Format = Literal["hf", "google", "flax", "orbax"]
"""Hugging Face safetensors, TensorFlow checkpoint, Flax msgpack, or a checkpoint of this package."""
Head = Literal["sequence_classification", "multilabel_classification", "regression", "token_classification", "multiple_choice"]
"""Heads that other projects call "classifier"."""

REPORT = "conversion.json"
"""File name of the report that [`write`][bert_jax.convert.write] leaves in the directory."""
_GOOGLE = "bert_model.ckpt.index"


def read(
    path: epath.PathLike,
    *,
    partial: bool = False,
    head: Head | None = None,
    vocab: epath.PathLike | None = None,
    added_tokens: Sequence[str | AddedToken] = (),
) -> LoadedModel:
    """Read a model; anything suspicious about its files is a [`BertWarning`][bert_jax.errors.BertWarning].

    Args:
      path: a run directory of this package; a directory with one checkpoint; or a checkpoint's file (``.safetensors``, ``.bin``,
        ``.msgpack``, ``.index.json``, ``.ckpt`` or ``.ckpt.index``) with its config and vocabulary beside it.
      partial: leave out tensors that do not match and keep the initial values of parameters without a tensor; a warning names both.
      head: the head that a "classifier" is, if ``config.json`` does not say it.
      vocab: directory of an extension of the model's vocabulary, which [`extend`][bert_jax.models.vocabulary.extend] gives to it.
      added_tokens: tokens to add, as [`add_tokens`][bert_jax.models.vocabulary.add_tokens] does it.

    Returns:
      The model; ``problems`` says which heads or labels could not be read, and why.

    Raises:
      UserError: there is no model, more than one, or one that is not BERT, or its files do not fit the encoder; or ``vocab`` is not
        an extension of its vocabulary.
      RunError: all checkpoints of a run are damaged.
    """
    model = _read(path, partial=partial, head=head)
    if vocab is not None:
        model = vocabulary.extend(model, tokenizers.load(vocab), name=f"The vocabulary {vocab}")
    return vocabulary.add_tokens(model, added_tokens) if added_tokens else model


def read_tokenizer(path: epath.PathLike) -> Tokenizer:
    """Read the tokenizer of a model, or one from a directory without a model.

    Raises:
      UserError: there is neither, or a file is damaged.
      RunError: all checkpoints of a run are damaged.
    """
    try:
        files = sentence_files.find(path)
        locate.find(files.transformer if files else path)
    except UserError:
        return tokenizers.load(path)
    return tokenizer_of(_read(path, partial=False, head=None))


def _read(path: epath.PathLike, *, partial: bool, head: Head | None) -> LoadedModel:
    locate.check_local(path)
    files = sentence_files.find(path)
    weights = locate.find(files.transformer if files else path)
    if weights.name == DIRECTORY:
        return _read_run(weights.parent)
    directory = weights.parent
    family: Family = "google" if weights.name.endswith(".index") else "flax" if "msgpack" in weights.name else "hf"
    config_path = locate.find_config(weights)
    description = read_json(config_path)
    config = hf.read_config(config_path)
    tensors = google.read(weights, functools.partial(prefixes.is_parameter, family)) if family == "google" else hf.read(weights)
    conversion = tree.read(tensors, family, config, description, head=head, partial=partial, path=weights)
    problems, labels = dict(conversion.problems), tuple[str, ...]()
    outputs = [count for name, count in heads_of(conversion.params).items() if name in hf.LABELLED_HEADS]
    if outputs:
        try:
            labels = hf.labels(description, outputs[0], config_path)
        except UserError as error:
            problems["labels"] = str(error)
    tokenizer, problem = tokenizer_files.read(directory, conversion.config, description, family)
    if problem:
        problems["tokenizer"] = problem
    embedding = None
    if files:
        try:
            tokenizer, embedding = sentence_files.read(files, tokenizer, conversion.config)
        except UserError as error:
            problems["embedding"] = f"{files.root} says how to embed texts, but {error}"
    for sentence in [
        *unread.find(directory, description, read={weights.name, config_path.name}, with_modules=files is not None),
        *conversion.warnings,
        *problems.values(),
    ]:
        _warn(sentence)
    params = jax.tree.map(jnp.asarray, conversion.params)
    return LoadedModel(conversion.config, params, tokenizer, labels, embedding, problems)


def write(
    model: LoadedModel,
    path: epath.PathLike,
    to: Format,
    *,
    partial: bool = False,
    compare: Callable[[epath.Path], list[dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Write a model as a new directory, which appears under its name only when it is complete.

    Args:
      model: the model.
      path: directory to create.
      to: format.
      partial: write the model without the parts that could not be read.
      compare: called with the written directory before it is renamed; its result is added to the report.

    Returns:
      The report, which is also written as ``conversion.json``: format, heads, and name, shape, dtype and SHA-256 of each tensor;
      with ``compare`` also ``verification``.

    Raises:
      UserError: ``path`` exists already, the format is unknown or cannot represent the model, or a part was not read.
      RunError: the model cannot be written.
    """
    if to not in get_args(Format):
        raise UserError(f"There is no format {to!r}; choose one of {', '.join(get_args(Format))}.")
    if to != "orbax" and (model.config.causal or model.config.lstm_layers):
        raise UserError(f"The format {to} cannot represent a causal model or a BiLSTM; use the format orbax.")
    if to == "google" and "decoder" in model.params.get("mlm", {}):
        raise UserError("The format google has no decoder that is not tied to the word embeddings; use hf, flax or orbax.")
    if model.problems and not partial:
        reasons = "; ".join(reason.removesuffix(".") for reason in model.problems.values())
        raise UserError(f"{reasons}; --partial (partial=True) writes the model without what was not read.")
    with atomic.new_path(path) as directory:
        directory.mkdir()
        # Checkpoints have their own way to an object store.
        written = epath.Path(path) if to == "orbax" and remote.is_remote(path) else directory
        tensors = _write_orbax(model, written) if to == "orbax" else _write_family(model, directory, to)
        report: dict[str, Any] = {
            "format": to,
            "heads": list(heads_of(model.params)),
            "tensors": [_summary(name, value) for name, value in sorted(tensors.items())],
        }
        if compare:
            report["verification"] = compare(written)
        (directory / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    return report


def _write_orbax(model: LoadedModel, directory: epath.Path) -> dict[str, np.ndarray]:
    checkpoints = Checkpoints(directory, keep=1)
    checkpoints.save_model(model)
    checkpoints.wait()
    checkpoints.close()
    return {
        jax.tree_util.keystr(key, simple=True, separator="/"): np.asarray(value)
        for key, value in jax.tree_util.tree_leaves_with_path(model.params)
    }


def _write_family(model: LoadedModel, directory: epath.Path, family: Family) -> dict[str, np.ndarray]:
    tensors = tree.write(model.params, model.config, family)
    description = hf.describe(model.config, heads_of(model.params), model.labels)
    if model.tokenizer is not None:
        description["pad_token_id"] = model.tokenizer.special_tokens.pad
        tokenizer_files.write(model.tokenizer, directory, family, model.config.max_position_embeddings)
    (directory / (locate.GOOGLE_CONFIG if family == "google" else hf.CONFIG)).write_text(json.dumps(description, indent=2) + "\n")
    if family == "google":
        google.write(directory / _GOOGLE, tensors)
    elif family == "hf":
        hf.write_safetensors(directory / hf.SAFETENSORS, tensors)
    else:
        hf.write_msgpack(directory / hf.FLAX, tensors)
    if model.embedding is not None:
        sentence_files.write(model.embedding, directory, model.config)
    return tensors


def _read_run(path: epath.Path) -> LoadedModel:
    checkpoints = Checkpoints(path)
    try:
        restored = checkpoints.restore_model()
    finally:
        checkpoints.close()
    if restored is None:
        raise UserError(f"{path} contains no checkpoint; name another run.")
    # The attention implementation of the training run may not be available on this machine.
    return dataclasses.replace(restored, config=dataclasses.replace(restored.config, attention="auto"))


def _summary(name: str, value: np.ndarray) -> dict[str, Any]:
    digest = hashlib.sha256(np.ascontiguousarray(value).data).hexdigest()
    return {"name": name, "shape": list(value.shape), "dtype": str(value.dtype), "sha256": digest}


def _warn(sentence: str) -> None:
    warnings.warn(sentence, BertWarning, stacklevel=3)
