#!/usr/bin/env python3
"""Trains the same run on one, two and four ranks of MPI and compares what they leave to the byte; then kills random ranks of it at random
moments, goes on on another number of ranks, and compares again.

    python scripts/check_mpi.py --vpt target/release/vpt --kills 20

The program is to be built with `--features mpi`; `--mpirun` is that of the library it is built with (mpirun.openmpi, mpirun.mpich). Data are
drawn by `vpt data make shapes`; the backbone is clip-nano. Needs nothing but Python and that mpirun. Exit code 1 if anything differs.
"""

import argparse, json, os, pathlib, shutil, signal, statistics, subprocess, sys, time

from checker import Checker

# Name, data, flags.
CASES = [
    ("classify", "classify", ["--method", "vpt-deep", "--flip"]),
    ("multilabel", "detect", ["--task", "multilabel", "--method", "vpt-shallow"]),
    ("detect", "detect", ["--method", "vpt-deep", "--image-size", "64"]),
    ("segment", "segment", ["--task", "segment", "--image-size", "64"]),
    ("lora", "classify", ["--method", "lora"]),
    ("linear", "classify", ["--method", "linear", "--epochs", "4", "--solver", "sgd"]),
]
RANKS = [1, 2, 4]
# Equal to the byte. The others hold times.
SAME = ["best.safetensors", "last.safetensors", "config.toml", "split.json", "curves.svg", "confusion.svg", "mistakes.html",
        "val_predictions.jpg", "val_detections.json", "test_detections.json"]
TIMES = {"train_seconds", "val_seconds"}


