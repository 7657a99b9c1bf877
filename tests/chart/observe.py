#!/usr/bin/env python3
"""Runs a registry, a mirror and a Prometheus on the loopback, pulls for a while, and checks what is to be seen of it.

    target/tools/venv/bin/python tests/chart/observe.py

promtool check metrics is content with /metrics; Prometheus takes the alerts, scrapes the mirror, and after some pulls every
query of the dashboard has an answer and no alert fires. Needs Debian's docker-registry and prometheus; a minute.
$PIERHEAD names the program as in run.py. The last line says 'N passed, N failed'.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

sys.dont_write_bytecode = True  # no trace in the tree
import run as chart  # noqa: E402

PROMETHEUS = chart.tool("prometheus")
REGISTRY = chart.tool("docker-registry")
# Rates need two scrapes within their window; seconds, so that the whole takes a minute.
SCRAPE, LOAD = 1, 25

# Nothing here asks for a proxy.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_ports(*names):
    """By name. All are held until the last is known, or the kernel might offer one twice."""
    held = {name: socket.socket() for name in names}
    for one in held.values():
        one.bind(("127.0.0.1", 0))
    ports = {name: one.getsockname()[1] for name, one in held.items()}
    for one in held.values():
        one.close()
    return ports


def fetch(url, method="GET", data=None, headers=()):
    request = urllib.request.Request(url, method=method, data=data, headers=dict(headers))
    with OPENER.open(request, timeout=10) as answer:
        return answer.headers, answer.read()


def until(what, function, seconds=30):
    """Waits until the function returns something without an exception."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError, AssertionError):
            if result := function():
                return result
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.2)


def push(registry):
    """A small image: a configuration, two layers, a manifest and a tag."""
    def blob(content):
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        headers, _ = fetch(f"{registry}/v2/library/sample/blobs/uploads/", "POST", b"")
        where = urllib.parse.urljoin(registry, headers["Location"])
        where += ("&" if "?" in where else "?") + urllib.parse.urlencode({"digest": digest})
        fetch(where, "PUT", content, {"Content-Type": "application/octet-stream"})
        return {"digest": digest, "size": len(content)}

    layers = [blob(os.urandom(3_000_000)), blob(os.urandom(400))]
    media = "application/vnd.oci.image"
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": f"{media}.manifest.v1+json",
        "config": {"mediaType": f"{media}.config.v1+json", **blob(b'{"os": "linux", "architecture": "amd64"}')},
        "layers": [{"mediaType": f"{media}.layer.v1.tar", **each} for each in layers],
    }).encode()
    for tag in ("1", "2", "3"):
        fetch(f"{registry}/v2/library/sample/manifests/{tag}", "PUT", manifest, {"Content-Type": f"{media}.manifest.v1+json"})
    return [each["digest"] for each in layers]


def pull(mirror, layers):
    """What clients do, over and over, so that there are rates."""
    base, end = f"{mirror}/v2/docker.io/library/sample", time.monotonic() + LOAD
    accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    while time.monotonic() < end:
        for tag in ("1", "2", "3"):
            fetch(f"{base}/manifests/{tag}", headers=accept)
            for digest in layers:
                fetch(f"{base}/blobs/{digest}")
            with contextlib.suppress(urllib.error.HTTPError):
                fetch(f"{base}/manifests/none-such", headers=accept)
        time.sleep(0.5)


