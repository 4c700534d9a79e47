"""From finished planes of a prediction back to the voxels of the file, a few planes at a time.

Values of every class are interpolated linearly as ``transforms.resample`` does (centres at index + 0.5, a wider
triangle where the grid shrinks) and decided at once, so that the volume of all classes never exists. The label map is
written through a view that turns and cuts like the preparation did: nothing is copied to turn it back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vesalius.measure.compiled import kernel
from vesalius.transforms.conform import Conformed, Pose
from vesalius.transforms.resample import interpolation_matrix

FloatArray = NDArray[np.float32]
Kind = Literal["logits", "probabilities"]


@dataclass(frozen=True)
class Placement:
    """Where a prediction lies in the array of the file.

    Parameters
    ----------
    shape
        Sides of the grid of the network, ``(z, y, x)`` or ``(y, x)``.
    cut
        Sides of the cut before it was resampled to `shape`.
    lower, whole
        First voxel of the cut in the turned array, and the sides of the turned array.
    axes, flips
        Axis k of the turned array is axis ``axes[k]`` of the file, mirrored if ``flips[k]``.
    """

    shape: tuple[int, ...]
    cut: tuple[int, ...]
    lower: tuple[int, ...]
    whole: tuple[int, ...]
    axes: tuple[int, ...]
    flips: tuple[bool, ...]

    def __post_init__(self) -> None:
        dims = len(self.shape)
        if dims not in (2, 3) or any(len(part) != dims for part in (self.cut, self.lower, self.whole, self.axes)):
            raise ValueError(f"a placement needs 2 or 3 axes everywhere, got {self}")
        if sorted(self.axes) != list(range(dims)) or len(self.flips) != dims or min(*self.shape, *self.cut) < 1:
            raise ValueError(f"axes must be a permutation with one flip each and sides from 1, got {self}")
        if any(a < 0 or a + n > side for a, n, side in zip(self.lower, self.cut, self.whole, strict=True)):
            raise ValueError(f"the cut must lie inside the whole, got {self}")

    @classmethod
    def of(cls, case: Conformed) -> Placement:
        """The placement of a prepared case."""
        dims = len(case.shape)
        return cls(case.shape, case.cut, case.lower, case.whole, case.pose.axes, case.pose.flips[:dims])

    @classmethod
    def plain(cls, shape: Sequence[int], cut: Sequence[int] | None = None) -> Placement:
        """Neither turned nor cut: only resampled, if `cut` is given and differs."""
        cut = tuple(shape) if cut is None else tuple(cut)
        dims = len(cut)
        return cls(tuple(shape), cut, (0,) * dims, cut, tuple(range(dims)), (False,) * dims)

    @property
    def full(self) -> tuple[int, ...]:
        """Sides of the array of the file."""
        return tuple(self.whole[self.axes.index(axis)] for axis in range(len(self.axes)))

    def view(self, array: NDArray[Any]) -> NDArray[Any]:
        """The cut, turned, as a view ``(..., *cut)`` of an array ``(..., *full)`` of the file."""
        if array.shape[array.ndim - len(self.axes) :] != self.full:
            raise ValueError(f"the array must end with the sides {self.full} of the file, got {array.shape}")
        box: tuple[Any, ...] = tuple(slice(a, a + n) for a, n in zip(self.lower, self.cut, strict=True))
        turned: NDArray[Any] = Pose(self.axes, self.flips).turn(array)
        return turned[..., *box]


class Restorer:
    """Takes slabs in order and writes the label map of the file.

    Parameters
    ----------
    placement
        Grid of the slabs and place in the file.
    classes
        Channels of the slabs, K.
    kind
        What the slabs hold. Probabilities and maps below are computed from interpolated logits, or are the interpolated
        probabilities themselves.
    regions
        None: the class with the largest value wins, the first of equals. Otherwise channels are regions that may
        overlap: where its probability is above 0.5 (logit above 0) each paints its number, in the order of channels.
    labels
        ``full``, an unsigned integer array that holds zeros, or None for a new one.
    probabilities
        ``(K, *full)``, floating point or uint8 (255 is 1), to be filled; a memory map if it does not fit. Outside of
        the cut the first class is certain, or no region is there.
    confidence
        ``full``, floating point: the largest probability; of regions, the least of max(p, 1 - p).
    entropy
        ``full``, floating point: entropy of the probabilities over its largest value log K; of regions, the largest
        binary entropy in bits.
    temperature
        What logits are divided by before they become probabilities; the decision does not depend on it.

    Raises
    ------
    ValueError
        If arrays do not fit.
    """

    def __init__(
        self,
        placement: Placement,
        classes: int,
        *,
        kind: Kind = "logits",
        regions: Sequence[int] | None = None,
        labels: NDArray[Any] | None = None,
        probabilities: NDArray[Any] | None = None,
        confidence: NDArray[Any] | None = None,
        entropy: NDArray[Any] | None = None,
        temperature: float = 1.0,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"the temperature must be above 0, got {temperature}")
        if regions is not None and len(regions) != classes:
            raise ValueError(f"{classes} channels need {classes} numbers of regions, got {len(regions)}")
        self.placement, self.classes, self.kind = placement, classes, kind
        self.temperature = np.float32(temperature)
        self.regions = regions is not None
        self.codes = np.asarray(range(classes) if regions is None else regions, dtype=np.uint16)
        if labels is None:
            labels = np.zeros(placement.full, dtype=np.uint8 if int(self.codes.max()) < 256 else np.uint16)
        elif labels.dtype.kind != "u":
            raise ValueError(f"labels must be unsigned integers, got {labels.dtype}")
        self.labels = labels
        self._outputs = {"labels": self._planes(labels)}
        for name, array, outside in (
            ("probabilities", probabilities, 0.0),
            ("confidence", confidence, 1.0),
            ("entropy", entropy, 0.0),
        ):
            if array is not None:
                self._outputs[name] = self._prepared(array, outside, name == "probabilities")
        self._threshold = np.float32(0.0 if not self.regions or kind == "logits" else 0.5)
        self._start()

    def _start(self) -> None:
        shape, cut = self.placement.shape, self.placement.cut
        if len(shape) == 2:  # lines along y stand for planes of one row
            shape, cut = (shape[0], 1, shape[1]), (cut[0], 1, cut[1])
        self._depth, self._source, self._target = shape[0], shape[1:], cut[1:]
        taps = [_taps(old, new) for old, new in zip(shape, cut, strict=True)]
        (self._z, self._wz), self._in_plane = taps[0], (*taps[1], *taps[2])
        # Planes are held in a ring as long as the most that one plane of the file is made of.
        used = [np.flatnonzero(row) for row in self._wz]
        self._low = np.array([self._z[k, row[0]] for k, row in enumerate(used)])
        self._high = np.array([self._z[k, row[-1]] for k, row in enumerate(used)])
        self._ring = np.zeros((int((self._high - self._low).max()) + 1, self.classes, *self._source), dtype=np.float32)
        self._seen, self._done = 0, 0
        several = len(self._outputs) > 1
        self._values = np.zeros((self.classes, *self._target) if several else (0, 0, 0), dtype=np.float32)
        self._chosen = np.zeros(self._target, dtype=np.uint16)

    def add(self, start: int, stop: int, values: FloatArray) -> None:
        """Planes `start` to `stop`, ``(K, stop - start, *shape[1:])`` float32; every plane once and in order."""
        if start != self._seen or values.shape != (self.classes, stop - start, *self.placement.shape[1:]):
            raise ValueError(
                f"planes from {self._seen} of shape {(self.classes, 'n', *self.placement.shape[1:])} were expected, "
                f"got {start} to {stop} of {values.shape}"
            )
        for k in range(stop - start):
            self._ring[self._seen % len(self._ring)] = values[:, k].reshape(self.classes, *self._source)
            self._seen += 1
            while self._done < len(self._high) and self._high[self._done] < self._seen:
                self._write(self._done)
                self._done += 1

    def finish(self) -> NDArray[Any]:
        """The label map of the file.

        Raises
        ------
        ValueError
            If planes are missing.
        """
        if self._done < len(self._high) or self._seen < self._depth:
            raise ValueError(f"{self._seen} of {self._depth} planes were given")
        return self.labels

    def _write(self, plane: int) -> None:
        inside = self._wz[plane] != 0
        _decide(
            self._ring,
            self._z[plane][inside] % len(self._ring),
            self._wz[plane][inside],
            *self._in_plane,
            self.codes,
            self.regions,
            self._threshold,
            self._chosen,
            self._values,
        )
        # The view may be of any order of axes: a whole plane is assigned, not single voxels.
        self._outputs["labels"][plane] = self._chosen.reshape(self._outputs["labels"].shape[1:])
        if len(self._outputs) > 1:
            self._write_maps(plane)

    def _write_maps(self, plane: int) -> None:
        p = self._probabilities()
        for name, view in self._outputs.items():
            if name == "probabilities":
                shaped = p.reshape(self.classes, *view.shape[2:])
                view[:, plane] = np.rint(shaped * 255) if view.dtype == np.uint8 else shaped
            elif name == "confidence":
                best = np.maximum(p, 1 - p).min(axis=0) if self.regions else p.max(axis=0)
                view[plane] = best.reshape(view.shape[1:])
            elif name == "entropy":
                view[plane] = self._entropy(p).reshape(view.shape[1:])

    def _probabilities(self) -> FloatArray:
        values = self._values
        if self.kind == "probabilities":
            return np.clip(values, 0, 1)
        if self.temperature != 1:
            values = values / self.temperature
        if self.regions:
            p: FloatArray = 0.5 * (1 + np.tanh(0.5 * values))
            return p
        p = np.exp(values - values.max(axis=0))
        p /= p.sum(axis=0)
        return p

    def _entropy(self, p: FloatArray) -> FloatArray:
        def terms(q: FloatArray) -> FloatArray:
            part: FloatArray = -q * np.log(np.maximum(q, np.finfo(np.float32).tiny))
            return part

        if self.regions:
            found: FloatArray = (terms(p) + terms(1 - p)).max(axis=0) / np.float32(np.log(2))
            return found
        found = terms(p).sum(axis=0) / np.float32(np.log(max(self.classes, 2)))
        return found

    def _prepared(self, array: NDArray[Any], outside: float, per_class: bool) -> NDArray[Any]:
        expected = (self.classes, *self.placement.full) if per_class else self.placement.full
        allowed = array.dtype.kind == "f" or (per_class and array.dtype == np.uint8)
        if array.shape != expected or not allowed:
            raise ValueError(f"a map of shape {expected} was expected, got {array.dtype} {array.shape}")
        if self.placement.cut != self.placement.whole:
            array[...] = outside
            if per_class and not self.regions:
                array[0] = 255 if array.dtype == np.uint8 else 1
        return self._planes(array)

    def _planes(self, array: NDArray[Any]) -> NDArray[Any]:
        return self.placement.view(array)


def restore(
    slabs: Iterable[tuple[int, int, FloatArray]], placement: Placement, classes: int, **options: Any
) -> NDArray[Any]:
    """The label map of the file from all slabs of a prediction; `options` are those of `Restorer`."""
    restorer = Restorer(placement, classes, **options)
    for start, stop, values in slabs:
        restorer.add(start, stop, values)
    return restorer.finish()


def _taps(source: int, target: int) -> tuple[NDArray[np.int64], FloatArray]:
    """Places and weights ``(target, taps)`` that make each target from source voxels; one tap of 1 for equal sides."""
    if source == target:
        return np.arange(target)[:, None], np.ones((target, 1), dtype=np.float32)
    matrix = interpolation_matrix(source, target)
    used = matrix != 0
    first = used.argmax(axis=1)
    last = source - 1 - used[:, ::-1].argmax(axis=1)
    places = np.minimum(first[:, None] + np.arange(int((last - first).max()) + 1), source - 1)
    inside = first[:, None] + np.arange(places.shape[1]) <= last[:, None]
    weights = np.where(inside, np.take_along_axis(matrix, places, axis=1), np.float32(0))
    return places, weights.astype(np.float32)


@kernel
def _decide(ring, z, wz, y, wy, x, wx, codes, regions, threshold, chosen, values):  # type: ignore[no-untyped-def]
    classes, width = ring.shape[1], ring.shape[3]
    rows, columns = chosen.shape
    line = np.empty(width, dtype=np.float32)
    wide = np.empty(columns, dtype=np.float32)
    best = np.empty(columns, dtype=np.float32)
    same = x.shape[1] == 1 and width == columns
    for r in range(rows):
        out = chosen[r]
        for k in range(classes):
            line[:] = 0
            for a in range(len(z)):
                for b in range(y.shape[1]):
                    w = wz[a] * wy[r, b]
                    if w != 0:
                        own = ring[z[a], k, y[r, b]]
                        for c in range(width):
                            line[c] += w * own[c]
            if same:
                wide[:] = line
            else:
                for c in range(columns):
                    total = np.float32(0)
                    for t in range(x.shape[1]):
                        total += wx[c, t] * line[x[c, t]]
                    wide[c] = total
            if values.shape[0] > 0:
                values[k, r] = wide
            if k == 0:
                for c in range(columns):
                    best[c] = wide[c]
                    out[c] = codes[0] if not regions or wide[c] > threshold else 0
            elif regions:
                for c in range(columns):
                    if wide[c] > threshold:
                        out[c] = codes[k]
            else:
                for c in range(columns):
                    if wide[c] > best[c]:
                        best[c] = wide[c]
                        out[c] = codes[k]
