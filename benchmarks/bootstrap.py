"""Bootstrap of all classification metrics: ours in blocks of weights against a loop over scikit-learn.

Both compute the same metrics on the same draws; the values are compared before the times. The loop is timed on a few
replicates and scaled, since 2000 of them take minutes::

    python benchmarks/bootstrap.py --cases 10000 --replicates 2000 --loop 20
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
from sklearn import metrics as reference

from vesalius.core.labels import Labels
from vesalius.evaluate.interval import Patients, bootstrap
from vesalius.evaluate.scores import Scores, of_whole


def loop(truth: np.ndarray, stated: np.ndarray, row: np.ndarray) -> dict[str, float]:
    """One replicate by scikit-learn, with the cases repeated as they were drawn."""
    drawn = np.repeat(np.arange(len(truth)), row.astype(int))
    true, p = truth[drawn], stated[drawn]
    said = p > 0.5
    return {
        "accuracy": reference.accuracy_score(true, said),
        "balanced_accuracy": reference.balanced_accuracy_score(true, said),
        "sensitivity": reference.recall_score(true, said),
        "specificity": reference.recall_score(true, said, pos_label=0),
        "precision": reference.precision_score(true, said),
        "f1": reference.f1_score(true, said),
        "auroc": reference.roc_auc_score(true, p),
        "auprc": reference.average_precision_score(true, p),
        "kappa": reference.cohen_kappa_score(true, said),
        "brier": reference.brier_score_loss(true, p),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--replicates", type=int, default=2000)
    parser.add_argument("--loop", type=int, default=20)
    asked = parser.parse_args()
    random = np.random.default_rng(0)
    truth = random.random(asked.cases) < 0.3
    stated = 1 / (1 + np.exp(-random.normal(size=asked.cases) - 2 * truth + 1))
    labels = Labels(("no", "yes"))
    both = np.stack([1 - stated, stated], axis=1)
    scores = Scores(labels, truth.astype(int), both.argmax(axis=1), both)
    patients = Patients.of(random.integers(0, asked.cases * 6 // 10, asked.cases), truth)

    table = next(iter(patients.draws(asked.loop, 0)))[: asked.loop]
    start = time.perf_counter()
    theirs = [loop(truth.astype(int), stated, row) for row in table]
    loop_s = (time.perf_counter() - start) / len(table) * asked.replicates
    ours = of_whole(scores(table))
    worst = max(abs(ours[name][k] - value) for k, one in enumerate(theirs) for name, value in one.items())
    if not worst < 1e-9:
        raise SystemExit(f"values differ by {worst}")

    start = time.perf_counter()
    bootstrap(scores, patients, resamples=asked.replicates)
    ours_s = time.perf_counter() - start
    print(json.dumps({
        "cases": asked.cases, "patients": len(patients), "replicates": asked.replicates,
        "metrics": len(theirs[0]), "largest_difference": worst,
        "vesalius_s": round(ours_s, 2), "scikit_learn_loop_s": round(loop_s, 1), "ratio": round(loop_s / ours_s),
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
