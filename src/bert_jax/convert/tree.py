"""Conversion between named tensors of another project and this package's parameter tree, strict in both directions."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.batch import Params
from bert_jax.config.model import ModelConfig
from bert_jax.convert import hf, names
from bert_jax.convert.names import Family
from bert_jax.errors import UserError
from bert_jax.models.heads import POOLED_HEADS, heads_of, init_params
from bert_jax.ops.positions import sinusoidal

# Optimizer state in the original's checkpoints, and buffers of transformers' classes.
_IGNORED = {
    "google": re.compile(r"(.*/)?(adam_[mv]|lamb_[mv]|\w*(Adam|LAMB)\w*|global_step|beta[12]_power|\w*loss_scale|good_steps)"),
    "hf": re.compile(r".*embeddings\.(position_ids|token_type_ids)"),
    "flax": re.compile(r".*embeddings/(position_ids|token_type_ids)"),
}
_UNPREFIXED = re.compile(r"(embeddings|encoder|pooler)([./])")
_NEW_LEAVES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# Tensors that an error message names.
_MAX_NAMED = 3
_ABSENT = np.zeros(())
# Heads with a fixed number of outputs.
_OUTPUTS = {"nsp": 2, "question_answering": 2}


class Conversion(NamedTuple):
    """Parameters made from tensors, and what could not be converted."""

    params: Params
    """float32 NumPy arrays."""
    left_out: list[str]
    """Tensors of the model that no parameter takes."""
    left_at_init: list[str]
    """Parameters that keep their initial values because their tensors are missing or do not fit."""


def is_parameter(family: Family, name: str) -> bool:
    """Return whether a tensor belongs to the model rather than to its optimizer or buffers."""
    return not _IGNORED[family].fullmatch(name)


def read(
    stored: Mapping[str, np.ndarray],
    family: Family,
    config: ModelConfig,
    description: Mapping[str, Any],
    *,
    head: str | None,
    partial: bool,
    path: Any,
) -> Conversion:
    """Make parameters from the tensors of a family.

    Args:
      stored: tensors by their stored names.
      family: family of these names.
      config: the model.
      description: content of ``config.json``, which says which head a "classifier" is.
      head: the head that a "classifier" is; overrides the description.
      partial: leave out tensors that do not match, and keep the initial values of parameters without a tensor.
      path: the file, for error messages.

    Raises:
      UserError: a tensor is missing, unexpected, of the wrong shape or not finite, or the decoder differs from the word embeddings.
    """
    tensors = _rename(stored, family, path)
    _remove_tied(tensors, family, path)
    layers = config.num_hidden_layers
    if layers > len(tensors):
        raise UserError(
            f"{path} contains {len(tensors)} tensors, too few for the {layers} layers of its config; check num_hidden_layers."
        )
    outputs = _head_outputs(tensors, family, description, head, path)
    pooler = names.has_pooler(family, set(tensors)) or any(name in POOLED_HEADS for name in outputs)
    init = functools.partial(init_params, config, jax.random.key(0), heads=outputs, pooler=pooler)
    shapes = {name: value.shape for name, value in _flatten(jax.eval_shape(init)).items()}
    params, missing, misshaped = _convert(tensors, family, shapes, layers, path)
    if not partial:
        _refuse(path, "lacks tensors", missing)
        _refuse(path, "does not fit its config", misshaped)
        _refuse(path, "contains tensors that have no place in this model", sorted(tensors))
    left_at_init = [name for name in shapes if name not in params]
    params |= _initial(init, left_at_init)
    return Conversion(flax.traverse_util.unflatten_dict(params, sep="/"), misshaped + sorted(tensors), left_at_init)


def _convert(
    tensors: dict[str, np.ndarray], family: Family, shapes: Mapping[str, tuple[int, ...]], layers: int, path: Any
) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """Take the tensors of each parameter out of ``tensors``.

    Returns:
      The complete parameters, the names of missing tensors, and a description of each tensor of another shape.
    """
    params: dict[str, np.ndarray] = {}
    missing, misshaped = list[str](), list[str]()
    for entry in names.entries(family, shapes, layers):
        expected = entry.family_shape(shapes[entry.ours])
        parts = {name: tensors.pop(name) for name in entry.names if name in tensors}
        absent = [name for name in entry.names if name not in parts]
        wrong = [
            f"{name} has shape {value.shape}, but the config requires {expected}"
            for name, value in parts.items()
            if value.shape != expected
        ]
        missing += absent
        misshaped += wrong
        if not absent and not wrong:
            params[entry.ours] = entry.from_family([*parts.values()], shapes[entry.ours])
            if not np.isfinite(params[entry.ours]).all():
                raise UserError(f"{path} contains values that are not finite, in {' or '.join(entry.names[:_MAX_NAMED])}.")
    return params, missing, misshaped


def _initial(init: Callable[[], Params], names: list[str]) -> dict[str, np.ndarray]:
    """Initial values of some parameters."""
    values = _flatten(init()) if names else {}
    return {name: np.asarray(values[name]) for name in names}


def write(params: Params, config: ModelConfig, family: Family) -> dict[str, np.ndarray]:
    """Return the tensors of a family for this package's parameters: the inverse of [`read`][bert_jax.convert.tree.read]."""
    flat = {name: np.asarray(value) for name, value in _flatten(params).items()}
    if config.position_embedding_type == "sinusoidal":
        # The other families support learned positions only; a table of the same values is equivalent.
        flat["bert/embeddings/position"] = sinusoidal(config.max_position_embeddings, config.hidden_size)
    tensors: dict[str, np.ndarray] = {}
    for entry in names.entries(family, flat, config.num_hidden_layers):
        tensors |= dict(zip(entry.names, entry.to_family(flat[entry.ours]), strict=True))
    if family != "google" and not heads_of(params):
        tensors = {name.removeprefix("bert.").removeprefix("bert/"): value for name, value in tensors.items()}
    return tensors


