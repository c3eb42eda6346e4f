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
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from bert_jax import tokenizers
from bert_jax.checkpoints import BEST, DIRECTORY, Checkpoints
from bert_jax.config.model import ModelConfig
from bert_jax.convert import google, hf, tree
from bert_jax.convert.names import Family
from bert_jax.errors import BertWarning, UserError
from bert_jax.io import atomic
from bert_jax.io.parsing import read_json
from bert_jax.models.heads import heads_of
from bert_jax.models.loaded import LoadedModel
from bert_jax.tokenizers import Tokenizer

Format = Literal["hf", "google", "flax", "orbax"]
"""Hugging Face safetensors, TensorFlow checkpoint, Flax msgpack, or a checkpoint of this package."""
Head = Literal["sequence_classification", "multilabel_classification", "regression", "token_classification", "multiple_choice"]
"""Heads that other projects call "classifier"."""

REPORT = "conversion.json"
"""File name of the report that [`write`][bert_jax.convert.write] leaves in the directory."""
_GOOGLE, _GOOGLE_CONFIG = "bert_model.ckpt.index", "bert_config.json"
_CONFIGS = (hf.CONFIG, _GOOGLE_CONFIG)
_WEIGHTS = tuple(name + suffix for name in (hf.SAFETENSORS, hf.PICKLE, hf.FLAX) for suffix in ("", ".index.json"))
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".msgpack", ".index")
_TOKENIZERS = ("BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
# transformers writes about 1e30 where a tokenizer has no maximum length.
_NO_MAX_LENGTH = 10**9


def read(path: epath.PathLike, *, partial: bool = False, head: Head | None = None) -> LoadedModel:
    """Read a model; anything suspicious about its files is a [`BertWarning`][bert_jax.errors.BertWarning].

    Args:
      path: a run directory of this package; a directory with one checkpoint; or a checkpoint's file (``.safetensors``, ``.bin``,
        ``.msgpack``, ``.index.json``, ``.ckpt`` or ``.ckpt.index``) with its config and vocabulary beside it.
      partial: leave out tensors that do not match and keep the initial values of parameters without a tensor; a warning names both.
      head: the head that a "classifier" is, if ``config.json`` does not say it.

    Raises:
      UserError: there is no model, more than one, or one that is not BERT, or its files do not fit together.
      RunError: all checkpoints of a run are damaged.
    """
    weights = _find(epath.Path(path))
    if weights.name == DIRECTORY:
        return _read_run(weights.parent)
    directory = weights.parent
    family: Family = "google" if weights.name.endswith(".index") else "flax" if "msgpack" in weights.name else "hf"
    config_path = next((directory / name for name in _CONFIGS if (directory / name).exists()), None)
    if config_path is None:
        raise UserError(
            f"There is no {hf.CONFIG} or {_GOOGLE_CONFIG} in {directory}; put the one that belongs to {weights.name} there."
        )
    description = read_json(config_path)
    config = hf.read_config(config_path)
    tensors = google.read(weights, functools.partial(tree.is_parameter, family)) if family == "google" else hf.read(weights)
    conversion = tree.read(tensors, family, config, description, head=head, partial=partial, path=weights)
    if conversion.left_out:
        _warn(f"{weights}: left out: {'; '.join(conversion.left_out)}.")
    if conversion.left_at_init:
        _warn(f"{weights}: left at their initial values: {', '.join(conversion.left_at_init)}.")
    outputs = [count for name, count in heads_of(conversion.params).items() if name in hf.LABELLED_HEADS]
    labels = hf.labels(description, outputs[0], config_path) if outputs else ()
    tokenizer = _read_tokenizer(directory, config, description, family)
    return LoadedModel(config, jax.tree.map(jnp.asarray, conversion.params), tokenizer, labels)


def write(
    model: LoadedModel, path: epath.PathLike, to: Format, *, compare: Callable[[epath.Path], dict[str, float]] | None = None
) -> dict[str, Any]:
    """Write a model as a new directory, which appears under its name only when it is complete.

    Args:
      model: the model.
      path: directory to create.
      to: format.
      compare: called with the written directory before it is renamed; returns the largest difference of each output, which is added
        to the report.

    Returns:
      The report, which is also written as ``conversion.json``: format, heads, and name, shape, dtype and SHA-256 of each tensor;
      with ``compare`` also ``largest_differences``.

    Raises:
      UserError: ``path`` exists already, the format is unknown, or it cannot represent the model.
      RunError: the model cannot be written.
    """
    if to not in get_args(Format):
        raise UserError(f"There is no format {to!r}; choose one of {', '.join(get_args(Format))}.")
    if to != "orbax" and (model.config.causal or model.config.lstm_layers):
        raise UserError(f"The format {to} cannot represent a causal model or a BiLSTM; use the format orbax.")
    with atomic.new_path(path) as directory:
        directory.mkdir()
        tensors = _write_orbax(model, directory) if to == "orbax" else _write_family(model, directory, to)
        report: dict[str, Any] = {
            "format": to,
            "heads": list(heads_of(model.params)),
            "tensors": [_summary(name, value) for name, value in sorted(tensors.items())],
        }
        if compare:
            report["largest_differences"] = compare(directory)
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
        tokenizers.save(_for_export(model.tokenizer), directory)
    (directory / (_GOOGLE_CONFIG if family == "google" else hf.CONFIG)).write_text(json.dumps(description, indent=2) + "\n")
    if family == "google":
        google.write(directory / _GOOGLE, tensors)
    elif family == "hf":
        hf.write_safetensors(directory / hf.SAFETENSORS, tensors)
    else:
        hf.write_msgpack(directory / hf.FLAX, tensors)
    return tensors


def _find(path: epath.Path) -> epath.Path:
    """Return the file of weights, or the directory of a run's checkpoints, for a path."""
    if not path.exists() and (index := path.parent / f"{path.name}.index").is_file():
        return index
    if path.is_file():
        if path.suffix not in _SUFFIXES and not path.name.endswith(".index.json"):
            raise UserError(f"{path} is not a checkpoint; name a file with one of the suffixes {', '.join(_SUFFIXES)}.")
        return path
    if path.name == DIRECTORY and _is_run(path.parent):
        return path
    if not path.is_dir():
        raise UserError(f"There is no model {path}; give a directory or a file of weights.")
    if _is_run(path / BEST):
        # The best model of a fine-tuning run, not its last one.
        path = path / BEST
    candidates = [path / DIRECTORY] if _is_run(path) else []
    candidates += [path / name for name in _WEIGHTS if (path / name).is_file()]
    candidates += sorted(path.glob("*.ckpt*.index"))
    if not candidates:
        expected = f"no {DIRECTORY} of a run, no {', '.join(_WEIGHTS[::2])}, and no *.ckpt.index"
        raise UserError(f"{path} contains no model ({expected}); name a directory with one.")
    if len(candidates) > 1:
        names = " and ".join(file.name for file in candidates)
        raise UserError(f"{path} contains {names}; name the one to read, for example {candidates[0]}.")
    return candidates[0]


def _is_run(path: epath.Path) -> bool:
    steps = path / DIRECTORY
    return steps.is_dir() and any(step.name.isdigit() for step in steps.iterdir())


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


def _for_export(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer with explicit settings where the defaults of transformers differ."""
    if tokenizers.CONFIG not in tokenizer.files:
        return tokenizer
    settings = json.loads(tokenizer.files[tokenizers.CONFIG])
    settings = {**tokenizers.ORIGINAL_SETTINGS, **settings, "tokenizer_class": "BertTokenizer"}
    return tokenizers.from_files({**tokenizer.files, tokenizers.CONFIG: json.dumps(settings, indent=2).encode()})


def _read_tokenizer(directory: epath.Path, config: ModelConfig, description: dict[str, Any], family: Family) -> Tokenizer | None:
    """Read the vocabulary beside the weights, if there is one, and check it against the config."""
    if not any((directory / name).exists() for name in tokenizers.VOCABULARIES):
        return None
    settings_path = directory / tokenizers.CONFIG
    settings = read_json(settings_path) if settings_path.exists() else {}
    tokenizer_class = settings.get("tokenizer_class") or "BertTokenizer"
    if tokenizer_class not in _TOKENIZERS:
        raise UserError(
            f"{settings_path} names the tokenizer {tokenizer_class}, which is not supported; move the vocabulary away to read the "
            "weights alone."
        )
    tokenizer = tokenizers.load(directory)
    if family != "google" and tokenizers.CONFIG in tokenizer.files:
        # transformers replaces words of more than 100 characters by [UNK], the original's code only those of more than 200.
        settings = {"max_input_chars_per_word": 100, **json.loads(tokenizer.files[tokenizers.CONFIG])}
        tokenizer = tokenizers.from_files({**tokenizer.files, tokenizers.CONFIG: json.dumps(settings, indent=2).encode()})
    _check_tokenizer(tokenizer, directory, config, description)
    return tokenizer


def _check_tokenizer(tokenizer: Tokenizer, directory: epath.Path, config: ModelConfig, description: dict[str, Any]) -> None:
    """Check a vocabulary against the config; contradictions that do not prevent reading are warnings."""
    tokens, rows = len(tokenizer.tokens), config.vocab_size
    if tokens > rows:
        raise UserError(
            f"The vocabulary in {directory} has {tokens:,} tokens, but its config has vocab_size {rows:,}; put the "
            "vocabulary of these weights beside them."
        )
    if tokens < rows:
        _warn(f"The vocabulary in {directory} has {tokens:,} tokens, its word embeddings {rows:,} rows; the last are never used.")
    pad = description.get("pad_token_id", tokenizer.special_tokens.pad)
    if pad != tokenizer.special_tokens.pad:
        _warn(f"The config in {directory} has pad_token_id {pad}, but [PAD] is {tokenizer.special_tokens.pad} in its vocabulary.")
    settings_path = directory / tokenizers.CONFIG
    max_length = read_json(settings_path).get("model_max_length") if settings_path.exists() else None
    if isinstance(max_length, int) and config.max_position_embeddings < max_length < _NO_MAX_LENGTH:
        _warn(f"{settings_path} allows {max_length} tokens, but the model has {config.max_position_embeddings} positions.")
    for warning in tokenizer.warnings():
        _warn(f"{directory}: {warning}")


def _summary(name: str, value: np.ndarray) -> dict[str, Any]:
    digest = hashlib.sha256(np.ascontiguousarray(value).data).hexdigest()
    return {"name": name, "shape": list(value.shape), "dtype": str(value.dtype), "sha256": digest}


def _warn(sentence: str) -> None:
    warnings.warn(sentence, BertWarning, stacklevel=3)
