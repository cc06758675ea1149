#!/usr/bin/env python3
"""Kills `vpt train` with SIGKILL at random moments, resumes it to its end, and compares what is left with an undisturbed run.

    python scripts/check_kills.py --vpt target/release/vpt --kills 200

Every case is trained once without disturbance. Then runs of it are begun, killed a few times, and resumed to the end: half of
the kills come after a random time, half just behind a file of the run being written, where a fault would be. After each
kill every file that is there must be whole. Needs nothing but Python; data are drawn by `vpt data make shapes`, backbones are
the small checkpoints of tests/fixtures. Exit code 1 if anything differs.
"""

import argparse, collections, json, os, pathlib, shutil, signal, struct, subprocess, sys, time

from checker import Checker

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"

# Name, backbone, data, flags.
CASES = [
    ("linear", "vit", "classify", ["--method", "linear"]),
    ("linear-text", "clip", "classify", ["--method", "linear", "--head", "text"]),
    ("vpt-deep-flip", "vit", "classify", ["--method", "vpt-deep", "--flip"]),
    ("vpt-shallow", "dinov2", "classify", ["--method", "vpt-shallow", "--head", "cosine"]),
    ("vp-pad", "vit", "classify", ["--method", "vp-pad"]),
    ("vpt-deep-auto", "vit", "classify", ["--method", "vpt-deep", "--lr", "auto"]),
    ("bias", "dinov2", "classify", ["--method", "bias"]),
    ("lora", "clip", "classify", ["--method", "lora"]),
    ("e2vpt", "vit", "classify", ["--method", "e2vpt"]),
    ("full", "vit", "classify", ["--method", "full"]),
    ("label-map", "label-map/vit", "few", ["--method", "vp-frame", "--label-map", "ilm"]),
    ("multilabel", "clip", "detect", ["--task", "multilabel"]),
    ("detect", "clip", "detect", ["--image-size", "32", "--prompt-layers", "last:1"]),
]
# Equal to the byte. The others hold times.
SAME = ["best.safetensors", "last.safetensors", "config.toml", "split.json", "curves.svg", "confusion.svg", "lr_search.json",
        "mistakes.html", "prompt.png", "val_predictions.jpg", "val_detections.json", "test_detections.json"]
