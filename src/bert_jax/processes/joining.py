"""How the processes of a run find each other, before any device is used."""

from __future__ import annotations

import atexit
import json
import socket
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import jax
from jax._src import distributed as jax_distributed
from jax._src.clusters import ClusterEnv

from bert_jax.errors import RunError, UserError
from bert_jax.io.remote import first_line
from bert_jax.processes.messages import Group

_ADVICE = "start the same command on every host, and check that they reach each other over the network"
_EXPLICIT = "name it by --train.coordinator HOST:PORT, --train.processes and --train.process-id"
_HELLO_SECONDS = 10.0


@dataclass(frozen=True)
class Place:
    """The place of this process among those of a run."""

    coordinator: str
    """Address of process 0, HOST:PORT, at which JAX listens; the port after it is for the messages of `Group`."""
    processes: int
    process_id: int


_group = Group(0, [socket.gethostname()], {})


def group() -> Group:
    """The processes of this run; only this one unless ``join`` was called."""
    return _group


def join(
    distributed: bool,
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    timeout: float = 300.0,
) -> Group:
    """Join the other processes of a run if it has several, once; devices must not have been used.

    Args:
      distributed: whether there are other processes; the other arguments imply it.
      coordinator: HOST:PORT of process 0; None, as for the next two: as JAX detects it from the environment.
      processes: number of processes.
      process_id: index of this process.
      timeout: seconds to wait for the others, here and whenever one of them lags behind.

    Raises:
      UserError: the environment names no cluster, or the arguments contradict each other or those of other processes.
      RunError: another process did not come in time.
    """
    global _group
    # A program may also have called jax.distributed.initialize itself.
    initialized = jax.distributed.is_initialized()
    if not (initialized or distributed or coordinator or processes or process_id is not None) or len(_group) > 1:
        return _group
    if initialized:
        state = jax_distributed.global_state
        place = Place(str(state.coordinator_address), state.num_processes, state.process_id)
    else:
        place = _find_place(coordinator, processes, process_id, timeout)
    joined = meet(place, timeout)
    if not initialized:
        # Orbax asks for JAX's preemption service at every step, even where signals are handled otherwise.
        jax.config.update("jax_enable_preemption_service", True)
        jax.distributed.initialize(
            place.coordinator, place.processes, place.process_id, initialization_timeout=max(int(timeout), 1)
        )
    # Registered after JAX's own function, so that it is called before it.
    atexit.register(joined.close)
    _group = joined
    return joined


def _find_place(coordinator: str | None, processes: int | None, process_id: int | None, timeout: float) -> Place:
    # JAX has no public function that finds the place without connecting to it, which takes too long if a process is missing.
    try:
        detected = ClusterEnv.auto_detect_unset_distributed_params(coordinator, processes, process_id, None, None, int(timeout))
    except Exception as error:  # Each kind of cluster raises exceptions of its own.
        raise UserError(
            f"The place of this process in the cluster cannot be determined ({first_line(error)}); {_EXPLICIT}."
        ) from error
    address, count, index, _ = detected
    if address is None or count is None or index is None:
        raise UserError(f"The environment names no cluster that JAX recognises; {_EXPLICIT}.")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"train.coordinator is {address!r}; name a host and a port, such as host0:8476.")
    if not 0 <= index < count:
        raise UserError(f"train.process_id is {index}, but there are {count} processes, counted from 0.")
    return Place(address, count, index)


def meet(place: Place, timeout: float) -> Group:
    """Connect the processes."""
    if place.processes == 1:
        return Group(0, [socket.gethostname()], {})
    host, _, text = place.coordinator.rpartition(":")
    port = int(text) + (1 if int(text) < 2**16 - 1 else -1)
    if place.process_id == 0:
        hosts, connections = _await_others(place, port, timeout)
    else:
        hosts, connections = _reach_first(place, host.strip("[]"), port, timeout)
    for connection in connections.values():
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Longer than a stopped process may take to be noticed.
        connection.settimeout(60)
    return Group(place.process_id, hosts, connections, limit=timeout)


