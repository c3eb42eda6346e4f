"""Each file of a checkpoint is damaged in turn: the damage is noticed, and no wrong value is ever restored."""

from __future__ import annotations

import json
import random
import shutil

import pytest

from bert_jax.checkpoints import manifest, report

pytestmark = pytest.mark.usefixtures("unoptimized")

# Orbax writes these two when it commits a step. They say when and where; nothing of them is used to restore a state, so that a
# flipped bit that leaves their form intact does not matter.
WITHOUT_DIGEST = {"_CHECKPOINT_METADATA", "commit_success.txt"}


def flip(content, number):
    rng, content = random.Random(number), bytearray(content)
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


DAMAGES = {
    "first flipped bit": lambda content: flip(content, 1),
    "second flipped bit": lambda content: flip(content, 2),
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "deleted": lambda content: None,
}


def damages(step):
    """Yield (name of the file, kind), with the damage in place while the caller looks."""
    for path in sorted(path for path in step.rglob("*") if path.is_file()):
        clean = path.read_bytes()
        for kind, change in DAMAGES.items():
            content = change(clean)
            path.unlink() if content is None else path.write_bytes(content)
            yield str(path.relative_to(step)), kind
            path.write_bytes(clean)


@pytest.fixture
def saved(small):
    small.save([1, 2])
    return small


def is_unused(name, kind):
    return name in WITHOUT_DIGEST and "bit" in kind


def test_verification_notices_every_damage(saved):
    step, count = saved.path / "checkpoints" / "2", 0
    assert not any(entry.problems for entry in report.read(saved.path, verify=True))
    for name, kind in damages(step):
        problems = {entry.step: entry.problems for entry in report.read(saved.path, verify=True)}
        assert problems[1] == ()
        assert problems[2] or is_unused(name, kind), (name, kind)
        count += 1
    assert count >= 60
    assert not any(entry.problems for entry in report.read(saved.path, verify=True))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_restoring_notices_every_damage(saved, capsys):
    """What is not read is a warning; otherwise the step before is used. ``restore`` compares every value."""
    checkpoints = saved.path / "checkpoints"
    used = []
    for name, kind in damages(checkpoints / "2"):
        step, message = saved.restore(), capsys.readouterr().err
        used.append(step)
        # Where the manifest is damaged, another file seems to be.
        noticed = "is damaged" if step == 1 else "file " if name == manifest.FILE else f"file {name}"
        assert noticed in message or is_unused(name, kind), (name, kind, message)
        if step == 1:
            shutil.copytree(checkpoints / "damaged-2", checkpoints / "2")
            shutil.rmtree(checkpoints / "damaged-2")
    assert set(used) == {1, 2}


def test_the_first_damaged_array_is_named(saved):
    """A flipped bit of a value that zstd does not compress."""
    step = saved.path / "checkpoints" / "2"
    largest = max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(bytes(content))
    problems = report.read(saved.path, verify=True)[1].problems
    assert problems[0].startswith("array params/kernel ")


def test_names_in_a_manifest_cannot_lead_out_of_the_directory(saved, tmp_path):
    canary = tmp_path / "canary"
    canary.write_text("secret")
    step = saved.path / "checkpoints" / "2"
    stored = json.loads((step / manifest.FILE).read_text())
    (step / manifest.FILE).write_text(json.dumps(stored | {"../../../canary": [6, None]}))
    assert manifest.problems(type(saved.open().path)(step)) == ["file ../../../canary is missing"]


def test_a_link_in_place_of_a_file_is_noticed(saved, tmp_path):
    step = saved.path / "checkpoints" / "2"
    path = step / "state" / "_sharding"
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert "file state/_sharding is a symbolic link" in report.read(saved.path)[1].problems


def test_a_checkpoint_without_a_manifest_was_written_by_an_earlier_release(saved, monkeypatch):
    """Its description does not say that there is one."""
    monkeypatch.setattr("bert_jax.checkpoints.store._MANIFEST", "of another release")
    assert report.read(saved.path)[1].problems == ()
