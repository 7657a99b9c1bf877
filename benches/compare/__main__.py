"""Pierhead beside nginx and docker-registry, on this machine, in one interleaved run.

    apt-get install nginx wrk nghttp2-client docker-registry openssl
    cargo build --release
    python3 benches/compare                      # about 30 minutes; let the machine do nothing else
    python3 benches/compare --quick              # every row once and shortly: shows that it works, measures nothing
    python3 benches/compare --rows manifest,blob-1 --rounds 9 --json result.json --svg chart.svg

Absolute figures drift from run to run and from machine to machine. Rounds are therefore interleaved (A B C A B C …)
and a ratio is the median of the rounds' own ratios: only ratios within one run count. All traffic stays on loopback;
every server has its own ports and folder, and only processes started here are ended.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import Bench
from chart import chart
from content import QUICK, Sizes
from process import missing
from report import summarize, table
from pushing import PUSHING
from rows import ROWS as READING
from servers import CONTENDERS, Pierhead

ROWS = [*READING, *PUSHING]
TITLES = {kind.name: kind.title for kind in CONTENDERS}
PACKAGES = {"nginx": "nginx", "wrk": "wrk", "h2load": "nghttp2-client", "docker-registry": "docker-registry", "openssl": "openssl"}


def arguments():
    parser = argparse.ArgumentParser(
        prog="benches/compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="every row once, shortly, over less content")
    add("--rows", default="", help="only these, by name: " + ", ".join(row.name for row in ROWS))
    add("--servers", default="", help="only these: " + ", ".join(TITLES))
    add("--rounds", type=int, default=5, help="how often each server has its turn (default 5)")
    add("--seconds", type=int, default=4, help="how long a load lasts (default 4)")
    add("--client", choices=("wrk", "drain"), default="wrk", help="for blobs: wrk reads 8 KiB at a time, drain 1 MiB")
    add("--json", metavar="FILE", help="write all figures here")
    add("--svg", metavar="FILE", help="draw the chart here")
    add("--from", dest="source", metavar="FILE", help="measure nothing: table and chart of an earlier --json")
    add("--dir", help="where content and caches go, up to 10 GiB (default: the system's temporary folder)")
    return parser.parse_args()


def main():
    options = arguments()
    if options.quick:
        options.rounds, options.seconds = 1, 1
    if options.source:
        results = json.loads(Path(options.source).read_text())
        for row in results["rows"]:
            print(table(row, TITLES))
    else:
        results = compare(options)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n")
    if options.svg:
        Path(options.svg).write_text(chart(results, TITLES))
    return 1 if any("failed" in why for row in results["rows"] for why in row["skipped"].values()) else 0


def compare(options):
    wanted = chosen(options)
    complain_of_missing()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the servers inherit it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that our servers are ended then, too
    results = {"about": about(options), "rows": []}
    print(" · ".join(f"{key} {value}" for key, value in results["about"].items()))
    if float(results["about"]["load"]) > 0.5 and not options.quick:
        print("NOTE: this machine is busy with something else; figures taken now are worth little.")
    folder = tempfile.mkdtemp(prefix="pierhead-compare-", dir=options.dir)
    bench = None
    try:
        sizes = QUICK if options.quick else Sizes()
        idle = min(500 if options.quick else 10_000, hard - 2_000)
        bench = Bench(folder, sizes, options.seconds, options.client, idle)
        for row, names in wanted:
            results["rows"].append(measure(bench, row, names, options.rounds))
            print(table(results["rows"][-1], TITLES), flush=True)
    finally:
        if bench:
            bench.close()
        shutil.rmtree(folder)
    return results


def chosen(options):
    """The rows asked for, each with the servers asked for."""
    rows, servers = ([x for x in text.split(",") if x] for text in (options.rows, options.servers))
    unknown = set(rows) - {row.name for row in ROWS} | set(servers) - set(TITLES)
    if unknown:
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; --help lists rows and servers")
    return [
        (row, [name for name in row.contenders if not servers or name in servers])
        for row in ROWS
        if not rows or row.name in rows
    ]


def complain_of_missing():
    os.environ["PATH"] += ":/usr/sbin"  # Debian has nginx there, and not in its users' path
    absent = missing([*PACKAGES, Pierhead.binary])
    for name in absent:
        remedy = f"apt-get install {PACKAGES[name]}" if name in PACKAGES else "cargo build --release"
        print(f"{name} is missing: {remedy}", file=sys.stderr)
    if absent:
        sys.exit(2)


def measure(bench, row, names, rounds):
    """One row, in rounds: each server in turn, then each again."""
    figures, skipped = {name: [] for name in names}, {}
    for _ in range(min(rounds, row.rounds_max)):
        for name in names:
            if name in skipped:
                continue
            try:
                figures[name].append(row.measure(bench, name))
            except Exception as error:  # one server's failure must not cost the others their row
                skipped[name] = f"failed: {error}"
    return summarize(row, {name: got for name, got in figures.items() if name not in skipped}, skipped)


def about(options):
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "command": "benches/compare " + " ".join(sys.argv[1:]),
        "quick": options.quick,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "cpus": os.cpu_count(),
        "cpu": cpu_model(),
        "kernel": platform.release(),
        "congestion": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
        "load": f"{os.getloadavg()[0]:.2f}",
        "pierhead": said(Pierhead.binary, "--version"),
        "commit": said("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"),
        "nginx": said("nginx", "-v"),
        "distribution": said("docker-registry", "--version"),
        "wrk": said("wrk", "-v"),
        "h2load": said("h2load", "--version"),
    }


def cpu_model():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(": ")[1]
    return platform.machine()


def said(*command):
    run = subprocess.run(command, capture_output=True, text=True)
    lines = (run.stdout + run.stderr).splitlines()
    return lines[0].strip() if lines else "?"


if __name__ == "__main__":
    sys.exit(main())
