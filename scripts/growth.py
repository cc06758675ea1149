#!/usr/bin/env python3
"""How a training run over MPI, and embedding by shards, grow with machines: a model of time, with what it is made of in one place.

    python scripts/growth.py                                    the tables of docs/growth.md
    python scripts/growth.py --measure target/release/vpt --mpirun mpirun.openmpi       the model beside 1, 2 and 4 ranks on this machine

A step is compute, then two rounds of messages: each rank sends each other its slice of the gradients (all-to-all), and what it has added up
to all (all-gather). Ranks wait for the slowest of them, which is drawn at random. Standard library only.
"""

import argparse, json, math, os, pathlib, random, shutil, statistics, subprocess, sys, tempfile, time

# Seconds of a step of so many images on two threads of a Zen 5 (BENCHMARKS.md): ViT-B/32 with 50 deep prompts, f32. A step of one image
# takes 0.087 s, of 32 images 1.23 s.
FIRST_IMAGE, NEXT_IMAGE = 0.087, (1.23 - 0.087) / 31
# What is learned: 50 prompts of 768 values in 12 blocks and a head of 1000 classes; and all weights of the tower.
PROMPTS, WHOLE = 50 * 768 * 12 + 1000 * 769, 87_800_000
# A network: bytes a second, and seconds before the first byte of a message. TCP, TCP, RDMA.
NETWORKS = {"1 Gbit/s": (0.117e9, 60e-6), "10 Gbit/s": (1.17e9, 30e-6), "100 Gbit/s": (11.5e9, 3e-6)}
# Adding up, and changing the learned values: bytes a second through one core, for each value that is touched.
MEMORY = 4e9
# One rank's step beside another's: standard deviation, and how often in how many seconds a machine has something else to do.
NOISE, HICCUP, LASTS = 0.03, 1e-5, 0.5
# Mean time between failures of a machine, in hours (about five years), and what a failure costs: to be noticed, queued and begun again, and
# half of the minute between checkpoints.
MTBF, RESTART = 40_000.0, 300 + 30


def compute(images):
    return FIRST_IMAGE + NEXT_IMAGE * (images - 1) if images else 0.0


def messages(values, ranks, shares, network):
    """Seconds of one step's messages; every rank has a share, or several."""
    if ranks == 1:
        return 0.0
    bandwidth, latency = network
    own = math.ceil(shares / ranks)
    # The head of each share (losses, numbers), then slices of the gradients, then the sums.
    heads = (ranks - 1) * latency + shares * 100 / bandwidth
    exchange = (ranks - 1) * latency + own * values * 4 * (ranks - 1) / ranks / bandwidth
    gather = (ranks - 1) * latency + values * 4 * (ranks - 1) / ranks / bandwidth
    return heads + exchange + gather


def update(values, ranks, shares):
    """Scaling of its own shares, adding up its slice of all, changing every value: read, written, twice for the moments."""
    own = math.ceil(shares / ranks)
    return (2 * own * values + shares * values / ranks + 8 * values) * 4 / MEMORY


def slowest(seconds, ranks, rng, draws=300):
    """The mean of the slowest of `ranks` ranks that each take `seconds`."""
    total = 0.0
    for _ in range(draws):
        # The largest of many normal values, by its distribution; hiccups one by one.
        top = statistics.NormalDist().inv_cdf(max(rng.random(), 1e-12) ** (1 / ranks))
        late = LASTS if rng.random() < 1 - (1 - HICCUP) ** ranks else 0.0
        total += seconds * (1 + NOISE * max(top, 0 if ranks > 1 else -3)) + late
    return total / draws


def step(values, ranks, shares, share_images, network, rng):
    own = math.ceil(shares / ranks)
    # Each share is a batch of its own on the two threads of a rank.
    return slowest(own * compute(share_images), ranks, rng) + messages(values, ranks, shares, network) + update(values, ranks, shares)


def useful(ranks, seconds):
    """The part of the time that failures leave to a run of so many seconds of work."""
    return 1 / (1 + ranks / (MTBF * 3600) * RESTART)


