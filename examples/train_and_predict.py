"""Train on a folder and predict one image: python train_and_predict.py SCANS RUN IMAGE [KEY=VALUE...].

SCANS is whatever `vesalius inspect` understands, for example one folder per class. KEY=VALUE overrules a line of the
plan.
"""

from __future__ import annotations

import sys

import vesalius
from vesalius.core.plan import parse_settings
from vesalius.predict.predictor import Predictor

scans, run, image, *settings = sys.argv[1:]

done = vesalius.train(scans, out=run, settings=parse_settings(settings))
auroc = done.metrics["metrics"]["auroc"]
print(f"AUROC {auroc['value']:.3f} on {done.metrics['cases']} cases the model had never seen; report: {done.report}")

model = Predictor.load(run)
said = model(image)
print(said.top, {name: round(p, 3) for name, p in said.to_json()["probabilities"].items()})
