"""Times `vpt embed` beside transformers with PyTorch (f32) on the same photos, in turns: files to embeddings, preprocessing included.

    python scripts/compare_embed.py --checkpoint clip-b32 --photos DIR --count 500

Photos are taken in order, again from the first one if there are fewer than `--count`. Of vpt the wall time of the whole program
counts, start, checkpoint and output included. Of PyTorch only the loop over batches does, after one that warms up: by PIL and
the checkpoint's processor, image by image as its users write it, and (`ahead`) with the next batch prepared by a thread meanwhile.
Medians over the turns; needs torch, transformers, pillow.
"""
import argparse, glob, json, os, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from statistics import median


def worker(checkpoint, photos, batch_size, threads):
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, CLIPModel

    torch.set_num_threads(threads)
    model = CLIPModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    prepare = lambda paths: processor(images=[Image.open(p).convert("RGB") for p in paths], return_tensors="pt")["pixel_values"]
    batches = [photos[i : i + batch_size] for i in range(0, len(photos), batch_size)]
    out = {"processor": type(processor).__name__}
    with torch.inference_mode(), ThreadPoolExecutor(1) as pool:
        model.get_image_features(pixel_values=prepare(batches[0]))
        for name, prepared in (("plain", map(prepare, batches)), ("ahead", None)):
            start = time.perf_counter()
            if prepared is None:
                waiting = pool.submit(prepare, batches[0])
                for following in [*batches[1:], None]:
                    pixels = waiting.result()
                    if following is not None: waiting = pool.submit(prepare, following)
                    model.get_image_features(pixel_values=pixels)
            else:
                for pixels in prepared: model.get_image_features(pixel_values=pixels)
            out[name] = time.perf_counter() - start
    print(json.dumps(out))


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--checkpoint", required=True)
    ap.add_argument("--photos", required=True, help="folder, searched for JPEG files")
    ap.add_argument("--count", type=int, default=500)
    ap.add_argument("--batch-size", type=int, default=32, help="of PyTorch")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--turns", type=int, default=5)
    ap.add_argument("--vpt", default="target/release/vpt")
    ap.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    a = ap.parse_args()
    found = sorted(glob.glob(f"{a.photos}/**/*.jpg", recursive=True))
    if not found: sys.exit("no photos")
    photos = (found * (a.count // len(found) + 1))[: a.count]
    if a.worker:
        sys.exit(worker(a.checkpoint, photos, a.batch_size, a.threads))

    environment = dict(os.environ, OMP_NUM_THREADS=str(a.threads), MKL_NUM_THREADS=str(a.threads), RAYON_NUM_THREADS=str(a.threads))
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(a.turns):
            command = [a.vpt, "--quiet", "--threads", str(a.threads), "embed", "--backbone", a.checkpoint, "--out", f"{folder}/out.safetensors", *photos]
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
            ours.append(time.perf_counter() - start)
            command = [sys.executable, __file__, *sys.argv[1:], "--worker"]
            theirs.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment).stdout))
    print(f"{len(photos)} photos ({len(found)} different), {a.threads} threads, {a.turns} turns, {theirs[0]['processor']}\n")
    print("| program | s | images/s | vpt is faster by (min-max) |\n|---|---|---|---|")
    print(f"| vpt embed | {median(ours):.2f} | {len(photos) / median(ours):.1f} | |")
    for name in ("plain", "ahead"):
        seconds = [turn[name] for turn in theirs]
        ratios = [b / a for a, b in zip(ours, seconds)]
        print(f"| transformers, {name} | {median(seconds):.2f} | {len(photos) / median(seconds):.1f} | {median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) |")
