"""The door: whatever the file is, one `Image` comes in, or one line says why not.

Readers of the formats are imported when a file of theirs comes, so that a PNG does not load DICOM.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vesalius.core.errors import ResourceError, UnreadableFile, UsageError, VesaliusError
from vesalius.core.image import Image
from vesalius.core.progress import Progress
from vesalius.io.limits import ReadLimits, active_limits, check_file_bytes
from vesalius.io.sniff import Kind, sniff

if TYPE_CHECKING:
    from vesalius.io.dicom_series import Series

_ARRAYS = (Kind.NPY, Kind.NPZ)
_WHAT_INSTEAD = {
    Kind.VIDEO: "open it as a clip",
    Kind.GIF: "open it as a clip",
    Kind.ZIP: "unpack it first",
    Kind.GZIP: "unpack it first",
    Kind.TEXT: "give the image itself",
    Kind.EMPTY: "get the file again from its source",
}


def open_image(path: str | Path, *, limits: ReadLimits | None = None, workers: int | None = None) -> Image:
    """The image at `path`.

    Parameters
    ----------
    path
        A file; a folder (or DICOMDIR) with one DICOM series; ``folder#uid`` for one of several series, ``#uid/2`` for
        the second part of a mixed one; ``file.npz#key/17`` for one item of an array. A file whose name really holds
        ``#`` is opened as it is.
    limits
        Those of the surrounding `read_limits` if None.
    workers
        Threads that decode; as many as cores if None.

    Returns
    -------
    ``(C, Y, X)`` or ``(C, Z, Y, X)`` on a `Grid` in LPS mm where the file has one.

    Raises
    ------
    UnreadableFile, GeometryError, LimitError
        With one line: the file, what was found, what was expected, what to do.
    UsageError
        If there is nothing at `path`, or a folder holds several series.
    """
    limits = active_limits(limits)
    place, member = _split(str(path))
    if not _exists(place):
        raise UsageError(f"{path}: there is no such file or folder; check the path")
    try:
        kind = sniff(place)
        if place.is_file():
            check_file_bytes(place, limits)
        return _dispatch(place, member, kind, limits, workers)
    except VesaliusError:
        raise
    except MemoryError as error:
        raise ResourceError(f"{path}: not enough memory to open it; read a smaller part or free some memory") from error
    except Exception as error:
        # A reader that met something it did not foresee still must not hand a library's error to a person.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnreadableFile(
            path,
            found=f"reading failed: {reason}",
            expected="an intact image file",
            do="get the file again from its source",
        ) from error


def open_series(
    files: Series | Sequence[str | Path], *, limits: ReadLimits | None = None, workers: int | None = None
) -> Image:
    """One image from the DICOM files of one series, or from one item of `list_series`; ordered by position."""
    from vesalius.io.dicom_volume import read_series

    return read_series(files, limits, workers=workers)


def list_series(folder: str | Path, progress: Progress | None = None) -> list[Series]:
    """The series of a DICOM tree; see `vesalius.io.dicom_series.list_series`."""
    from vesalius.io import dicom_series

    found: list[Series] = dicom_series.list_series(folder, progress)
    return found


def _exists(place: Path) -> bool:
    try:
        return place.exists()
    except PermissionError:  # something is there; opening it gives the better message
        return True
    except OSError:  # a name longer than the file system takes
        return False


def _split(path: str) -> tuple[Path, str]:
    whole = Path(path)
    if "#" not in path or _exists(whole):
        return whole, ""
    # A folder may have # in its own name: the member starts at the first # before which something exists.
    for at in (index for index, letter in enumerate(path) if letter == "#"):
        if _exists(Path(path[:at])):
            return Path(path[:at]), path[at + 1 :]
    place, _, member = path.partition("#")
    return Path(place), member


def _dispatch(path: Path, member: str, kind: Kind, limits: ReadLimits, workers: int | None) -> Image:
    if kind in (Kind.DICOM_FOLDER, Kind.DICOMDIR):
        return _open_folder(path, member, limits, workers)
    if kind in _ARRAYS:
        from vesalius.io.arrays import read_array

        return read_array(f"{path}#{member}" if member else str(path), limits)
    if member:
        raise UsageError(f"{path}#{member}: {kind} files have no members; leave #{member} out")
    if kind is Kind.DICOM:
        from vesalius.core.environment import available_cores
        from vesalius.io.dicom import read_dicom

        return read_dicom(path, limits, workers=workers or available_cores())
    if kind is Kind.NIFTI:
        from vesalius.io.nifti import read_nifti

        return read_nifti(path, limits)
    if kind in (Kind.NRRD, Kind.METAIMAGE):
        from vesalius.io.itk import read_itk

        return read_itk(path, limits)
    if kind in (Kind.PNG, Kind.JPEG, Kind.TIFF, Kind.BMP, Kind.JPEG2000):
        from vesalius.io.raster import read_raster

        return read_raster(path, limits)
    if kind is Kind.FOLDER:
        raise UsageError(f"{path}: a folder without DICOM files; give one image file")
    raise UnreadableFile(
        path,
        found="unknown content" if kind is Kind.UNKNOWN else f"content of kind {kind}",
        expected="DICOM, NIfTI, NRRD, MetaImage, PNG, JPEG, TIFF, npy or npz",
        do=_WHAT_INSTEAD.get(kind, "convert it to one of these"),
    )


def _open_folder(path: Path, member: str, limits: ReadLimits, workers: int | None) -> Image:
    from vesalius.core.progress import Silent
    from vesalius.io import dicom_series

    said = Silent()
    found = dicom_series.list_series(path, said)
    images = [series for series in found if series.has_pixels]
    if member:
        images = [series for series in found if member in (series.key, series.uid)]
        if not images:
            keys = ", ".join(series.key for series in found[:8])
            raise UsageError(f"{path}#{member}: no such series; the folder holds {keys}")
    if not images:
        reason = said.warnings[0] if said.warnings else "only objects without pixels, such as reports or contours"
        raise UnreadableFile(path, found=f"no DICOM image in it ({reason})", expected="one series of images")
    if len(images) > 1:
        named = "; ".join(f"{series} = #{series.key}" for series in images[:6])
        more = f"; and {len(images) - 6} more" if len(images) > 6 else ""
        raise UsageError(
            f"{path}: holds {len(images)} series, expected one: {named}{more}; "
            f"pick one by writing {path}#{images[0].key}"
        )
    from vesalius.io.dicom_volume import read_series

    return read_series(images[0], limits, workers=workers)
