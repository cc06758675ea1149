#!/usr/bin/env python3
"""Measures `vpt serve` on this machine, loopback only, and checks its answers against `vpt predict`.

    scripts/check_serve.py VPT TASKS IMAGES [--threads N] [--seconds S] [--clients N] [--tasks-in-mix N] [--serve-args …]

VPT is the program, TASKS a folder of tasks on one backbone, IMAGES a folder of images. Prints a line a measurement:

bits         answers of all tasks about some images, mixed at random, against `vpt predict --json`
throughput   images a second at saturation, one task, against `vpt embed` on the same files
overhead     p50 of one client at a time, against the time that the batch took
mixed        images a second of batches of distinct tasks, against batches of one task
cold         first answer of a task against a later one
swap         a task file exchanged under load: requests, failures, answers of a version that they do not name
drain        SIGTERM under load, again and again: accepted requests that were lost
hostile      200 requests that mean harm: what they are answered, and resident memory before and after
processes    ten tasks, arrivals by Zipf's law, against one server a task: memory and p99

Needs nothing but Python. Run it on a machine that has nothing else to do.
"""

import argparse
import base64
import http.client
import json
import os
import random
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from pathlib import Path

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class Server:
    """A server, and connections to it."""

    def __init__(self, vpt, tasks, *args, threads=None):
        command = [vpt, "serve", "--port", "0", "--tasks", *map(str, tasks), "--no-access-log", "--quiet", *args]
        if threads:
            command += ["--threads", str(threads)]
        self.child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self.child.stdout.readline()
        if not line.startswith("listening on http://"):
            sys.exit(f"no server: {line}{self.child.stderr.read()}")
        host, port = line.removeprefix("listening on http://").split(": ")[0].rsplit(":", 1)
        self.address = (host, int(port))
        self.local = threading.local()

    def request(self, method, path, body=None, kind="application/octet-stream"):
        """Status, headers and body, on a connection that this thread keeps."""
        connection = getattr(self.local, "connection", None)
        if connection is None:
            connection = self.local.connection = http.client.HTTPConnection(*self.address, timeout=120)
        try:
            connection.request(method, path, body, {"Content-Type": kind} if body is not None else {})
            response = connection.getresponse()
            found = response.read()
        except Exception:
            connection.close()
            self.local.connection = None
            raise
        if response.getheader("connection") == "close":
            connection.close()
            self.local.connection = None
        return response.status, response.headers, found

    def predict(self, task, image):
        return self.request("POST", f"/v1/tasks/{task}/predict", image)

    def tasks(self):
        models = json.loads(self.request("GET", "/v1/models")[2])["data"]
        return [model["id"] for model in models if model["parent"]]

    def memory(self):
        text = Path(f"/proc/{self.child.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) * 1024

    def stop(self, number=signal.SIGTERM):
        self.child.send_signal(number)
        return self.child.wait(60)


def load(clients, seconds, ask):
    """`ask(client, turn)` by so many clients for so long: answers and their times in seconds."""
    times, failures, lock = [], [], threading.Lock()
    end = time.monotonic() + seconds

    def work(client):
        own, turn = [], 0
        while time.monotonic() < end:
            begin = time.monotonic()
            try:
                status, _, body = ask(client, turn)
                if status != 200:
                    raise RuntimeError(f"{status}: {body[:200]}")
            except Exception as error:  # noqa: BLE001
                with lock:
                    failures.append(repr(error))
                continue
            finally:
                turn += 1
            own.append(time.monotonic() - begin)
        with lock:
            times.extend(own)

    threads = [threading.Thread(target=work, args=(client,)) for client in range(clients)]
    begin = time.monotonic()
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return times, failures, time.monotonic() - begin


def percentile(times, share):
    return sorted(times)[min(len(times) - 1, int(share * len(times)))] * 1e3


def lines_of(prediction):
    if "boxes" in prediction:
        return prediction["boxes"]
    guesses = prediction.get("top5", prediction.get("labels"))
    return [{"label": guess["label"], "score": guess["probability"]} for guess in guesses]


def bits(args, server, files, blobs):
    tasks, chosen = server.tasks(), random.Random(1).sample(range(len(files)), min(8, len(files)))
    folders = {path.name if (path / "best.safetensors").exists() else path.stem: path
               for path in [*args.tasks.rglob("*")] if path.suffix == ".safetensors" or (path / "best.safetensors").exists()}
    expected = {}
    for task in tasks:
        command = [args.vpt, "predict", "--quiet", "--json", "--model", str(folders[task]), *(str(files[i]) for i in chosen)]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for i, prediction in zip(chosen, json.loads(found)["predictions"]):
            expected[task, i] = lines_of(prediction)
    rng, wrong, count = random.Random(2), 0, 0
    while count < args.mixes:
        names = [rng.choice(tasks) for _ in range(rng.randint(1, 8))]
        names = list(dict.fromkeys(names))
        images = [rng.choice(chosen) for _ in range(rng.randint(1, 4))]
        body = json.dumps({"images": [base64.b64encode(blobs[i]).decode() for i in images], "tasks": names})
        status, _, found = server.request("POST", "/v1/predict", body, "application/json")
        if status != 200:
            sys.exit(f"bits: {status} {found[:300]}")
        for i, results in zip(images, json.loads(found)["results"]):
            for name in names:
                wrong += results[name] != expected[name, i]
                count += 1
    print(f"bits         {count} answers in random mixes of {len(tasks)} tasks, {wrong} differ from vpt predict")


def throughput(args, server, files, blobs):
    task = server.tasks()[0]
    # Before the load: a connection that waits for long is closed.
    backbone = json.loads(server.request("GET", "/info")[2])["backbone"]["name"]
    times, failures, took = load(args.clients, args.seconds, lambda c, t: server.predict(task, blobs[(c * 131 + t) % len(blobs)]))
    rate = len(times) / took
    with tempfile.TemporaryDirectory() as folder:
        many = Path(folder) / "images"
        many.mkdir()
        wanted = max(64, int(rate * min(args.seconds, 20)))
        for i in range(wanted):
            os.symlink(files[i % len(files)].resolve(), many / f"{i:06}{files[i % len(files)].suffix}")
        command = [args.vpt, "embed", "--quiet", "--backbone", args.backbone or backbone, "--out", f"{folder}/e.safetensors", str(many)]
        if args.threads:
            command += ["--threads", str(args.threads)]
        begin = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        embed = wanted / (time.monotonic() - begin)
    print(f"throughput   {rate:.1f} images/s by {args.clients} clients (p50 {percentile(times, .5):.1f} ms, p99 {percentile(times, .99):.1f} ms, "
          f"{len(failures)} failed), vpt embed {embed:.1f} images/s: {rate / embed:.3f}")


def overhead(args, server, blobs):
    task, all_times, batches = server.tasks()[0], [], []
    for turn in range(300):
        begin = time.monotonic()
        _, headers, _ = server.predict(task, blobs[turn % len(blobs)])
        all_times.append(time.monotonic() - begin)
        parts = dict(part.strip().split(";dur=") for part in headers["server-timing"].split(","))
        batches.append((float(parts["batch"]) + float(parts["decode"])) / 1e3)
    rest = [whole - work for whole, work in zip(all_times, batches)]
    print(f"overhead     p50 {percentile(rest, .5):.2f} ms of HTTP and queue beside {percentile(batches, .5):.2f} ms of work, one client")


def mixed(args, files, blobs):
    count = args.tasks_in_mix
    with tempfile.TemporaryDirectory() as folder:
        first = next(path for path in sorted(args.tasks.rglob("*.safetensors"))
                     if path.name not in ("last.safetensors", "checkpoint.safetensors") and (not args.mix_of or args.mix_of in str(path)))
        for i in range(count):
            shutil.copy(first, Path(folder) / f"t{i:02}.safetensors")
        own = ["--max-batch", str(count)] + (["--backbone", args.backbone] if args.backbone else [])
        server = Server(args.vpt, [folder], *own, threads=args.threads)
        for i in range(count):
            server.predict(f"t{i:02}", blobs[0])
        images = [base64.b64encode(blobs[i % len(blobs)]).decode() for i in range(count)]

        def rate(names):
            # As many requests at once as a batch has places, each for one image.
            times, failures, took = load(count, args.seconds, lambda c, t: server.predict(names[c % len(names)], blobs[c % len(blobs)]))
            assert not failures, failures[:3]
            return len(times) / took

        of_one, of_many = [], []
        for _ in range(3):
            of_one.append(rate(["t00"]))
            of_many.append(rate([f"t{i:02}" for i in range(count)]))
        one, many = statistics.median(of_one), statistics.median(of_many)
        print(f"mixed        {many:.1f} images/s of {count} distinct tasks, {one:.1f} of one task: {many / one:.3f}")
        cold = []
        server.stop()
        server = Server(args.vpt, [folder], *own, threads=args.threads)
        server.predict("t00", blobs[0])
        warm = min(timed(lambda: server.predict("t00", blobs[0])) for _ in range(20))
        for i in range(1, count):
            cold.append(timed(lambda: server.predict(f"t{i:02}", blobs[0])))
        print(f"cold         first answer {statistics.median(cold) * 1e3:.1f} ms (longest {max(cold) * 1e3:.1f}), later {warm * 1e3:.1f} ms")
        server.stop()
        del images


def timed(work):
    begin = time.monotonic()
    work()
    return time.monotonic() - begin


def swap(args, blobs):
    files = [path for path in sorted(args.tasks.rglob("*.safetensors")) if path.name not in ("last.safetensors", "checkpoint.safetensors")][:3]
    with tempfile.TemporaryDirectory() as folder:
        hot = Path(folder) / "hot.safetensors"
        shutil.copy(files[0], hot)
        own = ["--rescan", "0.05"] + (["--backbone", args.backbone] if args.backbone else [])
        answers = {}
        for i, file in enumerate(files):
            shutil.copy(file, Path(folder) / f"kept{i}.safetensors")
        server = Server(args.vpt, [folder], *own, threads=args.threads)
        for i in range(len(files)):
            _, headers, body = server.predict(f"kept{i}", blobs[0])
            answers[headers["x-vpt-task-version"]] = body
        state = {"requests": 0, "mixed": 0, "versions": set(), "stop": False}

        def exchange():
            turn = 0
            while not state["stop"]:
                turn += 1
                shutil.copy(files[turn % len(files)], Path(folder) / ".part")
                os.rename(Path(folder) / ".part", hot)
                time.sleep(0.2)

        thread = threading.Thread(target=exchange)
        thread.start()

        def ask(client, turn):
            status, headers, body = server.predict("hot", blobs[0])
            state["requests"] += 1
            version = headers["x-vpt-task-version"]
            state["versions"].add(version)
            state["mixed"] += answers.get(version) != body
            return status, headers, body

        failures = []
        while state["requests"] < 1000:
            failures += load(4, 2, ask)[1]
        state["stop"] = True
        thread.join()
        server.stop()
        print(f"swap         {state['requests']} requests, {len(failures)} failed, {state['mixed']} of another version than they say; "
              f"{len(state['versions'])} versions seen")


def drain(args, blobs):
    lost = answered = codes = 0
    for turn in range(args.drains):
        own = ["--drain-delay", "0.1"] + (["--backbone", args.backbone] if args.backbone else [])
        server = Server(args.vpt, [args.tasks], *own, threads=args.threads)
        task, stop, counts = server.tasks()[0], threading.Event(), [0, 0]

        def work():
            while not stop.is_set():
                connection = http.client.HTTPConnection(*server.address, timeout=60)
                try:
                    connection.connect()
                except OSError:
                    return
                try:
                    connection.request("POST", f"/v1/tasks/{task}/predict", blobs[0])
                    counts[connection.getresponse().status != 200] += 1
                except (OSError, http.client.HTTPException):
                    counts[1] += 1
                finally:
                    connection.close()

        threads = [threading.Thread(target=work) for _ in range(6)]
        [thread.start() for thread in threads]
        time.sleep(0.3)
        codes += server.stop() != 0
        stop.set()
        [thread.join() for thread in threads]
        answered, lost = answered + counts[0], lost + counts[1]
    print(f"drain        SIGTERM {args.drains} times: {answered} answered, {lost} lost, {codes} ends with another exit code than 0")


def bomb(width, height):
    """A PNG of so many pixels in a few kilobytes."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, row = zlib.compressobj(9), b"\0" * (width * 3 + 1)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def hostile(args, blobs):
    own = ["--backbone", args.backbone] if args.backbone else []
    server = Server(args.vpt, [args.tasks], "--timeout", "5", *own, threads=args.threads)
    tasks = [task for task in server.tasks() if server.predict(task, blobs[0])[0] == 200]
    rng = random.Random(1)

    def raw(data, reads=True):
        """The status that these bytes are answered with."""
        found = b""
        with socket.create_connection(server.address, timeout=60) as connection:
            try:
                connection.sendall(data)
                while reads and (piece := connection.recv(65536)):
                    found += piece
            except OSError:
                pass  # The server may close while more is sent.
        return found[9:12].decode() or "closed"

    def post(path, body, kind="application/octet-stream", more=""):
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
        return raw(head.encode() + body)

    def many(image, images, tasks):
        return json.dumps({"images": [base64.b64encode(image).decode()] * images, "tasks": tasks}).encode()

    def embeddings():
        url = "data:;base64," + base64.b64encode(blobs[0]).decode()
        return post("/v1/embeddings", json.dumps({"model": tasks[0], "input": [url] * 64}).encode(), "application/json")

    ask, image, few = f"/v1/tasks/{tasks[0]}/predict", blobs[0], tasks[:6]
    # A day's work, after which nothing more has to be kept: every task, and as many images at a time as are taken.
    for task in tasks * 2:
        server.predict(task, image)
    for _ in range(3):
        post("/v1/predict", many(image, 64, few), "application/json")
        post(f"/v1/tasks/{tasks[0]}/attention", image)
        embeddings()
    time.sleep(1)
    before, big, blank, small, over = server.memory(), bomb(7000, 7000), b"A" * (30 << 20), bomb(2500, 2000), bomb(9000, 9000)
    counted = b'{"inputs":[{"name":"image","shape":[1],"datatype":"BYTES","parameters":{"binary_data_size":4294967295}}]}'
    cases = [
        lambda: post(ask, big),
        lambda: post(ask, over),
        lambda: post(ask, blank, "application/json"),
        lambda: post(ask, blank, "image/png"),
        lambda: raw(f"POST {ask} HTTP/1.1\r\nHost: x\r\nContent-Length: {20 << 20}\r\n\r\n".encode() + blank[: 10 << 20], reads=False),
        lambda: post("/v1/predict", many(image, 64, few), "application/json"),
        lambda: post("/v1/predict", many(small, 32, tasks[:3]), "application/json"),
        lambda: post(f"/v1/tasks/{tasks[0]}/attention", big),
        lambda: post(f"/v2/models/{tasks[0]}/infer", counted, more=f"Inference-Header-Content-Length: {len(counted)}\r\n"),
        lambda: post("/v1/predict", b"[" * 1_000_000, "application/json"),
        lambda: post(ask, rng.randbytes(100_000), "multipart/form-data; boundary=b"),
        lambda: post(ask, image[: len(image) // 2]),
        lambda: raw(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100_000 + b"\r\n"),
        lambda: raw(rng.randbytes(5_000)),
        embeddings,
    ]
    found, peak, done, lock = Counter(), [0], threading.Event(), threading.Lock()

    def work(first):
        for turn in range(first, 200, 4):
            status = cases[turn % len(cases)]()
            with lock:
                found[status] += 1

    def watch():
        while not done.wait(.05):
            peak[0] = max(peak[0], server.memory())

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    watcher = threading.Thread(target=watch)
    [thread.start() for thread in [*threads, watcher]]
    [thread.join() for thread in threads]
    done.set()
    watcher.join()
    time.sleep(2)
    for task in tasks:
        status = post(f"/v1/tasks/{task}/predict", image)
        if status != "200":
            sys.exit(f"hostile: {task}: {status} afterwards")
    after = server.memory()
    answers = ", ".join(f"{count} x {status}" for status, count in sorted(found.items()))
    print(f"hostile      {answers}; memory {before / 1e6:.0f} MB before, {peak[0] / 1e6:.0f} at most, {after / 1e6:.0f} after: {after / before:.3f}")
    server.stop()


def processes(args, blobs):
    files = [path for path in sorted(args.tasks.rglob("*.safetensors")) if path.name not in ("last.safetensors", "checkpoint.safetensors")]
    rng = random.Random(3)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(10):
            shutil.copy(files[i % len(files)], Path(folder) / f"t{i}.safetensors")
        own = ["--backbone", args.backbone] if args.backbone else []
        weights = [1 / (rank + 1) for rank in range(10)]
        plan = rng.choices(range(10), weights, k=100_000)

        def measure(servers):
            for i in range(10):
                servers[i].predict(f"t{i}", blobs[0])
            # Arrivals at a rate that one server bears, whether answers are back or not.
            times, lock, threads = [], threading.Lock(), []

            def ask(i):
                begin = time.monotonic()
                connection = http.client.HTTPConnection(*servers[i].address, timeout=120)
                connection.request("POST", f"/v1/tasks/t{i}/predict", blobs[i % len(blobs)])
                connection.getresponse().read()
                with lock:
                    times.append(time.monotonic() - begin)

            arrivals = random.Random(4)
            end, turn = time.monotonic() + args.seconds, 0
            while time.monotonic() < end:
                threads.append(threading.Thread(target=ask, args=(plan[turn],)))
                threads[-1].start()
                turn += 1
                time.sleep(arrivals.expovariate(args.rate))
            [thread.join() for thread in threads]
            memory = sum({server.child.pid: server.memory() for server in servers}.values())
            return memory, times

        one = Server(args.vpt, [folder], *own, threads=args.threads)
        memory, times = measure([one] * 10)
        one.stop()
        each = [Server(args.vpt, [Path(folder) / f"t{i}.safetensors"], *own, threads=args.threads) for i in range(10)]
        memories, others = measure(each)
        [server.stop() for server in each]
        print(f"processes    one server {memory / 1e6:.0f} MB, p99 {percentile(times, .99):.1f} ms; one a task {memories / 1e6:.0f} MB, "
              f"p99 {percentile(others, .99):.1f} ms at {args.rate:.0f} requests/s: memory {memory / memories:.3f}, "
              f"p99 {percentile(times, .99) / percentile(others, .99):.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vpt")
    parser.add_argument("tasks", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--backbone", help="name or folder, where tasks alone do not say")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--mixes", type=int, default=10_000, help="answers that are compared")
    parser.add_argument("--tasks-in-mix", type=int, default=32)
    parser.add_argument("--mix-of", help="part of the path of the task that the mix is of")
    parser.add_argument("--drains", type=int, default=100)
    parser.add_argument("--rate", type=float, default=20, help="requests a second against one process a task")
    parser.add_argument("--only", help="measurements, separated by commas")
    args = parser.parse_args()
    files = sorted(path for path in args.images.rglob("*") if path.suffix.lower() in ENDINGS)
    blobs = [path.read_bytes() for path in files[:512]]
    if not blobs:
        sys.exit(f"{args.images}: no images")
    wanted = set(args.only.split(",")) if args.only else None
    backbone = ["--backbone", args.backbone] if args.backbone else []
    server = Server(args.vpt, [args.tasks], *backbone, threads=args.threads)
    for name, measure in [("bits", lambda: bits(args, server, files, blobs)), ("throughput", lambda: throughput(args, server, files, blobs)),
                          ("overhead", lambda: overhead(args, server, blobs))]:
        if not wanted or name in wanted:
            measure()
    server.stop()
    for name, measure in [("mixed", lambda: mixed(args, files, blobs)), ("swap", lambda: swap(args, blobs)),
                          ("drain", lambda: drain(args, blobs)), ("hostile", lambda: hostile(args, blobs)), ("processes", lambda: processes(args, blobs))]:
        if not wanted or name in wanted:
            measure()


if __name__ == "__main__":
    main()
