"""Eight CPU devices for every test, and small things that many tests need."""

from __future__ import annotations

import atexit
import dataclasses
import itertools
import os
import pathlib
import random
import shutil
import tempfile

# Temporary files of tests, their processes, and libraries (TFDS leaves an empty directory for each builder) are removed at the
# end; pytest keeps its own `tmp_path` of the last three runs.
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
SCRATCH = tempfile.mkdtemp(prefix="bert-jax-tests-")
# Before multiprocessing is imported, whose own temporary directory lies in it and is removed first.
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)
os.environ["TMPDIR"] = tempfile.tempdir = SCRATCH
# Programs that tests share, also in processes of their own, are compiled once; but not by two workers at a time, which
# might read what the other has half written.
os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{SCRATCH}/programs"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Eight devices share whatever cores there are; where one has to wait for 40 s, because the machine was paused, say, XLA ends
# the process.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_collective_call_terminate_timeout_seconds=600".strip()

import jax

jax.config.update("jax_num_cpu_devices", 8)

import hypothesis
import numpy as np
import pytest

import bert_jax
import bert_jax.data.building
import bert_jax.data.readers
from bert_jax import tokenizers
from bert_jax.data import corpus as corpora
from bert_jax.masking import TokenWeights

# The same examples each time, however slow the machine: a check that fails for one person fails for all.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.load_profile("same")

VOCAB = 97
MASK_ID = 4
MODEL = bert_jax.ModelConfig(
    vocab_size=VOCAB,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=64,
    layers="scan",
)
POLICY = bert_jax.ResolvedMaskPolicy(bert_jax.MaskPolicy(), mask_id=MASK_ID, vocab_size=VOCAB)


def with_policy(resolved: bert_jax.ResolvedMaskPolicy, **changes) -> bert_jax.ResolvedMaskPolicy:
    """A resolved policy with fields of either dataclass changed; a function of weights needs no identity here."""
    outer = {name: changes.pop(name) for name in ("mask_id", "vocab_size", "ordinary_ids") if name in changes}
    policy = dataclasses.replace(resolved.policy, **changes)
    weights = policy.token_weights
    if callable(weights) and not isinstance(weights, TokenWeights):
        weights = TokenWeights(repr(weights), weights)
    return dataclasses.replace(resolved, policy=policy, steps=policy.steps, token_weights=weights, **outer)


def make_batch(lengths: list[list[int]], width: int, *, seed: int = 0, first_example: int = 100) -> dict[str, np.ndarray]:
    """Rows of packed examples with the given lengths: [CLS] words [SEP] words [SEP], two tokens to most words."""
    rng = np.random.default_rng(seed)
    rows, most = len(lengths), max(map(len, lengths))
    names = ("input_ids", "token_type_ids", "position_ids", "segment_ids")
    batch = {name: np.zeros((rows, width), np.int32) for name in names}
    batch["word_ids"] = np.full((rows, width), -1, np.int32)
    for name in ("example_ids", "cls_positions", "nsp_labels"):
        batch[name] = np.zeros((rows, most), np.int32)
    batch["nsp_weights"] = np.zeros((rows, most), np.float32)
    numbers = itertools.count(first_example)
    for row, parts in enumerate(lengths):
        start = 0
        for slot, length in enumerate(parts):
            place, middle = slice(start, start + length), 1 + (length - 2) // 2
            ids, words = rng.integers(5, VOCAB, length), np.arange(length) // 2
            ids[[0, middle, -1]] = 2, 3, 3
            words[[0, middle, -1]] = -1
            batch["input_ids"][row, place] = ids
            batch["token_type_ids"][row, place] = np.arange(length) > middle
            batch["position_ids"][row, place] = np.arange(length)
            batch["segment_ids"][row, place] = slot + 1
            batch["word_ids"][row, place] = words
            batch["example_ids"][row, slot] = next(numbers)
            batch["cls_positions"][row, slot] = start
            batch["nsp_labels"][row, slot] = rng.integers(2)
            batch["nsp_weights"][row, slot] = 1
            start += length
    return batch


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_module():
    """Let go of compiled programs: a worker that keeps them all runs into the system's limit on memory mappings, and dies."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def params() -> dict:
    """Parameters of MODEL, large enough that every part of the network matters."""
    config = dataclasses.replace(MODEL, initializer_range=0.3)
    return jax.jit(lambda: bert_jax.models.heads.init_params(config, jax.random.key(7)))()


def files_below(path) -> dict[str, bytes]:
    """Relative path -> content of every file below a directory, which need not exist."""
    path = pathlib.Path(path)
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def write_text(path, *, documents: int = 80, seed: int = 0) -> None:
    """Made-up documents in which word order can be learned: each sentence counts on from a random word."""
    rng = random.Random(seed)
    words = [
        "alpha",
        "bravo",
        "charlie",
        "delta",
        "echo",
        "foxtrot",
        "golf",
        "hotel",
        "india",
        "juliett",
        "kilo",
        "lima",
    ]
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(documents):
            for _ in range(rng.randint(2, 6)):
                start = rng.randrange(len(words))
                file.write(" ".join(words[(start + i) % len(words)] for i in range(rng.randint(3, 12))) + ".\n")
            file.write("\n")


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "made-up.txt"
    write_text(path)
    return path


@pytest.fixture(scope="session")
def tokenizer(text) -> tokenizers.Tokenizer:
    return tokenizers.train(lambda: text.read_text().splitlines(), kind="wordpiece", size=VOCAB)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, text, tokenizer) -> corpora.Corpus:
    path = tmp_path_factory.mktemp("corpus") / "corpus"
    bert_jax.data.building.write_corpus(bert_jax.data.readers.read_documents([text]), path, tokenizer, held_out=0.1)
    return corpora.open_corpus(path)


@pytest.fixture
def run_config(corpus, tmp_path) -> bert_jax.Config:
    """A run that takes a second or two."""
    return bert_jax.Config(
        run=str(tmp_path / "run"),
        data=bert_jax.DataConfig(str(corpus.path), sequence_length=32, batch_size=16),
        model=dataclasses.replace(MODEL, vocab_size=len(corpus.tokenizer.tokens)),
        optim=bert_jax.OptimConfig(peak_lr=1e-3, warmup_steps=2),
        train=bert_jax.TrainConfig(steps=8, eval_every=4, save_every=3, log_every=1, keep=2),
    )


@pytest.fixture(scope="session")
def init(tmp_path_factory, tokenizer) -> str:
    """A pretrained model from which fine-tuning starts."""
    from tests.runs import save_model

    return save_model(tmp_path_factory.mktemp("init") / "model", tokenizer)


@pytest.fixture(scope="module")
def unoptimized():
    """Compile quickly in the whole module, also in its processes; what is compared there is compiled alike, or has a tolerance."""
    from tests.runs import quickly_compiled

    with quickly_compiled(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield


@pytest.fixture
def quick():
    """Compile quickly, and run on one device."""
    from tests.runs import quickly

    with quickly():
        yield
