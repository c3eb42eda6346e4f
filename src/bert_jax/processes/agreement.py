"""What all processes of a run must have in common before its first step: config, data, code, packages and devices."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

import bert_jax.errors
from bert_jax.errors import BertWarning, UserError
from bert_jax.processes.messages import Group

# Places of the same content, which the digests compare, and what differs by its meaning.
_LOCAL = ("data.corpus", "data.vocab", "data.held_out", "train.process_id", "init", "vocab", "data", "process_id")
_PACKAGES = ("bert_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_SETTINGS = (
    "jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl", "jax_threefry_partitionable", "jax_debug_nans",
    "jax_disable_jit", "jax_numpy_dtype_promotion",
)  # fmt: skip
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_MAX_SKEW_SECONDS = 5.0
_MAX_DIFFERENCES = 5


def require_agreement(group: Group, config: str, digests: Mapping[str, str]) -> None:
    """Check that all processes have started the same run.

    Args:
      group: the processes; one alone agrees with itself.
      config: the config as JSON.
      digests: of what the config names by paths, such as the data, by name.

    Raises:
      UserError: a process differs from process 0; the message names it and says in what. Every process raises it.
    """
    if len(group) == 1:
        return
    facts = group.gather("comparing configs", dict(_flatten(json.loads(config))) | dict(digests) | _surroundings())
    for index, other in enumerate(facts):
        names = [name for name in {**facts[0], **other} if name not in _LOCAL and facts[0].get(name) != other.get(name)]
        if names:
            shown = "; ".join(f"{name}: {other.get(name)}, not {facts[0].get(name)}" for name in names[:_MAX_DIFFERENCES])
            more = f"; and {len(names) - _MAX_DIFFERENCES} more" if len(names) > _MAX_DIFFERENCES else ""
            raise UserError(
                f"{group.describe(index)} differs from {group.describe(0)} ({shown}{more}); start the same command with the same "
                "files and packages on every host."
            )
    _warn_of_clocks(group)


def _warn_of_clocks(group: Group) -> None:
    # All processes return from this call within milliseconds.
    group.gather("comparing clocks", None)
    clocks = group.gather("reading clocks", time.time())
    skews = [clock - clocks[0] for clock in clocks]
    worst = max(range(len(group)), key=lambda index: abs(skews[index]))
    if group.index == 0 and abs(skews[worst]) > _MAX_SKEW_SECONDS:
        warnings.warn(
            f"The clock of {group.describe(worst)} differs by {skews[worst]:+.0f} seconds from that of {group.describe(0)}; leases "
            "and times in logs need clocks that agree, such as by NTP.",
            BertWarning,
            stacklevel=2,
        )


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, child in value.items():
            yield from _flatten(child, f"{path}.{name}" if path else name)
    else:
        yield path, value


def _surroundings() -> dict[str, Any]:
    devices = jax.local_devices()
    return {
        "Python": platform.python_version(),
        **{f"package {name}": importlib.metadata.version(name) for name in _PACKAGES},
        **{name: str(jax.config.values.get(name)) for name in _SETTINGS},
        **{name: os.environ.get(name, "") for name in _VARIABLES},
        "code of bert_jax": _code_digest(),
        "devices of a process": f"{len(devices)} of kind {devices[0].device_kind}",
    }


def _code_digest() -> str:
    """Digest of the package's source files."""
    root, digest = Path(bert_jax.errors.__file__).parent, hashlib.blake2b(digest_size=8)
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()
