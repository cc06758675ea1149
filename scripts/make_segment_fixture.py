"""Makes the cases that segmentation is compared with: runs and polygons by pycocotools, metrics of pixels by numpy.

    pip install pycocotools numpy
    python scripts/make_segment_fixture.py

Metrics are written out as mmsegmentation's `IoUMetric` and torchmetrics' `JaccardIndex` compute them: histograms of pixels that
are right, of truth and of prediction; a class that is nowhere is left out of the mean (`nanmean`).
Made with pycocotools 2.0.11 and numpy 2.4.6.
"""
import json
import os

import numpy as np
from pycocotools import mask as api

FIXTURES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests", "fixtures")
IGNORED = 65535


def metrics(rng, classes, pixels, absent, ignored):
    """One case: random truth and prediction, equal in most pixels; `absent` classes are nowhere."""
    there = rng.permutation(classes)[: classes - absent]
    truth = rng.choice(there, pixels)
    predicted = np.where(rng.random(pixels) < .7, truth, rng.choice(there, pixels))
    truth = np.where(rng.random(pixels) < ignored, IGNORED, truth)
    valid = truth != IGNORED
    right = np.bincount(truth[valid & (truth == predicted)], minlength=classes)
    of_truth = np.bincount(truth[valid], minlength=classes)
    of_prediction = np.bincount(predicted[valid], minlength=classes)
    with np.errstate(invalid="ignore"):
        iou, acc = right / (of_truth + of_prediction - right), right / of_truth
    none = lambda values: [None if np.isnan(v) else float(v) for v in values]
    return {"classes": classes, "truth": truth.tolist(), "predicted": predicted.tolist(), "mIoU": float(np.nanmean(iou)),
            "pixel_acc": float(right.sum() / of_truth.sum()), "mean_acc": float(np.nanmean(acc)), "iou": none(iou), "acc": none(acc)}


def runs_of(mask):
    """Lengths of runs down the columns, and `mask` itself as 0 and 1 in one text, row by row."""
    flat = mask.flatten(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], ends, [len(flat)]])).tolist()
    return ([0] if flat[0] else []) + counts


def shown(mask):
    return ["".join(map(str, row)) for row in mask.tolist()]


def run_case(rng):
    height, width = (int(v) for v in rng.integers(1, 24, 2))
    scale = int(rng.integers(1, 9))
    small = rng.random((height // scale + 1, width // scale + 1)) < rng.random()
    mask = np.asfortranarray(np.kron(small, np.ones((scale, scale)))[:height, :width].astype(np.uint8))
    packed = api.encode(mask)
    assert (api.decode(packed) == mask).all()
    return {"width": width, "height": height, "text": packed["counts"].decode(), "counts": runs_of(mask), "area": int(mask.sum()),
            "mask": shown(mask)}


def polygon_case(rng):
    height, width = (int(v) for v in rng.integers(3, 24, 2))
    kind = rng.integers(4)
    corners = int(rng.integers(3, 9))
    points = rng.random((corners, 2)) * [width, height]
    if kind == 0:  # past the border, as annotations often are
        points = points * 1.3 - [.15 * width, .15 * height]
    elif kind == 1:  # on whole and half pixels
        points = np.round(points * 2) / 2
    elif kind == 2:  # two corners at one place, and one that closes the polygon
        points = np.concatenate([points, points[-1:], points[:1]])
    points = np.round(points, 2)
    rle = api.frPyObjects([points.flatten().tolist()], height, width)[0]
    return {"width": width, "height": height, "corners": points.flatten().tolist(), "mask": shown(api.decode(rle))}


def main():
    rng = np.random.default_rng(18)
    fixture = {
        "metrics": [metrics(rng, c, p, a, i) for c, p, a, i in
                    [(2, 40, 0, 0), (5, 200, 0, .1), (9, 300, 2, .05), (21, 400, 6, .2), (3, 12, 1, .5), (4, 100, 0, .02)]],
        "runs": [run_case(rng) for _ in range(40)],
        "polygons": [polygon_case(rng) for _ in range(60)],
    }
    with open(os.path.join(FIXTURES, "segment.json"), "w") as file:
        json.dump(fixture, file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
