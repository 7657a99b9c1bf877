"""Many clients at once on one large blob, each of which takes all of it.

    crowd.py PORT CLIENTS PATH SIZE

The first of them hashes what comes; the others only count, by MSG_TRUNC: the kernel drops what they would read, since a
thousand copies of 256 MiB could not be hashed beside the servers. Prints the seconds until the last has all of it, the
percentiles of each client's own time, and the digest. One thread and epoll.
"""

import hashlib
import json
import select
import socket
import sys
import time

from drain import Transfer, figures

PIECE = 1 << 20


class Client(Transfer):
    """One client: after its one answer it leaves."""

    def __init__(self, port, request, digest=None):
        super().__init__(port, request)
        self.digest = digest

    def read(self, buffer):
        if self.left is None or self.digest is None:
            return self.drop() if self.left is not None else self.read_head()
        got = super().read(buffer)
        self.digest.update(buffer[:got])
        return got

    def drop(self):
        got = self.socket.recv_into(self.nothing, min(self.left, PIECE), socket.MSG_TRUNC)
        if not got:
            raise RuntimeError("a body ended early")
        self.left -= got
        return got


def crowd(port, count, path, size):
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode()
    poll, clients, buffer = select.epoll(), {}, memoryview(bytearray(PIECE))
    Client.nothing = buffer  # recv_into() wants room for what it is told to drop
    digest = hashlib.sha256()
    began, took = time.perf_counter(), []
    for number in range(count):
        client = Client(port, request, None if number else digest)
        clients[client.socket.fileno()] = client
        poll.register(client.socket, select.EPOLLIN)
    while clients:
        for descriptor, _ in poll.poll(1):
            client = clients[descriptor]
            client.read(buffer)
            if client.left == 0:
                took.append(time.perf_counter() - client.began)
                poll.unregister(descriptor)
                client.socket.close()
                del clients[descriptor]
    found = figures(count * size, took, time.perf_counter() - began)
    return {**found, "digest": f"sha256:{digest.hexdigest()}"}


if __name__ == "__main__":
    port, count, path, size = sys.argv[1:]
    print(json.dumps(crowd(int(port), int(count), path, int(size))))
