"""A bundle as a folder that answers in a browser: a page, a runtime and the model, and no request to anyone.

Runtime and model lie in scripts, as base64, because a page that is opened from a disk may load scripts but no other
files. One way in serves both: a double click and any server of static files.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vesalius.core.errors import AcceptanceError, FileError
from vesalius.core.extras import extra
from vesalius.core.files import atomic, sha256, write_text
from vesalius.core.labels import Labels
from vesalius.core.version import __version__
from vesalius.deploy import web_runtime
from vesalius.deploy.artefact import Artefact
from vesalius.deploy.contract import KEY, contract_of
from vesalius.deploy.onnx_out import write_onnx
from vesalius.deploy.runner import unchanged
from vesalius.predict.bundle import Bundle

OURS = ("index.html", "style.css", "read.js", "segment.js", "objects.js", "app.js", "LICENSE-onnxruntime.txt")
CONTRACT, RUNTIME, MODEL = "contract.js", "runtime.js", "model.js"
NAMES = (*OURS, CONTRACT, web_runtime.SCRIPT, RUNTIME, MODEL)
"""Every file of the folder but its acceptance record."""
RECORD = "accepted.json"
_TEMPLATES = Path(__file__).with_name("web")
_PRODUCT = {"classify": "a probability for each class", "segment": "a mask of each structure"}
_FIRST = "globalThis.VESALIUS ??= {};"
_FEW_CLASSES = 4


class WebFolder(Artefact):
    """An exported folder: its contract, and `call`, which computes its model with ONNX Runtime, without a browser.

    Raises
    ------
    FileError
        If a file is missing or is not what an export writes.
    AcceptanceError
        If contract and model are those of different exports.
    MissingExtra
        Without ``vesalius[onnx]``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.kind = Path(path), "web"
        self.digests(self.path)
        self.contract: dict[str, Any] = self._said(CONTRACT, "contract")
        runtime: Any = extra("onnxruntime", group="onnx", purpose="running an ONNX file")
        model = self.model()
        if not unchanged(model):
            raise AcceptanceError(f"{self.path / MODEL}: was changed after it was exported; export it again")
        try:
            session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library has its own kinds of errors
            raise AcceptanceError(
                f"{self.path / MODEL}: holds no model that can be computed ({' '.join(str(error).split())[:120]})"
            ) from error
        self.call = lambda inputs: session.run(None, inputs)
        known = session.get_modelmeta().custom_metadata_map.get(KEY, "null")
        if json.loads(known) != self.contract:
            raise AcceptanceError(
                f"{self.path / CONTRACT}: is not the contract of the model in {MODEL}; export it again"
            )

    @staticmethod
    def digests(folder: Path) -> dict[str, str]:
        """SHA-256 by name of file; `FileError` if one is missing."""
        for name in NAMES:
            if not (folder / name).is_file():
                raise FileError(
                    folder, found=f"no {name} in it", expected="a folder of vesalius export --to web", do="export it"
                )
        return {name: sha256(folder / name) for name in NAMES}

    @property
    def files(self) -> list[Path]:
        """The files it consists of, without the record."""
        return [self.path / name for name in NAMES]

    def model(self) -> bytes:
        """The ONNX file inside, byte for byte what ``--to onnx`` writes."""
        return base64.b64decode(self._said(MODEL, "model"))

    def _said(self, name: str, key: str) -> Any:
        """What the script `name` puts under `key`."""
        start = f"VESALIUS.{key} = "
        for line in (self.path / name).read_text(encoding="utf-8").splitlines():
            if line.startswith(start):
                return json.loads(line.removeprefix(start).removesuffix(";"))
        raise FileError(self.path / name, found=f"no {key}", expected="a script of vesalius export", do="export again")


def write_web(bundle: Bundle, folder: str | Path, runtime: dict[str, bytes]) -> Path:
    """Write the folder: page, `runtime` (`web_runtime.runtime_files`) and model; other files in it stay.

    Raises
    ------
    MissingExtra
        Without ``vesalius[onnx]``.
    AcceptanceError
        If the network cannot be captured; one line says why.
    """
    folder = Path(folder)
    with TemporaryDirectory() as between:
        model = write_onnx(bundle, Path(between) / "model.onnx").read_bytes()
    for name in OURS:
        with atomic(folder / name) as file:
            file.write((_TEMPLATES / name).read_bytes())
    with atomic(folder / web_runtime.SCRIPT) as file:
        file.write(runtime[web_runtime.SCRIPT])
    wasm = gzip.compress(runtime[web_runtime.WASM], 9, mtime=0)
    parts = {"glue": _letters(runtime[web_runtime.GLUE]), "wasm": _letters(wasm)}
    write_text(folder / RUNTIME, _script(runtime=parts))
    write_text(folder / MODEL, _script(model=_letters(model)))
    about = about_model(bundle) | {"model_sha256": hashlib.sha256(model).hexdigest()}
    write_text(folder / CONTRACT, _script(contract=contract_of(bundle), about=about))
    return folder


