"""Files of a transformers directory: weights in three containers, and ``config.json`` with its labels."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.serialization
import flax.traverse_util
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from bert_jax.config.model import ModelConfig
from bert_jax.config.validation import check_types
from bert_jax.convert import contents, pickles
from bert_jax.errors import UserError
from bert_jax.io.parsing import read_json

SAFETENSORS, FLAX, PICKLE = "model.safetensors", "flax_model.msgpack", "pytorch_model.bin"
CONFIG = "config.json"
LABELLED_HEADS = ("sequence_classification", "multilabel_classification", "regression", "token_classification")
"""Heads with a label for each output in ``config.json``."""
_INDEX = ".index.json"
# Fields of ModelConfig that are not read from the file; "dtype" means something else in transformers.
_NOT_IN_FILE = ("dtype", "layers", "remat", "attention", "causal", "states", "lstm_layers")
# Other names of the same values; None is an absent value.
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

# The transformers class of each head, in the order of precedence.
_CLASSES = {
    "sequence_classification": "BertForSequenceClassification",
    "multilabel_classification": "BertForSequenceClassification",
    "regression": "BertForSequenceClassification",
    "token_classification": "BertForTokenClassification",
    "multiple_choice": "BertForMultipleChoice",
    "question_answering": "BertForQuestionAnswering",
    "mlm": "BertForMaskedLM",
    "nsp": "BertForNextSentencePrediction",
}
# The value of problem_type for the heads of BertForSequenceClassification.
_PROBLEM_TYPES = {
    "sequence_classification": "single_label_classification",
    "regression": "regression",
    "multilabel_classification": "multi_label_classification",
}


def read_config(path: epath.PathLike) -> ModelConfig:
    """Read the original's ``bert_config.json`` or a ``config.json`` of transformers.

    Keys that do not affect the encoder's arithmetic (``architectures``, token ids, ...) are ignored.

    Args:
      path: the file.

    Raises:
      UserError: the file is missing, is not JSON, belongs to another architecture or has an invalid value.
    """
    stored = read_json(path)
    model_type = stored.get("model_type", "bert")
    if model_type != "bert":
        raise UserError(f"{path} describes a {model_type!r} model; only BERT can be read.")
    for key in ("is_decoder", "add_cross_attention", "pruned_heads"):
        if stored.get(key):
            raise UserError(f"{path} has {key} {stored[key]}; only a complete BERT encoder can be read.")
    if "num_attention_heads" not in stored:
        # The only number that no tensor's shape contradicts.
        raise UserError(f"{path} has no num_attention_heads; complete it.")
    hints = {name: hint for name, hint in typing.get_type_hints(ModelConfig).items() if name not in _NOT_IN_FILE}
    fields = {key: value for key, value in stored.items() if key in hints}
    for key, aliases in _ALIASES.items():
        value, choices = fields.get(key), typing.get_args(hints[key])
        fields[key] = aliases.get(value, value) if value is None or isinstance(value, str) else value
        if fields[key] not in choices:
            raise UserError(f"{path} has {key} {value!r}, which is not supported; choose one of {', '.join(choices)}.")
    check_types(fields, hints, str(path))
    return ModelConfig(**fields)


def read(path: epath.Path) -> dict[str, np.ndarray]:
    """Read the tensors of a ``.safetensors``, ``.bin`` or ``.msgpack`` file, or of the parts that an ``.index.json`` lists.

    Raises:
      UserError: a file is missing or damaged, or is a pickle that would run code.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    contents.check(path, weights=not path.name.endswith(_INDEX))
    if not path.name.endswith(_INDEX):
        return _READERS.get(path.suffix, pickles.read)(path)
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{path} has no weight_map.")
    tensors: dict[str, np.ndarray] = {}
    for name in sorted(set(map(str, places.values()))):
        part = path.parent / name
        is_plain_name = part.name == name and not name.endswith(_INDEX)
        if not is_plain_name or not part.is_file():
            raise UserError(f"There is no file {part}, which {path.name} lists.")
        new_tensors = read(part)
        duplicates = sorted(set(tensors) & set(new_tensors))
        if duplicates:
            raise UserError(f"{part} and another part of {path.name} both contain {duplicates[0]}.")
        tensors |= new_tensors
    missing = sorted(set(places) - set(tensors))
    if missing:
        raise UserError(f"{path} lists {len(missing)} tensors that its files do not contain, such as {missing[0]}.")
    return tensors


