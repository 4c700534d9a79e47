"""Surfaces in space as a picture: a small renderer in software, without a graphics card or a display.

Orthographic views in patient LPS mm: in ``anterior`` the reader faces the patient, so the patient's left is on the
right of the picture. Opaque structures share a depth buffer (twice as fine as the picture), transparent ones have
their own; visible pixels are shaded by a light from above left with a softer one against it, darkened in hollows by an
unsharp mask of the depth (Luft, Colditz and Deussen, SIGGRAPH 2006), and laid over each other from back to front.
Transparent structures show their outer surface only, denser towards the rim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vesalius.core.geometry import FloatArray
from vesalius.measure.compiled import in_threads, kernel

Picture = NDArray[np.uint8]
Mesh = tuple[ArrayLike, ArrayLike, Any]
_Shape = tuple[FloatArray, NDArray[np.int64], FloatArray, float]  # vertices, faces, colour per vertex, opacity

# Direction of sight and direction up in LPS; what is right of the picture follows.
_OBLIQUE = (-0.55, 0.77, -0.33)
VIEWS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "anterior": ((0, 1, 0), (0, 0, 1)),
    "posterior": ((0, -1, 0), (0, 0, 1)),
    "left": ((-1, 0, 0), (0, 0, 1)),
    "right": ((1, 0, 0), (0, 0, 1)),
    "superior": ((0, 0, -1), (0, -1, 0)),
    "inferior": ((0, 0, 1), (0, -1, 0)),
    "oblique": (_OBLIQUE, (0, 0, 1)),
}
_LETTERS = (("R", "L"), ("A", "P"), ("I", "S"))
_FINE = 2  # samples per pixel and axis

# Lights in the camera's frame (right, up, towards the reader) and their strength.
_KEY, _FILL, _RIM = np.array([-0.45, 0.65, 0.62]), np.array([0.7, -0.15, 0.5]), np.array([0.25, 0.6, -0.75])
_CALIBRE = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


@dataclass(frozen=True, eq=False)
class _Layer:
    """What is in front at each pixel: depth ``(H, W)`` (inf where nothing is), normal and colour ``(H, W, 6)``."""

    depth: NDArray[np.float32]
    values: NDArray[np.float32]
    opacity: float


def render(
    meshes: Sequence[Mesh],
    size: tuple[int, int] = (480, 480),
    view: str | tuple[ArrayLike, ArrayLike] = "anterior",
    *,
    background: str | Sequence[float] = "white",
    mm_per_pixel: float | None = None,
    centre_mm: ArrayLike | None = None,
    letters: bool = False,
    scale_bar: bool = False,
    occlusion: float = 1.0,
    smooth: int = 4,
) -> Picture:
    """A picture of surfaces.

    Parameters
    ----------
    meshes
        ``(vertices, faces, colour)`` each: ``(V, 3)`` patient LPS mm, ``(F, 3)`` vertex numbers, and a colour: three
        or four numbers 0..1 (the fourth is the opacity), or ``(V, 3)`` for a colour per vertex. Either sense of the
        faces will do.
    size
        Width and height in pixels.
    view
        One of `VIEWS`, or the direction of sight and the direction up, both in LPS.
    background
        ``"white"``, ``"black"``, ``"dark"`` or three numbers 0..1.
    mm_per_pixel, centre_mm
        Scale, and the LPS point in the middle of the picture; None fits all meshes in.
    letters, scale_bar
        Whether to write which sides are left, anterior, superior..., and to draw a bar of a round length.
    occlusion, smooth
        How much hollows are darkened, 0 for not at all; how often normals are averaged over neighbouring vertices,
        which hides the staircase of voxels.

    Returns
    -------
    picture
        ``(H, W, 3)`` uint8.

    Raises
    ------
    ValueError
        For an unknown view, an impossible size, or meshes that are not finite or refer to vertices they lack.
    """
    width, height = _checked_size(size)
    frame = camera(view)
    given = [mesh for mesh in map(_checked, meshes) if len(mesh[1])]
    paper = _paper(background)
    scale, middle = _fit([mesh[0] for mesh in given], frame, (width, height), mm_per_pixel, centre_mm)
    fine = (height * _FINE, width * _FINE)
    canvas = np.broadcast_to(paper.astype(np.float32), (*fine, 3)).copy()
    if given:
        _compose(canvas, _layers(given, frame, scale / _FINE, middle, fine, smooth), scale / _FINE, occlusion)
    picture = canvas.reshape(height, _FINE, width, _FINE, 3).mean((1, 3))
    out = np.clip(np.rint(picture * 255), 0, 255).astype(np.uint8)
    ink = (30, 30, 30) if paper.mean() > 0.5 else (225, 225, 225)
    out = _with_letters(out, frame, ink) if letters else out
    return _with_bar(out, scale, ink) if scale_bar else out


def camera(view: str | tuple[ArrayLike, ArrayLike]) -> FloatArray:
    """``(3, 3)``: rows are the directions right, up and away from the reader in LPS; raises ValueError if unknown."""
    if isinstance(view, str):
        if view not in VIEWS:
            raise ValueError(f"view must be one of {', '.join(VIEWS)}, got {view!r}")
        view = VIEWS[view]
    away, up = (np.asarray(one, dtype=np.float64) for one in view)
    right = np.cross(away, up)
    if not float(np.linalg.norm(right)) > 1e-6 * float(np.linalg.norm(away)) * float(np.linalg.norm(up)):
        raise ValueError(f"direction of sight {away} and direction up {up} must differ and not be zero")
    rows = np.stack([right, np.cross(right, away), away])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def tube(
    points: ArrayLike, radius: ArrayLike, colour: ArrayLike = (0.8, 0.1, 0.1), *, sides: int = 16
) -> tuple[FloatArray, NDArray[np.int64], FloatArray]:
    """A mesh for `render` around a polyline, with round ends.

    Parameters
    ----------
    points
        ``(N, 3)`` patient LPS mm, N at least 1; repeated points are skipped.
    radius
        ``(N,)`` or one number, in mm.
    colour
        Three numbers, or ``(N, 3)``, e.g. from `calibre_colours`.
    """
    line = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    if not len(line):
        raise ValueError("a tube needs at least one point")
    thick = np.broadcast_to(np.asarray(radius, dtype=np.float64), len(line))
    paint = np.broadcast_to(np.asarray(colour, dtype=np.float64), (len(line), 3))
    moved = np.r_[True, np.linalg.norm(np.diff(line, axis=0), axis=1) > 1e-9]
    line, thick, paint = line[moved], thick[moved], paint[moved]
    along = np.gradient(line, axis=0) if len(line) > 1 else np.array([[0.0, 0.0, 1.0]])
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-12)
    # Half a ball at each end: rings that shrink to a point.
    tilt = np.linspace(np.pi / 2, 0, 6)[:-1]
    ends = []
    for end, sign in ((0, -1.0), (-1, 1.0)):
        where = line[end] + sign * np.sin(tilt)[:, None] * thick[end] * along[end]
        ends.append((where, np.cos(tilt) * thick[end]))
    rings = np.concatenate([ends[0][0], line, ends[1][0][::-1]])
    wide = np.concatenate([ends[0][1], thick, ends[1][1][::-1]])
    source = np.r_[[0] * len(tilt), np.arange(len(line)), [len(line) - 1] * len(tilt)]
    side = _frames(along)[source]
    turn = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    other = np.cross(along[source], side)
    around = np.cos(turn)[None, :, None] * side[:, None] + np.sin(turn)[None, :, None] * other[:, None]
    vertices = (rings[:, None] + wide[:, None, None] * around).reshape(-1, 3)
    first = (np.arange(len(rings) - 1)[:, None] * sides + np.arange(sides)).ravel()
    after = (np.arange(len(rings) - 1)[:, None] * sides + (np.arange(sides) + 1) % sides).ravel()
    faces = np.concatenate(
        [np.stack([first, after, first + sides], 1), np.stack([after, after + sides, first + sides], 1)]
    )
    return vertices, faces, np.repeat(paint[source], sides, axis=0)


def calibre_colours(radius: ArrayLike, low: float | None = None, high: float | None = None) -> FloatArray:
    """``(N, 3)`` colours 0..1 for calibres ``(N,)``, from violet (`low`, the smallest) to yellow (`high`)."""
    values = np.asarray(radius, dtype=np.float64)
    bottom = float(values.min(initial=np.inf)) if low is None else low
    top = float(values.max(initial=-np.inf)) if high is None else high
    place = np.clip((values - bottom) / (top - bottom), 0, 1) if top > bottom else np.full(values.shape, 0.5)
    stops = np.array(_CALIBRE) / 255
    return np.stack([np.interp(place, np.linspace(0, 1, len(stops)), stops[:, k]) for k in range(3)], axis=-1)


def _frames(along: FloatArray) -> FloatArray:
    """A direction across the line at each point that turns as little as possible from one to the next."""
    side = np.zeros_like(along)
    side[0] = np.cross(along[0], np.eye(3)[int(np.argmin(np.abs(along[0])))])
    for k in range(len(along)):
        if k:
            side[k] = side[k - 1] - along[k] * (side[k - 1] @ along[k])
            if np.linalg.norm(side[k]) < 1e-6:
                side[k] = np.cross(along[k], np.eye(3)[int(np.argmin(np.abs(along[k])))])
        side[k] /= np.linalg.norm(side[k])
    return side


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    width, height = (int(side) for side in size)
    if min(width, height) < 1 or max(width, height) > 8192:
        raise ValueError(f"size must be 1 to 8192 pixels each way, got {tuple(size)}")
    return width, height


def _checked(mesh: Mesh) -> _Shape:
    """Vertices, faces, colour per vertex and opacity."""
    vertices = np.asarray(mesh[0], dtype=np.float64)
    faces = np.asarray(mesh[1], dtype=np.int64)
    if vertices.ndim != 2 or vertices.shape[1] != 3 or not np.isfinite(vertices).all():
        raise ValueError(f"vertices must be finite with axes (V, 3), got shape {vertices.shape}")
    if faces.size == 0:
        faces = faces.reshape(0, 3)
    if faces.ndim != 2 or faces.shape[1] != 3:
        raise ValueError(f"faces must have axes (F, 3), got shape {faces.shape}")
    if faces.size and (faces.min() < 0 or faces.max() >= len(vertices)):
        raise ValueError(f"faces refer to vertices {faces.min()}..{faces.max()}, but there are {len(vertices)}")
    colour = np.asarray(mesh[2], dtype=np.float64)
    opacity = 1.0
    if colour.ndim == 1 and colour.shape[0] == 4:
        colour, opacity = colour[:3], float(colour[3])
    if colour.shape not in ((3,), (len(vertices), 3)) or (colour.size and (colour.min() < 0 or colour.max() > 1)):
        raise ValueError(f"a colour is 3 or 4 numbers 0..1, or (V, 3) of them; got shape {colour.shape}")
    return vertices, faces, np.broadcast_to(colour, (len(vertices), 3)), opacity


def _paper(background: str | Sequence[float]) -> FloatArray:
    named = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0), "dark": (0.07, 0.08, 0.10)}
    if isinstance(background, str):
        if background not in named:
            raise ValueError(f"background must be one of {', '.join(named)} or three numbers, got {background!r}")
        return np.array(named[background])
    paper = np.asarray(background, dtype=np.float64)
    if paper.shape != (3,):
        raise ValueError(f"background must be three numbers 0..1, got {background}")
    return paper


def _fit(
    clouds: list[FloatArray],
    frame: FloatArray,
    size: tuple[int, int],
    mm_per_pixel: float | None,
    centre_mm: ArrayLike | None,
) -> tuple[float, FloatArray]:
    """Millimetres per pixel and the place of the picture's middle along right and up."""
    spots = np.concatenate([cloud @ frame[:2].T for cloud in clouds]) if clouds else np.zeros((1, 2))
    low, high = spots.min(0), spots.max(0)
    middle = (low + high) / 2 if centre_mm is None else frame[:2] @ np.asarray(centre_mm, dtype=np.float64)
    if mm_per_pixel is not None:
        if not mm_per_pixel > 0:
            raise ValueError(f"mm_per_pixel must be positive, got {mm_per_pixel}")
        return float(mm_per_pixel), middle
    reach = 2 * np.maximum(high - middle, middle - low)  # as wide as needed with this middle
    return max(float((reach / np.array(size)).max()) * 1.12, 1e-6), middle


