"""Stored values to values with a meaning: Modality LUT, HU, dose, SUV, and MONOCHROME1 turned round.

Sources: PS3.3 C.11.1 (Modality LUT), C.8.2.1 (CT), C.8.8.3 (RT Dose), C.8.9.1 (PET Series); the SUV follows the QIBA
FDG-PET/CT profile (body weight). Window, padding and grey limits are carried along, so that they stay true.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vesalius.core.image import Act, Note, Unit
from vesalius.io.dicom_header import items, number, numbers, plain

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_DOSE = "1.2.840.10008.5.1.4.1.1.481.2"


@dataclass(frozen=True, eq=False)
class Meaning:
    """How the stored values of one frame become values.

    Parameters
    ----------
    slope, intercept
        ``value = stored * slope + intercept``.
    table
        Modality LUT as ``(first stored value, entries)``; it takes the place of slope and intercept.
    unit
        What the values are.
    inverted
        Low and high stored value between which a MONOCHROME1 image is turned round; None to leave it.
    notes
        What a person should know about it.
    """

    slope: float = 1.0
    intercept: float = 0.0
    table: tuple[int, NDArray[Any]] | None = None
    unit: Unit = Unit.INTENSITY
    inverted: tuple[int, int] | None = None
    notes: tuple[Note, ...] = field(default=())

    @property
    def whole(self) -> bool:
        """Whether whole stored numbers stay whole."""
        return self.table is None and float(self.slope).is_integer() and float(self.intercept).is_integer()

    @property
    def plain(self) -> bool:
        """Whether values are the stored ones."""
        return self.table is None and self.slope == 1 and self.intercept == 0 and self.inverted is None

    def apply(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Values of `stored` as float64 (int64 where whole numbers stay whole), any shape."""
        if self.table is not None:
            first, entries = self.table
            values = entries[np.clip(stored.astype(np.int64) - first, 0, len(entries) - 1)].astype(np.int64)
            return int(entries.min()) + int(entries.max()) - values if self.inverted is not None else values
        if self.inverted is not None:
            stored = sum(self.inverted) - stored.astype(np.int64)
        if self.whole:
            return stored.astype(np.int64) * int(self.slope) + int(self.intercept)
        return stored.astype(np.float64) * self.slope + self.intercept

    def turned(self, value: float) -> float:
        """A level on the scale of values before the turning of MONOCHROME1, on the scale after it."""
        if self.inverted is None:
            return value
        if self.table is not None:
            return float(self.table[1].min()) + float(self.table[1].max()) - value
        return sum(self.inverted) * self.slope + 2 * self.intercept - value


def meaning(dataset: Dataset, shared: Dataset | None = None, frame: Dataset | None = None) -> Meaning:
    """The `Meaning` of a data set, or of one frame of it whose functional groups are `shared` and `frame`."""
    notes: list[Note] = []
    transform = _group(frame, shared, "PixelValueTransformationSequence") or dataset
    slope, intercept = number(transform, "RescaleSlope"), number(transform, "RescaleIntercept")
    table = _modality_table(dataset)
    if str(dataset.get("SOPClassUID", "")) == _DOSE:
        return _dose(dataset)
    if slope == 0:
        notes.append(Note(Act.NOTED, "Rescale Slope 0 would erase the image: taken as 1"))
        slope = 1.0
    # A table and a slope together contradict C.11.1; the slope then wins, as it does for pydicom when both are there.
    if slope is not None or intercept is not None:
        table = None
    rescaled = slope is not None or intercept is not None
    slope, intercept = slope if slope is not None else 1.0, intercept if intercept is not None else 0.0
    unit = _unit(dataset, transform, rescaled)
    if dataset.get("Modality") == "PT":
        slope, intercept, unit, more = _suv(dataset, slope, intercept)
        notes += more
    inverted = None
    if str(dataset.get("PhotometricInterpretation", "")).strip() == "MONOCHROME1":
        if unit is Unit.INTENSITY and "BitsStored" in dataset:  # float pixels have none, and no limit to turn at
            inverted = stored_range(dataset)
            notes.append(Note(Act.REPAIRED, "MONOCHROME1: turned round, so that larger values are brighter"))
        else:
            notes.append(Note(Act.NOTED, f"MONOCHROME1 with values in {unit}: left as they are"))
    return Meaning(slope, intercept, table, unit, inverted, tuple(notes))


def stored_range(dataset: Dataset) -> tuple[int, int]:
    """Lowest and highest value that Bits Stored and Pixel Representation allow."""
    bits = int(dataset.get("BitsStored") or dataset.get("BitsAllocated") or 16)
    if int(dataset.get("PixelRepresentation") or 0) == 1:
        return -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return 0, (1 << bits) - 1


