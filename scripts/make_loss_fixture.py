"""Makes the numbers that train::loss is compared with: losses with label smoothing and weights of classes by PyTorch, and
their gradients for the logits.

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
    }
    with open(os.path.join(FIXTURES, "losses.json"), "w") as file:
        file.write(json.dumps(fixture, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