class RankChecker(Checker):
    def __init__(self, args):
        super().__init__(args)
        # OpenMPI asks for these where root starts it, in containers for one.
        self.env = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        version = subprocess.run([args.mpirun, "--version"], capture_output=True, text=True).stdout
        self.is_open = "Open MPI" in version or "OpenRTE" in version
        print(version.strip().splitlines()[0])

    def start(self, ranks, arguments, alone=False):
        command = [self.args.vpt, *map(str, arguments)]
        if not alone:
            # More ranks than cores, which is no speed but the same bytes.
            more = ["--oversubscribe", "--bind-to", "none"] if self.is_open else []
            command = [self.args.mpirun, *more, "-n", str(ranks), *command]
        return subprocess.Popen(command, cwd=self.dir, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                stderr=subprocess.PIPE, text=True, start_new_session=True)

    def must(self, ranks, arguments, alone=False):
        begun = time.monotonic()
        process = self.start(ranks, arguments, alone)
        _, said = process.communicate()
        if process.returncode != 0:
            sys.exit(f"on {ranks} ranks: vpt {' '.join(map(str, arguments))}: exit code {process.returncode}:\n{said}")
        return time.monotonic() - begun

    def data(self):
        for task, images in [("classify", 384), ("detect", 48), ("segment", 48)]:
            self.must(1, ["data", "make", "shapes", "--out", task, "--task", task, "--images", images, "--size", 64], alone=True)

    def train(self, case, out, epochs):
        _, data, flags = case
        return ["train", "--data", data, *flags, *([] if "--epochs" in flags else ["--epochs", epochs]), "--batch-size", 16, "--shares",
                4, "--threads", 1, "--quiet", "--out", out]

    def differing(self, run, other):
        run, other = self.dir / run, self.dir / other
        names = {path.name for folder in (run, other) for path in folder.glob("*")} - {".lock", "error.txt"}
        bad = [name for name in sorted(names) if (run / name).exists() != (other / name).exists()]
        bad += [name for name in SAME if name in names and name not in bad and (run / name).read_bytes() != (other / name).read_bytes()]
        lines = [[{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in (folder / "metrics.jsonl").open()]
                 for folder in (run, other)]
        return bad + (["metrics.jsonl"] if lines[0] != lines[1] else [])

    def equal(self):
        for case in CASES:
            name, seconds = case[0], {}
            # One process without a launcher is what all are held against.
            seconds["alone"] = self.must(1, self.train(case, f"{name}-alone", self.args.epochs), alone=True)
            for ranks in RANKS:
                run = f"{name}-{ranks}"
                seconds[ranks] = self.must(ranks, self.train(case, run, self.args.epochs))
                if bad := self.differing(run, f"{name}-alone"):
                    self.faults.append(f"{run}: {', '.join(bad)}")
            rates = {ranks: json.loads((self.dir / f"{name}-{ranks}" / "results.json").read_text())["img_per_s"] for ranks in seconds}
            told = "  ".join(f"{ranks}: {seconds[ranks]:.1f} s, {rates[ranks]:.0f} images/s" for ranks in seconds)
            print(f"{name:<11} ranks  {told}", flush=True)

    def ranks_of(self, process):
        """Process ids of the ranks that a launcher has started, directly or by way of a helper."""
        found, todo = [], [process.pid]
        while todo:
            try:
                children = pathlib.Path(f"/proc/{todo.pop()}/task").glob("*/children")
                pids = [int(pid) for file in children for pid in file.read_text().split()]
            except OSError:
                continue
            for pid in pids:
                try:
                    exe = os.readlink(f"/proc/{pid}/exe")
                except OSError:
                    continue
                if os.path.basename(exe) == os.path.basename(self.args.vpt):
                    found.append(pid)
                todo.append(pid)
        return found

    def kills(self):
        cases = [case for case in CASES if case[0] in ("classify", "detect")]
        killed, ended, resumed, silent = 0, [], 0, 0
        whole = {}
        for case in cases:
            name = f"{case[0]}-whole"
            whole[case[0]] = self.must(4, self.train(case, name, self.args.long))
        number = 0
        while killed < self.args.kills:
            case = cases[number % len(cases)]
            run, number = f"{case[0]}-killed-{number}", number + 1
            ranks = self.rng.choice([2, 4])
            process = self.start(ranks, self.train(case, run, self.args.long))
            for _ in range(self.rng.randint(1, 3)):
                time.sleep(self.rng.uniform(0.2, 0.8 * whole[case[0]]))
                victims = self.ranks_of(process)
                if process.poll() is not None or not victims:
                    break
                try:
                    os.kill(self.rng.choice(victims), signal.SIGKILL)
                except ProcessLookupError:
                    break
                begun = time.monotonic()
                try:
                    _, said = process.communicate(timeout=60)
                except subprocess.TimeoutExpired:
                    self.faults.append(f"{run}: the others did not end within a minute")
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    break
                if process.returncode == 0:
                    break
                ended.append(time.monotonic() - begun)
                killed += 1
                silent += not said.strip()
                if killed >= self.args.kills:
                    break
                ranks = self.rng.choice([n for n in RANKS if n != ranks])
                resume = ["train", "--resume", run, "--quiet"]
                process = self.start(ranks, resume if (self.dir / run / "config.toml").exists() else self.train(case, run, self.args.long))
                resumed += 1
            process.communicate()
            for _ in range(3):
                if (self.dir / run / "results.json").exists():
                    break
                ranks = self.rng.choice([n for n in RANKS if n != ranks])
                resume = ["train", "--resume", run, "--quiet"]
                self.must(ranks, resume if (self.dir / run / "config.toml").exists() else self.train(case, run, self.args.long))
                resumed += 1
            if bad := self.differing(run, f"{case[0]}-whole"):
                self.faults.append(f"{run}: {', '.join(bad)}")
            else:
                shutil.rmtree(self.dir / run)
        print(f"{killed} kills in {number} runs, {resumed} resumptions on another number of ranks; the launcher ended "
              f"{statistics.median(ended):.1f} s after a kill ({max(ended):.1f} at most), {silent} times without a word")
        # One that is told to stop saves: all ranks agree on the place.
        run, case = "stopped", cases[0]
        process = self.start(4, self.train(case, run, self.args.long))
        time.sleep(0.5 * whole[case[0]])
        victims = self.ranks_of(process)
        if victims:
            os.kill(victims[-1], signal.SIGTERM)
        _, said = process.communicate(timeout=120)
        print(f"SIGTERM to one of four ranks: exit code {process.returncode}")
        if process.returncode != 75:
            self.faults.append(f"{run}: exit code {process.returncode}, not 75: {said}")
        if (self.dir / run / "config.toml").exists():
            self.must(2, ["train", "--resume", run, "--quiet"])
            if bad := self.differing(run, f"{case[0]}-whole"):
                self.faults.append(f"{run}: {', '.join(bad)}")

    def refusals(self):
        case = CASES[0]
        def refused(ranks, arguments, words):
            process = self.start(ranks, arguments)
            _, said = process.communicate(timeout=120)
            own = [line for line in said.splitlines() if line.startswith("error: ")]
            if process.returncode == 0 or len(own) != 1 or not all(word in own[0] for word in words):
                self.faults.append(f"{' '.join(map(str, arguments))}: exit code {process.returncode}, {own}")
        few = [2 if before == "--shares" else argument for before, argument in zip([None, *self.train(case, "few", 1)], self.train(case, "few", 1))]
        refused(4, few, ["--shares", "a batch has 2, too few for 4 ranks"])
        refused(2, self.train(case, "classify", 1), ["is not empty"])
        print("refusals are one line")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vpt", required=True)
    parser.add_argument("--mpirun", default="mpirun")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--long", type=int, default=24, help="epochs of the runs that are killed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dir", default="/tmp/check-mpi")
    args = parser.parse_args()
    args.vpt = os.path.abspath(args.vpt)
    checker = RankChecker(args)
    checker.data()
    checker.equal()
    checker.refusals()
    if args.kills:
        checker.kills()
    for fault in checker.faults:
        print("differs:", fault)
    if checker.faults:
        sys.exit(1)
    shutil.rmtree(checker.dir)
    print("every run is the same to the byte")


main()
