"""Checkpoints: device state, data position, config and tokenizer, written by Orbax in the background.

Orbax commits a step atomically, but does not detect flipped bits in array data. Each checkpoint therefore contains a checksum of
every array, computed on the devices that hold it, which is verified on reading. A damaged step is renamed, and the step before
it is used.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath

from bert_jax import tokenizers
from bert_jax.config import format
from bert_jax.config.model import ModelConfig
from bert_jax.config.validation import build
from bert_jax.errors import RunError, UserError
from bert_jax.io import checkpoint_manager, remote
from bert_jax.io.checksums import checksums
from bert_jax.models import sentence_transformers
from bert_jax.models.heads import PRETRAINING, heads_of, init_params
from bert_jax.models.loaded import LoadedModel
from bert_jax.tokenizers import Tokenizer

DIRECTORY = "checkpoints"
"""Directory of the checkpoints in a run directory."""
BEST = "best"
"""Directory of the best model in the run directory of a job that keeps one."""
_STATE, _META = "state", "meta"
_PARAMS = "params"
HEADS_OF_VERSION_1 = {
    "classify": "sequence_classification",
    "regress": "regression",
    "tag": "token_classification",
    "span": "question_answering",
    "choose": "multiple_choice",
}
"""Names of heads in format version 1 -> present names."""

T = TypeVar("T")


class Meta(NamedTuple):
    """The content of a checkpoint besides the arrays."""

    config: dict[str, Any]
    """The run's config, as JSON values."""
    model: ModelConfig
    tokenizer: Tokenizer
    corpus: str
    """Digest of the training data."""
    data: dict[str, Any]
    """State of the data iterator: the position of the next batch."""
    labels: tuple[str, ...] = ()
    """Names of a classifier's outputs."""
    heads: Mapping[str, int] = PRETRAINING
    """Name of each head -> number of its outputs."""
    pooler: bool = True
    """Whether the encoder has a pooler."""


