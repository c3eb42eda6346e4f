"""Checkpoints: device state, data position, config and tokenizer, written by Orbax in the background.

Orbax commits a step atomically, but does not notice flipped bits in array data when it reads them. Each checkpoint
therefore carries a checksum of every array, computed on the devices that hold it, and is verified when it is read;
a damaged step is set aside and the one before it is used.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import json
import logging
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath
from jaxtyping import Array, UInt32

from bert_jax import tokenizers
from bert_jax.config.run import ModelConfig
from bert_jax.config.validation import build
from bert_jax.errors import Failure
from bert_jax.models.encoder import Params
from bert_jax.models.heads import PRETRAINING, heads_of, init_params
from bert_jax.tokenizers import Tokenizer

DIRECTORY = "checkpoints"
BEST = "best"
"""Directory of the best model so far, in a run that looks for one."""
_STATE, _META = "state", "meta"
_PARAMS = "params"

T = TypeVar("T")


class Meta(NamedTuple):
    """What a checkpoint holds beside the arrays."""

    config: dict[str, Any]
    """The run's config, as JSON."""
    model: ModelConfig
    tokenizer: Tokenizer
    corpus: str
    """Digest of the data that ``data`` is a position in."""
    data: dict[str, Any]
    """State of the data iterator: the next batch to come."""
    labels: tuple[str, ...] = ()
    """Names of a classifier's outputs."""