def _rename(stored: Mapping[str, np.ndarray], family: Family, path: Any) -> dict[str, np.ndarray]:
    """Return the model's tensors under the names of the table."""
    tensors: dict[str, np.ndarray] = {}
    for name, value in stored.items():
        if not is_parameter(family, name):
            continue
        for old, new in _NEW_LEAVES.items() if family == "hf" else ():
            name = name.removesuffix(old) + new if name.endswith(old) else name
        if unprefixed := _UNPREFIXED.match(name):
            name = f"bert{unprefixed[2]}{name}"
        if name in tensors:
            raise UserError(f"{path} contains {name} twice, under an old and a new name; remove one of them.")
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise UserError(f"{path}: {name} has dtype {value.dtype}; parameters must be floating-point numbers.")
        tensors[name] = value
    return tensors


def _remove_tied(tensors: dict[str, np.ndarray], family: Family, path: Any) -> None:
    """Remove the decoder's copies of tied parameters, after a check that they are equal."""
    joint = "/" if family == "flax" else "."
    bias, word = f"cls{joint}predictions{joint}bias", f"bert{joint}embeddings{joint}word_embeddings{joint}"
    copies = {
        f"cls{joint}predictions{joint}decoder{joint}bias": bias,
        "cls.predictions.decoder.weight": f"{word}weight",
        "cls/predictions/decoder/kernel": f"{word}embedding",
    }
    for copy, original in copies.items():
        if copy not in tensors:
            continue
        value = tensors.pop(copy)
        value = value.T if copy.endswith("kernel") else value
        if not np.array_equal(tensors.setdefault(original, value), value, equal_nan=True):
            raise UserError(
                f"{path}: {copy} is not equal to {original}; only models with tied word embeddings, as in BERT, can be read."
            )


def _head_outputs(
    tensors: Mapping[str, np.ndarray], family: Family, description: Mapping[str, Any], head: str | None, path: Any
) -> dict[str, int]:
    """Return the heads that the tensors belong to, with the number of outputs of each."""
    outputs = {}
    for name in sorted(names.heads(family, set(tensors))):
        rows = names.entries(family, [f"{name}/bias"] + [f"{name}/kernel"] * (name != "mlm"), 0)
        sizes = [
            tensors[row.names[0]].shape[0 if row.transposed else -1] for row in rows if tensors.get(row.names[0], _ABSENT).ndim
        ]
        outputs[name] = _OUTPUTS.get(name, max(sizes[:1], default=1) or 1)
    classifiers = set(names.CLASSIFIERS) & set(outputs)
    if head and head not in classifiers:
        raise UserError(f"{path} has no classifier that could be the {head} head; leave the head out.")
    chosen = head or (classifiers and hf.classifier(description, outputs[min(classifiers)]))
    return {name: count for name, count in outputs.items() if name not in classifiers or name == chosen}


def _flatten(tree: Params) -> dict[str, Any]:
    return dict(flax.traverse_util.flatten_dict(tree, sep="/"))


def _refuse(path: Any, problem: str, items: Sequence[str]) -> None:
    if items:
        more = f" and {len(items) - _MAX_NAMED:,} more" if len(items) > _MAX_NAMED else ""
        raise UserError(f"{path} {problem}: {'; '.join(items[:_MAX_NAMED])}{more}; --partial reads what matches.")
