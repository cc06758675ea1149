#!/usr/bin/env python3
"""What is worth learning beside a detection head: `vpt train --task detect` on several backbones and sets, and one page of tables.

    python scripts/what_helps_detection.py --vpt target/release/vpt --out /tmp/what-helps-detection --backbone clip-nano \\
        --data bccd/ --data shapes --data shifted --data frequent=coco-subset/
    python scripts/what_helps_detection.py ... --backbone focus=/path/to/vit-s14@224 --seeds 1,2,3 --options "--epochs 40"
    python scripts/what_helps_detection.py ... --arm "prompts at 3e-3=--method vpt-deep --lr 3e-3"     another row
    python scripts/what_helps_detection.py --out /tmp/what-helps-detection --page docs/what-helps.md   the page anew

`shapes` and `shifted` are drawn (`--images`); frequent=DIR are the classes of a set of COCO's layout with at least 10 objects to
learn and 5 to test. Every run has the same epochs; of each the epoch that is best on validation is taken, and what was learned for
what it is (`--keep-better false`). Of runs with more than a head a column says how often the head alone, as it was before that began, is
better on validation, and another what AP is where that is kept then. `jobs.jsonl` has a line a run; what is there is not run
again, and a run that was cut off goes on. Intervals are of the difference to the head alone: a paired bootstrap over test images and seeds
(Owen's pigeonhole bootstrap, as `vpt bench few-shot` has it for accuracies). These need numpy and pycocotools.
"""

import argparse, collections, contextlib, io, json, pathlib, shlex, shutil, subprocess, sys, time

from what_helps import parser_of, signed, write_anew

ALONE = "head alone"
ARMS = {
    ALONE: "--method linear",
    "head alone, changing sizes": "--method linear --scale-jitter 0.8 1.25",
    "prompts in the first block": "--method vpt-shallow",
    "prompts in the last 4": "--method vpt-deep --prompt-layers last:4",
    "prompts in all": "--method vpt-deep --prompt-layers all",
    "biases": "--method bias",
    "norms": "--method norm",
    "prompts in the last 4, biases": "--method vpt-deep,bias --prompt-layers last:4",
    "low-rank changes": "--method lora",
    "all weights": "--method full",
}
DRAWN = {"shapes": "plain", "shifted": "shifted"}
ENOUGH = {"train": 10, "test": 5}
BEGIN, END = "<!-- tables of detection -->\n", "<!-- end of tables of detection -->"


def truth_of(folder):
    """The file of boxes that `vpt` tests on: without a test part that is val."""
    for name in ("test", "val"):
        found = sorted((folder / "annotations").glob(f"instances_{name}*.json"))
        if found:
            return found[0]
    raise SystemExit(f"{folder}: no annotations/instances_test*.json or instances_val*.json")


