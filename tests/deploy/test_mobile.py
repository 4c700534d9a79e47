"""Files for mobile devices: the image they are given, what they say, and the environment that makes them."""

import hashlib
import json
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from deploy_material import ALONE, CUTS, python_of
from PIL import Image as Picture
from torch import nn

from vesalius.core.errors import AcceptanceError, MissingExtra, UsageError
from vesalius.core.files import sha256
from vesalius.core.labels import Labels
from vesalius.deploy import mobile_runner
from vesalius.deploy.artefact import contract_beside
from vesalius.deploy.mobile import MobileGraph, check_contract, mobile_contract, with_contract, write_litert
from vesalius.deploy.planes import in_planes
from vesalius.models.factory import Classifier, Shape, build_encoder
from vesalius.predict.bundle import Bundle
from vesalius.predict.predictor import Predictor
from vesalius.serve import elsewhere, jobs
from vesalius.transforms.preprocess import Preprocess

FITS = CUTS | {"nothing above": {"crop": "foreground", "threshold": 1e6}}


def resize_of(spec):
    """The part of a contract that says how an image is brought to the size of the graph."""
    return {
        "dims": spec["dims"],
        "channels": spec["channels"],
        "spacing_mm": spec["spacing_mm"],
        "resize": {key: spec[key] for key in ("crop", "threshold", "fit", "size")},
    }


def unchanged(dims, **options):
    """Preprocessing that resizes and leaves the values as they are."""
    size = [18, 23] if dims == 2 else [10, 12, 14]
    return Preprocess.from_spec({"dims": dims, "size": size, "storage": "float32", **options})


class TestResize:
    """The runner's resize in numpy against that of training in torch."""

    @pytest.mark.parametrize("name", FITS)
    @pytest.mark.parametrize(
        "shape",
        [(18, 23), (40, 31), (17, 64), (9, 12), (150, 90), (9, 40), (12, 13, 11), (5, 30, 14), (25, 9, 40)],
        ids=str,
    )
    def test_every_way_to_fit(self, name, shape, smooth):
        preprocess = unchanged(len(shape), **FITS[name])
        pixels = smooth((1, *shape), seed=3).astype(np.float32)
        found = mobile_runner.sized(pixels, resize_of(preprocess.spec))
        wanted = preprocess.store(pixels).numpy()
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, wanted)

    @pytest.mark.parametrize(("given", "wanted"), [(1, 3), (3, 1), (3, 3)])
    def test_channels(self, given, wanted, smooth):
        preprocess = unchanged(2, channels=wanted, crop="foreground", threshold=90.0)
        pixels = np.stack([smooth((41, 37), seed=k) for k in range(given)]).astype(np.uint8)
        found = mobile_runner.sized(pixels, resize_of(preprocess.spec))
        np.testing.assert_array_equal(found, preprocess.store(pixels).numpy())

    @pytest.mark.parametrize("kind", [np.int16, np.uint16, np.float64, ">i2"])
    def test_types(self, kind, smooth):
        preprocess = unchanged(2, fit="pad")
        pixels = smooth((1, 41, 37)).astype(kind)
        np.testing.assert_array_equal(
            mobile_runner.sized(pixels, resize_of(preprocess.spec)), preprocess.store(pixels).numpy()
        )

    @pytest.mark.parametrize("spacing", [(3.0, 1.5, 2.0), None])
    def test_spacing(self, spacing, smooth):
        preprocess = unchanged(3, spacing_mm=[2.0, 2.0, 2.0], fit="place", crop="foreground")
        pixels = smooth((1, 11, 31, 17)).astype(np.float32)
        found = mobile_runner.sized(pixels, resize_of(preprocess.spec), spacing)
        np.testing.assert_array_equal(found, preprocess.store(pixels, spacing).numpy())

    def test_one_slice_of_a_volume_is_an_image(self, smooth):
        preprocess = unchanged(2, spacing_mm=[2.0, 1.0], fit="place")
        pixels = smooth((1, 1, 31, 17)).astype(np.float32)
        found = mobile_runner.sized(pixels, resize_of(preprocess.spec), (9.0, 3.0, 1.5))
        np.testing.assert_array_equal(found, preprocess.store(pixels[:, 0], (3.0, 1.5)).numpy())

    @pytest.mark.parametrize(
        ("pixels", "line"),
        [
            (np.zeros((1, 4, 5, 6)), "needs 2 dimensions, the image has 3"),
            (np.zeros((2, 4, 5)), "needs 1 channels, the image has 2"),
            (np.full((1, 4, 5), np.nan), "20 pixels are not finite"),
        ],
        ids=["dimensions", "channels", "numbers"],
    )
    def test_what_does_not_fit_is_refused(self, pixels, line):
        with pytest.raises(SystemExit, match=line):
            mobile_runner.sized(pixels, resize_of(unchanged(2).spec))


