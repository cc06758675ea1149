"""Makes the cases that train::features is compared with: tiny features and what scikit-learn, NumPy and PyTorch make of them.

    pip install torch scikit-learn numpy
    python scripts/make_feature_fixtures.py

Made with torch 2.15, scikit-learn 1.9.1 and numpy 2.4.6. Everything is computed in float64 on float32 inputs.
"""
import json
import math
import os

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

FIXTURES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests", "fixtures")
CLASSES, WIDTH, IMAGES, VIEWS = 3, 24, 12, 3  # as wide as the embeddings of tests/fixtures/clip
SCALE = 20.


def f32(x):
    return np.asarray(x, np.float32).astype(np.float64)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def flat(x):
    return np.asarray(x).ravel().tolist()


def draw(rng, count, centres, noise=1.):
    labels = np.arange(count) % CLASSES
    return f32(centres[labels] + noise * rng.normal(size=(count, WIDTH))), labels


def logistic(rng, centres):
    train, labels = draw(rng, 40, centres)
    other, _ = draw(rng, 7, centres)
    cases = []
    for l2 in (30., .5, 1e-3):
        fit = {s: LogisticRegression(C=1 / l2, solver=s, tol=1e-12, max_iter=100_000).fit(train, labels)
               for s in ("lbfgs", "newton-cholesky")}
        # Two solvers that agree have found the minimum. The intercepts have one degree of freedom too many.
        a, b = (m.predict_proba(other) for m in fit.values())
        assert np.abs(a - b).max() < 1e-6, np.abs(a - b).max()
        best = fit["newton-cholesky"]
        log_p = best.predict_log_proba(train)[np.arange(len(labels)), labels]
        loss = -log_p.sum() + l2 / 2 * (best.coef_ ** 2).sum()
        cases.append({"l2": l2, "coef": flat(best.coef_), "intercept": flat(best.intercept_ - best.intercept_.mean()),
                      "probabilities": flat(best.predict_proba(other)), "loss": float(loss)})
    return {"train": flat(train), "labels": labels.tolist(), "other": flat(other), "cases": cases}


def ncm(rng, centres):
    train, labels = draw(rng, 11, centres)
    means = unit(np.stack([unit(train)[labels == c].mean(0) for c in range(CLASSES)]))
    return {"train": flat(train), "labels": labels.tolist(), "means": flat(means)}


def probe_logits(w, x):
    return SCALE * F.normalize(x) @ F.normalize(w).T


def probe_loss(w, texts, x, y, multipliers):
    loss = F.cross_entropy(probe_logits(w, x), y)
    if multipliers is not None:
        loss = loss + (multipliers * (w - texts).pow(2).sum(-1)).mean()
    return loss


def probes(rng, centres, texts):
    """ZS-LP and CLAP: loss and gradient where training starts and somewhere else; the weights after five epochs."""
    x, y = draw(rng, IMAGES, centres)
    x, y, texts = torch.tensor(x), torch.tensor(y), torch.tensor(texts)
    elsewhere = torch.tensor(f32(texts.numpy() + .3 * rng.normal(size=texts.shape)))
    p = probe_logits(texts, x).softmax(-1)
    multipliers = torch.stack([p[y == c, c].mean() for c in range(CLASSES)])
    case = {"train": flat(x), "labels": y.tolist(), "elsewhere": flat(elsewhere), "multipliers": flat(multipliers)}
    for name, m in (("zs-lp", None), ("clap", multipliers)):
        for place, start in (("start", texts), ("elsewhere", elsewhere)):
            w = start.clone().requires_grad_()
            loss = probe_loss(w, texts, x, y, m)
            loss.backward()
            case[f"{name} {place}"] = {"loss": loss.item(), "gradient": flat(w.grad)}
        w = texts.clone().requires_grad_()
        epochs, lr = 5, .1
        optimizer = torch.optim.SGD([w], lr=lr, momentum=.9)
        for epoch in range(epochs):
            cosine = lr * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2
            optimizer.param_groups[0]["lr"] = 1e-5 if epoch == 0 else cosine
            optimizer.zero_grad()
            probe_loss(w, texts, x, y, m).backward()
            optimizer.step()
        case[f"{name} learned"] = flat(w.detach())
    return case


def tip_logits(x, keys, values, texts, alpha, beta):
    x = F.normalize(x)
    return SCALE * x @ F.normalize(texts).T + alpha * (-beta * (1 - x @ keys.T)).exp() @ values


def grid(x, y, keys, values, texts):
    best = None
    for i in range(200):
        for j in range(20):
            beta, alpha = i * (7 - .1) / 200 + .1, j * (3 - .1) / 20 + .1
            logits = tip_logits(x, keys, values, texts, alpha, beta)
            rank = ((logits.argmax(-1) == y).double().mean().item(), -F.cross_entropy(logits, y).item())
            if best is None or rank > best[0]:
                best = (rank, alpha, beta)
    (acc, loss), alpha, beta = best
    return {"acc1": acc, "loss": -loss, "alpha": alpha, "beta": beta}


def tip_adapter(rng, centres, texts):
    epochs = 4
    views = np.stack([draw(rng, IMAGES, centres, 2.)[0] for _ in range(VIEWS + epochs)])
    val, val_labels = draw(rng, 30, centres, 2.5)
    labels = np.arange(IMAGES) % CLASSES
    keys = f32(unit(views[:VIEWS].mean(0)))
    views, val, y, val_labels, texts = map(torch.tensor, (views, val, labels, val_labels, texts))
    values = F.one_hot(y, CLASSES).double()
    # float32 knows no other alpha and beta than these.
    alpha, beta = float(np.float32(1.17)), 1.
    learned = torch.tensor(keys, requires_grad=True)
    optimizer = torch.optim.AdamW([learned], lr=1e-3, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    losses = []
    for epoch in range(epochs):
        loss = F.cross_entropy(tip_logits(views[VIEWS + epoch], learned, values, texts, alpha, beta), y)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    keys, learned = torch.tensor(keys), learned.detach()
    return {
        "views": flat(views), "labels": y.tolist(), "val": flat(val), "val_labels": val_labels.tolist(), "keys": flat(keys),
        "logits": flat(tip_logits(val, keys, values, texts, alpha, beta)), "chosen": grid(val, val_labels, keys, values, texts),
        "losses": losses, "learned": flat(learned), "learned_logits": flat(tip_logits(val, learned, values, texts, alpha, beta)),
        "learned_chosen": grid(val, val_labels, learned, values, texts),
    }


def main():
    torch.set_default_dtype(torch.float64)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLASSES, WIDTH))
    # Texts point roughly where the images of their class do, and are not of length 1.
    texts = f32(.5 * (centres + 1.5 * rng.normal(size=centres.shape)))
    case = {
        "scale": SCALE, "texts": flat(texts), "logistic": logistic(rng, centres), "ncm": ncm(rng, centres),
        "probes": probes(rng, centres, texts), "tip": tip_adapter(rng, centres, texts),
    }
    with open(os.path.join(FIXTURES, "features.json"), "w") as file:
        file.write(json.dumps(case, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
