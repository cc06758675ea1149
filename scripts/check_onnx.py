#!/usr/bin/env python3
"""Holds what `vpt export` writes against onnxruntime: a table of families and methods, on tiny checkpoints.

    python scripts/check_onnx.py VPT                       all of it: some minutes
    python scripts/check_onnx.py VPT --only 'siglip.*'     rows whose `family method` fit
    python scripts/check_onnx.py VPT --keep FOLDER         leaves the files there

For each row a task is learned in a step or two, exported, checked by onnx.checker (full_check), and run by onnxruntime at both
ends of its optimisation, one image and three at a time, on 32 pictures. Asked for: logits within 1e-4 of the largest of this
program's own, the same first class (but for two that are as likely as each other), boxes within 1e-3 of the image's side; and
metadata that parses as Ultralytics' readers parse it.

Needs onnx, onnxruntime, numpy, pillow; the families of scripts/make_timm_fixture.py also torch, timm, transformers. Exit code 1 if a row
fails.
"""

import argparse, ast, json, os, pathlib, re, subprocess, sys, tempfile

import numpy as np
import onnx
import onnxruntime as ort
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests/fixtures"
LIMIT, BOX_LIMIT, HALF_LIMIT = 1e-4, 1e-3, 2e-2
PICTURES = 32
QUICK = ["--quiet", "--seed", "3"]
# Of what learns in steps; what was learned is exported although it is not better than the head alone.
STEPS = ["--epochs", "1", "--batch-size", "8"]
KEEP = ["--keep-better", "false"]
TOKENS = ["--prompt-tokens", "3"]

BESIDE_A_HEAD = {"vpt-deep", "vpt-shallow", "e2vpt", "vp-pad", "vp-patch", "vp-full", "vp-frame", "bias", "norm", "full",
                 "vpt-deep,lora", "vp-pad,vpt-deep"}

# Families of the fixtures that are folders, and of those what has texts and a classifier of its own.
FOLDERS = ["vit", "deit", "mae", "clip", "clip-gelu", "dinov2", "dinov2-registers", "dinov2-swiglu", "siglip", "siglip2"]
MADE = ["timm-vit", "timm-distilled", "timm-deit3", "timm-dinov2", "timm-registers", "timm-swiglu", "timm-clip", "timm-mean",
        "timm-siglip", "timm-dinov3", "timm-dinov3-plus", "hf-dinov3", "hf-dinov3-gated"]
TEXTS = {"clip", "clip-gelu", "siglip", "siglip2", "clip-nano"}
EVERY = {
    "linear": ["--method", "linear"],
    "vpt-deep": ["--method", "vpt-deep", *TOKENS],
    "vpt-shallow": ["--method", "vpt-shallow", *TOKENS],
}
MORE = {
    "cosine": ["--method", "vpt-deep", "--head", "cosine", *TOKENS],
    "first:2": ["--method", "vpt-deep", "--prompt-layers", "first:2", *TOKENS],
    "e2vpt": ["--method", "e2vpt", *TOKENS],
    "ncm": ["--method", "ncm"],
    "vp-pad": ["--method", "vp-pad"],
    "vp-patch": ["--method", "vp-patch"],
    "vp-full": ["--method", "vp-full"],
    "vp-frame": ["--method", "vp-frame"],
    "bias": ["--method", "bias"],
    "norm": ["--method", "norm"],
    "lora": ["--method", "lora", "--head", "linear"],
    "full": ["--method", "full"],
    "vpt-deep,lora": ["--method", "vpt-deep,lora", "--head", "linear", *TOKENS],
    "vp-pad,vpt-deep": ["--method", "vp-pad,vpt-deep", *TOKENS],
    "multilabel": ["--method", "vpt-deep", "--task", "multilabel", *TOKENS],
    "detect": ["--method", "vpt-deep", "--task", "detect", *TOKENS],
    "detect-linear": ["--method", "linear", "--task", "detect"],
}
OF_TEXTS = {
    "text": ["--method", "vpt-deep", "--head", "text", *TOKENS],
    "zs-lp": ["--method", "zs-lp"],
    "clap": ["--method", "clap"],
    "tip-adapter": ["--method", "tip-adapter"],
    "tip-adapter-f": ["--method", "tip-adapter-f"],
    "coop": ["--method", "coop", *TOKENS],
    "cocoop": ["--method", "cocoop", *TOKENS],
    "ivlp": ["--method", "ivlp", *TOKENS],
    "maple": ["--method", "maple", *TOKENS],
    "promptsrc": ["--method", "promptsrc", *TOKENS],
    "lora-texts": ["--method", "lora"],
    "detect-open": ["--method", "vpt-deep", "--task", "detect", "--open-vocabulary", *TOKENS],
}
MAPS = {f"map-{kind}": ["--method", "vp-frame", "--label-map", kind] for kind in ["rlm", "flm", "ilm", "blm", "blm+"]}
# Ways to export, on one family.
FORMS = {
    "hf": ["--layout", "hf"],
    "opset 23": ["--opset", "23"],
    "f16": ["--precision", "f16"],
    "external data": ["--external-data"],
    "task-input": ["--task-input"],
}


