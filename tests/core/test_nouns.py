"""Labels, predictions, images, errors, randomness, progress: small promises of the ground floor."""

import json
import pickle

import numpy as np
import pytest

from vesalius.core import errors
from vesalius.core.case import Case
from vesalius.core.geometry import Grid
from vesalius.core.image import Act, Clip, Image
from vesalius.core.labels import Concept, Labels
from vesalius.core.prediction import ClassScores
from vesalius.core.progress import Silent, track
from vesalius.core.randomness import generator, key


def test_labels_survive_json():
    labels = Labels(
        ("normal", "nodule"),
        positive=1,
        colours=("#000000", "#ff0000"),
        concepts=(None, Concept("39607008", "SCT", "Lung")),
    )
    assert Labels.from_json(json.loads(json.dumps(labels.to_json()))) == labels
    many = Labels(("a", "b", "c"), multilabel=True)
    assert Labels.from_json(json.loads(json.dumps(many.to_json()))) == many
    assert Labels.from_json({"names": ["a", "b"]}) == Labels(("a", "b"))


def test_binary_means_two_exclusive_classes():
    assert Labels(("a", "b")).binary
    assert not Labels(("a", "b"), multilabel=True).binary
    assert not Labels(("a", "b", "c")).binary
    assert len(Labels(("only",), multilabel=True)) == 1
    assert len(set(Labels(tuple("abcdefgh")).colours)) == 8


@pytest.mark.parametrize(
    "options",
    [
        {"names": ("a",)},
        {"names": ()},
        {"names": ("a", "a")},
        {"names": ("a", "b"), "positive": 2},
        {"names": ("a", "b"), "positive": -1},
        {"names": ("a", "b"), "colours": ("#fff",)},
        {"names": ("a", "b"), "concepts": (None,)},
        {"names": (), "multilabel": True},
    ],
)
def test_labels_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match="class"):
        Labels(**options)


def scores(p, **options):
    names = tuple("abcd"[: len(p)])
    labels = options.pop("labels", Labels(names))
    return ClassScores("case", labels, np.array(p), np.log(np.array(p)), **options)


def test_the_class_that_is_said():
    assert scores([0.2, 0.5, 0.3]).top == "b"
    assert scores([0.7, 0.3]).top == "a"
    assert scores([0.7, 0.3], threshold=0.25).top == "b"
    assert scores([0.7, 0.3], threshold=0.3).top == "b"
    assert scores([0.4, 0.6], threshold=0.7).top == "a"
    first = Labels(("sick", "well"), positive=0)
    assert scores([0.3, 0.7], threshold=0.2, labels=first).top == "sick"
    assert scores([0.1, 0.9], threshold=0.2, labels=first).top == "well"


def test_scores_as_json():
    data = json.loads(json.dumps(scores([0.25, 0.75], spread=0.125).to_json()))
    assert data == {
        "case_id": "case",
        "kind": "class_scores",
        "probabilities": {"a": 0.25, "b": 0.75},
        "class": "b",
        "spread": 0.125,
    }
    several = scores([0.5, 0.4, 0.9], labels=Labels(("a", "b", "c"), multilabel=True)).to_json()
    assert several["classes"] == ["a", "c"]
    assert "class" not in several
    with pytest.raises(ValueError, match="2 classes"):
        ClassScores("x", Labels(("a", "b")), np.ones(3) / 3, np.zeros(3))


def test_an_image_must_fit_its_grid():
    image = Image(Grid((4, 5)), np.zeros((3, 4, 5), np.uint16))
    assert image.channels == ("channel 0", "channel 1", "channel 2")
    more = image.noted(Act.REPAIRED, "one").noted(Act.NOTED, "two")
    assert [note.text for note in more.record] == ["one", "two"]
    assert image.record == ()
    for grid, pixels, channels in [((4, 5), (3, 5, 4), ()), ((4, 5), (4, 5), ()), ((4, 5), (2, 4, 5), ("a",))]:
        with pytest.raises(ValueError, match=r"pixels|channel"):
            Image(Grid(grid), np.zeros(pixels), channels=channels)


