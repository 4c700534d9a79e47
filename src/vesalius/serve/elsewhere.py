"""A verb that another Python does: the converters for mobile devices want older libraries than Vesalius has beside it.

``make mobile`` builds that environment. Where this process cannot import a converter, the same verb runs there, with
the same options; its progress, its result and its error come back as if it had run here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from vesalius.core import errors
from vesalius.core.environment import variable
from vesalius.core.errors import MissingExtra, VesaliusError
from vesalius.core.progress import Progress
from vesalius.deploy.artefact import KINDS
from vesalius.deploy.mobile import mobile_contract
from vesalius.predict.bundle import Bundle

VARIABLE = "VESALIUS_MOBILE_PYTHON"
FOLDER = ".venv-mobile"
NEEDS = {"litert": ("litert_torch", "ai_edge_litert"), "executorch": ("executorch",)}
"""Modules by kind of file."""
_PROBE = "import importlib.util as u, sys; sys.exit(sum(u.find_spec(name) is None for name in sys.argv[1:]))"
_ENDED = "vesalius: "


def kind_of(to: str, accept: str | Path | None) -> str:
    """The kind of file that is made, or checked."""
    return to if accept is None else KINDS.get(Path(accept).suffix, "")


def wanted(kind: str) -> bool:
    """Whether files of this kind are made in another environment."""
    return any(find_spec(name) is None for name in NEEDS.get(kind, ()))


def interpreter(kind: str) -> Path:
    """The Python that has the converter: of the variable, else of ``.venv-mobile`` beside the running environment.

    Raises
    ------
    MissingExtra
        If there is none; the message holds the command that makes it.
    """
    named = variable(VARIABLE)
    inner = Path("Scripts", "python.exe") if sys.platform == "win32" else Path("bin", "python")
    place = Path(named) if named else Path(sys.prefix).parent / FOLDER / inner
    do = f"type `make mobile`, or name a Python that has `vesalius[mobile]` in {VARIABLE}"
    if not place.is_file():
        found = f"{place} does not exist" if named else "no environment has its converter"
        raise MissingExtra(f"export --to {kind}: {found}; {do}")
    command = [str(place), "-c", _PROBE, *NEEDS[kind], "vesalius"]
    try:
        done = subprocess.run(  # noqa: S603 - the interpreter that the person named or made
            command, capture_output=True, check=False, timeout=120
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingExtra(f"export --to {kind}: {place} cannot be run ({error}); {do}") from error
    if done.returncode:
        raise MissingExtra(f"export --to {kind}: {place} lacks vesalius or {' and '.join(NEEDS[kind])}; {do}")
    return place


def export(model: str | Path, kind: str, progress: Progress, reading: Any = None, **options: Any) -> dict[str, Any]:
    """``vesalius export`` in that environment; what it returns there.

    Parameters
    ----------
    reading
        A `jobs.Reading`, or None.
    options
        ``out``, ``data``, ``cases``, ``accept``; None where not given.

    Raises
    ------
    VesaliusError
        The same line with the same exit code as there.
    """
    words = []
    if options.get("accept") is None:
        # Nobody should build an environment for a model that is refused in it.
        mobile_contract(Bundle.load(model), kind)
        words = ["--to", kind]
    for name, value in {**options, **(asdict(reading) if reading is not None else {})}.items():
        if value is not None:
            words.append(f"--{name.replace('_', '-')}={value}")
    return _run(interpreter(kind), ["export", str(model), *words, "--json"], progress)


def _run(place: Path, words: list[str], progress: Progress) -> dict[str, Any]:
    command = [str(place), "-m", "vesalius.cli.main", *words]
    last = ""
    with TemporaryFile("w+", encoding="utf-8") as answer:
        process = subprocess.Popen(  # noqa: S603 - our own verb
            command, stdout=answer, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace"
        )
        try:
            for line in process.stderr or ():
                # A library may still say something after our own last line.
                if line.startswith(_ENDED) or (line.strip() and not last.startswith(_ENDED)):
                    last = line.strip()
                _pass_on(line, progress)
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        answer.seek(0)
        lines = [line for line in answer.read().splitlines() if line.startswith("{")]
    if code or not lines:
        raise _error(code, last)
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def _pass_on(line: str, progress: Progress) -> None:
    """What our verb says; lines of the libraries that it uses do not belong to it."""
    text = line.rstrip()
    if text.startswith("warning: "):
        progress.warn(text.removeprefix("warning: "))
    elif text.startswith("  "):
        progress.say(text.strip())


def _error(code: int, line: str) -> VesaliusError:
    """The error that ended the verb."""
    kinds = {
        one.exit_code: one
        for one in (
            VesaliusError, errors.UsageError, errors.DataError, errors.LeakageError, errors.ResourceError,
            errors.AcceptanceError, errors.Interrupted,
        )
    }  # fmt: skip
    if not line.startswith(_ENDED):
        return VesaliusError(f"the environment of the converter ended with code {code}: {line or 'no message'}")
    return kinds.get(code, VesaliusError)(line.removeprefix(_ENDED))
