"""Optional libraries: import them, or say which command installs them."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from vesalius.core.errors import MissingExtra


def extra(module: str, *, group: str, purpose: str) -> ModuleType:
    """Import `module`, which belongs to the extra `group`.

    Raises
    ------
    MissingExtra
        One line with the purpose and the command to type.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"{purpose} needs `{module}`, which is not installed: pip install 'vesalius[{group}]'"
        ) from error