def _unit(dataset: Dataset, transform: Dataset, rescaled: bool) -> Unit:
    """HU for rescaled CT: C.8.2.1.1.4 demands it of originals that are no localizer, else Rescale Type says so."""
    if dataset.get("Modality") != "CT" or not rescaled:
        return Unit.INTENSITY
    kind = str(plain(transform, "RescaleType") or "").upper()
    if kind:
        return Unit.HU if kind.startswith("HU") else Unit.INTENSITY
    image_type = plain(dataset, "ImageType") or []
    localizer = isinstance(image_type, list) and "LOCALIZER" in image_type
    return Unit.INTENSITY if localizer else Unit.HU


def _dose(dataset: Dataset) -> Meaning:
    scaling = number(dataset, "DoseGridScaling")
    unit = str(plain(dataset, "DoseUnits") or "")
    if scaling is None:
        return Meaning(notes=(Note(Act.NOTED, "RT dose without Dose Grid Scaling: stored values, no dose"),))
    if unit != "GY":
        return Meaning(scaling, notes=(Note(Act.NOTED, f"dose in units {unit or 'not stated'}, not Gy"),))
    return Meaning(scaling, unit=Unit.DOSE_GY)


def _modality_table(dataset: Dataset) -> tuple[int, NDArray[Any]] | None:
    sequence = items(dataset, "ModalityLUTSequence")
    return lookup_table(sequence[0], dataset)[:2] if sequence else None


def lookup_table(item: Dataset, dataset: Dataset) -> tuple[int, NDArray[Any], int]:
    """(first stored value, entries, bits per entry) of a Modality or VOI LUT item (PS3.3 C.11.1.1)."""
    count, first, bits = (int(value) for value in item.LUTDescriptor)
    count = count or 1 << 16
    if int(dataset.get("PixelRepresentation") or 0) == 1 and first >= 1 << 15:
        first -= 1 << 16  # the same 16 bits, read as unsigned though the pixels are signed
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if dataset.original_encoding[1] else ">"
        wide = len(data) >= 2 * count
        entries = np.frombuffer(data, dtype=np.dtype(order + "u2") if wide else np.uint8)
    else:
        entries = np.atleast_1d(np.asarray(data, dtype=np.int64))
    if len(entries) < count:
        raise ValueError(f"lookup table of {len(entries)} entries, {count} were announced")
    return first, entries[:count].astype(np.uint16), bits


def _suv(dataset: Dataset, slope: float, intercept: float) -> tuple[float, float, Unit, list[Note]]:
    """Scale to body-weight SUV where the header holds all it takes, else the values as they are with the reason."""
    units = str(plain(dataset, "Units") or "")
    if units == "GML":
        return slope, intercept, Unit.SUV, []
    if units != "BQML":
        return slope, intercept, Unit.INTENSITY, [Note(Act.NOTED, f"PET in units {units or 'not stated'}: no SUV")]
    factor, reason = _suv_factor(dataset)
    if factor is None:
        return slope, intercept, Unit.INTENSITY, [Note(Act.NOTED, f"PET in Bq/ml: no SUV, {reason}")]
    note = Note(Act.NOTED, f"SUV by body weight: Bq/ml times {factor:.6g}")
    return slope * factor, intercept * factor, Unit.SUV, [note]


def _suv_factor(dataset: Dataset) -> tuple[float | None, str]:
    drug = items(dataset, "RadiopharmaceuticalInformationSequence")
    weight = number(dataset, "PatientWeight")
    dose = number(drug[0], "RadionuclideTotalDose") if drug else None
    half_life = number(drug[0], "RadionuclideHalfLife") if drug else None
    correction = str(plain(dataset, "DecayCorrection") or "")
    if not weight or weight <= 0:
        return None, "the header has no Patient Weight"
    if not dose or not half_life or dose <= 0 or half_life <= 0:
        return None, "the header has no Radionuclide Total Dose or Half Life"
    if correction == "ADMIN":
        return weight * 1000 / dose, ""
    if correction != "START":
        return None, f"Decay Correction is {correction or 'absent'}"
    start, injected = _scan_start(dataset), _injection(dataset, drug[0])
    if start is None or injected is None:
        return None, "the header has no time of injection or of the scan"
    if injected > start:
        injected -= timedelta(days=1)  # only a time of day is known, and it was before midnight
    elapsed = (start - injected).total_seconds()
    if not 0 <= elapsed < 10 * half_life:
        return None, f"{elapsed:.0f} s from injection to scan cannot be right"
    return weight * 1000 / (dose * 2 ** (-elapsed / half_life)), ""


def _scan_start(dataset: Dataset) -> datetime | None:
    """Start of the series, or of the acquisition if a later processing step has overwritten the series time."""
    series = _moment(plain(dataset, "SeriesDate"), plain(dataset, "SeriesTime"))
    acquired = _moment(plain(dataset, "AcquisitionDate"), plain(dataset, "AcquisitionTime"))
    if series is not None and acquired is not None and series > acquired:
        return None  # the earliest acquisition of the series would be needed, which one slice does not know
    return series


