"""The files of experiments/launch: the commands they run, and what they do after each exit status."""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from bert_jax.cli import pretrain as command
from bert_jax.training.logging import read_metrics
from bert_jax.training.pretraining import pretrain

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "experiments" / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
EXPERIMENT = "experiments/dynamic_masking.py"
ARGUMENTS = [EXPERIMENT, "--data.corpus", "gs://bucket/corpus", "--run", "runs/with a space", "--mask.rate", "linear(0.3, 0.15)"]
SAVED = 128 + signal.SIGTERM

# Programs that the scripts call. Each runs what the real one would start; bert-jax records how it was started.
PROGRAMS = {
    "bert-jax": """
printf -v start '%q ' "$JAX_LOCAL_DEVICE_IDS" "$@"
echo "$start" >>"$RECORD/starts" # one write, because processes start at the same time
if [[ $UNTIL_SIGNAL ]]; then
  trap 'echo TERM >>"$RECORD/signals"; exit 143' TERM
  echo $$ >"$RECORD/pid"
  while true; do sleep 0.05; done
fi
starts=$(wc -l <"$RECORD/starts")
read -ra statuses <<<"${STATUSES:-0}"
exit "${statuses[starts - 1]:-0}"
""",
    "ssh": 'echo "$2" >>"$RECORD/hosts"; exec bash -c "$3"',
    "srun": 'shift; exec "$@"',
    "scancel": '[[ $1 == --signal=TERM ]] && kill -TERM "$(<"$RECORD/pid")"',
    "scontrol": 'echo "$@" >>"$RECORD/scontrol"',
    "mpirun": """
[[ $1 == --host && $3 == -x ]] || exit 64
shift 4
export OMPI_COMM_WORLD_SIZE=2
for rank in 0 1; do OMPI_COMM_WORLD_RANK=$rank OMPI_COMM_WORLD_LOCAL_RANK=$rank "$@" || exit; done
""",
    "xpk": 'while [[ $1 != --command ]]; do shift; done; exec bash -c "$2"',
    "gcloud": 'while (($#)); do [[ $1 == --command ]] && exec bash -c "$2"; shift; done',
    "sudo": 'exec "$@"',
    "docker": """
entrypoint=
while [[ $1 != image ]]; do [[ $1 == --entrypoint ]] && entrypoint=$2; shift; done
shift
exec "$entrypoint" "$@"
""",
}


@pytest.fixture
def programs(tmp_path):
    """The environment in which scripts find the stand-ins; they record in ``tmp_path``, where a clone lies."""
    folder = tmp_path / "programs"
    folder.mkdir()
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / "experiments").symlink_to(ROOT / "experiments")
    for name, lines in PROGRAMS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{lines}\n")
        (folder / name).chmod(0o755)
    settings = {"RECORD": str(tmp_path), "PAUSE": "0", "SLURM_JOB_ID": "7", "HOSTS": "localhost:1,other:1"}
    settings |= {"TPU": "bert", "PROJECT": "project", "ZONE": "zone", "CLUSTER": "cluster", "IMAGE": "image"}
    return os.environ | settings | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def run(script, *arguments, environment, **settings):
    environment = environment | settings
    return subprocess.run(
        [LAUNCH / script, *arguments],
        cwd=Path(environment["RECORD"]) / "clone",
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def starts(tmp_path):
    """Arguments of each start of bert-jax, after the value of JAX_LOCAL_DEVICE_IDS."""
    return [shlex.split(line) for line in (tmp_path / "starts").read_text().splitlines()]


def parse(arguments, monkeypatch):
    """The config that ``bert-jax pretrain`` makes of its arguments."""
    configs = []
    monkeypatch.setattr(command, "resolve", lambda config: config)
    monkeypatch.setattr(command, "pretrain", lambda config: configs.append(config) or SimpleNamespace(signal=signal.SIGTERM))
    monkeypatch.chdir(ROOT)
    command.main(arguments)
    return configs[0]


def jobset():
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_executable_and_valid(script):
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], capture_output=True, check=True).stderr == b""


