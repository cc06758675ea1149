"""Makes tests/fixtures/tuned-weights.safetensors: loss and gradients of the first step of bias, lora and full, by PyTorch.

    python scripts/make_weight_fixtures.py [--fixtures tests/fixtures]

Needs torch, transformers, tokenizers, safetensors, numpy. The towers are transformers' own, whose parameters require a gradient;
a low-rank change is added to the weight of a layer before it is called. Of gradients of whole weights only sums along random
directions are kept, so that the file stays small.
"""
import os, re

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.func import functional_call
from transformers import AutoModel, CLIPModel

from fixture_folder import fixture_folder

NAMES = ["red square", "two small circles", "star", "a drawing of the picture"]
TEMPLATES = ["a photo of a {}.", "the {} in a picture"]
RANK, ALPHA = 2, 1.0
# Newer transformers have other names in the model than in the checkpoint, which has ours.
RENAMED = [
    (r"^layers\.", "encoder.layer."),
    (r"attention\.q_proj", "attention.attention.query"),
    (r"attention\.k_proj", "attention.attention.key"),
    (r"attention\.v_proj", "attention.attention.value"),
    (r"attention\.o_proj", "attention.output.dense"),
]
RENAMED_VIT = [(r"mlp\.fc1", "intermediate.dense"), (r"mlp\.fc2", "output.dense")]


def clip_qkv(tower, depth):
    return [f"{tower}.encoder.layers.{i}.self_attn.{p}_proj" for i in range(depth) for p in "qkv"]


def vit_qkv(depth):
    return [f"encoder.layer.{i}.attention.attention.{p}" for i in range(depth) for p in ("query", "key", "value")]


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


class Recorder:
    def __init__(self, seed):
        self.out, self.random = {}, np.random.default_rng(seed)

    def draw(self, *shape, std=0.05):
        return torch.tensor((self.random.standard_normal(shape) * std).astype(np.float32)).double()

    def case(self, name, params, loss_of, dense):
        leaves = {k: v.clone().requires_grad_(True) for k, v in params.items()}
        loss = loss_of(leaves)
        loss.backward()
        self.out[f"{name}.loss"] = loss.detach().float().reshape(1)
        for key, p in leaves.items():
            grad = torch.zeros_like(p) if p.grad is None else p.grad
            if key.startswith("head.") or key.endswith(("lora_A", "lora_B")):
                self.out[f"{name}.{key}"] = p.detach().float().contiguous()
            if dense and grad.dim() > 1:
                # Two sums tell a matrix from its transpose and from one whose rows or columns are scaled.
                flat = grad.reshape(-1)
                at = torch.arange(len(flat), dtype=torch.float64)
                grad = torch.stack([(flat * torch.sin(at)).sum(), (flat * torch.cos(at * at)).sum(), flat.norm()])
            self.out[f"{name}.grad.{key}"] = grad.float().contiguous()


def with_changes(weights, factors):
    """The weights with alpha / sqrt(r) B A added to every layer that has factors."""
    weights = dict(weights)
    for key in [k for k in factors if k.endswith("lora_A")]:
        layer = key[: -len(".lora_A")]
        change = ALPHA / RANK**0.5 * factors[f"{layer}.lora_B"] @ factors[key]
        weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + change
    return weights


