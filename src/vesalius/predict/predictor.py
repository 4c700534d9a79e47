"""A case to a prediction, with a bundle and nothing else.

Three lines::

    from vesalius.predict.predictor import Predictor
    model = Predictor.load("runs/chest")
    print(model("scan.dcm").to_json())
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vesalius.core.case import Case
from vesalius.core.errors import DataError, UsageError
from vesalius.core.image import Image
from vesalius.core.labels import Labels
from vesalius.core.prediction import ClassScores
from vesalius.data.prepare import for_dims
from vesalius.predict.bundle import Bundle
from vesalius.predict.device import pick_device, use_cores
from vesalius.predict.forward import Forward
from vesalius.tasks.classify import Classify
from vesalius.transforms.preprocess import Preprocess

Input = Case | Image | str | Path


class Predictor:
    """Predicts with every member and view of a bundle.

    Parameters
    ----------
    bundle
        A loaded bundle.
    device
        ``auto``, ``cpu``, ``cuda``...
    """

    def __init__(self, bundle: Bundle, *, device: str = "auto") -> None:
        task = bundle.make_task()
        if not isinstance(task, Classify):
            raise UsageError(f"this bundle is for task {bundle.task}; use predict.segmenter.SegmentPredictor")
        self.bundle, self.task = bundle, task
        self.device = pick_device(device)
        if self.device.type == "cpu":
            use_cores()
        self.preprocess = Preprocess.from_spec(bundle.preprocess)
        self.forward = Forward(bundle.networks(), self.preprocess, self.task, device=self.device, views=bundle.views)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto") -> Predictor:
        """From a run folder or a bundle folder, checksums verified."""
        return cls(Bundle.load(path), device=device)

    @property
    def labels(self) -> Labels:
        """The classes it tells apart."""
        return self.bundle.labels

    def __call__(self, item: Input) -> ClassScores:
        """Predict one case, image or file.

        Raises
        ------
        DataError
            If the file cannot be read or does not fit the bundle; one line says why.
        """
        image, case_id = self._image(item)
        return self.decode(self.stored(image)[None], [case_id])[0]

    def stored(self, image: Image) -> NDArray[Any]:
        """An image as the store would hold it, ``(C, *size)``; what training saw, bit for bit."""
        fitting = for_dims(image, self.preprocess.dims)
        try:
            return np.asarray(self.preprocess.store(fitting.pixels, fitting.grid.spacing_mm).numpy())
        except ValueError as error:
            raise DataError(f"{image.source or 'image'}: {error}") from None

    def decode(self, stored: NDArray[Any], case_ids: Sequence[str]) -> list[ClassScores]:
        """Predictions of stored pixels ``(B, C, *size)``."""
        views = self.forward.views_of(torch.from_numpy(np.ascontiguousarray(stored)))
        logits = self.task.average(views)
        probabilities = self.task.probabilities(logits, self.bundle.temperature)
        each = self.task.probabilities(views, self.bundle.temperature)
        found = []
        for place, case_id in enumerate(case_ids):
            top = int(probabilities[place].argmax())
            spread = float(each[:, place, top].std()) if len(each) > 1 else None
            found.append(
                ClassScores(
                    case_id, self.labels, probabilities[place], logits[place], spread, threshold=self.bundle.threshold
                )
            )
        return found

    def _image(self, item: Input) -> tuple[Image, str]:
        if isinstance(item, Case):
            return item.image(), item.case_id
        if isinstance(item, Image):
            return item, item.source or "image"
        from vesalius.data.listing import stem_of
        from vesalius.io.open import open_image

        return open_image(item), stem_of(Path(item).name) or str(item)
