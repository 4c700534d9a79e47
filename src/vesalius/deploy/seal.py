"""A digest that an exported file keeps of itself, so that a single weight that was changed is seen without the record.

Where the digest goes stand zeros first; it is SHA-256 of all bytes of the file (of OpenVINO: of both files) with them.
It tells accidents and quiet changes, not a forger who computes it anew: for that, compare with the record.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from vesalius.core.files import atomic
from vesalius.deploy.runner import SEAL

BLANK = SEAL.decode() + "0" * 64
"""What is written where the digest goes."""


def sealed(data: bytes, more: bytes = b"") -> bytes:
    """`data` with its digest in place of the zeros; `more`: what follows in other files."""
    at = data.index(BLANK.encode()) + len(SEAL)
    return data[:at] + hashlib.sha256(data + more).hexdigest().encode() + data[at + 64 :]


def seal_file(path: str | Path, *others: Path) -> None:
    """Put the digest of a file and of `others` into the file."""
    path = Path(path)
    data = sealed(path.read_bytes(), b"".join(other.read_bytes() for other in others))
    with atomic(path) as file:
        file.write(data)
