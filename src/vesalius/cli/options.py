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
    group.add_argument("--task", metavar="T", help="classify or segment; else what the data hold the truth for")
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


def measuring(parser: argparse.ArgumentParser) -> None:
    """What `measure` measures and writes."""
    group = parser.add_argument_group("what to measure")
    group.add_argument(
        "--kind",
        default="auto",
        metavar="K",
        help="organs, lesions, cells, vessels, tissue, heart, chest or auto (default auto)",
    )
    group.add_argument("--names", metavar="N", help="names of the labels: 1=liver,2=tumour or a JSON file")
    group.add_argument("--labels", metavar="V", type=whole_numbers, default=(), help="only these label values: 1,2")
    group.add_argument(
        "--spacing", metavar="MM", type=numbers, help="mm per pixel in the order z,y,x, for files that do not say it"
    )
    group.add_argument(
        "--tolerance",
        metavar="MM",
        type=numbers,
        default=(1.0, 2.0),
        help="tolerances of the normalised surface distance (default 1,2)",
    )
    group.add_argument(
        "--with",
        metavar="WHAT",
        action="append",
        default=[],
        dest="extras",
        help="also texture, relations, thickness, symmetry, autocorrelation, peaks or ripley (may be repeated)",
    )
    group = parser.add_argument_group("what to write")
    group.add_argument("--mesh", metavar="F", action="append", default=[], help="surface meshes: stl, ply, obj, vtk")
    group.add_argument("--contours", metavar="F", action="append", default=[], help="outlines: geojson, rtstruct")
    group.add_argument(
        "--deviation",
        metavar="MM",
        type=float,
        help="how far smoothing may move a mesh (default half a voxel)",
    )
    group.add_argument("--format", metavar="F", action="append", default=[], dest="formats", help="csv, parquet (both)")
    group.add_argument("--no-page", action="store_true", help="tables only, no page with pictures")


def wishes_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `measuring` as arguments of `serve.measuring.measure`."""
    return {
        "kind": args.kind,
        "names": args.names,
        "labels": args.labels,
        "spacing": args.spacing,
        "tolerances": args.tolerance,
        "extras": _words(args.extras),
        "meshes": _words(args.mesh),
        "contours": _words(args.contours),
        "deviation": args.deviation,
        "formats": _words(args.formats) or ("csv", "parquet"),
    }


def _words(given: Sequence[str]) -> tuple[str, ...]:
    return tuple(word.strip() for text in given for word in text.split(",") if word.strip())


def numbers(text: str) -> tuple[float, ...]:
    """``0.5,1`` as numbers."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0.5,1") from None


def whole_numbers(text: str) -> tuple[int, ...]:
    """``1,2,7`` as whole numbers."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 1,2") from None


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
