"""The manifest of a checkpoint: the size of every file, and the digest of every small one.

Orbax also writes files that restoring never reads, such as the databases of the single processes, so that reading all arrays does
not notice damage to them. A file of array values is too large to be read again after it was written; its size is recorded, and its
values are covered by the checksums of the arrays.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import time
from collections.abc import Collection, Iterator
from typing import Any

from etils import epath

from bert_jax.io import remote

FILE = "manifest.json"
"""Name of the manifest in the directory of a step."""
_LARGEST_DIGESTED = 2**20
# Orbax completes these two files when it commits a step, after the manifest was written. The first one has times, the second one a
# sentence; nothing of them is used when a state is read.
_WRITTEN_ON_COMMIT = ("_CHECKPOINT_METADATA", "commit_success.txt")
SUCCESS = "Checkpoint commit was successful to "
"""What the file ``commit_success.txt`` says, before the path of the step."""


def write(directory: epath.Path) -> None:
    """Write the manifest of a step that is complete except for its commit."""
    described = {str(path.relative_to(directory)): _describe(path) for path in files(directory)}
    kept = {name: entry for name, entry in sorted(described.items()) if name not in _WRITTEN_ON_COMMIT}
    (directory / FILE).write_text(json.dumps(kept, indent=1))


def problems(directory: epath.Path) -> list[str]:
    """What differs from the manifest, as clauses without a subject: "file state/_sharding is missing".

    Examples:
      >>> import pathlib, tempfile
      >>> directory = epath.Path(tempfile.mkdtemp())
      >>> _ = (directory / "a").write_text("whole")
      >>> write(directory)
      >>> _ = (directory / "a").write_text("whale")
      >>> problems(directory)[-1]
      'the content of file a has changed'
    """
    try:
        stored = {name: (size, digest) for name, (size, digest) in json.loads((directory / FILE).read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return [f"file {FILE} is missing or damaged"]
    # Names of the manifest are looked up here and never opened, so that they cannot lead out of the directory.
    present = {str(path.relative_to(directory)): path for path in files(directory)}
    missing = [f"file {name} is missing" for name in (*stored, *_WRITTEN_ON_COMMIT) if name not in present]
    changed = [_difference(path, name, *stored[name]) for name, path in present.items() if name in stored]
    return [*missing, *(problem for problem in changed if problem), *_commit_problems(directory, present)]


def _commit_problems(directory: epath.Path, present: Collection[str]) -> list[str]:
    """What is wrong with the form of the two files that the manifest does not describe."""
    metadata, success = _WRITTEN_ON_COMMIT
    wrong = []
    try:
        if metadata in present:
            _commit_time(directory)
    except (ValueError, KeyError, TypeError):
        wrong.append(f"the content of file {metadata} is damaged")
    sentence = (directory / success).read_bytes() if success in present else b""
    # A run may have been moved since, so that only the ends of the sentence are known.
    if success in present and not (sentence.startswith(SUCCESS.encode()) and sentence.endswith(f"/{directory.name}".encode())):
        wrong.append(f"the content of file {success} is damaged")
    return wrong


def committed(directory: epath.Path) -> datetime.datetime:
    """When a step was committed, or, if Orbax's note of it is damaged, when a file of it was last changed."""
    try:
        seconds = _commit_time(directory)
    except (OSError, ValueError, KeyError, TypeError):
        seconds = last_change(directory)
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def last_change(directory: epath.Path) -> float:
    """When a file below a directory was last changed, in seconds since 1970; the present if there is none."""
    return max(map(remote.modified, files(directory)), default=time.time())


def _commit_time(directory: epath.Path) -> float:
    return int(json.loads((directory / _WRITTEN_ON_COMMIT[0]).read_text())["commit_timestamp_nsecs"]) / 1e9


def files(directory: epath.Path) -> Iterator[epath.Path]:
    """All files below a directory; links to directories are not followed."""
    for path in sorted(directory.iterdir()):
        if path.is_dir() and not os.path.islink(path):
            yield from files(path)
        else:
            yield path


def _describe(path: epath.Path) -> list[Any]:
    size = path.stat().length
    return [size, _digest(path) if size <= _LARGEST_DIGESTED else None]


def _difference(path: epath.Path, name: str, size: int, digest: str | None) -> str | None:
    if os.path.islink(path):
        return f"file {name} is a symbolic link"
    if path.stat().length != size:
        return f"file {name} has {path.stat().length:,} bytes instead of {size:,}"
    changed = (None if digest is None else _digest(path)) != digest
    return f"the content of file {name} has changed" if changed else None


def _digest(path: epath.Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
