"""Tables of cases with several per patient, as a trainer would make them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vesalius.core.labels import Labels
from vesalius.evaluate.table import build_table


def cohort(names: tuple[str, ...], *, patients: int = 120, per_patient: int = 2, seed: int = 0, signal: float = 1.5):
    """Labels, and a table in which a patient's cases resemble each other; half of the patients are test, half val."""
    random = np.random.default_rng(seed)
    who = np.repeat(np.arange(patients), per_patient)
    truth = np.arange(patients)[who] // 2 % len(names)
    logits = random.normal(size=(len(who), len(names))) + random.normal(size=(patients, len(names)))[who]
    logits[np.arange(len(who)), truth] += signal
    stated = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    rows = pd.DataFrame(
        {
            "case_id": [f"c{k:04d}" for k in range(len(who))],
            "patient_id": [f"p{k}" for k in who],
            "path": "somewhere.png",
            "role": "image",
            "label": np.array(names)[truth],
            "split": np.where(who % 2 == 0, "test", "val"),
            "sex": np.array(["F", "M"])[random.integers(0, 2, patients)[who]],
            "age": random.integers(20, 90, patients)[who],
            "cause": np.where(truth == 0, None, "virus"),
        }
    )
    return Labels(names), build_table(rows, Labels(names), stated, 2 * logits)


def findings(seed: int = 0, n: int = 200):
    """Labels that may hold together, one case per patient."""
    random = np.random.default_rng(seed)
    labels = Labels(("effusion", "nodule", "fracture"), multilabel=True)
    held = random.random((n, 3)) < (0.4, 0.3, 0.15)
    logits = random.normal(size=(n, 3)) + 2 * held - 1
    text = ["|".join(name for name, yes in zip(labels.names, row, strict=True) if yes) for row in held]
    rows = pd.DataFrame({"case_id": [f"c{k}" for k in range(n)], "patient_id": [f"p{k}" for k in range(n)],
                         "label": text, "split": np.where(np.arange(n) % 2, "val", "test")})  # fmt: skip
    return labels, build_table(rows, labels, 1 / (1 + np.exp(-logits)), logits), held
