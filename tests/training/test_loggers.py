"""Loggers: every line once, also where a run was killed and resumed from an earlier step, and no secrets."""

from __future__ import annotations

import importlib.machinery
import json
import re
import shutil
import struct
import sys
import time
import types

import pytest
from etils import epath

from bert_jax.errors import UserError
from bert_jax.training import loggers
from bert_jax.training.logging import RunLog, read_metrics

SECRET = "hunter2-canary"


def log_steps(log, steps, sync=None):
    for step in steps:
        log.write(step, "train", {"loss": 10.0 - step})
        if step == sync:
            log.write(step, "held_out", {"mlm_loss": 20.0 - step})
            log.sync()


def killed_and_resumed(tmp_path, *names):
    """A run that saves step 5, is killed after step 8 as it leaves its files, and is resumed from step 5."""
    first = RunLog(tmp_path / "first", start=0, steps=10, loggers=names)
    log_steps(first, range(1, 9), sync=5)
    # What has not been written to the disk is lost with the process.
    run = epath.Path(shutil.copytree(tmp_path / "first", tmp_path / "run"))
    first.close()
    second = RunLog(run, start=5, steps=10, loggers=names)
    log_steps(second, range(6, 11), sync=10)
    second.close()
    return run


def test_event_files_are_read_back_by_tensorboard(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = killed_and_resumed(tmp_path, "tensorboard")
    assert len(list((run / "tensorboard").iterdir())) == 2
    events = reader.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "held_out/mlm_loss"}
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(step, 10 - step) for step in range(1, 11)]
    assert [(event.step, event.value) for event in events.Scalars("held_out/mlm_loss")] == [(5, 15), (10, 10)]
    assert [line["step"] for line in read_metrics(run, split="train")] == list(range(1, 11))


def test_event_files_hold_what_was_synced(tmp_path):
    """Read record by record, without TensorBoard: nothing that was synced is lost with a killed process."""
    from tensorboardX.proto.event_pb2 import Event

    log = RunLog(tmp_path / "run", start=3, steps=10)
    log_steps(log, range(4, 8), sync=6)
    (path,) = (tmp_path / "run" / "tensorboard").iterdir()
    data, found, at = path.read_bytes(), [], 0
    log.close()
    while at < len(data):
        (size,) = struct.unpack("<Q", data[at : at + 8])
        found.append(Event.FromString(data[at + 12 : at + 12 + size]))
        at += size + 16
    assert found[0].file_version == "brain.Event:2"
    # TensorBoard drops steps from this one on that an earlier start has logged.
    assert (found[1].session_log.status, found[1].step) == (1, 4)
    scalars = [(event.step, value.tag, value.simple_value) for event in found[2:] for value in event.summary.value]
    assert scalars == [(4, "train/loss", 6), (5, "train/loss", 5), (6, "train/loss", 4), (6, "held_out/mlm_loss", 14)]


class Server:
    """W&B's documented rule: a row counts if its step is above that of the last row; a resumed run continues after it.

    https://docs.wandb.ai/guides/runs/resuming and the documentation of ``wandb.Run.log``.
    """

    def __init__(self):
        self.inits, self.rows = [], {}

    def module(self):
        module = types.ModuleType("wandb")
        module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        module.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
        module.Settings = lambda **settings: settings
        module.init = self.init
        return module

    def init(self, **how):
        self.inits.append(how)
        rows = self.rows.setdefault(how["id"], {})

        def log(values, step):
            if step > max(rows, default=-1):
                rows[step] = values

        return types.SimpleNamespace(log=log, define_metric=lambda *name, **how: None, finish=lambda: None)


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setitem(sys.modules, "wandb", server.module())
    return server


def test_weights_and_biases_receive_every_line_once(tmp_path, server):
    killed_and_resumed(tmp_path, "wandb")
    first, second = server.inits
    assert (first["id"], first["resume"]) == (second["id"], "allow")
    (rows,) = server.rows.values()
    steps = [values["step"] for values in rows.values() if "train/loss" in values]
    assert steps == list(range(1, 11))
    assert [values["held_out/mlm_loss"] for values in rows.values() if "train/loss" not in values] == [15, 10]


