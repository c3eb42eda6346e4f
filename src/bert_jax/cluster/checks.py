"""The checks of `bert-jax doctor`: each returns what is in order, and raises what is not."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import secrets
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from bert_jax import processes, tokenizers
from bert_jax.checkpoints import DIRECTORY, Checkpoints
from bert_jax.cluster import network
from bert_jax.cluster.compilation import resident_bytes, state_bytes
from bert_jax.config.run import Config
from bert_jax.data.records import Records
from bert_jax.data.sources import Documents, PretrainingData
from bert_jax.errors import BertWarning, UserError
from bert_jax.io import atomic, remote
from bert_jax.training import initialization, launchers, pretraining
from bert_jax.training.phases import digest, open_parts
from bert_jax.training.run_directory import OWNER, owned, require_fitting, require_shared

# Documents that are read from each split, spread over it.
_DOCUMENTS = 64
# Share of [UNK] above which a vocabulary hardly fits its text.
_UNKNOWN = 0.02
# Checkpoints that need space beside those that are kept: the one being written.
_WRITTEN = 1
_SLOW_WRITE = 1.0
_SLOW_SETTINGS = ("jax_debug_nans", "jax_debug_infs", "jax_check_tracer_leaks", "jax_enable_checks")


class Opened(NamedTuple):
    """A run and its data; no data if they could not be opened."""

    config: Config
    data: Any


Check = Callable[[Opened], str]


class Fault(Exception):
    """A check has found something that should be mended, and that a run would survive."""


def _data(opened: Opened) -> str:
    # What cannot be opened raises its sentence here.
    data = opened.data or pretraining.open_run(opened.config)[1]
    if isinstance(data, Records):
        return f"{len(data.train)} TFRecord files"
    assert isinstance(data, Documents)
    return f"{len(data.corpus.train.documents):,} documents, {len(data.corpus.held_out.documents):,} held out"


def _vocabulary(opened: Opened) -> str:
    config, tokenizer = opened.config, opened.data.tokenizer
    for sentence in tokenizer.warnings():
        warnings.warn(sentence, BertWarning, stacklevel=2)
    rows = config.model.vocab_size
    if rows > 2 * len(tokenizer.tokens):
        raise Fault(
            f"model.vocab_size is {rows:,}, but the vocabulary has {len(tokenizer.tokens):,} tokens; most rows of the word "
            f"embeddings are never used. Use --model.vocab-size {len(tokenizer.tokens)}."
        )
    return f"{len(tokenizer.tokens):,} tokens, {rows:,} rows, digest {tokenizers.digest(tokenizer)[:8]}"


def _initial_parameters(opened: Opened) -> str:
    source = initialization.read(opened.config, opened.data.tokenizer)
    return initialization.describe(opened.config, source).removeprefix("initial parameters: ")


def _settings(opened: Opened) -> str:
    train, data = opened.config.train, opened.config.data
    if train.eval_every > train.steps:
        raise Fault(
            f"train.eval_every is {train.eval_every:,}, but the run has {train.steps:,} steps; only the last one is evaluated."
        )
    if train.save_every > train.steps:
        raise Fault(
            f"train.save_every is {train.save_every:,}, but there are {train.steps:,} steps: a run that is killed starts "
            "again from the beginning; use less."
        )
    epochs = ""
    # A corpus of an earlier release does not know its words.
    with contextlib.suppress(UserError):
        epochs = f", {opened.data.rates(seed=train.seed).epochs * train.steps:,.2f} epochs"
    return f"{train.steps:,} steps of {data.batch_size} x {data.sequence_length} tokens{epochs}"


def _documents(opened: Opened) -> str:
    parts = open_parts(*opened)
    sentences = {part.config.data.corpus: _examples(part.config, part.data) for part in parts}
    return "; ".join(sentences.values())


def _examples(config: Config, data: PretrainingData) -> str:
    if isinstance(data, Records):
        batch = next(data.train_batches(seed=config.train.seed, rows=np.arange(config.data.batch_size)))
        _check_ids(int(batch["input_ids"].max()), config)
        return "the first batch can be read"
    assert isinstance(data, Documents)
    read = 0
    for split in (data.corpus.train, data.corpus.held_out):
        places = np.unique(np.linspace(0, max(len(split.documents) - 1, 0), min(_DOCUMENTS, len(split.documents))).astype(int))
        for document in split.documents.read(places.tolist()):
            _check_ids(int(document["tokens"].max(initial=0)), config)
            read += 1
    counts = data.corpus.train.counts
    unknown = counts[data.tokenizer.special_tokens.unk] / max(counts.sum(), 1)
    if unknown > _UNKNOWN:
        raise Fault(
            f"{unknown:.1%} of the tokens are [UNK]: the vocabulary is probably one of another casing or language. "
            f"`bert-jax inspect {config.data.corpus}` shows the words; prepare the corpus with a vocabulary that fits."
        )
    return f"{read} of them can be read; {unknown:.2%} [UNK]"


def _check_ids(largest: int, config: Config) -> None:
    if largest >= config.model.vocab_size:
        raise UserError(
            f"The corpus contains token id {largest}; model.vocab_size is {config.model.vocab_size}. Prepare the corpus again with "
            f"the vocabulary of the model, or use --model.vocab-size {largest + 1} or more."
        )


def _devices(opened: Opened) -> str:
    launchers.launch(opened.config)
    device = jax.devices()[0]
    if device.platform == "cpu" and (found := [*map(os.path.basename, glob.glob("/dev/nvidia[0-9]*") + glob.glob("/dev/accel*"))]):
        raise Fault(
            f"This machine has an accelerator ({', '.join(sorted(found))}), but JAX computes on the CPU; install jax[cuda13] or "
            "jax[tpu], and look at JAX_PLATFORMS."
        )
    return f"{jax.device_count()} of kind {device.device_kind}"


def _jax(opened: Opened) -> str:
    del opened
    values = jax.config.values
    if values["jax_enable_x64"]:
        raise UserError("JAX_ENABLE_X64 is set, with which JAX computes some arrays in float64; unset it.")
    if values["jax_disable_jit"]:
        raise UserError("JAX_DISABLE_JIT is set, with which nothing is compiled; unset it.")
    slow = [name for name in _SLOW_SETTINGS if values.get(name)]
    if slow:
        raise Fault(f"{', '.join(map(str.upper, slow))} is set, which makes every step slower; unset it for a long run.")
    return f"JAX {jax.__version__}"


def _memory(opened: Opened) -> str:
    needed, stats = resident_bytes(_on_mesh(opened.config)), jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit") or _host_memory() // jax.local_device_count()
    if needed > limit:
        raise UserError(
            f"Parameters and optimizer state take {needed / 1e9:,.1f} GB on each device, which has {limit / 1e9:,.1f} GB; use a "
            "larger --mesh.fsdp or more devices. `bert-jax plan` computes the rest."
        )
    return f"{needed / 1e9:,.2f} of {limit / 1e9:,.1f} GB on each device for parameters and optimizer state"


def _on_mesh(config: Config) -> Config:
    """The same run on a mesh, on which each device has the same parts of the state as under ``pmap``: all of them."""
    return dataclasses.replace(config, parallel="mesh")


def _host_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _run_directory(opened: Opened) -> str:
    path, group = remote.open_path(opened.config.run), processes.group()
    require_fitting(path, lambda stored: pretraining.changes(stored, opened.config))
    if group.index == 0 and path.exists():
        with owned(path, group):
            pass
    seconds = _write(path)
    if seconds > _SLOW_WRITE:
        raise Fault(f"A small file took {seconds:.1f} s to be written into {path}; metrics and checkpoints will be slow there.")
    return f"can be written, a small file in {seconds * 1e3:.1f} ms"


def _write(path: epath.Path) -> float:
    """Write and remove a file where the run will write, and return the seconds."""
    probe, began = path / f".doctor-{secrets.token_hex(4)}", time.perf_counter()
    with atomic.explained(path), _written(path):
        probe.write_text("written by bert-jax doctor")
        seconds = time.perf_counter() - began
        probe.unlink()
    return seconds


@contextlib.contextmanager
def _written(path: epath.Path) -> Iterator[None]:
    """A context in which a directory exists; it is removed again if it did not exist before."""
    missing = [] if remote.is_remote(path) else [parent for parent in (path, *path.parents) if not parent.exists()]
    if missing:
        path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if missing:
            (path / OWNER).unlink(missing_ok=True)
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()


def _disk(opened: Opened) -> str:
    config, path = opened.config, remote.open_path(opened.config.run)
    kept = config.train.keep + config.train.keep_best + len(config.train.save_at)
    if config.train.keep_every:
        kept += config.train.steps // config.train.keep_every
    needed = state_bytes(_on_mesh(config)) * (kept + _WRITTEN)
    if remote.is_remote(path):
        return f"{needed / 1e9:,.2f} GB for {kept} checkpoints; an object store has no known limit"
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(
            f"{kept} checkpoints and the one that is being written take {needed / 1e9:,.2f} GB, but the disk of {path} has "
            f"{free / 1e9:,.2f} GB left; free space there, keep fewer (--train.keep), or choose a directory on another disk."
        )
    return f"{needed / 1e9:,.2f} GB for {kept} checkpoints, {free / 1e9:,.1f} GB free"


def _checkpoint(opened: Opened) -> str:
    path = remote.open_path(opened.config.run)
    if not (path / DIRECTORY).exists():
        return "none yet"
    checkpoints = Checkpoints(path)
    try:
        step = checkpoints.latest()
        if step is None:
            return "none yet"
        # Several processes would have to read arrays together, and wait for one that cannot.
        problems = checkpoints.check(step, arrays=len(processes.group()) == 1)[1]
        corpus = None if problems else checkpoints.corpus(step)
    finally:
        checkpoints.close()
    if problems:
        raise UserError(
            f"Checkpoint {step} in {path} is damaged ({problems[0]}); the run will go on from an earlier one. "
            f"`bert-jax checkpoints {path} --verify` reads all of them; check the disk."
        )
    if corpus != digest(open_parts(*opened)):
        raise UserError(f"{path} was started with other data; restore its data, or choose another run directory.")
    return f"step {step} is whole"


def _hosts(opened: Opened) -> str:
    group, path = processes.group(), remote.open_path(opened.config.run)
    if len(group) == 1:
        return "one process"
    source = initialization.read(opened.config, opened.data.tokenizer)
    pretraining.require_agreement(opened.config, opened.data, source)
    with _written(path) if group.index == 0 else contextlib.nullcontext():
        require_shared(path, group)
    return f"{len(group)} processes agree on config, data, code, packages and devices, and see the same run directory"


def _network(opened: Opened) -> str:
    del opened
    if jax.device_count() == 1:
        return "one device"
    measured = network.time_all_reduce()
    speed = f"{measured.seconds * 1e3:,.1f} ms, {measured.rate / 1e9:,.2f} GB/s through each device"
    return f"{measured.size / 1e6:.0f} MB summed over {jax.device_count()} devices in {speed}"


CHECKS: tuple[Check, ...] = (
    _jax, _data, _vocabulary, _initial_parameters, _hosts, _settings, _documents, _devices, _memory, _run_directory, _disk,
    _checkpoint, _network,
)  # fmt: skip
"""The checks; each returns what is in order, and raises what is not."""
NEED_DATA = (_vocabulary, _initial_parameters, _settings, _documents, _checkpoint, _hosts)
