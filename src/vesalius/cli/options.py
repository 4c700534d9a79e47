"""The options that verbs share, and a parser that answers a wrong word with one line."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

from vesalius.core.errors import UsageError


class Parser(argparse.ArgumentParser):
    """argparse, except that a mistake is one line and exit code 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter, **options})

    def error(self, message: str) -> NoReturn:
        """One readable line; the nearest option is named for an unknown one."""
        raise UsageError(f"{message.replace('argument ', '')}{self._hint(message)}; see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Unknown words are refused by the verb that got them, which knows the nearest option."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def _hint(self, message: str) -> str:
        words = [word for word in message.replace("'", " ").split() if word.startswith("--")]
        known = [option for action in self._actions for option in action.option_strings]
        if "unrecognized" in message and words:
            near = difflib.get_close_matches(words[0].split("=")[0], known, n=1, cutoff=0.5)
            return f"; did you mean {near[0]}?" if near else ""
        return ""


def common(parser: argparse.ArgumentParser) -> None:
    """--json, -v, -q."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "--json", action="store_true", help="one JSON object on standard output, progress on standard error"
    )
    group.add_argument("-v", "--verbose", action="store_true", help="more lines, and the traceback of an error")
    group.add_argument("-q", "--quiet", action="store_true", help="warnings and results only")


def compute(parser: argparse.ArgumentParser) -> None:
    """--device, --workers."""
    group = parser.add_argument_group("machine")
    group.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1 or mps (default auto)")
    group.add_argument("--workers", type=positive, metavar="N", help="threads that decode files (default: all cores)")


def planning(parser: argparse.ArgumentParser) -> None:
    """--budget, --memory, --seed, --precision, --set."""
    group = parser.add_argument_group("what to aim for")
    group.add_argument("--task", default="classify", metavar="T", help="the question; this version trains classify")
    group.add_argument(
        "--budget", metavar="TIME", help="wall time for everything, e.g. 60s, 10m, 1h30m; size and schedule adapt"
    )
    group.add_argument("--memory", metavar="SIZE", help="memory the run may take, e.g. 2G")
    group.add_argument(
        "--seed", type=natural, default=0, metavar="N", help="every random decision follows from it (default 0)"
    )
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="arithmetic of training (default auto)",
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="overrule a line of the plan, e.g. model.name=resnet18",
    )


def reading(parser: argparse.ArgumentParser) -> None:
    """How the data are laid out."""
    group = parser.add_argument_group("data")
    group.add_argument("--layout", metavar="L", help="how DATA is laid out, if the guess is wrong")
    group.add_argument(
        "--label-column",
        metavar="C",
        help="column of the table with the class; several, comma-separated, for multi-label",
    )
    group.add_argument("--patient-column", metavar="C", help="column of the table with the patient")
    group.add_argument(
        "--patient-pattern", metavar="REGEX", help="the patient in each file name: the first group of the expression"
    )
    group.add_argument("--split-column", metavar="C", help="column of the table with train, val or test")


def reading_of(args: argparse.Namespace) -> Any:
    """The `serve.jobs.Reading` of parsed arguments."""
    from vesalius.serve.jobs import Reading

    return Reading(args.layout, args.label_column, args.patient_column, args.patient_pattern, args.split_column)


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """``--set`` and ``--precision`` as decisions of a plan."""
    from vesalius.core.plan import parse_settings

    settings = parse_settings(args.settings)
    if args.precision != "auto":
        settings["optim.precision"] = args.precision
    return settings


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """A whole number of at least 0."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return number


def words(items: Sequence[str]) -> str:
    """``a, b and c``."""
    return ", ".join(items[:-1]) + f" and {items[-1]}" if len(items) > 1 else "".join(items)
