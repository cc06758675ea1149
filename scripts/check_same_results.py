#!/usr/bin/env python3
"""Runs a grid of small trainings, predictions and wrong uses with two `vpt` programs and compares what they leave, to the byte.

    python scripts/check_same_results.py OLD NEW            every method, task, family and label map: some minutes a program
    python scripts/check_same_results.py OLD NEW --quick    a part of it, a minute
    python scripts/check_same_results.py OLD NEW --only 'nano-.*|detect-.*' --cache FOLDER
    python scripts/check_same_results.py OLD --self-test    shows that a difference is found

Equal must be: exit codes, the words of errors, every number that is no time or memory, and the files of runs: task files to the
byte, results, metrics, configuration, split, detections, pictures. What else is said, help and checkpoints may differ: that
is only shown. With --cache what OLD leaves is kept, and not computed again for the next NEW. Needs nothing but Python; the grid is
in `same_results_cases.py`. Exit code 1 if anything differs that must not.
"""

import argparse, difflib, hashlib, json, os, pathlib, re, shlex, shutil, struct, subprocess, sys, tempfile, time, zlib

import same_results_cases as cases

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Numbers of JSON, columns of tables that differ from run to run.
TIMES = {"wall_s", "img_per_s", "peak_rss_bytes", "energy", "train_seconds", "val_seconds", "images_per_minute", "seconds",
         "changed", "bytes"}
