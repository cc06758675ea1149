"""Makes the fixture that head::detect is compared with, from PyTorch.

    pip install torch numpy safetensors
    python scripts/make_detection_fixture.py

Two heads over two images each: tokens to outputs, assignment, losses, gradients by autograd, detections. Weights of
convolutions are stored as [out, y, x, in], those of the upsampling with the four parts outermost, as the head keeps them.
Made with PyTorch 2.15.0.
"""
import json
import math
import os

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

FIXTURES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests", "fixtures")


def parameters(shape, generator):
    """Random values under the names of the task file."""
    d, c, levels = shape["width"], shape["channels"], shape["levels"]
    shapes = {}
    for i in range(levels):
        shapes[f"neck.norm{i}.weight"] = shapes[f"neck.norm{i}.bias"] = [d]
    shapes |= {"neck.weight": [c, levels * d], "neck.bias": [c], "neck.group_norm.weight": [c], "neck.group_norm.bias": [c]}
    if shape["upsample"]:
        shapes |= {"upsample.weight": [4 * c, c], "upsample.bias": [4 * c]}
    for tower in "class", "box":
        for i in range(2):
            shapes |= {f"{tower}.conv{i}.weight": [c, 3, 3, c], f"{tower}.norm{i}.weight": [c], f"{tower}.norm{i}.bias": [c]}
    if "linear" in shape["classes"]:
        k = shape["classes"]["linear"]["classes"]
        shapes |= {"class.weight": [k, c], "class.bias": [k]}
    else:
        e = shape["classes"]["text"]["width"]
        shapes |= {"class.project.weight": [e, c], "class.project.bias": [e], "class.log_scale": [1], "class.shift": [1]}
    shapes |= {"box.weight": [4, c], "quality.weight": [1, c], "box.bias": [4], "quality.bias": [1]}
    out = {}
    for name, size in shapes.items():
        value = torch.randn(size, generator=generator)
        if len(size) > 1:
            value *= math.prod(size[1:]) ** -0.5
        elif name.endswith("weight"):
            value = 1 + 0.2 * value
        else:
            value *= 0.2
        if name in ("box.weight", "box.bias"):
            value *= 0.05
        if name == "class.log_scale":
            value += 1.5
        out["head." + name] = value
    return out


def forward(shape, p, features, texts):
    """Class [T, K], box [T, 4] and quality [T] of features [levels, N, D]."""
    c, g = shape["channels"], shape["grid"]
    p = {name[5:]: value for name, value in p.items()}
    normed = [F.layer_norm(x, x.shape[-1:], p[f"neck.norm{i}.weight"], p[f"neck.norm{i}.bias"], 1e-6)
              for i, x in enumerate(features)]
    x = F.linear(torch.cat(normed, -1), p["neck.weight"], p["neck.bias"])
    x = x.T.reshape(1, c, g, g)
    x = F.gelu(F.group_norm(x, 8, p["neck.group_norm.weight"], p["neck.group_norm.bias"]))
    if shape["upsample"]:
        # A linear layer of every token is a 1x1 convolution; pixel_shuffle wants the four parts innermost.
        weight = p["upsample.weight"].reshape(4, c, c).transpose(0, 1).reshape(4 * c, c, 1, 1)
        bias = p["upsample.bias"].reshape(4, c).T.reshape(4 * c)
        x = F.pixel_shuffle(F.conv2d(x, weight, bias), 2)

    def tower(x, name):
        for i in range(2):
            x = F.conv2d(x, p[f"{name}.conv{i}.weight"].permute(0, 3, 1, 2), padding=1)
            x = F.gelu(F.group_norm(x, 8, p[f"{name}.norm{i}.weight"], p[f"{name}.norm{i}.bias"]))
        return x.flatten(2)[0].T

    t = tower(x, "class")
    if texts is None:
        cls = F.linear(t, p["class.weight"], p["class.bias"])
    else:
        z = F.linear(t, p["class.project.weight"], p["class.project.bias"])
        cls = p["class.log_scale"].exp() * F.normalize(z, dim=-1) @ F.normalize(texts, dim=-1).T + p["class.shift"]
    b = tower(x, "box")
    return (cls, F.linear(b, p["box.weight"], p["box.bias"]),
            F.linear(b, p["quality.weight"], p["quality.bias"])[:, 0])


