"""The rows about a registry of one's own: layers pushed to it as dockerd pushes them, and pulled back.

Both servers keep what they are sent on the same disk, and sync it before they say 201. Each turn pushes content that
neither has seen.
"""

import hashlib
import http.client
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace

from content import MIB
from load import drain
from rows import GIB, Row
from servers import Distribution, Pierhead

NAME = "bench/pushed"


class Home(Pierhead):
    """Pierhead with repositories of its own."""

    def config(self, listen):
        return {**super().config(listen), "hosted": {"repositories": ["bench/**"]}}


def registry(bench, name):
    """A registry that runs all the time, by the name of the contender."""
    kept = bench.warm_servers.get(f"home-{name}")
    if not kept:
        folder = bench.place(f"home-{name}")
        kept = Home(folder, upstream=9) if name == Pierhead.name else Distribution(folder)
        bench.warm_servers[f"home-{name}"] = bench.start(kept)
    return kept


def layer(bench, size, number):
    """A file of that many bytes that no other is like, and its digest."""
    path = bench.folder / f"layer-{size}-{number}"
    block = os.urandom(MIB)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for part in range(size // MIB):
            piece = part.to_bytes(8, "little") + block[8:]
            digest.update(piece)
            file.write(piece)
    return SimpleNamespace(path=path, size=size, digest=f"sha256:{digest.hexdigest()}")


def push(port, one):
    """HEAD, POST, one streamed PATCH, PUT: what dockerd, podman and crane do."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def ask(method, path, wanted, body=None, length=0):
        headers = {} if method == "HEAD" else {"Content-Length": str(length)}
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status != wanted:
            raise RuntimeError(f"{method} {path}: {answer.status}")
        return (answer.getheader("Location") or "").removeprefix(f"http://127.0.0.1:{port}")

    ask("HEAD", f"/v2/{NAME}/blobs/{one.digest}", 404)
    location = ask("POST", f"/v2/{NAME}/blobs/uploads/", 202)
    with open(one.path, "rb") as file:
        # By the kernel: the client's own copying would be measured else.
        connection.putrequest("PATCH", location)
        connection.putheader("Content-Length", str(one.size))
        connection.putheader("Content-Type", "application/octet-stream")
        connection.endheaders()
        connection.sock.settimeout(None)  # with a timeout the socket does not block, and sendfile gives up
        sent = 0
        while sent < one.size:
            sent += os.sendfile(connection.sock.fileno(), file.fileno(), sent, one.size - sent)
    answer = connection.getresponse()
    answer.read()
    if answer.status != 202:
        raise RuntimeError(f"PATCH: {answer.status}")
    location = answer.getheader("Location").removeprefix(f"http://127.0.0.1:{port}")
    mark = "&" if "?" in location else "?"
    ask("PUT", f"{location}{mark}digest={one.digest}", 201)
    connection.close()


@dataclass
class Push(Row):
    """So many layers pushed, a few at a time."""

    size: int = 0
    count: int = 1
    at_once: int = 1

    def measure(self, bench, name):
        server = registry(bench, name)
        bench.pushes = getattr(bench, "pushes", 0)
        layers = [layer(bench, self.size, bench.pushes + n) for n in range(self.count)]
        bench.pushes += self.count
        os.sync()  # what others have still to write would be counted as this one's time
        before = server.process.cpu()
        began = time.perf_counter()
        with ThreadPoolExecutor(self.at_once) as pool:
            list(pool.map(lambda one: push(server.port, one), layers))
        seconds = time.perf_counter() - began
        gib = self.size * self.count / GIB
        cpu = server.process.cpu() - before
        for one in layers:
            one.path.unlink()
        return {"value": gib / seconds, "cpu_s_per_gib": cpu / gib}


@dataclass
class PullBack(Row):
    """One layer that was pushed, pulled over and over."""

    size: int = 0
    connections: int = 4

    def measure(self, bench, name):
        server = registry(bench, name)
        held = bench.__dict__.setdefault("pushed", {})
        if (name, self.size) not in held:
            one = layer(bench, self.size, f"{name}-back")
            push(server.port, one)
            one.path.unlink()
            held[name, self.size] = one.digest
        before = server.process.cpu()
        path = f"/v2/{NAME}/blobs/{held[name, self.size]}"
        figures = drain(server.port, path, self.connections, bench.seconds)
        gib = figures["bytes"] / GIB
        cpu = server.process.cpu() - before
        return {"value": gib / figures["seconds"], "cpu_s_per_gib": cpu / gib}


HOMES = ("pierhead", "distribution")
PUSHING = [
    Push("push-16", "8 layers of 16 MiB pushed, 2 at once", "GiB/s", HOMES, ("peer",), size=16 * MIB, count=8, at_once=2),
    Push("push-256", "a layer of 256 MiB pushed", "GiB/s", HOMES, ("peer",), size=256 * MIB),
    PullBack("back-16", "16 MiB pulled back, 8 connections", "GiB/s", HOMES, ("peer",), size=16 * MIB, connections=8),
    PullBack("back-256", "256 MiB pulled back, 4 connections", "GiB/s", HOMES, ("peer",), size=256 * MIB),
]
