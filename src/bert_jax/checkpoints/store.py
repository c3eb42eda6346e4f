"""Saving and restoring the steps of a run, with checks of what is read."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import logging
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath

from bert_jax import processes, tokenizers
from bert_jax.checkpoints import manager, manifest, reading
from bert_jax.checkpoints.description import HEADS_OF_VERSION_1, Meta, decode, describe, describe_embedding, digest, model_config
from bert_jax.checkpoints.retention import Preservation
from bert_jax.checkpoints.verification import compare, damaged_array, first_line, is_full
from bert_jax.config import format
from bert_jax.config.model import ModelConfig
from bert_jax.config.retention import Retention
from bert_jax.config.validation import build
from bert_jax.errors import RunError
from bert_jax.io import atomic, remote
from bert_jax.io.checksums import checksums
from bert_jax.models import sentence_transformers
from bert_jax.models.heads import PRETRAINING, heads_of, init_params
from bert_jax.models.loaded import LoadedModel

DIRECTORY = "checkpoints"
"""Directory of the checkpoints in a run directory."""
BEST = "best"
"""Directory of the best model in the run directory of a job that keeps one."""
TEMPORARY = ocp.path.atomicity_types.TMP_DIR_SUFFIX
"""Suffix of the directory of a step that is being written."""
_STATE, _META, _MANIFEST, _ANOMALIES = "state", "meta", "manifest", "anomalies"
_PARAMS = "params"


class Checkpoints:
    """The checkpoints of one run directory.

    Args:
      run: the run directory.
      keep: which steps are kept when a step is saved, or the number of the newest ones; None: read only.
      losses: returns step -> held-out loss, for a retention that keeps the best steps.

    Raises:
      UserError: the directory cannot be created, because the disk is full or read-only, say.
    """

    def __init__(
        self,
        run: epath.PathLike,
        *,
        keep: Retention | int | None = None,
        losses: Callable[[], Mapping[int, float]] = dict,
    ) -> None:
        self.path = remote.absolute(run) / DIRECTORY
        # Orbax logs every save, and every failure with a traceback; this package reports failures itself.
        absl_logging.set_verbosity(absl_logging.FATAL)
        # asyncio also logs a traceback for each task of a failed save or read.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        self._saving = 0
        self._failed: set[int] = set()
        preservation = None if keep is None else Preservation(keep if isinstance(keep, Retention) else Retention(keep), losses)
        self._handlers = {_STATE: ocp.PyTreeCheckpointHandler(), _META: ocp.JsonCheckpointHandler()}
        with atomic.explained(self.path):
            self._manager = manager.open_manager(self.path, self._handlers, preservation, before_commit=self._write_manifest)

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
        run |= {_ANOMALIES: dict(meta.anomalies)} if meta.anomalies else {}
        self._save(step, state, run | describe(meta.model, meta.tokenizer, meta.labels, meta.heads, pooler=meta.pooler))

    def save_model(self, model: LoadedModel, *, step: int = 0) -> None:
        """Write a model without the state of a run.

        Raises:
          RunError: as ``save``.
        """
        self._save(
            step,
            {_PARAMS: jax.tree.map(jnp.asarray, model.params)},
            describe(model.config, model.tokenizer, model.labels, heads_of(model.params), pooler="pooler" in model.params["bert"])
            | describe_embedding(model),
        )

    def _save(self, step: int, state: Any, content: dict[str, Any]) -> None:
        self.wait()
        content = {**content, "checksums": checksums(state), _MANIFEST: True}
        item = {"content": content, "digest": digest(content)}
        args = ocp.args.Composite(**{_STATE: ocp.args.PyTreeSave(state), _META: ocp.args.JsonSave(item)})
        self._saving = step
        self._failed.discard(step)
        try:
            # Orbax would skip a step that is older than the newest one without a word.
            self._manager.save(step, args=args, force=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise self._not_written(step, error) from error

    def _write_manifest(self) -> None:
        # The directory has its final name only where a store cannot rename directories.
        names = (str(self._saving), f"{self._saving}{TEMPORARY}")
        manifest.write(next(path for path in self.path.iterdir() if path.name in names))

    def check_for_errors(self) -> None:
        """Report a failure of a save in the background without waiting for its end.

        Raises:
          RunError: as ``save``.
        """
        try:
            self._manager.check_for_errors()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._not_written(self._saving, error) from error

    def wait(self) -> None:
        """Wait until every checkpoint is committed.

        Raises:
          RunError: as ``save``.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._not_written(self._saving, error) from error

    def forget(self, after: int) -> None:
        """Delete the checkpoints of steps later than ``after``."""
        for step in self._manager.all_steps():
            if step > after:
                self._manager.delete(step)

    def close(self) -> None:
        """Release Orbax's resources."""
        self._manager.close()
        # Writes of arrays that were under way when a save failed have created directories again.
        self._remove_failed()

    def latest(self) -> int | None:
        """Newest committed step, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Committed steps, in ascending order."""
        return sorted(self._manager.all_steps())

    def saved(self, step: int) -> datetime.datetime:
        """When a step was committed, or, if Orbax's note of it is damaged, when a file of it was last changed."""
        return manifest.committed(self.path / str(step))

    def corpus(self, step: int) -> str:
        """Digest of the data of the run that saved a step."""
        return str(self._read_content(step)["corpus"])

    def check(self, step: int, *, arrays: bool) -> tuple[int | None, list[str]]:
        """Look for damage; nothing is changed on disk.

        Args:
          step: a committed step.
          arrays: whether to read every array, one after the other, until one differs from its checksum.

        Returns:
          The format version, if the description can be read, and clauses that say what is wrong.
        """
        try:
            content = self._read_content(step)
        except Exception as error:  # As in reading.newest.
            return None, [f"the description cannot be read: {first_line(error)}"]
        problems = manifest.problems(self.path / str(step)) if content.get(_MANIFEST) else []
        damage = damaged_array(self._manager, step, _STATE, content["checksums"]) if arrays else None
        return content.get(format.KEY, 1), [damage, *problems] if damage else problems

    def restore(self, abstract: Any) -> tuple[Any, Meta] | None:
        """Read the newest undamaged checkpoint, or return None if there is none; damaged ones are renamed ``damaged-STEP``.

        Args:
          abstract: a tree of ``jax.ShapeDtypeStruct`` with shardings, from ``abstract``; the mesh may differ from the one
            that the checkpoint was written on.

        Raises:
          UserError: the checkpoint is of another format version.
          RunError: every checkpoint is damaged.
        """

        group = processes.group()
        steps: list[int] = group.gather("listing checkpoints", self.steps())[0]

        def read(step: int) -> tuple[Any, Meta]:
            state, content = reading.agreed(group, step, lambda: self._read(step, abstract))
            compare(checksums(state), content["checksums"])
            model = build(ModelConfig, content["model"], "model")
            labels, heads = tuple(content["labels"]), content["heads"]
            tokenizer = tokenizers.from_files(decode(content["tokenizer"]))
            run = (content["config"], model, tokenizer, content["corpus"], content["data"])
            meta = Meta(*run, labels, heads, content["pooler"], content.get(_ANOMALIES, {}))
            self._warn_of_damage(step, content)
            return state, meta

        return reading.newest(self.path, steps, read, set_aside=self._set_aside)

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
            config = model_config(content)
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
            state = self._read_item(step, _STATE, args)
            compare(checksums(state), content["checksums"])
            tokenizer = tokenizers.from_files(decode(content["tokenizer"])) if content["tokenizer"] else None
            params = {old_names.get(name, name): tree for name, tree in state[_PARAMS].items()}
            self._warn_of_damage(step, content)
            embedding = sentence_transformers.parse(decode(content["embedding"])) if content.get("embedding") else None
            return LoadedModel(config, params, tokenizer, tuple(content.get("labels", ())), embedding)

        return reading.newest(self.path, sorted(self._manager.all_steps()), read)

    def _read(self, step: int, abstract: Any) -> tuple[Any, dict[str, Any]]:
        """This process's part of a state, and the description of the checkpoint."""
        content = self._read_content(step)
        format.check_version(content.get(format.KEY, 1), str(self.path))
        args = ocp.args.PyTreeRestore(abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract))
        return self._read_item(step, _STATE, args), content

    def _read_item(self, step: int, item: str, args: Any) -> Any:
        # The manager would wait for all processes, of which one may not be able to read.
        return self._handlers[item].restore(manager.open_step(self._manager, self.path, step) / item, args=args)

    def _read_content(self, step: int) -> dict[str, Any]:
        """The content of a checkpoint besides the arrays, verified by its digest."""
        item = self._read_item(step, _META, ocp.args.JsonRestore())
        content = item["content"]
        if digest(content) != item["digest"]:
            raise ValueError("its description differs from its digest")
        return cast(dict[str, Any], content)

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            names = {path.name for path in self.path.iterdir()}
            candidates = (f"damaged-{step}{'-again' * count}" for count in itertools.count())
            remote.rename(self.path / str(step), self.path / next(name for name in candidates if name not in names))
        # Otherwise a process could still have the step in its list when it is saved again.
        processes.group().gather("setting damaged checkpoints aside", None)
        self._manager.reload()

    def _warn_of_damage(self, step: int, content: dict[str, Any]) -> None:
        """Name damaged files of a step whose arrays and description were read and are whole; they are a sign of a failing disk."""
        if content.get(_MANIFEST) and jax.process_index() == 0:
            for problem in manifest.problems(self.path / str(step)):
                print(
                    f"bert-jax: in checkpoint {self.path / str(step)} {problem}; all that was read is whole and is used, but check "
                    "the disk.",
                    file=sys.stderr,
                )

    def _remove_failed(self) -> None:
        for step in self._failed if jax.process_index() == 0 else ():
            shutil.rmtree(self.path / f"{step}{TEMPORARY}", ignore_errors=True)

    def _not_written(self, step: int, error: Exception) -> RunError:
        """What failed; its files are removed, and Orbax's list of steps, in which it may still be, is read again."""
        # Other files of the step may still be written in the background, and would fail in their turn when they are removed.
        while True:
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                self._manager.check_for_errors()
                break
        self._failed.add(step)
        self._remove_failed()
        self._manager.reload()
        last = self.latest()
        newest = f"step {last} is the newest complete one" if last is not None else "there is no earlier one"
        hint = "free space there, and run the same command again" if is_full(error) else "run the same command again to resume"
        return RunError(f"Checkpoint {step} could not be written to {self.path} ({first_line(error)}); {newest}; {hint}.")


def abstract(shapes: Any, shardings: Any) -> Any:
    """A tree of shapes with shardings, for ``Checkpoints.restore``.

    Args:
      shapes: a tree of ``jax.ShapeDtypeStruct``.
      shardings: a tree with the sharding of each leaf.
    """
    return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings)
