"""What the rows share: the content, the upstreams, the servers that stay warm. Started when first asked for."""

import os
import time
from pathlib import Path

from content import MIB, Content
from load import take_all
from servers import MIRRORS, Direct, Distribution, NginxFile, Shaped, make_certificate


class Bench:
    """One run's world. `close` ends every server that it started."""

    def __init__(self, folder, sizes, seconds, client, idle):
        self.folder = Path(folder)
        self.content = Content(self.folder / "content", sizes)
        self.seconds, self.client, self.idle = seconds, client, idle
        self.running = []
        self.warm_servers, self.upstreams, self.held = {}, {}, set()
        self.count = 0
        self.tls = make_certificate(self.folder)

    def close(self):
        for server in reversed(self.running):
            server.stop()

    def place(self, name):
        """A folder that nothing was in before."""
        self.count += 1
        return self.folder / f"{self.count}-{name}"

    def start(self, server):
        self.running.append(server.start())
        return server

    def upstream(self, kind):
        """`nginx`, `registry` or `far`; one of each is enough for all."""
        if kind not in self.upstreams:
            folder = self.place(f"upstream-{kind}")
            makers = {
                "nginx": lambda: NginxFile(folder, self.content),
                "registry": lambda: Distribution(folder, storage=self.content.registry_root),
                "far": lambda: Shaped(folder, self.content, delay_ms=50, megabytes=20),
            }
            self.upstreams[kind] = self.start(makers[kind]())
        return self.upstreams[kind]

    def warm(self, name, things):
        """A server that runs all the time and holds `things`, which were checked on the way."""
        if name not in self.warm_servers:
            folder = self.place(name)
            if name == NginxFile.name:
                server = NginxFile(folder, self.content, self.tls)
            else:
                server = MIRRORS[name](folder, self.upstream("nginx").port, self.tls)
            self.warm_servers[name] = self.start(server)
        server = self.warm_servers[name]
        missing = [thing for thing in things if (name, thing) not in self.held]
        if missing:
            take_all(server, missing, at_once=1)
            largest = max(thing.size for thing in missing)
            time.sleep(server.keeps_after * (1 + largest / (64 * MIB)))
            take_all(server, missing, at_once=1)
            self.held.update((name, thing) for thing in missing)
        return server

    def cold(self, name, kind):
        """A server that holds nothing, before an upstream of that kind; the caller stops it."""
        upstream = self.upstream(kind).port
        os.sync()  # what others have still to write would be counted as this one's time
        if name == Direct.name:
            return Direct(upstream)
        server = MIRRORS[name](self.place(name), upstream)
        return self.start(server)

    def end(self, server):
        """Stops a server and empties its files: a cold one holds a copy of all that it fetched.

        They are removed at the end of all. An ext4 without a journal looks past each inode that was freed in the last
        minutes when it makes a file, so the next server would pay for what this one has left. Hard links are content of ours."""
        server.stop()
        if server in self.running:
            self.running.remove(server)
            for file in server.folder.rglob("*"):
                if file.is_file() and not file.is_symlink() and file.stat().st_nlink == 1:
                    os.truncate(file, 0)