class Checkpoints:
    """The checkpoints of one run directory.

    Args:
      run: the run directory.
      keep: number of newest steps that are kept when a step is saved; None: read only.
      forever: steps that are kept beside the newest ones.
    """

    def __init__(self, run: epath.PathLike, *, keep: int | None = None, forever: Sequence[int] = ()) -> None:
        self.path = remote.absolute(run) / DIRECTORY
        # Orbax logs every save, and every failure with a traceback; this package reports failures itself.
        absl_logging.set_verbosity(absl_logging.FATAL)
        # asyncio also logs a traceback for each task of a failed save or read.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        handlers = {_STATE: ocp.PyTreeCheckpointHandler(), _META: ocp.JsonCheckpointHandler()}
        self._manager = checkpoint_manager.open_manager(self.path, handlers, keep=keep, forever=forever)

    def save(self, step: int, state: Any, meta: Meta) -> None:
        """Write a checkpoint in the background; the state may be donated as soon as this returns.

        Args:
          step: number of the step.
          state: a tree of arrays, with the parameters under "params".
          meta: everything else.

        Raises:
          RunError: this checkpoint, or the previous one in the background, could not be written (a full disk).
        """
        run = {"config": meta.config, "corpus": meta.corpus, "data": meta.data}
        self._save(step, state, run | _describe(meta.model, meta.tokenizer, meta.labels, meta.heads, pooler=meta.pooler))

    def save_model(self, model: LoadedModel, *, step: int = 0) -> None:
        """Write a model without the state of a run.

        Raises:
          RunError: as ``save``.
        """
        self._save(
            step,
            {_PARAMS: jax.tree.map(jnp.asarray, model.params)},
            _describe(model.config, model.tokenizer, model.labels, heads_of(model.params), pooler="pooler" in model.params["bert"])
            | _describe_embedding(model),
        )

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
        """Wait until every checkpoint is committed.

        Raises:
          RunError: as ``save``.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._not_written(None, error) from error

    def forget(self, after: int) -> None:
        """Delete the checkpoints of steps later than ``after``."""
        for step in self._manager.all_steps():
            if step > after:
                self._manager.delete(step)

    def close(self) -> None:
        """Release Orbax's resources."""
        self._manager.close()

    def latest(self) -> int | None:
        """Newest committed step, or None."""
        return self._manager.latest_step()

    def restore(self, abstract: Any) -> tuple[Any, Meta] | None:
        """Read the newest undamaged checkpoint, or return None if there is none; damaged ones are renamed ``damaged-STEP``.

        Args:
          abstract: a tree of ``jax.ShapeDtypeStruct`` with shardings, from ``abstract``; the mesh may differ from the one
            that the checkpoint was written on.

        Raises:
          UserError: the checkpoint is of another format version.
          RunError: every checkpoint is damaged.
        """

        def read(step: int) -> tuple[Any, Meta]:
            content = self._read_content(step)
            format.check_version(content.get(format.KEY, 1), str(self.path))
            model = build(ModelConfig, content["model"], "model")
            args = ocp.args.PyTreeRestore(abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract))
            state = self._manager.restore(step, args=ocp.args.Composite(**{_STATE: args}))[_STATE]
            _verify(checksums(state), content["checksums"])
            labels, heads = tuple(content["labels"]), content["heads"]
            tokenizer = tokenizers.from_files(_decode(content["tokenizer"]))
            meta = Meta(content["config"], model, tokenizer, content["corpus"], content["data"], labels, heads, content["pooler"])
            return state, meta

        return self._newest(read, set_aside=True)

    def restore_model(self) -> LoadedModel | None:
        """Read the model of the newest undamaged checkpoint, on the default device, or return None if there is no checkpoint.

        Models of every format version up to the present one are read. Nothing is changed on disk.

        Raises:
          UserError: a newer bert_jax wrote the checkpoint.
          RunError: every checkpoint is damaged.
        """

        def read(step: int) -> LoadedModel:
            content = self._read_content(step)
            version = content.get(format.KEY, 1)
            format.check_readable(version, str(self.path))
            old_names = HEADS_OF_VERSION_1 if version == 1 else {}
            # The first checkpoints of version 1 have the model's config only inside the run's config.
            config = build(ModelConfig, content["model"] if "model" in content else content["config"]["model"], "model")
            stored_heads, pooler = content.get("heads", PRETRAINING), content.get("pooler", True)
            heads = {old_names.get(head, head): outputs for head, outputs in stored_heads.items()}
            place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            shapes = jax.eval_shape(lambda: {_PARAMS: init_params(config, jax.random.key(0), heads=heads, pooler=pooler)})
            new_names = {new: old for old, new in old_names.items() if old in stored_heads}
            shapes = {_PARAMS: {new_names.get(name, name): tree for name, tree in shapes[_PARAMS].items()}}
            tree = abstract(shapes, jax.tree.map(lambda _: place, shapes))
            args = ocp.args.PyTreeRestore(
                tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree), partial_restore=True
            )
            state = self._manager.restore(step, args=ocp.args.Composite(**{_STATE: args}))[_STATE]
            _verify(checksums(state), content["checksums"])
            tokenizer = tokenizers.from_files(_decode(content["tokenizer"])) if content["tokenizer"] else None
            params = {old_names.get(name, name): tree for name, tree in state[_PARAMS].items()}
            embedding = sentence_transformers.parse(_decode(content["embedding"])) if content.get("embedding") else None
            return LoadedModel(config, params, tokenizer, tuple(content.get("labels", ())), embedding)

        return self._newest(read, set_aside=False)

    def _newest(self, read: Callable[[int], T], *, set_aside: bool) -> T | None:
        steps = sorted(self._manager.all_steps(), reverse=True)
        damaged: list[tuple[int, str]] = []
        for step in steps:
            try:
                value = read(step)
            except UserError:
                raise
            except Exception as error:  # Orbax and TensorStore raise many types of exceptions for damaged files.
                damaged.append((step, _first_line(error)))
                continue
            # That this step could be read shows that the others are damaged, and reading itself works.
            for damaged_step, reason in damaged:
                path = self.path / str(damaged_step)
                print(f"bert-jax: checkpoint {path} is damaged ({reason}); using step {step}.", file=sys.stderr)
                if set_aside:
                    self._set_aside(damaged_step)
            return value
        if damaged:
            reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged)
            raise RunError(f"No checkpoint in {self.path} can be read ({reasons}); nothing was changed there.")
        return None

    def _read_content(self, step: int) -> dict[str, Any]:
        """The content of a checkpoint besides the arrays, verified by its digest."""
        item = self._manager.restore(step, args=ocp.args.Composite(**{_META: ocp.args.JsonRestore()}))[_META]
        content = item["content"]
        if _digest(content) != item["digest"]:
            raise ValueError("its description differs from its digest")
        return cast(dict[str, Any], content)

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            names = {path.name for path in self.path.iterdir()}
            candidates = (f"damaged-{step}{'-again' * count}" for count in itertools.count())
            remote.rename(self.path / str(step), self.path / next(name for name in candidates if name not in names))
        self._manager.reload()

    def _not_written(self, step: int | None, error: Exception) -> RunError:
        failed = "The last checkpoint" if step is None else f"Checkpoint {step}"
        last = self.latest()
        newest = f"step {last} is the newest complete one" if last is not None else "there is no earlier one"
        return RunError(f"{failed} could not be written to {self.path} ({_first_line(error)}); {newest}.")


def _describe(
    config: ModelConfig, tokenizer: Tokenizer | None, labels: tuple[str, ...], heads: Mapping[str, int], *, pooler: bool
) -> dict[str, Any]:
    """The description of a model, without its parameters, as JSON values."""
    return {
        format.KEY: format.VERSION,
        "model": dataclasses.asdict(config),
        "tokenizer": {} if tokenizer is None else _encode(tokenizer.files),
        "labels": list(labels),
        "heads": dict(heads),
        "pooler": pooler,
    }


def _describe_embedding(model: LoadedModel) -> dict[str, Any]:
    if model.embedding is None:
        return {}
    return {"embedding": _encode(sentence_transformers.export(model.embedding, model.config.hidden_size))}


def _encode(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: base64.b64encode(data).decode() for name, data in files.items()}


def _decode(files: Mapping[str, str]) -> dict[str, bytes]:
    return {name: base64.b64decode(data) for name, data in files.items()}


def _verify(computed: dict[str, int], stored: dict[str, int]) -> None:
    differing = [name for name, value in computed.items() if stored.get(name) != value]
    if differing:
        raise ValueError(f"{len(differing)} of {len(computed)} arrays differ from their checksums, among them {differing[0]}")


def abstract(shapes: Any, shardings: Any) -> Any:
    """A tree of shapes with shardings, for ``Checkpoints.restore``.

    Args:
      shapes: a tree of ``jax.ShapeDtypeStruct``.
      shardings: a tree with the sharding of each leaf.
    """
    return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _first_line(error: Exception) -> str:
    if "No space left on device" in str(error):
        return "the disk is full"
    return (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0][:200]