def test_a_case_says_which_roles_it_has():
    case = Case("c", "p", images={"t1": Image(Grid((2, 2)), np.zeros((1, 2, 2)))})
    assert case.image("t1").pixels.shape == (1, 2, 2)
    with pytest.raises(KeyError, match="t1"):
        case.image()


def test_a_clip_reads_frame_by_frame():
    frames = np.arange(5 * 4).reshape(5, 1, 2, 2)
    clip = Clip(5, (1, 2, 2), 25.0, lambda a, b: frames[a:b])
    assert np.array_equal(np.stack(list(clip)), frames)


CODES = {
    "VesaliusError": 1,
    "UsageError": 2,
    "PlanError": 2,
    "MissingExtra": 2,
    "DataError": 3,
    "FileError": 3,
    "UnreadableFile": 3,
    "GeometryError": 3,
    "LimitError": 3,
    "LeakageError": 4,
    "ResourceError": 5,
    "AcceptanceError": 6,
    "Interrupted": 130,
}


def test_every_error_has_its_exit_code():
    found = {
        name: kind.exit_code
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.VesaliusError)
    }
    assert found == CODES


@pytest.mark.parametrize("name", sorted(CODES))
def test_errors_pass_between_processes(name):
    kind = getattr(errors, name)
    if issubclass(kind, errors.FileError):
        error = kind("a/b.dcm", found="half\na file", expected="a whole one", do="copy it again")
        assert str(error) == "a/b.dcm: half a file; expected a whole one; copy it again"
    else:
        error = kind("a line")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    if issubclass(kind, errors.FileError):
        assert (again.path, again.found, again.expected, again.do) == (
            error.path,
            error.found,
            error.expected,
            error.do,
        )


def test_randomness_is_a_function_of_its_arguments():
    one = generator(3, "augment", 7, 1).random(5)
    assert np.array_equal(one, generator(3, "augment", 7, 1).random(5))
    others = [
        (4, "augment", 7, 1),
        (3, "order", 7, 1),
        (3, "augment", 8, 1),
        (3, "augment", 7),
        (3, "augment", 71),
        (3, "augment", 1, 7),
    ]
    assert len({key(3, "augment", 7, 1), *(key(*other) for other in others)}) == 7
    for other in others:
        assert not np.array_equal(one, generator(*other).random(5))


def test_the_key_is_the_documented_hash():
    import hashlib

    digest = hashlib.blake2b(b"3\x1faugment\x1f7", digest_size=16).digest()
    assert key(3, "augment", 7) == int.from_bytes(digest, "little")
    assert (
        generator(3, "augment", 7).random() == np.random.Generator(np.random.Philox(key=key(3, "augment", 7))).random()
    )


class Recorder(Silent):
    def __init__(self):
        super().__init__()
        self.told = []

    def start(self, what, total, unit=""):
        self.told.append(("start", what, total, unit))

    def advance(self, steps=1, note=""):
        self.told.append(("advance", steps))

    def stop(self, summary=""):
        self.told.append(("stop",))


def test_tracked_work_is_reported_after_each_item():
    told = Recorder()
    seen = [
        (item, sum(entry[0] == "advance" for entry in told.told)) for item in track("abc", told, "work", unit="letters")
    ]
    assert seen == [("a", 0), ("b", 1), ("c", 2)]
    assert told.told == [("start", "work", 3, "letters"), ("advance", 1), ("advance", 1), ("advance", 1), ("stop",)]
    list(track(iter([1]), told, "unknown"))
    assert told.told[5] == ("start", "unknown", None, "")


def test_silence_keeps_warnings():
    silent = Silent()
    silent.warn("look here")
    assert silent.warnings == ["look here"]
