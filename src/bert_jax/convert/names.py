"""The table of parameter names: this package's parameter tree and the names of other projects, read in both directions.

There are three families of names. "google" is the original's TensorFlow variables, "hf" the state dict of transformers' PyTorch
classes, "flax" the parameter tree of its former Flax classes. This package stacks the layers along a leading axis and keeps
attention heads apart, ``[L, D, H, K]``; the other families store one matrix ``[D, H*K]`` per layer, transposed in PyTorch.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

Family = Literal["google", "hf", "flax"]


class _Leaf(NamedTuple):
    """One array of a module with its name in each family; "" where the module's name is the array's name."""

    ours: str
    hf: str
    google: str
    flax: str
    transposed: tuple[Family, ...] = ()
    """Families that store a matrix as [outputs, inputs]."""


_TABLE = (_Leaf("", "weight", "", "embedding"),)
_NORM = (_Leaf("scale", "weight", "gamma", "scale"), _Leaf("bias", "bias", "beta", "bias"))
_DENSE = (_Leaf("kernel", "weight", "kernel", "kernel", ("hf",)), _Leaf("bias", "bias", "bias", "bias"))
_LOGITS = (
    _Leaf("kernel", "weight", "output_weights", "kernel", ("hf", "google")),
    _Leaf("bias", "bias", "output_bias", "bias"),
)
_BIAS = (_Leaf("bias", "bias", "output_bias", "bias"),)
# A decoder of its own, [V, D] here; the original has none.
_DECODER = (_Leaf("", "weight", "kernel", "kernel", ("google", "flax")),)

# Path in this package, name in transformers, and the arrays; {} is the layer.
_MODULES: tuple[tuple[str, str, tuple[_Leaf, ...]], ...] = (
    ("bert/embeddings/word", "bert.embeddings.word_embeddings", _TABLE),
    ("bert/embeddings/position", "bert.embeddings.position_embeddings", _TABLE),
    ("bert/embeddings/type", "bert.embeddings.token_type_embeddings", _TABLE),
    ("bert/embeddings/norm", "bert.embeddings.LayerNorm", _NORM),
    ("bert/layers/attention/query", "bert.encoder.layer.{}.attention.self.query", _DENSE),
    ("bert/layers/attention/key", "bert.encoder.layer.{}.attention.self.key", _DENSE),
    ("bert/layers/attention/value", "bert.encoder.layer.{}.attention.self.value", _DENSE),
    ("bert/layers/attention/output", "bert.encoder.layer.{}.attention.output.dense", _DENSE),
    ("bert/layers/attention/norm", "bert.encoder.layer.{}.attention.output.LayerNorm", _NORM),
    ("bert/layers/ffn/inner", "bert.encoder.layer.{}.intermediate.dense", _DENSE),
    ("bert/layers/ffn/outer", "bert.encoder.layer.{}.output.dense", _DENSE),
    ("bert/layers/ffn/norm", "bert.encoder.layer.{}.output.LayerNorm", _NORM),
    ("bert/pooler", "bert.pooler.dense", _DENSE),
    ("mlm/dense", "cls.predictions.transform.dense", _DENSE),
    ("mlm/norm", "cls.predictions.transform.LayerNorm", _NORM),
    ("mlm", "cls.predictions", _BIAS),
    ("mlm/decoder", "cls.predictions.decoder", _DECODER),
    ("nsp", "cls.seq_relationship", _LOGITS),
    ("sequence_classification", "classifier", _LOGITS),
    ("multilabel_classification", "classifier", _LOGITS),
    ("regression", "classifier", _LOGITS),
    ("token_classification", "classifier", _LOGITS),
    ("multiple_choice", "classifier", _LOGITS),
    ("question_answering", "qa_outputs", _LOGITS),
)
CLASSIFIERS = tuple(ours for ours, hf, _ in _MODULES if hf == "classifier")
"""Heads that share the name "classifier" in other projects."""
HEADS = tuple(dict.fromkeys(ours.partition("/")[0] for ours, _, _ in _MODULES if not ours.startswith("bert/")))
"""All heads."""
# The original's names are those of transformers with / instead of ., with two exceptions: run_classifier.py puts its output at the
# top level, whatever the task, and run_squad.py below cls/squad.
_GOOGLE = {"classifier": "", "qa_outputs": "cls/squad"}


class Entry(NamedTuple):
    """One parameter of this package and its storage in another family."""

    ours: str
    """Path in the parameter tree, joined by /."""
    names: tuple[str, ...]
    """Names of its tensors in the other family: one for each layer, or a single one."""
    stacked: bool
    """Whether the parameter has a leading axis of layers."""
    transposed: bool
    """Whether the other family stores the matrix as [outputs, inputs]."""

    def to_family(self, parameter: np.ndarray) -> list[np.ndarray]:
        """Return the tensors of the other family, one for each name; views where that is possible."""
        layers = list(parameter) if self.stacked else [parameter]
        return [self._matrix(layer).T if self.transposed else self._matrix(layer) for layer in layers]

    def family_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of each tensor of the other family for a parameter of this shape."""
        return self.to_family(np.broadcast_to(np.float32(0), shape))[0].shape

    def fill(self, parameter: np.ndarray, tensors: Sequence[np.ndarray | None]) -> None:
        """Write the tensors of the other family into a parameter, except where one is None; the inverse of ``to_family``."""
        for index, tensor in enumerate(tensors):
            if tensor is not None:
                layer = parameter[index] if self.stacked else parameter
                layer[...] = (tensor.T if self.transposed else tensor).reshape(layer.shape)

    def _matrix(self, layer: np.ndarray) -> np.ndarray:
        """Merge the axes of attention heads."""
        leaf = self.ours.rpartition("/")[2]
        if leaf != "kernel":
            return layer.reshape(-1) if leaf == "bias" else layer
        inputs = layer.shape[0] if self.ours != "bert/layers/attention/output/kernel" else layer.shape[0] * layer.shape[1]
        return layer.reshape(inputs, -1)


