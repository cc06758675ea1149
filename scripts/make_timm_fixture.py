"""Makes tests/fixtures/timm.json: embeddings and gradients of small models by timm and by transformers' DINOv3.

    python scripts/make_timm_fixture.py [--fixtures tests/fixtures] [--folders OUT]

Needs torch, timm, transformers, pillow, numpy, safetensors. The models are small and have every value from a formula (`values`), so that
the tests write the same weights without a file of them. With --folders every model is saved there, as its library names its files.
"""
import argparse, json, os

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from transformers import DINOv3ViTConfig, DINOv3ViTImageProcessor, DINOv3ViTModel

from fixture_values import picture, values

SIZES = [(35, 32), (64, 43), (41, 67), (20, 31)]
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
SQUASHED = {"crop_mode": "squash", "crop_pct": 0.9, "interpolation": "bilinear"}
BORDER = {"crop_mode": "border", "crop_pct": 1.0, "interpolation": "bicubic"}
# Architecture, arguments, preprocessing beside the side.
TIMM = {
    "vit": ("vit_tiny_patch16_224", {**SMALL, "patch_size": 8, "img_size": 32}, {"crop_pct": 0.9}),
    "distilled": ("deit_tiny_distilled_patch16_224", {**SMALL, "patch_size": 8, "img_size": 32}, SQUASHED),
    "deit3": ("deit3_small_patch16_224", {**SMALL, "patch_size": 8, "img_size": 32}, {"crop_pct": 1.0}),
    "dinov2": ("vit_small_patch14_dinov2", {**SMALL, "patch_size": 7, "img_size": 28}, {"crop_pct": 1.0}),
    "registers": ("vit_small_patch14_reg4_dinov2", {**SMALL, "patch_size": 7, "img_size": 28}, {"crop_pct": 1.0}),
    "swiglu": ("vit_giant_patch14_reg4_dinov2", {**SMALL, "patch_size": 7, "img_size": 28}, {"crop_pct": 1.0}),
    "clip": ("vit_base_patch16_clip_quickgelu_224", {**SMALL, "patch_size": 8, "img_size": 32}, {"crop_pct": 0.9, "mean": [0.48, 0.46, 0.41]}),
    "mean": ("vit_medium_patch16_gap_240", {**SMALL, "patch_size": 8, "img_size": 32}, BORDER),
    "siglip": ("vit_so400m_patch16_siglip_256", {**SMALL, "patch_size": 8, "img_size": 32}, {"crop_mode": "squash", "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3}),
    "fc-norm": ("vit_betwixt_patch16_reg4_gap_256", {**SMALL, "patch_size": 8, "img_size": 32}, {"crop_pct": 0.95}),
    # As their authors prepare images, and heads of 64, which is what a file without a configuration is taken for.
    "dino": ("vit_small_patch16_224", {"embed_dim": 64, "depth": 1, "num_heads": 1, "img_size": 224}, {"crop_pct": 0.875}),
    "authors-dinov2": ("vit_small_patch14_dinov2", {"embed_dim": 64, "depth": 1, "num_heads": 1, "img_size": 224}, {"crop_pct": 0.875}),
    "dinov3": ("vit_small_patch16_dinov3", {**SMALL, "patch_size": 8, "img_size": 32}, {"crop_pct": 1.0}),
    "dinov3-plus": ("vit_small_plus_patch16_dinov3_qkvb", {**SMALL, "patch_size": 8, "img_size": 40}, {"crop_pct": 1.0}),
}
# With a classifier of five classes.
CLASSIFIERS = {"vit-classes": TIMM["vit"], "fc-norm-classes": TIMM["fc-norm"], "siglip-classes": ("vit_base_patch16_siglip_224", *TIMM["siglip"][1:])}
HF = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, patch_size=8, image_size=32, num_register_tokens=3)
TRANSFORMERS = {"hf-dinov3": HF, "hf-dinov3-gated": {**HF, "use_gated_mlp": True, "hidden_act": "silu", "num_hidden_layers": 3, "image_size": 40, "rope_theta": 30.0}}
PROMPTS, RANK, SCALE = 3, 2, 0.5


def centre(name):
    return 1.0 if "norm" in name and name.endswith("weight") else 0.0


def fill(model):
    state = model.state_dict()
    for number, name in enumerate(sorted(state)):
        state[name] = torch.tensor(values(number, tuple(state[name].shape), 0.3) + np.float32(centre(name)))
    model.load_state_dict(state)
    return state


def rounded(tensor):
    return [float(f"{v:.6g}") for v in tensor.detach().flatten().tolist()]


def described(state):
    return {"tensors": {key: list(value.shape) for key, value in sorted(state.items())}}


def of_timm(architecture, arguments, preprocess, folder, classes=0):
    model = timm.create_model(architecture, num_classes=classes, **arguments).eval()
    state = fill(model)
    side = arguments["img_size"]
    pretrained = {"input_size": [3, side, side], "interpolation": "bicubic", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], **preprocess}
    kept = {key: value for key, value in arguments.items()}
    config = {"architecture": architecture, "num_classes": classes, "global_pool": model.global_pool, "model_args": kept, "pretrained_cfg": pretrained}
    prepare = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=pretrained))
    pixels = torch.stack([prepare(picture(*size)) for size in SIZES])
    with torch.no_grad():
        tokens = model.forward_features(pixels)
        images = tokens[:, 0] if model.cls_token is not None else model.forward_head(tokens, pre_logits=True)
    classified = {}
    if classes:
        config["label_names"] = [f"class {i}" for i in range(classes)]
        with torch.no_grad():
            classified = {"logits": [rounded(row) for row in model(pixels)]}
    if folder:
        os.makedirs(folder, exist_ok=True)
        json.dump(config, open(f"{folder}/config.json", "w"))
        save_file(state, f"{folder}/model.safetensors")
    return {"config": config, **described(state), "images": [rounded(row) for row in images], **classified}


