"""Makes small runs of an old version of `vpt`, of every method and task, which tests/cli/old_runs.rs opens and takes up.

    git worktree add old 6740d34 && (cd old && cargo build --release)
    python scripts/make_old_run_fixtures.py old/target/release/vpt tests/fixtures/old-runs/0.1.0

Every run is made twice: once to its end, whose task file and predictions are kept, and once up to a signal in one of its first epochs, whose
folder is kept. All with the portable kernel, whose sums are the same on every CPU. Needs nothing but Python.

A detector's head is large. Of its files only the headers are kept, and the tensors filled with numbers that the test can make
too, before the old version goes on with them: what it ends with is kept as a checksum of every tensor.
"""

import array, json, os, pathlib, shutil, signal, struct, subprocess, sys, tempfile, zlib

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures"
ENVIRONMENT = {"PATH": os.environ["PATH"], "VPT_KERNEL": "portable"}

# Name, backbone, data, flags, and in which line the run is stopped if not in that of the first epoch.
RUNS = [
    ("linear", "vit", "colours", "--method linear"),
    ("linear-auto", "vit", "colours", "--method linear --lr auto", "(2 of 4)"),
    ("vp-pad-auto", "vit", "colours", "--method vp-pad --pad 1 --lr auto", "(2 of 4)"),
    ("linear-text", "clip", "colours", "--method linear --head text"),
    ("linear-lbfgs", "vit", "colours", "--method linear --solver lbfgs"),
    ("zero-shot", "clip", "colours", "--method zero-shot"),
    ("ncm", "mae", "colours", "--method ncm"),
    ("zs-lp", "clip", "colours", "--method zs-lp --views 2"),
    ("clap", "clip", "colours", "--method clap --views 2"),
    ("tip-adapter", "clip", "colours", "--method tip-adapter --views 2"),
    ("tip-adapter-f", "clip", "colours", "--method tip-adapter-f --views 2"),
    ("vpt-shallow", "mae", "colours", "--method vpt-shallow --prompt-tokens 2 --flip"),
    ("vpt-deep", "dinov2", "colours", "--method vpt-deep --prompt-tokens 2 --prompt-layers last:2 --augment trivial"),
    ("vpt-deep-cosine", "deit", "colours", "--method vpt-deep --prompt-tokens 1 --head cosine --optimizer sgd --patience 9"),
    ("vpt-deep-few", "dinov2-registers", "colours", "--method vpt-deep --prompt-tokens 1 --shots 3 --prompt-layers first:2"),
    ("vp-pad", "vit", "colours", "--method vp-pad --pad 1"),
    ("vp-patch", "vit", "colours", "--method vp-patch --patch-size 4 --patch-place random"),
    ("vp-full", "label-map/vit", "colours", "--method vp-full"),
    ("vp-frame", "vit", "colours", "--method vp-frame --inner-size 30"),
    ("map-rlm", "label-map/vit", "colours", "--method vp-pad --pad 1 --label-map rlm"),
    ("map-flm", "label-map/dinov2", "colours", "--method vp-patch --patch-size 4 --label-map flm"),
    ("map-ilm", "label-map/vit", "colours", "--method vp-frame --label-map ilm"),
    ("map-blm", "label-map/registers", "colours", "--method vp-frame --label-map blm+"),
    ("coop", "clip", "colours", "--method coop --prompt-tokens 2"),
    ("cocoop", "clip", "colours", "--method cocoop --prompt-tokens 2"),
    ("ivlp", "clip", "colours", "--method ivlp --prompt-tokens 2 --prompt-layers first:2"),
    ("maple", "clip", "colours", "--method maple --prompt-layers first:2"),
    ("promptsrc", "clip", "colours", "--method promptsrc --prompt-tokens 2"),
    ("bias", "mae", "colours", "--method bias"),
    ("lora", "clip", "colours", "--method lora --lora-rank 1"),
    ("lora-head", "vit", "colours", "--method lora --lora-rank 1 --head linear"),
    ("full", "dinov2-swiglu", "colours", "--method full"),
    ("multilabel-linear", "clip", "boxes", "--task multilabel --method linear"),
    ("multilabel-deep", "mae", "boxes", "--task multilabel --method vpt-deep --prompt-tokens 1 --class-weights balanced"),
    ("detect-linear", "mae", "boxes", "--method linear"),
    ("detect-deep", "mae", "boxes", "--method vpt-deep --prompt-tokens 1 --prompt-layers last:1 --mosaic 0.3", " prompts "),
    ("detect-open", "clip", "boxes", "--method vpt-shallow --prompt-tokens 1 --open-vocabulary", " prompts "),
]
# Nothing is learned in steps, so there is nothing to be taken up.
AT_ONCE = {"linear-lbfgs", "zero-shot", "ncm", "tip-adapter"}
IMAGES = {"colours": ["data/colours/blue/3.png", "data/colours/green/5.png", "data/colours/red/0.png"],
          "boxes": ["data/boxes/test/000010.png"]}
# What another version need not read.
LEFT_OUT = {".lock", "curves.svg", "confusion.svg", "val_predictions.jpg", "mistakes.html", "prompt.png", "environment.json", "best.safetensors"}


def png(side, rows):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b""))


def colours(folder):
    """Ten images of each of three colours, with stripes."""
    for name, colour in {"blue": (40, 40, 170), "green": (40, 170, 40), "red": (170, 40, 40)}.items():
        (folder / name).mkdir(parents=True)
        for i in range(10):
            rows = b"".join(b"\0" + bytes(v + (x * (i + 1) + y * 3) % 5 * 12 for x in range(16) for v in colour) for y in range(16))
            (folder / name / f"{i}.png").write_bytes(png(16, rows))


