"""The runner that is handed out is one program, put together from its parts."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from vesalius.deploy import run_masks, run_objects, runner
from vesalius.deploy.one_file import one_file, parts_of, write_runner

CLASSES = {"task": "classify"}
MASKS = {"task": "segment", "decide": "argmax"}
OBJECTS = {"task": "segment", "decide": "objects"}


@pytest.mark.parametrize(
    ("contract", "parts", "answers"),
    [
        (CLASSES, [runner], {"classify"}),
        (MASKS, [runner, run_masks], {"classify", "segment"}),
        (OBJECTS, [runner, run_masks, run_objects], {"classify", "segment", "objects"}),
    ],
)
def test_it_holds_the_parts_of_its_model_and_no_import_of_the_house(contract, parts, answers, tmp_path):
    assert parts_of(contract) == parts
    text = write_runner(contract, tmp_path / "run.py").read_text()
    assert not [line for line in text.splitlines() if "import" in line and "vesalius" in line]
    assert text.startswith("#!/usr/bin/env python3\n")
    assert text.endswith("    main()\n")
    names = {"__name__": "other"}
    exec(compile(text, "run.py", "exec"), names)
    assert set(names["ANSWERS"]) == answers
    for part in parts:
        own = {name for name, value in vars(part).items() if getattr(value, "__module__", None) == part.__name__}
        assert own <= set(names)


def test_what_is_handed_out_has_no_undefined_or_unused_name(tmp_path):
    write_runner(OBJECTS, tmp_path / "run.py")
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F", tmp_path / "run.py"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_two_meanings_of_one_name_are_refused(tmp_path):
    (tmp_path / "other.py").write_text('"""Another part."""\n\nimport json\n\n\ndef read():\n    return json\n')
    with pytest.raises(ValueError, match=r"Another part: read has a meaning already"):
        one_file([runner, SimpleNamespace(__file__=str(tmp_path / "other.py"))])


def test_a_model_of_another_kind_is_named():
    names = {"__name__": "other"}
    exec(compile(one_file([runner]), "run.py", "exec"), names)
    names["load"] = lambda path: (None, MASKS)
    with pytest.raises(SystemExit, match="this program came with another kind of model"):
        names["main"](["model.onnx", "scan.nii.gz"])
