"""The servers that are compared, each with a configuration as people run it.

All of them log every request, as all of them do when they are installed; all are started the same way, on
loopback, with one folder of their own.
"""

import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

from content import MANIFEST_TYPE, REPOSITORY
from process import Process, free_port

HERE = Path(__file__).resolve().parent
LOG_FLUSH = 0.1  # seconds until nginx has written what it logs
NGINX = """
daemon off;
{user}
worker_processes auto;
worker_rlimit_nofile 20000;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 16384; }}
http {{
    sendfile on;
    tcp_nopush on;
    access_log {folder}/access.log combined buffer=32k flush={flush}ms; # as Pierhead gathers its lines
    keepalive_timeout 300;
    keepalive_requests 1000000000; # h2load does not come back when a connection is ended
    types {{ }}
    default_type application/octet-stream;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {http}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        {tls}
        {server}
    }}
}}
"""
NGINX_TLS = """
        listen 127.0.0.1:{port} ssl http2;
        ssl_certificate {cert};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.3;
"""
# As public registries do it. Without a challenge, distribution's proxy would ask for one at every request.
TOKENS = """
        location = /v2/ {
            add_header WWW-Authenticate 'Bearer realm="http://127.0.0.1:%s/token",service="bench"' always;
            return 401 '{"errors":[]}';
        }
        location = /token {
            default_type application/json;
            return 200 '{"token":"t","access_token":"t","expires_in":86400}';
        }"""
REGISTRY = """
version: 0.1
log: {{level: info}}
storage:
  cache: {{blobdescriptor: inmemory}}
  filesystem: {{rootdirectory: {storage}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


Certificate = namedtuple("Certificate", "cert key")


def make_certificate(folder):
    """A self-signed one."""
    made = Certificate(Path(folder) / "cert.pem", Path(folder) / "key.pem")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    command += f" -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout {made.key} -out {made.cert}"
    subprocess.run(command.split(), check=True, capture_output=True)
    return made


class Server:
    """A server with its folder; `start` it, ask it at `url`, `stop` it."""

    name = title = ""
    port = tls_port = 0
    process = None
    keeps_after = 0.0  # seconds for each 64 MiB from the end of an answer until it is held
    starts_within, stops_within = 15, 5  # seconds

    def __init__(self, folder, upstream=None, tls=None):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True)
        self.upstream = upstream
        self.tls = tls
        self.port = free_port()

    def url(self, tls=False):
        return f"https://127.0.0.1:{self.tls_port}" if tls else f"http://127.0.0.1:{self.port}"

    def command(self):
        raise NotImplementedError

    def start(self):
        self.process = Process(self.command(), self.folder / "output.log")
        self.process.start()
        try:
            self.process.wait_for(self.port, self.starts_within)
        except RuntimeError:
            self.stop()
            raise
        return self

    def stop(self):
        if self.process:
            self.process.stop(self.stops_within)

    def empty_logs(self):
        """They are opened for appending, so they may be cut while the server runs."""
        for log in self.folder.glob("*.log"):
            os.truncate(log, 0)

    def write(self, name, text):
        path = self.folder / name
        path.write_text(text)
        return str(path)


class Nginx(Server):
    def command(self):
        tls = ""
        if self.tls:
            self.tls_port = free_port()
            tls = NGINX_TLS.format(port=self.tls_port, cert=self.tls.cert, key=self.tls.key)
        text = NGINX.format(
            # As root, nginx would give its workers to a user who may not read our folder.
            user="user root;" if os.geteuid() == 0 else "",
            folder=self.folder,
            flush=round(LOG_FLUSH * 1000),
            port=self.port,
            http=self.http(),
            server=self.server(),
            tls=tls,
        )
        config = self.write("nginx.conf", text)
        return ["nginx", "-p", str(self.folder), "-e", str(self.folder / "error.log"), "-c", config]


class NginxFile(Nginx):
    """The content as files, sent by sendfile: no mirror, but the mark for sending. Also an upstream."""

    name, title = "nginx-file", "nginx, file"

    def __init__(self, folder, content, tls=None):
        super().__init__(folder, tls=tls)
        self.content = content

    def http(self):
        return ""

    def server(self):
        lines = [f"root {self.content.root};", TOKENS % self.port]
        for image in self.content.images:
            for name in (image.tag, image.manifest.digest):
                lines.append(
                    f"location = /v2/{REPOSITORY}/manifests/{name} {{ default_type {MANIFEST_TYPE}; "
                    f"add_header Docker-Content-Digest {image.manifest.digest}; }}"
                )
        return "\n        ".join(lines)


class NginxCache(Nginx):
    """nginx as people put it before a registry."""

    name, title = "nginx-cache", "nginx, proxy_cache"

    def http(self):
        return f"""
    proxy_cache_path {self.folder}/cache levels=1:2 keys_zone=cache:16m max_size=100g inactive=7d use_temp_path=off;
    upstream registry {{ server 127.0.0.1:{self.upstream}; keepalive 16; }}"""

    def server(self):
        return """
        location /v2/ {
            proxy_pass http://registry;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_cache cache;
            proxy_cache_key $uri;
            proxy_cache_valid 200 7d;
            proxy_cache_lock on;
        }"""


class Distribution(Server):
    """Debian's docker-registry, as a pull-through cache, or as an upstream where `storage` is given."""

    name, title = "distribution", "distribution"
    keeps_after = 0.5

    def __init__(self, folder, upstream=None, tls=None, storage=None):
        super().__init__(folder, upstream)
        self.storage = storage

    def command(self):
        text = REGISTRY.format(storage=self.storage or self.folder / "data", port=self.port)
        if self.upstream:
            text += f'proxy: {{remoteurl: "http://127.0.0.1:{self.upstream}"}}\n'
        return ["docker-registry", "serve", self.write("config.yml", text)]


