"""Makes the numbers that train::loss is compared with: losses with label smoothing and weights of classes by PyTorch, and
their gradients for the logits; and those of a text head that tells each class by itself, as SigLIP does, for all that it learns.

    pip install torch
    python scripts/make_loss_fixture.py

Made with torch 2.15.0.
"""
import json
import os

import torch
from torch.nn import functional

FIXTURES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests", "fixtures")


def case(logits, loss, **settings):
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits)
    value.backward()
    return {**settings, "loss": value.item(), "gradients": logits.grad.tolist()}


def sigmoid_head(targets):
    """`logits = exp(log_scale) cos + bias`, from the values that SigLIP was trained from."""
    given = {"features": torch.randn(7, 5), "weight": torch.randn(4, 5), "log_scale": torch.tensor([10.]).log(), "bias": torch.tensor([-10.])}
    learned = {name: value.clone().requires_grad_() for name, value in given.items()}
    cosine = functional.normalize(learned["features"], dim=-1) @ functional.normalize(learned["weight"], dim=-1).T
    logits = learned["log_scale"].exp() * cosine + learned["bias"]
    loss = functional.binary_cross_entropy_with_logits(logits, targets)
    loss.backward()
    values = {name: value.flatten().tolist() for name, value in given.items()}
    gradients = {name: value.grad.flatten().tolist() for name, value in learned.items()}
    return {**values, "logits": logits.flatten().tolist(), "loss": loss.item(), "gradients": gradients}


def main():
    torch.manual_seed(0)
    logits = 2 * torch.randn(7, 4)
    labels = torch.tensor([0, 3, 1, 2, 2, 0, 0])
    weights = torch.tensor([.5, 2., 1., .25])
    sets = [[0, 2], [], [1], [0, 1, 2, 3], [3], [0], [1, 3]]
    targets = torch.zeros(7, 4)
    for image, classes in enumerate(sets):
        targets[image, classes] = 1

    def cross(smoothing, weight):
        loss = lambda x: functional.cross_entropy(x, labels, weight=weight, label_smoothing=smoothing)
        return case(logits, loss, smoothing=smoothing, weights=None if weight is None else weight.tolist())

    def binary(weight):
        loss = lambda x: functional.binary_cross_entropy_with_logits(x, targets, pos_weight=weight)
        return case(logits, loss, smoothing=0., weights=None if weight is None else weight.tolist())

    fixture = {
        "logits": logits.tolist(),
        "labels": labels.tolist(),
        "sets": sets,
        "cross_entropy": [cross(s, w) for s in (0., .3) for w in (None, weights)],
        "binary": [binary(None), binary(weights)],
        "sigmoid_head": sigmoid_head(targets),
    }
    with open(os.path.join(FIXTURES, "losses.json"), "w") as file:
        file.write(json.dumps(fixture, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
