"""Names of tensors as programs around BERT write them, brought to those of the table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bert_jax.convert import names
from bert_jax.convert.names import Family
from bert_jax.errors import UserError

# Optimizer state in the original's checkpoints, and buffers of transformers' classes.
_IGNORED = {
    "google": re.compile(r"(.*/)?(adam_[mv]|lamb_[mv]|\w*(Adam|LAMB)\w*|global_step|beta[12]_power|\w*loss_scale|good_steps)"),
    "hf": re.compile(r".*embeddings\.(position_ids|token_type_ids)"),
    "flax": re.compile(r".*embeddings/(position_ids|token_type_ids)"),
}
_UNPREFIXED = re.compile(r"(embeddings|encoder|pooler)[./]")
_NEW_LEAVES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# Attributes under which transformers keeps encoders whose tensors have BERT's names, and that compute something else.
_RELATIVES = ("roberta", "xlm_roberta", "camembert", "electra", "ernie", "layoutlm", "nezha", "data2vec_text")


class Renamed(NamedTuple):
    """Tensors under the names of the table."""

    tensors: dict[str, np.ndarray]
    prefix: str
    """What was removed from the front of the names; "" for nothing."""


def is_parameter(family: Family, name: str) -> bool:
    """Return whether a tensor belongs to the model rather than to its optimizer or buffers."""
    return not _IGNORED[family].fullmatch(name)


def rename(stored: Mapping[str, np.ndarray], family: Family, path: Any) -> Renamed:
    """Return the model's tensors under the names of the table, without a prefix that another program added.

    Args:
      stored: tensors by their stored names.
      family: family of these names.
      path: the file, for error messages.

    Raises:
      UserError: the file has two encoders, an encoder of another architecture, or a tensor under two names.

    Examples:
      >>> rename({"module.bert.pooler.dense.bias": np.zeros(2)}, "hf", "model.bin")
      Renamed(tensors={'bert.pooler.dense.bias': array([0., 0.])}, prefix='module.')
    """
    root, current = f"bert{names.joint_of(family)}", dict[str, np.ndarray]()
    for name, value in stored.items():
        if is_parameter(family, name):
            _add(current, _new_leaf(name) if family == "hf" else name, value, path)
    prefix = _prefix(family, current, path)
    tensors: dict[str, np.ndarray] = {}
    for name, value in current.items():
        name = _without(name, prefix, names.joint_of(family))
        _add(tensors, f"{root}{name}" if _UNPREFIXED.match(name) else name, value, path)
    return Renamed(tensors, prefix)


def _prefix(family: Family, current: Mapping[str, np.ndarray], path: Any) -> str:
    """Return what stands before "bert." or, without it, before the encoder's own names."""
    root, encoders = f"bert{names.joint_of(family)}", dict[str, set[str]]()
    for name in current:
        if match := names.encoder_pattern(family).fullmatch(name):
            encoders.setdefault(match["prefix"], set()).add(match["name"])
    if not encoders:
        return ""
    # Embeddings under the names of transformers' own classes are the model's, whatever else the file contains.
    standard = [prefix for prefix in (root, "") if any(name.startswith("emb") for name in encoders.get(prefix, ()))]
    main = standard[0] if standard else max(encoders, key=lambda prefix: len(encoders[prefix]))
    outer = main.removesuffix(root) if main == root or main.endswith(root[-1] + root) else main
    others = [prefix for prefix in encoders if prefix not in (main, outer, outer + root) and encoders[prefix] & encoders[main]]
    if others and not standard:
        found = " and ".join(sorted([main, *others]))
        raise UserError(f"{path} contains several encoders, {found}; save the tensors of the one to read in a file of their own.")
    architecture = main.split(root[-1])[-2] if main else ""
    if architecture in _RELATIVES:
        raise UserError(f"{path} contains tensors of {architecture}, another architecture; only BERT can be read.")
    return outer


def _without(name: str, prefix: str, joint: str) -> str:
    """Return a name without the parts of the prefix that it has; a head may stand beside the module that wraps the encoder."""
    for part in prefix.split(joint)[:-1]:
        if not name.startswith(f"{part}{joint}"):
            break
        name = name.removeprefix(f"{part}{joint}")
    return name


def _new_leaf(name: str) -> str:
    for old, new in _NEW_LEAVES.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _add(tensors: dict[str, np.ndarray], name: str, value: np.ndarray, path: Any) -> None:
    if name in tensors:
        raise UserError(f"{path} contains {name} twice, under an old and a new name; remove one of them.")
    tensors[name] = value
