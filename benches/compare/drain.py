"""A fast client for large bodies: reads of up to 1 MiB, where wrk's are of 8 KiB and are most of what a blob costs.

    drain.py PORT CONNECTIONS SECONDS PATH

Keeps each connection asking again for the same path, and prints the same figures as wrk. One thread and epoll:
it is the kernel that copies, so Python's slowness hardly shows.
"""

import json
import select
import socket
import sys
import time

MIB = 1 << 20


class Transfer:
    """One connection: the request under way, and how much of its body is still to come."""

    def __init__(self, port, request):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setblocking(False)
        self.request = request
        self.ask()

    def ask(self):
        self.left = None
        self.began = time.perf_counter()
        self.socket.send(self.request)

    def read(self, buffer):
        """One read; the bytes it gave."""
        if self.left is None:
            return self.read_head()
        got = self.socket.recv_into(buffer, min(self.left, MIB))
        if not got:
            raise RuntimeError("a body ended early")
        self.left -= got
        return got

    def read_head(self):
        seen = self.socket.recv(16384, socket.MSG_PEEK)
        end = seen.find(b"\r\n\r\n")
        if not seen:
            raise RuntimeError("a connection was closed")
        if end < 0:
            return 0
        head = seen[:end].lower().split(b"\r\n")
        if not head[0].split()[1].startswith(b"2"):
            raise RuntimeError(f"answered {head[0]!r}")
        lengths = [line.split(b":")[1] for line in head if line.startswith(b"content-length:")]
        self.left = int(lengths[0])
        return len(self.socket.recv(end + 4))


def drain(port, connections, seconds, path):
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    poll, transfers, buffer = select.epoll(), {}, bytearray(MIB)
    for _ in range(connections):
        transfer = Transfer(port, request)
        transfers[transfer.socket.fileno()] = transfer
        poll.register(transfer.socket, select.EPOLLIN)
    began, total, took = time.perf_counter(), 0, []
    while time.perf_counter() < began + seconds:
        for descriptor, _ in poll.poll(1):
            transfer = transfers[descriptor]
            total += transfer.read(buffer)
            if transfer.left == 0:
                took.append(time.perf_counter() - transfer.began)
                transfer.ask()
    return figures(total, took, time.perf_counter() - began)


def figures(total, took, seconds):
    took = sorted(took) or [seconds]
    at = lambda share: round(took[int((len(took) - 1) * share)] * 1e6)
    return {
        "requests": len(took),
        "bytes": total,
        "seconds": seconds,
        "p50_us": at(0.5),
        "p99_us": at(0.99),
        "errors": 0,
    }


if __name__ == "__main__":
    port, connections, seconds, path = sys.argv[1:]
    print(json.dumps(drain(int(port), int(connections), float(seconds), path)))
