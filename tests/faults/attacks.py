"""Attack a run again and again, each time resuming it by the same command; prints what happened as JSON.

Usage: python -m tests.faults.attacks EXPERIMENT ROUNDS SEED ATTACK [ATTACK ...]

Every start is a fork of this process, which has imported the package but not used JAX, so that a hundred starts take minutes.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import bert_jax.cli
import bert_jax.cli.pretrain

SECONDS = 120


class Job:
    """A start of the command in a process of its own.

    Args:
      experiment: file of the experiment.
      patch: Python that the process executes first.
    """

    def __init__(self, experiment, patch=""):
        self.error = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.pid = os.fork()
        self.status = None
        if self.pid == 0:
            status = 99
            try:
                for file in (1, 2):
                    os.dup2(self.error.fileno(), file)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                exec(patch, {})
                status = bert_jax.cli.main(["pretrain", experiment])
                sys.stdout.flush()
            finally:
                os._exit(status)

    def poll(self):
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status

    def send(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, seconds=SECONDS):
        ends = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > ends:
                self.send(signal.SIGKILL)
                raise AssertionError(f"the process did not end; it printed: {self.printed()}")
            time.sleep(0.005)
        return self.status

    def printed(self):
        self.error.seek(0)
        return self.error.read()


class Attacker:
    """The run that is attacked; each method is an attack, which returns when the process has ended."""

    def __init__(self, experiment, rng):
        self.experiment, self.rng = experiment, rng
        self.run = Path(bert_jax.cli.pretrain.load_experiment(Path(experiment)).run)
        self.checkpoints = self.run / "checkpoints"

    def start(self, patch=""):
        """Start the run, and return when it has logged a step."""
        size = self._size()
        job, ends = Job(self.experiment, patch), time.monotonic() + SECONDS
        # The beginning of a start removes lines of steps that are repeated.
        while job.poll() is None and time.monotonic() < ends:
            previous, size = size, self._size()
            if size > previous and previous:
                break
            time.sleep(0.005)
        return job

    def _size(self):
        with contextlib.suppress(OSError):
            return (self.run / "metrics.jsonl").stat().st_size
        return 0

    def _saving(self):
        return [path for path in self.checkpoints.iterdir() if not path.name.isdecimal()] if self.checkpoints.exists() else []

    def _steps(self):
        names = [path.name for path in self.checkpoints.iterdir()] if self.checkpoints.exists() else []
        return sorted(int(name) for name in names if name.isdecimal())

    def _await(self, job, condition):
        ends = time.monotonic() + SECONDS
        while job.poll() is None and not condition() and time.monotonic() < ends:
            pass

    def _pause(self):
        time.sleep(self.rng.random() * 0.2)

    def kill(self):
        """kill -9 at any time."""
        job = self.start()
        self._pause()
        job.send(signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL, job.printed()

    def kill_starting(self):
        """kill -9 before the first step."""
        job = Job(self.experiment)
        time.sleep(self.rng.random() * 2)
        job.send(signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL, job.printed()

    def kill_saving(self):
        """kill -9 while a checkpoint is being written."""
        job = self.start()
        self._await(job, self._saving)
        time.sleep(self.rng.random() * 0.03)
        job.send(signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL, job.printed()

    def kill_committing(self):
        """kill -9 just when a checkpoint gets its final name."""
        job, before = self.start(), self._steps()
        self._await(job, lambda: self._steps()[-1:] > before[-1:])
        time.sleep(self.rng.random() * 0.003)
        job.send(signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL, job.printed()

    def terminate(self):
        """A notice of preemption: SIGTERM, and ten seconds later the end."""
        self._stop(signal.SIGTERM)

    def interrupt(self):
        """Ctrl-C."""
        self._stop(signal.SIGINT)

    def _stop(self, number):
        job = self.start()
        self._pause()
        job.send(number)
        assert job.wait(10) == 128 + number, job.printed()
        last = json.loads((self.run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        assert self._steps()[-1] == last, "a step was lost"

    def hang(self):
        """Stopped for a moment, and continued, and then killed."""
        job = self.start()
        job.send(signal.SIGSTOP)
        self._pause()
        job.send(signal.SIGCONT)
        self._pause()
        job.send(signal.SIGKILL)
        job.wait()

    def damage(self):
        """Flipped bytes in the newest checkpoint of a killed run."""
        path = self.rng.choice([path for path in self._files_of_newest() if path.stat().st_size])
        content = bytearray(path.read_bytes())
        for _ in range(8):
            content[self.rng.randrange(len(content))] ^= 1 << self.rng.randrange(8)
        path.write_bytes(content)

    def lose(self):
        """A file of the newest checkpoint, or all of it, is gone."""
        files = self._files_of_newest()
        for path in files if self.rng.random() < 0.5 else [self.rng.choice(files)]:
            path.unlink()

    def _files_of_newest(self):
        """Kill the run when there is an earlier checkpoint as well."""
        job = self.start()
        self._await(job, lambda: len(self._steps()) > 1)
        self._pause()
        job.send(signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL, job.printed()
        return [path for path in (self.checkpoints / str(self._steps()[-1])).rglob("*") if path.is_file()]

    def fill(self):
        """A full disk: a write of a checkpoint fails."""
        job = self.start(FAILING.format(number="errno.ENOSPC", text="No space left on device", after=self.rng.randrange(1, 4)))
        assert job.wait() == 1, job.printed()
        assert "free space there, and run the same command again" in job.printed(), job.printed()

    def protect(self):
        """A disk that becomes read-only."""
        job = self.start(FAILING.format(number="errno.EROFS", text="Read-only file system", after=self.rng.randrange(1, 4)))
        assert job.wait() == 1, job.printed()
        assert "could not be written" in job.printed(), job.printed()

    def slow(self):
        """A slow disk, on which each rename takes a while; then kill -9."""
        job = self.start(SLOW)
        time.sleep(self.rng.random())
        job.send(signal.SIGKILL)
        job.wait()

    def two(self):
        """Two jobs in one run directory: the second one is refused, and the first one goes on."""
        job = self.start()
        second = Job(self.experiment)
        assert (second.wait(), "is in use by another process" in second.printed()) == (2, True), second.printed()
        assert job.poll() is None, job.printed()
        job.send(signal.SIGKILL)
        job.wait()


# The disk fails in the thread that writes, as a real one does.
FAILING = """
import errno
from orbax.checkpoint._src.handlers import json_checkpoint_handler
original, saves = json_checkpoint_handler.JsonCheckpointHandler.async_save, []
async def async_save(self, *args, **kwargs):
    saves.append(1)
    if len(saves) == {after}:
        raise OSError({number}, "{text}", "meta")
    return await original(self, *args, **kwargs)
json_checkpoint_handler.JsonCheckpointHandler.async_save = async_save
"""
SLOW = """
import os, time
original = os.rename
def rename(*args, **kwargs):
    time.sleep(0.3)
    original(*args, **kwargs)
os.rename = rename
"""


def main(experiment, rounds, seed, *names):
    rng = random.Random(int(seed))
    attacker, done = Attacker(experiment, rng), collections.Counter()
    for turn in range(int(rounds)):
        name = names[turn % len(names)]
        getattr(attacker, name)()
        done[name] += 1
    last = Job(experiment)
    assert last.wait(600) == 0, last.printed()
    unfinished = [path.name for path in attacker.checkpoints.iterdir() if "tmp" in path.name]
    print(json.dumps({"attacks": done, "unfinished": unfinished}))


if __name__ == "__main__":
    main(*sys.argv[1:])