def _injection(dataset: Dataset, drug: Dataset) -> datetime | None:
    whole = str(plain(drug, "RadiopharmaceuticalStartDateTime") or "")
    if len(whole) >= 14:
        return _moment(whole[:8], whole[8:].split("+", maxsplit=1)[0].split("-", maxsplit=1)[0])
    return _moment(plain(dataset, "SeriesDate"), plain(drug, "RadiopharmaceuticalStartTime"))


def _moment(date: Any, time: Any) -> datetime | None:
    text = f"{date or ''}{str(time or '').split('.')[0]}"
    try:
        return datetime.strptime(text, "%Y%m%d%H%M%S")
    except ValueError:
        return None


def _group(frame: Dataset | None, shared: Dataset | None, keyword: str) -> Dataset | None:
    """The first item of a functional group: the frame's own, else the shared one (PS3.3 C.7.6.16.1)."""
    for source in (frame, shared):
        found: list[Dataset] = items(source, keyword)
        if found:
            return found[0]
    return None


def result_type(meanings: list[Meaning], stored: np.dtype[Any], ranges: tuple[int, int]) -> np.dtype[Any]:
    """The type that holds the values of all frames: native if nothing changes, the smallest signed whole type that
    the bits stored can need, or float32 (float64 for more than 24 bits)."""
    if all(one.plain for one in meanings):
        return stored
    low, high = ranges
    if all(one.table is not None for one in meanings):
        return np.dtype(np.uint16)
    if np.issubdtype(stored, np.floating):
        return stored
    if all(one.whole for one in meanings):
        ends = [one.slope * end + one.intercept for one in meanings for end in (low, high)]
        if all(one.slope == 1 and one.intercept == 0 for one in meanings):
            return stored  # only turned round
        for size in (np.int16, np.int32):
            if np.iinfo(size).min <= min(ends) and max(ends) <= np.iinfo(size).max:
                return np.dtype(size)
        return np.dtype(np.int64)
    return np.dtype(np.float64 if high - low >= 1 << 24 and meanings[0].unit is not Unit.DOSE_GY else np.float32)


def fitted(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """`values` in `dtype`.

    Raises
    ------
    ValueError
        If a whole number does not fit, which happens where pixels are larger than Bits Stored announces.
    """
    if np.issubdtype(dtype, np.integer) and values.size:
        low, high = values.min(), values.max()
        if low < np.iinfo(dtype).min or high > np.iinfo(dtype).max:
            raise ValueError(f"pixel values from {low} to {high} are beyond what Bits Stored allows")
    return values.astype(dtype)


def narrowed(values: NDArray[Any]) -> NDArray[Any]:
    """int32 and int64 values as int16 where they fit: HU of 16 bits stored need 17 bits only on paper."""
    if values.dtype not in (np.int32, np.int64) or values.size == 0:
        return values
    low, high = int(values.min()), int(values.max())
    for size in (np.int16, np.int32):
        if np.iinfo(size).min <= low and high <= np.iinfo(size).max:
            return values.astype(size)
    return values


def value_meta(
    dataset: Dataset, how: Meaning, shared: Dataset | None = None, frame: Dataset | None = None
) -> dict[str, Any]:
    """Window, VOI LUT and padding for `Image.meta`, on the scale of the values that the image holds."""
    source = _group(frame, shared, "FrameVOILUTSequence") or dataset
    meta: dict[str, Any] = {}
    centres, widths = numbers(source, "WindowCenter"), numbers(source, "WindowWidth")
    if centres and widths:
        function = str(plain(source, "VOILUTFunction") or "LINEAR").upper()
        # The linear function of C.11.2.1.2.1 is centred half a grey step below its centre.
        shift = 1.0 if how.inverted is not None and function == "LINEAR" else 0.0
        count = min(len(centres), len(widths))
        turned = [how.turned(centre) + shift for centre in centres[:count]]
        meta["window_center"] = turned[0] if count == 1 else turned
        meta["window_width"] = widths[0] if count == 1 else widths[:count]
        meta["voi_function"] = function
    tables = items(source, "VOILUTSequence")
    if tables:
        first, entries, bits = lookup_table(tables[0], dataset)
        meta["voi_lut"] = [int(entry) for entry in entries]
        meta["voi_lut_first"] = first
        meta["voi_lut_bits"] = bits
        if how.inverted is not None:
            meta["voi_lut_turned"] = how.turned(0.0)
    padding = numbers(dataset, "PixelPaddingValue")
    if padding:
        meta["pixel_padding_value"] = float(how.apply(np.array([padding[0]]).astype(np.int64))[0])
    return meta
