"""Makes the cases that eval::coco is compared with: random boxes and their numbers by pycocotools.

    pip install pycocotools numpy
    python scripts/make_coco_fixture.py

Made with pycocotools 2.0.11 and numpy 2.4.6.
"""
import contextlib
import io
import json
import os

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

FIXTURES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests", "fixtures")
SIDES = [6, 20, 32, 40, 96, 130]


def box(rng, near=None):
    """A box on whole pixels, so that equal overlaps occur; beside the box `near` if there is one."""
    if near is None:
        return [int(v) for v in (*rng.integers(0, 220, 2), *rng.choice(SIDES, 2))]
    shift = [int(rng.integers(-max(s // 6, 1), max(s // 6, 1) + 1)) for s in (*near[2:], *near[2:])]
    return [near[0] + shift[0], near[1] + shift[1], max(1, near[2] + shift[2]), max(1, near[3] + shift[3])]


def case(seed, images, categories, crowded):
    """Ties in scores and overlaps, crowds, areas that differ from the boxes', images and categories without truth.

    One pair of image and category has more than 100 detections if `crowded`.
    """
    rng = np.random.default_rng(seed)
    image_ids = [int(v) for v in rng.permutation(np.arange(1, 10 * images))[:images]]
    category_ids = sorted(int(v) for v in rng.permutation(np.arange(1, 91))[:categories])
    # The last category and every fifth image have no truth.
    annotations, detections = [], []
    for i, image in enumerate(image_ids):
        for category in category_ids[:-1] if i % 5 else []:
            for _ in range(rng.poisson(1.3)):
                rect = box(rng)
                area = rect[2] * rect[3] * float(rng.choice([1, 1, .6]))
                annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": category, "bbox": rect,
                                    "area": area, "iscrowd": int(rng.random() < .12)})
    score = lambda: float(rng.integers(1, 30)) / 30
    for a in annotations:
        for _ in range(rng.poisson(1.2)):
            category = a["category_id"] if rng.random() < .85 else int(rng.choice(category_ids))
            detections.append({"image_id": a["image_id"], "category_id": category, "bbox": box(rng, a["bbox"]), "score": score()})
    for image in image_ids:
        for category in category_ids:
            for _ in range(rng.poisson(.4)):
                detections.append({"image_id": image, "category_id": category, "bbox": box(rng), "score": score()})
    if crowded:
        busy = annotations[0]
        for _ in range(120):
            detections.append({"image_id": busy["image_id"], "category_id": busy["category_id"],
                               "bbox": box(rng, busy["bbox"]), "score": score()})
    detections = [detections[i] for i in rng.permutation(len(detections))]
    return image_ids, category_ids, annotations, detections


def number(value):
    return None if value <= -1 else float(value)


def evaluate(image_ids, category_ids, annotations, detections):
    """The twelve numbers, and AP and AP50 of each category (null where there is nothing to find)."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"images": [{"id": i} for i in image_ids], "categories": [{"id": c} for c in category_ids],
                         "annotations": [dict(a) for a in annotations]}
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes([dict(d) for d in detections]), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    precision = run.eval["precision"][:, :, :, 0, 2]
    classes = [[number(precision[:, :, k].mean()), number(precision[0, :, k].mean())] for k in range(len(category_ids))]
    return [float(v) for v in run.stats], classes


def main():
    cases = []
    for seed, images, categories, crowded in [(1, 8, 4, True), (2, 12, 3, False), (3, 5, 6, False), (4, 7, 2, True)]:
        image_ids, category_ids, annotations, detections = case(seed, images, categories, crowded)
        stats, classes = evaluate(image_ids, category_ids, annotations, detections)
        cases.append({
            "images": image_ids,
            "categories": category_ids,
            "objects": [[a["id"], a["image_id"], a["category_id"], *a["bbox"], a["area"], a["iscrowd"]] for a in annotations],
            "detections": [[d["image_id"], d["category_id"], *d["bbox"], d["score"]] for d in detections],
            "stats": stats,
            "classes": classes,
        })
    path = os.path.join(FIXTURES, "coco.json")
    with open(path, "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]\n")


if __name__ == "__main__":
    main()
