"""The rows of the comparison: what is asked of every server, and the figures that come of it.

A figure's key says its unit. `value` is what a row is about, in the row's own unit.
"""

import re
import statistics
import time
from dataclasses import dataclass

from content import MIB
from load import Fleet, Idle, Puller, crowd, drain, h2load, pull, take_all, wrk
from servers import LOG_FLUSH

GIB = 1 << 30
PEERS = ("nginx-file", "nginx-cache", "distribution")
TLS_PEERS = ("nginx-file", "nginx-cache")
MIRRORS = ("pierhead", "nginx-cache", "distribution")
SECURED = ("TLS 1.3", "HTTP/2")


@dataclass
class Row:
    """`against`: whom the others are compared with; `peer` is the best that is not Pierhead."""

    name: str
    title: str
    unit: str
    contenders: tuple
    against: tuple = ("peer", "nginx-cache")
    more_is_better: bool = True
    is_difference: bool = False  # compared by subtraction, not by division
    rounds_max: int = 1000  # for rows that take minutes

    def measure(self, bench, name):
        raise NotImplementedError


@dataclass
class Warm(Row):
    """Load on what is held. `things` picks from the content; `paths` may make a file of requests of it."""

    things: callable = None
    connections: int = 32
    paths: callable = None
    tls: bool = False
    streams: int = 0  # of HTTP/2 on each connection, over TLS; 0: HTTP/1.1
    idle: int = 0

    def measure(self, bench, name):
        things = self.things(bench.content)
        server = bench.warm(name, dict.fromkeys(things))
        server.empty_logs()
        with Idle(server, bench.content.image.manifest, min(self.idle, bench.idle)):
            return self.load(bench, server, things)

    def load(self, bench, server, things):
        process = server.process
        process.forget_peak()
        pids = process.pids()
        before = process.cpu(pids)
        figures = self.run(bench, server, things)
        cpu = process.cpu(pids) - before
        per_second = figures["requests"] / figures["seconds"]
        gib = figures["bytes"] / GIB
        found = {"value": per_second if self.unit == "requests/s" else gib / figures["seconds"]}
        if self.unit == "requests/s":
            found["cpu_us_per_request"] = cpu / figures["requests"] * 1e6
        else:
            found["cpu_s_per_gib"] = cpu / gib
        found["p50_ms"] = figures["p50_us"] / 1e3
        found["p99_ms"] = figures["p99_us"] / 1e3
        found["peak_mb"] = process.memory("VmHWM") / 1e6
        return found

    def run(self, bench, server, things):
        if self.streams:
            return h2load(
                server.url(tls=True) + things[0].path, self.connections, self.streams, bench.seconds, bench.folder
            )
        if bench.client == "drain" and self.unit == "GiB/s" and not self.tls and not self.paths:
            return drain(server.port, things[0].path, self.connections, bench.seconds)
        file = None
        if self.paths:
            file = bench.folder / f"{self.name}.paths"
            file.write_text("\n".join(self.paths(things)))
        figures = wrk(server.url(self.tls) + things[0].path, self.connections, bench.seconds, file)
        if self.paths is ranges and figures["bytes"] > figures["requests"] * 1.1 * MIB:
            raise RuntimeError(f"{server.title} sends more than the range that was asked for")
        return figures


def ranges(things):
    """Every MiB of a blob, far apart from one request to the next."""
    count = things[0].size // MIB
    for number in range(count):
        start = number * 619 % count * MIB  # 619 is prime: each comes up once
        yield f"{things[0].path} bytes={start}-{start + MIB - 1}"


@dataclass
class Cold(Row):
    """A whole image, pulled through a server that has none of it, 3 layers at a time."""

    upstream: str = "far"

    def measure(self, bench, name):
        server = bench.cold(name, self.upstream)
        try:
            seconds = pull(server, bench.content.image)
            found = {"value": seconds}
            if server.process:
                gib = sum(layer.size for layer in bench.content.image.layers) / GIB
                found["cpu_s_per_gib"] = server.process.cpu() / gib
                found["peak_mb"] = server.process.memory("VmHWM") / 1e6
            return found
        finally:
            bench.end(server)


@dataclass
class Large(Row):
    """One large blob that the server does not hold, from an upstream that is slow on each connection."""

    def measure(self, bench, name):
        server = bench.cold(name, "far")
        try:
            began = time.perf_counter()
            Puller(server.port).take(bench.content.large)
            return {"value": time.perf_counter() - began}
        finally:
            bench.end(server)


