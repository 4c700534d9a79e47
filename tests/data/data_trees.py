"""Small folders of files for the tests of data; their content is rarely looked at."""

from __future__ import annotations

from pathlib import Path


def touch(root: Path, *paths: str, content: bytes = b"x") -> Path:
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return root


def grow(root: Path, folder: str, count: int, suffix: str = ".png") -> list[str]:
    paths = [f"{folder}/{index:03d}{suffix}" for index in range(count)]
    touch(root, *paths)
    return paths


def said(manifest, severity: str = "") -> str:
    return " / ".join(map(str, (p for p in manifest.problems if severity in ("", p.severity))))


def table(root: Path, text: str, name: str = "manifest.csv", encoding: str = "utf-8") -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(text.encode(encoding))
    return root / name
