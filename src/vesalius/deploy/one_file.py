"""The stand-alone runner of a model: the parts that it needs, written as one file that imports nothing of the house."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from vesalius.core.files import atomic
from vesalius.deploy import run_masks, run_objects, runner


def write_runner(contract: dict[str, Any], path: str | Path) -> Path:
    """The program that answers like a model of this contract, with numpy and onnxruntime only."""
    with atomic(Path(path)) as file:
        file.write(one_file(parts_of(contract)).encode())
    return Path(path)


def parts_of(contract: dict[str, Any]) -> list[ModuleType]:
    """Reading and classes; of masks also tiles and the way back; of single objects also the watershed."""
    if contract["task"] != "segment":
        return [runner]
    return [runner, run_masks, run_objects] if contract["decide"] == "objects" else [runner, run_masks]


def one_file(parts: list[ModuleType]) -> str:
    """The sources of `parts` one after the other, each using names of those before it.

    Imports stand once; those of the house fall away, because what they bring stands above. The first part gives the
    text at the top and the start of the program, which comes last.

    Raises
    ------
    ValueError
        If two parts give different things the same name.
    """
    first, *others = (_Part(part) for part in parts)
    known = set(first.names)
    for part in others:
        if twice := known & part.names:
            raise ValueError(f"{part.title}: {', '.join(sorted(twice))} has a meaning already")
        known |= part.names
    bodies = [first.body, *(f"# --- {part.title} {'-' * (113 - len(part.title))}\n\n\n{part.body}" for part in others)]
    return "\n\n\n".join([f"{first.head}\n\n{_imports([first, *others])}", *bodies, first.start]) + "\n"


class _Part:
    """One source file, taken apart."""

    def __init__(self, module: ModuleType) -> None:
        source = Path(str(module.__file__)).read_text(encoding="utf-8")
        lines, tree = source.splitlines(), ast.parse(source).body
        after = next(k for k, node in enumerate(tree[1:], 1) if not isinstance(node, (ast.Import, ast.ImportFrom)))
        ends = tree[-1].lineno - 1 if isinstance(tree[-1], ast.If) else len(lines)
        self.head = "\n".join(lines[: tree[0].end_lineno])
        self.imports = tree[1:after]
        self.body = "\n".join(lines[tree[after - 1].end_lineno or 0 : ends]).strip("\n")
        self.start = "\n".join(lines[ends:])
        self.title = str(ast.get_docstring(ast.parse(source))).splitlines()[0].rstrip(".")
        self.names = {name for node in tree[after:] for name in _defined(node)}


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    names = [name for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    return [name.id for name in names if isinstance(name.ctx, ast.Store)]


def _imports(parts: list[_Part]) -> str:
    """All imports once: `__future__`, the standard library, then others."""
    plain: set[str] = set()
    named: dict[str, set[str]] = {}
    for node in (node for part in parts for node in part.imports):
        if isinstance(node, ast.Import):
            plain.add(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom) and not str(node.module).startswith("vesalius."):
            named.setdefault(str(node.module), set()).update(alias.name for alias in node.names)
    standard = {line for line in plain if line.split()[1] in sys.stdlib_module_names}
    froms = [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(named.items())]
    future = [line for line in froms if line.startswith("from __future__")]
    groups = (future, sorted(standard) + [line for line in froms if line not in future], sorted(plain - standard))
    return "\n\n".join("\n".join(group) for group in groups if group)
