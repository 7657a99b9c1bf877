"""An upstream that is far away: every answer starts late, every transfer is slow, but many may run at once.

    shaped.py ROOT PORT DELAY_MS MEGABYTES_PER_SECOND

Serves ROOT/v2/… with ranges on loopback. Threads and plain files are enough: it sleeps most of the time.
"""

import hashlib
import os
import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from content import MANIFEST_TYPE, MIB

SLICE = 64 * 1024


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    root, delay, rate = "", 0.0, 0.0

    def do_GET(self):
        time.sleep(self.delay)
        if self.path == "/v2/":
            # A challenge, as public registries have one; see servers.py.
            realm = f"http://127.0.0.1:{self.server.server_port}/token"
            return self.answer(401, b"{}", {"WWW-Authenticate": f'Bearer realm="{realm}",service="bench"'})
        if self.path.startswith("/token"):
            return self.answer(200, b'{"token":"t","access_token":"t","expires_in":86400}')
        try:
            file = open(self.root + self.path, "rb")
        except OSError:
            return self.answer(404, b'{"errors":[]}')
        with file:
            self.send(file, os.fstat(file.fileno()).st_size)

    do_HEAD = do_GET

    def send(self, file, size):
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if "/manifests/" in self.path:
            headers["Content-Type"] = MANIFEST_TYPE
            headers["Docker-Content-Digest"] = "sha256:" + hashlib.sha256(file.read(MIB)).hexdigest()
        start, end = 0, size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            start = int(asked[1])
            end = min(int(asked[2]) + 1, size) if asked[2] else size
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self.head(206 if asked else 200, end - start, headers)
        if self.command == "GET":
            self.pour(file, start, end)

    def pour(self, file, at, end):
        """Sends no faster than the rate, however the clock jumps in between."""
        due = time.monotonic()
        while at < end:
            at += os.sendfile(self.connection.fileno(), file.fileno(), at, min(SLICE, end - at))
            due += SLICE / self.rate
            time.sleep(max(0.0, due - time.monotonic()))

    def answer(self, status, body, headers=None):
        self.head(status, len(body), headers or {"Content-Type": "application/json"})
        if self.command == "GET":
            self.wfile.write(body)

    def head(self, status, length, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": length}.items():
            self.send_header(name, str(value))
        self.end_headers()

    def log_message(self, *_):
        pass

    def handle(self):
        try:
            super().handle()
        except ConnectionError:
            pass  # a client that has left


class Upstream(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024


def main():
    root, port, delay_ms, megabytes = sys.argv[1:]
    Handler.root, Handler.delay, Handler.rate = root, float(delay_ms) / 1e3, float(megabytes) * 1e6
    Upstream(("127.0.0.1", int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main()
