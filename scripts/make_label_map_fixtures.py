"""Makes tests/fixtures/label-map: tiny backbones with classifiers of their own, and what ILM-VP makes of them by PyTorch.

    python scripts/make_label_map_fixtures.py [--fixtures tests/fixtures]

Needs torch, transformers, safetensors, numpy. The networks are transformers' own classifiers, run as a whole on the whole canvas:
image in the middle, sigmoid(delta) * mask around it, normalised behind that. Mappings are counted a pair of classes at a time.
"""
import json, os

import torch
import torch.nn.functional as F
import transformers as T
from safetensors.torch import save_file

from fixture_folder import fixture_folder

SIDE, INNER, SOURCES, TARGETS, IMAGES = 32, 20, 12, 4, 14
MEAN, STD = [.5, .4, .3], [.25, .3, .35]
SMALL = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=8)
LABELS = {i: f"source {i}" for i in range(SOURCES)}


def networks():
    named = dict(id2label=LABELS, label2id={v: k for k, v in LABELS.items()})
    yield "vit", T.ViTForImageClassification(T.ViTConfig(**SMALL, intermediate_size=32, **named))
    yield "dinov2", T.Dinov2ForImageClassification(T.Dinov2Config(**SMALL, mlp_ratio=2, layerscale_value=.5, **named))
    yield "registers", T.Dinov2WithRegistersForImageClassification(T.Dinov2WithRegistersConfig(**SMALL, mlp_ratio=2, layerscale_value=.5, num_register_tokens=2, **named))


def greedy(counts):
    counts, map = counts.clone(), torch.zeros(SOURCES, TARGETS)
    for _ in range(TARGETS):
        at = int(counts.flatten().argmax())
        s, t = at // TARGETS, at % TARGETS
        map[s, t] = 1
        counts[s, :] = counts[:, t] = -1
    return map


def bayes(counts):
    conditional = counts / (counts.sum(1, keepdim=True) + 1)
    return conditional / conditional.sum(0, keepdim=True)


def counted(logits, labels, top=None):
    counts = torch.zeros(SOURCES, TARGETS, dtype=torch.double)
    for row, label in zip(logits, labels):
        p = row.softmax(0)
        order = sorted(range(SOURCES), key=lambda s: -float(row[s]))
        for s in order[: top or 1]:
            counts[s, label] += p[s] if top else 1
    return counts


MAPS = {"flm": lambda l, y: greedy(counted(l, y)), "blm": lambda l, y: bayes(counted(l, y)), "blm+": lambda l, y: bayes(counted(l, y, 3))}


def make(net, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(torch.randn(p.shape) * (.25 if p.dim() > 1 else .1) + (1. if "norm" in name and name.endswith("weight") else 0.))
    net = net.eval().double().requires_grad_(False)
    labels = torch.arange(IMAGES) % TARGETS
    # Images of a class have something in common, so that counts are not all alike.
    base = torch.rand(TARGETS, 3, 1, 1)[labels]
    images = (base + .5 * torch.rand(IMAGES, 3, INNER, INNER)).clamp(0, 1).double()
    margin = (SIDE - INNER) // 2
    mask = torch.ones(SIDE, SIDE, dtype=torch.bool)
    mask[margin:-margin, margin:-margin] = False
    mean, std = (torch.tensor(v).double()[:, None, None] for v in (MEAN, STD))
    padded = F.pad(images, (margin,) * 4)

    def logits_of(values):
        delta = torch.zeros(3, SIDE, SIDE, dtype=torch.double)
        delta[:, mask] = values
        return net(pixel_values=((padded + delta.sigmoid() * mask) - mean) / std).logits

    n = int(mask.sum())
    out = {"images": ((images - mean) / std).float(), "labels": labels.int(), "delta": torch.randn(3, n)}
    # A bias that leaves no source class ahead of the others on all images.
    net.classifier.weight *= 3
    net.classifier.bias -= logits_of(torch.zeros(3, n).double()).mean(0)
    net.classifier.bias.copy_(net.classifier.bias.float())
    before = logits_of(torch.zeros(3, n).double())
    for logits in before, logits_of(out["delta"].double()):
        assert logits.topk(4).values.diff(dim=1).abs().min() > 1e-4  # no ties that rounding could turn
    out["logits"] = before.float()
    for name, make_map in MAPS.items():
        map = make_map(before, labels)
        out[f"{name}.map"] = map.float()
        for at, values in (("first", torch.zeros(3, n).double()), ("later", out["delta"].double())):
            values = values.requires_grad_(True)
            source = logits_of(values)
            loss = F.cross_entropy(source @ map.double(), labels)
            loss.backward()
            out[f"{name}.{at}.loss"] = loss.detach().float().reshape(1)
            out[f"{name}.{at}.grad"] = values.grad.float().contiguous()
            out[f"{name}.{at}.next"] = make_map(source.detach(), labels).float()
    return {k: v.contiguous() for k, v in out.items()}


if __name__ == "__main__":
    fixtures = fixture_folder(__doc__)
    torch.set_num_threads(1)
    for seed, (name, net) in zip((0, 4, 5), networks()):
        folder = f"{fixtures}/label-map/{name}"
        expected = make(net, seed)
        net.float().save_pretrained(folder)
        stretch = dict(image_processor_type="ViTImageProcessor", do_resize=True, size=dict(height=SIDE, width=SIDE), resample=3, do_rescale=True, rescale_factor=1 / 255, do_normalize=True, image_mean=MEAN, image_std=STD)
        with open(f"{folder}/preprocessor_config.json", "w") as f: json.dump(stretch, f, indent=1)
        save_file(expected, f"{folder}/expected.safetensors")
        for file in os.listdir(folder): os.chmod(f"{folder}/{file}", 0o644)  # safetensors writes 0600
