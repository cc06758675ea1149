"""Times `vpt bench step` beside the PyTorch reference's `step`, in turns, on the same checkpoint.

    python scripts/compare_pytorch.py --run clip-b16:16 --run clip-b32:32

A run is a checkpoint folder and a batch size. The programs take turns `--turns` times, so that all see the same machine;
each turn's own median counts once. Printed are the medians over the turns, the ratio of speeds (above 1: vpt is faster; also
the smallest and largest of the turns) and of peak memory (below 1: vpt needs less).

PyTorch is timed twice: as it is started by anyone, and (`memory kept`) with glibc told not to give freed memory back to the
system. The first maps and clears fresh pages for its large buffers in every step, which costs it more or less time with the
machine and its load; the second is the stricter comparison.
"""
import argparse, json, os, subprocess, sys
from statistics import median

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 35), "MALLOC_TOP_PAD_": str(1 << 28)}


def run(command, threads, **extra):
    env = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads), RAYON_NUM_THREADS=str(threads), **extra)
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env).stdout
    return json.loads(out)


def row(name, batch, allocator, ours, theirs):
    seconds = [median(turn["median_s"] for turn in turns) for turns in (ours, theirs)]
    memory = [median(turn["peak_rss_bytes"] for turn in turns) / 2**20 for turns in (ours, theirs)]
    ratios = [b["median_s"] / a["median_s"] for a, b in zip(ours, theirs)]
    rate = median(turn["gflop_per_s"] for turn in ours)
    return (f"| {name} | {batch} | {allocator} | {seconds[0]:.2f} | {seconds[1]:.2f} | {seconds[1] / seconds[0]:.2f} ({min(ratios):.2f}-{max(ratios):.2f}) | "
            f"{memory[0]:.0f} | {memory[1]:.0f} | {memory[0] / memory[1]:.2f} | {rate:.0f} |")


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--reference", default=os.path.join(os.path.dirname(__file__), "torch_reference.py"), help="the program that runs PyTorch")
    ap.add_argument("--run", required=True, action="append", metavar="CHECKPOINT:BATCH", help="may be given several times")
    ap.add_argument("--method", default="vpt-deep", choices=["linear", "vpt-deep", "vpt-shallow"])
    ap.add_argument("--prompt-tokens", type=int, default=50)
    ap.add_argument("--precision", default="f32", choices=["f32", "bf16"])
    ap.add_argument("--turns", type=int, default=3)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--as-started", action="store_true", help="leave the second, stricter timing of PyTorch out")
    ap.add_argument("--vpt", default="target/release/vpt")
    a = ap.parse_args()

    print(f"{a.method}, {a.prompt_tokens} prompt tokens, {a.precision}, {a.threads} threads, {a.turns} turns\n")
    print("| checkpoint | batch | PyTorch's memory | vpt s | PyTorch s | speed ratio (min-max) | vpt MiB | PyTorch MiB | memory ratio | vpt GFLOP/s |\n|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for spec in a.run:
        checkpoint, _, batch = spec.rpartition(":")
        if not checkpoint or not batch.isdigit(): sys.exit(f"--run {spec}: must be CHECKPOINT:BATCH")
        common = ["--method", a.method, "--prompt-tokens", str(a.prompt_tokens), "--batch-size", batch, "--precision", a.precision, "--threads", str(a.threads)]
        reference = [sys.executable, a.reference, "step", "--checkpoint", checkpoint, *common]
        ours, plain, kept = [], [], []
        for _ in range(a.turns):
            ours.append(run([a.vpt, "bench", "step", "--json", "--backbone", checkpoint, *common], a.threads))
            plain.append(run(reference, a.threads))
            if not a.as_started: kept.append(run(reference, a.threads, **KEEP_MEMORY))
        name = os.path.basename(checkpoint.rstrip("/"))
        for allocator, theirs in (("as started", plain), ("kept", kept)):
            if theirs: print(row(name, batch, allocator, ours, theirs), flush=True)
