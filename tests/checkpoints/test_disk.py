"""Disks that are full, once or at the start, read-only, or lose the directory."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import time

import jax
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint._src.metadata import checkpoint as metadata

from bert_jax import processes
from bert_jax.checkpoints import manifest
from bert_jax.errors import RunError, UserError
from bert_jax.training import run_directory

pytestmark = pytest.mark.usefixtures("unoptimized")


@pytest.fixture
def checkpoints(small):
    small.save([1])
    opened = small.open(keep=5)
    yield opened
    opened.close()


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def failed_save(small, checkpoints, step):
    """The message of a save that fails in the background."""
    checkpoints.save(step, small.state(step), small.meta)
    with pytest.raises(RunError) as raised:
        checkpoints.wait()
    return str(raised.value)


def test_after_a_disk_was_full_once_later_steps_are_saved(small, checkpoints):
    """Also the same step, and leftovers are removed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "write", full)
        message = failed_save(small, checkpoints, 2)
    assert message == (
        f"Checkpoint 2 could not be written to {checkpoints.path} (the disk is full); step 1 is the newest complete one; free "
        "space there, and run the same command again."
    )
    assert small.directories() == ["1"]
    assert checkpoints.latest() == 1
    for step in (2, 3):
        checkpoints.save(step, small.state(step), small.meta)
    checkpoints.wait()
    assert small.directories() == ["1", "2", "3"]
    assert small.restore() == 3


def test_a_write_that_really_fails(small, checkpoints):
    """The system refuses files of more than 100 kB, which the arrays of this state exceed."""
    state = {"params": {"kernel": jax.random.normal(jax.random.key(0), (100_000,))}}
    state["params"]["kernel"].block_until_ready()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        checkpoints.save(2, state, small.meta)
        with pytest.raises(RunError, match=r"Checkpoint 2 could not be written to .*; step 1 is the newest complete one"):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert small.directories() == ["1"]
    checkpoints.save(2, state, small.meta)
    checkpoints.wait()
    assert small.directories() == ["1", "2"]


def test_a_failed_save_in_the_background_is_reported_with_its_own_step(small, checkpoints):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "write", full)
        checkpoints.save(2, small.state(2), small.meta)
        with pytest.raises(RunError, match="Checkpoint 2 could not be written"):
            checkpoints.save(3, small.state(3), small.meta)
    checkpoints.save(3, small.state(3), small.meta)
    checkpoints.wait()
    assert small.directories() == ["1", "3"]


def test_a_save_that_fails_at_once_ends_what_is_written_beside_it(small):
    """Orbax writes the step's metadata in another thread, which would find its directory gone."""
    write = metadata._MetadataStoreImpl.write

    def slow(*arguments):
        time.sleep(0.3)
        write(*arguments)

    small.save([1])
    checkpoints = small.open(keep=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metadata._MetadataStoreImpl, "write", slow)
        patch.setattr(ocp.JsonCheckpointHandler, "async_save", full)
        with pytest.raises(RunError, match="Checkpoint 2 could not be written"):
            checkpoints.save(2, small.state(2), small.meta)
    checkpoints.save(3, small.state(3), small.meta)
    checkpoints.close()
    assert small.directories() == ["1", "3"]


def test_a_step_before_the_newest_one_is_saved(small, checkpoints):
    """Orbax would skip it in silence."""
    for step in (5, 4):
        checkpoints.save(step, small.state(step), small.meta)
    checkpoints.wait()
    assert small.directories() == ["1", "4", "5"]


def test_removed_checkpoints_are_not_named_as_whole(small, checkpoints):
    shutil.rmtree(checkpoints.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "write", full)
        assert "there is no earlier one" in failed_save(small, checkpoints, 2)
    checkpoints.save(3, small.state(3), small.meta)
    checkpoints.wait()
    assert small.restore() == 3


def test_leftovers_of_a_killed_process_are_removed_at_the_next_save(small):
    small.save([1])
    shutil.copytree(small.path / "checkpoints" / "1", small.path / "checkpoints" / "2.orbax-checkpoint-tmp")
    small.save([3])
    assert small.directories() == ["1", "3"]


REASONS = {errno.ENOSPC: "the disk is full", errno.EROFS: "Read-only file system", errno.EACCES: "Permission denied"}


@pytest.mark.parametrize("number", REASONS)
def test_a_run_cannot_start_on_such_a_disk(tmp_path, monkeypatch, number):
    def refused(path, *args, **kwargs):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("os.mkdir", refused)
    sentence = rf"^{tmp_path}/run cannot be written \({REASONS[number]}\); .*cho.*\.$"
    opened = run_directory.open_run_dir(tmp_path / "run", "{}", lambda stored: [], processes.group())
    with pytest.raises(UserError, match=sentence), opened:
        pass


def test_checkpoints_cannot_be_created_on_such_a_disk(small, monkeypatch):
    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.__init__", full)
    with pytest.raises(UserError, match=r"checkpoints cannot be written \(the disk is full\); free space there"):
        small.open(keep=1)


def test_the_manifest_describes_all_files_but_those_of_the_commit(small):
    small.save([1])
    step = small.path / "checkpoints" / "1"
    named = set(json.loads((step / manifest.FILE).read_text()))
    present = {str(path.relative_to(step)) for path in step.rglob("*") if path.is_file()}
    assert present - named == {manifest.FILE, "_CHECKPOINT_METADATA", "commit_success.txt"}
    assert not named - present
