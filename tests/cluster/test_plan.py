"""The plan of a run: its memory is that of the compiled step and of real runs, its arithmetic that of the paper."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax import cli
from bert_jax.cluster import hardware, plan, search
from bert_jax.cluster.changes import changes
from bert_jax.cluster.compilation import batch_shapes, estimate, resident_bytes
from bert_jax.cluster.plan import Device
from bert_jax.config.data import DataConfig
from bert_jax.config.mesh import MeshConfig
from bert_jax.config.optimizer import OptimConfig
from bert_jax.config.run import Config
from bert_jax.config.training import TrainConfig
from bert_jax.data import sources
from bert_jax.errors import UserError
from bert_jax.evaluation import benchmark
from bert_jax.training import launchers, optimizers, step
from tests.conftest import MODEL
from tests.runs import quickly_compiled

CONFIG = Config(
    run="",
    data=DataConfig("", sequence_length=32, batch_size=16),
    model=MODEL,
    optim=OptimConfig(name="adamw", warmup_steps=2),
    mesh=MeshConfig(fsdp=2, slices=2),
    train=TrainConfig(steps=10),
)
EXPERIMENT = """
import bert_jax

def config():
    return bert_jax.Config(
        run="", data=bert_jax.DataConfig("none", 16, 8), model=bert_jax.ModelConfig.size("tiny", vocab_size=64, layers="scan"),
        mask=bert_jax.MaskPolicy(rate=lambda step: 0.15 + 0.0 * step), optim=bert_jax.OptimConfig(warmup_steps=1),
        train=bert_jax.TrainConfig(steps=20),
    )
"""


@pytest.fixture(scope="module")
def estimated():
    with quickly_compiled():
        return estimate(CONFIG, batch_shapes(CONFIG))


def compiled_on_arrays(config):
    """The step of a real run, compiled with arrays instead of shapes."""
    launcher, optimizer = launchers.launch(config), optimizers.make_optimizer(config.optim, config.train.steps)

    def init():
        return step.init_state(config, optimizer)

    state = launchers.create(init, launcher.shardings(jax.eval_shape(init)))
    batch = {name: np.zeros(shape, dtype) for name, (shape, dtype) in batch_shapes(config).items()}
    objective = step.pretraining(config.model, benchmark.policy_without_vocabulary(config))
    with launcher.context():
        program = launcher.compile_step(step.make_train_step(objective, optimizer)).lower(state, launcher.place(batch)).compile()
    return state, program.memory_analysis()


def test_the_memory_is_that_of_the_compiled_step_of_a_run(estimated):
    with quickly_compiled():
        state, stats = compiled_on_arrays(CONFIG)
    memory = estimated.memory
    peak = stats.argument_size_in_bytes + stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    assert memory.peak == pytest.approx(peak, rel=0.01)
    for tree, size in ((state.params, memory.parameters), (state.opt_state, memory.optimizer)):
        assert size == sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))
    assert resident_bytes(CONFIG) == memory.parameters + memory.optimizer


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_process_grows_by_the_planned_memory():
    """BERT-Tiny with the whole vocabulary. Without XLA's YNNPACK, whose copies of operands are not part of any program's memory.

    And with glibc's own settings: with those of the command, by which freed memory is kept, a process grows by 5 % more.
    """
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment |= {"XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type=", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, "-m", "tests.cluster.growth", "1", "64"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    planned, grown = map(int, done.stdout.split())
    assert grown == pytest.approx(planned, rel=0.1)


def test_the_arithmetic_is_that_of_the_paper(estimated):
    """Written out from the shapes: two operations for each multiplication of every matrix product, forward once, backward twice."""
    rows, length, width, inner, layers, vocab = 16, 32, 32, 64, 3, 97
    predictions = rows * round(0.15 * length)
    layer = 2 * length * (4 * width * width + 2 * width * inner) + 4 * length * length * width
    head = predictions * 2 * width * (width + vocab) + rows * 2 * width * (width + 2)
    assert estimated.flop == pytest.approx(3 * (rows * layers * layer + head))
    assert estimated.recomputed == 0
    assert estimated.mesh == {"slice": 2, "data": 2, "fsdp": 2, "tensor": 1}


@pytest.mark.slow
@pytest.mark.parametrize(("remat", "layers", "share"), [("dots", "scan", "attention"), ("full", "unroll", None)])
def test_recomputation_is_stated_apart(estimated, remat, layers, share):
    """Also where the CPU's compiler would undo it, in unrolled layers."""
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, remat=remat, layers=layers))
    with quickly_compiled():
        found = estimate(config, batch_shapes(config))
    forward = benchmark.forward_flop(MODEL, np.full(16, 32), 0)
    assert found.flop == estimated.flop
    assert found.recomputed == sum(value for phase, value in forward.items() if phase != "head" and share in (None, phase))
    assert found.memory.temporary < estimated.memory.temporary