# Files that hold times, or nothing.
UNREAD = {".lock", ".merge.lock", "environment.json", "report.html", "results.csv", "table.md", "table.tex"}
TIMED = re.compile(r"\d[\d.,]*\s?(ms|s|min|h|images/s|img/s|[kMG]i?B|bytes|images a minute)\b")
SECONDS = re.compile(r'("(?:\w*seconds|wall_s|img_per_s|peak_rss_bytes)"):[\d.e+-]+')
VARIABLES = ["HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "VPT_CACHE", "RUST_BACKTRACE", "VPT_KERNEL"]


def png(width, height, rows):
    """An image of 8-bit RGB."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def colours(folder, each=20):
    """Noisy images of three colours, as the tests of the command line draw them."""
    for name, colour in {"blue": (40, 40, 200), "dark_red": (120, 20, 20), "green": (40, 200, 40)}.items():
        (folder / name).mkdir(parents=True)
        for i in range(each):
            rows = b"".join(b"\0" + bytes(min(255, v + (x * 31 + y * 57 + i * 101 + x * y * 7) % 61) for x in range(24) for v in colour)
                            for y in range(20))
            (folder / name / f"{i:03}.png").write_bytes(png(24, 20, rows))


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(v) for key, v in value.items() if key not in TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def canonical(text):
    """JSON without times, a field a line; None if it is no JSON."""
    try:
        return json.dumps(without_times(json.loads(text)), indent=1)
    except ValueError:
        return None


def tensors(data, timed):
    """Contents of a safetensors file as lines: a hash of every tensor, and the metadata; if it holds times, without them."""
    length, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    lines = [f"metadata {key}: {value}" for key, value in header.pop("__metadata__", {}).items()]
    for name, tensor in header.items():
        begin, end = (8 + length + offset for offset in tensor["data_offsets"])
        lines.append(f"{name} {tensor['dtype']} {tensor['shape']} {hashlib.sha256(data[begin:end]).hexdigest()[:16]}")
    if timed:
        return SECONDS.sub(r"\1:0", "\n".join(lines))
    return "\n".join([*lines, "file " + hashlib.sha256(data).hexdigest()])


def digest(path):
    """A file's contents as a text that can be compared; files of other kinds by their hash."""
    data = path.read_bytes()
    try:
        if path.suffix == ".safetensors":
            return tensors(data, path.name == "checkpoint.safetensors")
        if path.suffix == ".json" and len(data) < 1 << 18:
            return canonical(data) or data.decode()
        if path.suffix == ".jsonl":
            return "\n".join(json.dumps(without_times(json.loads(line))) for line in data.decode().splitlines())
        if path.suffix in (".toml", ".txt", ".yaml", ".xml"):
            return data.decode()
    except (ValueError, KeyError, struct.error):
        pass
    return hashlib.sha256(data).hexdigest()


class Program:
    """A program with a folder to work in, and what it left in earlier cases if that is kept."""

    def __init__(self, path, work, cache=None, seed=None):
        self.path, self.work, self.seed = pathlib.Path(path).resolve(), work, seed
        if not self.path.is_file():
            sys.exit(f"{path}: no such program")
        with open(self.path, "rb") as file:
            self.hash = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        try:
            flags = [line for line in open("/proc/cpuinfo") if line.startswith(("model name", "flags"))][:2]
        except OSError:
            flags = []
        self.cpu = hashlib.sha256("".join(flags).encode()).hexdigest()[:8]
        self.cache = cache and pathlib.Path(cache) / f"{self.hash}-{self.cpu}"
        self.seconds = 0.0

    def run(self, command, cwd):
        """Exit code, stdout and stderr of a command line."""
        arguments = shlex.split(command)
        if self.seed is not None:
            arguments = [str(self.seed) if before == "--seed" else a for before, a in zip(["", *arguments], arguments)]
        arguments = [str(found) for a in arguments for found in (sorted(cwd.glob(a)) if "*" in a else [a])]
        arguments = [os.path.relpath(a, cwd) if os.path.isabs(a) else a for a in arguments]
        environment = {key: value for key, value in os.environ.items() if key not in VARIABLES} | {"HOME": str(cwd)}
        try:
            done = subprocess.run([self.path, *arguments], cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
                                  timeout=600)
        except subprocess.TimeoutExpired:
            return {"command": command, "code": "timeout", "stdout": "", "stderr": ""}
        return {"command": command, "code": done.returncode, "stdout": self.text(done.stdout), "stderr": self.text(done.stderr)}

    def text(self, data):
        return data.decode(errors="replace").replace(str(self.work.resolve()), "WORK").replace(str(self.work), "WORK").replace(str(ROOT), "ROOT")

    def data(self):
        """Data that the cases share, drawn once by this program."""
        data = self.work / "data"
        if not data.exists():
            data.mkdir(parents=True)
            colours(data / "colours")
            for command in ("data make shapes --pairs unseen --images 160 --out few --seed 1",
                            "data make shapes --task detect --images 24 --size 48 --out boxes --seed 1"):
                done = self.run(command, data)
                if done["code"] != 0:
                    sys.exit(f"{self.path} {command}: {done['stderr']}")
        return data

    def folder(self, name):
        folder = self.work / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for entry in self.data().iterdir():
            (folder / entry.name).symlink_to(entry)
        (folder / "fixtures").symlink_to(ROOT / "tests" / "fixtures")
        (folder / "names.txt").write_text("".join(f"object {i}\n" for i in range(16)))
        (folder / "names3.txt").write_text("blue\nred\ngreen\n")
        (folder / "templates.txt").write_text("a picture of a {}.\nmany {}s\n")
        (folder / "c.toml").write_text('method = "vpt-deap"\n')
        return folder

    def leaves(self, name, commands, kind="case"):
        """What the case leaves: results of its commands, and its files."""
        stored = self.cache and self.cache / f"{name}-{hashlib.sha256(json.dumps(commands).encode()).hexdigest()[:12]}.json"
        if stored and stored.exists():
            return json.loads(stored.read_text())
        begun = time.monotonic()
        folder = self.folder(name)
        if kind == "wrong":
            self.run(f"train --backbone fixtures/vit --data colours --out run --method linear --epochs 1 {cases.EVERY}", folder)
        known = {entry.name for entry in folder.iterdir()}
        record = {"commands": [], "files": {}}
        for command in commands:
            record["commands"].append(self.run(command, folder))
            if kind == "wrong":
                shutil.rmtree(folder / "new", ignore_errors=True)
        for path in sorted(folder.rglob("*")):
            name_of = path.relative_to(folder)
            if path.is_file() and name_of.parts[0] not in known and path.name not in UNREAD:
                record["files"][str(name_of)] = digest(path).replace(str(ROOT), "ROOT").replace(str(self.work), "WORK")
        shutil.rmtree(folder)
        self.seconds += time.monotonic() - begun
        if stored:
            stored.parent.mkdir(parents=True, exist_ok=True)
            beside = stored.with_suffix(f".{os.getpid()}")
            beside.write_text(json.dumps(record))
            beside.rename(stored)
        return record


def show(old, new, lines):
    """Lines that differ, shortened around the first difference of each."""
    out = []
    diff = [line for line in difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm="")][2:]
    for line in diff[:lines]:
        out.append(f"      {line[:220]}")
    if len(diff) > lines:
        out.append(f"      ... {len(diff) - lines} lines more")
    return out


def masked(text):
    return re.sub(r" +", " ", TIMED.sub("#", text))


