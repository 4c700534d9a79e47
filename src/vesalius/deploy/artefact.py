"""An exported file as a function of named arrays, whatever computes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vesalius.core.errors import AcceptanceError, FileError
from vesalius.core.extras import extra
from vesalius.core.files import sha256
from vesalius.deploy import mobile_runner
from vesalius.deploy.contract import KEY
from vesalius.deploy.runner import unchanged
from vesalius.predict.backends import import_openvino

Call = Callable[[dict[str, Any]], Any]
KINDS = {".onnx": "onnx", ".xml": "openvino", ".tflite": "litert", ".pte": "executorch"}
MOBILE = {"litert": "ai_edge_litert.interpreter", "executorch": "executorch.runtime"}
"""Kinds for mobile devices, which want one image of one size, and the module that computes them."""


class Artefact:
    """A file that was exported: its contract, and `call`, which computes it in float32 on the CPU.

    Raises
    ------
    FileError
        If it is no exported model.
    AcceptanceError
        If it was changed after it was written; no library is asked to load it then.
    MissingExtra
        Without the library that computes it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.kind = KINDS.get(self.path.suffix, "")
        if not self.path.is_file() or not self.kind:
            found = "nothing at this path" if not self.path.exists() else "another kind of file"
            expected = f"an exported file: {', '.join(KINDS)}"
            raise FileError(self.path, found=found, expected=expected, do="use vesalius export")
        check_seal(self.path, *self.files)
        if self.kind in MOBILE:
            self.call, text = _mobile(self.path, self.kind)
        else:
            self.call, text = _onnx(self.path) if self.kind == "onnx" else _openvino(self.path)
        if text is None:
            raise FileError(
                self.path, found="no contract in the file", expected="a model of vesalius export", do="export it again"
            )
        self.contract: dict[str, Any] = json.loads(text)

    @property
    def files(self) -> list[Path]:
        """The files it consists of."""
        if self.kind in MOBILE:
            return [path for path in (self.path, contract_beside(self.path)) if path.is_file()]
        return [self.path, *([self.path.with_suffix(".bin")] if self.kind == "openvino" else [])]

    def digest(self) -> dict[str, str]:
        """SHA-256 by name of file."""
        return {path.name: sha256(path) for path in self.files}

    def bytes(self) -> int:
        """Size of all files."""
        return sum(path.stat().st_size for path in self.files)


def check_seal(path: Path, *files: Path) -> None:
    """`AcceptanceError` if a file of ours, or its other part, is not as it was written (`deploy.seal`)."""
    data = b"".join(file.read_bytes() for file in files if file.is_file())
    if b"vesalius" not in data:
        return
    if not (mobile_runner.unchanged(path) if KINDS[path.suffix] in MOBILE else unchanged(data)):
        raise AcceptanceError(
            f"{path}: was changed after it was exported (its checksum is wrong); do not use it, export it again"
        )


def contract_beside(path: Path) -> Path:
    """Where a copy of the contract of a file for mobile devices lies, for programs that read no archive."""
    return path.with_name(f"{path.name}.contract.json")


def _mobile(path: Path, kind: str) -> tuple[Call, str | None]:
    extra(MOBILE[kind], group="mobile", purpose=f"running a file of {kind}")
    contract, copy = mobile_runner.contract_in(path), contract_beside(path)
    if contract is not None and copy.is_file() and copy.read_text(encoding="utf-8") != json.dumps(contract):
        raise AcceptanceError(f"{copy}: is not the contract that the model holds; export it again")
    try:
        call = mobile_runner.opened(path)
    except Exception as error:  # each runtime has its own kinds of errors
        raise FileError(
            path, found=f"cannot be loaded ({' '.join(str(error).split())[:120]})", do="export it again"
        ) from error
    return call, None if contract is None else json.dumps(contract)


def _onnx(path: Path) -> tuple[Call, str | None]:
    runtime: Any = extra("onnxruntime", group="onnx", purpose="running an ONNX file")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    known = session.get_modelmeta().custom_metadata_map
    return (lambda inputs: session.run(None, inputs)), known.get(KEY)


def _openvino(path: Path) -> tuple[Call, str | None]:
    library: Any = import_openvino()
    core = library.Core()
    model = core.read_model(str(path))
    place = KEY.split(".")
    text = model.get_rt_info(place).astype(str) if model.has_rt_info(place) else None
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def call(inputs: dict[str, Any]) -> Any:
        found = compiled(inputs)
        return [found[output].copy() for output in compiled.outputs]

    return call, text