def test_a_change_is_tried_until_one_fits(monkeypatch):
    """Lower bounds rule out what cannot fit; what remains is compiled."""
    peaks = {"--model.remat dots": 90, "--model.remat full": 80, "--optim.accumulate 2": 40}
    compiled = []

    def pretended(config, shapes, *, masked):
        options = next((change.options for change in changes(CONFIG, 8) if change.config == config), None)
        compiled.append(options)
        memory = bert_jax.cluster.compilation.Memory(10, 0, 0, peaks.get(options, 110) - 10)
        return bert_jax.cluster.compilation.Estimate(1, memory, 1.0, 0.0, {}, [], {}, 0.0)

    monkeypatch.setattr(search, "estimate", pretended)
    monkeypatch.setattr(search, "resident_bytes", lambda config: 60 if config.model.remat == "dots" else 10)
    outcome = search.search(search.Task(CONFIG, batch_shapes(CONFIG), False, 50))
    assert compiled == [None, "--model.remat full", "--optim.accumulate 2"]
    assert [(trial.options, trial.peak, trial.fits) for trial in outcome.trials] == [
        ("--model.remat dots", 60, False),
        ("--model.remat full", 80, False),
        ("--optim.accumulate 2", 40, True),
    ]


def test_changes_keep_the_batch_until_nothing_else_is_left():
    found = list(changes(dataclasses.replace(CONFIG, mesh=MeshConfig(4, 1, 2)), 8))
    assert [change.options for change in found] == [
        "--model.remat dots",
        "--model.remat full",
        "--optim.accumulate 2",
        "--optim.accumulate 4",
        "--mesh.fsdp 2 --mesh.data -1",
        "--mesh.fsdp 4 --mesh.data -1",
        "--model.remat full --mesh.fsdp 4 --mesh.data -1 --optim.accumulate 4",
        "--model.remat full --mesh.fsdp 4 --mesh.data -1 --data.batch-size 8",
        "--model.remat full --mesh.fsdp 4 --mesh.data -1 --data.batch-size 4",
    ]
    assert [change.same_result for change in found] == [True] * 7 + [False] * 2
    for change in found:
        launchers.launch(change.config)


def test_padding_is_measured_on_the_corpus(run_config, monkeypatch):
    data = dataclasses.replace(run_config.data, packing=4)
    padding = plan._padding(dataclasses.replace(run_config, data=data), sources.open_data(data))
    batches = sources.open_data(data).train_batches(seed=0, rows=np.arange(16))
    filled = np.mean([(next(batches)["segment_ids"] > 0).mean() for _ in range(20)])
    batches.close()
    assert padding.packed == pytest.approx(filled, abs=0.05)
    assert padding.unpacked < padding.packed


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(EXPERIMENT)
    return str(path)