def documented_commands():
    """Every command for ``bert-jax pretrain`` in the comments of the files, and the arguments of the JobSet."""
    container = jobset()["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    yield pytest.param(container["args"][1:], id="jobset.yaml")
    for path in [*SCRIPTS, LAUNCH / "Dockerfile"]:
        found = re.findall(r"^# .*?(experiments/\w+\.py.*?)(?:  +#.*)?$", path.read_text(), flags=re.MULTILINE)
        yield from (pytest.param(shlex.split(line), id=f"{path.name}-{number}") for number, line in enumerate(found))


@pytest.mark.parametrize("arguments", list(documented_commands()))
def test_documented_commands_parse(arguments, monkeypatch):
    assert parse(arguments, monkeypatch).run


@pytest.mark.parametrize(
    ("script", "action", "added"),
    [
        ("restart.sh", [], []),
        ("slurm.sh", [], ["--train.distributed"]),
        ("xpk.sh", [], []),
        ("tpu_vm.sh", ["run"], []),
    ],
)
def test_scripts_pass_on_the_arguments(script, action, added, programs, tmp_path, monkeypatch):
    done = run(script, *action, *ARGUMENTS, environment=programs)
    assert done.returncode == 0, done.stderr
    [(_, *words)] = starts(tmp_path)
    assert words == ["pretrain", *ARGUMENTS, *added]
    config = parse(words[1:], monkeypatch)
    assert (config.run, config.train.distributed) == ("runs/with a space", bool(added))


def places(words):
    """Values of the options that give the place of a process."""
    return {name: words[words.index(f"--train.{name}") + 1] for name in ("coordinator", "processes", "process-id")}


@pytest.mark.parametrize("place", [["--train.coordinator", "node0:8476", "--train.processes", "2", "--train.process-id", "1"]])
def test_places_parse(place, monkeypatch):
    train = parse([*ARGUMENTS, "--train.distributed", *place], monkeypatch).train
    assert (train.coordinator, train.processes, train.process_id) == ("node0:8476", 2, 1)


def test_nodes_gives_every_host_its_place(programs, tmp_path):
    done = run("nodes.sh", *ARGUMENTS, environment=programs, HOSTS="node0 node1 node2", DIRECTORY=str(tmp_path / "clone"))
    assert done.returncode == 0, done.stderr
    wait_until(lambda: (tmp_path / "starts").exists() and len(starts(tmp_path)) == 3)
    assert (tmp_path / "hosts").read_text().split() == ["node0", "node1", "node2"]
    for number, (_, *words) in enumerate(sorted(starts(tmp_path), key=lambda words: places(words)["process-id"])):
        assert words[: len(ARGUMENTS) + 2] == ["pretrain", *ARGUMENTS, "--train.distributed"]
        assert places(words) == {"coordinator": "node0:8476", "processes": "3", "process-id": str(number)}


def test_open_mpi_gives_every_process_its_place_and_device(programs, tmp_path):
    assert run("openmpi.sh", *ARGUMENTS, environment=programs).returncode == 0
    for rank, (devices, *words) in enumerate(starts(tmp_path)):
        assert words[: len(ARGUMENTS) + 2] == ["pretrain", *ARGUMENTS, "--train.distributed"]
        assert places(words) == {"coordinator": "localhost:8476", "processes": "2", "process-id": str(rank)}
        assert devices == str(rank)
    assert rank == 1


@pytest.mark.parametrize(("statuses", "expected"), [("0", 0), ("2", 2), (f"{SAVED}", SAVED), ("1 134 137 0", 0), ("1 2", 2)])
def test_restart_starts_again_after_failures_only(statuses, expected, programs, tmp_path):
    assert run("restart.sh", EXPERIMENT, environment=programs, STATUSES=statuses).returncode == expected
    assert len(starts(tmp_path)) == len(statuses.split())


@pytest.mark.parametrize(
    ("status", "restarts", "requeued"),
    [(0, 0, False), (2, 0, False), (SAVED, 99, True), (1, 0, True), (134, 19, True), (1, 20, False)],
)
def test_slurm_requeues_after_failures_and_saved_runs(status, restarts, requeued, programs, tmp_path):
    done = run("slurm.sh", EXPERIMENT, environment=programs, STATUSES=str(status), SLURM_RESTART_COUNT=str(restarts))
    assert done.returncode == status
    assert ((tmp_path / "scontrol").exists() and (tmp_path / "scontrol").read_text() == "requeue 7\n") == requeued


@pytest.mark.parametrize(
    ("script", "sent", "requeued"),
    [
        ("restart.sh", signal.SIGTERM, False),
        ("restart.sh", signal.SIGINT, False),
        ("slurm.sh", signal.SIGTERM, False),
        ("slurm.sh", signal.SIGUSR1, True),
    ],
)
def test_a_signal_saves_the_run(script, sent, requeued, programs, tmp_path):
    """The run gets one SIGTERM, and the script waits for it and returns its status."""
    environment = programs | {"UNTIL_SIGNAL": "yes"}
    # Where the tests run in the background of a shell, SIGINT is ignored, and bash cannot change that.
    heeding = "import os, signal, sys\nsignal.signal(signal.SIGINT, signal.SIG_DFL)\nos.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", heeding, LAUNCH / script, EXPERIMENT]
    with subprocess.Popen(command, cwd=tmp_path / "clone", env=environment, start_new_session=True) as process:
        try:
            wait_until((tmp_path / "pid").exists)
            process.send_signal(sent)
            assert process.wait(timeout=30) == SAVED
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert (tmp_path / "signals").read_text() == "TERM\n"
    assert len(starts(tmp_path)) == 1
    assert (tmp_path / "scontrol").exists() == requeued


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_job_set_agrees_with_itself():
    spec = jobset()["spec"]
    [job] = spec["replicatedJobs"]
    template = job["template"]["spec"]
    pod = template["template"]["spec"]
    [container] = pod["containers"]
    columns, rows = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert template["parallelism"] == template["completions"] == columns * rows // chips
    assert template["backoffLimit"] == 0
    # A restart by the kubelet would not be seen by the policies.
    assert pod["restartPolicy"] == "Never"
    exits = template["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert (exits["containerName"], exits["values"]) == (container["name"], [2, SAVED])
    # The message of Kubernetes for a pod that a rule about exit codes matches.
    message = "Container bert for pod default/bert-slice-0-0-x failed with exit code {} matching FailJob rule at index 0"
    mistake, preempted = spec["failurePolicy"]["rules"]
    assert (mistake["action"], preempted["action"]) == ("FailJobSet", "RestartJobSetAndIgnoreMaxRestarts")
    [pattern] = mistake["onJobFailureMessagePatterns"]
    assert re.search(pattern, message.format(2))
    assert not re.search(pattern, message.format(SAVED))
    assert "--train.distributed" in container["args"]


def test_the_image_has_the_command_and_the_stores():
    instructions = re.findall(r"^([A-Z]+) (.*)", (LAUNCH / "Dockerfile").read_text(), flags=re.MULTILINE)
    for sources in (words.split()[:-1] for name, words in instructions if name == "COPY"):
        assert all((ROOT / source).exists() for source in sources)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    [extras] = [re.search(r'"\.\[(.*?)\]"', words)[1].split(",") for name, words in instructions if "pip install" in words]
    assert {"gcs", "s3"} == set(extras) <= set(setup["options.extras_require"])
    assert json.loads(dict(instructions)["ENTRYPOINT"])[-1] == setup["options.entry_points"]["console_scripts"].split()[0]


# Slurm's part: two processes with the variables that JAX reads.
SRUN = """
shift
export SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_NODES=1 SLURM_NTASKS=2
for rank in 0 1; do SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & done
wait -n && wait -n
"""


@pytest.mark.slow
def test_two_processes_under_slurm_train_as_one(run_config, programs, tmp_path):
    (tmp_path / "programs" / "srun").write_text(f"#!/usr/bin/env bash\n{SRUN}")
    program = [sys.executable, "-c", "import sys; from bert_jax.cli import main; sys.exit(main())"]
    (tmp_path / "programs" / "bert-jax").write_text(f'#!/usr/bin/env bash\nexec {shlex.join(program)} "$@"\n')
    (tmp_path / "experiment.py").write_text(
        f"import bert_jax\ndef config(): return bert_jax.Config.from_json({run_config.to_json()!r})"
    )
    environment = programs | {"BERT_JAX_ALLOCATOR": "system", "SLURM_JOB_ID": str(os.getpid())}
    done = run("slurm.sh", tmp_path / "experiment.py", "--run", tmp_path / "two", environment=environment)
    assert done.returncode == 0, done.stderr
    pretrain(run_config)
    for line, expected in zip(read_metrics(tmp_path / "two"), read_metrics(run_config.run), strict=True):
        for name in {"step", "mlm_loss", "nsp_loss", "grad_norm"} & expected.keys():
            # Sums over other devices are rounded in another order; the tolerance is that of tests/training/test_pretraining.py.
            np.testing.assert_allclose(line[name], expected[name], rtol=2e-4, err_msg=name)