@dataclass
class FirstByte(Row):
    """From the request for a blob that nobody holds to its first byte."""

    def measure(self, bench, name):
        server = bench.cold(name, "far")
        try:
            puller = Puller(server.port)
            puller.resolve(bench.content.image)  # the connection and the upstream's are there
            return {"value": statistics.median(puller.take(thing) for thing in bench.content.fresh) * 1e3}
        finally:
            bench.end(server)


@dataclass
class Memory(Row):
    """What a fresh server takes with nothing to do, and with connections that wait."""

    def measure(self, bench, name):
        server = bench.cold(name, "nginx")
        try:
            manifest = bench.content.image.manifest
            Puller(server.port).take(manifest)
            alone = server.process.memory("VmRSS")
            with Idle(server, manifest, bench.idle):
                time.sleep(0.2)
                full = server.process.memory("VmRSS")
            return {
                "value": (full - alone) / bench.idle / 1024,
                "idle_mb": alone / 1e6,
                "connected_mb": full / 1e6,
                "connections": bench.idle,
            }
        finally:
            bench.end(server)


@dataclass
class Crowd(Row):
    """Many clients on one blob that nobody holds, each of whom checks all of it."""

    clients: int = 50

    def measure(self, bench, name):
        server = bench.cold(name, "nginx")
        try:
            began = time.perf_counter()
            take_all(server, [bench.content.middle] * self.clients, self.clients)
            found = {"value": time.perf_counter() - began, "peak_mb": server.process.memory("VmHWM") / 1e6}
            found["cpu_s_per_gib"] = server.process.cpu() / (bench.content.middle.size * self.clients / GIB)
            return found
        finally:
            bench.end(server)


