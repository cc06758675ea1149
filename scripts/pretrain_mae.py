#!/usr/bin/env python3
"""Pre-trains a small ViT as a masked autoencoder (He et al., CVPR 2022), without labels, and writes it as timm does.

    vpt data make shapes --images 24000 --seed 77 --out shapes
    python scripts/pretrain_mae.py --data shapes --data /usr/share/datasets/fashion-mnist --out mae --minutes 20

A backbone that is self-supervised and nothing else, for docs/what-helps.md: 64 pixels, patches of 8, width 192, 6 blocks, 3 heads; three
quarters of the patches are hidden, and two more blocks say what they were, each patch normalised. The same share of a batch is of each
set: folders of images, of which all are taken, or folders with an IDX file of training images (`train-images-idx3-ubyte`, or .gz). Random
crops and flips. `--minutes` are of processor time, on one thread. Needs torch, timm, pillow, numpy and safetensors.
"""

import argparse, gzip, json, math, pathlib, time

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models.vision_transformer import Block
from torch import nn
from torch.nn import functional

ARCHITECTURE = "vit_tiny_patch16_224"
SIDE, PATCH, WIDTH = 64, 8, 192
SHAPE = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 6, "num_heads": 3}
GRID = SIDE // PATCH
PATCHES, VALUES = GRID**2, 3 * PATCH**2
SEEN = PATCHES // 4
BATCH, RATE, DECAY, WARMUP, LEAST_AREA = 128, 1e-3, 0.05, 0.05, 0.45


class Decoder(nn.Module):
    """What says the hidden patches: narrower than the encoder, and of no use afterwards."""

    def __init__(self, width=128, blocks=2, heads=4):
        super().__init__()
        self.width = width
        self.embed = nn.Linear(WIDTH, width)
        self.hidden = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, PATCHES + 1, width) * 0.02)
        self.blocks = nn.Sequential(*[Block(width, heads, 4, qkv_bias=True) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, VALUES)


def images_of(folder):
    """All images of a set as an array of bytes `[n, side, side, channels]`."""
    for file in sorted(folder.glob("train-images*idx3-ubyte*")):
        raw = file.read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        count, height, width = (int.from_bytes(raw[at:at + 4], "big") for at in (4, 8, 12))
        return np.frombuffer(raw, np.uint8, offset=16).reshape(count, height, width, 1)
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not files:
        raise SystemExit(f"{folder}: no images")
    return np.stack([np.asarray(Image.open(p).convert("RGB").resize((SIDE, SIDE), Image.BICUBIC)) for p in files])


def batch(sets, rng):
    """Random crops and flips of images of every set, `[n, 3, side, side]` in -1 to 1."""
    parts = []
    for images in sets:
        chosen = torch.from_numpy(images[rng.integers(len(images), size=BATCH // len(sets))]).permute(0, 3, 1, 2).float()
        if chosen.shape[-1] != SIDE:
            chosen = functional.interpolate(chosen, size=SIDE, mode="bicubic", align_corners=False).clamp(0, 255)
        parts.append(chosen.expand(-1, 3, -1, -1))
    images = torch.cat(parts) / 127.5 - 1
    count = len(images)
    scale = torch.from_numpy(rng.uniform(LEAST_AREA, 1, count) ** 0.5).float()
    flip = torch.from_numpy(rng.choice([-1.0, 1.0], count)).float()
    where = torch.zeros(count, 2, 3)
    where[:, 0, 0], where[:, 1, 1] = scale * flip, scale
    where[:, :, 2] = torch.from_numpy(rng.uniform(-1, 1, (count, 2))).float() * (1 - scale)[:, None]
    grid = functional.affine_grid(where, images.shape, align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def loss_of(encoder, decoder, images):
    """Mean squared error of the hidden patches, each normalised."""
    count = len(images)
    tokens = encoder.patch_embed(images) + encoder.pos_embed[:, 1:]
    order = torch.rand(count, PATCHES).argsort(1)
    seen = order[:, :SEEN]
    tokens = tokens.gather(1, seen[..., None].expand(-1, -1, WIDTH))
    tokens = torch.cat([(encoder.cls_token + encoder.pos_embed[:, :1]).expand(count, -1, -1), tokens], 1)
    tokens = decoder.embed(encoder.norm(encoder.blocks(tokens)))
    all_tokens = torch.cat([tokens[:, 1:], decoder.hidden.expand(count, PATCHES - SEEN, -1)], 1)
    all_tokens = all_tokens.gather(1, order.argsort(1)[..., None].expand(-1, -1, decoder.width))
    rows = torch.cat([tokens[:, :1], all_tokens], 1) + decoder.positions
    said = decoder.out(decoder.norm(decoder.blocks(rows)))[:, 1:]
    patches = images.reshape(count, 3, GRID, PATCH, GRID, PATCH).permute(0, 2, 4, 3, 5, 1).reshape(count, PATCHES, VALUES)
    truth = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-2).sqrt()
    hidden = torch.ones(count, PATCHES).scatter_(1, seen, 0)
    return (((said - truth) ** 2).mean(-1) * hidden).sum() / hidden.sum()


def rate(share):
    """Of the peak rate at a share of the time."""
    if share < WARMUP:
        return share / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (share - WARMUP) / (1 - WARMUP)))


def write(encoder, out):
    """The model as timm's `save_for_hf` names its files and settings."""
    out.mkdir(parents=True, exist_ok=True)
    pretrained = {"input_size": [3, SIDE, SIDE], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0, "interpolation": "bicubic",
                  "num_classes": 0, "classifier": "head", "first_conv": "patch_embed.proj"}
    config = {"architecture": ARCHITECTURE, "num_classes": 0, "num_features": WIDTH, "global_pool": "token", "model_args": SHAPE,
              "pretrained_cfg": pretrained}
    (out / "config.json").write_text(json.dumps(config, indent=1))
    save_file({name: value.contiguous() for name, value in encoder.state_dict().items()}, out / "model.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    sets = [images_of(folder) for folder in args.data]
    encoder, decoder = timm.create_model(ARCHITECTURE, num_classes=0, **SHAPE), Decoder()
    values = [*encoder.parameters(), *decoder.parameters()]
    groups = [{"params": [v for v in values if (v.ndim > 1) == matrix], "weight_decay": DECAY * matrix} for matrix in (True, False)]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    begin, steps, mean = time.process_time(), 0, None
    while (share := (time.process_time() - begin) / (60 * args.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate(share)
        loss = loss_of(encoder, decoder, batch(sets, rng))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(values, 1.0)
        optimizer.step()
        steps += 1
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        if steps % 100 == 0:
            print(f"{steps * BATCH} images, loss {mean:.4f}", flush=True)
    write(encoder, args.out)
    print(f"{steps * BATCH} images, loss {mean:.4f}; the model is in {args.out}")


if __name__ == "__main__":
    main()