@pytest.mark.parametrize("sides", [(12, 14, 16), (19, 17, 23)], ids=str)
@pytest.mark.parametrize(
    ("name", "options"), [("lean", {"width": 8}), ("lean", {"stem": "large", "width": 8}), ("convnet", {}),
                          ("resnet18", {"width": 8})]
)  # fmt: skip
def test_networks_of_volumes_are_the_same_plane_by_plane(name, options, sides):
    torch.manual_seed(0)
    sides = tuple(max(side, 16) for side in sides) if name == "convnet" else sides
    encoder = build_encoder(name, Shape(dims=3, inputs=2, size=sides, **options))
    network = Classifier(encoder, 3).eval()
    x = torch.randn(2, 2, *sides)
    with torch.no_grad():
        for value in network.parameters():  # residual blocks start as the identity
            value.add_(0.1 * torch.randn_like(value))
        flat = in_planes(network)
        assert not any(isinstance(part, nn.Conv3d | nn.MaxPool3d | nn.AvgPool3d) for part in flat.modules())
        torch.testing.assert_close(flat(x), network(x), atol=1e-4, rtol=1e-4)


QUESTIONS = {
    "ensemble": {"members": 2, "views": [[], [1]], "temperature": 1.4},
    "colour": {"channels": 3, "fit": "crop"},
    "several": {"labels": Labels(("a", "b", "c"), multilabel=True)},
    "threshold": {"names": ("no", "yes"), "threshold": 0.2},
    "window": {"window": [20.0, 180.0], "scale": {"low": 20.0, "high": 180.0}},
    "per image": {"normalise": {"kind": "per_image"}, "storage": "float32"},
}


