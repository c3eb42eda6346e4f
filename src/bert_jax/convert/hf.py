"""Files of transformers' directories: weights in three containers, ``config.json`` with its labels."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any

import flax.serialization
import flax.traverse_util
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from bert_jax.config.run import ModelConfig
from bert_jax.config.validation import check_types, read_json, require
from bert_jax.convert import pickles
from bert_jax.errors import UserError

SAFETENSORS, FLAX, PICKLE = "model.safetensors", "flax_model.msgpack", "pytorch_model.bin"
CONFIG = "config.json"
_INDEX = ".index.json"
# Fields that are not the file's; transformers' dtype means something else.
_OURS = ("dtype", "layers", "remat", "attention", "causal", "states", "lstm_layers")
# Other names of the same functions; under None what is meant where nothing is said.
_ALIASES: dict[str, dict[Any, str]] = {
    "hidden_act": {
        None: "gelu",
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_fast": "gelu_tanh",
        "gelu_python": "gelu",
    },
    "position_embedding_type": {None: "learned", "absolute": "learned"},
}
_DTYPES: dict[str, Any] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16, "I64": "<i8", "I32": "<i4"}

# The head that gives each of transformers' classes its name; "classifier" is what three of them call theirs.
_CLASSES = {
    "classify": "BertForSequenceClassification",
    "regress": "BertForSequenceClassification",
    "tag": "BertForTokenClassification",
    "choose": "BertForMultipleChoice",
    "span": "BertForQuestionAnswering",
    "mlm": "BertForMaskedLM",
    "nsp": "BertForNextSentencePrediction",
}


def read_config(path: epath.PathLike, **changes: Any) -> ModelConfig:
    """Read the original's ``bert_config.json`` or a ``config.json`` that follows it, with the given fields changed.

    Keys that say nothing about the encoder's arithmetic (``architectures``, token ids, …) are passed over.

    Raises:
      UserError: the file is missing, is not JSON, belongs to another architecture or holds a bad value.
    """
    stored = read_json(path)
    kind = stored.get("model_type", "bert")
    require(kind == "bert", f"{path} describes a {kind!r} model; only BERT is read.")
    for key in ("is_decoder", "add_cross_attention", "pruned_heads"):
        require(not stored.get(key), f"{path} has {key} {stored.get(key)}; only BERT's whole encoder is read.")
    hints = {name: hint for name, hint in typing.get_type_hints(ModelConfig).items() if name not in _OURS}
    fields = {key: value for key, value in stored.items() if key in hints}
    for key, names in _ALIASES.items():
        given, known = fields.get(key), typing.get_args(hints[key])
        fields[key] = names.get(given, given) if given is None or isinstance(given, str) else given
        require(fields[key] in known, f"{path} has {key} {given!r}, which is not known here; known are {', '.join(known)}.")
    check_types(fields, hints, str(path))
    return ModelConfig(**(fields | changes))


def read(path: epath.Path) -> dict[str, np.ndarray]:
    """Tensors of a ``.safetensors``, ``.bin`` or ``.msgpack`` file, or of the parts that an ``.index.json`` names.

    Raises:
      UserError: a file is missing or damaged, or may run code.
    """
    if not path.name.endswith(_INDEX):
        require(path.is_file(), f"There is no file {path}.")
        return _READERS.get(path.suffix, pickles.read)(path)
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{path} has no weight_map.")
    found: dict[str, np.ndarray] = {}
    for name in sorted(set(map(str, places.values()))):
        part = path.parent / name
        plain = part.name == name and not name.endswith(_INDEX)
        require(plain and part.is_file(), f"There is no file {part}, which {path.name} names.")
        tensors = read(part)
        twice = sorted(set(found) & set(tensors))
        require(not twice, f"{part} and another part of {path.name} both hold {(twice or [''])[0]}.")
        found |= tensors
    lost = sorted(set(places) - set(found))
    require(not lost, f"{path} names {len(lost)} tensors that its files do not hold, {(lost or [''])[0]} among them.")
    return found


def write_safetensors(path: epath.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write tensors as one file, in the order and with the metadata that transformers expects."""
    whole = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    path.write_bytes(safetensors.numpy.save(whole, metadata={"format": "pt"}))


def write_msgpack(path: epath.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write the parameter tree of a Flax class."""
    whole = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    path.write_bytes(flax.serialization.msgpack_serialize(flax.traverse_util.unflatten_dict(whole, sep="/")))


def describe(config: ModelConfig, heads: Mapping[str, int], labels: tuple[str, ...]) -> dict[str, Any]:
    """Content of ``config.json``, which is also a ``bert_config.json``."""
    kept = {key: value for key, value in dataclasses.asdict(config).items() if key not in _OURS}
    task = next((head for head in _CLASSES if head in heads), None)
    named = "BertForPreTraining" if task == "mlm" and "nsp" in heads else _CLASSES.get(task or "", "BertModel")
    stored = {
        **kept,
        "architectures": [named],
        "model_type": "bert",
        "hidden_act": {"gelu_tanh": "gelu_new"}.get(config.hidden_act, config.hidden_act),
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
    }
    if task == "regress":
        stored["problem_type"] = "regression"
    if task in ("classify", "regress", "tag"):
        shown = labels or tuple(f"LABEL_{number}" for number in range(heads[task]))
        stored |= {"id2label": dict(enumerate(shown)), "label2id": {label: number for number, label in enumerate(shown)}}
    return stored


def classifier(stored: Mapping[str, Any], outputs: int) -> str:
    """The head that the name "classifier" means in a model that ``config.json`` describes so."""
    listed = stored.get("architectures")
    named = str(listed[0]) if isinstance(listed, list) and listed else str(listed)
    for head in ("tag", "choose"):
        if named.endswith(_CLASSES[head]):
            return head
    return "regress" if outputs == 1 or stored.get("problem_type") == "regression" else "classify"


def labels(stored: Mapping[str, Any], outputs: int, path: epath.Path) -> tuple[str, ...]:
    """Names of the outputs that a ``config.json`` gives, or none.

    Raises:
      UserError: it names more or fewer than there are.
    """
    names = stored.get("id2label")
    if not isinstance(names, dict):
        return ()
    require(
        set(names) == {str(number) for number in range(outputs)},
        f"{path} names {len(names)} labels (id2label), but the model's classifier has {outputs} outputs.",
    )
    return tuple(str(names[str(number)]) for number in range(outputs))


def _safetensors(path: epath.Path) -> dict[str, np.ndarray]:
    try:
        found = dict(safetensors.deserialize(path.read_bytes()))
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}.") from None
    strange = sorted(name for name, tensor in found.items() if tensor["dtype"] not in _DTYPES)
    require(not strange, f"{path}: {(strange or [''])[0]} has a data type that no BERT has.")
    return {name: np.frombuffer(t["data"], _DTYPES[t["dtype"]]).reshape(t["shape"]) for name, t in found.items()}


def _msgpack(path: epath.Path) -> dict[str, np.ndarray]:
    try:
        tree = flax.serialization.msgpack_restore(path.read_bytes())
        flat = flax.traverse_util.flatten_dict(tree.get("params", tree), sep="/")
    except Exception as error:  # A damaged file makes a damaged tree, of which anything may be raised.
        raise UserError(f"{path} is not a whole Flax parameter file ({type(error).__name__}: {error}).") from None
    require(all(isinstance(value, np.ndarray) for value in flat.values()), f"{path} holds something else than arrays.")
    return flat


_READERS: dict[str, Callable[[epath.Path], dict[str, np.ndarray]]] = {".safetensors": _safetensors, ".msgpack": _msgpack}