def training():
    rng = random.Random(1)
    counts = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    print("## The same batch on more ranks: 32 images, ViT-B/32, prompts and head (4.9 MB a step), two cores a rank\n")
    print("| ranks | images a rank | " + " | ".join(NETWORKS) + " | of the ideal at 10 Gbit/s |\n|---|---|" + "---|" * (len(NETWORKS) + 1))
    base = None
    for ranks in [1, 2, 4, 8, 16, 32]:
        times = [step(PROMPTS, ranks, ranks, 32 // ranks, network, rng) for network in NETWORKS.values()]
        base = base or times[1]
        print(f"| {ranks} | {32 // ranks} | " + " | ".join(f"{t:.3f} s" for t in times) + f" | {100 * base / times[1] / ranks:.0f} % |")
    print("\n## A batch that grows with the ranks: 32 images each\n")
    head = "| ranks | images a step | " + " | ".join(f"{name}: step, images/s" for name in NETWORKS)
    print(head + " | of the ideal at 10 Gbit/s | failures leave |\n|---|---|" + "---|" * (len(NETWORKS) + 2))
    base = None
    for ranks in counts:
        times = [step(PROMPTS, ranks, ranks, 32, network, rng) for network in NETWORKS.values()]
        base = base or times[1]
        cells = " | ".join(f"{t:.2f} s, {32 * ranks / t:.0f}" for t in times)
        print(f"| {ranks} | {32 * ranks} | {cells} | {100 * base / times[1]:.0f} % | {100 * useful(ranks, 3600):.1f} % |")
    print("\n## All weights of the tower (351 MB a step), 32 images each\n")
    print("| ranks | " + " | ".join(f"{name}: step" for name in NETWORKS) + " | of the ideal | gathered whole, at 10 Gbit/s |\n|---|" + "---|" * (len(NETWORKS) + 2))
    bases = None
    for ranks in [1, 2, 4, 16, 64, 256, 1024]:
        times = [step(WHOLE, ranks, ranks, 32, network, rng) for network in NETWORKS.values()]
        bases = bases or times
        # If every rank received every share's gradients, as a plain gather does.
        whole = slowest(compute(32), ranks, rng) + (ranks - 1) * WHOLE * 4 / NETWORKS["10 Gbit/s"][0] + ranks * WHOLE * 4 / MEMORY
        ideal = ", ".join(f"{100 * base / t:.0f}" for base, t in zip(bases, times))
        print(f"| {ranks} | " + " | ".join(f"{t:.2f} s" for t in times) + f" | {ideal} % | {whole:.1f} s |")


def embedding():
    rate, cores = 47.8 / 2, 64  # ViT-B/32 in f32, decoding among it, a core (BENCHMARKS.md)
    # A process of eight threads does some 85 % of that: 0.94 s instead of 8 times 0.58.
    node = 0.85 * rate * cores
    shard, shard_work, start = 10_000, 0.4, 5.0
    # Of a shard: claim (two files made and two taken away), three outputs and the stats each written, synced and renamed.
    operations = 20
    # Metadata operations a second of a plain NFS server, and of a parallel file system.
    nfs, parallel = 3_000.0, 50_000.0
    print(f"\n## Embedding, ViT-B/32: {node:.0f} images/s a node of {cores} cores, shards of {shard} images of 40 kB, 512 values in f16\n")
    print("| images | nodes | time | read | written | files | last shards wait | metadata, each looks at every shard | with --shard |\n|---|---|---|---|---|---|---|---|---|")
    for images in (10**8, 10**10):
        for nodes in (1, 16, 128, 1024):
            shards = images // shard
            each = shard / node + shard_work
            # Eight processes a node take shards one after the other; at the end some have none left.
            processes = 8 * nodes
            of_process = shard / (node / 8) + shard_work
            hours = (start + math.ceil(shards / processes) * of_process) / 3600
            ideal = shards * of_process / processes / 3600
            looks = (processes * shards + operations * shards) / nfs / 3600
            own = (shards + operations * shards) / nfs / 3600
            parallel_hours = (processes * shards + operations * shards) / parallel / 3600
            print(f"| {images:.0e} | {nodes} | {duration(hours)} | {images * 40e3 / hours / 3600 / 1e9:.2f} GB/s of {images * 40e3 / 1e12:.0f} TB | "
                  f"{images * 1024 / 1e12:.2f} TB | {3 * shards:.0e} | {100 * (hours - ideal) / hours:.1f} % | {duration(looks)} on NFS, {duration(parallel_hours)} parallel | {duration(own)} on NFS |")


def duration(hours):
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def measure(args):
    """Runs on this machine with 1, 2 and 4 ranks of one thread, beside the model with what one rank takes put in."""
    env = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    version = subprocess.run([args.mpirun, "--version"], capture_output=True, text=True).stdout
    is_open = "Open MPI" in version or "OpenRTE" in version
    more = ["--oversubscribe", "--bind-to", "none"] if is_open else []
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        run = lambda command: subprocess.run(command, cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        run([args.measure, "data", "make", "shapes", "--out", "data", "--images", "512", "--quiet"])
        found = {}
        for turn in range(args.turns):
            for ranks in (1, 2, 4):
                name = f"run-{turn}-{ranks}"
                run([args.mpirun, *more, "-n", str(ranks), args.measure, "train", "--data", "data", "--method", "vpt-deep", "--flip", "--epochs", "6",
                     "--batch-size", "32", "--shares", "4", "--threads", "1", "--quiet", "--out", name])
                records = [json.loads(line) for line in (pathlib.Path(folder) / name / "metrics.jsonl").open()]
                seconds = [record["train_seconds"] for record in records[1:]]
                steps = records[0]["step"]
                found.setdefault(ranks, []).append(statistics.median(seconds) / steps)
        results = json.loads((pathlib.Path(folder) / "run-0-1" / "results.json").read_text())
        values = results["trainable_params"]
    one = statistics.median(found[1])
    print(f"{version.strip().splitlines()[0]}; {cores} cores; {values} learned values, 32 images a step in 4 shares\n")
    print("| ranks | measured | model | of the ideal |\n|---|---|---|---|")
    for ranks in (1, 2, 4):
        # Ranks beyond the cores wait for them; messages go through memory.
        parallel = min(ranks, cores)
        expected = one / parallel + messages(values, ranks, 4, (2e9, 10e-6 * (1 if ranks <= cores else 5)))
        times = found[ranks]
        print(f"| {ranks} | {1e3 * statistics.median(times):.1f} ms ({1e3 * min(times):.1f}-{1e3 * max(times):.1f}) | {1e3 * expected:.1f} ms | "
              f"{100 * one / statistics.median(times) / parallel:.0f} % of {parallel} cores |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", metavar="VPT", help="a program built with MPI")
    parser.add_argument("--mpirun", default="mpirun")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    if args.measure:
        args.measure = os.path.abspath(args.measure)
        measure(args)
    else:
        training()
        embedding()


main()
