"""Conversion between named tensors of another project and this package's parameter tree, strict in both directions.

Whatever does not fit the encoder is an error. What does not fit a head is a problem of that head, which is then not read.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.batch import Params
from bert_jax.config.model import ModelConfig
from bert_jax.convert import hf, mismatches, names, prefixes
from bert_jax.convert.mismatches import Parts
from bert_jax.convert.names import Family
from bert_jax.errors import UserError
from bert_jax.models.heads import POOLED_HEADS, heads_of, init_params
from bert_jax.ops.positions import sinusoidal

_ABSENT = np.zeros(())
# Heads with a fixed number of outputs.
_OUTPUTS = {"nsp": 2, "question_answering": 2}


class Conversion(NamedTuple):
    """Parameters made from tensors, and what could not be converted."""

    config: ModelConfig
    """The given config, with ``tie_word_embeddings`` as it is in the file."""
    params: Params
    """float32 NumPy arrays."""
    problems: dict[str, str]
    """Heads that were not read, and the reasons in one sentence each."""
    warnings: list[str]
    """Sentences on what was read in another way than it stands in the file."""


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
      head: the head that a "classifier" is, if the description does not say it.
      partial: leave out tensors that do not match, and keep the initial values where a tensor is missing.
      path: the file, for error messages.

    Raises:
      UserError: a tensor of the encoder is missing, unexpected or does not fit, or the file contains another model.
    """
    tensors, prefix = prefixes.rename(stored, family, path)
    warnings = [f"{path}: read without the prefix {prefix} of its names."] if prefix else []
    config = _settle_decoder(tensors, family, config, path, warnings)
    layers = config.num_hidden_layers
    if layers > len(tensors):
        raise UserError(
            f"{path} contains {len(tensors)} tensors, too few for the {layers} layers of its config; check num_hidden_layers."
        )
    outputs, classifier, problems = _head_outputs(tensors, family, description, head, path)
    pooler = names.has_pooler(family, set(tensors)) or (partial and any(name in POOLED_HEADS for name in outputs))
    init = functools.partial(init_params, config, jax.random.key(0), heads=outputs)
    shapes = {name: value.shape for name, value in _flatten(jax.eval_shape(init)).items()}
    if not pooler:
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith("bert/pooler/")}
    parts = [_take(entry, tensors, shapes[entry.ours], path) for entry in names.entries(family, shapes, layers)]
    encoder = [part for part in parts if part.head == "bert"]
    heads = [part for part in parts if part.head != "bert"]
    unexpected = [name for name in tensors if name.startswith(f"bert{names.joint_of(family)}")]
    mismatches.check_encoder(path, encoder, unexpected, [*stored], partial=partial)
    if partial:
        warnings += mismatches.left_out(path, [sentence for part in parts for sentence in part.wrong], tensors, layers)
        warnings += mismatches.left_at_init(path, parts)
    else:
        others = tensors.keys() - set(unexpected)
        problems |= mismatches.head_problems(path, heads, others, family, classifier=classifier, pooler=pooler)
    params = _parameters([*encoder, *(part for part in heads if part.head not in problems)], shapes, init)
    return Conversion(config, flax.traverse_util.unflatten_dict(params, sep="/"), problems, warnings)


def _take(entry: names.Entry, tensors: dict[str, np.ndarray], shape: tuple[int, ...], path: Any) -> Parts:
    """Take the tensors of a parameter out of ``tensors``."""
    expected, is_head = entry.family_shape(shape), not entry.ours.startswith("bert/")
    parts = Parts(entry, [], [], [])
    for name in entry.names:
        value = tensors.pop(name, None)
        wrong = None if value is None else _fault(name, value, expected)
        if value is None:
            parts.missing.append(name)
        elif wrong and not is_head and value.shape == expected:
            raise UserError(f"{path}: {wrong}.")
        elif wrong:
            parts.wrong.append(wrong)
        parts.found.append(None if wrong else value)
    return parts


def _fault(name: str, value: np.ndarray, shape: tuple[int, ...]) -> str | None:
    """Return what is wrong with a tensor, if anything."""
    if value.shape != shape:
        return f"{name} has shape {value.shape}, but the config requires {shape}"
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return f"{name} has dtype {value.dtype}; parameters must be floating-point numbers"
    if not np.isfinite(value).all():
        return f"{name} contains values that are not finite numbers"
    return None


def _parameters(parts: list[Parts], shapes: Mapping[str, tuple[int, ...]], init: Callable[[], Params]) -> dict[str, np.ndarray]:
    """Return the parameters, with initial values where tensors are missing."""
    fresh = any(value is None for part in parts for value in part.found)
    initial = _flatten(init()) if fresh else {}
    params = {}
    for part in parts:
        whole = all(value is not None for value in part.found)
        name = part.entry.ours
        params[name] = np.empty(shapes[name], np.float32) if whole else np.array(initial[name])
        part.entry.fill(params[name], part.found)
    return params


