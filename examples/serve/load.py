#!/usr/bin/env python3
"""Loads a server and says how it does: load.py IMAGES [ADDRESS] [--clients 8] [--seconds 10] [--tasks NAME …]

IMAGES is a folder. Each client asks a task about an image, waits for the answer, and asks again; tasks and images are drawn at
random. Prints images a second, times of answers, and what was refused. Needs nothing but Python; VPT_KEY holds the key, if the
server wants one. scripts/check_serve.py of vpt's repository measures more, on a server that it starts.
"""

import argparse
import collections
import http.client
import json
import os
import random
import threading
import time
from pathlib import Path
from urllib.parse import quote, urlsplit

KEY = os.environ.get("VPT_KEY")
HEADERS = {"Authorization": f"Bearer {KEY}"} if KEY else {}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("address", nargs="?", default="http://127.0.0.1:8484")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--tasks", nargs="+", help="all of the server's unless they are named")
    args = parser.parse_args()
    host = urlsplit(args.address).netloc
    images = [path.read_bytes() for path in sorted(args.images.iterdir()) if path.is_file()]
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.request("GET", "/v1/models", headers=HEADERS)
    listed = json.loads(connection.getresponse().read())
    tasks = args.tasks or [model["id"] for model in listed["data"] if model["parent"]]
    times, statuses, lock = [], collections.Counter(), threading.Lock()
    end = time.monotonic() + args.seconds

    def client(seed):
        rng, connection = random.Random(seed), http.client.HTTPConnection(host, timeout=60)
        while time.monotonic() < end:
            begin, status = time.monotonic(), None
            try:
                task = quote(rng.choice(tasks), safe="")
                connection.request("POST", f"/v1/tasks/{task}/predict", rng.choice(images), {**HEADERS, "Content-Type": "application/octet-stream"})
                answer = connection.getresponse()
                answer.read()
                status = answer.status
                if status == 429:
                    time.sleep(float(answer.getheader("Retry-After", 1)))
            except (OSError, http.client.HTTPException) as error:
                status = type(error).__name__
                connection.close()
            with lock:
                statuses[status] += 1
                if status == 200:
                    times.append(time.monotonic() - begin)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(args.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times.sort()
    if times:
        p50, p99 = (1e3 * times[min(len(times) - 1, int(share * len(times)))] for share in (0.5, 0.99))
        print(f"{len(times) / args.seconds:.1f} images/s by {args.clients} clients, {len(tasks)} tasks; p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    print("statuses:", dict(statuses))


if __name__ == "__main__":
    main()
