"""Files beside the weights that change what a model gives elsewhere, and are not read."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from etils import epath

from bert_jax import tokenizers
from bert_jax.models import sentence_transformers

_ADAPTER_CONFIG = "adapter_config.json"
# Files that hold weights, code, vocabularies or settings.
_MEANINGFUL = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|pkl|pickle|joblib|json|model)|(modeling|tokenization)_.*\.py|merges\.txt"
)
# Of these, files that are read, that repeat the weights in another format, or that training and serving programs leave.
_HARMLESS = re.compile(
    r"(config|bert_config|conversion|generation_config|preprocessor_config|processor_config|data_config|quantize_config)\.json"
    r"|(tf_model|flax_model|pytorch_model|model|rust_model|openvino_.*|bert_model|.*-of-\d+)\..*"
    r"|(training_args|optimizer|scheduler|scaler|rng_state)(_\d+)?\.(bin|pt|pth)|global_step.*"
    r"|(trainer_state|dataset_infos?|.*(results|metrics|eval|report|log|history|card|stats)|wandb.*|package.*|\..*)\.json|\..*",
    re.IGNORECASE,
)
_SENTENCES = (sentence_transformers.MODULES, sentence_transformers.SETTINGS, sentence_transformers.LENGTH)


def find(directory: epath.Path, description: Mapping[str, Any], *, read: Collection[str], with_modules: bool) -> list[str]:
    """Return sentences on files beside the weights that change what the model gives elsewhere, and are not read.

    Args:
      directory: directory of the weights.
      description: content of its config.
      read: names of other files that were read.
      with_modules: whether the modules of sentence-transformers were read.
    """
    known = {*read, *tokenizers.FILES, *(_SENTENCES if with_modules else ())}
    files = sorted(path.name for path in directory.iterdir() if path.is_file())
    unread = [name for name in files if name not in known and _MEANINGFUL.fullmatch(name) and not _HARMLESS.fullmatch(name)]
    sentences = []
    if any(name.startswith("adapter_") for name in unread):
        unread = [name for name in unread if not name.startswith("adapter_")]
        path = directory / _ADAPTER_CONFIG
        sentences.append(
            f"{path} belongs to a PEFT adapter, which was not read; merge it into the model with merge_and_unload to use it."
        )
    if not with_modules:
        unread += sorted(path.parent.name for path in directory.glob("*_Pooling/config.json"))
    if unread:
        sentences.append(f"{directory} has files that are not read and may change what the model gives: {', '.join(unread)}.")
    if description.get("auto_map"):
        sentences.append(
            f"The config in {directory} names code of its own (auto_map), which is not run; the model is read as BERT."
        )
    return sentences
