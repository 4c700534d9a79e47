"""What an exported file says about itself: inputs, outputs, and what its runner does around the graph."""

from __future__ import annotations

from typing import Any

from vesalius.core.version import __version__
from vesalius.predict.bundle import Bundle
from vesalius.predict.tiles import FLOOR, TileSettings
from vesalius.tasks.instances import DEFAULTS

SCHEMA = 1
KEY = "vesalius.contract"
"""Name of the contract in the metadata of a file."""
SEAL_KEY = "vesalius.seal"
"""Name of the digest that the file keeps of itself; see `deploy.seal`."""


def contract_of(bundle: Bundle) -> dict[str, Any]:
    """The contract of an exported bundle, plain data (docs/export.md)."""
    head: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "vesalius.artefact",
        "made_by": f"vesalius {__version__}",
        "task": bundle.task,
        "bundle": bundle.checksum,
        "arithmetic": bundle.arithmetic,
        "labels": bundle.labels.to_json(),
        "structures": list(bundle.labels.structures) if bundle.task == "segment" else list(bundle.labels.names),
        "temperature": bundle.temperature,
    }
    if bundle.task == "classify":
        return head | _of_classes(bundle)
    return head | _of_masks(bundle)


def _of_classes(bundle: Bundle) -> dict[str, Any]:
    spec = bundle.preprocess
    return {
        "dims": spec["dims"],
        "channels": spec["channels"],
        "spacing_mm": spec.get("spacing_mm"),
        "inputs": {"image": f"float32 (B, {spec['channels']}, {_axes(spec['dims'])}), values as the file holds them"},
        "outputs": {
            "probabilities": "float32 (B, classes), calibrated",
            "decision": "int64 (B, classes) of 0 and 1"
            if bundle.labels.multilabel
            else "int64 (B,), number of a class",
        },
    }


def _of_masks(bundle: Bundle) -> dict[str, Any]:
    tile, spec = bundle.inference["tile"], bundle.preprocess
    patch = [int(side) for side in tile["patch"]]
    return {
        "conform": spec,
        "tile": {
            "patch": patch,
            "overlap": float(tile["overlap"]),
            "slack": float(tile.get("slack", 0.0)),
            "sigma": TileSettings.sigma,
            "floor": FLOOR,
        },
        **_decision(bundle),
        "inputs": {
            "tiles": f"float32 (B, {spec['channels']}, {', '.join(map(str, patch))}), values as the file holds them, "
            "turned and resampled as `conform` says",
            "scale": "float32 (channels,): values are multiplied by it",
            "shift": "float32 (channels,): and shifted by it",
        },
        "outputs": {"logits": f"float32 (B, classes, {', '.join(map(str, patch))})"},
    }


def _decision(bundle: Bundle) -> dict[str, Any]:
    """How logits become a mask."""
    if bundle.labels.instances:
        return {
            "decide": "objects",
            "decode": DEFAULTS | (bundle.inference.get("decode") or {}),
            "diameters": bundle.inference.get("diameters"),
        }
    decide = "regions" if bundle.labels.multilabel else "argmax"
    return {"decide": decide, "post": list(bundle.inference.get("post") or [])}


def _axes(dims: int) -> str:
    return "Y, X" if dims == 2 else "Z, Y, X"
