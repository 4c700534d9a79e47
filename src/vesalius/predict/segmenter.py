"""A file to a mask on the file's own grid, with a bundle and nothing else.

Three lines::

    from vesalius.predict.segmenter import SegmentPredictor
    model = SegmentPredictor.load("runs/hippocampus")
    mask = model("scan.nii.gz")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from vesalius.core.case import Case
from vesalius.core.errors import DataError, UsageError
from vesalius.core.image import Image
from vesalius.core.labels import Labels
from vesalius.core.prediction import Mask
from vesalius.measure.components import apply_steps, apply_to_layers
from vesalius.measure.uncertainty import disagreement
from vesalius.predict.backends import Backend, OneMember, make_backend
from vesalius.predict.bundle import Bundle
from vesalius.predict.device import pick_device, use_cores
from vesalius.predict.restore import Placement, Restorer
from vesalius.predict.tiles import SkipRule, TileCount, TileSettings, predict_slabs
from vesalius.tasks.instances import decode_instances
from vesalius.tasks.segment import BORDER, DISTANCE, FOREGROUND, Segment
from vesalius.transforms.conform import Conform, Conformed

Input = Case | Image | str | Path

_BLOCK = 4
# Single objects whose median diameter differs by more than this factor from all training images are seen again at the
# training size.
_SIZE_TOLERANCE = 1.15
_SCALES = (0.2, 5.0)


@dataclass(frozen=True)
class Wanted:
    """What a prediction brings along beside the mask; each costs memory or time.

    Parameters
    ----------
    probabilities
        ``(K, *S)`` float16.
    entropy
        ``(*S)`` float16: normalised entropy of the averaged prediction.
    spread
        ``(*S)`` float16: standard deviation, over the networks of an ensemble or else over the views, of the
        probability of what the mean says (`measure.uncertainty.disagreement`); each of them is computed by itself.
    post
        Apply the post-processing of the bundle.
    calibrated
        Divide logits by the bundle's temperature before they become probabilities; no mask depends on it.
    """

    probabilities: bool = False
    entropy: bool = False
    spread: bool = False
    post: bool = True
    calibrated: bool = True


@dataclass(frozen=True, eq=False)
class Segmented:
    """A mask and what was asked for with it, on the grid of the image."""

    image: Image
    mask: Mask
    probabilities: NDArray[np.float16] | None = None
    entropy: NDArray[np.float16] | None = None
    spread: NDArray[np.float16] | None = None
    tiles: TileCount = field(default_factory=TileCount)
    scale: float = 1.0


class SegmentPredictor:
    """Predicts with every member and view of a bundle.

    Parameters
    ----------
    bundle
        A loaded bundle of task ``segment``.
    device
        ``auto``, ``cpu``, ``cuda``...
    backend, precision
        In place of those of the bundle; `predict.backends.make_backend`.
    """

    def __init__(
        self, bundle: Bundle, *, device: str = "auto", backend: str | None = None, precision: str | None = None
    ) -> None:
        task = bundle.make_task()
        if not isinstance(task, Segment):
            raise UsageError(f"this bundle is for task {bundle.task}, not for segmentation")
        self.bundle, self.task = bundle, task
        self.device = pick_device(device)
        if self.device.type == "cpu":
            use_cores()
        self.conform = Conform(bundle.preprocess)
        tile = bundle.inference["tile"]
        self.patch = tuple(int(side) for side in tile["patch"])
        self.overlap, self.batch = float(tile["overlap"]), int(tile["batch"])
        self.slack = float(tile.get("slack", 0.0))
        self.views = tuple(tuple(int(axis) for axis in view) for view in bundle.views) or ((),)
        name = backend or str(bundle.inference.get("backend", "auto"))
        self.backend: Backend = make_backend(
            bundle.networks(),
            inputs=self.conform.channels,
            patch=self.patch,
            batch=self.batch,
            name=name if self.device.type == "cpu" else "torch",
            precision=precision or str(bundle.inference.get("precision", "fp32")),
            device=self.device,
        )

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> SegmentPredictor:
        """From a run folder or a bundle folder, checksums verified."""
        return cls(Bundle.load(path), **options)

    @property
    def labels(self) -> Labels:
        """The structures it finds."""
        return self.bundle.labels

    def __call__(self, item: Input | Sequence[str | Path]) -> Mask:
        """Predict one case, image or file (or the files of its channels).

        Raises
        ------
        DataError
            If a file cannot be read or does not fit the bundle; one line says why.
        """
        image, case_id = self.open(item)
        return self.segment(image, case_id).mask

    def segment(self, image: Image, case_id: str, wanted: Wanted | None = None) -> Segmented:
        """The mask of an image on the image's grid, and what else is `wanted`."""
        wanted = wanted or Wanted()
        fitted = self._fitted(image)
        if self.task.labels.instances:
            return self._objects(image, case_id, fitted, wanted)
        count = TileCount()
        placement = Placement.of(fitted)
        restorer, maps = self._restorer(placement, wanted)
        for start, stop, values in self.slabs(fitted, count):
            restorer.add(start, stop, values)
        values = restorer.finish()
        if self.task.labels.multilabel:
            values = (maps["probabilities"] > 0.5).astype(np.uint8)
        values = self._processed(values, image, wanted)
        return Segmented(
            image,
            Mask(case_id, self.labels, image.grid, values),
            maps.get("probabilities") if wanted.probabilities else None,
            maps.get("entropy"),
            self._spread(fitted, wanted) if wanted.spread else None,
            count,
        )

    @property
    def opinions(self) -> int:
        """How many networks, or else views, can disagree."""
        return self.backend.members if self.backend.members > 1 else len(self.views)

    def _spread(self, fitted: Conformed, wanted: Wanted) -> NDArray[np.float16]:
        """How much the networks (of one network, the views) differ at each voxel of the file; 0 where one is alone."""
        found = disagreement(self._opinion(fitted, number, wanted) for number in range(self.opinions))
        return found.spread.astype(np.float16)

    def _opinion(self, fitted: Conformed, number: int, wanted: Wanted) -> NDArray[np.float16]:
        """Probabilities ``(K, *S)`` of one network, or of one view."""
        placement = Placement.of(fitted)
        several = self.backend.members > 1
        backend = OneMember(self.backend, number) if several else self.backend
        views = self.views if several else (self.views[number],)
        if self.task.labels.instances:
            maps = self.maps(fitted, backend=backend, views=views)
            alone = np.zeros((1, *placement.full), dtype=np.float16)
            placement.view(alone)[0] = enlarged(self._calibrated(maps[FOREGROUND], wanted), placement.cut)
            return alone
        restorer, found = self._restorer(placement, replace(wanted, probabilities=True, entropy=False))
        for start, stop, values in self.slabs(fitted, views=views, backend=backend):
            restorer.add(start, stop, values)
        restorer.finish()
        return found["probabilities"]

    def _calibrated(self, p: NDArray[np.float32], wanted: Wanted) -> NDArray[np.float32]:
        """Probabilities of one structure at the bundle's temperature."""
        if not wanted.calibrated or self.bundle.temperature == 1:
            return p
        kept = np.clip(p, 1e-7, 1 - 1e-7)
        return np.asarray(expit(logit(kept) / np.float32(self.bundle.temperature)), dtype=np.float32)

    def slabs(
        self,
        fitted: Conformed,
        count: TileCount | None = None,
        *,
        views: Any = None,
        backend: Backend | None = None,
    ) -> Any:
        """Logits by planes of the prepared grid, averaged over tiles, members and `views`; see `predict_slabs`."""
        settings = TileSettings(
            self.patch,
            overlap=self.overlap,
            slack=self.slack,
            batch=self.batch,
            mirror=views or self.views,
            skip=self._skip(fitted),
        )
        return predict_slabs(
            fitted.read, fitted.shape, backend or self.backend, settings, self.task.outputs, count=count
        )

    def maps(self, fitted: Conformed, **options: Any) -> NDArray[np.float32]:
        """Outputs of single objects between 0 and 1, ``(3, *shape)``: foreground, inner distance, border."""
        logits = np.concatenate([np.array(values) for _, _, values in self.slabs(fitted, **options)], axis=1)
        return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logits, -30, 30))), dtype=np.float32)

    def open(self, item: Input | Sequence[str | Path]) -> tuple[Image, str]:
        """The image that `item` means, and an id for it."""
        from vesalius.data.listing import stem_of
        from vesalius.data.truth import open_channels
        from vesalius.data.truth_files import with_channels

        if isinstance(item, Case):
            return item.image(), item.case_id
        if isinstance(item, Image):
            return item, item.source or "image"
        paths = [item] if isinstance(item, (str, Path)) else list(item)
        opened = open_channels([with_channels(path, self.conform.channels) for path in paths])
        return opened, stem_of(Path(paths[0]).name) or str(paths[0])

    def _fitted(self, image: Image, scale: float | None = None) -> Conformed:
        try:
            return self.conform(image, scale=scale)
        except ValueError as error:
            raise DataError(f"{image.source or 'image'}: {error}") from None

    def _restorer(self, placement: Placement, wanted: Wanted) -> tuple[Restorer, dict[str, NDArray[np.float16]]]:
        maps: dict[str, NDArray[np.float16]] = {}
        overlapping = self.task.labels.multilabel
        if wanted.probabilities or overlapping:
            maps["probabilities"] = np.zeros((self.task.outputs, *placement.full), dtype=np.float16)
        if wanted.entropy:
            maps["entropy"] = np.zeros(placement.full, dtype=np.float16)
        regions = list(range(1, self.task.outputs + 1)) if overlapping else None
        options: dict[str, Any] = dict(maps)
        if wanted.calibrated:
            options["temperature"] = self.bundle.temperature
        return Restorer(placement, self.task.outputs, regions=regions, **options), maps

    def _processed(self, values: NDArray[Any], image: Image, wanted: Wanted) -> NDArray[Any]:
        steps = self.bundle.inference.get("post") or []
        if not steps or not wanted.post:
            return values
        process = apply_to_layers if self.task.labels.multilabel else apply_steps
        return np.asarray(process(values, steps, image.grid.spacing_mm))

    def _skip(self, fitted: Conformed) -> SkipRule | None:
        level = self.bundle.inference.get("skip_below")
        return None if level is None else SkipRule(body=body_blocks(fitted.source, float(level)))

    def _objects(self, image: Image, case_id: str, fitted: Conformed, wanted: Wanted) -> Segmented:
        """Single objects; where they are much larger or smaller than in training, once more at the training size."""
        scale = float(self.bundle.preprocess.get("scale") or 1.0)
        found, maps = self._decoded(fitted)
        known = self.bundle.inference.get("diameters")
        if known and image.grid.ndim == 2 and self.conform.spacing is None:
            better = size_factor(found, known)
            if better is not None:
                scale = float(np.clip(scale * better, *_SCALES))
                fitted = self._fitted(image, scale)
                found, maps = self._decoded(fitted)
        placement = Placement.of(fitted)
        whole = np.zeros(placement.full, dtype=np.int32)
        placement.view(whole)[...] = enlarged(found, placement.cut)
        probabilities = None
        if wanted.probabilities or wanted.entropy:
            probabilities = np.zeros((1, *placement.full), dtype=np.float16)
            placement.view(probabilities)[0] = enlarged(self._calibrated(maps[FOREGROUND], wanted), placement.cut)
        entropy = None
        if wanted.entropy and probabilities is not None:
            p = np.clip(probabilities[0].astype(np.float32), 1e-6, 1 - 1e-6)
            entropy = (-(p * np.log2(p) + (1 - p) * np.log2(1 - p))).astype(np.float16)
        mask = Mask(case_id, self.labels, image.grid, whole)
        spread = self._spread(fitted, wanted) if wanted.spread else None
        return Segmented(
            image, mask, probabilities if wanted.probabilities else None, entropy, spread, TileCount(), scale
        )

    def _decoded(self, fitted: Conformed) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        maps = self.maps(fitted)
        settings = self.bundle.inference.get("decode") or {}
        return decode_instances(maps[FOREGROUND], maps[DISTANCE], maps[BORDER], **settings), maps


