"""Many clients that pull many images at the same time, and check every byte.

    fleet.py PORT CLIENTS < images

`images` is JSON: for each image what is asked for, as path, digest and size. Every image is pulled by three clients at
the same moment. Prints a line when it begins, and then the seconds that all of it took, and the bytes. A process of its
own, so that what measures beside it does not wait for Python's lock.
"""

import json
import sys
import time

from content import Thing
from load import Puller, at_the_same_time

SHARED_BY = 3


def fleet(port, clients, images):
    total = []

    def work(number):
        puller = Puller(port)
        for pull in range(number, len(images) * SHARED_BY, clients):
            image = images[pull // SHARED_BY]
            for thing in image:
                puller.take(thing)
            total.append(sum(thing.size for thing in image))

    print("it begins", flush=True)
    began = time.perf_counter()
    at_the_same_time(clients, work)
    return {"seconds": time.perf_counter() - began, "bytes": sum(total)}


if __name__ == "__main__":
    port, clients = map(int, sys.argv[1:])
    wanted = [[Thing(digest, size, path.split("/")[-2]) for path, digest, size in image] for image in json.load(sys.stdin)]
    print(json.dumps(fleet(port, clients, wanted)))