class Stored(NamedTuple):
    """A model that a checkpoint holds, with or without a run around it."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer | None
    labels: tuple[str, ...]


class Checkpoints:
    """The checkpoints of one run directory.

    Args:
      run: the run directory.
      keep: newest steps kept when another is saved; None to read only.
    """

    def __init__(self, run: epath.PathLike, *, keep: int | None = None) -> None:
        self.path = epath.Path(run).resolve() / DIRECTORY
        # Orbax logs every save, and every failure with its traceback; what users need to know is said by this package.
        absl_logging.set_verbosity(absl_logging.FATAL)
        # A save or a read that fails raises once for us and once more, as a traceback, for each of its other tasks.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        policy = ocp.checkpoint_managers.LatestN(keep) if keep else None
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            cleanup_tmp_directories=keep is not None,
            read_only=keep is None,
            enable_async_checkpointing=True,
        )
        handlers = {_STATE: ocp.PyTreeCheckpointHandler(), _META: ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(epath.Path(self.path), options=options, item_handlers=handlers)

    def save(self, step: int, state: Any, meta: Meta) -> None:
        """Write a checkpoint in the background; the state may be donated as soon as this returns.

        Raises:
          Failure: this save, or the one still in the background, could not be written (a full disk).
        """
        run = {"config": meta.config, "corpus": meta.corpus, "data": meta.data}
        # Several runs that are trained at a time are alike.
        params = (state[0] if isinstance(state, list) else state).params
        self._save(step, state, run | _described(meta.model, params, meta.tokenizer, meta.labels))

    def save_model(
        self, config: ModelConfig, params: Params, tokenizer: Tokenizer | None, labels: tuple[str, ...], *, step: int = 0
    ) -> None:
        """Write a model without a run's state; raises as :meth:`save` does."""
        self._save(step, {_PARAMS: jax.tree.map(jnp.asarray, params)}, _described(config, params, tokenizer, labels))

    def _save(self, step: int, state: Any, content: dict[str, Any]) -> None:
        content = {**content, "checksums": checksums(state)}
        item = {"content": content, "digest": _digest(content)}
        try:
            self._manager.save(
                step, args=ocp.args.Composite(**{_STATE: ocp.args.PyTreeSave(state), _META: ocp.args.JsonSave(item)})
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise self._not_written(step, error) from error

    def wait(self) -> None:
        """Return when everything saved is committed; raises as :meth:`save` does."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._not_written(None, error) from error

    def forget(self, after: int) -> None:
        """Delete the checkpoints of later steps."""
        for step in self._manager.all_steps():
            if step > after:
                self._manager.delete(step)

    def close(self) -> None:
        self._manager.close()

    def latest(self) -> int | None:
        """Newest committed step, or None."""
        return self._manager.latest_step()

    def restore(self, abstract: Any) -> tuple[Any, Meta] | None:
        """The newest checkpoint that is whole, or None where nothing was ever saved; damaged ones are set aside.

        Args:
          abstract: a tree of ``jax.ShapeDtypeStruct`` with shardings; any mesh may read what another wrote.

        Raises:
          Failure: there are checkpoints and all of them are damaged.
        """

        def read(step: int) -> tuple[Any, Meta]:
            content = self._read_content(step)
            model = build(ModelConfig, _model(content), "model")
            args = ocp.args.PyTreeRestore(abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract))
            state = self._manager.restore(step, args=ocp.args.Composite(**{_STATE: args}))[_STATE]
            _verify(checksums(state), content["checksums"])
            labels = tuple(content.get("labels", ()))
            return state, Meta(content["config"], model, _tokenizer(content), content["corpus"], content["data"], labels)

        return self._newest(read, set_aside=True)

    def restore_model(self) -> Stored | None:
        """The model alone of the newest checkpoint that is whole, on the default device; nothing is changed on disk.

        Raises:
          Failure: there are checkpoints and all of them are damaged.
        """

        def read(step: int) -> Stored:
            content = self._read_content(step)
            config = build(ModelConfig, _model(content), "model")
            heads, pooler = content.get("heads", PRETRAINING), content.get("pooler", True)
            place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            shapes = jax.eval_shape(lambda: {_PARAMS: init_params(config, jax.random.key(0), heads=heads, pooler=pooler)})
            tree = abstract(shapes, jax.tree.map(lambda _: place, shapes))
            args = ocp.args.PyTreeRestore(
                tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree), partial_restore=True
            )
            state = self._manager.restore(step, args=ocp.args.Composite(**{_STATE: args}))[_STATE]
            _verify(checksums(state), content["checksums"])
            tokenizer = _tokenizer(content) if content["tokenizer"] else None
            return Stored(config, state[_PARAMS], tokenizer, tuple(content.get("labels", ())))

        return self._newest(read, set_aside=False)

    def _newest(self, read: Callable[[int], T], *, set_aside: bool) -> T | None:
        steps = sorted(self._manager.all_steps(), reverse=True)
        damaged: list[tuple[int, str]] = []
        for step in steps:
            try:
                value = read(step)
            except Exception as error:  # Orbax and TensorStore raise whatever a damaged file leads them to.
                damaged.append((step, _first_line(error)))
                continue
            # Only now is it sure that reading works at all and the fault was the checkpoint's.
            for bad, why in damaged:
                print(f"bert-jax: checkpoint {self.path / str(bad)} is damaged ({why}); {step} is used.", file=sys.stderr)
                if set_aside:
                    self._set_aside(bad)
            return value
        if damaged:
            reasons = "; ".join(f"{step}: {why}" for step, why in damaged)
            raise Failure(f"No checkpoint in {self.path} can be read ({reasons}); nothing was changed there.")
        return None

    def _read_content(self, step: int) -> dict[str, Any]:
        """Everything of a checkpoint but its arrays."""
        item = self._manager.restore(step, args=ocp.args.Composite(**{_META: ocp.args.JsonRestore()}))[_META]
        content = item["content"]
        if _digest(content) != item["digest"]:
            raise ValueError("its description differs from its digest")
        return cast(dict[str, Any], content)

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            names = {path.name for path in self.path.iterdir()}
            free = next(name for name in (f"damaged-{step}{'-again' * n}" for n in itertools.count()) if name not in names)
            (self.path / str(step)).rename(self.path / free)
        self._manager.reload()

    def _not_written(self, step: int | None, error: Exception) -> Failure:
        what = "The last checkpoint" if step is None else f"Checkpoint {step}"
        last = self.latest()
        kept = f"step {last} is the newest whole one" if last is not None else "there is none yet"
        return Failure(f"{what} could not be written to {self.path} ({_first_line(error)}); {kept}.")


def _described(config: ModelConfig, params: Params, tokenizer: Tokenizer | None, labels: tuple[str, ...]) -> dict[str, Any]:
    """What makes a model of parameters."""
    return {
        "model": dataclasses.asdict(config),
        "tokenizer": {} if tokenizer is None else _packed(tokenizer),
        "labels": list(labels),
        "heads": heads_of(params),
        "pooler": "pooler" in params["bert"],
    }


def _model(content: dict[str, Any]) -> dict[str, Any]:
    # Runs of version 0.1 said it in their config only.
    return cast(dict[str, Any], content["model"] if "model" in content else content["config"]["model"])


def _packed(tokenizer: Tokenizer) -> dict[str, str]:
    return {name: base64.b64encode(data).decode() for name, data in tokenizer.files.items()}


def _tokenizer(content: dict[str, Any]) -> Tokenizer:
    return tokenizers.from_files({name: base64.b64decode(data) for name, data in content["tokenizer"].items()})


def checksums(tree: Any) -> dict[str, int]:
    """A 32-bit checksum of each array of a tree, by its path, on whatever mesh the arrays live.

    Each word of the array is multiplied by an odd number of its own and summed modulo 2**32: any single flipped
    bit changes the sum.
    """
    found: dict[str, int] = {}
    # A program computes with arrays that live on the same devices.
    for alike in _by_devices(jax.tree_util.tree_leaves_with_path(tree)):
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in alike]
        found |= zip(names, map(int, jax.device_get(_checksum_all([leaf for _, leaf in alike]))), strict=True)
    return found


def _by_devices(leaves: list[tuple[jax.tree_util.KeyPath, Array]]) -> list[list[tuple[jax.tree_util.KeyPath, Array]]]:
    parts: dict[frozenset[jax.Device], list[tuple[jax.tree_util.KeyPath, Array]]] = {}
    for path, leaf in leaves:
        parts.setdefault(frozenset(leaf.sharding.device_set), []).append((path, leaf))
    return list(parts.values())


@jax.jit
def _checksum_all(leaves: list[Array]) -> list[UInt32[Array, ""]]:
    return [_checksum(leaf) for leaf in leaves]


def _checksum(leaf: Array) -> UInt32[Array, ""]:
    words = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")).astype(jnp.uint32)
    index = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(leaf.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    return jnp.sum(words * ((2 * index + 1) * jnp.uint32(0x9E3779B1)), dtype=jnp.uint32)


def _verify(found: dict[str, int], stored: dict[str, int]) -> None:
    wrong = [name for name, value in found.items() if stored.get(name) != value]
    if wrong:
        raise ValueError(f"{len(wrong)} of {len(found)} arrays differ from their checksums, {wrong[0]} among them")


def abstract(shapes: Any, shardings: Any) -> Any:
    """Shapes with shardings, as :meth:`Checkpoints.restore` takes them."""
    return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _first_line(error: Exception) -> str:
    if "No space left on device" in str(error):
        return "the disk is full"
    return (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0][:200]