def test_rows_that_were_lost_with_a_killed_process_are_logged_again(tmp_path, server):
    first = RunLog(tmp_path, start=0, steps=10, loggers=("wandb",))
    log_steps(first, range(1, 9))
    first.close()
    (rows,) = server.rows.values()
    for step in (7, 8):
        del rows[2 * step]
    # The evaluation of the step that is resumed from was cut short.
    log = RunLog(tmp_path, start=6, steps=10, loggers=("wandb",))
    log.write(6, "held_out", {"mlm_loss": 1.0})
    log_steps(log, range(7, 10))
    log.close()
    assert [(values["step"], "train/loss" in values) for values in rows.values()] == [
        *((step, True) for step in range(1, 7)),
        (6, False),
        *((step, True) for step in range(7, 10)),
    ]


def test_weights_and_biases_are_given_the_stored_config_and_no_secrets(tmp_path, server, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    (tmp_path / "config.json").write_text('{"run": "runs/mine"}')
    RunLog(tmp_path, start=0, steps=1, loggers=("wandb",)).close()
    (how,) = server.inits
    assert (how["config"], how["project"], how["name"]) == ({"run": "runs/mine"}, "bert-jax", tmp_path.name)
    settings = how["settings"]
    assert settings["console"] == "off"
    assert settings["disable_code"]
    assert settings["disable_git"]
    assert settings["x_disable_meta"]
    assert SECRET not in repr(how)


def test_a_logger_that_cannot_be_used_is_a_sentence(tmp_path, server, monkeypatch):
    def refuse(**how):
        raise sys.modules["wandb"].errors.Error("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(UserError, match=r"cannot be used \(No API key configured.*\); run `wandb login`, set WANDB_MODE=offline"):
        RunLog(tmp_path, start=0, steps=1, loggers=("wandb",))
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"wandb, which is not installed; run pip install 'bert-jax\[wandb\]'"):
        loggers.check(("tensorboard", "wandb"))
    loggers.check(("tensorboard",))


def records(path):
    """Records of a file of wandb, which is a log of LevelDB after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        # A whole record, or the last part of one.
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def test_wandb_itself_stores_a_stopped_and_resumed_run_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", SECRET * 3)
    (tmp_path / "config.json").write_text('{"seed": 7}')
    for start, steps in ((0, range(1, 4)), (3, range(4, 6))):
        log = RunLog(tmp_path, start=start, steps=5, loggers=("wandb",))
        log_steps(log, steps, sync=5)
        log.close()
    for _ in range(300):
        found = [record for path in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")) for record in records(path)]
        if [record.WhichOneof("record_type") for record in found].count("exit") == 2:
            break
        # The process of wandb writes the end of its file later.
        time.sleep(0.1)
    rows = [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.WhichOneof("record_type") == "history"
    ]
    assert [(row["step"], row.get("train/loss")) for row in rows] == [(1, 9), (2, 8), (3, 7), (4, 6), (5, 5), (5, None)]
    runs = [record.run for record in found if record.WhichOneof("record_type") == "run"]
    assert len({run.run_id for run in runs}) == 1
    assert ("seed", "7") in [(update.key, update.value_json) for update in runs[0].config.update]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize("columns", [80, 140])
def test_steps_and_time_left_are_seen_in_a_narrow_terminal(tmp_path, monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    log = RunLog(tmp_path, start=0, steps=1_000_000, loggers=())
    metrics = {"loss": 8.64, "mlm_accuracy": 0.037, "nsp_accuracy": 0.656, "goodput": 0.373, "tokens_per_second": 14_699}
    log.progress(250_000, metrics)
    log.close()
    line = capsys.readouterr().err.splitlines()[-1]
    assert len(line.rstrip()) <= columns
    assert re.search(r"250000/1000000 \d:\d\d:\d\d ETA \S+ +loss 8\.640  mlm 3\.7%", line)
    assert ("14,699 tokens/s" in line) == (columns == 140)
