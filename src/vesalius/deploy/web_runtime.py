"""The files of onnxruntime-web that an exported page computes with: one pinned version, checked byte by byte."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

from vesalius.core.environment import cache_folder
from vesalius.core.errors import AcceptanceError, FileError, UsageError
from vesalius.core.files import atomic
from vesalius.core.progress import Progress

VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web@{VERSION}"
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""SHA-512 of the package file, as npm states it."""
SCRIPT, GLUE, WASM = "ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"
FILES = {
    SCRIPT: "faece07e84faa9001f5104bbe4e5c70861d06cb2376a0dea1fa0ad33a67adc81",
    GLUE: "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    WASM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""SHA-256 of the three files that are used: interface, loader of the WebAssembly, WebAssembly (CPU only)."""
_NPM_SECONDS = 600
_BY_HAND = f"get the package file of {PACKAGE} on another machine and give it with --runtime"


def runtime_files(given: str | Path | None, progress: Progress) -> dict[str, bytes]:
    """The three files by name: from `given` (the package file or a folder), else the cache, else npm.

    Raises
    ------
    UsageError
        If they are nowhere and npm is missing or fails; the line says what to do.
    FileError
        If `given` does not hold them.
    AcceptanceError
        If a checksum is wrong (exit code 6).
    """
    if given is not None:
        return _read(Path(given))
    kept = cache_folder() / PACKAGE.replace("@", "-")
    if all((kept / name).is_file() for name in FILES):
        return _read(kept)
    npm = shutil.which("npm")
    if npm is None:
        raise UsageError(f"--to web needs {PACKAGE}, which npm would fetch, but there is no npm here; {_BY_HAND}")
    progress.say(f"fetching {PACKAGE} with npm")
    with TemporaryDirectory() as folder:
        found = _unpacked(_packed(npm, Path(folder)))
    for name, data in found.items():
        with atomic(kept / name) as file:
            file.write(data)
    return found


def _packed(npm: str, folder: Path) -> Path:
    """The package file as npm delivers it into `folder`."""
    command = [npm, "pack", PACKAGE, "--silent", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(  # noqa: S603 - npm from the PATH, a constant package
            command, cwd=folder, capture_output=True, text=True, timeout=_NPM_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"--to web needs {PACKAGE}, and npm did not deliver it ({error}); {_BY_HAND}") from error
    packed = sorted(folder.glob("*.tgz"))
    if done.returncode or not packed:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UsageError(f"--to web needs {PACKAGE}, and npm did not deliver it ({last[:200]}); {_BY_HAND}")
    return packed[0]


def _read(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return _unpacked(path)
    for folder in (path, path / "dist", path / "package" / "dist", path / "node_modules" / "onnxruntime-web" / "dist"):
        if all((folder / name).is_file() for name in FILES):
            return _checked(path, {name: (folder / name).read_bytes() for name in FILES})
    raise FileError(
        path,
        found="no files of onnxruntime-web" if path.exists() else "nothing at this path",
        expected=f"the package file of {PACKAGE}, or a folder with {', '.join(FILES)}",
        do="give another --runtime",
    )


def _unpacked(path: Path) -> dict[str, bytes]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").digest()
    if base64.b64encode(digest).decode() != INTEGRITY:
        raise AcceptanceError(
            f"{path}: is not {PACKAGE} as it was published (its SHA-512 differs); get the package file again"
        )
    found = {}
    with tarfile.open(path, "r:gz") as archive:
        for entry in archive:
            name = entry.name.removeprefix("package/dist/")
            inner = archive.extractfile(entry) if name in FILES else None
            if inner is not None:
                found[name] = inner.read()
    return _checked(path, found)


def _checked(path: Path, found: dict[str, bytes]) -> dict[str, bytes]:
    for name, digest in FILES.items():
        if hashlib.sha256(found.get(name, b"")).hexdigest() != digest:
            raise AcceptanceError(
                f"{path}: its {name} is not that of {PACKAGE} (its SHA-256 differs); delete it and get it again"
            )
    return found
