"""Find free ports, and say who holds a port that is needed."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack

import psutil


def free_ports(count: int, address: str = "127.0.0.1", *, rng: random.Random | None = None) -> list[int]:
    """Return ports that nobody listens on now.

    They lie below the range from which the kernel takes ports of outgoing connections, so none of those can slip in
    between this answer and the start of the server.
    """
    rng = rng or random.Random()
    found: list[int] = []
    with ExitStack() as stack:  # all are held until the last is found: no port twice
        while len(found) < count:
            port = rng.randrange(15000, 32000)
            held = stack.enter_context(socket.socket())
            try:
                held.bind((address, port))
            except OSError:
                continue
            found.append(port)
    return found


IP_FREEBIND = 15
"""From linux/in.h: an address may be bound before an interface has it. Python 3.11 does not name it."""


def is_free(address: str, port: int) -> bool:
    """Tell whether a server could listen there, once the machine has that address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def holder(port: int) -> str:
    """Describe the process that listens on a port, as well as this user may see it."""
    for connection in psutil.net_connections("tcp"):
        listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr[1] == port
        if listens and connection.pid:
            try:
                return f"process {connection.pid}: {' '.join(psutil.Process(connection.pid).cmdline())[:200]}"
            except psutil.Error:
                break
    return "a process that cannot be seen from here"
