"""``vesalius``: parse, call, print, exit code."""

from __future__ import annotations

import argparse
import errno
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_STARTED = time.monotonic()  # a budget counts from here, so that imports are paid for


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (docs/cli.md)."""
    typed = list(sys.argv[1:] if argv is None else argv)
    from vesalius.core.environment import share_cores
    from vesalius.core.errors import VesaliusError

    share_cores()
    verbose = "-v" in typed or "--verbose" in typed
    try:
        with _terminated_like_interrupted():
            return _run(typed)
    except VesaliusError as error:
        return _say(str(error), error.exit_code, verbose)
    except KeyboardInterrupt:
        return _say("interrupted; `train` goes on with --resume", 130, False)
    except BrokenPipeError:
        return 0
    except MemoryError:
        wish = "give --memory what is free, or set a smaller preprocess.size or optim.batch_size"
        return _say(f"out of memory; {wish}", 5, verbose)
    except OSError as error:
        full = error.errno == errno.ENOSPC
        hint = "; free some disk space" if full else ""
        return _say(f"{error.filename or ''}: {error.strerror}{hint}", 5 if full else 3, verbose)
    except Exception as error:  # a defect: one line for the person, the traceback with -v
        return _say(f"unexpected {type(error).__name__}: {error}; run again with -v and report it", 1, verbose)


def _say(line: str, code: int, verbose: bool) -> int:
    """One line on standard error, after the traceback if it was asked for; returns the exit code."""
    if verbose:
        traceback.print_exc()
    print(f"vesalius: {' '.join(line.split())}", file=sys.stderr)
    return code


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends a command as ctrl-C does: what is half done stays resumable, and the exit code is 130."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def build_parser() -> argparse.ArgumentParser:
    """The parser of every verb; a parsed line knows its function as ``call``."""
    from vesalius.cli import options, verbs
    from vesalius.core.version import __version__

    table = {
        "demo": (verbs.demo_options, verbs.demo, "the whole journey on embedded synthetic cases"),
        "inspect": (
            verbs.inspect_options,
            verbs.inspect,
            "what is in a folder: cases, patients, classes, duplicates, problems",
        ),
        "plan": (verbs.plan_options, verbs.plan, "a plan with reasons, and what it will take"),
        "train": (verbs.train_options, verbs.train, "from data to a tested, calibrated model with a report"),
        "evaluate": (verbs.evaluate_options, verbs.evaluate, "the report again, or on other data"),
        "predict": (verbs.predict_options, verbs.predict, "predictions on files, folders, DICOM series"),
        "compress": (verbs.compress_options, verbs.compress, "a smaller bundle, and what it cost in accuracy"),
        "export": (verbs.export_options, verbs.export, "one file with preprocessing inside, accepted on real cases"),
        "measure": (
            verbs.measure_options,
            verbs.measure,
            "shape, surface, vessel, cell and lesion measurements of masks, with units",
        ),
    }
    parser = options.Parser(prog="vesalius", description="Deep learning for medical images.", epilog=_CODES)
    parser.add_argument("--version", action="version", version=f"vesalius {__version__}")
    chosen = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs", parser_class=options.Parser)
    for name, (add, call, about) in table.items():
        verb = chosen.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.", epilog=_CODES)
        add(verb)
        options.common(verb)
        verb.set_defaults(call=call)
    return parser


def _run(typed: list[str]) -> int:
    parser = build_parser()
    args = parser.parse_args(typed)
    if args.verb is None:
        parser.print_help()
        return 2
    args.typed, args.started = ["vesalius", *typed], _STARTED
    from vesalius.cli.screen import Screen

    return int(args.call(args, Screen(-1 if args.quiet else int(args.verbose))))


_CODES = """exit codes: 0 done; 2 wrong usage; 3 data unreadable; 4 leakage refused; 5 memory, disk or time not enough;
6 an artefact was not accepted; 130 interrupted, state saved"""

if __name__ == "__main__":
    sys.exit(main())
