"""Two segmentation models on the same cases: differences with intervals over patients."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from vesalius.core.errors import DataError
from vesalius.core.labels import Labels
from vesalius.evaluate.compare import Paired
from vesalius.evaluate.interval import Estimate, FloatArray, Patients, bootstrap
from vesalius.evaluate.segment_study import Arrays, Means


@dataclass(frozen=True, eq=False)
class SegmentComparison(Paired):
    """Two segmentation models; also the differences of every structure, by structure and metric."""

    per_class: Mapping[str, Mapping[str, Estimate]]

    def to_json(self) -> dict[str, Any]:
        """Plain data for a report."""
        return {
            **super().to_json(),
            "per_class": {
                label: {name: found.to_json() for name, found in metrics.items()}
                for label, metrics in self.per_class.items()
            },
        }


def compare_segments(
    first: pd.DataFrame,
    second: pd.DataFrame,
    labels: Labels,
    *,
    split: str = "test",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> SegmentComparison:
    """Compare two tables of the same cases (in any order), as `evaluate.segment_table.segment_table` makes them.

    The same patients are drawn for both models in every replicate. Distances that are infinite for one of the models
    are left out of both means.

    Raises
    ------
    DataError
        When the tables hold different cases.
    """
    grids = _aligned(first, second, labels, split)
    patients = Patients.of(grids[0].cases["patient_id"])
    means = [Means.of(grid) for grid in grids]

    def difference(weights: FloatArray | None) -> dict[Hashable, FloatArray]:
        before, after = means[0](weights), means[1](weights)
        return {key: after[key] - before[key] for key in before if key in after}

    found = bootstrap(difference, patients, resamples=resamples, level=level, seed=seed)
    values = [mean(None) for mean in means]
    whole: dict[str, Estimate] = {}
    per_class: dict[str, dict[str, Estimate]] = {name: {} for name in grids[0].names}
    for key, estimate in found.items():
        name, metric = key if isinstance(key, tuple) else ("", str(key))
        (per_class[name] if name else whole)[metric] = estimate
    return SegmentComparison(
        cases=len(grids[0].cases),
        patients=len(patients),
        first={metric: float(values[0]["", metric]) for metric in whole},
        second={metric: float(values[1]["", metric]) for metric in whole},
        difference=whole,
        per_class=per_class,
    )


def _aligned(first: pd.DataFrame, second: pd.DataFrame, labels: Labels, split: str) -> tuple[Arrays, Arrays]:
    one, two = (
        table.loc[table["split"] == split].sort_values(["case_id", "label"]).reset_index(drop=True)
        for table in (first, second)
    )
    ids, others = set(one["case_id"]), set(two["case_id"])
    if ids != others:
        odd = sorted(ids ^ others)[0]
        raise DataError(
            f"case {odd!r} of split {split!r} is in one table only ({len(ids)} and {len(others)} cases); "
            "predict the same cases with both models"
        )
    if not ids:
        raise DataError(f"no case belongs to split {split!r} in either table")
    lesions = Arrays.of(one, labels).lesions
    grids = Arrays.of(one, labels, lesions), Arrays.of(two, labels, lesions)
    for name in grids[0].values.keys() & grids[1].values.keys():
        known = [np.isfinite(grid.values[name]) for grid in grids]
        for grid in grids:
            grid.values[name][~(known[0] & known[1])] = np.nan  # arrays of this function's own
    return grids
