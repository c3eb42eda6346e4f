"""The directory of a run: whose it is."""

from __future__ import annotations

from collections.abc import Callable

import jax
from etils import epath
from jax.experimental import multihost_utils

from bert_jax.errors import UserError
from bert_jax.io import atomic, remote

CONFIG = "config.json"


def open_run_dir(run: epath.PathLike, text: str, differences: Callable[[str], list[str]]) -> None:
    """Write a run's config into its directory, or compare it with the one that is there.

    Args:
      run: the directory.
      text: the config as JSON.
      differences: takes stored JSON and returns how the config differs from it in what it computes.

    Raises:
      UserError: the directory contains something else, or a run with another config.
    """
    run = remote.open_path(run)
    path = run / CONFIG
    if path.exists():
        if changed := differences(path.read_text()):
            raise UserError(
                f"{run} contains a run with another config ({'; '.join(changed)}); choose another --run, or the config it was "
                "started with."
            )
    elif run.exists() and (not run.is_dir() or any(entry.name != f".{CONFIG}" for entry in run.iterdir())):
        raise UserError(f"{run} exists and is not a run; choose another --run.")
    if jax.process_count() > 1:
        # Every process has looked before one of them writes.
        multihost_utils.sync_global_devices("config")
    if jax.process_index() == 0:
        with atomic.explained(run):
            run.mkdir(parents=True, exist_ok=True)
            with atomic.replaced_path(path) as part:
                part.write_text(text)