def query(prometheus, expression):
    _, text = fetch(f"{prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
    return json.loads(text)["data"]["result"]


def start(stack, folder, name, *command):
    log = open(folder / f"{name}.log", "w")
    process = subprocess.Popen([str(c) for c in command], stdout=log, stderr=subprocess.STDOUT, cwd=folder)

    def stop():
        process.terminate()
        process.wait(timeout=20)
        log.close()

    stack.callback(stop)


def observed(folder, stack):
    ports = free_ports("registry", "pull", "admin", "prometheus")
    at = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    (folder / "registry.yaml").write_text(json.dumps({
        "version": "0.1", "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
        "http": {"addr": f"127.0.0.1:{ports['registry']}"}}))
    # Tags are asked for again each time, so that the upstream has something to do.
    (folder / "pierhead.yaml").write_text(json.dumps({
        "listen": f"127.0.0.1:{ports['pull']}", "admin": f"127.0.0.1:{ports['admin']}",
        "cache": {"path": str(folder / "cache"), "max_size": "1GiB"},
        "upstreams": {"docker.io": {"endpoints": [at["registry"]], "tag_ttl": "1s"}}}))
    shutil.copy(chart.CHART / "files/alerts.yaml", folder)
    (folder / "prometheus.yaml").write_text(json.dumps({
        "global": {"scrape_interval": f"{SCRAPE}s", "evaluation_interval": "1s"}, "rule_files": ["alerts.yaml"],
        "scrape_configs": [{"job_name": "pierhead", "static_configs": [{"targets": [f"127.0.0.1:{ports['admin']}"]}]}]}))

    start(stack, folder, "registry", REGISTRY, "serve", folder / "registry.yaml")
    start(stack, folder, "pierhead", chart.PIERHEAD, "serve", "--config", folder / "pierhead.yaml")
    start(stack, folder, "prometheus", PROMETHEUS, f"--config.file={folder}/prometheus.yaml",
          f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address=127.0.0.1:{ports['prometheus']}")
    until("the registry", lambda: fetch(f"{at['registry']}/v2/"))
    until("the mirror", lambda: fetch(f"{at['admin']}/readyz"))
    until("Prometheus", lambda: fetch(f"{at['prometheus']}/-/ready"))
    pull(at["pull"], push(at["registry"]))
    return at


def has_data(prometheus, title, expression):
    if not (result := query(prometheus, expression)):
        waiting = [m for m in chart.WAITING_METRICS if m in expression]
        if waiting:
            raise chart.Skipped(f"the program does not have {', '.join(waiting)} yet")
        assert title.endswith("?"), f"no data for {expression}"
        raise chart.Skipped("nothing to show, as may be")
    assert all(each["value"][1] not in ("NaN", "+Inf") for each in result) or "quantile" in expression, result


def is_scraped(prometheus):
    assert until("a scrape", lambda: query(prometheus, 'up{job="pierhead"} == 1'))


def alerts_are_loaded(prometheus):
    _, text = fetch(f"{prometheus}/api/v1/rules")
    rules = [r for g in json.loads(text)["data"]["groups"] for r in g["rules"]]
    assert len(rules) == len(chart.alerts()), f"{len(rules)} rules"
    unwell = [r["name"] for r in rules if r["health"] != "ok"]
    assert not unwell, f"not evaluated: {unwell}"
    loud = [r["name"] for r in rules if r["state"] != "inactive"]
    assert not loud, f"a healthy mirror raises {loud}"


def main():
    with tempfile.TemporaryDirectory(prefix="pierhead-observe-") as folder, contextlib.ExitStack() as stack:
        folder = pathlib.Path(folder)
        print("\n== a mirror under load, watched by Prometheus")
        at = chart.check("registry, mirror and Prometheus run, and pulls go through", observed, folder, stack)
        if at:
            _, metrics = fetch(f"{at['admin']}/metrics")
            chart.check("promtool check metrics", lambda: chart.run(chart.PROMTOOL, "check", "metrics", stdin=metrics.decode()))
            chart.check("Prometheus scrapes it", is_scraped, at["prometheus"])
            chart.check("Prometheus takes the alerts, and none fires", alerts_are_loaded, at["prometheus"])
            for title, expression in chart.dashboard_queries():
                # The load lasted for seconds; the dashboard looks at minutes.
                chart.check(f"dashboard: {title.rstrip('?')}", has_data, at["prometheus"], title, expression)
        else:
            for log in folder.glob("*.log"):
                print(f"---- {log.name}\n{log.read_text()[-2000:]}")
    counts = chart.counts
    skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
    print(f"\n{counts['passed']} passed, {counts['failed']} failed{skipped}")
    sys.exit(1 if counts["failed"] or not counts["passed"] else 0)


if __name__ == "__main__":
    main()
