"""Evidence for the thresholds of the leakage check: recall of copies, and false alarms on different images.

    python benchmarks/leakage_thresholds.py --data ../shared/data > /tmp/leakage.md

Prints the tables of docs/leakage.md.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image as Picture

from vesalius.data import duplicates as search
from vesalius.data.leakage import duplicate_groups
from vesalius.data.signature import GRID, Signatures, _shrink, concatenate, describe, signatures_from_arrays

LEVELS = (0.95, 0.96, 0.97, 0.98)
SEED = 20
BILINEAR = Picture.Resampling.BILINEAR

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _jpeg(quality: int) -> Change:
    def change(pixels: np.ndarray, _: np.random.Generator) -> np.ndarray:
        stream = io.BytesIO()
        Picture.fromarray(pixels).save(stream, "JPEG", quality=quality)
        return np.asarray(Picture.open(stream))

    return change


def _resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Picture.fromarray(pixels).resize((width, height), BILINEAR))


def _crop(part: float) -> Change:
    def change(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = pixels.shape
        less = max(1, round(part * height))
        y, x = rng.integers(0, less + 1, 2)
        return _resized(pixels[y : height - less + y, x : width - less + x], height, width)

    return change


def _turn(degrees: float) -> Change:
    return lambda p, rng: np.asarray(Picture.fromarray(p).rotate(degrees * rng.choice([-1, 1]), BILINEAR))


CHANGES: dict[str, Change] = {
    "JPEG quality 90": _jpeg(90),
    "JPEG quality 75": _jpeg(75),
    "JPEG quality 60": _jpeg(60),
    "half size": lambda p, _: _resized(p, p.shape[0] // 2, p.shape[1] // 2),
    "half size and back": lambda p, _: _resized(_resized(p, p.shape[0] // 2, p.shape[1] // 2), *p.shape),
    "brightness + 20": lambda p, _: _bytes(p + 20.0),
    "contrast x 1.2": lambda p, _: _bytes((p - 128.0) * 1.2 + 128),
    "gamma 0.8": lambda p, _: _bytes(255 * (p / 255) ** 0.8),
    "gamma 1.25": lambda p, _: _bytes(255 * (p / 255) ** 1.25),
    "noise of 2 grey levels": lambda p, rng: _bytes(p + rng.normal(0, 2, p.shape)),
    "noise of 5 grey levels": lambda p, rng: _bytes(p + rng.normal(0, 5, p.shape)),
    "crop 2 %": _crop(0.02),
    "crop 4 %": _crop(0.04),
    "turn 1 degree": _turn(1),
    "turn 2 degrees": _turn(2),
    "turn 3 degrees": _turn(3),
    "mirrored": lambda p, _: np.ascontiguousarray(p[:, ::-1]),
    "mirrored, JPEG quality 75": lambda p, rng: _jpeg(75)(np.ascontiguousarray(p[:, ::-1]), rng),
}


def collections(data: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, pictures and what must not be alike: the patient, or the picture itself where nobody is known."""
    rows = pd.read_csv(data / "chest-xray" / "manifest.csv")
    pictures = np.stack([np.asarray(Picture.open(data / "chest-xray" / p).convert("L")) for p in rows["path"]])
    yield "chest-xray, 224 px", pictures, pd.factorize(rows["patient_id"])[0]
    files = sorted((data / "mednist").glob("*/*.jpeg"))
    pictures = np.stack([np.asarray(Picture.open(file)) for file in files])
    kinds = np.array([file.parent.name for file in files])
    for kind in np.unique(kinds):
        yield f"mednist {kind}, 64 px", pictures[kinds == kind], np.arange((kinds == kind).sum())


def recall(pictures: np.ndarray, signatures: Signatures, count: int) -> pd.DataFrame:
    """Part of the copies found as the whole search finds them, per change and level."""
    rng = np.random.default_rng(SEED)
    chosen = np.sort(rng.choice(len(pictures), min(count, len(pictures)), replace=False))
    rows = {}
    for name, change in CHANGES.items():
        copies = concatenate(signatures_from_arrays(change(pictures[row], rng)[None, None]) for row in chosen)
        both = concatenate([signatures, copies])
        parts = np.repeat(["old", "new"], [len(pictures), len(chosen)])
        found = search.find_duplicates(both, near=min(LEVELS), parts=parts)
        original = chosen[np.clip(found.pairs[:, 1] - len(pictures), 0, None)]
        right = found.pairs[:, 0] == original
        same = (both.hashes[chosen] == copies.hashes).all(axis=1).sum()
        rows[name] = [(same + (right & (found.similarity >= level)).sum()) / len(chosen) for level in LEVELS]
    return pd.DataFrame(rows, index=[f"{level:.2f}" for level in LEVELS]).T