class Pierhead(Server):
    """The release build, with metrics and access log, as it is when it is installed."""

    name, title = "pierhead", "Pierhead"
    binary = os.environ.get("PIERHEAD", str(HERE.parents[1] / "target/release/pierhead"))

    def command(self):
        listen = [{"address": f"127.0.0.1:{self.port}"}]
        if self.tls:
            self.tls_port = free_port()
            listen.append(self.tls_listen(self.tls_port, self.tls))
        config = self.write("config.yaml", json.dumps(self.config(listen), indent=2))
        return [self.binary, "serve", "--config", config]

    def config(self, listen):
        # YAML takes JSON as it is.
        return {
            "listen": listen,
            "admin": f"127.0.0.1:{free_port()}",
            "cache": {"path": str(self.folder / "data"), "max_size": "100GiB", "min_free": "1MiB"},
            "server": {"idle_timeout": "300s"},
            "upstreams": {"docker.io": {"endpoints": [f"http://127.0.0.1:{self.upstream}"]}},
        }

    @staticmethod
    def tls_listen(port, tls):
        return {"address": f"127.0.0.1:{port}", "tls": {"cert": str(tls.cert), "key": str(tls.key)}}


class Shaped(Server):
    """An upstream far away: see shaped.py."""

    name, title = "direct", "no mirror"

    def __init__(self, folder, content, delay_ms, megabytes):
        super().__init__(folder)
        self.arguments = [content.root, self.port, delay_ms, megabytes]

    def command(self):
        return [sys.executable, str(HERE / "shaped.py"), *map(str, self.arguments)]


class Direct:
    """No mirror: the upstream itself, to measure what a pull takes without one. It is not ours to stop."""

    name, title, tls_port, process = "direct", "no mirror", 0, None

    def __init__(self, upstream):
        self.port = upstream

    def url(self, tls=False):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        return self

    def stop(self):
        pass

    def empty_logs(self):
        pass


MIRRORS = {kind.name: kind for kind in (Pierhead, NginxCache, Distribution)}
CONTENDERS = (Pierhead, NginxFile, NginxCache, Distribution, Direct)
