"""Runs of several processes on this machine, as several hosts would start them: by the command."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import time

from etils import epath

from bert_jax.training.logging import read_metrics

DEVICES = 4


def free_port():
    """A port that is free, as is the next one."""
    while True:
        port = random.randrange(20_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("", port)), socket.create_server(("", port + 1)):
            return port


class Hosts:
    """Processes of one run.

    Args:
      config: the run.
      count: number of processes.
      differing: index of a process -> further arguments of its command.
      patch: Python that every process executes before the command; ``INDEX`` is its number.
      absent: indices of processes that are not started.
      devices: of every process.
      experiment: directory for the experiment's file.
      arguments: further arguments of all commands.
      command: the subcommand.
    """

    def __init__(
        self, config, experiment, *, count=2, differing=None, patch="", absent=(), devices=0, arguments=(), command="pretrain"
    ):
        experiment.mkdir(parents=True, exist_ok=True)
        (experiment / "config.json").write_text(config.to_json())
        file = experiment / "experiment.py"
        file.write_text(
            "import pathlib, bert_jax\n"
            f"def config():\n    return bert_jax.Config.from_json(pathlib.Path({str(experiment / 'config.json')!r}).read_text())\n"
        )
        port, self.run = free_port(), config.run
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices or DEVICES // count), "BERT_JAX_ALLOCATOR": "system"}
        self.processes, self.output = {}, {}
        for index in range(count):
            if index not in absent:
                place = [f"--train.coordinator=127.0.0.1:{port}", f"--train.processes={count}", f"--train.process-id={index}"]
                words = [command, str(file), *place, *arguments, *(differing or {}).get(index, ())]
                source = f"INDEX = {index}\n{patch}\nimport sys\nfrom bert_jax.cli import main\nsys.exit(main())"
                pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
                self.processes[index] = subprocess.Popen([sys.executable, "-c", source, *words], env=environment, **pipes)

    def wait_for_step(self, step, seconds=240):
        """Return when the metrics have a step."""
        ends = time.monotonic() + seconds
        while not any(line["step"] >= step for line in read_metrics(self.run)):
            assert time.monotonic() < ends, "the run does not get on"
            assert all(process.poll() is None for process in self.processes.values()), self.ended()
            time.sleep(0.05)

    def send(self, number, *indices):
        for index in indices or self.processes:
            self.processes[index].send_signal(number)

    def ended(self, seconds=240, *, of=()):
        """Exit status and standard error of each process, or of some."""
        ends, found = time.monotonic() + seconds, {}
        for index in of or self.processes:
            try:
                self.output[index], error = self.processes[index].communicate(timeout=max(ends - time.monotonic(), 1))
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(
                    f"process {index} has not ended; standard error: {self.processes[index].communicate()[1]}"
                ) from None
            found[index] = (self.processes[index].returncode, error)
        return found

    def kill(self):
        for process in self.processes.values():
            process.kill()


def steps(config):
    """Complete checkpoints."""
    return sorted(int(path.name) for path in (epath.Path(config.run) / "checkpoints").iterdir() if path.name.isdecimal())