def alarms(signatures: Signatures, owner: np.ndarray) -> tuple[list[str], search.Duplicates]:
    """Pairs of different owners per level, and how alike the nearest other picture is."""
    start = time.perf_counter()
    found = search.find_duplicates(signatures, near=0.5)
    seconds = time.perf_counter() - start
    other = owner[found.pairs[:, 0]] != owner[found.pairs[:, 1]]
    pairs, similarity = found.pairs[other], found.similarity[other]
    nearest = np.zeros(len(signatures))
    np.maximum.at(nearest, pairs.ravel(), np.repeat(similarity, 2))
    comparable = signatures.comparable
    quantiles = np.quantile(nearest[comparable], [0.5, 0.99, 0.999, 1])
    return (
        [
            str(len(signatures)),
            f"{comparable.mean():.1%}",
            *(f"{q:.3f}" for q in quantiles),
            *(str(int((similarity >= level).sum())) for level in LEVELS),
            f"{seconds:.0f}",
        ],
        found,
    )


def tiny(data: Path) -> list[list[str]]:
    """What the search would say of images that it does not compare, if it did: why the rule on sides exists."""
    rows = []
    for name in ("mnist/mnist.npz", "medmnist/pneumoniamnist.npz", "medmnist/adrenalmnist3d.npz"):
        with np.load(data / name) as file:
            images = np.concatenate([file["train_images"][:4000], file["test_images"][:1000]])[:, None]
        dims = images.ndim - 2
        coarse, fine, _ = describe(_shrink(images, GRID[dims]))
        everything = search.Descriptors(np.arange(len(images)), coarse, fine)
        hashes = signatures_from_arrays(images)
        signatures = Signatures(hashes.hashes, hashes.blank, hashes.detail, {dims: everything})
        found = search.find_duplicates(signatures, near=min(LEVELS))
        alike = np.unique(found.pairs[found.similarity >= search.NEAR])
        rows.append(
            [name, str(len(images)), f"{len(alike) / len(images):.1%}", f"{found.similarity.max(initial=0):.3f}"]
        )
    return rows


def show(header: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--copies", type=int, default=200)
    options = parser.parse_args()
    tables, lines, chains = [], [], []
    for name, pictures, owner in collections(options.data):
        signatures = signatures_from_arrays(pictures[:, None])
        line, found = alarms(signatures, owner)
        lines.append([name, *line])
        strong = found.similarity >= search.NEAR
        kept = search.Duplicates(found.group, found.pairs[strong], found.similarity[strong], found.flipped[strong])
        sizes = np.bincount(duplicate_groups(kept, signatures)[0])
        loose = np.bincount(duplicate_groups(kept, signatures, cap=len(pictures))[0])
        chains.append(
            [
                name,
                str(int(strong.sum())),
                str(loose.max()),
                str(sizes.max()),
                str(duplicate_groups(kept, signatures)[1]),
            ]
        )
        tables.append(recall(pictures, signatures, options.copies)[f"{search.NEAR:.2f}"].rename(name))
    print("### Different images\n")
    show(
        ["set", "images", "compared", "median", "99 %", "99.9 %", "largest", *(f">= {v:.2f}" for v in LEVELS), "s"],
        lines,
    )
    print(f"### Copies found at {search.NEAR}\n")
    show(["change", *(t.name for t in tables)], [[c, *(f"{t[c]:.3f}" for t in tables)] for c in CHANGES])
    print("### Groups\n")
    show(["set", "near pairs", "longest chain", "largest group kept together", "links cut"], chains)
    print("### If small images were compared\n")
    show(["file", "images", "called near duplicates", "largest similarity"], tiny(options.data))


if __name__ == "__main__":
    main()
