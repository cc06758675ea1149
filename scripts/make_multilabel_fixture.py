"""Makes the case that eval::multilabel is compared with: random logits and their numbers by scikit-learn.

    pip install scikit-learn numpy
    python scripts/make_multilabel_fixture.py

Made with scikit-learn 1.9.1 and numpy 2.4.6.
"""
import json
import os

import numpy as np
from sklearn.metrics import accuracy_score, average_precision_score, f1_score

FIXTURES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests", "fixtures")


def main():
    rng = np.random.default_rng(0)
    truth = rng.random((30, 5)) < [.5, .3, .1, .8, 0]  # the last class does not occur
    # Halves: many logits are equal, and some lie on the threshold.
    logits = np.round(2 * (rng.normal(size=truth.shape) * 1.5 + 2 * truth - 1)) / 2
    logits[:, 4] = -np.abs(logits[:, 4]) - .5  # and is never predicted
    predicted = logits >= 0
    case = {
        "logits": logits.tolist(),
        "truth": truth.astype(int).tolist(),
        "average_precisions": [float(average_precision_score(truth[:, k], logits[:, k])) for k in range(4)],
        "micro_f1": float(f1_score(truth, predicted, average="micro")),
        "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
        "exact_match": float(accuracy_score(truth, predicted)),
        "loss": float(np.mean(np.logaddexp(0, logits) - logits * truth)),
    }
    with open(os.path.join(FIXTURES, "multilabel.json"), "w") as file:
        file.write(json.dumps(case, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
