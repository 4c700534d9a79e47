"""Vesalius: deep learning for medical images, from a folder of scans to a validated, explained model.

The verbs of the command line are functions here with the same names: ``vesalius.train("scans", out="runs/a")``.
Several verbs are also packages of the library (`vesalius.train.loop`); such a package is callable and calls the verb.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from vesalius.core.environment import share_cores
from vesalius.core.version import __version__

VERBS = ("inspect", "plan", "train", "evaluate", "predict", "compress", "export", "measure", "demo")

__all__ = [
    "__version__",
    "compress",
    "demo",
    "evaluate",
    "export",
    "inspect",
    "measure",
    "plan",
    "predict",
    "train",
]


class _CallableRoom(ModuleType):
    """A package that is also a verb."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return _verb(self.__name__.rpartition(".")[2])(*args, **options)


class _House(ModuleType):
    """This package; it makes rooms with a verb's name callable when the import system attaches them."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in VERBS and isinstance(value, ModuleType):
            value.__class__ = _CallableRoom
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name not in VERBS:
            raise AttributeError(f"module 'vesalius' has no attribute {name!r}; its verbs are {', '.join(VERBS)}")
        try:
            return import_module(f"vesalius.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"vesalius.{name}":
                raise
            return _verb(name)


def _verb(name: str) -> Any:
    share_cores()
    room = "measuring" if name == "measure" else "jobs"  # measuring needs no torch, which jobs imports
    return getattr(import_module(f"vesalius.serve.{room}"), name)


sys.modules[__name__].__class__ = _House