def write(params: Params, config: ModelConfig, family: Family) -> dict[str, np.ndarray]:
    """Return the tensors of a family for this package's parameters: the inverse of [`read`][bert_jax.convert.tree.read]."""
    flat = {name: np.asarray(value) for name, value in _flatten(params).items()}
    if config.position_embedding_type == "sinusoidal":
        # The other families support learned positions only; a table of the same values is equivalent.
        flat["bert/embeddings/position"] = sinusoidal(config.max_position_embeddings, config.hidden_size)
    tensors: dict[str, np.ndarray] = {}
    for entry in names.entries(family, flat, config.num_hidden_layers):
        tensors |= dict(zip(entry.names, entry.to_family(flat[entry.ours]), strict=True))
    if "mlm/decoder" in flat and family == "hf":
        # transformers 5 computes with the decoder's own bias, transformers 4 with the other.
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]
    if family != "google" and not heads_of(params):
        tensors = {name.removeprefix("bert.").removeprefix("bert/"): value for name, value in tensors.items()}
    return tensors


def _settle_decoder(
    tensors: dict[str, np.ndarray], family: Family, config: ModelConfig, path: Any, warnings: list[str]
) -> ModelConfig:
    """Leave the decoder's weights in ``tensors`` only if they are not tied, and one bias, as transformers 5 chooses.

    Returns:
      The config, with ``tie_word_embeddings`` as it is in the file.
    """
    rows = names.entries(family, ("bert/embeddings/word", "mlm/decoder", "mlm/bias"), 0)
    word, decoder, bias = (row.names[0] for row in rows)
    own_bias, tied = decoder.removesuffix("weight").removesuffix("kernel") + "bias", config.tie_word_embeddings
    if own_bias in tensors:
        value = tensors.pop(own_bias)
        if tied and not np.array_equal(tensors.get(bias, value), value, equal_nan=True):
            warnings.append(f"{path}: {own_bias} differs from {bias}, which was not read; transformers does the same.")
        tensors[bias] = value
    elif family == "hf" and not tied and {decoder, bias} <= tensors.keys():
        warnings.append(f"{path}: {bias} was read as the decoder's bias, which is missing; transformers 5 leaves it at 0.")
    if decoder not in tensors or not tied:
        return config
    value = tensors[decoder] if family == "hf" else tensors[decoder].T
    if np.array_equal(tensors.setdefault(word, value), value, equal_nan=True):
        del tensors[decoder]
        return config
    warnings.append(f"{path}: {decoder} differs from {word}, so the model was read with tie_word_embeddings false.")
    return dataclasses.replace(config, tie_word_embeddings=False)


def _head_outputs(
    tensors: dict[str, np.ndarray], family: Family, description: Mapping[str, Any], head: str | None, path: Any
) -> tuple[dict[str, int], str, dict[str, str]]:
    """Find the heads that the tensors belong to; those of a classifier of unknown kind are removed.

    Returns:
      The number of outputs of each, the name of the head that "classifier" is, and a problem of the latter.
    """
    outputs = {}
    for name in sorted(names.heads(family, set(tensors))):
        rows = names.entries(family, [f"{name}/bias"] + [f"{name}/kernel"] * (name != "mlm"), 0)
        sizes = [
            tensors[row.names[0]].shape[0 if row.transposed else -1] for row in rows if tensors.get(row.names[0], _ABSENT).ndim
        ]
        outputs[name] = _OUTPUTS.get(name, max(sizes[:1], default=1) or 1)
    found = set(names.CLASSIFIERS) & set(outputs)
    if not found and not any(names.head_of(family, name) in names.CLASSIFIERS for name in tensors):
        if head:
            raise UserError(f"{path} has no classifier that could be the {head} head; leave the head out.")
        return outputs, "", {}
    others = {name: count for name, count in outputs.items() if name not in found}
    count = outputs[min(found)] if found else 0
    classifier = hf.classifier(description, count, head, path)
    if classifier is None:
        for entry in names.entries(family, ["sequence_classification/kernel", "sequence_classification/bias"], 0):
            tensors.pop(entry.names[0], None)
        problem = (
            f"{path}: the classifier was not read, since neither architectures nor problem_type in its config says which head it "
            "is; name the head (--head)."
        )
        return others, "classifier", {"classifier": problem}
    return others | ({classifier: count} if found else {}), classifier, {}


def _flatten(tree: Params) -> dict[str, Any]:
    return dict(flax.traverse_util.flatten_dict(tree, sep="/"))
