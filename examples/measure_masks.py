"""Measure masks: as arrays, and as files with a table and a page.

    python examples/measure_masks.py OUT [MASK...]

Without masks a synthetic chest is measured.
"""

import sys
from pathlib import Path

import vesalius
from vesalius.core.image import Image
from vesalius.io.nifti_out import write_nifti
from vesalius.measure.relations import margin
from vesalius.measure.shape import shape_table
from vesalius.phantoms.ct import make_ct


def main(out: str, *masks: str) -> None:
    if not masks:
        phantom = make_ct(seed=1, index=1)
        grid, labels = phantom.case.image().grid, phantom.mask
        # Arrays with a spacing, no files.
        table = shape_table(labels, grid.spacing_mm)
        for label, volume in zip(table["label"], table["volume"], strict=True):
            print(f"{phantom.structures[label]:<12} {volume / 1000:8.1f} ml")
        heart, lung = (phantom.structures.index(name) for name in ("heart", "lung"))
        print("heart to lung:", round(margin(labels == heart, labels == lung, grid.spacing_mm)["margin_min"], 2), "mm")
        Path(out).mkdir(parents=True, exist_ok=True)
        mask = Path(out) / "chest.nii.gz"
        write_nifti(Image(grid=grid, pixels=labels[None]), mask)
        masks = (str(mask),)
    done = vesalius.measure(*masks, out=Path(out) / "measurements")
    print(done.table()[["case_id", "name", "volume_mm3", "sphericity"]])
    print(done.page)


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["runs/measured"]))
