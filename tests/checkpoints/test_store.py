"""Checkpoints: complete or refused, on any mesh, with the previous one used if the newest is damaged."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import random
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bert_jax
from bert_jax.checkpoints import DIRECTORY, Checkpoints, Meta, abstract
from bert_jax.config.mesh import MeshConfig
from bert_jax.errors import RunError
from bert_jax.io.checksums import checksums
from bert_jax.models.loaded import LoadedModel
from bert_jax.training import launchers, optimizers, step
from tests.conftest import MODEL

pytestmark = pytest.mark.usefixtures("unoptimized")

LAYOUTS = {
    "data 8": {},
    "fsdp 8": {"mesh": MeshConfig(1, 8, 1)},
    "all": {"mesh": MeshConfig(2, 2, 2)},
    "pmap": {"parallel": "pmap"},
}


@pytest.fixture
def run(run_config, corpus):
    """Start, save and restore runs in one directory on any mesh."""

    described = json.loads(run_config.to_json())

    class Run:
        path = run_config.run
        config = run_config
        meta = Meta(described, run_config.model, corpus.tokenizer, "digest", {"epoch": 1, "block": 0, "row": 48})

        def state(self, layout, seed=0):
            config = dataclasses.replace(run_config, train=dataclasses.replace(run_config.train, seed=seed), **LAYOUTS[layout])
            launcher = launchers.launch(config)

            def init():
                return step.init_state(config, optimizers.make_optimizer(config.optim, 8))

            shapes = jax.eval_shape(init)
            shardings = launcher.shardings(shapes)
            return launchers.create(init, shardings), abstract(shapes, shardings)

        def save(self, steps, layout="data 8"):
            checkpoints = Checkpoints(self.path, keep=5)
            for number in steps:
                checkpoints.save(number, self.state(layout, seed=number)[0], self.meta)
            checkpoints.wait()
            checkpoints.close()

        def restore(self, layout="data 8"):
            checkpoints = Checkpoints(self.path, keep=5)
            try:
                return checkpoints.restore(self.state(layout)[1])
            finally:
                checkpoints.close()

    return Run()


def assert_same(result, expected):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), result, expected)


# Every layout is read in `make test`; `make test-slow` tests all pairs.
PAIRS = [
    pytest.param(writer, reader, marks=() if reader == "data 8" else pytest.mark.slow, id=f"{writer}-{reader}")
    for writer in LAYOUTS
    for reader in LAYOUTS
]


@pytest.mark.parametrize(("writer", "reader"), PAIRS)
def test_a_checkpoint_is_read_on_any_mesh(run, writer, reader):
    run.save([3], writer)
    state, meta = run.restore(reader)
    assert_same(state, run.state(writer, seed=3)[0])
    expected = run.state(reader)[1]
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.sharding.is_equivalent_to(b.sharding, a.ndim), True), state, expected)
    assert bert_jax.Config.from_json(json.dumps(meta.config)) == run.config
    assert meta.data == run.meta.data
    assert meta.tokenizer.files == run.meta.tokenizer.files


def test_checksums_do_not_depend_on_the_mesh(run):
    sums = [checksums(run.state(layout)[0]) for layout in LAYOUTS]
    assert sums.count(sums[0]) == len(sums)


def test_every_flipped_bit_changes_the_checksum():
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.int32, jnp.bfloat16):
        values = np.asarray(rng.normal(size=(3, 5)) * 100).astype(dtype)
        clean = checksums({"a": jnp.asarray(values)})
        for _ in range(40):
            flipped = values.copy()
            flipped.view(np.uint8).ravel()[rng.integers(values.nbytes)] ^= np.uint8(1 << rng.integers(8))
            assert checksums({"a": jnp.asarray(flipped)}) != clean


def test_without_checkpoints_nothing_is_restored(run):
    assert run.restore() is None


def test_only_the_newest_steps_are_kept(run):
    run.save(range(1, 8))
    checkpoints = Checkpoints(run.path, keep=5)
    assert sorted(int(path.name) for path in checkpoints.path.iterdir() if path.name.isdigit()) == [3, 4, 5, 6, 7]
    assert checkpoints.latest() == 7
    checkpoints.close()


def files_of(run, number, part):
    root = pathlib.Path(run.path) / DIRECTORY / str(number) / part
    return sorted(path for path in root.rglob("*") if path.is_file())


def flip(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))


def largest(run):
    return max(files_of(run, 2, "state"), key=lambda path: path.stat().st_size)


def description(run):
    return next(path for path in files_of(run, 2, "meta") if path.name == "metadata")


def edit(path, change):
    path.write_bytes(change(path.read_bytes()))


DAMAGES = {
    # Many, because some bytes of the file have no effect.
    "flipped bits in the arrays": lambda run: [flip(largest(run), random.Random(number)) for number in range(256)],
    "a truncated array file": lambda run: edit(largest(run), lambda content: content[:100]),
    "a lost array file": lambda run: largest(run).unlink(),
    "another data position": lambda run: edit(description(run), lambda content: re.sub(rb'"row": ?48', b'"row":49', content)),
    "a truncated description": lambda run: edit(description(run), lambda content: content[:50]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_renamed_and_the_previous_one_is_used(run, damage, capsys):
    run.save([1, 2])
    before = [path.read_bytes() for part in ("state", "meta") for path in files_of(run, 2, part)]
    DAMAGES[damage](run)
    assert before != [path.read_bytes() for part in ("state", "meta") for path in files_of(run, 2, part)]
    state, _ = run.restore()
    assert_same(state, run.state("data 8", seed=1)[0])
    message = capsys.readouterr().err
    assert "2 is damaged" in message
    assert "using step 1" in message
    # The step can be written again.
    run.save([2])
    assert_same(run.restore()[0], run.state("data 8", seed=2)[0])


@pytest.mark.slow
def test_no_flipped_bit_is_loaded_unnoticed(run):
    """Orbax alone restores wrong values in 160 of 160 cases."""
    run.save([1, 2])
    path = largest(run)
    clean, rng = path.read_bytes(), random.Random(0)
    for _ in range(120):
        flip(path, rng)
        checkpoints = Checkpoints(run.path)
        params = checkpoints.restore_model().params
        checkpoints.close()
        # A flip in an optimizer moment leaves the parameters of step 2 intact; one in a parameter falls back to step 1.
        expected = [run.state("data 8", seed=number)[0].params for number in (1, 2)]
        assert any(
            all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(e), strict=True)) for e in expected
        )
        path.write_bytes(clean)


def test_all_damaged_is_a_failure(run, capsys):
    run.save([1, 2])
    for number in (1, 2):
        for path in files_of(run, number, "meta"):
            path.write_text("{}")
    with pytest.raises(RunError, match=r"No checkpoint in .* can be read"):
        run.restore()
    capsys.readouterr()
    # Reading itself may have failed: nothing is renamed, so that a second start does not train from the beginning.
    assert {path.name for path in (pathlib.Path(run.path) / DIRECTORY).iterdir()} == {"1", "2"}


def test_a_full_disk_is_a_failure_that_names_the_good_step(run, monkeypatch):
    run.save([1])
    checkpoints = Checkpoints(run.path, keep=5)

    def full(*args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(RunError, match=r"Checkpoint 2 could not be written.*the disk is full.*step 1 is the newest complete one"):
        checkpoints.save(2, run.state("data 8")[0], run.meta)
    checkpoints.close()


def test_the_model_is_read_without_the_state(run):
    run.save([4], "all")
    checkpoints = Checkpoints(run.path)
    stored = checkpoints.restore_model()
    checkpoints.close()
    assert_same(stored.params, run.state("data 8", seed=4)[0].params)
    assert stored.config == run.config.model
    assert stored.tokenizer.files == run.meta.tokenizer.files


def test_a_model_of_numpy_arrays_replaces_newer_checkpoints(params, tokenizer, tmp_path):
    """A best model of a later step is replaced when the run goes back to an earlier step."""
    config = dataclasses.replace(MODEL, initializer_range=0.3)
    host = jax.tree.map(np.asarray, params)
    best = Checkpoints(tmp_path, keep=1)
    best.save_model(LoadedModel(config, host, tokenizer), step=200)
    best.wait()
    best.forget(after=200)
    assert best.latest() == 200
    best.forget(after=160)
    assert best.latest() is None
    best.save_model(LoadedModel(config, host, tokenizer), step=160)
    best.wait()
    assert best.latest() == 160
    jax.tree.map(np.testing.assert_array_equal, best.restore_model().params, host)
    best.close()
