"""A server's processes: started, measured through /proc, ended. Only what was started here is ever ended."""

import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


given = set()


def free_port():
    """A port that nobody listens on, and that was not given away here before: the kernel may offer it twice."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port not in given:
            given.add(port)
            return port


def missing(programs):
    """Which of the programs are not here."""
    return [name for name in programs if not shutil.which(name)]


@dataclass
class Process:
    """A program of ours, with its output in a file."""

    command: list
    log: Path
    handle: subprocess.Popen = None

    def start(self):
        with open(self.log, "ab") as log:
            # A proxy that this machine may use for the world is not for loopback.
            environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
            self.handle = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )

    def wait_for(self, port, seconds):
        """Until it listens; what it said, where it does not."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.handle.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.01)
        said = self.log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{self.command[0]} does not listen on port {port}. It said:\n{said}")

    def stop(self, seconds):
        if not self.handle or self.handle.poll() is not None:
            return
        self.handle.send_signal(signal.SIGTERM)
        try:
            self.handle.wait(seconds)
        except subprocess.TimeoutExpired:
            for pid in self.pids():
                os.kill(pid, signal.SIGKILL)
            self.handle.wait()

    def pids(self):
        """It and its children, as nginx has workers."""
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                fields = stat(entry.name)
                if fields:
                    parents.setdefault(int(fields[1]), []).append(int(entry.name))
        found, ahead = [], [self.handle.pid]
        while ahead:
            pid = ahead.pop()
            found.append(pid)
            ahead += parents.get(pid, [])
        return found

    def cpu(self, pids=None):
        """Seconds of CPU so far, user and system, with children that have ended."""
        fields = [stat(pid) for pid in pids or self.pids()]
        return sum(int(f[i]) for f in fields if f for i in (11, 12, 13, 14)) / TICKS

    def memory(self, field):
        """A figure of /proc/PID/status in bytes, summed over the processes."""
        total = 0
        for pid in self.pids():
            for line in read(f"/proc/{pid}/status").splitlines():
                if line.startswith(field + ":"):
                    total += int(line.split()[1]) * 1024
        return total

    def forget_peak(self):
        """Lets VmHWM start anew, so that each measurement has its own peak."""
        for pid in self.pids():
            try:
                Path(f"/proc/{pid}/clear_refs").write_text("5")
            except OSError:
                pass  # another user's worker: then the peak is that of its whole life


def stat(pid):
    """/proc/PID/stat from the state on; the name before it may hold spaces."""
    text = read(f"/proc/{pid}/stat")
    return text[text.rindex(")") + 2 :].split() if text else None


def read(path):
    try:
        return Path(path).read_text()
    except OSError:
        return ""  # it has ended meanwhile
