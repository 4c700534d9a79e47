"""Reference values of IBSI 1 on the digital phantom (Zwanenburg et al., Radiology 2020)."""

from __future__ import annotations

import csv

import nibabel
import numpy as np
import pytest

from vesalius.measure import first_order, shape

pytestmark = pytest.mark.realdata
GIVEN = {"morph": 25, "stat": 18, "loc": 2, "ih": 23, "ivh": 6}


def rounded(value: float, given: str) -> float:
    """`value` with as many significant digits as the reference is given with."""
    digits = len(given.lstrip("-").replace(".", "").lstrip("0"))
    return float(f"{value:.{digits}g}")


def test_every_reference_value_is_met(real_data):
    folder = real_data / "ibsi"
    if not folder.is_dir():
        pytest.skip(f"no IBSI phantom at {folder}")
    image, mask = (
        np.asarray(nibabel.load(folder / f"ibsi1_phantom_{name}.nii.gz").dataobj).T for name in ("image", "mask")
    )
    found = shape.shape_table(mask, (2, 2, 2), image, autocorrelation=True)
    found |= first_order.first_order_table(image, mask, (2, 2, 2), peaks=True)
    names = {one.ibsi: one.name for one in (*shape.QUANTITIES, *first_order.QUANTITIES) if one.ibsi}
    seen = dict.fromkeys(GIVEN, 0)
    with open(folder / "ibsi1_digital_phantom_reference.csv", newline="") as table:
        for given, tolerance, tag in csv.reader(table, delimiter=";"):
            family = tag.split("_")[0]
            if family not in GIVEN:
                continue
            value = float(found[names[tag]][0])
            if not given:
                continue  # no consensus: oriented box, smallest ellipsoid, area of the volume histogram
            seen[family] += 1
            if float(tolerance):
                assert abs(value - float(given)) <= float(tolerance), tag
            else:
                assert rounded(value, given) == float(given), tag
    assert seen == GIVEN