def prompted(model, pixels, prompts, changes):
    """Features with prompts `[layers, P, D]` behind the tokens before the patches, and low-rank changes to q, k and v."""
    hidden = model.embeddings(pixels)
    before = 1 + model.config.num_register_tokens
    angles = model.rope_embeddings(pixels)
    for number, block in enumerate(model.model.layer):
        fresh = prompts[number].expand(len(hidden), -1, -1)
        patches = hidden[:, before if number == 0 else before + PROMPTS:]
        hidden = torch.cat([hidden[:, :before], fresh, patches], 1)
        attention = block.attention
        for part in "qkv":
            module, name = getattr(attention, f"{part}_proj"), f"layer.{number}.attention.{part}_proj"
            if name in changes and not hasattr(module, "plain"):
                module.plain = module.forward
                module.forward = lambda x, m=module, n=name: m.plain(x) + SCALE * (x @ changes[n][0].T) @ changes[n][1].T
        hidden = block(hidden, position_embeddings=angles)
    return model.norm(hidden)[:, 0]


def of_transformers(settings, folder):
    config = DINOv3ViTConfig(**settings)
    model = DINOv3ViTModel(config).eval()
    state = fill(model)
    side = settings["image_size"]
    processor = DINOv3ViTImageProcessor(size={"height": side, "width": side})
    pixels = torch.cat([processor(picture(*size), return_tensors="pt")["pixel_values"] for size in SIZES])
    with torch.no_grad():
        images = model(pixels).pooler_output
    width, depth = settings["hidden_size"], settings["num_hidden_layers"]
    prompts = torch.tensor(values(900, (depth, PROMPTS, width), 0.5), requires_grad=True)
    slopes = torch.tensor(values(901, (2, width), 1.0))
    changes = {}
    for number in range(depth):
        for at, part in enumerate("qkv"):
            a = torch.tensor(values(910 + 6 * number + 2 * at, (RANK, width), 0.4), requires_grad=True)
            b = torch.tensor(values(911 + 6 * number + 2 * at, (width, RANK), 0.4), requires_grad=True)
            changes[f"layer.{number}.attention.{part}_proj"] = (a, b)
    two = pixels[:2].clone().requires_grad_()
    loss = (prompted(model, two, prompts, {}) * slopes).sum()
    of_pixels, of_prompts = torch.autograd.grad(loss, [two, prompts])
    loss = (prompted(model, pixels[:2], prompts, changes) * slopes).sum()
    names = list(changes)
    flat = torch.autograd.grad(loss, [t for name in names for t in changes[name]])
    changed = {name: [rounded(flat[2 * i]), rounded(flat[2 * i + 1])] for i, name in enumerate(names)}
    kept = {key: value for key, value in config.to_dict().items() if key in settings or key in ("model_type", "query_bias", "key_bias", "value_bias")}
    preprocessor = {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": side, "width": side}, "resample": 2}
    if folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    gradients = {"prompts": rounded(of_prompts), "pixels": rounded(of_pixels[0]), "changes": changed}
    return {"config": kept, "preprocessor": preprocessor, **described(state), "images": [rounded(row) for row in images], "gradients": gradients}


def main(fixtures, folders):
    torch.set_num_threads(1)
    at = lambda name: f"{folders}/{name}" if folders else None
    cases = {name: of_timm(*case, at(name)) for name, case in TIMM.items()}
    cases |= {name: of_timm(*case, at(name), classes=5) for name, case in CLASSIFIERS.items()}
    cases |= {name: of_transformers(case, at(name)) for name, case in TRANSFORMERS.items()}
    if folders:
        for size in SIZES:
            picture(*size).save(f"{folders}/{size[0]}x{size[1]}.png")
    with open(f"{fixtures}/timm.json", "w") as f:
        json.dump({"sizes": SIZES, "cases": cases}, f)
        f.write("\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fixtures", default="tests/fixtures")
    parser.add_argument("--folders")
    arguments = parser.parse_args()
    main(arguments.fixtures, arguments.folders)
