"""`vesalius inspect`: what is here, before anyone trains on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vesalius.core.errors import DataError
from vesalius.core.progress import Progress, track
from vesalius.core.randomness import generator
from vesalius.data.cohort import members
from vesalius.data.duplicates import find_duplicates
from vesalius.data.fingerprint import Fingerprint
from vesalius.data.leakage import check_leakage
from vesalius.data.manifest import Manifest
from vesalius.io.open import open_image
from vesalius.report.inspect_page import write_inspect_page
from vesalius.report.pictures import contact_sheet, panels
from vesalius.serve.looking_masks import look_at_masks, outlined_cases

PICTURES_PER_CLASS = 12


def inspect(manifest: Manifest, data: Path, out: Path | None, workers: int, progress: Progress) -> dict[str, Any]:
    """Facts about a data set; every image is decoded once. With `out`, a page with pictures."""
    from vesalius.data.scan import scan

    looked = scan(manifest, workers=workers, progress=progress)
    fingerprint = looked.fingerprint
    cases = manifest.cases.reset_index(drop=True)[looked.ok]
    duplicates = find_duplicates(looked.signatures, progress=progress)
    leakage = check_leakage(cases, looked.signatures, duplicates=duplicates)
    counts = manifest.counts()
    per_patient = cases.groupby("patient_id")["case_id"].nunique()
    groups = [[str(cases["path"].iloc[row]) for row in rows] for rows in members(duplicates.group)]
    near = [
        {"first": str(cases["path"].iloc[a]), "second": str(cases["path"].iloc[b]), "similarity": round(float(s), 4)}
        for (a, b), s in zip(duplicates.pairs, duplicates.similarity, strict=True)
    ]
    found: dict[str, Any] = {
        "data": str(data),
        "layout": manifest.layout,
        "task": manifest.task,
        "images": len(manifest),
        **{
            key: counts[key]
            for key in ("cases", "patients", "classes", "class_patients", "splits", "split_patients", "split_classes")
            if key in counts
        },
        "patient_source": manifest.patient_source,
        "split_source": manifest.split_source,
        "patients_with_several_images": int((per_patient > 1).sum()),
        "most_images_of_one_patient": int(per_patient.max()),
        "unreadable": looked.failed,
        "geometry": _geometry(fingerprint),
        "duplicates": {
            "exact_groups": len(groups),
            "exact_images": sum(len(g) for g in groups),
            "near_pairs": len(near),
            "exact": groups,
            "near": near,
        },
        "leakage": leakage.counts() | {"lines": leakage.lines()},
        "data_hash": fingerprint.data_hash,
        "problems": [{"severity": p.severity, "path": p.path, "text": p.text} for p in manifest.problems],
    }
    if manifest.task == "segment" and manifest.labels is not None:
        found["masks"] = look_at_masks(manifest, workers, progress)
    if out is not None:
        found["page"] = str(_page(out, manifest, found, progress))
    return found


def structure_row(name: str, entry: dict[str, Any]) -> dict[str, str]:
    """One structure of `look_at_masks` as people read it."""
    row = {"structure": name, "cases": str(entry["cases"]), "size, 5th to 95th percentile": "-"}
    if "size" in entry:
        low, middle, high = (f"{value:.3g}" for value in entry["size"])
        row["size, 5th to 95th percentile"] = f"{middle} {entry['unit']} ({low} to {high})"
    if "objects" in entry:
        row["objects"] = f"{entry['objects']}, {entry['objects_per_case'][1]:.0f} a case"
        row["diameter"] = f"{entry['diameter_px'][1]:.0f} px"
    return row


def _geometry(fingerprint: Fingerprint) -> dict[str, Any]:
    facts = fingerprint.to_json()
    return {
        key: facts[key]
        for key in (
            "dims",
            "shape",
            "one_shape",
            "spacing_mm",
            "channels",
            "dtypes",
            "units",
            "modality",
            "modality_because",
            "intensity",
            "blank",
        )
    }


def _page(out: Path, manifest: Manifest, found: dict[str, Any], progress: Progress) -> Path:
    path = out if out.suffix.lower() in (".html", ".htm") else out / "index.html"
    summary = {
        key: found[key]
        for key in (
            "data",
            "layout",
            "task",
            "cases",
            "patients",
            "patient_source",
            "split_source",
            "patients_with_several_images",
            "most_images_of_one_patient",
        )
    }
    rows = [" = ".join(group) for group in found["duplicates"]["exact"]]
    rows += [f"{p['first']} ~ {p['second']} (similarity {p['similarity']})" for p in found["duplicates"]["near"]]
    failed = [f"{name}: {reason}" for name, reason in found["unreadable"].items()]
    masks = found.get("masks") or {"structures": {}, "unusable": {}}
    failed += [f"{case}: {reason}" for case, reason in masks["unusable"].items()]
    structures = pd.DataFrame([structure_row(name, entry) for name, entry in masks["structures"].items()])
    return write_inspect_page(
        path,
        summary=summary,
        counts=manifest.counts(),
        problems=[*manifest.problems, *failed],
        duplicates=rows,
        geometry=_flat(found["geometry"]),
        structures=structures if len(structures) else None,
        montage=_montage(manifest, progress),
        next_steps=f"vesalius train {found['data']} --out runs/first --budget 5m",
    )


def _flat(facts: dict[str, Any]) -> dict[str, str]:
    out: dict[str, str] = {}
    for name, value in facts.items():
        if isinstance(value, dict):
            out |= {f"{name} {key}": _short(entry) for key, entry in value.items()}
        elif value is not None:
            out[name] = _short(value)
    return out


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return " x ".join(_short(v) for v in value)
    return str(value)


def _montage(manifest: Manifest, progress: Progress) -> dict[str, bytes]:
    """A contact sheet per class, cases drawn at random."""
    cases = manifest.cases
    if manifest.task == "segment" and manifest.labels is not None:
        outlined = outlined_cases(manifest, PICTURES_PER_CLASS, 168)
        return {"cases with their masks": contact_sheet(outlined, columns=6)} if outlined else {}
    names = manifest.labels.names if manifest.labels else ("",)
    sheets: dict[str, bytes] = {}
    for name in track(names, progress, "pictures"):
        chosen = cases[cases["label"].str.split("|").map(lambda have, name=name: name in have)] if name else cases
        draw = generator(0, "montage", len(sheets)).permutation(len(chosen))[:PICTURES_PER_CLASS]
        pictures = []
        for path in chosen["path"].iloc[np.sort(draw)]:
            try:
                pictures.append(panels(open_image(manifest.root / path), side=112))
            except DataError:
                continue
        if pictures:
            sheets[name or "images"] = contact_sheet(pictures, columns=6)
    return sheets