@dataclass
class Many(Row):
    """Many images that nobody holds, pulled by many clients, while one asks for what is held all the time: how long the
    pulls take, and how long it waits for its answers."""

    clients: int = 50
    pause: float = 0.002  # seconds between its requests: it is to see the load and not to be it

    def measure(self, bench, name):
        server, images = bench.cold(name, "nginx"), bench.content.fleet
        upstream = bench.upstream("nginx")
        try:
            puller = Puller(server.port)
            puller.take(bench.content.image.manifest)
            upstream.empty_logs()
            before, waits = server.process.cpu(), []
            with Fleet(server, images, self.clients) as fleet:
                while fleet.is_pulling():
                    began = time.perf_counter()
                    puller.take(bench.content.image.manifest)
                    waits.append((time.perf_counter() - began) * 1e3)
                    time.sleep(self.pause)
                figures = fleet.figures()
            waits.sort()
            blobs = [thing for image in images for thing in image.things]
            # By name: what another row has left under way is logged when it is cut off.
            sent = bodies_logged(upstream, f"(?:{'|'.join(blob.path for blob in blobs)})")
            return {
                "value": figures["seconds"],
                "cpu_s_per_gib": (server.process.cpu() - before) / (figures["bytes"] / GIB),
                "p50_ms": waits[len(waits) // 2],
                "p99_ms": waits[len(waits) * 99 // 100],
                "peak_mb": server.process.memory("VmHWM") / 1e6,
                "asked_upstream": len(sent),
                "sent_by_upstream": sum(sent) / sum(blob.size for blob in blobs),
            }
        finally:
            bench.end(server)


def bodies_logged(nginx, pattern):
    """The bytes of each answer to GET that an nginx has logged for paths of this pattern, once it has written its log."""
    time.sleep(3 * LOG_FLUSH)
    log = (nginx.folder / "access.log").read_text()
    # nginx's "combined": the request in quotes, the status, the bytes of the body.
    return [int(n) for n in re.findall(rf'"GET {pattern} [^"]*" \d+ (\d+)', log)]


@dataclass
class Storm(Row):
    """A thousand clients at once on one large blob that nobody holds. All of them count, one of them hashes."""

    def measure(self, bench, name):
        server, thing = bench.cold(name, "nginx"), bench.content.large
        upstream = bench.upstream("nginx")
        try:
            upstream.empty_logs()
            figures = crowd(server.port, thing, bench.content.crowd)
            if figures["digest"] != thing.digest:
                raise RuntimeError(f"{server.title} sent wrong bytes: {figures['digest']}")
            sent = bodies_logged(upstream, re.escape(thing.path))
            return {
                "value": figures["seconds"],
                "cpu_s_per_gib": server.process.cpu() / (thing.size * bench.content.crowd / GIB),
                "p50_ms": figures["p50_us"] / 1e3,
                "p99_ms": figures["p99_us"] / 1e3,
                "peak_mb": server.process.memory("VmHWM") / 1e6,
                "asked_upstream": len(sent),
                "sent_by_upstream": sum(sent) / thing.size,
            }
        finally:
            bench.end(server)


def blob(name, size, connections, pick, **more):
    contenders = ("pierhead", *PEERS)
    title = f"blob {size}, {connections} connections"
    if more.get("tls"):
        contenders = ("pierhead", *TLS_PEERS)
        title = f"{SECURED[bool(more.get('streams'))]}: {title}"
    if more.get("streams"):
        title += f" × {more['streams']} streams"
    return Warm(name, title, "GiB/s", contenders, things=pick, connections=connections, **more)


def manifest(name, title, **more):
    contenders = more.pop("contenders", ("pierhead", *PEERS))
    return Warm(name, title, "requests/s", contenders, things=lambda c: [c.image.manifest], **more)


def cold(name, title, upstream):
    against = ("direct", "nginx-cache")
    return Cold(name, title, "s", ("direct", *MIRRORS), against, more_is_better=False, upstream=upstream)


ROWS = [
    manifest("manifest", "manifest by digest, 32 connections"),
    blob("blob-1", "1 MiB", 16, lambda c: [c.small]),
    blob("blob-16", "16 MiB", 8, lambda c: [c.middle]),
    blob("blob-256", "256 MiB", 4, lambda c: [c.large]),
    blob("ranges", "1 GiB in ranges of 1 MiB", 16, lambda c: [c.huge], paths=ranges),
    Warm(
        "day",
        "a registry's day (Zipf), 32 connections",
        "requests/s",
        ("pierhead", *PEERS),
        things=lambda c: c.day,
        paths=lambda things: [thing.path for thing in things],
    ),
    manifest("idle", "manifest, 32 connections beside 1,000 idle", idle=1000),
    manifest("tls-manifest", "TLS 1.3: manifest, 32 connections", tls=True, contenders=("pierhead", *TLS_PEERS)),
    blob("tls-blob-1", "1 MiB", 16, lambda c: [c.small], tls=True),
    blob("tls-blob-16", "16 MiB", 8, lambda c: [c.middle], tls=True),
    blob("tls-blob-256", "256 MiB", 4, lambda c: [c.large], tls=True),
    blob("tls-ranges", "1 GiB in ranges of 1 MiB", 16, lambda c: [c.huge], tls=True, paths=ranges),
    manifest(
        "h2-manifest",
        "HTTP/2: manifest, 4 connections × 8 streams",
        tls=True,
        streams=8,
        connections=4,
        contenders=("pierhead", *TLS_PEERS),
    ),
    blob("h2-blob-1", "1 MiB", 4, lambda c: [c.small], tls=True, streams=4),
    blob("h2-blob-16", "16 MiB", 4, lambda c: [c.middle], tls=True, streams=2),
    cold("cold-far", "cold pull, upstream with 50 ms and 20 MB/s a connection", "far"),
    cold("cold-nginx", "cold pull on bare loopback, upstream nginx", "nginx"),
    cold("cold-registry", "cold pull on bare loopback, upstream distribution", "registry"),
    Large(
        "cold-large",
        "cold blob of 256 MiB, upstream with 50 ms and 20 MB/s a connection",
        "s",
        ("direct", *MIRRORS),
        ("direct", "nginx-cache"),
        more_is_better=False,
        rounds_max=2,
    ),
    FirstByte(
        "first-byte",
        "first byte of a cold blob, upstream with 50 ms",
        "ms",
        ("direct", *MIRRORS),
        ("direct",),
        more_is_better=False,
        is_difference=True,
    ),
    Crowd("crowd", "50 clients on one cold blob of 16 MiB", "s", MIRRORS, ("nginx-cache",), more_is_better=False),
    Many(
        "many",
        "200 images for 50 clients, beside hits",
        "s",
        MIRRORS,
        ("nginx-cache",),
        more_is_better=False,
    ),
    Storm(
        "storm",
        "1,000 clients on one cold blob of 256 MiB",
        "s",
        MIRRORS,
        ("nginx-cache",),
        more_is_better=False,
        rounds_max=1,
    ),
    Memory(
        "memory",
        "memory of each of 10,000 idle connections",
        "KiB",
        MIRRORS,
        ("nginx-cache",),
        more_is_better=False,
    ),
]