def picture(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def shape_of(options):
    return (37, 29, 3) if options.get("channels") == 3 else (37, 29)


def in_torch(bundle):
    """The graph as the runner calls a file."""
    graph = MobileGraph(bundle).eval()

    @torch.no_grad()
    def call(inputs):
        return [graph(torch.from_numpy(inputs["image"])).numpy()]

    return call


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_graph_and_its_runner_say_what_the_bundle_says(name, make_classifier, smooth, tmp_path):
    from vesalius.io.open import open_image

    folder = make_classifier(tmp_path / "bundle", **QUESTIONS[name])
    bundle, model = Bundle.load(folder), Predictor.load(folder, device="cpu")
    contract = json.loads(json.dumps(mobile_contract(bundle, "litert")))
    for seed in range(3):
        path = picture(tmp_path / f"{seed}.png", smooth(shape_of(QUESTIONS[name]), seed=seed))
        image = open_image(path)
        scan = SimpleNamespace(values=image.pixels, spacing=image.grid.spacing_mm)
        found, wanted = mobile_runner.classify(in_torch(bundle), contract, scan), model(path)
        np.testing.assert_allclose(list(found["probabilities"].values()), wanted.probabilities, atol=1e-5)
        said = wanted.to_json()
        assert (found.get("class"), found.get("classes")) == (said.get("class"), said.get("classes"))


def test_quantised_models_are_refused_in_one_line(make_classifier, tmp_path):
    bundle = Bundle.load(make_classifier(tmp_path / "bundle"))
    bundle.graphs = [b"of int8"]
    with pytest.raises(UsageError, match="is quantised; export the run that it was made from"):
        write_litert(bundle, tmp_path / "model.tflite")


def test_the_contract_travels_behind_the_model(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(with_contract(b"\x1c\0\0\0TFL3" + bytes(100), {"task": "classify"}))
    assert path.read_bytes()[:8] == b"\x1c\0\0\0TFL3"
    assert mobile_runner.contract_in(path) == {"task": "classify"}
    assert zipfile.ZipFile(path).testzip() is None
    assert with_contract(b"x", {"a": 1}) == with_contract(b"x", {"a": 1})
    path.write_bytes(b"\x1c\0\0\0TFL3")
    assert mobile_runner.contract_in(path) is None


def test_a_contract_with_another_threshold_is_refused(make_classifier, tmp_path):
    bundle = Bundle.load(make_classifier(tmp_path / "bundle", names=("no", "yes"), threshold=0.2))
    contract = json.loads(json.dumps(mobile_contract(bundle, "litert")))
    check_contract(tmp_path / "model.tflite", contract, bundle)
    contract["decision"]["threshold"] = 0.9
    with pytest.raises(AcceptanceError, match="differs from the bundle in decision"):
        check_contract(tmp_path / "model.tflite", contract, bundle)


class TestElsewhere:
    """Which Python makes the file, and what comes back from it."""

    @pytest.fixture(autouse=True)
    def _nothing_here(self, monkeypatch):
        monkeypatch.setattr(elsewhere, "wanted", lambda kind: kind in elsewhere.NEEDS)

    @pytest.fixture
    def bundle(self, make_classifier, tmp_path):
        return make_classifier(tmp_path / "bundle")

    def test_without_an_environment_one_line_says_how_to_make_it(self, bundle, monkeypatch, tmp_path):
        monkeypatch.delenv(elsewhere.VARIABLE, raising=False)
        monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
        with pytest.raises(MissingExtra, match="type `make mobile`") as caught:
            jobs.export(bundle, to="litert")
        assert caught.value.exit_code == 2
        assert "\n" not in str(caught.value)

    def test_a_python_without_the_converter_is_named(self, bundle, monkeypatch, tmp_path):
        bare = tmp_path / "python"
        bare.write_text("#!/bin/sh\nexit 1\n")
        bare.chmod(0o755)
        monkeypatch.setenv(elsewhere.VARIABLE, str(bare))
        with pytest.raises(MissingExtra, match="python lacks vesalius or executorch; type `make mobile`"):
            jobs.export(bundle, to="executorch")

    def test_the_environment_beside_this_one_is_found(self, monkeypatch, tmp_path):
        monkeypatch.delenv(elsewhere.VARIABLE, raising=False)
        monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
        place = tmp_path / ".venv-mobile" / "bin" / "python"
        place.parent.mkdir(parents=True)
        place.write_text("#!/bin/sh\nexit 0\n")
        place.chmod(0o755)
        assert elsewhere.interpreter("litert") == place

    def test_other_models_are_refused_before_an_environment_is_asked_for(self, bundle, monkeypatch, tmp_path):
        monkeypatch.setenv(elsewhere.VARIABLE, str(tmp_path / "nowhere"))
        quantised = Bundle.load(bundle)
        quantised.graphs = [b"of int8"]
        monkeypatch.setattr(Bundle, "load", lambda folder: quantised)
        with pytest.raises(UsageError, match="is quantised; export the run"):
            jobs.export(bundle, to="litert")

    SAYS = """#!/bin/sh
[ "$1" = -c ] && exit 0
printf '%s\\n' "$@" > {args}
echo '  exporting to model.tflite' >&2
echo 'INFO: a library speaks' >&2
echo 'warning: watch out' >&2
{end}
"""

    def speaking(self, monkeypatch, tmp_path, end):
        place = tmp_path / "python"
        place.write_text(self.SAYS.format(args=tmp_path / "args", end=end))
        place.chmod(0o755)
        monkeypatch.setenv(elsewhere.VARIABLE, str(place))

    def test_options_progress_and_result_pass_through(self, bundle, monkeypatch, tmp_path):
        heard = []
        progress = SimpleNamespace(say=heard.append, warn=lambda text: heard.append(f"!{text}"))
        self.speaking(monkeypatch, tmp_path, """echo noise; echo '{"accepted": true, "worst": 1e-6}'""")
        reading = jobs.Reading(layout="class_folders", patient_pattern="(p\\d+)")
        found = jobs.export(bundle, to="litert", out="m.tflite", data="scans", cases=7, reading=reading,
                            progress=progress)  # fmt: skip
        assert found == {"accepted": True, "worst": 1e-6}
        assert heard == ["exporting to model.tflite", "!watch out"]
        assert (tmp_path / "args").read_text().splitlines() == [
            "-m", "vesalius.cli.main", "export", str(bundle), "--to", "litert", "--out=m.tflite", "--data=scans",
            "--cases=7", "--layout=class_folders", "--patient-pattern=(p\\d+)", "--json",
        ]  # fmt: skip

    def test_a_file_that_is_checked_goes_there_too(self, monkeypatch, tmp_path):
        self.speaking(monkeypatch, tmp_path, "echo '{}'")
        assert jobs.export("runs/a", accept="m.pte") == {}
        assert "--accept=m.pte" in (tmp_path / "args").read_text()

    def test_errors_keep_their_line_and_exit_code(self, bundle, monkeypatch, tmp_path):
        self.speaking(monkeypatch, tmp_path, "echo 'vesalius: it differs' >&2; echo 'a library ends' >&2; exit 6")
        with pytest.raises(AcceptanceError, match=r"^it differs$"):
            jobs.export(bundle, to="litert")
        self.speaking(monkeypatch, tmp_path, "echo 'Segmentation fault' >&2; exit 139")
        with pytest.raises(Exception, match="ended with code 139: Segmentation fault") as caught:
            jobs.export(bundle, to="litert")
        assert caught.value.exit_code == 1


@pytest.fixture(scope="session", params=["litert", "executorch"])
def kind(request):
    """A kind of file that can be made here, in this environment or in the one of `make mobile`."""
    python_of(request.param)
    return request.param


SUFFIX = {"litert": "tflite", "executorch": "pte"}


WHOLE = {
    "picture": {"members": 2, "views": [[], [1]], "names": ("no", "yes"), "threshold": 0.2,
                "crop": "foreground", "fit": "pad"},
    # Two axes that are no neighbours are mirrored, and spacings differ from file to file.
    "volume": {"dims": 3, "views": [[], [0, 2]], "spacing_mm": [3.0, 2.0, 2.0], "fit": "place",
               "normalise": {"kind": "per_image"}, "storage": "float32"},
}  # fmt: skip


def class_folders(root, smooth, options, count=4):
    for k, name in enumerate(options.get("names", ("no", "maybe", "yes"))):
        for number in range(count):
            seed, file = 10 * k + number, root / name / f"{number}.png"
            if options.get("dims") == 3:
                file.parent.mkdir(parents=True, exist_ok=True)
                values = smooth((17 + number, 16, 12), seed=seed).astype(np.float32)
                nib.save(nib.Nifti1Image(values, np.diag([2, 2, 2 + number, 1.0])), file.with_suffix(".nii.gz"))
            else:
                picture(file, smooth((37, 29), seed=seed))
    return root


def spread(folder, files):
    """Let a bundle with random weights answer the files in different ways."""
    bundle, model = Bundle.load(folder), Predictor.load(folder, device="cpu")
    logits = np.stack([model(file).logits for file in files])
    for member in bundle.members:
        member["head.linear.bias"] -= torch.from_numpy(logits.mean(axis=0).astype(np.float32))
    bundle.temperature = float(logits.std(axis=0).max())
    bundle.save(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_a_file_gives_the_answers_of_its_bundle(kind, name, make_classifier, smooth, tmp_path):
    folder = make_classifier(tmp_path / "bundle", **WHOLE[name])
    data = class_folders(tmp_path / "data", smooth, WHOLE[name])
    files = sorted(data.glob("*/*.*"))
    spread(folder, files)
    path = tmp_path / "out" / f"model.{SUFFIX[kind]}"
    record = jobs.export(folder, to=kind, out=path, data=data)
    assert record["accepted"]
    assert record["tolerance"] == 1e-3
    assert len(record["cases"]) == len(files)
    written = json.loads((tmp_path / "out" / f"{path.name}.accepted.json").read_text())
    assert written["sha256"] == {file.name: sha256(file) for file in (path, contract_beside(path))}
    assert json.loads(contract_beside(path).read_text()) == mobile_runner.contract_in(path)
    # The runner by itself, from the raw files, against the bundle in this environment.
    done = subprocess.run(
        [python_of(kind), "-c", ALONE, path.parent, path.parent / "run_mobile.py", path, *files],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = Predictor.load(folder, device="cpu")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    answers = [model(file) for file in files]
    for found, wanted in zip(lines, answers, strict=True):
        np.testing.assert_allclose(list(found["probabilities"].values()), wanted.probabilities, atol=1e-3)
        assert found["class"] == wanted.to_json()["class"]
    assert np.ptp([answer.probabilities[0] for answer in answers]) > 0.05, "the answers differ between the files"


@pytest.mark.slow
def test_a_changed_file_is_refused(kind, make_classifier, smooth, tmp_path):
    folder = make_classifier(tmp_path / "bundle")
    data = class_folders(tmp_path / "data", smooth, {}, count=1)
    path = tmp_path / f"model.{SUFFIX[kind]}"
    jobs.export(folder, to=kind, out=path, data=data)
    whole, told = path.read_bytes(), contract_beside(path).read_text()
    head = Bundle.load(folder).members[0]["head.linear.weight"].numpy()
    assert whole.count(head.tobytes()) == 1, "the weights of the last layer stand in the file as they are"
    path.write_bytes(whole.replace(head.tobytes(), (-head).tobytes()))
    with pytest.raises(AcceptanceError, match="is not the file that was accepted") as caught:
        jobs.export(folder, accept=path, data=data)
    assert caught.value.exit_code == 6
    (tmp_path / f"{path.name}.accepted.json").unlink()
    with pytest.raises(AcceptanceError, match="was changed after it was exported"):
        jobs.export(folder, accept=path, data=data)
    done = subprocess.run([python_of(kind), path.with_name("run_mobile.py"), path, data / "no" / "0.png"],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 6
    assert "was changed after it was exported" in done.stderr
    # Somebody who computes the digest anew: the answers themselves give it away.
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(mobile_runner.INSIDE).header_offset
    forged = path.read_bytes()[:start]
    contract = {**json.loads(told), "sha256": hashlib.sha256(forged).hexdigest()}
    path.write_bytes(with_contract(forged, contract))
    contract_beside(path).write_text(json.dumps(contract))
    with pytest.raises(AcceptanceError, match="differs from its bundle"):
        jobs.export(folder, accept=path, data=data)
    contract_beside(path).write_text(told)

    path.write_bytes(whole)
    contract_beside(path).write_text(told.replace('"largest"', '"each"'))
    with pytest.raises(AcceptanceError, match="is not the contract that the model holds"):
        jobs.export(folder, accept=path, data=data)


def test_errors_of_the_verb_come_back_as_they_are(kind, make_classifier, tmp_path):
    if not elsewhere.wanted(kind):
        pytest.skip("the converter is in this environment; nothing goes elsewhere")
    folder = make_classifier(tmp_path / "bundle")
    with pytest.raises(UsageError, match=rf"model.onnx: {kind} writes a file that ends with \.{SUFFIX[kind]}$"):
        jobs.export(folder, to=kind, out=tmp_path / "model.onnx")