def write_safetensors(path: epath.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write tensors as one file, in the order and with the metadata that transformers expects."""
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    path.write_bytes(safetensors.numpy.save(contiguous, metadata={"format": "pt"}))


def write_msgpack(path: epath.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write the parameter tree of one of transformers' former Flax classes."""
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    path.write_bytes(flax.serialization.msgpack_serialize(flax.traverse_util.unflatten_dict(contiguous, sep="/")))


def describe(config: ModelConfig, heads: Mapping[str, int], labels: tuple[str, ...]) -> dict[str, Any]:
    """Return the content of ``config.json``, which is also a valid ``bert_config.json``.

    Args:
      config: the model.
      heads: number of outputs of each head.
      labels: names of a classifier's outputs; LABEL_0, LABEL_1, ... if empty.
    """
    fields = {key: value for key, value in dataclasses.asdict(config).items() if key not in _NOT_IN_FILE}
    head = next((head for head in _CLASSES if head in heads), "")
    architecture = "BertForPreTraining" if head == "mlm" and "nsp" in heads else _CLASSES.get(head, "BertModel")
    description = {
        **fields,
        "architectures": [architecture],
        "model_type": "bert",
        "hidden_act": {"gelu_tanh": "gelu_new"}.get(config.hidden_act, config.hidden_act),
        "position_embedding_type": "absolute",
    }
    # transformers takes one output for a regression and several for classes, unless it is told.
    if head in _PROBLEM_TYPES and (head != "sequence_classification" or heads[head] == 1):
        description["problem_type"] = _PROBLEM_TYPES[head]
    if head in LABELLED_HEADS:
        names = labels or tuple(f"LABEL_{index}" for index in range(heads[head]))
        description |= {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    return description


def classes(heads: Collection[str]) -> dict[str, str]:
    """Return the class of transformers that computes each of a model's heads; ``config.json`` has labels of one classifier only."""
    first = next((head for head in _CLASSES if head in heads), "")
    return {head: name for head, name in _CLASSES.items() if head in heads and head in (first, "mlm", "nsp")}


def classifier(description: Mapping[str, Any], outputs: int, head: str | None, path: Any) -> str | None:
    """Return the head that "classifier" is in a model; None if it is unknown.

    Args:
      description: content of ``config.json``.
      outputs: number of outputs.
      head: the head that the user names.
      path: the file, for error messages.

    Raises:
      UserError: the user names another head than the description.
    """
    architectures = description.get("architectures")
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else str(architectures)
    problem_type = description.get("problem_type")
    described = next((name for name in ("token_classification", "multiple_choice") if architecture.endswith(_CLASSES[name])), None)
    described = described or next((name for name, value in _PROBLEM_TYPES.items() if value == problem_type), None)
    if described is None and problem_type is None and architecture.endswith(_CLASSES["sequence_classification"]):
        if head in (None, *_PROBLEM_TYPES):
            return head or ("regression" if outputs == 1 else "sequence_classification")
        described = "sequence_classification"
    if head and described and head != described:
        raise UserError(
            f"The config of {path} says that its classifier is a {described} head, not {head}; choose that, or correct its "
            "architectures and problem_type."
        )
    return described or head


def labels(description: Mapping[str, Any], outputs: int, path: epath.Path) -> tuple[str, ...]:
    """Return the names of a classifier's outputs in a ``config.json``, empty if it has none.

    Args:
      description: content of the file.
      outputs: number of outputs.
      path: the file, for error messages.

    Raises:
      UserError: the number of names differs from the number of outputs.
    """
    names = description.get("id2label")
    if names is None:
        return ()
    if not isinstance(names, dict):
        raise UserError(f"{path} has id2label {str(names)[:60]}; it must map the numbers of outputs to names.")
    if set(names) != {str(index) for index in range(outputs)}:
        raise UserError(
            f"{path} has {len(names)} labels in id2label, but the model's classifier has {outputs} outputs; correct id2label."
        )
    return tuple(str(names[str(index)]) for index in range(outputs))


def _read_safetensors(path: epath.Path) -> dict[str, np.ndarray]:
    try:
        tensors = dict(safetensors.deserialize(path.read_bytes()))
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}.") from None
    unsupported = sorted(name for name, tensor in tensors.items() if tensor["dtype"] not in _DTYPES)
    if unsupported:
        raise UserError(
            f"{path}: {unsupported[0]} has dtype {tensors[unsupported[0]]['dtype']}, which is not supported; "
            f"convert it to one of {', '.join(_DTYPES)}."
        )
    return {
        name: np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]]).reshape(tensor["shape"]) for name, tensor in tensors.items()
    }


def _read_msgpack(path: epath.Path) -> dict[str, np.ndarray]:
    try:
        tree = flax.serialization.msgpack_restore(path.read_bytes())
        tensors = flax.traverse_util.flatten_dict(tree.get("params", tree), sep="/")
    except Exception as error:  # A damaged file yields a damaged tree, on which any exception can be raised.
        raise UserError(f"{path} is not a whole Flax parameter file ({type(error).__name__}: {error}).") from None
    if not all(isinstance(value, np.ndarray) for value in tensors.values()):
        raise UserError(f"{path} contains values that are not arrays; a Flax parameter file has arrays only.")
    return tensors


_READERS: dict[str, Callable[[epath.Path], dict[str, np.ndarray]]] = {
    ".safetensors": _read_safetensors,
    ".msgpack": _read_msgpack,
}
