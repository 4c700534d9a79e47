"""The page tells single objects apart as the runner and the bundle do."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image as Picture
from scipy import ndimage

from vesalius.core.labels import Labels
from vesalius.core.progress import Silent
from vesalius.deploy import run_objects, web_out, web_runtime
from vesalius.deploy.chromium import find_browser
from vesalius.deploy.web_check import WebPage
from vesalius.measure.instances import instance_scores
from vesalius.predict.bundle import Bundle
from vesalius.predict.segmenter import SegmentPredictor
from vesalius.serve import jobs

CELLS = Labels(("background", "cell"), instances=True)
TEMPLATES = web_out.Path(web_out.__file__).with_name("web")
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")
needs_browser = pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed")

DECODE = """
globalThis.Reading = require(process.argv[1]);
globalThis.Segmenting = require(process.argv[2]);
const Separating = require(process.argv[3]);
const [maps, sides, rule] = JSON.parse(require("fs").readFileSync(0, "utf-8"));
process.stdout.write(JSON.stringify(Array.from(Separating.decode(Float32Array.from(maps), sides, rule))));
"""

PAINTED = """(() => {
  const picture = document.querySelector("#picture"), cover = document.querySelector("#cover");
  cover.value = 100;
  cover.oninput();
  const { data } = picture.getContext("2d").getImageData(0, 0, picture.width, picture.height);
  const shade = (i) => 65536 * data[i] + 256 * data[i + 1] + data[i + 2];
  return Array.from({ length: data.length / 4 }, (_, i) => shade(4 * i));
})()"""


def decoded(maps, rule):
    """What the page makes of maps."""
    done = subprocess.run(
        [NODE, "-e", DECODE, *(TEMPLATES / name for name in ("read.js", "segment.js", "objects.js"))],
        input=json.dumps([maps.reshape(-1).tolist(), maps.shape[1:], rule]),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return np.reshape(json.loads(done.stdout), maps.shape[1:])


def maps_of(shape, draw, scale):
    fields = [ndimage.gaussian_filter(draw.normal(0, 1, shape), scale) for _ in range(3)]
    return np.stack([(one - one.min()) / np.ptp(one) for one in fields]).astype(np.float32)


@needs_node
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shape", [(60, 71), (14, 20, 17)])
def test_objects_are_those_of_the_runner(shape, seed):
    draw = np.random.default_rng(seed)
    maps = maps_of(shape, draw, 3.0 if len(shape) == 2 else 2.0)
    rule = {
        "threshold": float(draw.uniform(0.3, 0.6)),
        "seed_threshold": float(draw.choice([0.02, 0.05, 0.1, 0.3])),
        "min_size": float(draw.choice([0, 5, 20])),
        "smooth": float(draw.choice([0, 1, 2])),
    }
    mine, wanted = decoded(maps, rule), run_objects.decode(maps, rule)
    assert mine.max() == wanted.max() > 0
    # The Gaussians differ in the last bits; a step of 1 / 4095 may order two voxels otherwise.
    assert (mine == wanted).mean() > 0.999


@needs_node
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_nothing_and_everything(value):
    maps = np.full((3, 9, 11), value, np.float32)
    rule = {"threshold": 0.5, "seed_threshold": 0.1, "min_size": 3.0, "smooth": 1.0}
    np.testing.assert_array_equal(decoded(maps, rule), run_objects.decode(maps, rule))


@needs_browser
@pytest.mark.parametrize("diameters", [None, [9.0, 10.0, 11.0]])
def test_the_page_counts_objects(diameters, make_segmenter, smooth, runtime, browser, tmp_path):
    known = {"diameters": diameters} if diameters else {}
    bundle = make_segmenter(
        tmp_path / "bundle", CELLS, dims=2, decode={"seed_threshold": 0.05, "min_size": 4.0}, **known
    )
    files = web_runtime.runtime_files(runtime, Silent())
    folder = web_out.write_web(Bundle.load(bundle), tmp_path / "page", files)
    page = WebPage(browser, (folder / "index.html").as_uri(), tmp_path)
    model = SegmentPredictor.load(bundle, device="cpu", backend="torch")
    for k, shape in enumerate([(50, 64), (33, 90)]):
        path = tmp_path / f"p{k}.png"
        Picture.fromarray(smooth(shape, seed=k).astype(np.uint8)).save(path)
        found, wanted = page.answer(path), model(path).values
        mask = found["mask"]
        assert mask.shape == shape
        assert ((mask > 0) == (wanted > 0)).mean() > 0.999
        assert instance_scores(mask, wanted)["panoptic_quality"] > 0.97
        assert found["objects"] == mask.max() > 3
        sizes = np.bincount(mask.reshape(-1))[1:]
        assert found["median_object"]["voxels"] == np.median(sizes[sizes > 0])
        assert found["structures"] == [{"name": "cell", "voxels": int((mask > 0).sum())}]
        assert page.tab.evaluate("document.querySelector('#said').textContent") == f"{mask.max()} objects"
    colours = page.tab.evaluate(PAINTED)
    painted = np.reshape(colours, mask.shape)
    shades = [np.unique(painted[mask == number]) for number in range(1, mask.max() + 1) if (mask == number).any()]
    assert all(len(one) == 1 for one in shades)
    assert len({int(one[0]) for one in shades}) == len(shades)


@needs_browser
@pytest.mark.parametrize("dims", [2, 3])
def test_a_page_of_objects_is_accepted(dims, make_segmenter, smooth, runtime, tmp_path):
    bundle = make_segmenter(tmp_path / "bundle", CELLS, dims=dims)
    data, shape = tmp_path / "data", (40, 48) if dims == 2 else (18, 22, 20)
    for name in ("images", "labels"):
        (data / name).mkdir(parents=True)
    truth = np.zeros(shape, np.uint16)
    truth[..., 4:10, 4:10], truth[..., 4:10, 12:20] = 1, 2
    if dims == 2:
        Picture.fromarray(smooth(shape).astype(np.uint8)).save(data / "images" / "a.png")
        Picture.fromarray(truth).save(data / "labels" / "a.png")
    else:
        import nibabel as nib

        for name, values in (("images", smooth(shape).astype(np.float32)), ("labels", truth)):
            nib.save(nib.Nifti1Image(values, np.diag([-1.0, 1, 1, 1])), data / name / "a.nii.gz")
    record = jobs.export(bundle, to="web", out=tmp_path / "page", data=data, runtime=runtime)
    assert record["accepted"]
    (case,) = record["cases"]
    assert case["read_by"] == "page"
    assert case["pq"] > 0.97
