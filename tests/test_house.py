"""The rules of the house that a machine can check: docs/architecture.md, "Floors"."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"
PACKAGE = SRC / "vesalius"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [path.relative_to(PACKAGE).as_posix() for path in FILES]

FLOORS = {
    "cli": 8,
    "serve": 7,
    "report": 6, "deploy": 6, "privacy": 6,
    "train": 5, "evaluate": 5, "explain": 5,
    "predict": 4,
    "data": 3, "tasks": 3, "phantoms": 3,
    "io": 2, "transforms": 2, "models": 2, "measure": 2,
    "core": 1,
}  # fmt: skip

every_file = pytest.mark.parametrize("path", FILES, ids=NAMES)


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(node, package):
    """Absolute dotted names that an import statement in a file of `package` brings in."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parts = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parts, *([base] if base else [])])
        # `from vesalius import train` names the package in the alias.
        return [f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__", "importlib.import_module"):
        return [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    return []


def _called(node):
    return ast.unparse(node.func)


def climbs(text, room):
    """Imports of `text`, a file of package `room`, that do not point to a lower floor."""
    found = []
    for node in ast.walk(ast.parse(text)):
        for name in imported(node, f"vesalius.{room}"):
            parts = name.split(".")
            if parts[0] != "vesalius" or len(parts) < 2 or parts[1] == room:
                continue
            if FLOORS.get(parts[1], 99) >= FLOORS[room]:
                found.append(f"line {node.lineno}: {room} (floor {FLOORS[room]}) imports {name}")
    return found


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("from vesalius.core.files import atomic", False),
        ("from vesalius.data.store import Store", False),
        ("from vesalius.predict.bundle import Bundle", True),  # up
        ("import vesalius.predict.bundle", True),
        ("import vesalius.predict.bundle as b", True),
        ("from vesalius import predict", True),
        ("from vesalius.tasks.classify import Classify", True),  # sideways
        ("from vesalius.phantoms import chest", True),
        ("def f():\n    if True:\n        from vesalius.serve import jobs", True),  # inside a function
        ("from ..train import loop", True),  # relative
        ("from ..io import open", False),
        ("from .store import Store", False),
        ("import importlib\nimportlib.import_module('vesalius.train.loop')", True),
    ],
)
def test_the_reader_of_imports_sees_every_form(text, bad):
    assert bool(climbs(text, "data")) is bad


@every_file
def test_imports_point_to_lower_floors(path):
    parts = path.relative_to(PACKAGE).parts
    if len(parts) == 1:
        assert parts[0] in ("__init__.py", "__main__.py"), f"{path}: a module outside the floors"
        return
    assert parts[0] in FLOORS, f"{path}: package {parts[0]!r} has no floor; add it to docs/architecture.md and here"
    assert climbs(path.read_text(encoding="utf-8"), parts[0]) == []


