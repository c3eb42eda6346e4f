"""Where the time of a run goes, norms by layer, traces, and compilation that happens again."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

import bert_jax
from bert_jax import cli
from bert_jax.config.logging import LogConfig
from bert_jax.errors import BertWarning, UserError
from bert_jax.evaluation.xplane import read_trace
from bert_jax.models.arithmetic import forward_flop
from bert_jax.training import compilation, step, throughput
from bert_jax.training.goodput import EVENTS, Goodput, read_goodput
from bert_jax.training.job import Counts, TrainingJob
from bert_jax.training.logging import RunLog, read_metrics
from bert_jax.training.telemetry import Telemetry
from tests.conftest import MODEL, POLICY, make_batch
from tests.runs import config_of, interrupt_at, lines_of, quickly_compiled, write_data

pytestmark = pytest.mark.usefixtures("unoptimized")


class Clock:
    """Seconds that a test sets."""

    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now


class Device:
    """Metrics that are ready once the device has finished."""

    def __init__(self):
        self.finished = threading.Event()

    def block_until_ready(self):
        assert self.finished.wait(60)


class Simulation:
    """A start of a run whose parts take given seconds."""

    def __init__(self, run, clock, start, startup, *, shapes_vary=False, **log):
        names = [name for name in (*TrainingJob.__annotations__, *vars(TrainingJob)) if not name.startswith("_")]
        fields = dict.fromkeys(names, lambda *more: None) | {"run_dir": str(run), "log": LogConfig(loggers=(), **log)}
        fields["launcher"] = types.SimpleNamespace(shards=1, rows=np.arange)
        fields["shapes_vary"] = shapes_vary
        fields["flop"] = lambda counts, metrics: 4.0 * counts.tokens
        self.clock, self.step = clock, start
        self.log = RunLog(run, start=start, steps=10, loggers=())
        began = clock.now
        clock.now += startup
        self.telemetry = Telemetry(
            types.SimpleNamespace(**fields), self.log, self._compute, start=start, began=began, finished=False, clock=clock
        )

    def _compute(self, state, batch):
        compilation, seconds = batch
        if compilation:
            self.clock.now += compilation
            jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", compilation)
        self.clock.now += seconds
        return state, Device()

    def wait(self, seconds):
        with self.telemetry.waiting():
            self.clock.now += seconds

    def take_step(self, seconds, *, input, compilation=0.0):
        """A step whose call returns when the device has finished, and then the wait for the next batch."""
        _, device = self.telemetry.train_step(None, (compilation, seconds))
        self.step += 1
        device.finished.set()
        self.telemetry._ended.result()
        self.wait(input)
        self.telemetry.add(Counts(tokens=100, examples=10, slots=125))

    def spend(self, what, seconds):
        with self.telemetry.lost(what, self.step):
            self.clock.now += seconds

    def line(self):
        return self.telemetry.take(self.step, {})

    def close(self):
        self.telemetry.close()
        self.log.close()


def test_goodput_of_a_killed_and_resumed_run_is_that_computed_by_hand(tmp_path):
    clock = Clock(1000.0)
    first = Simulation(tmp_path, clock, start=0, startup=3.0, peak_flops=50.0)
    first.wait(1.0)
    first.take_step(2.0, input=0.5, compilation=5.0)
    first.take_step(2.0, input=0.0)
    line = first.line()
    assert {name: value for name, value in line.items() if name.endswith("_seconds")} == pytest.approx(
        {"startup_seconds": 3.0, "input_seconds": 1.5, "compilation_seconds": 5.0}
    )
    # 4 of 13.5 s; 200 tokens in the 10.5 s since the loop began; 4 FLOP per token, of 8 devices with 50 FLOP/s.
    assert line["goodput"] == pytest.approx(4 / 13.5)
    assert line["tokens_per_second"] == pytest.approx(200 / 10.5)
    assert (line["examples_per_step"], line["fill"]) == (10, 0.8)
    assert line["mfu"] == pytest.approx(4 * 200 / 10.5 / (50 * jax.device_count()))
    first.spend("checkpoint", 1.5)
    first.spend("evaluation", 4.0)
    first.take_step(2.0, input=0.0)
    first.take_step(3.0, input=0.0)
    line = first.line()
    assert {name: value for name, value in line.items() if name.endswith("_seconds")} == pytest.approx(
        {"checkpoint_seconds": 1.5, "evaluation_seconds": 4.0}
    )
    # Evaluation is no part of the throughput.
    assert line["tokens_per_second"] == pytest.approx(200 / 6.5)
    # One more step, of which nothing is stored: the process is killed at 1026, and its last line is torn.
    first.take_step(2.0, input=0.0)
    first.close()
    with open(tmp_path / EVENTS, "a") as file:
        file.write('{"event": "ti')

    clock.now += 60.0
    second = Simulation(tmp_path, clock, start=2, startup=6.0, peak_flops=50.0)
    second.wait(0.0)
    for _ in range(4):
        second.take_step(2.0, input=0.0)
    line = second.line()
    assert {name: value for name, value in line.items() if name.endswith("_seconds")} == pytest.approx(
        {"stopped_seconds": 62.0, "repeated_seconds": 5.0, "startup_seconds": 6.0}
    )
    second.spend("checkpoint", 1.0)
    second.close()

    # Steps 1 and 2 took 4 s, steps 3 and 4 were repeated; the four steps of the second start took 8 s.
    assert read_goodput(tmp_path) == {
        "goodput": round(12 / 101, 4),
        "step": 6,
        "starts": 2,
        "recompilations": 0,
        "total_seconds": 101.0,
        "productive_seconds": 12.0,
        "lost_seconds": {
            "checkpoint": 2.5,
            "compilation": 5.0,
            "evaluation": 4.0,
            "input": 1.5,
            "repeated": 5.0,
            "startup": 9.0,
            "stopped": 62.0,
        },
    }


def test_input_is_only_waited_for_while_the_devices_are_idle(tmp_path):
    clock = Clock(0.0)
    run = Simulation(tmp_path, clock, start=0, startup=0.0)
    for busy, wait, lost in ((5.0, 2.0, 0.0), (3.0, 7.0, 4.0)):
        before = run.telemetry._lost.get("input", 0.0)
        _, device = run.telemetry.train_step(None, (0.0, 0.0))
        with run.telemetry.waiting():
            clock.now += min(busy, wait)
            if busy < wait:
                device.finished.set()
                run.telemetry._ended.result()
                clock.now += wait - busy
        device.finished.set()
        assert run.telemetry._lost.get("input", 0.0) - before == lost
    run.close()


def test_steps_that_are_repeated_twice_count_once():
    goodput = Goodput()
    for time, start, steps in ((0, 0, (2, 4, 6)), (100, 4, (6,)), (200, 2, (4, 6, 8))):
        goodput.add({"event": "start", "time": float(time), "step": start})
        for number, last in enumerate(steps, 1):
            goodput.add({"event": "time", "time": time + 10.0 * number, "step": last, "productive": 10.0})
    assert goodput.productive == 40
    assert goodput.lost == {"repeated": 30, "stopped": 70 + 90}
    assert goodput.total == goodput.productive + sum(goodput.lost.values())


def test_a_run_accounts_for_all_of_its_time(run_config, monkeypatch, quick, capsys):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        bert_jax.pretrain(run_config)
    bert_jax.pretrain(run_config)
    summary = read_goodput(run_config.run)
    assert (summary["starts"], summary["step"], summary["recompilations"]) == (2, 8, 0)
    assert {"startup", "input", "compilation", "checkpoint", "evaluation", "stopped"} <= summary["lost_seconds"].keys()
    # A stopped run repeats nothing.
    assert "repeated" not in summary["lost_seconds"]
    spent = summary["productive_seconds"] + sum(summary["lost_seconds"].values())
    assert spent == pytest.approx(summary["total_seconds"], abs=0.01)
    lines = [line for line in read_metrics(run_config.run) if line["split"] == "train"]
    assert all(0 < line["goodput"] < 1 and "mfu" not in line for line in lines)
    # A complete run is left alone: what has passed since its end does not count as lost.
    bert_jax.pretrain(run_config)
    assert read_goodput(run_config.run) == summary
    capsys.readouterr()
    assert cli.main(["info", run_config.run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["goodput"] == summary


def test_processes_have_files_of_their_own(tmp_path):
    for name, waits in ((EVENTS, 1.0), ("goodput-10.jsonl", 3.0), ("goodput-2.jsonl", 2.0)):
        events = [
            {"event": "start", "time": 0.0, "step": 0},
            {"event": "time", "time": 4.0, "step": 1, "input": waits, "productive": 4 - waits},
        ]
        (tmp_path / name).write_text("".join(json.dumps(event) + "\n" for event in events))
    summary = read_goodput(tmp_path)
    assert (summary["goodput"], summary["input_seconds_by_process"]) == (0.75, [1.0, 2.0, 3.0])


def test_a_step_that_is_compiled_again_is_a_warning(tmp_path):
    clock = Clock(0.0)
    run = Simulation(tmp_path, clock, start=4, startup=0.0)
    run.telemetry._watch.close()
    run.telemetry._watch = compilation.CompilationWatch(jax.jit(lambda state, batch: (state, batch["input_ids"].sum())))
    for width in (8, 8, 16):
        batch = {"input_ids": jnp.ones((2, width), jnp.int32), "segment_ids": jnp.ones((2, 4), jnp.int32)}
        if width == 8:
            run.telemetry.train_step(jnp.zeros(3), batch)
            continue
        changed = r"what changed is input_ids from int32\[2,8\] to int32\[2,16\]; keep"
        with pytest.warns(BertWarning, match=rf"compiled again at step 7, which took \d+\.\d s: {changed}"):
            run.telemetry.train_step(jnp.zeros(3), batch)
    run.close()
    summary = read_goodput(tmp_path)
    assert summary["recompilations"] == 1
    assert compilation.describe_changes([f"{name} from a to b" for name in "wxyz"]).endswith("y from a to b and 1 more")


def test_rows_that_vary_by_design_are_no_warning(tmp_path):
    """The number of rows changes, and then the type of the state, of which the user is told."""
    run = Simulation(tmp_path, Clock(0.0), start=4, startup=0.0, shapes_vary=True)
    run.telemetry._watch.close()
    run.telemetry._watch = compilation.CompilationWatch(jax.jit(lambda state, batch: (state, batch["input_ids"].sum())))

    def batch(rows):
        return {name: jnp.ones((rows, 8), jnp.int32) for name in ("input_ids", "segment_ids")}

    for rows in (2, 2, 3):
        run.telemetry.train_step(jnp.zeros(3), batch(rows))
    with pytest.warns(BertWarning, match=r"compiled again at step 8, .*: what changed is  from float32\[3\] to int32\[3\]; keep"):
        run.telemetry.train_step(jnp.zeros(3, jnp.int32), batch(3))
    run.close()
    assert read_goodput(tmp_path)["recompilations"] == 2


def test_norms_by_layer_are_those_of_the_gradients_and_updates(quick):
    """An optimizer that keeps the gradients shows what they were; NumPy computes their norms one layer at a time."""

    def update(grads, state, params=None):
        return jax.tree.map(lambda grad: -0.5 * grad, grads), grads

    keeper = optax.GradientTransformation(init=lambda params: jax.tree.map(jnp.zeros_like, params), update=update)
    config = bert_jax.Config("none", bert_jax.DataConfig("none", sequence_length=32), model=MODEL)
    state = step.init_state(config, keeper)
    batch = make_batch([[12, 9], [30], [5], [17, 8]], 32)
    objective = step.pretraining(MODEL, POLICY)
    new, metrics = jax.jit(step.make_train_step(objective, keeper, norms=True))(state, batch)
    _, plain = jax.eval_shape(step.make_train_step(objective, keeper), state, batch)
    assert plain.keys() == {name for name in metrics if "/" not in name}
    norms = {name: float(value) for name, value in metrics.items() if "/" in name}
    for prefix, tree in {"grad_norm": new.opt_state, "update_norm": jax.tree.map(lambda grad: -0.5 * grad, new.opt_state)}.items():
        tree = jax.tree.map(np.asarray, tree)
        layers = tree["bert"]["layers"]
        parts = {f"layer_{index:02}": jax.tree.map(lambda leaf, index=index: leaf[index], layers) for index in range(3)}
        parts |= {name: value for name, value in tree["bert"].items() if name != "layers"}
        parts |= {name: value for name, value in tree.items() if name != "bert"}
        expected = {
            f"{prefix}/{name}": np.sqrt(sum((leaf.astype(float) ** 2).sum() for leaf in jax.tree.leaves(part)))
            for name, part in parts.items()
        }
        found = {name: value for name, value in norms.items() if name.startswith(prefix)}
        # The sums are rounded in another order, in float32.
        assert found == pytest.approx(expected, rel=1e-5)
        assert len(expected) >= 3 + 2
    whole = np.sqrt(sum(value**2 for name, value in norms.items() if name.startswith("grad_norm")))
    assert whole == pytest.approx(float(metrics["grad_norm"]), rel=1e-5)


@pytest.mark.slow
def test_norms_by_layer_do_not_depend_on_the_launcher(run_config, tmp_path):
    train = dataclasses.replace(run_config.train, steps=3, eval_every=3)
    runs = {}
    for parallel in ("mesh", "pmap"):
        config = dataclasses.replace(run_config, run=str(tmp_path / parallel), parallel=parallel, train=train)
        with quickly_compiled():
            bert_jax.pretrain(dataclasses.replace(config, log=LogConfig(norms=True)))
        runs[parallel] = [{name: value for name, value in line.items() if "/" in name} for line in lines_of(config.run, "train")]
    assert len(runs["mesh"]) == 3
    for line, expected in zip(runs["pmap"], runs["mesh"], strict=True):
        assert {"grad_norm/layer_02", "update_norm/embeddings", "grad_norm/nsp"} <= line.keys()
        # The devices' sums are added in another order; the first update of Adam is the sign of a gradient, however small.
        assert line == pytest.approx(expected, rel=1e-4)


def test_a_fine_tuning_run_logs_norms_and_its_goodput(tmp_path, init, quick):
    data = write_data(tmp_path / "data", "classify")
    config = config_of("classify", init, data, tmp_path / "run", epochs=1.0, log=LogConfig(norms=True, peak_flops=1e12))
    steps = bert_jax.finetune(config).step
    lines = [line for line in read_metrics(config.run) if line["split"] == "train"]
    assert {"grad_norm/layer_00", "update_norm/embeddings", "grad_norm/sequence_classification"} <= lines[-1].keys()
    assert all(0 < line["mfu"] < 1 for line in lines)
    assert read_goodput(config.run)["step"] == steps


def test_a_window_of_steps_is_traced(run_config, quick):
    train = dataclasses.replace(run_config.train, steps=3, eval_batches=1)
    config = dataclasses.replace(run_config, train=train, log=LogConfig(profile_steps=(2, 3)))
    bert_jax.pretrain(config)
    run = epath.Path(run_config.run)
    # Where TensorBoard's profile plugin and xprof look for traces.
    (trace,) = (run / "profile").glob("plugins/profile/*/*.xplane.pb")
    names = [event.name for events in read_trace(Path(trace)) for event in events]
    assert names.count("train") == 2
    assert any(name.startswith(("dot", "fusion", "wrapped")) or "fusion" in name for name in names)
    assert read_goodput(run)["lost_seconds"]["profile"] > 0


def test_a_trace_ends_with_the_run(tmp_path):
    run = Simulation(tmp_path, Clock(0.0), start=6, startup=0.0, profile_steps=(5, 100))
    run.take_step(1.0, input=0.0)
    run.close()
    assert list((tmp_path / "profile").glob("plugins/profile/*/*.xplane.pb"))


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA TITAN V", None),
    ],
)
def test_peaks_of_devices(kind, peak):
    assert throughput.gpu_peak(kind) == peak


def test_flop_of_training_steps():
    """Those of bench, for examples of equal length; without a backward pass through a frozen encoder."""
    counts = Counts(tokens=10 * 64, examples=10, slots=1000)
    forward = forward_flop(MODEL, np.full(10, 64), 96)
    assert throughput.training_flop(MODEL, counts, predictions=96) == pytest.approx(3 * sum(forward.values()))
    frozen = throughput.training_flop(MODEL, counts, predictions=96, frozen=True)
    assert frozen == pytest.approx(sum(forward.values()) + 2 * forward["head"])
    assert throughput.training_flop(MODEL, Counts(0, 0, 10)) == 0


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"loggers": ("wandb", "wandb")}, "log.loggers is wandb, wandb; name each logger once"),
        ({"profile_steps": (5, 4)}, r"log.profile_steps is \(5, 4\); give the first and the last step"),
        ({"profile_steps": (0, 4)}, r"log.profile_steps is \(0, 4\)"),
        ({"peak_flops": 0}, "log.peak_flops is 0; it must be greater than 0"),
    ],
)
def test_wrong_settings_are_sentences(fields, sentence, run_config):
    stored = json.loads(run_config.to_json())
    stored["log"] |= fields
    with pytest.raises(UserError, match=sentence):
        bert_jax.Config.from_json(json.dumps(stored))


def test_a_config_from_before_these_settings_is_read(run_config):
    stored = json.loads(run_config.to_json())
    del stored["log"]
    assert bert_jax.Config.from_json(json.dumps(stored)) == run_config
    config = dataclasses.replace(run_config, log=LogConfig(("wandb", "tensorboard"), True, (2, 3), 1e12))
    assert bert_jax.Config.from_json(config.to_json()) == config