TIMES = {"wall_s", "img_per_s", "peak_rss_bytes", "train_seconds", "val_seconds"}


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(v) for key, v in value.items() if key not in TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def records(run):
    """The lines of metrics.jsonl; a kill may leave half a line at its end, which resuming takes away."""
    return [without_times(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]


def whole(run):
    """What is damaged among the files of a run that was killed."""
    wrong = []
    for path in run.glob("*"):
        try:
            if path.suffix == ".safetensors":
                data = path.read_bytes()
                length, = struct.unpack("<Q", data[:8])
                header = json.loads(data[8:8 + length])
                ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
                assert len(data) == 8 + length + max(ends, default=0), "length"
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix in (".svg", ".html"):
                assert path.read_text().rstrip().endswith(("</svg>", "</html>")), "end"
        except Exception as error:
            wrong.append(f"{path.name}: {error!r}")
    return wrong


class KillChecker(Checker):
    def __init__(self, args):
        super().__init__(args)
        self.counts = collections.Counter()

    def vpt(self, arguments, **options):
        return subprocess.Popen([self.args.vpt, *map(str, arguments)], cwd=self.dir, stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options)

    def finish(self, arguments):
        process = self.vpt(arguments)
        _, said = process.communicate()
        return process.returncode, said.strip().splitlines()[-1:]

    def must(self, arguments):
        code, said = self.finish(arguments)
        if code != 0:
            sys.exit(f"vpt {' '.join(map(str, arguments))}: exit code {code}: {said}")

    def data(self):
        self.must(["data", "make", "shapes", "--out", "classify", "--images", 256, "--size", 32])
        # Fewer classes than the classifier has that is mapped from.
        for part in (self.dir / "classify").iterdir():
            for folder in sorted(part.glob("*/"))[::8]:
                shutil.copytree(folder, self.dir / "few" / part.name / folder.name)
        self.must(["data", "make", "shapes", "--out", "detect", "--task", "detect", "--images", 30, "--size", 48])

    def command(self, case, out, epochs):
        _, backbone, data, flags = case
        return ["train", "--backbone", FIXTURES / backbone, "--data", data, *flags, "--threads", 1, "--out", out,
                "--epochs", epochs]

    def epochs(self, case):
        """As many epochs as take about `--seconds` here and now."""
        begun = time.monotonic()
        self.must(self.command(case, f"{case[0]}-trial", 4))
        few = time.monotonic() - begun
        begun = time.monotonic()
        self.must(self.command(case, f"{case[0]}-trial-2", 24))
        each = max((time.monotonic() - begun - few) / 20, 1e-4)
        return max(8, min(1_000, int(self.args.seconds / each)))

    def wait_for_write(self, run, process):
        """Until a file of the run is written, or it ends."""
        state = lambda: {p.name: p.stat().st_mtime_ns for p in run.glob("*") if p.exists()} if run.exists() else {}
        try:
            before = state()
            while process.poll() is None and state() == before:
                time.sleep(0.001)
        except FileNotFoundError:
            pass  # renamed while it was looked at

    def kill_once(self, case, run, epochs):
        """Begins or resumes the run and kills it. Whether it was killed."""
        begun = (run / "config.toml").exists()
        process = self.vpt(["train", "--resume", run.name] if begun else self.command(case, run.name, epochs))
        if self.rng.random() < 0.5:
            time.sleep(self.rng.uniform(0, self.args.longest))
        else:
            for _ in range(self.rng.randint(1, 12)):
                self.wait_for_write(run, process)
            time.sleep(self.rng.uniform(0, 0.004))
        process.kill()
        _, said = process.communicate()
        if process.returncode == -signal.SIGKILL:
            return True
        if process.returncode != 0:
            self.faults.append(f"{run.name}: exit code {process.returncode}: {said.strip().splitlines()[-1:]}")
        return False

    def disturbed(self, case, number, epochs, kills):
        name = case[0]
        run, undisturbed = self.dir / f"{name}-{number}", self.dir / f"{name}-whole"
        killed = 0
        for _ in range(kills):
            if (run / "results.json").exists():
                break
            if not self.kill_once(case, run, epochs):
                break
            killed += 1
            self.counts[name] += 1
            self.faults += [f"{run.name} after kill {killed}: {wrong}" for wrong in whole(run)]
        begun = (run / "config.toml").exists()
        code, said = self.finish(["train", "--resume", run.name] if begun else self.command(case, run.name, epochs))
        if code != 0:
            self.faults.append(f"{run.name} after {killed} kills: exit code {code}: {said}")
            return
        for file in SAME:
            ours, theirs = run / file, undisturbed / file
            if ours.exists() != theirs.exists() or (ours.exists() and ours.read_bytes() != theirs.read_bytes()):
                self.faults.append(f"{run.name} after {killed} kills: {file} differs")
        if records(run) != records(undisturbed):
            self.faults.append(f"{run.name} after {killed} kills: metrics.jsonl differs")
        results = [without_times(json.loads((r / "results.json").read_text())) for r in (run, undisturbed)]
        if results[0] != results[1]:
            self.faults.append(f"{run.name} after {killed} kills: results.json differs")
        left = [p.name for p in run.glob(".vpt-*")]
        if left:
            self.faults.append(f"{run.name}: left behind: {left}")
        shutil.rmtree(run)

    def two_at_once(self):
        """Of two runs that are begun in one folder one goes on unharmed; the other says why not and ends with code 1."""
        case = CASES[0]
        both = [self.vpt(self.command(case, "both", 200)) for _ in range(2)]
        ends = sorted((p.wait(), p.stderr.read().strip().splitlines()[-1:]) for p in both)
        if [code for code, _ in ends] != [0, 1]:
            self.faults.append(f"two at once: {ends}")
        self.must(self.command(case, "alone", 200))
        if (self.dir / "both/best.safetensors").read_bytes() != (self.dir / "alone/best.safetensors").read_bytes():
            self.faults.append("two at once: the first was harmed")
        print(f"two at once: exit codes {[code for code, _ in ends]}; the second said {ends[-1][1]}")

    def run(self):
        self.data()
        cases = [case for case in CASES if self.args.only in (None, case[0])]
        self.two_at_once()
        for i, case in enumerate(cases):
            begun, name = time.monotonic(), case[0]
            wanted = self.args.kills * (i + 1) // len(cases) - self.args.kills * i // len(cases)
            epochs = self.epochs(case)
            self.must(self.command(case, f"{name}-whole", epochs))
            number = 0
            while self.counts[name] < wanted and number < 4 * wanted:
                self.disturbed(case, number, epochs, min(self.rng.randint(4, 12), wanted - self.counts[name]))
                number += 1
            print(f"{name:14} {self.counts[name]:3} kills in {number} runs of {epochs} epochs, "
                  f"{time.monotonic() - begun:.0f} s; faults so far: {len(self.faults)}", flush=True)
        for fault in self.faults:
            print(fault)
        print(f"{sum(self.counts.values())} kills, {len(self.faults)} faults")
        return 1 if self.faults or sum(self.counts.values()) < self.args.kills else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--vpt", default=str(ROOT / "target/release/vpt"), help="the program")
    parser.add_argument("--kills", type=int, default=200, help="kills in all (default 200)")
    parser.add_argument("--seconds", type=float, default=6, help="how long a run should take (default 6)")
    parser.add_argument("--longest", type=float, default=3.5, help="longest time before a kill (default 3.5 s)")
    parser.add_argument("--seed", type=int, default=None, help="of the times")
    parser.add_argument("--only", help="one case")
    parser.add_argument("--dir", default="/tmp/vpt-kills", help="scratch folder, emptied first")
    args = parser.parse_args()
    args.vpt = os.path.abspath(args.vpt)
    sys.exit(KillChecker(args).run())


if __name__ == "__main__":
    main()