def clip_cases(dir, rec):
    net = CLIPModel.from_pretrained(dir, dtype=torch.float32).eval().double()
    frozen = {k: v.detach() for k, v in net.named_parameters()}
    tokenizer = Tokenizer.from_file(f"{dir}/tokenizer.json")
    tokenizer.no_padding()
    pixels = load_file(f"{dir}/expected.safetensors")["images"].double()
    labels = torch.arange(len(pixels)) % len(NAMES)
    rec.out["clip.images"], rec.out["clip.labels"] = pixels.float(), labels.float()
    scale, width = net.logit_scale.exp().detach(), net.config.vision_config.hidden_size
    vision = {k: v for k, v in frozen.items() if k.startswith("vision_model.") and "position_ids" not in k}

    def features(weights):
        return functional_call(net.vision_model, {k[len("vision_model."):]: v for k, v in weights.items() if k.startswith("vision_model.")}, (pixels,)).pooler_output

    def texts(weights):
        rows = []
        for name in NAMES:
            for template in TEMPLATES:
                ids = torch.tensor([tokenizer.encode(template.replace("{}", name)).ids])
                own = {k[len("text_model."):]: v for k, v in weights.items() if k.startswith("text_model.")}
                rows.append(functional_call(net.text_model, own, (), {"input_ids": ids}).pooler_output[0])
        rows = torch.stack(rows) @ weights["text_projection.weight"].T
        return unit(unit(rows).reshape(len(NAMES), len(TEMPLATES), -1).mean(1))

    head = {"head.weight": rec.draw(len(NAMES), width, std=0.3), "head.bias": rec.draw(len(NAMES))}

    def linear(p):
        weights = {**frozen, **{k: v for k, v in p.items() if not k.startswith("head.")}}
        return F.cross_entropy(features(weights) @ p["head.weight"].T + p["head.bias"], labels)

    biases = {k: v for k, v in vision.items() if k.endswith(".bias")}
    rec.case("clip.bias", {**biases, **head}, linear, False)
    rec.case("clip.full", {**vision, **head}, linear, True)

    embedding = net.config.projection_dim
    cosine = {"head.weight": rec.draw(len(NAMES), embedding, std=0.3), "head.log_scale": torch.full((1,), 2.0).double()}

    def text_head(p):
        weights = {**frozen, **{k: v for k, v in p.items() if not k.startswith("head.")}}
        embeds = features(weights) @ weights["visual_projection.weight"].T
        return F.cross_entropy(p["head.log_scale"].exp() * unit(embeds) @ unit(p["head.weight"]).T, labels)

    rec.case("clip.full.text", {**vision, "visual_projection.weight": frozen["visual_projection.weight"], **cosine}, text_head, True)

    def factors(tower, depth, width):
        names = clip_qkv(tower, depth)
        return {f"{n}.lora_{f}": rec.draw(*((RANK, width) if f == "A" else (width, RANK)), std=0.2) for n in names for f in "AB"}

    def by_texts(p):
        weights = with_changes(frozen, p)
        images = unit(features(weights) @ weights["visual_projection.weight"].T)
        return F.cross_entropy(scale * images @ texts(weights).T, labels)

    of_image = factors("vision_model", net.config.vision_config.num_hidden_layers, width)
    of_text = factors("text_model", net.config.text_config.num_hidden_layers, net.config.text_config.hidden_size)
    rec.case("clip.lora.image", of_image, by_texts, False)
    rec.case("clip.lora.text", of_text, by_texts, False)
    rec.case("clip.lora.both", {**of_image, **of_text}, by_texts, False)


def vit_cases(dir, rec, family):
    net = AutoModel.from_pretrained(dir, dtype=torch.float32).eval().double()

    def checkpoint_name(name):
        for pattern, by in RENAMED + (RENAMED_VIT if family == "vit" else []):
            name = re.sub(pattern, by, name)
        return name

    of_net = {checkpoint_name(k): k for k, v in net.named_parameters() if "mask_token" not in k and not k.startswith("pooler.")}
    frozen = {k: net.get_parameter(own).detach() for k, own in of_net.items()}
    # Of a gated MLP, newer transformers split the first layer.
    for gate in [k for k in frozen if "mlp.gate_proj" in k]:
        up, down = gate.replace("gate_proj", "up_proj"), gate.replace("gate_proj", "down_proj")
        frozen[gate.replace("gate_proj", "weights_in")] = torch.cat([frozen.pop(gate), frozen.pop(up)])
        frozen[gate.replace("gate_proj", "weights_out")] = frozen.pop(down)

    def to_net(whole):
        own = {}
        for k, v in whole.items():
            if "mlp.weights_in" in k:
                own[k.replace("weights_in", "gate_proj")], own[k.replace("weights_in", "up_proj")] = v.chunk(2)
            else:
                own[k.replace("weights_out", "down_proj")] = v
        return {of_net[k]: v for k, v in own.items()}

    side = net.config.image_size
    pixels = rec.draw(3, 3, side, side, std=1.0)
    labels = torch.arange(len(pixels)) % len(NAMES)
    rec.out[f"{family}.images"], rec.out[f"{family}.labels"] = pixels.float(), labels.float()
    width = net.config.hidden_size
    head = {"head.weight": rec.draw(len(NAMES), width, std=0.3), "head.bias": rec.draw(len(NAMES))}

    def linear(p):
        whole = {**frozen, **{k: v for k, v in p.items() if "lora_" not in k and not k.startswith("head.")}}
        whole = with_changes(whole, {k: v for k, v in p.items() if "lora_" in k})
        features = functional_call(net, to_net(whole), (pixels,)).last_hidden_state[:, 0]
        return F.cross_entropy(features @ p["head.weight"].T + p["head.bias"], labels)

    rec.case(f"{family}.bias", {**{k: v for k, v in frozen.items() if k.endswith(".bias")}, **head}, linear, False)
    rec.case(f"{family}.full", {**frozen, **head}, linear, True)
    qkv = vit_qkv(net.config.num_hidden_layers)
    factors = {f"{n}.lora_{f}": rec.draw(*((RANK, width) if f == "A" else (width, RANK)), std=0.2) for n in qkv for f in "AB"}
    rec.case(f"{family}.lora.image", {**factors, **head}, linear, False)


if __name__ == "__main__":
    fixtures = fixture_folder(__doc__)
    torch.set_num_threads(1)
    rec = Recorder(1)
    clip_cases(f"{fixtures}/clip", rec)
    vit_cases(f"{fixtures}/vit", rec, "vit")
    vit_cases(f"{fixtures}/dinov2-swiglu", rec, "dinov2-swiglu")
    path = f"{fixtures}/tuned-weights.safetensors"
    save_file(rec.out, path)
    os.chmod(path, 0o644)  # safetensors writes 0600