def centres(side):
    j, i = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([(i + 0.5) / side, (j + 0.5) / side], -1).reshape(-1, 2).double()


def assign(side, boxes, crowd):
    """-2 ignored, -1 negative, else the index of the box."""
    where = centres(side)
    k = 4 if side <= 16 else 9
    near = [((where - b[:2].double()) ** 2).sum(-1).argsort(stable=True)[:k].tolist() for b in boxes]
    area = [float(b[2].double() * b[3].double()) for b in boxes]
    real = [i for i in range(len(boxes)) if not crowd[i]]
    roles = [-1] * side ** 2
    for i in sorted(real, key=lambda i: -area[i]):  # the smaller ones later, over the larger
        for t in near[i]:
            roles[t] = i
    taken_back = 0
    for i in sorted(real, key=lambda i: area[i]):
        if i in roles:
            continue
        for t in near[i]:
            if roles.count(roles[t]) > 1:
                roles[t] = i
                taken_back += 1
                break
    for t, (x, y) in enumerate(where.tolist()):
        for b, is_crowd in zip(boxes.double().tolist(), crowd):
            if is_crowd and roles[t] == -1 and abs(x - b[0]) <= b[2] / 2 and abs(y - b[1]) <= b[3] / 2:
                roles[t] = -2
    return roles, taken_back


def decode(shape, boxes):
    side = shape["grid"] * (2 if shape["upsample"] else 1)
    return torch.cat([centres(side) + boxes[:, :2] / side, shape["anchor"] * boxes[:, 2:].clamp(-6, 3).exp()], -1)


def corners(b):
    return torch.cat([b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2], -1)


def overlaps(a, b):
    """IoU and generalised IoU of boxes given by centre and size, pair by pair."""
    a, b = corners(a), corners(b)
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    outer = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inner
    return inner / union, inner / union - (outer - union) / outer


def losses(shape, outputs, truths):
    """The sums of the four parts over all images, and how many negatives were near misses."""
    parts = {"class": 0, "giou": 0, "l1": 0, "quality": 0}
    near_misses = 0
    for (cls, raw, quality), (boxes, classes, crowd, roles) in zip(outputs, truths):
        found = decode(shape, raw)
        real = boxes[~torch.tensor(crowd)].double()
        for t, role in enumerate(roles):
            target = torch.zeros(cls.shape[1], dtype=cls.dtype)
            if role >= 0:
                target[classes[role]] = 1
                iou, giou = overlaps(found[t], boxes[role].double())
                parts["giou"] = parts["giou"] + 1 - giou
                parts["l1"] = parts["l1"] + (found[t] - boxes[role]).abs().sum()
                parts["quality"] = parts["quality"] + F.binary_cross_entropy_with_logits(quality[t], iou.detach())
            elif role == -2:
                continue
            else:
                best = overlaps(found[t].detach(), real)[0].max()
                assert abs(best - 0.7) > 1e-3
                if best > 0.7:
                    near_misses += 1
                    continue
            p = cls[t].sigmoid()
            ce = F.binary_cross_entropy_with_logits(cls[t], target, reduction="none")
            p_t = p * target + (1 - p) * (1 - target)
            alpha_t = 0.25 * target + 0.75 * (1 - target)
            parts["class"] = parts["class"] + (alpha_t * (1 - p_t) ** 2 * ce).sum()
    return parts, near_misses


def detections(shape, cls, raw, quality):
    """Rows of class, score, x0, y0, x1, y1."""
    score = (cls.sigmoid() * quality.sigmoid()[:, None]).sqrt()
    rects = decode(shape, raw)
    order = score.flatten().argsort(descending=True, stable=True)
    order = [i for i in order.tolist() if score.flatten()[i] > 0.01][:1000]
    kept = []
    for i in order:
        t, k = divmod(i, cls.shape[1])
        if all(k != other[1] or overlaps(rects[t], rects[other[0]])[0] <= 0.6 for other in kept):
            kept.append((t, k))
    return torch.stack([torch.cat([torch.tensor([k, score[t, k]]), corners(rects[t])]) for t, k in kept[:100]])