def compare(name, old, new, kind="case"):
    """Faults and remarks as lists of texts."""
    faults, remarks = [], []
    def differs(to, what, a, b):
        to.append("\n".join([f"  {name}: {what}", *show(a, b, 6)]))
    for a, b in zip(old["commands"], new["commands"], strict=True):
        what = f"`vpt {a['command']}`"
        if a["code"] != b["code"]:
            differs(faults, f"exit code {a['code']} then, {b['code']} now: {what}", a["stderr"][-600:], b["stderr"][-600:])
            continue
        if kind == "help":
            if a["stdout"] != b["stdout"]:
                differs(remarks, what, a["stdout"], b["stdout"])
            continue
        if a["code"] != 0:
            if a["stderr"] != b["stderr"]:
                differs(faults, f"stderr of {what}", a["stderr"], b["stderr"])
        elif masked(a["stderr"]) != masked(b["stderr"]):
            differs(remarks, f"stderr of {what}", masked(a["stderr"]), masked(b["stderr"]))
        both = canonical(a["stdout"]), canonical(b["stdout"])
        if None not in both:
            if both[0] != both[1]:
                differs(faults, f"stdout of {what}", *both)
        elif masked(a["stdout"]) != masked(b["stdout"]):
            differs(remarks, f"stdout of {what}", masked(a["stdout"]), masked(b["stdout"]))
    for file in sorted(old["files"].keys() | new["files"].keys()):
        a, b = old["files"].get(file), new["files"].get(file)
        if a is None or b is None:
            faults.append(f"  {name}: {file} is only {'new' if a is None else 'old'}")
        elif a != b:
            differs(remarks if pathlib.Path(file).name == "checkpoint.safetensors" else faults, file, a, b)
    return faults, remarks


def chosen(arguments):
    """Cases as (name, commands, kind)."""
    every = [(name, commands, "case") for name, quick, commands in cases.grid() if quick or not arguments.quick]
    every.append(("wrong", cases.wrong(), "wrong"))
    every.append(("help", [f"{command} --help" for command in cases.HELP], "help"))
    pattern = re.compile(arguments.only or "")
    return [case for case in every if pattern.search(case[0])]


def compared(old, new, grid, quiet=False):
    """Faults and remarks of all cases."""
    faults, remarks = [], []
    for number, (name, commands, kind) in enumerate(grid, 1):
        left = old.leaves(name, commands, kind)
        right = new.leaves(name, commands, kind)
        found, said = compare(name, left, right, kind)
        for failed in left["commands"]:
            if kind == "case" and failed["code"] != 0:
                found.append(f"  {name}: OLD cannot do `vpt {failed['command']}`: {failed['stderr'].strip()[-300:]}")
        faults += found
        remarks += said
        if not quiet:
            print(f"[{number}/{len(grid)}] {name} {'DIFFERS' if found else 'same'}", flush=True)
            for fault in found:
                print(fault, flush=True)
    return faults, remarks


def self_test(program, work, pattern):
    """The same program gives no difference, another seed gives one in every case, and so does a changed word or number."""
    grid = [(name, commands, "case") for name, _, commands in cases.grid()
            if re.search(pattern or r"^(nano-(linear|vpt-deep|coop)|map-vp-pad-rlm|detect-linear|multi-linear|family-vit)$", name)]
    same, _ = compared(Program(program, work / "a"), Program(program, work / "b"), grid, quiet=True)
    wrong = [f"the same program differs from itself:\n{fault}" for fault in same]
    for case in grid:
        other, _ = compared(Program(program, work / "a"), Program(program, work / "c", seed=4), [case], quiet=True)
        if not any("best.safetensors" in fault for fault in other):
            wrong.append(f"{case[0]}: another seed is not noticed")
    table = cases.wrong()[:12]
    refused = Program(program, work / "a").leaves("wrong", table, "wrong")
    for change in ({"code": 1}, {"stderr": "error: something else\n"}):
        changed = json.loads(json.dumps(refused))
        changed["commands"][5].update(change)
        if len(compare("wrong", refused, changed, "wrong")[0]) != 1:
            wrong.append(f"a change of {list(change)} is not noticed")
    for fault in wrong:
        print(fault)
    print(f"self-test on {len(grid)} cases: {'failed' if wrong else 'differences are found, and only where they are'}")
    return 1 if wrong else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new", nargs="?")
    parser.add_argument("--quick", action="store_true", help="a part of the grid")
    parser.add_argument("--only", metavar="PATTERN", help="cases whose name matches")
    parser.add_argument("--cache", metavar="DIR", help="keeps what OLD left")
    parser.add_argument("--self-test", action="store_true")
    parser.add_argument("--list", action="store_true", help="names of the cases")
    arguments = parser.parse_args()
    grid = chosen(arguments)
    if arguments.list:
        print("\n".join(name for name, _, _ in grid))
        return 0
    with tempfile.TemporaryDirectory(prefix="vpt-same-") as folder:
        work = pathlib.Path(folder).resolve()
        if arguments.self_test:
            return self_test(arguments.old, work, arguments.only)
        if arguments.new is None:
            parser.error("NEW is missing")
        old = Program(arguments.old, work / "old", arguments.cache)
        new = Program(arguments.new, work / "new")
        faults, remarks = compared(old, new, grid)
    if remarks:
        print(f"\n{len(remarks)} differences that may be:")
        print("\n".join(remarks))
    print(f"\n{len(grid)} cases, OLD {old.seconds:.0f} s, NEW {new.seconds:.0f} s: {len(faults)} differences that must not be")
    print("\n".join(fault.splitlines()[0] for fault in faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