def _layers(
    meshes: list[_Shape], frame: FloatArray, step: float, middle: FloatArray, fine: tuple[int, int], smooth: int
) -> list[_Layer]:
    """One layer for all opaque meshes, which share a depth buffer, and one for each transparent mesh."""

    def project(mesh: _Shape) -> tuple[FloatArray, FloatArray]:
        seen = mesh[0] @ frame.T
        across = (seen[:, 0] - middle[0]) / step + fine[1] / 2
        down = (middle[1] - seen[:, 1]) / step + fine[0] / 2
        values = np.concatenate([_normals(seen, mesh[1], smooth), mesh[2]], axis=1)
        return np.stack([across, down, seen[:, 2]], axis=1), values

    projected = in_threads(project, meshes)
    layers: list[_Layer] = []
    solid: _Layer | None = None
    for (_, faces, _, opacity), (spots, values) in zip(meshes, projected, strict=True):
        layer = solid if opacity >= 1 else None
        if layer is None:
            layer = _Layer(np.full(fine, np.inf, np.float32), np.zeros((*fine, 6), np.float32), opacity)
            layers.append(layer)
        if opacity >= 1:
            solid = layer
        _rasterise(spots, faces, values, layer.depth, layer.values)
    return layers


def _normals(seen: FloatArray, faces: NDArray[np.int64], smooth: int) -> FloatArray:
    """Unit normals per vertex, weighted by area, averaged `smooth` times over neighbours."""
    flat = np.cross(seen[faces[:, 1]] - seen[faces[:, 0]], seen[faces[:, 2]] - seen[faces[:, 0]])
    normals = np.zeros(seen.shape)
    _gather(faces, flat, normals)
    area = np.linalg.norm(flat, axis=1)
    for _ in range(smooth):
        _average(faces, area, normals, flat)
        normals[:] = 0
        _gather(faces, flat, normals)
    return normals


