"""Models of other projects in, and ours out: one way each, whatever the format.

Formats are found out from the files. Nothing here needs TensorFlow or PyTorch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from bert_jax import tokenizers
from bert_jax.checkpoints import BEST, DIRECTORY, Checkpoints
from bert_jax.config.run import ModelConfig
from bert_jax.config.validation import read_json, require
from bert_jax.convert import google, hf, tree
from bert_jax.convert.names import Family
from bert_jax.errors import Doubt, UserError
from bert_jax.io import atomic
from bert_jax.models.encoder import Params
from bert_jax.models.heads import heads_of
from bert_jax.tokenizers import Tokenizer

Format = Literal["hf", "google", "flax", "orbax"]
Head = Literal["classify", "regress", "tag", "choose"]

REPORT = "conversion.json"
_GOOGLE, _GOOGLE_CONFIG = "bert_model.ckpt.index", "bert_config.json"
_CONFIGS = (hf.CONFIG, _GOOGLE_CONFIG)
_WEIGHTS = tuple(name + more for name in (hf.SAFETENSORS, hf.PICKLE, hf.FLAX) for more in ("", ".index.json"))
_TOKENIZERS = ("BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
# What transformers writes for "no limit" is about 1e30.
_NO_LIMIT = 10**9


class Model(NamedTuple):
    """A model as every format holds it."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer | None
    """None where there is no vocabulary beside the weights."""
    labels: tuple[str, ...] = ()
    """Names of a classifier's outputs, where they are known."""


def read(path: epath.PathLike, *, partial: bool = False, head: Head | None = None) -> Model:
    """Read a model; warnings say what is doubtful about it.

    Args:
      path: a run of ours; a directory with one checkpoint; or a checkpoint's file (``.safetensors``, ``.bin``,
        ``.msgpack``, ``.index.json``, ``.ckpt`` or ``.ckpt.index``), with its config and vocabulary beside it.
      partial: leave out what does not match, leave the rest at its initial values, and say both as a warning.
      head: what a classifier is, where ``config.json`` does not say it.

    Raises:
      UserError: there is no model, or two, or one that is not BERT, or its parts do not fit each other.
      Failure: every checkpoint of a run is damaged.
    """
    path = epath.Path(path)
    weights = _find(path)
    if weights.name == DIRECTORY:
        return _read_run(weights.parent)
    directory = weights.parent
    family: Family = "google" if weights.name.endswith(".index") else "flax" if "msgpack" in weights.name else "hf"
    described = next((directory / name for name in _CONFIGS if (directory / name).exists()), None)
    if described is None:
        raise UserError(
            f"There is no {hf.CONFIG} or {_GOOGLE_CONFIG} in {directory}; put the one that belongs to {weights.name} there."
        )
    description = read_json(described)
    config = hf.read_config(described)
    tensors = google.read(weights, lambda name: tree.wanted("google", name)) if family == "google" else hf.read(weights)
    found = tree.read(tensors, family, config, description, head=head, partial=partial, path=weights)
    if found.left_out:
        _warn(f"{weights}: left out: {'; '.join(found.left_out)}.")
    if found.left_at_init:
        _warn(f"{weights}: left at their initial values: {', '.join(found.left_at_init)}.")
    outputs = [count for name, count in heads_of(found.params).items() if name in ("classify", "regress", "tag")]
    labels = hf.labels(description, outputs[0], described) if outputs else ()
    if description.get("problem_type") == "multi_label_classification":
        _warn(f"{described}: problem_type multi_label_classification is not kept; scores are read, their meaning is yours.")
    tokenizer = _read_tokenizer(directory, config, description, family)
    return Model(config, jax.tree.map(jnp.asarray, found.params), tokenizer, labels)


