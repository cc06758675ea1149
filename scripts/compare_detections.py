#!/usr/bin/env python3
"""Is one detector better than another? AP of two files of COCO results on the same images, and the difference with a 95 % interval.

    vpt eval --model RUN --data boxes/ --detections a.json
    vpt eval --model RUN --data boxes/ --detections b.json --tiles 4
    compare_detections.py boxes/annotations/instances_test.json a.json b.json

The interval is a paired bootstrap over images: each resample takes as many images as there are, with replacement, the same for
both, and AP is computed anew. Needs pycocotools and numpy.
"""

import argparse
import contextlib
import io
import json

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def evaluated(truth, results):
    """An evaluation whose images are compared, not yet added up."""
    found = truth.loadRes(results) if json.load(open(results)) else None
    if found is None:
        raise SystemExit(f"{results}: no detections")
    evaluation = COCOeval(truth, found, "bbox")
    evaluation.params.areaRng = evaluation.params.areaRng[:1]
    evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
    evaluation.evaluate()
    return evaluation


def average_precision(evaluation, chosen):
    """AP of the images at the positions `chosen`, which may repeat."""
    categories, images = len(evaluation.params.catIds), len(evaluation.params.imgIds)
    all_of = np.array(evaluation.evalImgs, dtype=object).reshape(categories, 1, images)
    own = COCOeval(evaluation.cocoGt, evaluation.cocoDt, "bbox")
    own.params = own._paramsEval = evaluation.params
    own.evalImgs = list(all_of[:, :, chosen].reshape(-1))
    own.accumulate()
    precision = own.eval["precision"][:, :, :, 0, -1]
    precision = precision[precision > -1]
    return precision.mean() if precision.size else float("nan")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("truth")
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(args.truth)
        pair = [evaluated(truth, results) for results in (args.first, args.second)]
        count = len(pair[0].params.imgIds)
        ap = [average_precision(evaluation, np.arange(count)) for evaluation in pair]
        rng = np.random.default_rng(args.seed)
        draws = [rng.integers(count, size=count) for _ in range(args.resamples)]
        apart = [average_precision(pair[1], draw) - average_precision(pair[0], draw) for draw in draws]
    low, high = np.nanpercentile(apart, [2.5, 97.5])
    print(json.dumps({"images": count, "first_ap": ap[0], "second_ap": ap[1], "difference": ap[1] - ap[0],
                      "low": low, "high": high, "resamples": args.resamples}, indent=2))


if __name__ == "__main__":
    main()
