"""One table of names and reshapes, read in both directions: our parameter tree and what other projects call its parts.

Three families of names exist. "google" is the original's TensorFlow variables, "hf" the state dict of transformers'
PyTorch classes, "flax" the parameter tree of its former Flax classes. Ours stacks the layers along a leading axis and
keeps heads apart, ``[L, D, H, K]``; theirs have one matrix ``[D, H·K]`` a layer, transposed where PyTorch says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import numpy as np

Family = Literal["google", "hf", "flax"]


class _Leaf(NamedTuple):
    """One array of a module: its name in each family, "" where the module's name is the array's."""

    ours: str
    hf: str
    google: str
    flax: str
    transposed: tuple[Family, ...] = ()
    """Families that store a matrix as [outputs, inputs]."""


_TABLE = (_Leaf("", "weight", "", "embedding"),)
_NORM = (_Leaf("scale", "weight", "gamma", "scale"), _Leaf("bias", "bias", "beta", "bias"))
_DENSE = (_Leaf("kernel", "weight", "kernel", "kernel", ("hf",)), _Leaf("bias", "bias", "bias", "bias"))
_SCORES = (
    _Leaf("kernel", "weight", "output_weights", "kernel", ("hf", "google")),
    _Leaf("bias", "bias", "output_bias", "bias"),
)
_BIAS = (_Leaf("bias", "bias", "output_bias", "bias"),)

# Ours, transformers' and the arrays; {} is the layer.
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
    ("nsp", "cls.seq_relationship", _SCORES),
    ("classify", "classifier", _SCORES),
    ("regress", "classifier", _SCORES),
    ("tag", "classifier", _SCORES),
    ("choose", "classifier", _SCORES),
    ("span", "qa_outputs", _SCORES),
)
# The original's modules are transformers' with / for . but for these: run_classifier.py names its output at the top
# level, whatever the task, and run_squad.py below cls/squad.
_GOOGLE = {"classifier": "", "qa_outputs": "cls/squad"}


class Entry(NamedTuple):
    """One array of ours, and how another family stores it."""

    ours: str
    """Path in our tree, joined by /."""
    names: tuple[str, ...]
    """Theirs, one for each layer, or a single one."""
    stacked: bool
    """Whether ours has a leading axis of layers."""
    transposed: bool

    def theirs(self, ours: np.ndarray) -> list[np.ndarray]:
        """Our array as theirs, one for each name; views where that is possible."""
        parts = list(ours) if self.stacked else [ours]
        return [self._matrix(part).T if self.transposed else self._matrix(part) for part in parts]

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of each of theirs."""
        return self.theirs(np.broadcast_to(np.float32(0), ours))[0].shape

    def back(self, theirs: list[np.ndarray], ours: tuple[int, ...]) -> np.ndarray:
        """Our array, float32, from theirs: the inverse of :meth:`theirs`."""
        out = np.empty(ours, np.float32)
        for place, part in zip(out if self.stacked else [out], theirs, strict=True):
            place[...] = (part.T if self.transposed else part).reshape(place.shape)
        return out

    def _matrix(self, part: np.ndarray) -> np.ndarray:
        leaf = self.ours.rpartition("/")[2]
        if leaf != "kernel":
            return part.reshape(-1) if leaf == "bias" else part
        inputs = part.shape[0] if self.ours != "bert/layers/attention/output/kernel" else part.shape[0] * part.shape[1]
        return part.reshape(inputs, -1)


def entries(family: Family, paths: Iterable[str], layers: int) -> Iterator[Entry]:
    """How a family stores each of these paths of ours.

    A path that the table does not hold is a defect of the table: KeyError.
    """
    known = {path: (name, transposed) for path, name, transposed in _rows(family)}
    for path in paths:
        name, transposed = known[path]
        stacked = "{}" in name
        yield Entry(path, tuple(name.format(layer) for layer in range(layers)) if stacked else (name,), stacked, transposed)


def heads(family: Family, names: set[str]) -> set[str]:
    """Heads, and ``"bert/pooler"``, that any of these names belongs to; several where they share their names."""
    found = (path for path, name, _ in _rows(family) if name in names)
    parts = {path.rpartition("/")[0] if path.startswith("bert/") else path.partition("/")[0] for path in found}
    return {part for part in parts if not part.startswith("bert/") or part == "bert/pooler"} - {"bert"}


def _rows(family: Family) -> Iterator[tuple[str, str, bool]]:
    """Our path, their name, and whether theirs is transposed, for each row of the table."""
    for ours, hf, leaves in _MODULES:
        google = _GOOGLE.get(hf, hf.replace(".{}", "_{}").replace(".", "/"))
        module, joint = {"hf": (hf, "."), "google": (google, "/"), "flax": (hf.replace(".", "/"), "/")}[family]
        for leaf in leaves:
            name = joint.join(part for part in (module, getattr(leaf, family)) if part)
            yield f"{ours}/{leaf.ours}".rstrip("/"), name, family in leaf.transposed
