"""Measure how much memory a run takes in this process: ``python -m tests.cluster.growth DEVICES ROWS``, as a program of its own.

Prints the planned peak of all devices and the growth of the process while it trains, in bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax

from bert_jax.cluster.compilation import batch_shapes, estimate
from bert_jax.config.data import DataConfig
from bert_jax.config.model import ModelConfig
from bert_jax.config.optimizer import OptimConfig
from bert_jax.config.run import Config
from bert_jax.evaluation import benchmark
from bert_jax.training import launchers, optimizers, step

CLEAR_PEAK = "5"


def status(name):
    """Bytes of a line of /proc/self/status."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def main(devices, rows):
    config = Config(
        run="",
        data=DataConfig("", sequence_length=128, batch_size=devices * rows, packing=1),
        model=ModelConfig.size("tiny", layers="scan"),
        optim=OptimConfig(warmup_steps=1),
    )
    planned = devices * estimate(config, batch_shapes(config)).memory.peak
    launcher, optimizer = launchers.launch(config), optimizers.make_optimizer(config.optim, 10)
    objective = step.pretraining(config.model, benchmark.policy_without_vocabulary(config))

    def init():
        return step.init_state(config, optimizer)

    shapes = jax.eval_shape(init)
    layouts = launcher.shardings(shapes)
    batch = launcher.place(benchmark.random_batch(config.data, config.model.vocab_size))
    typed = jax.tree.map(lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout), shapes, layouts)
    with launcher.context():
        program = launcher.compile_step(step.make_train_step(objective, optimizer)).lower(typed, batch).compile()
        Path("/proc/self/clear_refs").write_text(CLEAR_PEAK)
        before = status("VmRSS")
        state = launchers.create(init, layouts)
        for _ in range(3):
            state, metrics = program(state, batch)
            jax.block_until_ready(metrics)
    print(planned, status("VmHWM") - before)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
    main(*map(int, sys.argv[1:]))
