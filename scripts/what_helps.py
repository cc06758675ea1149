#!/usr/bin/env python3
"""What is worth learning beside a head: `vpt bench few-shot` on several backbones and sets, and one page of tables.

    python scripts/what_helps.py --vpt target/release/vpt --out /tmp/what-helps --backbone clip-nano \\
        --data shapes --data /usr/share/datasets/fashion-mnist --data photos/
    python scripts/what_helps.py ... --backbone focus=/path/to/vit-s14@112 --methods linear,bias,vpt-deep --shots 4,16
    python scripts/what_helps.py --out /tmp/what-helps --page docs/what-helps.md     the page anew, from what is there

A backbone is a known name or NAME=FOLDER, with @PIXELS behind it where images are to have another side. `--test-images` keeps so
many test images of an IDX set (the first ones of a shuffle by seed 1): prompts see every test image in every job. A grid that was
cut off goes on; `--minutes` ends it in time, and the page says how many jobs are missing. Learned parts are taken for what they are
(`keep_better` false); a column says how often the probe alone would have been kept. Intervals are paired over test images and seeds, as
`vpt bench few-shot` computes them. Needs nothing but Python.
"""

import argparse, collections, gzip, json, pathlib, random, struct, subprocess, sys, time

METHODS = "linear,bias,norm,vpt-shallow,vpt-deep,lora,full"
PARTS = {"t10k": "test", "test": "test"}


def smaller_idx(folder, out, count):
    """A copy of the IDX set `folder` in `out` with `count` test images."""
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(folder.glob("*-ubyte*")):
        target = out / file.name
        if target.exists():
            continue
        raw = file.read_bytes()
        if not file.name.startswith(tuple(PARTS)):
            target.write_bytes(raw)
            continue
        data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        dims = data[3]
        shape = struct.unpack(f">{dims}I", data[4:4 + 4 * dims])
        size = 1
        for n in shape[1:]:
            size *= n
        chosen = sorted(random.Random(1).sample(range(shape[0]), min(count, shape[0])))
        body = data[4 + 4 * dims:]
        kept = b"".join(body[i * size:(i + 1) * size] for i in chosen)
        data = data[:4] + struct.pack(f">{dims}I", len(chosen), *shape[1:]) + kept
        target.write_bytes(gzip.compress(data) if raw[:2] == b"\x1f\x8b" else data)
    return out


def prepared(args, path):
    """The set at `path`, made smaller or drawn where that is asked for."""
    if path == "shapes":
        folder = args.out / "data" / "shapes"
        if not folder.exists():
            command = [args.vpt, "data", "make", "shapes", "--out", folder, "--images", "6000", "--seed", "1"]
            subprocess.run(list(map(str, command)), check=True)
        return folder
    path = pathlib.Path(path)
    idx = path.is_dir() and any(path.glob("*-idx*-ubyte*"))
    if idx and args.test_images:
        return smaller_idx(path, args.out / "data" / path.name, args.test_images)
    return path


def backbone(text):
    """Name, folder or known name, side of images."""
    text, _, side = text.partition("@")
    name, _, folder = text.partition("=")
    return (f"{name}@{side}" if side else name), folder or name, side


def grid(args, name, folder, side, data, until):
    """Runs the grid of a backbone on a set, or what is left of it."""
    out = args.out / f"{name}-{pathlib.Path(data).name}"
    command = [args.vpt, "bench", "few-shot", "--backbone", folder, "--data", data, "--methods", args.methods,
               "--shots", args.shots, "--seeds", args.seeds, "--schedule", args.schedule, "--out", out, "--quiet"]
    command += ["--image-size", side] if side else []
    command += args.options.split()
    try:
        left = None if until is None else max(until - time.time(), 1)
        subprocess.run(list(map(str, command)), timeout=left, stdout=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        print(f"{out.name}: out of time", file=sys.stderr)
    if any((out / "jobs").glob("*.json")):
        subprocess.run([str(args.vpt), "bench", "merge", str(out)], stdout=subprocess.DEVNULL)


def percent(value):
    return f"{100 * value:.1f}"


def signed(interval):
    text = f"{100 * interval['difference']:+.1f} ({100 * interval['low']:+.1f} to {100 * interval['high']:+.1f})"
    return f"**{text}**" if interval["low"] > 0 or interval["high"] < 0 else text


def tables(out):
    """The tables of every grid in the folder `out`."""
    text = []
    for file in sorted(out.glob("*/results.json")):
        found = json.loads(file.read_text())
        jobs = found["jobs"]
        if not jobs:
            continue
        name, dataset = file.parent.name, jobs[0]["dataset"]
        images = jobs[0]["parts"][0]["images"]
        text.append(f"### {name.removesuffix('-' + dataset)} on {dataset} ({images} test images)\n")
        text.append("| images a class | method | accuracy | less linear (95 %) | less the probe alone | probe better on val | seconds | MiB |")
        text.append("|---|---|---|---|---|---|---|---|")
        by = collections.defaultdict(list)
        for job in jobs:
            by[job["shots"], job["method"]].append(job)
        order = {method: i for i, method in enumerate(dict.fromkeys(job["method"] for job in jobs))}
        than = {(c["shots"], c["method"], c["than"]): c for c in found["differences"]}
        for (shots, method), rows in sorted(by.items(), key=lambda item: (item[0][0], order[item[0][1]])):
            accuracy = [row["parts"][0]["acc1"] for row in rows]
            compared = than.get((shots, method, "linear"))
            probes = [row["probe"] for row in rows if row.get("probe")]
            moved = "".join(f"{100 * sum(p['moved']['difference'] for p in probes) / len(probes):+.1f}") if probes else ""
            better = f"{sum(p['better'] for p in probes)} of {len(probes)}" if probes else ""
            seconds = sum(row["wall_s"] for row in rows) / len(rows)
            memory = max((row["peak_rss_bytes"] or 0) for row in rows) / 2**20
            text.append(f"| {shots} | {method} | {percent(sum(accuracy) / len(accuracy))} ({len(rows)}) | "
                        f"{signed(compared) if compared else ''} | {moved} | {better} | {seconds:.0f} | {memory:.0f} |")
        failures = found.get("failures") or []
        text += [f"\n{len(failures)} jobs failed." if failures else "", ""]
    return "\n".join(text)


def write_anew(page, begin, found, end):
    """Puts what was `found` between the marks `begin` and `end` of a page."""
    before, rest = page.read_text().split(begin)
    page.write_text(before + begin + found + "\n" + end + rest.split(end)[1])


def parser_of(description):
    """The arguments of both scripts."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vpt", default="vpt")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--backbone", action="append", default=[])
    parser.add_argument("--data", action="append", default=[])
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--page", type=pathlib.Path, help="a page whose tables, between two marks, are written anew")
    return parser


def main():
    parser = parser_of(__doc__)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--shots", default="1,4,16,64")
    parser.add_argument("--schedule", default="published", choices=["published", "quick"])
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--options", default="", help="more flags of `vpt bench few-shot`")
    parser.add_argument("--minutes", type=float, help="stop then")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    until = time.time() + 60 * args.minutes if args.minutes else None
    for name, folder, side in map(backbone, args.backbone):
        for data in args.data:
            grid(args, name, folder, side, prepared(args, data), until)
    found = tables(args.out)
    if args.page:
        write_anew(args.page, "<!-- tables -->\n", found, "<!-- end of tables -->")
    else:
        print(found)


if __name__ == "__main__":
    main()
