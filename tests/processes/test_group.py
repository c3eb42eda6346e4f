"""Groups of processes: gathering, joining, agreeing, and what ends them."""

from __future__ import annotations

import dataclasses
import json
import signal
import socket
import subprocess
import sys
import threading
import warnings

import pytest

from bert_jax.errors import BertWarning, RunError, UserError
from bert_jax.processes import Group, agreement, joining, require_agreement
from bert_jax.training.signals import StopSignal
from tests.processes.groups import connected, disconnect, together
from tests.processes.hosts import free_port


@pytest.mark.parametrize("count", [2, 4])
def test_every_process_gets_the_values_of_all(count):
    with connected(count) as groups:
        for turn in range(20):
            gathered = together(groups, lambda group, turn=turn: group.gather("a place", [group.index, turn]))
            assert gathered == [[[index, turn] for index in range(count)]] * count


def test_one_process_needs_no_others():
    assert Group(0, ["here"], {}).gather("a place", {"x": 1}) == [{"x": 1}]


# What one process does while the others wait for it, and what they then say; each scenario has processes a, b and c.
SCENARIOS = {
    "fails": ("raise RunError('the loss is nan')", 2, 1, "process 2 on c: the loss is nan. step 7 is saved"),
    "mistake": ("raise UserError('no corpus')", 1, 2, "process 1 on b: no corpus. step 7 is saved"),
    "first fails": ("raise RunError('the disk is full')", 0, 1, "process 0 on a: the disk is full. step 7 is saved"),
    "fault": ("raise ZeroDivisionError('boom')", 1, 1, "process 1 on b: ZeroDivisionError: boom. step 7 is saved"),
    "interrupted": ("raise KeyboardInterrupt", 1, 130, "process 1 on b: stopped by Ctrl-C. step 7 is saved"),
    "killed": ("os.kill(os.getpid(), 9)", 1, 1, "process 1 on b has died. step 7 is saved"),
    "first killed": ("os.kill(os.getpid(), 9)", 0, 1, "process 0 on a has died. step 7 is saved"),
    "stopped": ("os.kill(os.getpid(), 19)", 1, 1, "process 1 on b has been silent for 2 seconds"),
    "first stopped": ("os.kill(os.getpid(), 19)", 0, 1, "process 0 on a has been silent for 2 seconds"),
    "lags": ("time.sleep(30)", 2, 1, "process 2 on c did not come to 'the end' within 3 seconds of the others, though alive"),
    "elsewhere": ("group.gather('the middle', None)", 1, 1, "process 1 on b is at 'the middle', but process 0 on a at 'the end'"),
    "finished": ("group.close(); os._exit(0)", 1, 1, "process 1 on b has finished, but others wait for it at 'the end'"),
}
SCRIPT = """
import json, os, signal, socket, sys, tempfile, time
from bert_jax.errors import RunError, UserError
from bert_jax.processes import messages as module

module.SILENCE = 2.0

def process(index, pairs, action, file):
    os.dup2(file.fileno(), 2)
    # Of a pair, only its two processes may hold an end.
    own = {other: pair[0] for other, pair in pairs.items()} if index == 0 else {0: pairs[index][1]}
    for pair in pairs.values():
        for end in pair:
            if end not in own.values():
                end.close()
    group = module.Group(index, "abc", own, limit=3)
    group.advice = lambda: "step 7 is saved"
    with group.reporting():
        group.gather("the start", None)
        exec(action, globals() | {"group": group})
        group.gather("the end", None)
        # One that was stopped may find the others' last values, and then the ends of their connections.
        time.sleep(2 if action else 0)
    os._exit(0)

running = {}
for name, (action, actor) in json.loads(sys.argv[1]).items():
    pairs = {index: socket.socketpair() for index in (1, 2)}
    for index in range(3):
        file = tempfile.TemporaryFile("w+")
        pid = os.fork()
        if pid == 0:
            try:
                process(index, pairs, action if index == actor else "", file)
            finally:
                os._exit(99)
        running[name, index] = pid, file
    for pair in pairs.values():
        for end in pair:
            end.close()
began, found = time.monotonic(), {}
for (name, index), (pid, file) in running.items():
    while not (ended := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() < began + 20:
        time.sleep(0.05)
    if not ended[0]:
        # The end of the connection is the first thing that a process sees which was stopped.
        os.kill(pid, signal.SIGCONT)
        ended = os.waitpid(pid, 0)
    file.seek(0)
    found.setdefault(name, []).append((os.waitstatus_to_exitcode(ended[1]), file.read()))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def ends():
    scenarios = {name: scenario[:2] for name, scenario in SCENARIOS.items()}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, json.dumps(scenarios)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", SCENARIOS)
def test_all_processes_end_and_say_why(ends, name):
    _, actor, status, sentence = SCENARIOS[name]
    for index, (ended, error) in enumerate(ends[name]):
        if index != actor:
            assert (ended, error.startswith(f"bert-jax: {sentence}")) == (status, True), error
    ended, error = ends[name][actor]
    if "killed" in name or name == "finished":
        assert ended == (0 if name == "finished" else -signal.SIGKILL)
    else:
        assert ended == status
        assert ("Traceback" in error) == (name == "fault")
        assert error.rstrip().endswith("step 7 is saved")


def meet(places, timeout=10.0):
    """Connect processes that are all in this one."""
    port = free_port()
    made = [joining.Place(f"127.0.0.1:{port}", *place) for place in places]
    met = together(made, lambda place: joining.meet(place, timeout))
    disconnect([group for group in met if isinstance(group, Group)])
    return met


def test_processes_meet():
    groups = meet([(3, 0), (3, 1), (3, 2)])
    assert [group.index for group in groups] == [0, 1, 2]
    assert {group.hosts for group in groups} == {(socket.gethostname(),) * 3}


def test_missing_processes_are_named():
    sentence = r"^Processes 1, 3 of 4 did not come within 1 seconds \(train.process_timeout\); start the same command on every host"
    for error in meet([(4, 0), (4, 2)], 1.0):
        with pytest.raises(RunError, match=sentence):
            raise error
    (error,) = meet([(2, 1)], 1.0)
    with pytest.raises(RunError, match=r"^Process 0 could not be reached at 127.0.0.1:\d+ within 1 seconds"):
        raise error


@pytest.mark.parametrize(
    ("places", "sentence"),
    [
        ([(3, 0), (3, 1), (3, 1)], "were both started as process 1; every process needs a number of its own"),
        ([(3, 0), (2, 1)], "was started as one of 2 processes, but .* as one of 3"),
    ],
)
def test_processes_with_contradicting_places_are_refused(places, sentence):
    for error in meet(places):
        with pytest.raises(UserError, match=sentence):
            raise error


def test_a_port_in_use_is_a_sentence():
    port = free_port()
    with socket.create_server(("", port + 1)), pytest.raises(UserError, match=rf"^Port {port + 1} of this host cannot be used"):
        joining.meet(joining.Place(f"127.0.0.1:{port}", 2, 0), 1.0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "The environment names no cluster that JAX recognises; name it by --train.coordinator HOST:PORT"),
        ({"coordinator": "host"}, "train.coordinator is 'host'; name a host and a port"),
        ({"process_id": 2}, "train.process_id is 2, but there are 2 processes, counted from 0"),
    ],
)
def test_incomplete_places_are_refused(arguments, sentence):
    given = {"coordinator": "host:1", "processes": 2, "process_id": 0} | arguments if arguments else {}
    with pytest.raises(UserError, match=sentence):
        joining.join(True, **given)


def changed(config, **changes):
    """The config with fields ``section__name`` changed."""
    for name, value in changes.items():
        section, field = name.split("__")
        config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **{field: value})})
    return config


DIGESTS = {"content of the data": "1a", "vocabulary": "2b"}


def compare(config, other, digests=DIGESTS):
    with connected(3) as groups:
        return together(
            groups,
            lambda group: require_agreement(
                group, (other if group.index == 2 else config).to_json(), digests if group.index == 2 else DIGESTS
            ),
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"optim__peak_lr": 0.5},
        {"train__seed": 3},
        {"train__steps": 9},
        {"train__eval_every": 2},
        {"train__save_every": 2},
        {"data__batch_size": 32},
        {"model__hidden_size": 64},
        {"mesh__fsdp": 2},
        {"mask__rate": 0.3},
    ],
)
def test_configs_that_differ_are_named_on_every_process(run_config, changes):
    other = changed(run_config, **changes)
    (name, value) = next(iter(changes.items()))
    for error in compare(run_config, other):
        with pytest.raises(
            UserError, match=rf"^process 2 on c differs from process 0 on a \({name.replace('__', '.')}: {value}, not "
        ):
            raise error


@pytest.mark.parametrize("name", DIGESTS)
def test_data_that_differ_are_named(run_config, name):
    for error in compare(run_config, run_config, DIGESTS | {name: "3c"}):
        with pytest.raises(UserError, match=rf"^process 2 on c differs from process 0 on a \({name}: 3c, not {DIGESTS[name]}\); "):
            raise error


def test_the_same_run_agrees_wherever_its_data_lie(run_config):
    assert compare(run_config, changed(run_config, data__corpus="elsewhere")) == [None] * 3


def test_code_packages_and_settings_are_compared(run_config, monkeypatch):
    kinds = {"code of bert_jax": "5d", "package jax": "0.1", "XLA_FLAGS": "--other", "devices of a process": "9 of kind cpu"}
    original = agreement._surroundings
    for name, value in kinds.items():
        with connected(2) as groups:
            local = threading.local()
            monkeypatch.setattr(agreement, "_surroundings", lambda: original() | ({name: value} if local.index else {}))  # noqa: B023

            def check(group):
                local.index = group.index  # noqa: B023
                require_agreement(group, run_config.to_json(), {})

            for error in together(groups, check):
                assert f"({name}: {value}, not " in str(error)


def test_clocks_that_differ_are_a_warning(run_config, monkeypatch):
    import itertools

    clocks = itertools.count(1_000, 60)
    monkeypatch.setattr("bert_jax.processes.agreement.time.time", lambda: next(clocks))
    with warnings.catch_warnings(record=True) as caught, connected(2) as groups:
        warnings.simplefilter("always")
        assert together(groups, lambda group: require_agreement(group, run_config.to_json(), {})) == [None, None]
    assert [str(warning.message)[:54] for warning in caught if warning.category is BertWarning] in (
        ["The clock of process 1 on b differs by +60 seconds fro"],
        ["The clock of process 1 on b differs by -60 seconds fro"],
    )


def test_a_signal_of_one_process_stops_all_at_the_same_call():
    with connected(3) as groups:
        stops = [StopSignal(group) for group in groups]
        try:
            rounds = []
            for turn in range(4):
                if turn == 1:
                    stops[2].signal = signal.SIGTERM
                rounds.append(together(stops, lambda stop: stop.agreed()))
        finally:
            for stop in reversed(stops):
                stop.restore()
    assert rounds == [[None] * 3, [None] * 3, [signal.SIGTERM] * 3, [signal.SIGTERM] * 3]


def test_the_third_signal_acts_at_once(capfd):
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    stop = StopSignal(Group(0, ["here"], {}))
    try:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.agreed() is signal.SIGINT
        assert "stopping after this step; a third signal stops at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        stop.restore()
        signal.signal(signal.SIGINT, previous)