def test_the_floors_are_those_of_the_architecture_page():
    page = (SRC.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 2 and cells[0].isdigit():
            words = {word.strip("`") for word in cells[1].replace(",", " ").split() if word.startswith("`")}
            for room in (word for word in words if "/" not in word):
                assert FLOORS[room] == int(cells[0]), room


# They leave the house as one file, a program of its own (deploy/one_file.py).
RUNNER = PACKAGE / "deploy" / "runner.py"
PARTS = [PACKAGE / "deploy" / name for name in ("run_masks.py", "run_objects.py")]
# The same for mobile devices; it reads files with the other one, which lies beside it as run.py.
MOBILE_RUNNER = PACKAGE / "deploy" / "mobile_runner.py"


@every_file
def test_no_file_is_longer_than_500_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


@every_file
def test_no_function_is_longer_than_60_lines(path):
    long = [
        (node.name, node.end_lineno - node.lineno)
        for node in ast.walk(tree(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno > 60
    ]
    assert long == []


def test_the_runner_imports_nothing_of_the_house():
    for path, wanted in ((RUNNER, {"numpy", "onnxruntime"}), *((part, {"numpy"}) for part in PARTS)):
        names = {name for node in ast.walk(tree(path)) for name in imported(node, "vesalius.deploy")}
        foreign = {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}
        own = {f"vesalius.deploy.{part.stem}" for part in (RUNNER, *PARTS)}
        assert {name for name in foreign if not any(name.startswith(part) for part in own)} == wanted, path.name


def test_the_runner_for_mobile_devices_imports_a_runtime_and_the_other_runner():
    names = {name.split(".")[0] for node in ast.walk(tree(MOBILE_RUNNER)) for name in imported(node, "vesalius.deploy")}
    assert names - set(sys.stdlib_module_names) == {"numpy", "ai_edge_litert", "executorch", "torch", "run"}


@every_file
def test_only_cli_prints(path):
    if path.parent.name == "cli" or path in (RUNNER, MOBILE_RUNNER):
        return
    found = [
        node.lineno
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and (_called(node) == "print" or _called(node) in ("sys.stdout.write", "sys.stderr.write"))
    ]
    assert found == []


@every_file
def test_only_core_reads_the_environment(path):
    if path.parent.name == "core":
        return
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.environb", "os.getenv"):
            found.append(node.lineno)
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            found += [node.lineno for alias in node.names if alias.name in ("environ", "environb", "getenv")]
    assert found == []


@every_file
def test_validation_raises_and_nothing_is_swallowed(path):
    found = [f"assert in line {node.lineno}" for node in ast.walk(tree(path)) if isinstance(node, ast.Assert)]
    found += [
        f"bare except in line {node.lineno}"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert found == []


@every_file
def test_nothing_that_could_run_code_is_loaded(path):
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = imported(node, "vesalius.x")
            found += [
                f"line {node.lineno}: {name}"
                for name in names
                if name.split(".")[0] in ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
            ]
        if not isinstance(node, ast.Call):
            continue
        name = _called(node)
        options = {word.arg: word.value for word in node.keywords}
        if name in ("eval", "exec", "compile", "yaml.load", "yaml.unsafe_load", "pandas.read_pickle", "pd.read_pickle"):
            found.append(f"line {node.lineno}: {name}")
        pickled = options.get("allow_pickle")
        if pickled is not None and not (isinstance(pickled, ast.Constant) and pickled.value is False):
            found.append(f"line {node.lineno}: allow_pickle")
        if name == "torch.load":
            safe = options.get("weights_only")
            if not (isinstance(safe, ast.Constant) and safe.value is True):
                found.append(f"line {node.lineno}: torch.load without weights_only=True")
    assert found == []


@every_file
def test_package_init_files_hold_a_docstring_and_nothing_else(path):
    if path.name != "__init__.py" or path.parent == PACKAGE:
        return
    body = tree(path).body
    assert len(body) == 1
    assert ast.get_docstring(tree(path))


def modules_loaded(code):
    """Names of top-level packages in ``sys.modules`` after `code` ran in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint('LOADED', *sorted(m for m in sys.modules if '.' not in m))"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("LOADED"))
    return set(line.split()[1:])


@pytest.mark.parametrize("room", ["core", "io", "measure", "phantoms"])
def test_the_lower_rooms_work_without_torch(room):
    modules = [
        ".".join(path.relative_to(SRC).with_suffix("").parts)
        for path in FILES
        if path.relative_to(PACKAGE).parts[0] == room and path.name != "__init__.py"
    ]
    assert modules
    loaded = modules_loaded("import importlib\n" + "\n".join(f"importlib.import_module({name!r})" for name in modules))
    assert "numpy" in loaded
    assert not loaded & {"torch", "lightning_fabric", "tensorboard"}


def test_core_needs_numpy_only():
    modules = [
        f"vesalius.core.{path.stem}" for path in FILES if path.parent.name == "core" and path.name != "__init__.py"
    ]
    loaded = modules_loaded("\n".join(f"import {name}" for name in modules))
    assert not loaded & {"pandas", "scipy", "pyarrow", "matplotlib", "PIL", "nibabel", "pydicom", "SimpleITK"}


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["predict", "--help"], ["--version"]])
def test_help_answers_without_heavy_imports(words):
    lines = ["from vesalius.cli.main import main", "try:", f"    main({words!r})", "except SystemExit as end:"]
    code = "\n".join([*lines, "    if end.code:", "        raise"])
    loaded = modules_loaded(code)
    assert not loaded & {"torch", "pandas", "numpy", "scipy", "rich", "pydicom", "yaml"}
