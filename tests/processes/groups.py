"""Groups of processes that are all in the process of a test."""

from __future__ import annotations

import contextlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

from bert_jax.processes import Group

HOSTS = ("a", "b", "c", "d")


@contextlib.contextmanager
def connected(count):
    """The groups of several processes, in one."""
    pairs = {index: socket.socketpair() for index in range(1, count)}
    groups = [Group(0, HOSTS[:count], {index: pair[0] for index, pair in pairs.items()})]
    groups += [Group(index, HOSTS[:count], {0: pair[1]}) for index, pair in pairs.items()]
    try:
        yield groups
    finally:
        disconnect(groups)


def disconnect(groups):
    ends = [end for group in groups for end in group._connections.values()]
    for group in groups:
        group.close()
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    for thread in threading.enumerate():
        if thread.name == "bert-jax processes":
            thread.join(10)
    for end in ends:
        end.close()


def together(groups, call):
    """Call a function with every group at the same time, and return results or exceptions."""
    with ThreadPoolExecutor(len(groups)) as pool:
        futures = [pool.submit(call, group) for group in groups]
    return [future.exception() or future.result() for future in futures]
