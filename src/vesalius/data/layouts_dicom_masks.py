"""DICOM trees that hold their truth: segmentation objects and structure sets beside the series they belong to."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from vesalius.core.errors import VesaliusError
from vesalius.core.labels import Labels
from vesalius.data.found import Found, some
from vesalius.data.mask_values import COLUMN, MaskValues
from vesalius.data.problem import Problem
from vesalius.data.truth_files import open_mask
from vesalius.io.dicom_header import items, plain, read_header
from vesalius.io.dicom_series import Series
from vesalius.io.open import open_series

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

TRUTHS = ("SEG", "RTSTRUCT")
# Where nothing else says whether structures overlap, only a look at every object does; of more, overlap is assumed.
_MOST_LOOKED_AT = 40


@dataclass(frozen=True)
class _Object:
    """A segmentation or structure set: its structures by number, and the series it belongs to."""

    path: str
    names: dict[int, str]
    series: Series
    apart: bool
    date: str


def with_truth(
    found: Found, series: Sequence[Series], images: Sequence[Series], root: Path, *, asked: bool
) -> Found | None:
    """The image series that have a truth in the same tree, as cases of segmentation; None if none has.

    A truth belongs to the series it references (PS3.3 C.8.20.2 and C.8.8.5), else to the one that holds the images it
    references, else to the only one in its frame of reference.

    Parameters
    ----------
    found
        One row per series of `images`, in their order.
    asked
        Whether the person asked for segmentation; else at least half of the patients must have a truth.
    """
    place = _Places(images)
    objects: list[_Object] = []
    lost: list[str] = []
    broken: list[str] = []
    for one in series:
        if one.modality not in TRUTHS:
            continue
        for file in one.files:
            path = file.relative_to(root).as_posix()
            try:
                header = read_header(file)
                names, owner = _structures(header), place.owner(header)
            except VesaliusError:
                broken.append(path)
                continue
            if owner is None or not names:
                lost.append(path)
                continue
            date = str(plain(header, "ContentDate") or plain(header, "StructureSetDate") or "")
            date += str(plain(header, "ContentTime") or plain(header, "StructureSetTime") or "")
            objects.append(_Object(path, names, owner, _apart(header), date))
    shown = {one.series.patient_id or one.series.uid for one in objects}
    if not objects or (not asked and 2 * len(shown) < len({one.patient_id or one.uid for one in images})):
        return None
    objects, replaced = _newest(objects)
    labels, problems = _labels(objects, root)
    problems += some(replaced, "truths outline what a newer one outlines as well", "the newest outline is used")
    problems += some(
        lost, "truths belong to no series of this folder", "they are left out; copy the images beside them"
    )
    problems += some(broken, "truths cannot be read", "they are left out; copy them again")
    frame, without = _rows(found.frame, images, objects, labels)
    problems += some(without, "series have no truth", "they are left out and can only be predicted on", "note")
    cases = int((frame["role"] == "image").sum())
    return replace(
        found,
        frame=frame,
        task="segment",
        labels=labels,
        reason=f"{found.reason}; {cases} of them have a segmentation or structure set",
        problems=(*found.problems, *problems),
    )


def _structures(header: Dataset) -> dict[int, str]:
    """Names by number; of a structure set those that enclose something."""
    if "SegmentSequence" in header:
        segments = items(header, "SegmentSequence")
        return {
            int(number): str(plain(item, "SegmentLabel") or f"segment {number}").strip()
            for item in segments
            if (number := plain(item, "SegmentNumber")) is not None
        }
    drawn = {
        int(number)
        for item in items(header, "ROIContourSequence")
        if (number := plain(item, "ReferencedROINumber")) is not None
        and any(
            str(plain(ring, "ContourGeometricType")).startswith("CLOSED") for ring in items(item, "ContourSequence")
        )
    }
    return {
        int(number): str(plain(item, "ROIName") or f"region {number}").strip()
        for item in items(header, "StructureSetROISequence")
        if (number := plain(item, "ROINumber")) is not None and int(number) in drawn
    }


def _apart(header: Dataset) -> bool:
    """Whether the object itself says that no voxel belongs to two of its structures."""
    if "SegmentSequence" not in header:
        return len(items(header, "StructureSetROISequence")) == 1
    kind = str(plain(header, "SegmentationType") or "").upper()
    one = len(items(header, "SegmentSequence")) == 1
    return kind == "LABELMAP" or one or str(plain(header, "SegmentsOverlap") or "").upper() == "NO"


class _Places:
    """Which image series an object belongs to."""

    def __init__(self, images: Sequence[Series]) -> None:
        self.images = images
        self.by_uid: dict[str, list[Series]] = defaultdict(list)
        for one in images:
            self.by_uid[one.uid].append(one)
        self._instances: dict[str, Series] | None = None
        self._frames: dict[str, list[Series]] | None = None

    def owner(self, header: Dataset) -> Series | None:
        """The series, or None."""
        series, instances = _references(header)
        named = [one for uid in series for one in self.by_uid.get(uid, ())]
        if len(named) == 1:
            return named[0]
        votes = Counter(id(self._by_instance[uid]) for uid in instances if uid in self._by_instance)
        if votes:
            best = votes.most_common(1)[0][0]
            return next(one for one in self.images if id(one) == best)
        if named:  # several parts of one UID: the one with most slices is the volume that was outlined
            return max(named, key=lambda one: len(one.files))
        frame = str(plain(header, "FrameOfReferenceUID") or "")
        for item in items(header, "ReferencedFrameOfReferenceSequence"):
            frame = frame or str(plain(item, "FrameOfReferenceUID") or "")
        same = self._by_frame.get(frame, []) if frame else []
        return same[0] if len(same) == 1 else None

    @property
    def _by_instance(self) -> dict[str, Series]:
        if self._instances is None:
            self._instances = {_uid(file, "SOPInstanceUID"): one for one in self.images for file in one.files}
        return self._instances

    @property
    def _by_frame(self) -> dict[str, list[Series]]:
        if self._frames is None:
            self._frames = defaultdict(list)
            for one in self.images:
                self._frames[_uid(one.files[0], "FrameOfReferenceUID")].append(one)
        return self._frames


def _uid(file: Path, keyword: str) -> str:
    """One UID of a file, "" where it has none."""
    return str(plain(read_header(file, ("SOPInstanceUID", "SOPClassUID", keyword)), keyword) or "")


def _references(header: Dataset) -> tuple[list[str], list[str]]:
    """UIDs of the series and of the instances that an object references."""
    series, instances = [], []
    for one in items(header, "ReferencedSeriesSequence"):
        series.append(str(plain(one, "SeriesInstanceUID") or ""))
        instances += [str(plain(i, "ReferencedSOPInstanceUID") or "") for i in items(one, "ReferencedInstanceSequence")]
    for frame in items(header, "ReferencedFrameOfReferenceSequence"):
        for study in items(frame, "RTReferencedStudySequence"):
            for one in items(study, "RTReferencedSeriesSequence"):
                series.append(str(plain(one, "SeriesInstanceUID") or ""))
                images = items(one, "ContourImageSequence")
                instances += [str(plain(i, "ReferencedSOPInstanceUID") or "") for i in images]
    for one in items(header, "SourceImageSequence"):
        instances.append(str(plain(one, "ReferencedSOPInstanceUID") or ""))
    for group in (*items(header, "SharedFunctionalGroupsSequence"), *items(header, "PerFrameFunctionalGroupsSequence")):
        for derived in items(group, "DerivationImageSequence"):
            for one in items(derived, "SourceImageSequence"):
                instances.append(str(plain(one, "ReferencedSOPInstanceUID") or ""))
    return list(dict.fromkeys(filter(None, series))), list(dict.fromkeys(filter(None, instances)))


def _newest(objects: Sequence[_Object]) -> tuple[list[_Object], list[str]]:
    """Of several outlines of one structure in one series the newest; and the objects that are not used any more."""
    taken: set[tuple[int, str]] = set()
    kept, replaced = [], []
    for one in sorted(objects, key=lambda one: (one.date, one.path), reverse=True):
        names = {number: name for number, name in one.names.items() if (id(one.series), name) not in taken}
        if names:
            kept.append(replace(one, names=names))
            taken |= {(id(one.series), name) for name in names.values()}
        if len(names) < len(one.names):
            replaced.append(one.path)
    return sorted(kept, key=lambda one: one.path), sorted(replaced)


def _labels(objects: Sequence[_Object], root: Path) -> tuple[Labels, list[Problem]]:
    """One class per name; they may hold together unless it is known that they never do."""
    cases = Counter(name for one in objects for name in set(one.names.values()))
    names = tuple(sorted(cases, key=lambda name: (-cases[name], name)))
    series = len({id(one.series) for one in objects})
    rare = [f"{name!r} ({count})" for name, count in cases.items() if count < series]
    shown = ", ".join(map(repr, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    problems = [Problem("note", "", f"the names of segments and regions are the classes: {shown}")]
    if rare:
        text = (
            f"{len(rare)} structures are not in the truth of all {series} series, first {rare[0]}; they count as "
            "absent there; rename them where they mean the same"
        )
        problems.append(Problem("warning", "", text))
    several = Counter(id(one.series) for one in objects)
    together = max(several.values()) > 1 and len(names) > 1
    repeated = any(len(set(one.names.values())) < len(one.names) for one in objects)
    doubtful = [one for one in objects if not one.apart]
    if together:
        why = "several objects outline one series"
    elif len(doubtful) > _MOST_LOOKED_AT:
        why = f"only a look at all {len(doubtful)} objects would tell"
    else:
        first = next((one for one in doubtful if _overlaps(one, root)), None)
        why = f"they do in {first.path}" if first is not None else ""
    if (why and len(names) > 1) or len(names) < 1:
        problems.append(Problem("note", "", f"structures may overlap: {why}"))
        return Labels(names, multilabel=True), problems
    if repeated:
        problems.append(Problem("note", "", "segments of the same name in one object are joined"))
    return Labels(("background", *(name if name != "background" else "background segment" for name in names))), problems


def _overlaps(one: _Object, root: Path) -> bool:
    """Whether two structures of an object share a voxel; assumed of what cannot be opened."""
    two = Labels(("background", "foreground"))
    try:
        return open_mask(root / one.path, open_series(one.series).grid, two).overlap
    except VesaliusError:
        return True


def _rows(
    frame: pd.DataFrame, images: Sequence[Series], objects: Sequence[_Object], labels: Labels
) -> tuple[pd.DataFrame, list[str]]:
    """Rows of the images that have a truth, each followed by its masks; and the images that have none."""
    of: dict[int, list[_Object]] = defaultdict(list)
    for truth in objects:
        of[id(truth.series)].append(truth)
    first = 0 if labels.multilabel else 1
    names = labels.names[first:]
    place = {name: index + first for index, name in enumerate(names)}
    place.setdefault("background", place.get("background segment", 0))
    rows: list[dict[str, Any]] = []
    without: list[str] = []
    for row, one in enumerate(images):
        truths = of.get(id(one), [])
        if not truths:
            without.append(str(frame["path"].iloc[row]))
            continue
        image = {str(key): value for key, value in frame.iloc[row].to_dict().items()}
        rows.append({**image, "role": "image", COLUMN: ""})
        for number, truth in enumerate(truths):
            meaning = MaskValues({value: place[name] for value, name in truth.names.items()})
            role = f"mask_{number}" if number else "mask"
            rows.append({**image, "role": role, "path": truth.path, COLUMN: str(meaning)})
    return pd.DataFrame(rows), without
