"""Invented studies for the tests of the report: plain data, no training."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd

from vesalius.core.labels import Labels

BINARY = Labels(("normal", "pneumonia"))
VOID = {"meta", "img", "br", "link", "input", "hr"}


def estimate(value: float | None, low: float | None = None, high: float | None = None, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "unit": "1", "level": 0.95, **more}


def table_of(labels: Labels, cases: int = 60, *, seed: int = 0, skill: float = 1.5) -> pd.DataFrame:
    """Cases whose probabilities know a little about the truth."""
    random = np.random.default_rng(seed)
    names = np.array(labels.names, dtype=object)
    if labels.multilabel:
        truth = random.random((cases, len(labels))) < 0.3
        p = 1 / (1 + np.exp(-(skill * truth - 1 + random.normal(0, 1, truth.shape))))
        said = p >= 0.5
        label, predicted = (["|".join(names[row]) for row in which] for which in (truth, said))
        correct = (truth == said).all(axis=1)
    else:
        which = np.arange(cases) % len(labels)
        score = skill * np.eye(len(labels))[which] + random.normal(0, 1, (cases, len(labels)))
        p = np.exp(score) / np.exp(score).sum(axis=1, keepdims=True)
        label, predicted = names[which], names[p.argmax(axis=1)]
        correct = which == p.argmax(axis=1)
    table = pd.DataFrame(
        {"case_id": [f"case-{k}" for k in range(cases)], "patient_id": [f"P{k}" for k in range(cases)],
         "label": label, "predicted": predicted, "correct": correct}
    )  # fmt: skip
    return table.join(pd.DataFrame(p, columns=[f"p.{name}" for name in labels.names]))


def metrics_of(labels: Labels = BINARY, **changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = {
        "schema": 1, "task": "classify", "split": "test", "cases": 624, "patients": 611,
        "metrics": {"auroc": estimate(0.9713, 0.9512, 0.9846), "accuracy": estimate(0.8765, 0.8431, 0.9021)},
        "per_class": {name: {"sensitivity": estimate(0.7654, 0.7011, 0.8122)} for name in labels.names},
        "subgroups": {}, "calibration": {"temperature": 1.37},
        "timing": {"train_s": 431.0, "predict_ms_per_case": 3.25},
        "leakage": {"patients_shared": 0, "near_duplicates": 0}, "labels": labels.to_json(),
    }  # fmt: skip
    return data | changes


class Page(HTMLParser):
    """Tags in order, texts, and a complaint for every tag that does not match."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.complaints: list[str] = []
        self.feed(text)
        self.close()
        self.complaints += [f"<{tag}> is never closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.complaints.append(f"</{tag}> at {self.getpos()} closes {self.open[-1:]}")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag and kind in [*(attrs.get("class") or "").split(), ""]]