def write(
    model: Model, path: epath.PathLike, to: Format, *, compare: Callable[[epath.Path], dict[str, float]] | None = None
) -> dict[str, Any]:
    """Write a model as a new directory, which appears under its name only when it is whole.

    Args:
      model: the model.
      path: directory to make.
      to: its format.
      compare: gets the directory that was written and gives the largest difference of each output, for the report.

    Returns:
      What is also written as ``conversion.json``: name, shape and SHA-256 of each tensor, and ``largest_differences``.

    Raises:
      UserError: ``path`` exists already.
      Failure: it cannot be written.
    """
    require(to in get_args(Format), f"There is no format {to!r}; choose one of {', '.join(get_args(Format))}.")
    require(
        to == "orbax" or not (model.config.causal or model.config.lstm_layers),
        f"The format {to} knows no causal BERT and no BiLSTM on top of one; only orbax keeps such a model.",
    )
    with atomic.new(path) as directory:
        directory.mkdir()
        if to == "orbax":
            tensors = {jax.tree_util.keystr(key, simple=True, separator="/"): np.asarray(value)
                       for key, value in jax.tree_util.tree_leaves_with_path(model.params)}  # fmt: skip
            checkpoints = Checkpoints(directory, keep=1)
            checkpoints.save_model(*model)
            checkpoints.wait()
            checkpoints.close()
        else:
            tensors = tree.write(model.params, model.config, to)
            described = hf.describe(model.config, heads_of(model.params), model.labels)
            if model.tokenizer is not None:
                described["pad_token_id"] = model.tokenizer.specials.pad
                tokenizers.save(_for_export(model.tokenizer), directory)
            (directory / (_GOOGLE_CONFIG if to == "google" else hf.CONFIG)).write_text(json.dumps(described, indent=2) + "\n")
            if to == "google":
                google.write(directory / _GOOGLE, tensors)
            elif to == "hf":
                hf.write_safetensors(directory / hf.SAFETENSORS, tensors)
            else:
                hf.write_msgpack(directory / hf.FLAX, tensors)
        report: dict[str, Any] = {
            "format": to,
            "heads": list(heads_of(model.params)),
            "tensors": [_summary(*item) for item in sorted(tensors.items())],
        }
        if compare:
            report["largest_differences"] = compare(directory)
        (directory / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    return report


def _find(path: epath.Path) -> epath.Path:
    """The file of weights, or the directory of a run's checkpoints, that a path means."""
    if not path.exists() and (beside := path.parent / f"{path.name}.index").is_file():
        return beside
    if path.is_file():
        known = path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".msgpack", ".index") or path.name.endswith(".index.json")
        require(known, f"{path} is no checkpoint that is known; formats are told apart by their names.")
        return path
    if path.name == DIRECTORY and _is_run(path.parent):
        return path
    require(path.is_dir(), f"There is no model {path}; give a directory or a file of weights.")
    if _is_run(path / BEST):
        # What a fine-tuning run was for.
        path = path / BEST
    found = [path / DIRECTORY] if _is_run(path) else []
    found += [path / name for name in _WEIGHTS if (path / name).is_file()]
    found += sorted(path.glob("*.ckpt*.index"))
    if not found:
        raise UserError(f"{path} holds no model: no {DIRECTORY} of a run, no {', '.join(_WEIGHTS[::2])}, and no *.ckpt.index.")
    names = [file.name for file in found]
    require(len(found) == 1, f"{path} holds {' and '.join(names)}; name the one to read, for example {found[0]}.")
    return found[0]


def _is_run(path: epath.Path) -> bool:
    steps = path / DIRECTORY
    return steps.is_dir() and any(step.name.isdigit() for step in steps.iterdir())


def _read_run(path: epath.Path) -> Model:
    checkpoints = Checkpoints(path)
    try:
        restored = checkpoints.restore_model()
    finally:
        checkpoints.close()
    if restored is None:
        raise UserError(f"{path} holds no checkpoint.")
    model = Model(*restored)
    # Who computed attention where the run was trained may not exist here.
    return model._replace(config=dataclasses.replace(model.config, attention="auto"))


def _for_export(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer as transformers knows it, with what it does not know written out."""
    if tokenizers.CONFIG not in tokenizer.files:
        return tokenizer
    said = json.loads(tokenizer.files[tokenizers.CONFIG])
    said = {**tokenizers.ORIGINAL, **said, "tokenizer_class": "BertTokenizer"}
    return tokenizers.from_files({**tokenizer.files, tokenizers.CONFIG: json.dumps(said, indent=2).encode()})


def _read_tokenizer(directory: epath.Path, config: ModelConfig, description: dict[str, Any], family: Family) -> Tokenizer | None:
    """The vocabulary beside the weights, held against the config."""
    if not any((directory / name).exists() for name in tokenizers.VOCABULARIES):
        return None
    said = read_json(directory / tokenizers.CONFIG) if (directory / tokenizers.CONFIG).exists() else {}
    kind = said.get("tokenizer_class") or "BertTokenizer"
    require(
        kind in _TOKENIZERS,
        f"{directory / tokenizers.CONFIG} names a {kind}, which splits text in its own way; move the vocabulary away to read "
        "the weights alone.",
    )
    tokenizer = tokenizers.load(directory)
    if family != "google" and tokenizers.CONFIG in tokenizer.files:
        # transformers gives up on shorter words than the original.
        kept = {"max_input_chars_per_word": 100, **json.loads(tokenizer.files[tokenizers.CONFIG])}
        tokenizer = tokenizers.from_files({**tokenizer.files, tokenizers.CONFIG: json.dumps(kept, indent=2).encode()})
    pieces, rows = len(tokenizer.pieces), config.vocab_size
    require(
        pieces <= rows,
        f"The vocabulary in {directory} has {pieces:,} pieces, its config has vocab_size {rows:,}; they do not belong together.",
    )
    if pieces < rows:
        _warn(f"The vocabulary in {directory} has {pieces:,} pieces, its word table {rows:,} rows; the last are never used.")
    pad = description.get("pad_token_id", tokenizer.specials.pad)
    if pad != tokenizer.specials.pad:
        _warn(f"The config in {directory} has pad_token_id {pad}, its vocabulary has [PAD] as {tokenizer.specials.pad}.")
    limit = said.get("model_max_length")
    if isinstance(limit, int) and config.max_position_embeddings < limit < _NO_LIMIT:
        _warn(
            f"tokenizer_config.json in {directory} allows {limit} pieces, the model has {config.max_position_embeddings} positions."
        )
    for doubt in tokenizer.doubts():
        _warn(f"{directory}: {doubt}")
    return tokenizer


def _summary(name: str, value: np.ndarray) -> dict[str, Any]:
    digest = hashlib.sha256(np.ascontiguousarray(value).data).hexdigest()
    return {"name": name, "shape": list(value.shape), "dtype": str(value.dtype), "sha256": digest}


def _warn(sentence: str) -> None:
    warnings.warn(sentence, Doubt, stacklevel=3)
