"""The client's side: wrk and h2load for load, a puller that checks digests, connections that idle."""

import hashlib
import http.client
import json
import os
import queue
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from content import MANIFEST_TYPE, MIB, REPOSITORY

HERE = Path(__file__).resolve().parent
ACCEPT = {"Accept": MANIFEST_TYPE}
THREADS = len(os.sched_getaffinity(0))


def wrk(url, connections, seconds, paths=None):
    """One run of wrk; `paths` is a file with one path and range per line, else `url` is asked for.

    A thread for each processor, so that the client is not the limit before the machine is."""
    command = ["wrk", f"-t{min(THREADS, connections)}", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s"]
    command += ["-s", str(HERE / "report.lua"), "-H", f"Accept: {MANIFEST_TYPE}", url]
    environment = {k: v for k, v in os.environ.items() if k != "COMPARE_PATHS"}
    environment["COMPARE_THREADS"] = str(THREADS)
    if paths:
        environment["COMPARE_PATHS"] = str(paths)
    return figures_of(command, environment)


def drain(port, path, connections, seconds):
    """One run of drain.py."""
    return figures_of([sys.executable, str(HERE / "drain.py"), *map(str, (port, connections, seconds, path))])


def h2load(url, connections, streams, seconds, folder):
    """One run of h2load over TLS. It prints no percentiles, so they come from its log of requests."""
    log = Path(folder) / "h2load.log"
    log.unlink(missing_ok=True)  # it appends
    command = ["h2load", f"-t{min(THREADS, connections)}", f"-c{connections}", f"-m{streams}", f"-D{seconds}", f"--log-file={log}"]
    run = subprocess.run([*command, "-H", f"Accept: {MANIFEST_TYPE}", url], capture_output=True, text=True)
    protocol = re.search(r"Application protocol: (\S+)", run.stdout)
    requests = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", run.stdout)
    # The last figure of the line about traffic: bodies without heads and frames.
    body = re.search(r"^traffic: .*\((\d+)\) data$", run.stdout, re.MULTILINE)
    if not protocol or protocol[1] != "h2" or not requests or not body:
        raise RuntimeError(f"{' '.join(command)} failed: {run.stdout[-500:]}{run.stderr[-500:]}")
    succeeded, *wrong = map(int, requests.groups())
    took = sorted(int(line.split()[2]) for line in log.read_text().splitlines())
    if any(wrong) or not succeeded or not took:
        raise RuntimeError(f"{' '.join(command)}: {succeeded} requests succeeded, {sum(wrong)} did not")
    p50, p99 = (took[int((len(took) - 1) * share)] for share in (0.5, 0.99))
    return {"requests": succeeded, "bytes": int(body[1]), "seconds": seconds, "p50_us": p50, "p99_us": p99}


def crowd(port, thing, clients):
    """One run of crowd.py."""
    return figures_of([sys.executable, str(HERE / "crowd.py"), *map(str, (port, clients, thing.path, thing.size))])


def figures_of(command, environment=None):
    """The figures that a load generator prints last."""
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    try:
        figures = json.loads(run.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise RuntimeError(f"{' '.join(command)} failed: {run.stdout[-500:]}{run.stderr[-500:]}") from None
    if figures["errors"]:
        raise RuntimeError(f"{' '.join(command)}: {figures['errors']} errors in {figures['requests']} requests")
    return figures


class Puller:
    """Takes content from one server as a client does, and believes nothing that has not its digest."""

    def __init__(self, port):
        self.port = port
        self.connection = None
        self.buffer = memoryview(bytearray(MIB))

    def ask(self, method, path):
        if not self.connection:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            self.connection.connect()
            self.connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection.request(method, path, headers=ACCEPT)
        answer = self.connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"{method} {path} of port {self.port}: {answer.status} {answer.read(300)!r}")
        return answer

    def take(self, thing):
        """All of one thing; returns the seconds until its first byte."""
        began = time.perf_counter()
        answer = self.ask("GET", thing.path)
        first = answer.readinto(self.buffer[:1])
        first_after = time.perf_counter() - began
        digest = hashlib.sha256(self.buffer[:first])
        size = first
        while count := answer.readinto(self.buffer):
            digest.update(self.buffer[:count])
            size += count
        if (size, f"sha256:{digest.hexdigest()}") != (thing.size, thing.digest):
            raise RuntimeError(f"port {self.port} sent {size} wrong bytes for {thing.path}")
        return first_after

    def resolve(self, image):
        """What containerd asks first: which digest a tag is."""
        self.ask("HEAD", f"/v2/{REPOSITORY}/manifests/{image.tag}").read()


def pull(server, image, at_once=3):
    """A whole image, `at_once` layers at a time; returns the seconds it took."""
    began = time.perf_counter()
    puller = Puller(server.port)
    puller.resolve(image)
    puller.take(image.manifest)
    take_all(server, image.things, at_once)
    return time.perf_counter() - began


class Fleet:
    """fleet.py under way: clients that pull many images at the same time."""

    def __init__(self, server, images, clients):
        self.wanted = [[(thing.path, thing.digest, thing.size) for thing in (x.manifest, *x.things)] for x in images]
        self.command = [sys.executable, str(HERE / "fleet.py"), str(server.port), str(clients)]

    def __enter__(self):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True)
        self.process.stdin.write(json.dumps(self.wanted))
        self.process.stdin.close()
        self.process.stdout.readline()  # it has begun
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def is_pulling(self):
        return self.process.poll() is None

    def figures(self):
        """What it found, once it has ended."""
        printed = self.process.stdout.read()
        if self.process.wait():
            raise RuntimeError(f"fleet.py failed: {printed[-500:]}")
        return json.loads(printed.splitlines()[-1])


def take_all(server, things, at_once):
    waiting = queue.SimpleQueue()
    for thing in things:
        waiting.put(thing)

    def work(_):
        puller = Puller(server.port)
        try:
            while True:
                puller.take(waiting.get_nowait())
        except queue.Empty:
            pass

    at_the_same_time(at_once, work)


def at_the_same_time(count, work):
    """Does `work(number)` on as many threads; raises what the first of them that failed has raised."""
    failures = []

    def guarded(number):
        try:
            work(number)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


class Idle:
    """Connections that have asked once and are kept, as nodes keep them."""

    def __init__(self, server, thing, count):
        request = f"GET {thing.path} HTTP/1.1\r\nHost: x\r\nAccept: {MANIFEST_TYPE}\r\n\r\n".encode()
        self.sockets = []
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            self.sockets.append(connection)
            connection.sendall(request)
            read_answer(connection, thing.size)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for connection in self.sockets:
            connection.close()


def read_answer(connection, size):
    got = b""
    while b"\r\n\r\n" not in got or len(got.partition(b"\r\n\r\n")[2]) < size:
        piece = connection.recv(65536)
        if not piece:
            raise RuntimeError("a connection ended that was to idle")
        got += piece
