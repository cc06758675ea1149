#!/usr/bin/env python3
"""What it takes to reach the same accuracy with prompts, a linear head, LoRA and all weights: processor time, energy, memory, bytes to store.

    python scripts/energy_by_method.py --vpt target/release/vpt --data photos/ --out /tmp/energy --backbone /path/to/vit-s14 --image-size 112
    python scripts/energy_by_method.py --vpt target/release/vpt --data shapes --out /tmp/energy

Trains each method with each seed, once (a run that is there is read), and prints a table. Two accuracies on validation are compared at: the
lowest best one of all methods, and the lowest of those that change what the backbone computes. A method's time to it is that of its whole
run less that of the epochs after the first to reach it; a head that begins as the probe counts with all the probe took. Learned parts are
taken for what they are (`--keep-better false`). Test is read where each method was best on validation. `--data shapes` draws a set whose test
images are like those of training. Needs nothing but Python.
"""

import argparse, json, pathlib, statistics, subprocess

HEADS = {"linear", "ncm", "tip-adapter", "clap", "zs-lp"}


def run(args, method, seed):
    """The folder of a run, trained unless it is there."""
    out = args.out / f"{method}-{seed}"
    if not (out / "results.json").exists():
        command = [args.vpt, "train", "--backbone", args.backbone, "--data", args.data, "--method", method, "--seed", seed, "--out", out,
                   "--threads", args.threads, "--quiet"]
        command += ["--image-size", args.image_size] if args.image_size else []
        command += [] if method in HEADS else ["--keep-better", "false"]
        # Of CLIP it would keep to the texts of the classes, which is no head to compare.
        command += ["--head", "linear"] if method == "lora" else []
        subprocess.run(list(map(str, command + args.options.split())), check=True, stdout=subprocess.DEVNULL)
    return out


class Run:
    def __init__(self, folder):
        self.lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
        self.results = json.loads((folder / "results.json").read_text())
        self.stored = (folder / "best.safetensors").stat().st_size
        self.best = max(line["val"]["acc1"] for line in self.lines)

    def until(self, accuracy):
        """The first epoch that reaches `accuracy`, processor seconds, and kWh from and to, up to its end; None if none does."""
        at = next((i for i, line in enumerate(self.lines) if line["val"]["acc1"] >= accuracy), None)
        if at is None:
            return None
        energy, wall = self.results["energy"], self.results["wall_s"]
        later = sum(line["train_seconds"] + line["val_seconds"] for line in self.lines[at + 1:])
        left = max(1 - later / wall, 0)
        own = energy.get("attributed_kwh")
        low, high = (energy.get("low_kwh") or 0, energy.get("high_kwh") or 0) if own is None else (own, own)
        return self.lines[at]["epoch"], energy["cpu_seconds"] * left, low * left, high * left


def told(values, digits=1):
    """Mean and, of several, least and most."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vpt", required=True, type=pathlib.Path)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--backbone", default="clip-nano")
    parser.add_argument("--image-size")
    parser.add_argument("--methods", default="linear,vpt-deep,lora,full")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--options", default="", help="more flags of train, for all methods")
    args = parser.parse_args()
    args.vpt = args.vpt.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.data == "shapes":
        args.data = args.out / "shapes"
        if not args.data.exists():
            made = ["data", "make", "shapes", "--out", args.data, "--images", "1500", "--seed", "1", "--quiet"]
            subprocess.run(list(map(str, [args.vpt, *made])), check=True)
    methods, seeds = args.methods.split(","), [int(seed) for seed in args.seeds.split(",")]
    runs = {method: [Run(run(args, method, seed)) for seed in seeds] for method in methods}
    learned = [method for method in methods if method not in HEADS]
    targets = {"all reach": [min(runs[m][i].best for m in methods) for i in range(len(seeds))]}
    if learned and len(learned) < len(methods):
        targets["all but heads reach"] = [min(runs[m][i].best for m in learned) for i in range(len(seeds))]
    energy = runs[methods[0]][0].results["energy"]
    print(f"{len(seeds)} seeds; energy by: {energy['method']}; mean (least–most)\n")
    print("| method | whole run, core-s | best val, % | its test, % | peak memory, MB | task file, MB |\n|---|---|---|---|---|---|")
    for method, of in runs.items():
        print(f"| {method} | {told([r.results['energy']['cpu_seconds'] for r in of], 0)} | {told([100 * r.best for r in of])} | "
              f"{told([100 * r.results['test']['acc1'] for r in of])} | {told([r.results['peak_rss_bytes'] / 1e6 for r in of], 0)} | "
              f"{told([r.stored / 1e6 for r in of], 2)} |")
    for name, goals in targets.items():
        print(f"\nTo the accuracy on validation that {name}, {told([100 * goal for goal in goals])} %:\n")
        print("| method | epochs | core-s | energy, Wh |\n|---|---|---|---|")
        for method, of in runs.items():
            reached = [r.until(goal) for r, goal in zip(of, goals)]
            if any(found is None for found in reached):
                print(f"| {method} | not reached with {sum(found is None for found in reached)} of {len(seeds)} seeds | | |")
                continue
            low, high = (statistics.mean([found[i] * 1e3 for found in reached]) for i in (2, 3))
            wh = f"{low:.3g}" if low == high else f"{low:.2g} to {high:.2g}"
            print(f"| {method} | {told([found[0] for found in reached], 0)} | {told([found[1] for found in reached], 0)} | {wh} |")


main()
