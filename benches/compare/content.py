"""What is pulled: one repository with blobs of the sizes that rows ask for, and an image for the cold rows.

Everything lies in one folder laid out like a registry's paths, so that nginx can serve it as files; a second
layout, of hard links into the first, is what `docker-registry` reads.
"""

import hashlib
import json
import os
import random
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
REPOSITORY = "library/bench"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"


@dataclass(frozen=True)
class Thing:
    """A manifest or a blob."""

    digest: str
    size: int
    kind: str  # "manifests" or "blobs"

    @property
    def path(self):
        return f"/v2/{REPOSITORY}/{self.kind}/{self.digest}"


@dataclass(frozen=True)
class Image:
    tag: str
    manifest: Thing
    config: Thing
    layers: tuple

    @property
    def things(self):
        """What is asked for once the manifest is known."""
        return (self.config, *self.layers)


@dataclass(frozen=True)
class Sizes:
    """Sizes in bytes; `--quick` runs the same rows over less."""

    middle: int = 16 * MIB
    large: int = 256 * MIB
    huge: int = 1024 * MIB
    layer: int = 25_000_000
    layers: int = 8
    fresh: int = 2 * MIB
    fresh_count: int = 10
    day: int = 200
    crowd: int = 1000


QUICK = Sizes(large=32 * MIB, huge=64 * MIB, layer=2_000_000, layers=4, fresh=MIB // 4, fresh_count=2, day=40, crowd=50)


class Content:
    """Makes the content below `root`; the same bytes at every run, so that figures can be repeated."""

    def __init__(self, root, sizes):
        self.root = Path(root)
        self.crowd = sizes.crowd
        self.random = random.Random(6)
        self.pattern = self.random.randbytes(MIB)
        self.serial = 0
        self.things = []
        self.images = []
        for kind in ("manifests", "blobs"):
            (self.root / f"v2/{REPOSITORY}" / kind).mkdir(parents=True)
        self.small = self.blob(MIB)
        self.middle = self.blob(sizes.middle)
        self.large = self.blob(sizes.large)
        self.huge = self.blob(sizes.huge)
        self.image = self.make_image("latest", [self.blob(sizes.layer) for _ in range(sizes.layers)])
        self.fresh = [self.blob(sizes.fresh) for _ in range(sizes.fresh_count)]
        self.fleet = self.make_fleet(sizes.day)
        self.day = self.make_day(self.fleet)
        self.registry_root = self.root / "registry"
        self.link_for_registry()

    def blob(self, size):
        """A blob of its own: incompressible, and cheap to make."""
        self.serial += 1
        return self.keep("blobs", size, self.pieces(self.serial, size))

    def pieces(self, serial, size):
        for number in range(-(-size // MIB)):
            piece = f"{serial:08x}{number:08x}".encode() + self.pattern[16:]
            yield piece[: size - number * MIB]

    def keep(self, kind, size, pieces):
        digest = hashlib.sha256()
        stage = self.root / "stage"
        with open(stage, "wb") as file:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
        thing = Thing(f"sha256:{digest.hexdigest()}", size, kind)
        stage.rename(self.file(thing))
        self.things.append(thing)
        return thing

    def file(self, thing):
        return self.root / thing.path[1:]

    def make_image(self, tag, layers):
        config_bytes = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Cmd": [tag]},
                "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
            }
        ).encode()
        config = self.keep("blobs", len(config_bytes), [config_bytes])
        descriptors = [self.descriptor(CONFIG_TYPE, config)] + [self.descriptor(LAYER_TYPE, x) for x in layers]
        manifest_bytes = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": descriptors[0],
                "layers": descriptors[1:],
            },
            indent=2,
        ).encode()
        manifest = self.keep("manifests", len(manifest_bytes), [manifest_bytes])
        os.link(self.file(manifest), self.file(manifest).with_name(tag))
        image = Image(tag, manifest, config, tuple(layers))
        self.images.append(image)
        return image

    @staticmethod
    def descriptor(media_type, thing):
        return {"mediaType": media_type, "digest": thing.digest, "size": thing.size}

    def make_fleet(self, count):
        """Images of three layers that are mostly small and sometimes not (log-normal)."""
        images = []
        for number in range(count):
            sizes = [min(int(self.random.lognormvariate(12, 1.6)), 16 * MIB) + 64 for _ in range(3)]
            images.append(self.make_image(f"day{number}", [self.blob(size) for size in sizes]))
        return images

    def make_day(self, images):
        """What a registry is asked for in a day: images by Zipf's law, in a fixed order of requests."""
        weights = [1 / rank for rank in range(1, len(images) + 1)]
        asked = []
        for image in self.random.choices(images, weights, k=2000):
            # A node that has the image asks for the manifest only; one in three takes all of it.
            asked.append(image.manifest)
            if self.random.random() < 1 / 3:
                asked += image.things
        return asked

    def link_for_registry(self):
        """The same content as `docker-registry` keeps it."""
        base = self.registry_root / "docker/registry/v2"
        repository = base / "repositories" / REPOSITORY
        for thing in self.things:
            hexadecimal = thing.digest.removeprefix("sha256:")
            data = base / "blobs/sha256" / hexadecimal[:2] / hexadecimal / "data"
            data.parent.mkdir(parents=True)
            os.link(self.file(thing), data)
            within = "_manifests/revisions" if thing.kind == "manifests" else "_layers"
            write(repository / within / "sha256" / hexadecimal / "link", thing.digest)
        for image in self.images:
            tag = repository / "_manifests/tags" / image.tag
            digest = image.manifest.digest
            write(tag / "current/link", digest)
            write(tag / "index/sha256" / digest.removeprefix("sha256:") / "link", digest)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
