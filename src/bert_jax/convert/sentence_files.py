"""A sentence-transformers directory: a model, and files that say how its texts become vectors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import safetensors.numpy
from etils import epath

from bert_jax import tokenizers
from bert_jax.config.model import ModelConfig
from bert_jax.convert import contents, hf, pickles, tokenizer
from bert_jax.errors import UserError
from bert_jax.io import remote
from bert_jax.io.parsing import parse_object
from bert_jax.models import sentence_transformers
from bert_jax.models.sentence_embedding import SentenceEmbedding
from bert_jax.models.sentence_transformers import CONFIG, LENGTH, MODULES, SETTINGS, WEIGHTS, list_modules
from bert_jax.tokenizers import Tokenizer
from bert_jax.tokenizers.wordpiece import WordPiece

# Older names of the file with the length of texts.
_LENGTHS = (LENGTH, "sentence_roberta_config.json", "sentence_distilbert_config.json")


class SentenceFiles(NamedTuple):
    """Where the parts of a sentence-transformers directory are."""

    root: epath.Path
    """Directory of ``modules.json``."""
    transformer: epath.Path
    """Directory or file of the weights."""


def find(path: epath.PathLike) -> SentenceFiles | None:
    """Find ``modules.json`` in a directory of a model, or beside a file of weights, if it is there.

    Raises:
      UserError: it does not list modules that start with a transformer.
    """
    path = remote.open_path(path)
    root = path if path.is_dir() else path.parent
    if not (root / MODULES).is_file():
        return None
    try:
        below = list_modules(_read_bytes(root / MODULES))[0].path
    except UserError as error:
        raise UserError(f"{root}: {error}") from None
    return SentenceFiles(root, root / below if path.is_dir() else path)


def read(
    files: SentenceFiles, model_tokenizer: Tokenizer | None, config: ModelConfig
) -> tuple[Tokenizer | None, SentenceEmbedding]:
    """Read how texts become vectors.

    Args:
      files: the directory.
      model_tokenizer: tokenizer of its transformer.
      config: config of its transformer.

    Returns:
      The tokenizer, which lower-cases texts if the files say so, and how texts become vectors.

    Raises:
      UserError: a file is damaged, or describes what this package cannot compute.
    """
    stored = _contents(files.root)
    embedding = sentence_transformers.parse(stored)
    if embedding.sequence_length is None:
        embedding = dataclasses.replace(embedding, sequence_length=tokenizer.max_length(model_tokenizer, config))
    length_file = f"{list_modules(stored[MODULES])[0].path}{LENGTH}"
    options = parse_object(stored[length_file], LENGTH) if length_file in stored else {}
    if options.get("do_lower_case") and isinstance(model_tokenizer, WordPiece) and not model_tokenizer.settings.do_lower_case:
        changed = parse_object(model_tokenizer.files[tokenizers.CONFIG], tokenizers.CONFIG) | {
            "do_lower_case": True,
            "strip_accents": model_tokenizer.settings.strip_accents,
        }
        model_tokenizer = WordPiece({**model_tokenizer.files, tokenizers.CONFIG: json.dumps(changed, indent=2).encode()})
    return model_tokenizer, embedding


def write(embedding: SentenceEmbedding, directory: epath.Path, config: ModelConfig) -> None:
    """Write the files into the directory of a model."""
    for name, content in sentence_transformers.export(embedding, config.hidden_size).items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)


def _read_bytes(path: epath.Path) -> bytes:
    contents.check(path)
    return path.read_bytes()


def _contents(root: epath.Path) -> Mapping[str, bytes]:
    """Contents by path; weights in PyTorch's format are converted."""
    found = {name: _read_bytes(root / name) for name in (MODULES, SETTINGS) if (root / name).is_file()}
    transformer, *rest = list_modules(found[MODULES])
    for name in reversed(_LENGTHS):
        if (root / transformer.path / name).is_file():
            found[f"{transformer.path}{LENGTH}"] = _read_bytes(root / transformer.path / name)
    for module in rest:
        directory = root / module.path if module.path else root
        if module.path and (directory / CONFIG).is_file():
            found[f"{module.path}{CONFIG}"] = _read_bytes(directory / CONFIG)
        if module.path and (directory / WEIGHTS).is_file():
            found[f"{module.path}{WEIGHTS}"] = _read_bytes(directory / WEIGHTS)
        elif module.path and (directory / hf.PICKLE).is_file():
            tensors = {name: np.asarray(value, np.float32) for name, value in pickles.read(directory / hf.PICKLE).items()}
            found[f"{module.path}{WEIGHTS}"] = safetensors.numpy.save(tensors)
    if not any(module.kind == "Pooling" for module in rest):
        raise UserError(f"{MODULES} has no Pooling module.")
    return found
