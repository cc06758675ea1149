"""Compares `vpt embed` with the PyTorch reference's `embed` on real photos.

    python scripts/check_embed.py --photos DIR --checkpoints DIR...

For each checkpoint folder (made by the reference's `checkpoint` command, or any other in the Hugging Face layout) both
programs embed the same photos, once as they are (JPEG, where the decoders may differ) and once as PNG copies, and CLIP
checkpoints a list of awkward texts. Printed is ||a-b|| / ||b|| over all embeddings, of the worst single one, and how many
single ones are above the bar: 1e-4 (PNG, texts) or 5e-3 (JPEG). Exits with status 1 where that over all is above it. Needs torch, transformers, safetensors, tokenizers, pillow.
"""
import argparse, glob, json, os, subprocess, sys, tempfile

from PIL import Image
from safetensors.torch import load_file

TEXTS = ["a photo of a cat", "", "  A Photo  of\ta\nDOG. ", "it's what you'd've thought; they'll say we're I'm don't", "1234567890 3.14 2nd 1,000",
         "caf\u00e9 na\u00efve e\u0301 vs \u00e9", "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8", "\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440", "\u0645\u0631\u062d\u0628\u0627", "\U0001f642\U0001f680 \U0001f468\u200d\U0001f469\u200d\U0001f467",
         "STRASSE stra\u00dfe \u0130stanbul \u01c5", "!!!???...,,,;;;", "a <|endoftext|> b", "</w> is a suffix", "x" * 300, "a photo of a very long caption " * 40,
         "\u00a0\u2003nbsp\u3000wide", "under_score-dash/slash\\back", "\u00bd \u2162 \u0661\u0662\u0663 \u00b2", "'S 'T 'RE 'VE '", "\ufeffbyte order mark"]
PNG_BAR, JPEG_BAR = 1e-4, 5e-3


def relative(a, b):
    assert a.shape == b.shape, f"shapes {tuple(a.shape)} and {tuple(b.shape)}"
    a, b = a.double(), b.double()
    return ((a - b).norm() / b.norm()).item(), (a - b).norm(dim=1) / b.norm(dim=1)


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--reference", default=os.path.join(os.path.dirname(__file__), "torch_reference.py"), help="the program that runs PyTorch")
    ap.add_argument("--photos", required=True, nargs="+", help="folders, searched for JPEG files")
    ap.add_argument("--checkpoints", required=True, nargs="+", help="checkpoint folders")
    ap.add_argument("--limit", type=int, default=8, help="photos of each folder")
    ap.add_argument("--vpt", default="target/release/vpt")
    a = ap.parse_args()

    photos = []
    for folder in a.photos:
        found = sorted(f for f in glob.glob(f"{folder}/**/*", recursive=True) if f.lower().endswith((".jpg", ".jpeg")))
        photos += found[::max(1, len(found) // a.limit)][:a.limit]
    if not photos: sys.exit("no photos")
    failed = False
    print(f"{len(photos)} photos, {len(TEXTS)} texts\n\n| checkpoint | input | relative error | worst single | above bar | bar |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as tmp:
        copies = []
        for i, path in enumerate(photos):
            copies.append(f"{tmp}/{i:04}.png")
            Image.open(path).convert("RGB").save(copies[-1], compress_level=1)
        for checkpoint in a.checkpoints:
            clip = json.load(open(f"{checkpoint}/config.json"))["model_type"] == "clip"
            rows = []
            for form, images, bar in (("PNG", copies, PNG_BAR), ("JPEG", photos, JPEG_BAR)):
                texts = ["--texts", *TEXTS] if clip and form == "PNG" else []
                subprocess.run([a.vpt, "--quiet", "embed", "--backbone", checkpoint, *texts, "--out", f"{tmp}/vpt.safetensors", *images], check=True, stdout=subprocess.DEVNULL)
                subprocess.run([sys.executable, a.reference, "embed", "--checkpoint", checkpoint, "--images", *images, *texts, "--out", f"{tmp}/torch.safetensors"],
                               check=True, stderr=subprocess.DEVNULL)
                ours, theirs = load_file(f"{tmp}/vpt.safetensors"), load_file(f"{tmp}/torch.safetensors")
                rows.append((form, *relative(ours["image_embeds"], theirs["image_embeds"]), bar))
                if texts: rows.append(("texts", *relative(ours["text_embeds"], theirs["text_embeds"]), bar))
                os.remove(f"{tmp}/vpt.safetensors")
            for form, whole, single, bar in rows:
                bad = not whole <= bar
                failed |= bad
                print(f"| {os.path.basename(checkpoint.rstrip('/'))} | {form} | {whole:.1e} | {single.max():.1e} | {int((single > bar).sum())} of {len(single)} | {bar:.0e}{' FAILED' if bad else ''} |", flush=True)
    sys.exit(failed)
