"""Cases of a segmentation from the worst to the best."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from vesalius.measure.weights import mean_defined

WORST = 10


def case_scores(table: pd.DataFrame) -> pd.DataFrame:
    """One row per case, worst first: ``case_id, patient_id, score, worst, missed, invented``.

    `score` is the mean Dice over the structures where it is defined (panoptic quality for single objects); `worst` the
    structure with the lowest; `missed` and `invented` are lists of structures. Cases without a score come last.
    """
    by = "pq" if "pq" in table.columns and table["pq"].notna().any() else "dice"
    rows = []
    for case_id, part in table.groupby("case_id", sort=False):
        score = part[by].to_numpy(dtype=np.float64)
        known = ~np.isnan(score)
        lowest = int(np.argmin(np.where(known, score, np.inf)))
        rows.append(
            {
                "case_id": str(case_id),
                "patient_id": str(part["patient_id"].iloc[0]),
                "score": float(mean_defined(score)),
                "worst": str(part["label"].iloc[lowest]) if known.any() else "",
                "missed": part.loc[part["outcome"] == "missed", "label"].tolist(),
                "invented": part.loc[part["outcome"] == "invented", "label"].tolist(),
            }
        )
    return pd.DataFrame(rows).sort_values(["score", "case_id"], na_position="last").reset_index(drop=True)


def ranked(table: pd.DataFrame, most: int = WORST) -> dict[str, Any]:
    """The worst, the median and the best case by `case_scores`, as plain data."""
    known = case_scores(table).dropna(subset="score")
    if known.empty:
        return {"worst": [], "median": [], "best": []}
    middle = (len(known) - 1) // 2
    columns = ["case_id", "score", "worst", "missed", "invented"]
    return {
        "worst": known[columns].head(most).to_dict("records"),
        "median": known[columns].iloc[[middle]].to_dict("records"),
        "best": known[columns].iloc[[-1]].to_dict("records"),
    }
