"""Makes the fixtures that data::resize and data::preprocess are compared with, from Pillow and transformers.

    pip install pillow numpy safetensors transformers
    python scripts/make_resize_fixtures.py

Made with Pillow 13.0.0 and transformers 5.23.0.
"""
import json
import os

import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from transformers import BitImageProcessorPil, CLIPImageProcessorPil, DeiTImageProcessorPil, ViTImageProcessorPil

FIXTURES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests", "fixtures")


def picture(width, height, seed):
    """Smooth gradients, hard edges and noise: overshoot, clipping and rounding all occur."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1), 127 + 127 * np.sin(x * y / 40)], -1)
    edges = 255 * ((x // 5 + y // 7) % 2)[..., None]
    noise = rng.integers(0, 256, (height, width, 3))
    part = (x * 3 // width)[..., None]
    return np.where(part == 0, smooth, np.where(part == 1, edges, noise)).astype(np.uint8)


def save(name, tensors, metadata):
    path = os.path.join(FIXTURES, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path, metadata)


def resize():
    out = {}
    sources = {"a": (picture(47, 33, 0), [(20, 15), (47, 20), (30, 33), (55, 40), (7, 50), (1, 1), (64, 5)]),
               "b": (picture(3, 200, 1), [(2, 9), (9, 3)])}
    for name, (pixels, sizes) in sources.items():
        out[name] = pixels
        for size in sizes:
            for filter in "nearest", "lanczos", "bilinear", "bicubic", "box", "hamming":
                resized = Image.fromarray(pixels).resize(size, Image.Resampling[filter.upper()])
                out[f"{name}.{filter}.{size[0]}x{size[1]}"] = np.array(resized)
    save("resize/pillow.safetensors", out, {})


def preprocess():
    images = {"wide": picture(43, 26, 2), "tall": picture(24, 37, 3), "small": picture(9, 10, 4)}
    cases = [
        (CLIPImageProcessorPil, {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}),
        (CLIPImageProcessorPil, {"size": 20, "crop_size": 15, "resample": 2}),
        (BitImageProcessorPil, {"size": {"shortest_edge": 18}, "crop_size": {"height": 14, "width": 17},
                                "image_mean": [.485, .456, .406], "image_std": [.229, .224, .225]}),
        (ViTImageProcessorPil, {"size": {"height": 12, "width": 19}}),
        (ViTImageProcessorPil, {"size": 13, "do_rescale": False, "do_normalize": False}),
        (DeiTImageProcessorPil, {"size": 18, "crop_size": 16}),
        (CLIPImageProcessorPil, {"size": 11, "crop_size": 16}),  # smaller than the crop: black border
        (CLIPImageProcessorPil, {"do_resize": False, "crop_size": {"height": 17, "width": 12}}),
    ]
    out, configs = dict(images), {}
    for i, (processor, config) in enumerate(cases):
        configs[f"case{i}"] = {"image_processor_type": processor.__name__, **config}
        for name, pixels in images.items():
            out[f"case{i}.{name}"] = processor(**config)(Image.fromarray(pixels))["pixel_values"][0].astype(np.float32)
    save("preprocess/transformers.safetensors", out, {"configs": json.dumps(configs)})


if __name__ == "__main__":
    resize()
    preprocess()