def _letters(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _script(**values: Any) -> str:
    """A script that keeps values for the page, one line each."""
    return "".join(f"{line}\n" for line in (_FIRST, *(f"VESALIUS.{k} = {json.dumps(v)};" for k, v in values.items())))


def about_model(bundle: Bundle) -> dict[str, Any]:
    """What the page says of the model: title, purpose, facts, the card in blocks, the threshold of its decision."""
    masks = bundle.task == "segment"
    names, spec = list(bundle.labels.structures if masks else bundle.labels.names), bundle.preprocess
    blocks = card_blocks(bundle.card)
    name = next((block["text"] for block in blocks if block["kind"] == "title"), "")
    lead = next((block["text"] for block in blocks[1:2] if block["kind"] == "text"), "")
    places = [k for k, block in enumerate(blocks) if block == {"kind": "section", "text": "What it is for"}]
    purpose = next((block["text"] for k in places for block in blocks[k + 1 : k + 2] if block["kind"] == "text"), "")
    sides = " × ".join(str(side) for side in (bundle.inference["tile"]["patch"] if masks else spec["size"]))
    several = " (several may hold at once)" if bundle.labels.multilabel else ""
    facts = [
        ("Name", name),
        ("Structures" if masks else "Classes", ", ".join(names) + several),
        ("Input", f"{_images(spec)}, {f'in tiles of {sides}' if masks else f'brought to {sides} inside the model'}"),
        ("Tested", lead),
        ("Weights", f"SHA-256 {bundle.checksum[:16]}…"),
    ]
    return {
        "title": _structures(names, bundle.labels) if masks else _question(names, multilabel=bundle.labels.multilabel),
        "purpose": purpose or f"Research: {_PRODUCT[bundle.task]}, from an image like those of training.",
        "facts": [[key, value] for key, value in facts if value],
        "card": _sections(blocks),
        "threshold": bundle.threshold if bundle.labels.binary else None,
        "made": f"Made by Vesalius {__version__}. Computed by onnxruntime-web {web_runtime.VERSION} "
        "(MIT licence, LICENSE-onnxruntime.txt), one thread. This page loads nothing from anywhere and sends nothing.",
    }


def _images(spec: dict[str, Any]) -> str:
    what = "pictures" if spec["dims"] == 2 else "volumes"
    return {1: f"grey {what}", 3: f"{what} in colour"}.get(spec["channels"], f"{what} of {spec['channels']} channels")


def _structures(names: list[str], labels: Labels) -> str:
    if labels.instances:
        return "Single objects" if names == ["object"] else f"Single objects: {names[0]}"
    if len(names) > _FEW_CLASSES:
        return f"{len(names)} structures"
    text = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return text[:1].upper() + text[1:]


def _question(names: list[str], *, multilabel: bool) -> str:
    if multilabel:
        return f"Which of {len(names)} findings?" if len(names) > 1 else f"{names[0][:1].upper()}{names[0][1:]}?"
    if len(names) > _FEW_CLASSES:
        return f"Which of {len(names)} classes?"
    text = f"{', '.join(names[:-1])} or {names[-1]}?"
    return text[:1].upper() + text[1:]


def _sections(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Warnings and sections for the page, which has its own title; how to load a bundle is of no use there."""
    kept: list[dict[str, Any]] = []
    section = ""
    for block in blocks:
        section = block["text"] if block["kind"] == "section" else section
        if block["kind"] != "title" and section != "How to use it" and (section or block["kind"] == "warning"):
            kept.append(block)
    return kept


def card_blocks(text: str) -> list[dict[str, Any]]:
    """A model card as plain data: the few forms of Markdown that `report.card` writes.

    Returns
    -------
    list
        ``{"kind", ...}`` in the order of the card: ``title``, ``section``, ``text``, ``warning`` and ``code`` with
        ``text``; ``list`` with ``items``; ``table`` with ``rows``, the head first.
    """
    blocks: list[dict[str, Any]] = []
    code: list[str] | None = None
    for line in text.splitlines():
        if line.startswith("```"):
            if code is not None:
                blocks.append({"kind": "code", "text": "\n".join(code)})
            code = [] if code is None else None
        elif code is not None:
            code.append(line)
        else:
            _block(line.strip(), blocks)
    return [block for block in blocks if block["kind"] != "gap"]


def _block(line: str, blocks: list[dict[str, Any]]) -> None:
    """Add one line, to the block before it where it goes on."""
    before = blocks[-1] if blocks else {"kind": "gap"}
    if line.startswith("* "):
        if before["kind"] != "list":
            blocks.append({"kind": "list", "items": []})
        blocks[-1]["items"].append(_plain(line[2:]))
    elif line.startswith("|"):
        cells = [_plain(cell) for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
        if before["kind"] != "table":
            blocks.append({"kind": "table", "rows": []})
        if not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
            blocks[-1]["rows"].append(cells)
    elif not line or line == ">":
        blocks.append({"kind": "gap"})
    else:
        marks = {"# ": "title", "## ": "section", "### ": "section", "> ": "warning"}
        mark = next((mark for mark in marks if line.startswith(mark)), "")
        kind, words = marks.get(mark, "text"), _plain(line.removeprefix(mark))
        if before["kind"] == kind and kind in ("text", "warning"):
            before["text"] += f" {words}"
        else:
            blocks.append({"kind": kind, "text": words})


def _plain(text: str) -> str:
    """Without the marks of Markdown: bold, code, and the backslashes that took their meaning away."""
    text = re.sub(r"(?<!\\)(\*\*|`)", "", text.strip())
    return re.sub(r"\\([\\`*_{}\[\]<>|#])", r"\1", text)
