"""Messages between the processes of a run, beside the collectives of JAX.

A collective in which one process takes no part blocks all others: it names nobody, and on some platforms it has no time limit. So
processes agree here before they start one, and a thread of each process ends it with a sentence when another one has failed, died,
stopped or fallen behind. Messages are lines of JSON over TCP between process 0 and each other process.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import os
import selectors
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from bert_jax.io.failures import explain

SILENCE = 20.0
"""Seconds without a message after which a process counts as stopped or unreachable; a healthy one sends a message every second."""
_PING_SECONDS = 1.0
# Seconds for the last words of a process, and for other processes to end before process 0, with which JAX's coordinator ends.
_GRACE = 3.0


class Group:
    """The processes of a run. A group of one has no thread and no connections.

    Args:
      index: of this process.
      hosts: name of the host of each process.
      connections: on process 0 one to each other process, on others one to process 0.
      limit: seconds for which processes wait for one that is alive but does not take part in a ``gather``.
    """

    def __init__(self, index: int, hosts: Sequence[str], connections: Mapping[int, socket.socket], *, limit: float = 300.0) -> None:
        self.index, self.hosts, self._limit = index, tuple(hosts), limit
        self.advice: Callable[[], str] = str
        """Returns what a user should know when the run is ended: what is saved, how to go on."""
        self.at_exit: list[Callable[[], object]] = []
        """Called before a failure ends this process, such as the release of a lease."""
        self._connections, self._buffers = dict(connections), dict.fromkeys(connections, b"")
        self._heard = dict.fromkeys(connections, time.monotonic())
        self._finished: set[int] = set()
        self._numbers = itertools.count()
        self._futures: dict[int, Future[list[Any]]] = {}
        # On process 0: what has arrived for each gather, and when the first value came.
        self._arrived: dict[int, dict[int, tuple[str, Any]]] = collections.defaultdict(dict)
        self._began: dict[int, float] = {}
        self._lock, self._ending, self._closed = threading.RLock(), threading.Lock(), False
        if connections:
            threading.Thread(target=self._serve, name="bert-jax processes", daemon=True).start()

    def __len__(self) -> int:
        return len(self.hosts)

    def describe(self, index: int) -> str:
        """A process with its host, for messages."""
        return f"process {index} on {self.hosts[index]}"

    def gather(self, name: str, value: Any) -> list[Any]:
        """The values of all processes, in their order; every process calls it at the same place.

        Args:
          name: the place, for messages.
          value: a value of JSON.
        """
        return self.start_gather(name, value).result()

    def start_gather(self, name: str, value: Any) -> Future[list[Any]]:
        """Send a value; the result is that of ``gather``."""
        future: Future[list[Any]] = Future()
        if len(self) == 1:
            future.set_result([value])
            return future
        with self._lock:
            number = next(self._numbers)
            self._futures[number] = future
            if self.index == 0:
                self._arrive(0, number, name, value)
            else:
                self._send(0, {"gather": number, "name": name, "value": value})
        return future

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """End all processes when one of several fails in the block: an exception of one would leave the others waiting.

        The process prints its sentence, sends it to the others, which print it too, and all exit with the status of the failure
        without Python's clean-up, which would wait for the others.
        """
        try:
            yield
        except BaseException as error:
            if len(self) == 1:
                raise
            sentence, status = explain(error)
            if sentence is None:
                traceback.print_exception(error)
                sentence, status = f"{type(error).__name__}: {error}", 1
            self._end(sentence, status, teller=self.index)

    def close(self) -> None:
        """Tell the others that this process has finished; that its connection ends is then no failure."""
        self._closed = True
        for index in self._connections:
            self._send(index, {"finished": self.index})

    def _send(self, index: int, message: dict[str, Any]) -> None:
        # The thread notices what is wrong with a connection.
        with self._lock, contextlib.suppress(OSError):
            self._connections[index].sendall(json.dumps(message).encode() + b"\n")

    def _serve(self) -> None:
        """The thread: receive, send a sign of life every second, and end the process if another one does not answer."""
        selector = selectors.DefaultSelector()
        for index, connection in self._connections.items():
            selector.register(connection, selectors.EVENT_READ, index)
        ping = 0.0
        while selector.get_map():
            for key, _ in selector.select(_PING_SECONDS / 2):
                if not self._receive(key.data):
                    selector.unregister(key.fileobj)
            if time.monotonic() - ping >= _PING_SECONDS:
                ping = time.monotonic()
                for index in self._connections:
                    self._send(index, {})
                if not self._closed:
                    self._check()

    def _receive(self, index: int) -> bool:
        """Handle what a process has sent; False at the end of its connection."""
        try:
            received = self._connections[index].recv(2**16)
        except OSError:
            received = b""
        if not received:
            if index not in self._finished and not self._closed:
                self._end(f"{self.describe(index)} has died", 1)
            return False
        self._heard[index] = time.monotonic()
        *lines, self._buffers[index] = (self._buffers[index] + received).split(b"\n")
        for message in map(json.loads, lines):
            if "gather" in message:
                with self._lock:
                    self._arrive(index, message["gather"], message["name"], message["value"])
            elif "values" in message:
                self._resolve(message["number"], message["values"])
            elif "finished" in message:
                self._finished.add(index)
            elif "end" in message:
                self._end(message["end"], message["status"], teller=message["teller"])
        return True

    def _arrive(self, index: int, number: int, name: str, value: Any) -> None:
        arrived = self._arrived[number]
        arrived[index] = (name, value)
        self._began.setdefault(number, time.monotonic())
        if len(arrived) < len(self):
            return
        values = [arrived[process][1] for process in range(len(self))]
        names = {process: arrived[process][0] for process in range(len(self))}
        del self._arrived[number], self._began[number]
        if other := next((process for process in names if names[process] != names[0]), None):
            self._end(f"{self.describe(other)} is at {names[other]!r}, but {self.describe(0)} at {names[0]!r}", 1)
        for process in self._connections:
            self._send(process, {"number": number, "values": values})
        self._resolve(number, values)

    def _resolve(self, number: int, values: list[Any]) -> None:
        with self._lock:
            future = self._futures.pop(number)
        future.set_result(values)

    def _check(self) -> None:
        """End the processes if one is silent or lags behind the others."""
        now = time.monotonic()
        for index, heard in self._heard.items():
            if now - heard > SILENCE and index not in self._finished:
                self._end(f"{self.describe(index)} has been silent for {SILENCE:.0f} seconds: it is stopped, or unreachable", 1)
        with self._lock:
            waiting = {number: (now - began, dict(self._arrived[number])) for number, began in self._began.items()}
        for seconds, arrived in waiting.values():
            missing = [process for process in range(len(self)) if process not in arrived]
            place = next(iter(arrived.values()))[0]
            if finished := [process for process in missing if process in self._finished]:
                self._end(f"{self.describe(finished[0])} has finished, but others wait for it at {place!r}", 1)
            if seconds > self._limit:
                names = " and ".join(map(self.describe, missing))
                self._end(f"{names} did not come to {place!r} within {self._limit:.0f} seconds of the others, though alive", 1)

    def _end(self, sentence: str, status: int, *, teller: int | None = None) -> None:
        """Print why the run ends, tell the other processes, and exit.

        Args:
          sentence: what has happened.
          status: exit status.
          teller: the process in which it happened and which says so; None: what this process has noticed of another one.
        """
        if not self._ending.acquire(blocking=False):
            threading.Event().wait()
        # A hanging disk must not keep the process.
        threading.Timer(_GRACE, os._exit, [status]).start()
        own = teller == self.index
        what = sentence if own or teller is None else f"{self.describe(teller)}: {sentence}"
        advice = ""
        with contextlib.suppress(Exception):
            advice = self.advice()
        print(f"bert-jax: {what.rstrip('.')}. {advice}".rstrip(), file=sys.stderr, flush=True)
        message = {"end": sentence, "status": status, "teller": teller}
        for index in self._connections:
            self._send(index, message)
        for call in self.at_exit:
            with contextlib.suppress(Exception):
                call()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        if self.index == 0:
            self._wait_for_others()
        os._exit(status)

    def _wait_for_others(self) -> None:
        """Wait until the other processes have closed their connections."""
        ends = time.monotonic() + _GRACE / 2
        for index in self._connections:
            with contextlib.suppress(OSError, ValueError):
                self._connections[index].settimeout(max(ends - time.monotonic(), 0.01))
                while self._connections[index].recv(2**16):
                    pass