def _await_others(place: Place, port: int, timeout: float) -> tuple[list[str], dict[int, socket.socket]]:
    """On process 0: wait for all others."""
    try:
        dual = socket.has_dualstack_ipv6()
        server = socket.create_server(("", port), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual)
    except OSError as error:
        raise UserError(
            f"Port {port} of this host cannot be used ({error.strerror}); choose another coordinator port, by "
            "--train.coordinator or JAX_COORDINATOR_PORT."
        ) from error
    hosts: dict[int, str] = {0: socket.gethostname()}
    connections: dict[int, socket.socket] = {}
    ends = time.monotonic() + timeout
    with server, ExitStack() as on_failure:
        while len(hosts) < place.processes:
            server.settimeout(max(ends - time.monotonic(), 0.01))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                missing = [index for index in range(place.processes) if index not in hosts]
                names = ("Process " if len(missing) == 1 else "Processes ") + ", ".join(map(str, missing))
                sentence = (
                    f"{names} of {place.processes} did not come within {timeout:.0f} seconds (train.process_timeout); {_ADVICE}."
                )
                for connected in connections.values():
                    _tell(connected, {"failed": sentence})
                raise RunError(sentence) from None
            on_failure.callback(connection.close)
            connection.settimeout(_HELLO_SECONDS)
            if hello := _hear(connection):
                index, name = hello.get("process"), str(hello.get("host"))
                if refusal := _refusal(place, index, hello.get("processes"), name, hosts):
                    for connected in (connection, *connections.values()):
                        _tell(connected, {"refused": refusal})
                    raise UserError(refusal)
                assert isinstance(index, int)
                hosts[index], connections[index] = name, connection
        on_failure.pop_all()
    in_order = [hosts[index] for index in range(place.processes)]
    for connection in connections.values():
        _tell(connection, {"hosts": in_order})
    return in_order, connections


def _refusal(place: Place, index: Any, count: object, name: str, hosts: dict[int, str]) -> str | None:
    """Why a process cannot join, as a sentence."""
    if count != place.processes:
        return f"{name} was started as one of {count} processes, but {hosts[0]} as one of {place.processes}."
    if index in hosts:
        return f"{hosts[index]} and {name} were both started as process {index}; every process needs a number of its own."
    if not isinstance(index, int) or not 0 < index < place.processes:
        return f"{name} was started as process {index}; processes other than the first are 1 to {place.processes - 1}."
    return None


def _reach_first(place: Place, host: str, port: int, timeout: float) -> tuple[list[str], dict[int, socket.socket]]:
    """On another process: connect to process 0."""
    ends = time.monotonic() + timeout
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=max(ends - time.monotonic(), 0.01))
            break
        except OSError as error:
            if time.monotonic() + 0.2 > ends:
                raise RunError(
                    f"Process 0 could not be reached at {host}:{port} within {timeout:.0f} seconds (train.process_timeout; "
                    f"{first_line(error)}); {_ADVICE}."
                ) from error
            time.sleep(0.2)
    with ExitStack() as on_failure:
        on_failure.callback(connection.close)
        _tell(connection, {"process": place.process_id, "processes": place.processes, "host": socket.gethostname()})
        # Process 0 waits for the rest for as long as this one has waited for it, and says so.
        connection.settimeout(timeout + 10)
        answer = _hear(connection)
        if answer is None:
            raise RunError("Process 0 has ended before all processes had come; see its message.")
        if "failed" in answer:
            raise RunError(answer["failed"])
        if "refused" in answer:
            raise UserError(answer["refused"])
        on_failure.pop_all()
    return answer["hosts"], {0: connection}


def _tell(connection: socket.socket, message: dict[str, object]) -> None:
    # Whoever listens on a connection notices its end.
    with suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def _hear(connection: socket.socket) -> dict[str, Any] | None:
    """A line of JSON; None for anything else, such as a port scanner."""
    received = b""
    try:
        # Byte by byte, so that nothing of what follows is taken.
        while not received.endswith(b"\n"):
            byte = connection.recv(1)
            if not byte or len(received) > 2**16:
                return None
            received += byte
        message = json.loads(received)
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None
