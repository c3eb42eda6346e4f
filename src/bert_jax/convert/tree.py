"""Named tensors of another project to our parameters, strictly, and back."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.config.run import ModelConfig
from bert_jax.convert import hf, names
from bert_jax.convert.names import Family
from bert_jax.errors import UserError
from bert_jax.models.encoder import Params
from bert_jax.models.heads import ON_POOLED, heads_of, init_params
from bert_jax.ops.positions import sinusoidal

# What optimizers leave beside the weights in the original's checkpoints, and buffers of transformers' classes.
_IGNORED = {
    "google": re.compile(r"(.*/)?(adam_[mv]|lamb_[mv]|\w*(Adam|LAMB)\w*|global_step|beta[12]_power|\w*loss_scale|good_steps)"),
    "hf": re.compile(r".*embeddings\.(position_ids|token_type_ids)"),
    "flax": re.compile(r".*embeddings/(position_ids|token_type_ids)"),
}
_PREFIXED = re.compile(r"(embeddings|encoder|pooler)([./])")
_NEW_LEAVES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_SHOWN = 3
_NONE = np.zeros(())
# Heads whose outputs are not for a task to choose.
_OUTPUTS = {"nsp": 2, "span": 2}


class Read(NamedTuple):
    """Parameters, and what happened on the way."""

    params: Params
    """float32 NumPy arrays."""
    left_out: list[str]
    """Tensors of the file that no parameter is made of, other than those that belong to no model."""
    left_at_init: list[str]
    """Parameters that the file does not give."""


def wanted(family: Family, name: str) -> bool:
    """Whether a tensor belongs to the model, and not to its optimizer or its buffers."""
    return not _IGNORED[family].fullmatch(name)


def read(
    stored: Mapping[str, np.ndarray], family: Family, config: ModelConfig, description: Mapping[str, Any],
    *, head: str | None, partial: bool, path: Any,
) -> Read:  # fmt: skip
    """Make parameters of a family's tensors.

    Args:
      stored: tensors by their stored names.
      family: whose names they are.
      config: the model that they are to fill.
      description: content of ``config.json``, which tells what "classifier" means.
      head: that meaning, where the user knows better.
      partial: keep what does not match out, and leave what is missing at its initial value.
      path: the file, for messages.

    Raises:
      UserError: a tensor is missing, superfluous or mis-shaped; the decoder is not the word table.
    """
    tensors = _rename(stored, family, path)
    _untie(tensors, family, path)
    if config.num_hidden_layers > len(tensors):
        raise UserError(f"{path} holds {len(tensors)} tensors, too few for the {config.num_hidden_layers} layers of its config.")
    heads = _heads(tensors, family, description, head)
    pooler = "bert/pooler" in names.heads(family, set(tensors)) or any(name in ON_POOLED for name in heads)
    init = functools.partial(init_params, config, jax.random.key(0), heads=heads, pooler=pooler)
    expected = _flatten(jax.eval_shape(init))
    flat: dict[str, np.ndarray] = {}
    missing, misshaped, at_init = [], [], []
    for entry in names.entries(family, expected, config.num_hidden_layers):
        shape = expected[entry.ours].shape
        theirs = entry.shape(shape)
        found = [tensors.pop(name, None) for name in entry.names]
        lost = [name for name, value in zip(entry.names, found, strict=True) if value is None]
        wrong = [
            f"{name} has the shape {value.shape}, the config asks for {theirs}"
            for name, value in zip(entry.names, found, strict=True)
            if value is not None and value.shape != theirs
        ]
        missing += lost
        misshaped += wrong
        if lost or wrong:
            at_init.append(entry.ours)
        else:
            flat[entry.ours] = entry.back([value for value in found if value is not None], shape)
            if not np.isfinite(flat[entry.ours]).all():
                raise UserError(f"{path} holds numbers that are not finite, in {' or '.join(entry.names[:_SHOWN])}.")
    if not partial:
        _refuse(path, "lacks tensors", missing)
        _refuse(path, "does not fit its config", misshaped)
        _refuse(path, "holds tensors that have no place in this model", sorted(tensors))
    if at_init:
        flat |= {name: np.asarray(value) for name, value in _flatten(init()).items() if name in at_init}
    return Read(flax.traverse_util.unflatten_dict(flat, sep="/"), misshaped + sorted(tensors), at_init)


def write(params: Params, config: ModelConfig, family: Family) -> dict[str, np.ndarray]:
    """A family's tensors of our parameters: the inverse of :func:`read`."""
    flat = {name: np.asarray(value) for name, value in _flatten(params).items()}
    if config.position_embedding_type == "sinusoidal":
        # The others only know a learned table; this one is as good.
        flat["bert/embeddings/position"] = sinusoidal(config.max_position_embeddings, config.hidden_size)
    out: dict[str, np.ndarray] = {}
    for entry in names.entries(family, flat, config.num_hidden_layers):
        out |= dict(zip(entry.names, entry.theirs(flat[entry.ours]), strict=True))
    if family != "google" and not heads_of(params):
        out = {name.removeprefix("bert.").removeprefix("bert/"): value for name, value in out.items()}
    return out


def _rename(stored: Mapping[str, np.ndarray], family: Family, path: Any) -> dict[str, np.ndarray]:
    """The model's tensors under the names of the table."""
    tensors: dict[str, np.ndarray] = {}
    for name, value in stored.items():
        if not wanted(family, name):
            continue
        for old, new in _NEW_LEAVES.items() if family == "hf" else ():
            name = name.removesuffix(old) + new if name.endswith(old) else name
        if bare := _PREFIXED.match(name):
            name = f"bert{bare[2]}{name}"
        if name in tensors:
            raise UserError(f"{path} holds {name} twice, under an old and a new name.")
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise UserError(f"{path}: {name} holds {value.dtype}, not floating-point numbers.")
        tensors[name] = value
    return tensors


def _untie(tensors: dict[str, np.ndarray], family: Family, path: Any) -> None:
    """Take out copies of what is tied."""
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
                f"{path}: {copy} is not equal to {original}; BERT's decoder is its word table, and a model whose decoder was "
                "trained apart is another one."
            )


def _heads(tensors: Mapping[str, np.ndarray], family: Family, description: Mapping[str, Any], head: str | None) -> dict[str, int]:
    """Heads that the tensors belong to, and how many outputs each has."""
    outputs = {}
    for name in sorted(names.heads(family, set(tensors)) - {"bert/pooler"}):
        rows = names.entries(family, [f"{name}/bias"] + [f"{name}/kernel"] * (name != "mlm"), 0)
        sizes = [tensors[row.names[0]].shape[0 if row.transposed else -1] for row in rows if tensors.get(row.names[0], _NONE).ndim]
        outputs[name] = _OUTPUTS.get(name, max(sizes[:1], default=1) or 1)
    shared = {"classify", "regress", "tag", "choose"} & set(outputs)
    if head and head not in shared:
        raise UserError(f"The file has no classifier that could be the {head} head.")
    meant = head or (shared and hf.classifier(description, outputs[min(shared)]))
    return {name: count for name, count in outputs.items() if name not in shared or name == meant}


def _flatten(tree: Params) -> dict[str, Any]:
    return dict(flax.traverse_util.flatten_dict(tree, sep="/"))


def _refuse(path: Any, what: str, these: list[str]) -> None:
    if these:
        more = f" and {len(these) - _SHOWN:,} more" if len(these) > _SHOWN else ""
        raise UserError(f"{path} {what}: {'; '.join(these[:_SHOWN])}{more}. --partial reads what matches.")