def diameters_of(objects: NDArray[Any]) -> NDArray[np.float64]:
    """Equivalent diameters in pixels of the objects of a map."""
    sizes = np.bincount(objects.reshape(-1))[1:]
    sizes = sizes[sizes > 0]
    return np.asarray(2 * np.sqrt(sizes / np.pi) if objects.ndim == 2 else np.cbrt(6 * sizes / np.pi))


def size_factor(found: NDArray[Any], known: Sequence[float]) -> float | None:
    """The magnification that brings objects to the training size; None where they have it, or are too few to tell.

    `known` are the 2nd, 50th and 98th percentile of the median diameters of training images in prepared pixels.
    """
    diameters = diameters_of(found)
    if len(diameters) < 3:
        return None
    middle = float(np.median(diameters))
    if known[0] / _SIZE_TOLERANCE <= middle <= known[2] * _SIZE_TOLERANCE:
        return None
    return float(known[1] / middle)


def enlarged(values: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Nearest values on another number of pixels, edges kept (as `transforms.resample` places them)."""
    if values.shape == tuple(shape):
        return values
    index = [
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)
        for old, new in zip(values.shape, shape, strict=True)
    ]
    return np.asarray(values[np.ix_(*index)])


def body_blocks(source: NDArray[Any], level: float) -> NDArray[np.bool_]:
    """Where any value of the first channel in a block of 4 voxels a side, or next to it, is above `level`.

    The margin of a block covers what interpolation carries over.
    """
    sides = source.shape[1:]
    out = np.zeros([-(-side // _BLOCK) for side in sides], dtype=bool)
    for block in range(out.shape[0]):
        planes = (source[0, block * _BLOCK : (block + 1) * _BLOCK] > level).any(axis=0)
        for axis, side in enumerate(sides[1:]):
            planes = np.logical_or.reduceat(planes, np.arange(0, side, _BLOCK), axis=axis)
        out[block] = planes
    for axis in range(out.ndim):
        grown = out.copy()
        lead = (slice(None),) * axis
        grown[(*lead, slice(1, None))] |= out[(*lead, slice(None, -1))]
        grown[(*lead, slice(None, -1))] |= out[(*lead, slice(1, None))]
        out = grown
    return out