def _compose(canvas: NDArray[np.float32], layers: list[_Layer], step: float, occlusion: float) -> None:
    """Lay shaded layers over `canvas`, at each pixel from back to front."""
    shaded = [_shaded(layer, step, occlusion) for layer in layers]
    depths = np.stack([layer.depth for layer in layers])
    order = np.argsort(-depths, axis=0) if len(layers) > 1 else np.zeros(depths.shape, dtype=np.int64)
    for place in range(len(layers)):
        for number, (paint, cover) in enumerate(shaded):
            mine = (order[place] == number) & (cover > 0)
            share = cover[mine][:, None]
            canvas[mine] = canvas[mine] * (1 - share) + paint[mine] * share


def _shaded(layer: _Layer, step: float, occlusion: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Colour and cover of each pixel under the lights."""
    hit = np.isfinite(layer.depth)
    normal = layer.values[hit][:, :3]
    normal = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    # The camera's third direction points away; turn normals to the reader and measure towards him.
    normal = np.where(normal[:, 2:] > 0, -normal, normal) * np.array([1, 1, -1], dtype=np.float32)
    key, fill, rim = (light / np.linalg.norm(light) for light in (_KEY, _FILL, _RIM))
    # Wrapped light keeps forms readable where it is grazing.
    sight = np.array([0.0, 0.0, 1.0])
    main = np.clip((normal @ key + 0.25) / 1.25, 0, 1)
    light = 0.36 + 0.64 * main + 0.16 * np.clip(normal @ fill, 0, 1)
    half = (key + sight) / np.linalg.norm(key + sight)
    gloss = 0.16 * np.clip(normal @ half, 0, 1) ** 28
    glow = 0.18 * np.clip(normal @ rim + 0.35, 0, 1) * (1 - normal[:, 2]) ** 2
    if occlusion > 0:
        light = light * _hollows(layer.depth, hit, step, occlusion)[hit]
    colour = layer.values[hit][:, 3:].astype(np.float64) ** 1.1 * light[:, None]
    paint = np.zeros((*hit.shape, 3), dtype=np.float32)
    paint[hit] = np.clip(colour + (gloss + glow)[:, None], 0, 1)
    cover = np.zeros(hit.shape, dtype=np.float32)
    facing = normal[:, 2]
    cover[hit] = 1.0 if layer.opacity >= 1 else np.clip(layer.opacity * (0.8 + 1.2 * (1 - facing) ** 2), 0, 1)
    return paint, cover


def _hollows(depth: NDArray[np.float32], hit: NDArray[np.bool_], step: float, strength: float) -> NDArray[np.float32]:
    """Factor of at most 1 per pixel: darker where the surroundings lie nearer to the reader."""
    from scipy.ndimage import gaussian_filter

    # Blurred in the picture's own resolution: shades are soft.
    coarse, seen = depth[::_FINE, ::_FINE], hit[::_FINE, ::_FINE]
    known = np.where(seen, coarse, 0).astype(np.float32)
    weight = seen.astype(np.float32)
    shade = np.ones(coarse.shape, dtype=np.float32)
    for share in (0.006, 0.02):
        sigma = share * max(coarse.shape)
        around = gaussian_filter(known, sigma, truncate=2.5)
        mass = gaussian_filter(weight, sigma, truncate=2.5)
        behind = np.where(seen, known - around / np.maximum(mass, 1e-6), 0) / (sigma * step * _FINE)
        shade *= 1 - strength * 0.55 * np.clip(behind - 0.04, 0, 0.8).astype(np.float32)
    return np.repeat(np.repeat(np.maximum(shade, 0.25), _FINE, axis=0), _FINE, axis=1)


def _font(height: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=max(height, 10))


def _with_letters(picture: Picture, frame: FloatArray, ink: tuple[int, int, int]) -> Picture:
    """Letters of the patient's sides at the four edges."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(picture)
    pen = ImageDraw.Draw(image)
    height, width = picture.shape[:2]
    tall = min(height, width) // 24
    font = _font(tall)
    gap = max(tall // 3, 2)
    edges = [(frame[0], (width - gap, height / 2), "rm"), (-frame[0], (gap, height / 2), "lm")]
    edges += [(frame[1], (width / 2, gap), "mt"), (-frame[1], (width / 2, height - gap), "mb")]
    for direction, place, anchor in edges:
        pen.text(place, _names(direction), fill=ink, font=font, anchor=anchor)
    return np.asarray(image)


def _names(direction: FloatArray) -> str:
    """The letters of a direction in LPS, the strongest first; weak parts are left out."""
    parts = sorted(range(3), key=lambda k: -abs(direction[k]))
    return "".join(_LETTERS[k][int(direction[k] > 0)] for k in parts if abs(direction[k]) > 0.38)


def _with_bar(picture: Picture, scale: float, ink: tuple[int, int, int]) -> Picture:
    """A bar of 1, 2 or 5 times a power of ten mm, about a fifth of the width."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(picture)
    pen = ImageDraw.Draw(image)
    height, width = picture.shape[:2]
    target = width * scale / 5
    power = 10.0 ** np.floor(np.log10(target))
    length = max(unit * power for unit in (1, 2, 5) if unit * power <= target * (1 + 1e-9))
    tall = max(min(height, width) // 30, 10)
    left, base = tall, height - tall
    pen.rectangle((left, base - max(tall // 6, 1), left + length / scale, base), fill=ink)
    text = f"{length / 10:g} cm" if length >= 10 else f"{length:g} mm"
    pen.text((left, base - tall // 3), text, fill=ink, font=_font(tall), anchor="lb")
    return np.asarray(image)


@kernel
def _gather(faces, values, normals):  # type: ignore[no-untyped-def]
    """Add the vector of each face to its three vertices, then make them unit vectors."""
    for f in range(len(faces)):
        for k in range(3):
            for axis in range(3):
                normals[faces[f, k], axis] += values[f, axis]
    for v in range(len(normals)):
        size = np.sqrt(normals[v, 0] ** 2 + normals[v, 1] ** 2 + normals[v, 2] ** 2)
        for axis in range(3):
            normals[v, axis] /= max(size, 1e-12)


@kernel
def _average(faces, area, normals, values):  # type: ignore[no-untyped-def]
    """The sum of the normals at the vertices of each face, weighted by its area."""
    for f in range(len(faces)):
        for axis in range(3):
            total = normals[faces[f, 0], axis] + normals[faces[f, 1], axis] + normals[faces[f, 2], axis]
            values[f, axis] = area[f] * total


@kernel
def _rasterise(spots, faces, values, depth, out):  # type: ignore[no-untyped-def]
    """Fill triangles at pixel centres, keep the nearest; `values` (V, 6) are interpolated across each."""
    height, width = depth.shape
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        ax, ay, bx, by, cx, cy = spots[a, 0], spots[a, 1], spots[b, 0], spots[b, 1], spots[c, 0], spots[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0.0:
            continue
        # Pixel k has its centre at k + 0.5.
        left = max(int(np.ceil(min(ax, bx, cx) - 0.5)), 0)
        right = min(int(np.floor(max(ax, bx, cx) - 0.5)), width - 1)
        top = max(int(np.ceil(min(ay, by, cy) - 0.5)), 0)
        bottom = min(int(np.floor(max(ay, by, cy) - 0.5)), height - 1)
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                px, py = x + 0.5, y + 0.5
                u = ((bx - px) * (cy - py) - (by - py) * (cx - px)) / area
                v = ((cx - px) * (ay - py) - (cy - py) * (ax - px)) / area
                w = 1.0 - u - v
                if u < -1e-9 or v < -1e-9 or w < -1e-9:
                    continue
                away = u * spots[a, 2] + v * spots[b, 2] + w * spots[c, 2]
                if away < depth[y, x]:
                    depth[y, x] = away
                    for k in range(6):
                        out[y, x, k] = u * values[a, k] + v * values[b, k] + w * values[c, k]
