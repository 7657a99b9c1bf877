"""How many instructions a hit takes, and the most that it may take: run by the gate.

    apt-get install valgrind
    cargo build --release
    python3 benches/instructions.py             # about half a minute; exit code 1 where a bound is passed

Time on a shared machine says nothing about a change of a few percent; a count of instructions is the same to one in
five hundred, however busy the machine is. What is counted is the program that is shipped, under callgrind, within the one
function that every request passes: from the reading of its head over route, rights, lookup and headers to the end of
its account. What the kernel does, and the loop that waits for sockets, are not in it.

To raise a bound: change the figure in MOST below to what was measured and a tenth, in the commit that makes it
necessary, and say there what the instructions are spent on. Another Rust version, target or way of building shifts all
counts at once; then all of them are set anew, in the commit that does it.
"""

import hashlib
import json
import platform
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent / "compare"))
from content import MANIFEST_TYPE, MIB, REPOSITORY
from process import missing
from servers import Pierhead, Shaped

# Measured 2026-11-21 with Rust 1.95 on this kind of machine, and a tenth.
MACHINE = "x86_64"
MOST = {
    "manifest, ready": 28_800,
    "manifest, looked up": 88_200,
    "manifest by tag, HEAD": 81_200,
    "blob": 83_100,
    "blob, range": 86_400,
}
# Its name as callgrind reads it. Where it is renamed, nothing is counted, and that is said.
COUNTED = "<pierhead::server::front::Front as *process_new_http::*closure*"
# Counts of this many requests and of as many more are subtracted: start and first answers fall out.
FEW, MORE = 200, 1000


@dataclass
class Request:
    """One kind of hit."""

    path: str
    head: str = ""
    method: str = "GET"

    def wire(self):
        return f"{self.method} {self.path} HTTP/1.1\r\nHost: bench\r\nAccept: {MANIFEST_TYPE}\r\n{self.head}\r\n".encode()


class Counted(Pierhead):
    """Pierhead under callgrind, with one thread that serves."""

    starts_within, stops_within = 300, 300  # seconds; callgrind is slow, and so may be the machine

    def config(self, listen):
        found = super().config(listen)
        found["server"]["threads"] = 1
        found["upstreams"]["docker.io"]["tag_ttl"] = "1d"  # no question upstream among what is counted
        return found

    def command(self):
        out = f"--callgrind-out-file={self.folder / 'counts'}"
        return ["valgrind", "--tool=callgrind", out, f"--toggle-collect={COUNTED}", *super().command()]

    def total(self):
        """What was counted until its end."""
        lines = (self.folder / "counts").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("totals:"))


def main():
    absent = missing(["valgrind", Pierhead.binary])
    if absent:
        sys.exit(f"missing: {', '.join(absent)}; see the head of {__file__}")
    with tempfile.TemporaryDirectory(prefix="pierhead-instructions-") as folder:
        found = counts(Path(folder))
    for name, count in found.items():
        print(f"{name:<24} {count:>8,} instructions, at most {MOST[name]:,}")
    if platform.machine() != MACHINE:
        print(f"The bounds are for {MACHINE}, and hold nothing against {platform.machine()}.")
        return 0
    faults = list(complaints(found))
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def complaints(found):
    """What is to be said of the counts; nothing, where all keep their bounds."""
    for name, count in found.items():
        if count <= 0:
            yield f"{name}: nothing was counted; is there still a function {COUNTED}?"
        elif count > MOST[name]:
            yield f"{name}: {count:,} instructions, at most {MOST[name]:,}; if this is meant, raise it in {__file__}"


def counts(folder):
    """The instructions of one request of each kind."""
    requests = seed(folder / "root")
    upstream = Shaped(folder / "upstream", SimpleNamespace(root=folder / "root"), delay_ms=0, megabytes=1000).start()
    try:
        found = {}
        for number, (name, request) in enumerate(requests.items()):
            few, more = (
                run(folder / f"{number}-{times}", upstream.port, requests, request, times)
                for times in (FEW, FEW + MORE)
            )
            found[name] = round((more - few) / MORE)
        return found
    finally:
        upstream.stop()


def seed(root):
    """Content for the upstream, and one request for each kind of hit."""
    blob = b"pierhead" * (MIB // 8)
    digest = keep(root, "blobs", blob)
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": MIB}
    config = {**layer, "mediaType": "application/vnd.oci.image.config.v1+json"}
    image = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": [layer]}
    manifest = f"/v2/{REPOSITORY}/manifests/{keep(root, 'manifests', json.dumps(image).encode(), 'latest')}"
    blob = f"/v2/{REPOSITORY}/blobs/{digest}"
    return {
        "manifest, ready": Request(manifest),
        # A condition that does not hold: no ready answer fits.
        "manifest, looked up": Request(manifest, 'If-None-Match: "other"\r\n'),
        "manifest by tag, HEAD": Request(f"/v2/{REPOSITORY}/manifests/latest", method="HEAD"),
        "blob": Request(blob),
        "blob, range": Request(blob, "Range: bytes=1000-1999\r\n"),
    }


def keep(root, kind, content, tag=None):
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    folder = root / "v2" / REPOSITORY / kind
    folder.mkdir(parents=True)
    for name in filter(None, (digest, tag)):
        (folder / name).write_bytes(content)
    return digest


def run(folder, upstream, requests, request, times):
    """Fetches all that is asked for, asks for one of it so often, and says what the program counted."""
    server = Counted(folder, upstream).start()
    try:
        with socket.create_connection(("127.0.0.1", server.port)) as connection, connection.makefile("rb") as answers:
            for each in requests.values():
                ask(connection, answers, each)
            for _ in range(times):
                cache = ask(connection, answers, request)
                if cache != "pierhead; hit":
                    raise RuntimeError(f"{request.path} was to be a hit and is {cache!r}")
    finally:
        server.stop()
    return server.total()


def ask(connection, answers, request):
    """Reads the whole answer; says what became of the request in the cache."""
    connection.sendall(request.wire())
    status = answers.readline()
    if status.split()[1] not in (b"200", b"206"):
        raise RuntimeError(f"{request.path}: {status!r}")
    length, cache = 0, ""
    while line := answers.readline().strip().decode():
        name, _, value = line.partition(":")
        if name.lower() == "content-length":
            length = int(value)
        elif name.lower() == "cache-status":
            cache = value.strip()
    if request.method == "GET":
        answers.read(length)
    return cache


if __name__ == "__main__":
    sys.exit(main())
