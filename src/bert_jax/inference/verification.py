"""Comparison of a written model with the one in memory, by this package and by transformers."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import warnings
from typing import Any

import jax
import numpy as np
from etils import epath

from bert_jax import convert
from bert_jax.convert import hf
from bert_jax.data import windows
from bert_jax.data.windows import Text
from bert_jax.errors import BertWarning, RunError
from bert_jax.inference import compiled, transformers_reader
from bert_jax.inference.batching import cut_texts, to_device
from bert_jax.inference.bert import Bert
from bert_jax.models.heads import heads_of
from bert_jax.models.loaded import tokenizer_of

# Relative to the largest value of an output, or to 1. Correct files differ by rounding, some 1e-6.
_TOLERANCE = 1e-3
_PROBES: tuple[Text, ...] = (
    "Paris is the capital of France.",
    "x",
    "Élan vital, naïve cafés (42%) — 東京の天気\u00a0is\tfine!",
    ("How many tokens does a text have?", "It depends on the vocabulary, 1234567890."),
)


def compare(bert: Bert, directory: epath.Path, *, is_hf: bool) -> list[dict[str, Any]]:
    """Compare a written model with the one in memory.

    Args:
      bert: the model in memory, with a tokenizer.
      directory: the written model.
      is_hf: whether it is in the format of transformers, which then reads it too where it is installed.

    Returns:
      For each reader ``reader``, its name and version, and ``largest_differences``, the largest absolute difference of each output.

    Raises:
      RunError: an output is not finite, the ids of a text differ, or an output differs by more than rounding.
    """
    with warnings.catch_warnings():
        # The same warnings were shown when the model was loaded.
        warnings.simplefilter("ignore", BertWarning)
        written = Bert(**vars(convert.read(directory)))
    texts = probe_texts(bert)
    before, ids = probe(bert, texts), _ids(bert, texts)
    readers = [(f"bert_jax {importlib.metadata.version('bert_jax')}", probe(written, texts), _ids(written, texts))]
    if is_hf and all(map(importlib.util.find_spec, ("transformers", "torch"))):
        readers.append(_read_by_transformers(bert, directory, texts))
    for name, outputs, other_ids in readers:
        _check(name, texts, before, outputs, ids, other_ids)
    return [
        {
            "reader": name,
            "largest_differences": {key: float(np.abs(value - before[key]).max()) for key, value in outputs.items()},
        }
        for name, outputs, _ in readers
    ]


def probe_texts(bert: Bert) -> list[Text]:
    """Texts on which two readers of a model are compared; the last one has the model's special and added tokens."""
    settings = getattr(tokenizer_of(bert), "settings", None)
    added = [token.content for token in settings.added[:20]] if settings else []
    texts = [*_PROBES, f"a {' '.join(added)} b{''.join(added)}."]
    return [text for text in texts if isinstance(text, str) or bert.config.type_vocab_size > 1]


def probe(bert: Bert, texts: list[Text]) -> dict[str, np.ndarray]:
    """Every output of a model on a few texts: hidden states, pooled states, the logits of each head, and embeddings."""
    batch = _batch(bert, texts)
    # Others compute in float32, also where matrix products have fewer bits by default.
    with jax.default_matmul_precision("highest"):
        outputs = dict(jax.device_get(compiled.all_outputs(bert.config, bert.params, to_device(batch))))
        if bert.embedding is not None:
            outputs["embedding"] = bert.embed([text for text in texts if isinstance(text, str)])
    return {name: value[:, 0] if value.ndim == 3 and value.shape[1] == 1 else value for name, value in outputs.items()}


def _batch(bert: Bert, texts: list[Text]) -> dict[str, np.ndarray]:
    rows = cut_texts(bert, texts, "truncate", None)
    positions = bert.config.max_position_embeddings
    pad = tokenizer_of(bert).special_tokens.pad
    ((order, batch),) = windows.batches(rows, tokens=1 << 20, sequence_length=positions, pad=pad)
    back = np.argsort(order)
    return {name: value[: len(order)][back] for name, value in batch.items()}


def _ids(bert: Bert, texts: list[Text]) -> list[list[int]]:
    return [row.ids.tolist() for row in cut_texts(bert, texts, "truncate", None)]


def _check(
    reader: str,
    texts: list[Text],
    before: dict[str, np.ndarray],
    outputs: dict[str, np.ndarray],
    ids: list[list[int]],
    other_ids: list[list[int]],
) -> None:
    for text, expected, found in zip(texts, ids, other_ids, strict=True):
        if expected != found:
            raise RunError(f"Nothing was written: {reader} gives {text!r} the ids {found} instead of {expected}.")
    for name, value in outputs.items():
        difference = np.abs(value - before[name]).max()
        if not difference <= _TOLERANCE * max(1.0, np.abs(before[name]).max()):
            raise RunError(f"Nothing was written: {reader} computes {name} with a difference of {difference:.3g}.")


def _read_by_transformers(
    bert: Bert, directory: epath.Path, texts: list[Text]
) -> tuple[str, dict[str, np.ndarray], list[list[int]]]:
    """Name and version of the reader, its outputs and ids."""
    batch = _batch(bert, texts)
    request = {
        "directory": str(directory),
        "texts": texts,
        "max_length": bert.config.max_position_embeddings,
        "classes": hf.classes(heads_of(bert.params)),
        "has_pooler": "pooler" in bert.params["bert"],
        "embed": bert.embedding is not None and importlib.util.find_spec("sentence_transformers") is not None,
        "input_ids": batch["input_ids"].tolist(),
        "attention_mask": (batch["segment_ids"] > 0).astype(int).tolist(),
        "token_type_ids": batch["token_type_ids"].tolist(),
    }
    with tempfile.TemporaryDirectory() as scratch:
        (epath.Path(scratch) / "request.json").write_text(json.dumps(request))
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        child = subprocess.run(
            [sys.executable, transformers_reader.__file__, scratch], capture_output=True, text=True, env=environment, check=False
        )
        if child.returncode != 0:
            reason = (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
            raise RunError(f"Nothing was written: transformers cannot read it ({reason}).")
        ids = json.loads((epath.Path(scratch) / "ids.json").read_text())
        with np.load(f"{scratch}/outputs.npz") as stored:
            outputs = {name: stored[name] for name in stored.files}
    packages = ["transformers", "torch", *(["sentence-transformers"] if request["embed"] else [])]
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages), outputs, ids