def vpt(program, cwd, command):
    done = subprocess.run([program, *command.split()], cwd=cwd, env={**ENVIRONMENT, "HOME": str(cwd)}, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"vpt {command}: {done.stderr}")
    return done.stdout


def pattern():
    """Bytes of 1021 numbers between -0.05 and 0.05, the same everywhere, and of their absolute values."""
    state, numbers = 1, []
    for _ in range(1021):
        state = (state * 1664525 + 1013904223) % (1 << 32)
        numbers.append((state >> 8) / (1 << 24) * 0.1 - 0.05)
    return array.array("f", numbers).tobytes(), array.array("f", map(abs, numbers)).tobytes()


def header(path):
    """The header of a safetensors file as it stands there."""
    with open(path, "rb") as file:
        return file.read(struct.unpack("<Q", file.read(8))[0])


def fill(head, path):
    """A file of this header whose tensors repeat the pattern; squares of gradients are not negative."""
    signed, absolute = pattern()
    tensors = {name: t for name, t in json.loads(head).items() if name != "__metadata__"}
    data = bytearray(max(t["data_offsets"][1] for t in tensors.values()))
    for name, tensor in tensors.items():
        begin, end = tensor["data_offsets"]
        numbers = absolute if name.startswith("second/") else signed
        data[begin:end] = (numbers * ((end - begin) // len(numbers) + 1))[:end - begin]
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)


def checksums(path):
    """The metadata, and an Adler-32 sum of every tensor."""
    head, data = header(path), path.read_bytes()
    data = data[8 + len(head):]
    head = json.loads(head)
    metadata = json.loads(head.pop("__metadata__")["vpt"])
    return {"metadata": metadata, "tensors": {name: [t["shape"], zlib.adler32(data[slice(*t["data_offsets"])])] for name, t in head.items()}}


def stopped(program, cwd, command, run, line_of):
    """Begins the run and stops it by a signal in one of its first epochs."""
    for _ in range(200):
        shutil.rmtree(cwd / run, ignore_errors=True)
        process = subprocess.Popen([program, *command.split()], cwd=cwd, env={**ENVIRONMENT, "HOME": str(cwd)}, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for line in process.stderr:
            if line_of in line:
                process.send_signal(signal.SIGINT)
                break
        process.communicate()
        kept = {path.name for path in (cwd / run).iterdir()}
        if process.returncode == 75 and kept & {"checkpoint.safetensors", "lr_search.json"}:
            return
    sys.exit(f"vpt {command}: was over before it could be stopped")


def make(program, cwd, kept, name, backbone, data, flags, line_of="epoch "):
    """One run, into the folder `kept`."""
    epochs = "" if name in AT_ONCE else "--epochs 8" if name.startswith("detect") else "--epochs 24"
    size = "--image-size 32" if data == "boxes" else ""
    batch = "" if name in AT_ONCE else "--batch-size 6"
    train = f"train --backbone fixtures/{backbone} --data data/{data} {epochs} {batch} {size} {flags} --threads 2 --no-cache --out {name}"
    vpt(program, cwd, train)
    whole = cwd / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    (cwd / name).rename(whole)
    if name in AT_ONCE:
        shutil.copytree(whole, cwd / name)
    else:
        stopped(program, cwd, train, name, line_of)
    kept.mkdir()
    left_out = set(LEFT_OUT)
    large = name.startswith("detect")
    if large:
        head = header(cwd / name / "checkpoint.safetensors")
        (kept / "checkpoint.header").write_bytes(head)
        left_out.add("checkpoint.safetensors")
        begun = cwd / "begun"
        shutil.rmtree(begun, ignore_errors=True)
        shutil.copytree(cwd / name, begun)
        fill(head, begun / "checkpoint.safetensors")
        vpt(program, cwd, "train --resume begun")
        (kept / "finished.json").write_text(json.dumps(checksums(begun / "best.safetensors"), indent=1) + "\n")
        (kept / "finished.header").write_bytes(header(whole / "best.safetensors"))
        fill(header(whole / "best.safetensors"), whole / "best.safetensors")
    else:
        shutil.copy(whole / "best.safetensors", kept / "finished.safetensors")
    for path in (cwd / name).iterdir():
        if path.name not in left_out:
            shutil.copy(path, kept / path.name)
    images = IMAGES[data]
    least = "--min-score 0" if large else ""
    predictions = vpt(program, cwd, f"predict --model whole --threads 2 --json {least} {' '.join(images)}")
    (kept / "predictions.json").write_text(json.dumps(json.loads(predictions)) + "\n")
    return {"name": name, "backbone": backbone, "images": images, "large": large, "stopped": name not in AT_ONCE}


def main():
    program, out = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2])
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        cwd = pathlib.Path(folder)
        colours(cwd / "data" / "colours")
        vpt(program, cwd, "data make shapes --task detect --images 12 --size 32 --seed 1 --out data/boxes")
        shutil.copytree(cwd / "data", out / "data")
        (cwd / "fixtures").symlink_to(FIXTURES)
        for name, backbone, data, flags, *line_of in RUNS:
            runs.append(make(program, cwd, out / name, name, backbone, data, flags, *line_of))
            print(name, sum(path.stat().st_size for path in (out / name).iterdir()))
    (out / "runs.json").write_text("[\n" + ",\n".join(json.dumps(run) for run in runs) + "\n]\n")
    print("in all", sum(path.stat().st_size for path in out.rglob("*") if path.is_file()))


if __name__ == "__main__":
    main()