def case(name, shape, images, text_width=None):
    generator = torch.Generator().manual_seed(7)
    out = {}
    p = parameters(shape, generator)
    texts = None
    if text_width:
        texts = torch.randn(shape["classes"]["text"]["classes"], text_width, generator=generator)
        out["texts"] = texts
    out |= {f"param.{k}": v for k, v in p.items()}
    p = {k: v.double().requires_grad_() for k, v in p.items()}
    features = [torch.randn(shape["levels"], shape["grid"] ** 2, shape["width"], generator=generator) for _ in images]
    wide = [x.double().requires_grad_() for x in features]
    outputs = [forward(shape, p, x, None if texts is None else texts.double()) for x in wide]
    side = shape["grid"] * (2 if shape["upsample"] else 1)
    truths, positives, crowded, taken_back = [], 0, 0, 0
    for i, objects in enumerate(images):
        boxes = torch.tensor([o[0] for o in objects], dtype=torch.float32)
        classes, crowd = [o[1] for o in objects], [o[2] for o in objects]
        roles, back = assign(side, boxes, crowd)
        truths.append((boxes, classes, crowd, roles))
        positives += sum(r >= 0 for r in roles)
        crowded += roles.count(-2)
        taken_back += back
        out |= {f"{i}.features": features[i], f"{i}.truth": boxes, f"{i}.truth_class": torch.tensor(classes).float(),
                f"{i}.truth_crowd": torch.tensor(crowd).float(), f"{i}.roles": torch.tensor(roles).float()}
    parts, near_misses = losses(shape, outputs, truths)
    total = (parts["class"] + 2 * parts["giou"] + 5 * parts["l1"] + 0.5 * parts["quality"]) / max(1, positives)
    raw = [x for output in outputs for x in output]
    gradients = torch.autograd.grad(total, raw + wide + list(p.values()))
    for i, output in enumerate(outputs):
        for j, part in enumerate(["class", "boxes", "quality"]):
            out[f"{i}.{part}"] = output[j]
            out[f"{i}.d_{part}"] = gradients[3 * i + j]
        out[f"{i}.d_features"] = gradients[len(raw) + i]
        out[f"{i}.detections"] = detections(shape, *[x.detach() for x in output])
    for key, gradient in zip(p, gradients[len(raw) + len(wide):]):
        out[f"grad.{key}"] = gradient
    out["sums"] = torch.stack([parts[k] for k in ["class", "giou", "l1", "quality"]])
    out["total"] = total[None]
    print(f"{name}: {positives} positives, {crowded} in crowds, {taken_back} taken back, {near_misses} near misses,",
          [len(out[f"{i}.detections"]) for i in range(len(images))], "detections")
    return {f"{name}.{k}": v.detach().float().contiguous() for k, v in out.items()}


linear = {"width": 12, "levels": 2, "grid": 5, "upsample": True, "channels": 16,
          "classes": {"linear": {"classes": 3}}, "anchor": 0.95}
text = {"width": 10, "levels": 3, "grid": 4, "upsample": False, "channels": 8,
        "classes": {"text": {"classes": 4, "width": 6}}, "anchor": 0.4}
tensors = case("linear", linear, [
    [([0.52, 0.48, 0.95, 0.95], 1, False), ([0.21, 0.3, 0.2, 0.15], 0, False), ([0.85, 0.85, 0.3, 0.25], 2, True),
     ([0.79, 0.77, 0.1, 0.3], 2, False)],
    [([0.33, 0.62, 0.3, 0.4], 2, False), ([0.32, 0.61, 0.5, 0.5], 0, False)],
])
tensors |= case("text", text, [
    [([0.4, 0.4, 0.5, 0.3], 3, False)],
    [([0.7, 0.35, 0.3, 0.6], 0, False), ([0.2, 0.9, 0.4, 0.2], 2, False), ([0.3, 0.15, 0.6, 0.3], 1, True)],
], text_width=6)
save_file(tensors, os.path.join(FIXTURES, "detection.safetensors"),
          {"shapes": json.dumps({"linear": linear, "text": text}, sort_keys=True)})
