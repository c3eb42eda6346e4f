"""Damaged model directories: each ends in one sentence, gives the same outputs, or is warned of; none is read in half."""

from __future__ import annotations

import collections
import json
import pathlib
import random
import shutil
import warnings

import jax
import numpy as np
import pytest
import safetensors.torch
import torch

import bert_jax
from bert_jax import tokenizers
from bert_jax.errors import BertWarning, RunError, UserError
from bert_jax.models import init_params
from bert_jax.models.sentence_embedding import Dense, Normalize, SentenceEmbedding

WORDS = ["the capital of France is Paris", "a naïve café is here", "how many tokens"]
TEXTS = ["the Capital of France", "naïve [MASK]", ""]
IDS = np.arange(12).reshape(2, 6)
KINDS = ("hf", "google", "flax", "orbax", "bin", "sharded")
# Settings that sentence-transformers does not need, and the report that nothing reads.
OPTIONAL = ("config_sentence_transformers.json", "conversion.json")
WRONG = (-1, 2**70, "x", True, [], {}, [1], {"a": 1}, 1.5, [[]])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model in every kind of directory, and its outputs."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = tokenizers.train(lambda: WORDS * 20, kind="wordpiece", size=60)
    shape = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, max_position_embeddings=32)
    config = bert_jax.ModelConfig(vocab_size=len(tokenizer.tokens), **shape)
    kernel = np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)
    layers = (Dense(kernel, np.zeros(8, np.float32), "activation.Tanh"), Normalize())
    embedding = SentenceEmbedding(("mean", "cls"), layers, 16, {"query": "the "}, "query")
    bert = bert_jax.Bert(config, init_params(config, jax.random.key(0)), tokenizer, embedding=embedding)
    for to in KINDS[:4]:
        bert_jax.save(bert, root / to, to=to)
    tensors = safetensors.torch.load_file(root / "hf" / "model.safetensors")
    for kind in KINDS[4:]:
        shutil.copytree(root / "hf", root / kind)
        (root / kind / "model.safetensors").unlink()
    torch.save(tensors, root / "bin" / "pytorch_model.bin")
    names = sorted(tensors)
    places = {name: f"model-0000{1 + (index % 2)}-of-00002.safetensors" for index, name in enumerate(names)}
    for part in set(places.values()):
        chosen = {name: tensors[name] for name in names if places[name] == part}
        safetensors.torch.save_file(chosen, root / "sharded" / part, {"format": "pt"})
    (root / "sharded" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return {kind: (root / kind, outputs(root / kind)[0]) for kind in KINDS}


def outputs(path):
    """What a directory gives, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", BertWarning)
        bert = bert_jax.load(path)
        values = [
            np.asarray(bert.encode({"input_ids": IDS}).hidden).tobytes(),
            bert.embed(TEXTS).tobytes(),
            [row.ids.tolist() for row in bert.tokenizer.encode(TEXTS)],
            bert.fill_mask("the [MASK] of", top_k=3),
        ]
    return values, [str(warning.message) for warning in caught]


def damage(rng, directory):
    """Damage one file, or exchange two, and say what was done."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name not in OPTIONAL]
    path, other = rng.choice(files), rng.choice(files)
    content = path.read_bytes()
    kind = rng.choice(
        ["missing", "swapped", "truncated", "empty", "renamed", "doubled", "bytes", "pointer", "type", "type", "type"]
    )
    match kind:
        case "missing":
            path.unlink()
        case "swapped":
            path.write_bytes(other.read_bytes())
            other.write_bytes(content)
            return f"{path} and {other} swapped"
        case "truncated":
            path.write_bytes(content[: rng.randrange(len(content))])
        case "empty":
            path.write_bytes(b"")
        case "renamed":
            path.rename(path.with_name(f"old_{path.name}"))
        case "doubled":
            path.write_bytes(content * 2)
        case "bytes":
            path.write_bytes(content[: len(content) // 2] + b"\xff\xfe\0" + content[len(content) // 2 :])
        case "pointer":
            path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n")
        case "type":
            path = rng.choice([file for file in files if file.suffix == ".json"] or [pathlib.Path()])
            if path.name:
                kind = _change_type(rng, path)
    return f"{path} {kind}"


def _change_type(rng, path):
    """Replace a value of a JSON file by one of another type."""
    stored = json.loads(path.read_text())
    parent, keys = {"": stored}, [""]
    while isinstance(parent[keys[-1]], dict | list) and parent[keys[-1]] and rng.random() < 0.7:
        parent = parent[keys[-1]]
        keys.append(rng.choice([*parent] if isinstance(parent, dict) else range(len(parent))))
    value = rng.choice([value for value in WRONG if type(value) is not type(parent[keys[-1]])])
    if len(keys) > 1:
        parent[keys[-1]] = value
    path.write_text(json.dumps(stored if len(keys) > 1 else value))
    return f"{keys[1:]} = {value}"


def check(models, tmp_path, seeds):
    """Damage a directory for each seed, and count how it ends."""
    counts = collections.Counter()
    for seed in seeds:
        rng = random.Random(seed)
        source, expected = models[rng.choice(KINDS)]
        directory = tmp_path / "damaged"
        shutil.copytree(source, directory)
        done = f"{seed}: {damage(rng, directory)}"
        refusal = ""
        try:
            values, sentences = outputs(directory)
        except (UserError, RunError) as error:
            refusal = str(error)
        if refusal:
            assert "\n" not in refusal, done
            assert len(refusal) < 600, (done, refusal)
            counts["refused"] += 1
        else:
            assert values == expected or sentences, done
            counts["equal" if values == expected else "warned"] += 1
        shutil.rmtree(directory)
    return counts


def test_damaged_directories(models, tmp_path):
    counts = check(models, tmp_path, range(30))
    assert counts["refused"] > 10


@pytest.mark.slow
def test_hundreds_of_damaged_directories(models, tmp_path):
    counts = check(models, tmp_path, range(30, 630))
    print(dict(counts))
    assert counts["refused"] > 200
    assert counts["equal"] > 50