def frequent(source, out):
    """A copy of the set `source` with the categories that have enough objects."""
    if out.exists():
        return out
    test = truth_of(source)
    files = {file: json.loads(file.read_text()) for file in sorted((source / "annotations").glob("instances_*.json"))}
    counts = {file: collections.Counter(a["category_id"] for a in whole["annotations"] if not a.get("iscrowd"))
              for file, whole in files.items()}
    train = next(file for file in files if "train" in file.name)
    kept = {c for c, n in counts[train].items() if n >= ENOUGH["train"] and counts[test][c] >= ENOUGH["test"]}
    beside = out.with_name(out.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(source, beside)
    for file, whole in files.items():
        whole["annotations"] = [a for a in whole["annotations"] if a["category_id"] in kept]
        whole["categories"] = [c for c in whole["categories"] if c["id"] in kept]
        (beside / "annotations" / file.name).write_text(json.dumps(whole))
    beside.rename(out)
    return out


def prepared(args, text):
    """Name and folder of the set that `text` says."""
    data = args.out / "data"
    data.mkdir(parents=True, exist_ok=True)
    if text in DRAWN:
        folder = data / text
        if not folder.exists():
            command = [args.vpt, "data", "make", "shapes", "--task", "detect", "--style", DRAWN[text], "--images",
                       args.images, "--seed", 1, "--out", folder]
            subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
        return text, folder
    kind, _, path = text.rpartition("=")
    path = pathlib.Path(path)
    if kind == "frequent":
        return f"{path.name}-frequent", frequent(path, data / f"{path.name}-frequent")
    return path.name, path


def backbone(text):
    """Name, folder or known name, side of images."""
    text, _, side = text.partition("@")
    name, _, folder = text.partition("=")
    return (f"{name}@{side}" if side else name), folder or name, side


def run(args, job, arm, folder, side, data):
    """Trains one job, or what is left of it, and returns its line; `None` if it failed."""
    work = args.out / "runs" / "-".join(str(part).replace(" ", "_").replace("/", "_") for part in job.values())
    if (work / "config.toml").exists():
        command = [args.vpt, "train", "--resume", work, "--quiet", "--json"]
    else:
        command = [args.vpt, "train", "--task", "detect", "--backbone", folder, "--data", data, "--seed", job["seed"],
                   "--out", work, "--quiet", "--json", *shlex.split(arm), *shlex.split(args.options)]
        command += ["--image-size", side] if side else []
        command += [] if "--method linear" in arm else ["--keep-better", "false"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        print(f"{work.name}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    found = json.loads(done.stdout)
    found = {name: found.get(name) for name in ("val", "test", "head_only", "best_epoch", "trainable_params", "wall_s",
                                                "peak_rss_bytes")}
    kept = args.out / "detections" / f"{work.name}.json"
    kept.parent.mkdir(exist_ok=True)
    (work / "test_detections.json").replace(kept)
    shutil.rmtree(work)
    return {**job, **found, "truth": str(truth_of(data).resolve()), "detections": kept.name}


def intervals(out, rows):
    """Of each arm the mean difference of AP to the head alone, over seeds that both have, and its 95 % interval."""
    import numpy as np
    from pycocotools.coco import COCO
    from compare_detections import average_precision, evaluated

    arms = collections.defaultdict(dict)
    for row in rows:
        arms[row["arm"]][row["seed"]] = row
    if ALONE not in arms:
        return {}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(rows[0]["truth"])
        of = {(arm, seed): evaluated(truth, str(out / "detections" / row["detections"]))
              for arm, seeds in arms.items() for seed, row in seeds.items()}
        count = len(truth.getImgIds())
        rng = np.random.default_rng(1)
        draws = [rng.integers(count, size=count) for _ in range(500)]
        ap = {key: np.array([average_precision(evaluation, draw) for draw in [np.arange(count), *draws]])
              for key, evaluation in of.items()}
    found = {}
    for arm, seeds in arms.items():
        both = [seed for seed in seeds if seed in arms[ALONE]]
        if arm == ALONE or not both:
            continue
        apart = np.array([ap[arm, seed] - ap[ALONE, seed] for seed in both])
        taken = rng.integers(len(both), size=(apart.shape[1] - 1, len(both)))
        means = np.array([apart[seeds, 1 + i].mean() for i, seeds in enumerate(taken)])
        low, high = np.nanpercentile(means, [2.5, 97.5])
        found[arm] = {"difference": apart[:, 0].mean(), "low": low, "high": high}
    return found


def percent(values):
    return f"{100 * sum(values) / len(values):.1f}"


def tables(out):
    """The tables of every set and backbone among the jobs in the folder `out`."""
    groups = collections.defaultdict(list)
    for line in (out / "jobs.jsonl").read_text().splitlines():
        row = json.loads(line)
        groups[row["backbone"], row["set"], row["options"]].append(row)
    text = []
    for (name, data, options), rows in groups.items():
        text += [f"### Boxes: {name} on {data}" + (f" (`{options}`)" if options else ""), "",
                 "| learned | runs | AP | AP50 | less the head alone (95 %) | head alone better on val | AP, better one kept | seconds | MiB |",
                 "|---|---|---|---|---|---|---|---|---|"]
        compared = intervals(out, rows)
        places = {arm: place for place, arm in enumerate(ARMS)}
        for arm in sorted(dict.fromkeys(row["arm"] for row in rows), key=lambda arm: places.get(arm, len(ARMS))):
            own = [row for row in rows if row["arm"] == arm]
            with_head = [row for row in own if row["head_only"]]
            rank = lambda scores: (scores["AP"], scores["AP50"])
            better = [rank(row["head_only"]["val"]) > rank(row["val"]) for row in with_head]
            kept = [(row["head_only"] if alone else row)["test"]["AP"] for row, alone in zip(with_head, better)]
            seconds = sum(row["wall_s"] for row in own) / len(own)
            memory = max((row["peak_rss_bytes"] or 0) for row in own) / 2**20
            text.append(f"| {arm} | {len(own)} | {percent([row['test']['AP'] for row in own])} | "
                        f"{percent([row['test']['AP50'] for row in own])} | "
                        f"{signed(compared[arm]) if arm in compared else ''} | "
                        f"{f'{sum(better)} of {len(better)}' if better else ''} | {percent(kept) if kept else ''} | "
                        f"{seconds:.0f} | {memory:.0f} |")
        text.append("")
    return "\n".join(text)


def main():
    parser = parser_of(__doc__)
    parser.add_argument("--arms", help=f"of these, separated by ;: {'; '.join(ARMS)}")
    parser.add_argument("--arm", action="append", default=[], metavar="NAME=FLAGS", help="one more")
    parser.add_argument("--images", type=int, default=300, help="drawn images in all")
    parser.add_argument("--options", default="", help="more flags of `vpt train`, for every run")
    parser.add_argument("--minutes", type=float, help="begin no run after that")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    until = time.time() + 60 * args.minutes if args.minutes else float("inf")
    arms = dict(arm.partition("=")[::2] for arm in args.arm)
    arms = {**{arm: ARMS[arm] for arm in (args.arms.split(";") if args.arms else ARMS)}, **arms}
    jobs = args.out / "jobs.jsonl"
    jobs.touch()
    names = ("backbone", "set", "options", "arm", "seed")
    done = {tuple(json.loads(line)[name] for name in names) for line in jobs.read_text().splitlines()}
    failed = 0
    # Seeds outside: what is cut off has all arms of the first seeds.
    for seed in args.seeds.split(","):
        for name, folder, side in map(backbone, args.backbone):
            for data, path in (prepared(args, data) for data in args.data):
                for arm, flags in arms.items():
                    job = dict(zip(names, (name, data, args.options, arm, int(seed))))
                    if tuple(job.values()) in done or time.time() > until:
                        continue
                    line = run(args, job, flags, folder, side, path)
                    failed += line is None
                    if line:
                        with jobs.open("a") as file:
                            file.write(json.dumps(line) + "\n")
    found = tables(args.out)
    if args.page:
        write_anew(args.page, BEGIN, found, END)
    else:
        print(found)
    if failed:
        raise SystemExit(f"{failed} runs failed")


if __name__ == "__main__":
    main()