def run(command, **more):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **more)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip().splitlines()[-1:] or done.returncode}")
    return done.stdout


def pictures(folder, size=48):
    """Pictures of two classes, and squares of colour to classify."""
    rng = np.random.default_rng(5)
    for number, name in enumerate(["blue", "dark red", "green"]):
        (folder / "colours" / name).mkdir(parents=True)
        base = np.array([(40, 40, 200), (120, 20, 20), (40, 200, 40)][number])
        for i in range(14):
            noise = rng.integers(0, 60, (size, size, 3))
            Image.fromarray((base + noise).clip(0, 255).astype(np.uint8)).save(folder / "colours" / name / f"{i:02}.png")
    (folder / "verify").mkdir()
    for i in range(PICTURES):
        cell = 2 ** (i % 5)
        colours = rng.integers(0, 256, (-(-size // cell), -(-size // cell), 3)).astype(np.uint8)
        Image.fromarray(np.kron(colours, np.ones((cell, cell, 1), np.uint8))[:size, :size]).save(folder / "verify" / f"{i:02}.png")
    return folder / "colours", sorted((folder / "verify").iterdir())


def sessions(path):
    for level in [ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL]:
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        yield ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def in_batches(session, inputs, size, batched):
    """Outputs by name; inputs whose first dimension is the batch's are cut."""
    names = [output.name for output in session.get_outputs()]
    count = len(inputs[batched])
    types = {i.name: np.int64 if "int64" in i.type else np.float32 for i in session.get_inputs()}
    parts = []
    for start in range(0, count, size):
        feed = {k: (v[start:start + size] if k == batched else v).astype(types[k]) for k, v in inputs.items() if k in types}
        parts.append(session.run(names, feed))
    return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}


def compare(path, reference, half=False):
    """The largest difference, of what is allowed, and a note."""
    onnx.checker.check_model(str(path), full_check=True)
    kept = dict(np.load(reference))
    worst, note = 0.0, ""
    for session in sessions(path):
        batched = session.get_inputs()[0].name
        inputs = {i.name: kept[i.name] for i in session.get_inputs()}
        for size in (1, 3):
            found = in_batches(session, inputs, size, batched)
            for name in set(found) & set(kept):
                ours, theirs = kept[name].astype(np.float64), found[name].astype(np.float64)
                limit = HALF_LIMIT if half else BOX_LIMIT if name == "output0" else LIMIT
                if name == "output0":
                    side = inputs[batched].shape[-1]
                    if ours.shape[-1] == 6 and ours.shape[1] <= 100:
                        difference, note = rows_apart(ours, theirs, side)
                    else:
                        scale = np.concatenate([np.full((1, 4, 1), side), np.ones((1, ours.shape[1] - 4, 1))], axis=1)
                        difference = np.abs((ours - theirs) / scale).max()
                else:
                    difference = np.abs(ours - theirs).max() / np.abs(ours).max()
                if name == "logits" and not half:
                    a, b = ours.argmax(1), theirs.argmax(1)
                    gap = ours[np.arange(len(a)), a] - ours[np.arange(len(a)), b]
                    if (gap > 2 * limit * np.abs(ours).max()).any():
                        raise RuntimeError("another first class")
                worst = max(worst, difference / limit)
    metadata(path)
    return worst, note


def rows_apart(ours, theirs, side):
    """The largest difference of boxes that both found, in sides; fails where one found many that the other did not."""
    worst, alone, total = 0.0, 0, 0
    for a, b in zip(ours, theirs):
        a, b = a[a[:, 4] > 0], b[b[:, 4] > 0]
        total += max(len(a), len(b))
        alone += abs(len(a) - len(b))
        for row in a:
            same = b[b[:, 5] == row[5]]
            apart = np.concatenate([np.abs(same[:, :4] - row[:4]) / side, np.abs(same[:, 4:5] - row[4])], axis=1).max(1)
            if len(apart) and apart.min() <= BOX_LIMIT:
                worst = max(worst, apart.min())
            else:
                alone += 1
    if alone > 0.02 * total:
        raise RuntimeError(f"{alone} of {total} boxes are found by one alone")
    return worst, f"{total - alone} of {total} boxes"


def metadata(path):
    """Reads the metadata as Ultralytics' AutoBackend does: int() and ast.literal_eval on the keys that it evaluates."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    entries = session.get_modelmeta().custom_metadata_map
    own = json.loads(entries["vpt"])
    assert own["schema"] == 1 and json.loads(entries["vpt_parity"])["images"] > 0
    if own["task"].startswith("embed"):
        return
    for key in ["stride", "batch", "channels"]:
        assert int(entries[key]) > 0
    names, sides = ast.literal_eval(entries["names"]), ast.literal_eval(entries["imgsz"])
    assert list(names.values()) == own["classes"] and list(names) == list(range(len(names)))
    assert sides == [own["image_size"]] * 2 and isinstance(ast.literal_eval(entries["args"]), dict)
    assert entries["task"] == ("detect" if own["task"] == "detect" else "classify")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vpt", type=pathlib.Path)
    parser.add_argument("--only", default="", help="rows whose `family method` fit this pattern")
    parser.add_argument("--keep", type=pathlib.Path)
    parser.add_argument("--fixtures-only", action="store_true", help="no families that torch must make first")
    args = parser.parse_args()
    vpt = args.vpt.resolve()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        data, verify = pictures(folder)
        boxes = folder / "boxes"
        run([vpt, "data", "make", "shapes", "--task", "detect", "--images", 24, "--out", boxes, "--quiet"])
        backbones = {"clip-nano": "clip-nano", **{name: FIXTURES / name for name in FOLDERS}}
        if not args.fixtures_only and re.search(args.only, " ".join(f"{name} " for name in MADE)):
            made = folder / "made"
            run([sys.executable, ROOT / "scripts/make_timm_fixture.py", "--fixtures", made, "--folders", made], cwd=ROOT / "scripts")
            for name in MADE:
                found = made / name.removeprefix("timm-")
                if found.is_dir():
                    backbones[name] = found
        rows = [(name, None, method, options, []) for name in backbones for method, options in EVERY.items()]
        rows += [(name, None, method, options, []) for name in ["clip", "vit", "dinov2-registers"] for method, options in MORE.items()]
        rows += [(name, None, method, options, []) for name in ["clip", "siglip2"] for method, options in OF_TEXTS.items()
                 if not (name == "siglip2" and method == "cocoop")]
        for name in ["vit", "dinov2", "registers"]:
            backbones[f"label-map/{name}"] = FIXTURES / "label-map" / name
            rows += [(f"label-map/{name}", None, method, options, []) for method, options in MAPS.items()]
        rows += [(name, None, f"vpt-deep, {form}", EVERY["vpt-deep"], how) for name in ["clip-nano", "hf-dinov3"]
                 if name in backbones for form, how in FORMS.items()]
        rows += [("mae", None, "detect, nms", MORE["detect"], ["--nms"]), ("clip", None, "detect-open, nms", OF_TEXTS["detect-open"], ["--nms"])]
        rows += [("mae", None, "detect, f16", MORE["detect"], ["--precision", "f16"]), ("mae", None, "detect, opset 23", MORE["detect"], ["--opset", "23"])]
        rows += [(name, "backbone", "--backbone", [], []) for name in backbones]
        failed, told = 0, 0
        for name, kind, method, options, how in rows:
            if not re.search(args.only, f"{name} {method}"):
                continue
            place = folder / re.sub(r"[^\w.+-]+", "_", f"{name} {method}")
            out, reference = place / "model.onnx", place / "reference.npz"
            place.mkdir(parents=True, exist_ok=True)
            told += 1
            try:
                if kind == "backbone":
                    run([vpt, "export", "--backbone", backbones[name], "--out", out, "--reference", reference, "--quiet", "--verify", *verify])
                else:
                    task = boxes if "--task" in options else data
                    how_long = [] if options[1] in ("ncm", "tip-adapter") else STEPS
                    kept = KEEP if options[1] in BESIDE_A_HEAD and not {"multilabel", "--label-map"} & set(options) else []
                    run([vpt, "train", "--backbone", backbones[name], "--data", task, *options, *how_long, *kept, *QUICK, "--out", place / "run"])
                    run([vpt, "export", "--model", place / "run", "--out", out, "--reference", reference, *how, "--quiet", "--verify", *verify])
                half = "f16" in how
                worst, note = compare(out, reference, half)
                texts = out.with_name("model.text.onnx")
                if texts.exists():
                    worst_of_texts, _ = compare(texts, reference.with_name("reference.text.npz"))
                    worst, note = max(worst, worst_of_texts), "and texts"
                verdict = "ok" if worst <= 1 else "APART"
                print(f"{name:18} {method:24} {verdict:6} {worst:.3f} of the limit  {note}", flush=True)
                failed += worst > 1
            except (RuntimeError, AssertionError, KeyError, ValueError, SyntaxError) as error:
                failed += 1
                print(f"{name:18} {method:24} FAILED {str(error)[:300]}", flush=True)
        print(f"{told} rows, {failed} failed")
        return 1 if failed or not told else 0


if __name__ == "__main__":
    sys.exit(main())
