"""Files of sentence-transformers: how the vectors of its models are computed, read and written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
import safetensors.numpy

from bert_jax.config.validation import check_types
from bert_jax.errors import UserError
from bert_jax.io.parsing import parse_json, parse_object
from bert_jax.models.sentence_embedding import ACTIVATIONS, Dense, Layer, LayerNorm, Normalize, Pooling, SentenceEmbedding

MODULES, SETTINGS, LENGTH = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"
"""Files of a sentence-transformers directory: its modules, prompts, and the length and case of texts."""
CONFIG, WEIGHTS = "config.json", "model.safetensors"
"""Files of one module."""
_PREFIX = "sentence_transformers."
# Booleans of older files -> names, in the order in which several are concatenated.
_BOOLEANS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def export(embedding: SentenceEmbedding, width: int) -> dict[str, bytes]:
    """Files that sentence-transformers reads, by their paths beside the model's own.

    Args:
      embedding: what they describe.
      width: hidden size of the model.
    """
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"{_PREFIX}models.Transformer"}]
    files = {LENGTH: _json({"max_seq_length": embedding.sequence_length, "do_lower_case": False})}
    settings = {
        "prompts": dict(embedding.prompts),
        "default_prompt_name": embedding.default_prompt,
        "similarity_fn_name": embedding.similarity,
    }
    files[SETTINGS] = _json(settings)
    for index, (kind, config, tensors) in enumerate([_pooling_module(embedding, width), *map(_module, embedding.layers)], 1):
        path = f"{index}_{kind}"
        modules.append({"idx": index, "name": str(index), "path": path, "type": f"{_PREFIX}models.{kind}"})
        files[f"{path}/{CONFIG}"] = _json(config)
        if tensors:
            files[f"{path}/{WEIGHTS}"] = safetensors.numpy.save(tensors, {"format": "pt"})
    return {MODULES: _json(modules)} | files


def _pooling_module(embedding: SentenceEmbedding, width: int) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
    config: dict[str, Any] = {"word_embedding_dimension": width, "include_prompt": embedding.include_prompt}
    chosen = tuple(mode for mode in _BOOLEANS.values() if mode in embedding.pooling)
    if chosen == embedding.pooling:
        # The form that every version of sentence-transformers reads.
        return "Pooling", config | {key: mode in chosen for key, mode in _BOOLEANS.items()}, {}
    return "Pooling", config | {"pooling_mode": list(embedding.pooling)}, {}


def parse(files: Mapping[str, bytes]) -> SentenceEmbedding:
    """Read the files of sentence-transformers: the inverse of ``export``.

    Args:
      files: contents by path, relative to the directory of ``modules.json``; those of the transformer itself are not needed.

    Raises:
      UserError: a file is missing or damaged, or a module is one that this package cannot compute.
    """
    transformer, *rest = list_modules(files[MODULES])
    options = _read_length(files.get(f"{transformer.path}{LENGTH}"))
    settings = parse_object(files[SETTINGS], SETTINGS) if SETTINGS in files else {}
    if settings.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        raise UserError(f"{SETTINGS} describes a {settings['model_type']}, which gives no sentence embeddings.")
    prompts, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise UserError(f"{SETTINGS}.prompts is not an object of strings.")
    if default is not None and default not in [*prompts]:
        raise UserError(f"{SETTINGS}.default_prompt_name is {default!r}, which is not among its prompts.")
    pooling, layers = None, list[Layer]()
    for module in rest:
        where = f"{module.path}{CONFIG}"
        config = parse_object(files[where], where) if where in files else {}
        for key in ("module_input_name", "module_output_name"):
            if config.get(key) not in (None, "sentence_embedding"):
                raise UserError(f"{where} has {key} {config[key]!r}; only sentence_embedding can be computed.")
        if module.kind == "Pooling" and pooling is None:
            pooling = _read_pooling(config, where)
        elif module.kind in _READERS and pooling is not None:
            layers += _READERS[module.kind](config, _load(files.get(f"{module.path}{WEIGHTS}"), module), where)
        else:
            raise UserError(f"{MODULES} has the module {module.type}, which cannot be computed here.")
    if pooling is None:
        raise UserError(f"{MODULES} has no Pooling module.")
    return SentenceEmbedding(
        pooling[0],
        tuple(layers),
        options,
        {name: text or "" for name, text in prompts.items()},
        default,
        pooling[1],
        settings.get("similarity_fn_name"),
    )


class Module(NamedTuple):
    """An entry of ``modules.json``."""

    type: str
    """Name of its class."""
    kind: str
    """Last part of the name of a class of sentence-transformers, empty for other classes."""
    path: str
    """Directory relative to that of ``modules.json``, empty or with a slash at its end."""


def list_modules(content: bytes) -> list[Module]:
    """Read ``modules.json``.

    Raises:
      UserError: it is no list of modules that starts with a transformer, or a path lies outside of the directory.
    """
    stored = parse_json(content, MODULES)
    if not isinstance(stored, list) or not stored or not all(isinstance(entry, dict) for entry in stored):
        raise UserError(f"{MODULES} is not a list of modules.")
    modules = []
    for entry in stored:
        name, path = entry.get("type"), entry.get("path")
        if not isinstance(name, str) or not isinstance(path, str):
            raise UserError(f"{MODULES} has a module without type or path.")
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in parts or path.startswith("/") or "\\" in path:
            raise UserError(f"{MODULES} has the path {path!r}, which lies outside of the directory.")
        kind = name.rpartition(".")[2] if name.startswith(_PREFIX) else ""
        modules.append(Module(name, kind, "".join(f"{part}/" for part in parts)))
    if modules[0].kind not in ("Transformer", "BERT"):
        raise UserError(f"{MODULES} starts with the module {modules[0].type}; only a Transformer can be read.")
    return modules


def _read_length(content: bytes | None) -> int | None:
    config = parse_object(content, LENGTH) if content is not None else {}
    length = config.get("max_seq_length")
    if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
        raise UserError(f"{LENGTH}.max_seq_length is {length!r}; it must be a number of tokens.")
    if (task := config.get("transformer_task")) not in (None, "feature-extraction"):
        raise UserError(f"{LENGTH}.transformer_task is {task!r}; only feature-extraction can be computed.")
    for key in ("tokenizer_args", "processor_kwargs", "processing_kwargs", "query_length", "document_length", "query_expansion"):
        if config.get(key):
            raise UserError(f"{LENGTH} has {key} {json.dumps(config[key])[:60]}, which cannot be followed here.")
    return length


def _read_pooling(config: Mapping[str, Any], where: str) -> tuple[tuple[Pooling, ...], bool]:
    """Poolings, and whether they include the prompt."""
    check_types({key: value for key, value in config.items() if key in _BOOLEANS}, dict.fromkeys(_BOOLEANS, bool), where)
    stored = config.get("pooling_mode")
    if stored is None:
        modes: Sequence[Any] = [mode for key, mode in _BOOLEANS.items() if config.get(key)] or ["mean"]
    else:
        modes = [stored] if isinstance(stored, str) else stored
    include_prompt = config.get("include_prompt", True)
    if not isinstance(modes, list) or not modes or not all(mode in get_args(Pooling) for mode in modes):
        raise UserError(f"{where} has pooling_mode {json.dumps(stored)}; choose from {', '.join(get_args(Pooling))}.")
    if not isinstance(include_prompt, bool):
        raise UserError(f"{where} has include_prompt {json.dumps(include_prompt)}; it must be true or false.")
    return tuple(modes), include_prompt


def _read_dense(config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], where: str) -> list[Layer]:
    name = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    activation = str(name).removeprefix("torch.nn.modules.")
    if activation not in ACTIVATIONS:
        raise UserError(f"{where} has activation_function {name!r}, which cannot be computed here.")
    weight = _matrix(tensors, "linear.weight", where)
    sizes = config.get("out_features"), config.get("in_features")
    if sizes != weight.shape:
        raise UserError(f"{where} has out_features and in_features {sizes}, but linear.weight has shape {weight.shape}.")
    bias = tensors.get("linear.bias", np.zeros(len(weight), np.float32))
    if bias.shape != weight.shape[:1]:
        raise UserError(f"{where}: linear.bias has shape {bias.shape}, but linear.weight has shape {weight.shape}.")
    residual = None
    if config.get("use_residual"):
        is_square = weight.shape[0] == weight.shape[1]
        residual = np.eye(len(weight), dtype=np.float32) if is_square else _matrix(tensors, "residual.weight", where).T
    return [Dense(weight.T, bias, activation, residual)]


def _read_layer_norm(config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], where: str) -> list[Layer]:
    if not {"norm.weight", "norm.bias"} <= set(tensors):
        raise UserError(f"The weights beside {where} lack norm.weight or norm.bias.")
    return [LayerNorm(tensors["norm.weight"], tensors["norm.bias"])]


_READERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, np.ndarray], str], list[Layer]]] = {
    "Dense": _read_dense,
    "LayerNorm": _read_layer_norm,
    "Normalize": lambda *_: [Normalize()],
    # It does nothing after training.
    "Dropout": lambda *_: [],
}


def _load(content: bytes | None, module: Module) -> dict[str, np.ndarray]:
    try:
        tensors = safetensors.numpy.load(content) if content is not None else {}
    except (ValueError, KeyError, safetensors.SafetensorError) as error:
        raise UserError(f"{module.path}{WEIGHTS} is not a safetensors file: {error}.") from None
    return {name: np.asarray(value, np.float32) for name, value in tensors.items()}


def _matrix(tensors: Mapping[str, np.ndarray], name: str, where: str) -> np.ndarray:
    if name not in tensors or tensors[name].ndim != 2:
        raise UserError(f"The weights beside {where} have no matrix {name}.")
    return tensors[name]


def _module(layer: Layer) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
    """Class, config and tensors of a layer in sentence-transformers."""
    match layer:
        case Normalize():
            return "Normalize", {}, {}
        case LayerNorm():
            return "LayerNorm", {"dimension": len(layer.scale)}, {"norm.weight": layer.scale, "norm.bias": layer.bias}
        case Dense():
            config = {
                "in_features": layer.kernel.shape[0],
                "out_features": layer.kernel.shape[1],
                "bias": True,
                "activation_function": f"torch.nn.modules.{layer.activation}",
            }
            tensors = {"linear.weight": np.ascontiguousarray(layer.kernel.T), "linear.bias": layer.bias}
            if layer.residual is not None:
                config["use_residual"] = True
                if layer.kernel.shape[0] != layer.kernel.shape[1]:
                    tensors["residual.weight"] = np.ascontiguousarray(layer.residual.T)
            return "Dense", config, tensors


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