def test_the_command_plans_for_devices_that_do_not_exist(experiment, capsys):
    """With a function as a schedule, which the child process has to receive."""
    arguments = ["plan", experiment, "--devices", "4", "--memory", "1GB", "--flops", "1e12", "--mfu", "0.5", "--mesh.fsdp", "2"]
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mesh"] == {"slice": 1, "data": 2, "fsdp": 2, "tensor": 1}
    assert found["memory"]["fits"] is True
    assert found["memory"]["peak"] == sum(found["memory"][name] for name in ("parameters", "optimizer", "batch", "temporary"))
    assert found["seconds_per_step"] == pytest.approx(found["flop_per_step"] / (4 * 1e12 * 0.5))
    assert found["days"] == pytest.approx(20 * found["seconds_per_step"] / 86400)
    assert found["tokens"] == 20 * 8 * 16
    assert found["sent_bytes_per_step"]["fsdp"] > found["sent_bytes_per_step"]["data"] > 0
    assert found["sent_bytes_per_step"]["slice"] == 0


def test_the_summary_names_a_change(capsys):
    memory = bert_jax.cluster.compilation.Memory(10**6, 2 * 10**6, 0, 7 * 10**6)
    fields = dict(parameter_count=5, memory=memory, flop=1e12, recomputed=0.0, sent={"slice": 4e6, "data": 0.0}, collectives=[])
    found = plan.Plan(
        devices=4,
        device=Device(memory=9 * 10**6, flops=1e12, mfu=0.25),
        estimate=bert_jax.cluster.compilation.Estimate(**fields, mesh={"slice": 2, "data": 2}, seconds=0.0),
        trials=[search.Trial("--model.remat full", 8 * 10**6, True, True)],
        padding=plan.Padding(0.95, 0.6),
        steps=86400,
        tokens_per_step=100.0,
    )
    lines = bert_jax.cli.plan.summary(CONFIG, found)
    text = "\n".join(lines)
    assert "5 parameters on 4 devices (slice 2 x data 2)" in text
    assert "10.0 MB of 9.0 MB: does not fit" in text
    assert "--model.remat full" in text
    assert "8.0 MB: fits" in text
    assert "4.0 MB by each device" in text
    assert "1.00 days, 1,000.00 ms a step at 25% of 1 TFLOP/s" in text
    assert "5.0%; 40.0% with one example in each row" in text
    assert "sent along data" not in text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--devices", "4", "--mesh.fsdp", "3"), "A mesh of data -1 x fsdp 3 x tensor 1 does not cover 4 devices"),
        (("--devices", "4", "--memory", "16 bananas"), "The memory '16 bananas' is not a size; write it as 16GB or 15.5GiB."),
        (("--devices", "0"), "devices is 0; it must be greater than 0."),
        (("--devices", "4", "--mfu", "0"), "mfu is 0.0; it must be greater than 0."),
        (("--devices", "4", "--hardware", "abacus"), "There is no hardware 'abacus'; choose one of v4"),
        (("--devices", "4", "--train.words", "1M"), "give --train.steps. none is not a corpus"),
        ((), "The number of devices is unknown; give --devices"),
    ],
)
def test_mistakes_are_one_sentence(experiment, options, sentence, capfd):
    assert cli.main(["plan", experiment, *options]) == 2
    error = capfd.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


def test_a_config_that_does_not_exist_is_one_sentence(capsys):
    assert cli.main(["plan", "none.py", "--devices", "4"]) == 2
    assert capsys.readouterr().err == "bert-jax: There is no experiment none.py.\n"


@pytest.mark.parametrize(
    ("text", "size"),
    [("16GB", 16 * 10**9), ("16gib", 16 * 2**30), ("1.5 TB", 1500 * 10**9), ("1024", 1024), ("80 GB ", 80 * 10**9)],
)
def test_sizes_of_memory(text, size):
    assert hardware.parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "GB", "16XB", "-1GB", "0GB", "1e9", "16 G B"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UserError, match="is not a size"):
        hardware.parse_memory(text)
