"""Times `vpt bench step` beside the PyTorch reference's `step`, in turns, on the same checkpoint.

    python scripts/compare_pytorch.py --reference torch_reference.py --run clip-b16:16 --run clip-b32:32

A run is a checkpoint folder and a batch size. The two programs take turns `--turns` times, so that both see the same
machine; each turn's own median counts once. Printed are the medians over the turns, the ratio of speeds (above 1: vpt is
faster; also the smallest and largest of the turns) and of peak memory (below 1: vpt needs less).
"""
import argparse, json, os, subprocess, sys
from statistics import median


def run(command, threads):
    env = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads), RAYON_NUM_THREADS=str(threads))
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env).stdout
    return json.loads(out)


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--reference", required=True, help="path of torch_reference.py")
    ap.add_argument("--run", required=True, action="append", metavar="CHECKPOINT:BATCH", help="may be given several times")
    ap.add_argument("--method", default="vpt-deep", choices=["linear", "vpt-deep", "vpt-shallow"])
    ap.add_argument("--prompt-tokens", type=int, default=50)
    ap.add_argument("--precision", default="f32", choices=["f32", "bf16"])
    ap.add_argument("--turns", type=int, default=3)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--vpt", default="target/release/vpt")
    a = ap.parse_args()

    print(f"{a.method}, {a.prompt_tokens} prompt tokens, {a.precision}, {a.threads} threads, {a.turns} turns\n")
    print("| checkpoint | batch | vpt s | PyTorch s | speed ratio (min-max) | vpt MiB | PyTorch MiB | memory ratio | vpt GFLOP/s |\n|---|---|---|---|---|---|---|---|---|", flush=True)
    for spec in a.run:
        checkpoint, _, batch = spec.rpartition(":")
        if not checkpoint or not batch.isdigit(): sys.exit(f"--run {spec}: must be CHECKPOINT:BATCH")
        common = ["--method", a.method, "--prompt-tokens", str(a.prompt_tokens), "--batch-size", batch, "--precision", a.precision, "--threads", str(a.threads)]
        turns = []
        for _ in range(a.turns):
            turns.append((run([a.vpt, "bench", "step", "--json", "--backbone", checkpoint, *common], a.threads),
                          run([sys.executable, a.reference, "step", "--checkpoint", checkpoint, *common], a.threads)))
        column = lambda i, key: [t[i][key] for t in turns]
        seconds = [median(column(i, "median_s")) for i in (0, 1)]
        memory = [median(column(i, "peak_rss_bytes")) / 2**20 for i in (0, 1)]
        ratios = [theirs["median_s"] / ours["median_s"] for ours, theirs in turns]
        print(f"| {os.path.basename(checkpoint.rstrip('/'))} | {batch} | {seconds[0]:.2f} | {seconds[1]:.2f} | {seconds[1] / seconds[0]:.2f} ({min(ratios):.2f}-{max(ratios):.2f}) | "
              f"{memory[0]:.0f} | {memory[1]:.0f} | {memory[0] / memory[1]:.2f} | {median(column(0, 'gflop_per_s')):.0f} |", flush=True)