def entries(family: Family, paths: Iterable[str], layers: int) -> Iterator[Entry]:
    """Yield the storage of parameters in a family.

    Args:
      family: family of names.
      paths: paths in the parameter tree, joined by /.
      layers: number of layers of the model.

    Raises:
      KeyError: the table lacks a path, which is a defect of the table.
    """
    table = {path: (name, transposed) for path, name, transposed in _rows(family)}
    for path in paths:
        name, transposed = table[path]
        stacked = "{}" in name
        yield Entry(path, tuple(name.format(layer) for layer in range(layers)) if stacked else (name,), stacked, transposed)


def heads(family: Family, names: set[str]) -> set[str]:
    """Return the heads that any of these tensors belongs to; all of them where heads share names."""
    paths = {path for path, name, _ in _rows(family) if name in names}
    return {path.partition("/")[0] for path in paths} - {"bert"}


def head_of(family: Family, name: str) -> str:
    """Return the head whose module contains a tensor of any name, or the first part of the name where there is none.

    Examples:
      >>> head_of("hf", "cls.predictions.projection.weight"), head_of("hf", "crf.transitions")
      ('mlm', 'crf')
    """
    joint = joint_of(family)
    modules = {_module(family, hf): ours.partition("/")[0] for ours, hf, _ in _MODULES if not ours.startswith("bert/")}
    owners = [module for module in modules if module and f"{name}{joint}".startswith(f"{module}{joint}")]
    return modules[max(owners, key=len)] if owners else name.partition(joint)[0]


def joint_of(family: Family) -> str:
    """Return what separates the parts of a name."""
    return "." if family == "hf" else "/"


@functools.cache
def encoder_pattern(family: Family) -> re.Pattern[str]:
    """Return a pattern of the encoder's names below any prefix, with the groups "prefix" and "name".

    Examples:
      >>> encoder_pattern("hf").fullmatch("module.bert.pooler.dense.bias").groups()
      ('module.bert.', 'pooler.dense.bias')
    """
    joint = joint_of(family)
    rows = [name.removeprefix(f"bert{joint}") for path, name, _ in _rows(family) if path.startswith("bert/")]
    choices = "|".join(re.escape(name.replace("{}", "#")).replace(r"\#", r"\d+") for name in rows)
    return re.compile(rf"(?P<prefix>(?:.*{re.escape(joint)})?)(?P<name>{choices})")


def has_pooler(family: Family, names: set[str]) -> bool:
    """Return whether any of these tensors belongs to the pooler."""
    return any(path.startswith("bert/pooler/") for path, name, _ in _rows(family) if name in names)


def _rows(family: Family) -> Iterator[tuple[str, str, bool]]:
    """Yield path, name in the family, and whether the family's matrix is transposed, for each row of the table."""
    for ours, hf, leaves in _MODULES:
        module, joint = _module(family, hf), joint_of(family)
        for leaf in leaves:
            name = joint.join(part for part in (module, getattr(leaf, family)) if part)
            yield f"{ours}/{leaf.ours}".rstrip("/"), name, family in leaf.transposed


def _module(family: Family, hf: str) -> str:
    """Return the name of a module of transformers in a family."""
    if family == "google":
        return _GOOGLE.get(hf, hf.replace(".{}", "_{}").replace(".", "/"))
    return hf if family == "hf" else hf.replace(".", "/")
