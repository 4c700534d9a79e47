"""Train on images with masks and segment one: python segment.py SCANS RUN IMAGE OUT [KEY=VALUE...].

SCANS is for example a folder in the layout of nnU-Net or Decathlon, or ``images/`` and ``labels/`` with the same names.
KEY=VALUE overrules a line of the plan. OUT gets the mask of IMAGE with the header of IMAGE.
"""

from __future__ import annotations

import sys

import numpy as np

import vesalius
from vesalius.core.plan import parse_settings
from vesalius.io.nifti_out import write_nifti
from vesalius.predict.segmenter import SegmentPredictor, Wanted

scans, run, file, out, *settings = sys.argv[1:]

done = vesalius.train(scans, out=run, task="segment", settings=parse_settings(settings))
for name, entry in done.metrics["per_class"].items():
    dice = entry["dice"]["value"]
    print(f"{name}: Dice {'undefined' if dice is None else f'{dice:.3f}'}")

model = SegmentPredictor.load(run)
image, case_id = model.open(file)
found = model.segment(image, case_id, Wanted(entropy=True))
write_nifti(found.mask, out, like=file)
for value, name in enumerate(found.mask.labels.structures, 1):
    inside = found.mask.values == value
    sure = 1 - float(found.entropy[inside].astype(np.float32).mean()) if inside.any() else 0.0
    print(f"{name}: {int(inside.sum())} voxels, certainty {sure:.2f}")
