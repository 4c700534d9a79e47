"""The documentation tells the truth: commands exist, pages made from code are up to date, links lead somewhere."""

import argparse
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from vesalius.cli.main import build_parser
from vesalius.core import errors
from vesalius.core.plan import parse_settings
from vesalius.io.raster_out import write_png

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))])
OTHER_PROGRAMS = ("make", "python", "pip", "git", "cd", "tensorboard", "torchrun", "uv", "sha256sum")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def blocks(path, language):
    return [body for name, body in FENCE.findall(path.read_text(encoding="utf-8")) if name == language]


def commands():
    """(page, words) of every ``$ vesalius ...`` line in a console block; a backslash continues it."""
    found = []
    for page in PAGES:
        for body in blocks(page, "console"):
            for line in body.replace("\\\n", " ").splitlines():
                if line.startswith("$ "):
                    words = shlex.split(line[2:], comments=True)
                    for stop in ("|", ">", "2>", "&&"):
                        words = words[: words.index(stop)] if stop in words else words
                    found.append((page.name, words))
    return found


def verbs():
    chosen = next(action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return chosen.choices


def options(parser):
    return {option for action in parser._actions for option in action.option_strings if option.startswith("--")}


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(value):
    return " ".join(value) if isinstance(value, list) else value


@pytest.mark.parametrize(("page", "words"), commands(), ids=shown)
def test_commands_parse(page, words):
    program, *rest = words
    if program != "vesalius":
        assert program in OTHER_PROGRAMS, f"{page}: {program}"
        return
    if rest == ["--version"]:
        return
    args = build_parser().parse_args(rest)
    assert args.verb in verbs()
    parse_settings(getattr(args, "settings", []))


def test_there_are_commands_to_check():
    assert {words[1] for _, words in commands() if words[0] == "vesalius"} >= set(verbs())


def test_every_verb_and_option_is_documented():
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    shared = sections["Shared options"]
    for name, parser in verbs().items():
        assert name in sections, name
        told = set(re.findall(r"--[a-z][a-z-]+", sections[name] + shared))
        assert options(parser) - told == set(), name


def test_the_page_names_no_option_that_is_not_there():
    real = {"--version", *(option for parser in verbs().values() for option in options(parser))}
    # Options of other programs that the pages mention.
    others = {"--check", "--logdir"}
    for page in PAGES:
        told = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text(encoding="utf-8")))
        if page.name in ("cli.md", "README.md"):
            assert told - real - others == set(), page.name


def test_shared_options_stand_at_the_verbs_that_have_them():
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    shared = page.split("## Shared options", 1)[1].split("## Exit codes", 1)[0]
    for title, body in re.findall(r"^### ([^\n]+)\n(.*?)(?=^### |\Z)", shared, re.M | re.S):
        named = re.search(r"For ([^\n]*)\.", body)[1]
        holders = set(verbs()) if "every verb" in named else set(re.findall(r"`(\w+)`", named))
        cells = [line.split("|")[1] for line in body.splitlines() if line.startswith("| `")]
        rows = {option for cell in cells for option in re.findall(r"--[a-z][a-z-]+", cell)}
        for name, parser in verbs().items():
            assert (rows <= options(parser)) is (name in holders), (title, name)


def test_exit_codes_are_those_of_the_errors():
    page = (DOCS / "cli.md").read_text(encoding="utf-8").split("## Exit codes", 1)[1]
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.M)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    real = {kind.exit_code for kind in kinds if issubclass(kind, errors.VesaliusError)}
    assert told == real | {0}


def test_the_page_of_plan_keys_is_up_to_date():
    made = loaded("make_plan_page")
    assert made.PAGE.read_text(encoding="utf-8") == made.page(), "run python docs/make_plan_page.py"
    assert made.SCHEMA_FILE.read_text(encoding="utf-8") == made.schema(), "run python docs/make_plan_page.py"


def test_the_table_of_networks_is_up_to_date():
    made = loaded("make_models_page")
    text = made.PAGE.read_text(encoding="utf-8")
    assert text == made.page(text), "run python docs/make_models_page.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        if path:
            assert (page.parent / path).exists(), target
        elif anchor:
            assert anchor in anchors, target


def test_every_page_is_on_the_map():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    missing = [page.name for page in DOCS.glob("*.md") if page.name != "index.md" and f"({page.name})" not in index]
    assert missing == []


def test_every_dependency_has_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [text for name, group in project["optional-dependencies"].items() if name != "dev" for text in group]
    base = {re.match(r"[\w-]+", text)[0] for text in [*project["dependencies"], *extras]}
    table = (DOCS / "dependencies.md").read_text(encoding="utf-8").split("## Left out", 1)[0]
    assert set(re.findall(r"^\| ([\w-]+) \|", table, re.M)) - {"library"} == base


def test_constraints_pin_every_dependency_exactly():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    # The converters for mobile devices have an environment of their own.
    mobile = extras.pop("mobile")
    together = [*project["dependencies"], *(text for group in extras.values() for text in group)]
    for name, asked in (("constraints.txt", together), ("constraints-mobile.txt", [*project["dependencies"], *mobile])):
        lines = [line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        assert all(re.fullmatch(r"[a-z0-9][a-z0-9.-]*==[0-9][0-9a-z.]*", line) for line in lines)
        wanted = {re.match(r"[\w-]+", text)[0].lower() for text in asked if not text.startswith("vesalius[")}
        assert wanted - {line.split("==")[0] for line in lines} == set()


def test_no_page_names_a_folder_of_somebodys_machine():
    for page in PAGES:
        assert not re.search(r"(?<![\w.])/(home|root|work|Users|opt|tmp)/", page.read_text(encoding="utf-8")), page.name


@pytest.mark.slow
def test_code_of_the_extension_page_runs(tmp_path):
    draw = np.random.default_rng(5)
    for grade in range(3):
        (tmp_path / "scans" / f"grade-{grade}").mkdir(parents=True)
        for patient in range(30):
            pixels = draw.normal(80, 20, (32, 32))
            pixels[8:20, 8:20] += 40 * grade
            name = f"grade-{grade}/p{patient:02d}-{grade}.png"
            write_png(tmp_path / "scans" / name, pixels.clip(0, 255).astype(np.uint8))
    (tmp_path / "page.py").write_text("\n".join(blocks(DOCS / "extend.md", "python")), encoding="utf-8")
    done = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/plain/report/index.html").is_file()
    assert "class_scores" in done.stdout


def test_code_of_the_image_page_runs(tmp_path, monkeypatch):
    import nibabel as nib

    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.diag([1.0, 2.0, 3.0, 1.0])), tmp_path / "scan.nii.gz")
    monkeypatch.chdir(tmp_path)
    first, second = blocks(DOCS / "images.md", "python")
    space = {}
    exec(first, space)
    exec(second.replace("large-series", "scan.nii.gz"), space)
    assert space["image"].grid.spacing_mm == (3.0, 2.0, 1.0)
