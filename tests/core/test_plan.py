"""A plan refuses what it does not know, by name, and survives the disk."""

import pytest
import yaml

from vesalius.core.errors import PlanError
from vesalius.core.plan import Plan, parse_settings, read_scalar
from vesalius.core.plan_keys import CONTRADICTIONS, KEYS


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("model.nam", "model.name"),
        ("optim.learning_rate", "optim."),
        ("augment.presets", "augment.preset"),
        ("optim.LR", "optim.lr"),
    ],
)
def test_an_unknown_key_names_the_nearest(key, nearest):
    with pytest.raises(PlanError, match=key) as caught:
        Plan("classify").decide(key, 1, "because")
    assert nearest in str(caught.value)
    with pytest.raises(PlanError):
        _ = Plan("classify")[key]


@pytest.mark.parametrize(
    ("key", "value", "fits"),
    [
        ("optim.lr", "fast", "a number"),
        ("optim.lr", True, "a number"),
        ("optim.lr", -1.0, "at least 0"),
        ("optim.lr", float("nan"), "a number"),
        ("optim.momentum", 1.5, "from 0 to 0.999"),
        ("optim.batch_size", 2.5, "a whole number"),
        ("optim.batch_size", 0, "at least 1"),
        ("optim.batch_size", None, "got nothing"),
        ("optim.name", "lion", "sgd, adam, adamw"),
        ("optim.channels_last", 1, "true or false"),
        ("preprocess.normalise", "per_image", "a mapping"),
        ("predict.views", "flip", "a list"),
        ("predict.views", [[3]], "from 0 to 2"),
        ("preprocess.size", ["a", 5], "a whole number"),
        ("preprocess.size", [0, 5], "at least 1"),
        ("loss.class_weights", [1.0, "b"], "a number"),
        ("optim.step_at", ["late"], "a number"),
        ("model.depths", [1.5], "a whole number"),
        ("optim.lr", float("inf"), "a number"),
    ],
)
def test_a_wrong_value_says_what_fits(key, value, fits):
    with pytest.raises(PlanError) as caught:
        Plan("classify").decide(key, value, "because")
    assert key in str(caught.value)
    assert fits in str(caught.value)


@pytest.mark.parametrize(
    ("key", "given", "kept"),
    [
        ("optim.lr", 1, 1.0),
        ("optim.batch_size", 16.0, 16),
        ("model.name", 18, "18"),
        ("preprocess.size", (3, 4), [3, 4]),
        ("optim.clip", None, None),
        ("loss.class_weights", (1, 2.5), [1.0, 2.5]),
        ("predict.views", [[], (1,)], [[], [1]]),
        ("predict.views", [1], [[1]]),
    ],
)
def test_a_harmless_difference_of_kind_is_converted(key, given, kept):
    plan = Plan("classify")
    plan.decide(key, given, "because")
    assert plan[key] == kept
    assert type(plan[key]) is type(kept)


CASES = [
    {"optim.epochs": 3.0, "optim.max_steps": 10},
    {"loss.name": "cross_entropy", "loss.focal_gamma": 2.0},
    {"sampling.balance": 0.5, "loss.class_weights": [1.0, 2.0]},
    {"preprocess.dims": 3, "preprocess.size": [32, 32]},
    {"preprocess.dims": 2, "preprocess.spacing_mm": [1.0, 1.0, 1.0]},
    {"optim.batch_size": 10, "optim.accumulate": 4},
    {"preprocess.dims": 2, "predict.views": [[0], [2]]},
    {"conform.dims": 2, "predict.views": [[0], [2]]},
    {"conform.dims": 2, "conform.spacing_mm": [1.0, 1.0, 1.0]},
    {"conform.dims": 3, "model.patch": [32, 32]},
    {"model.strides": [[1, 1], [2, 2]], "model.features": [8, 16, 32]},
    {"conform.dims": 2, "model.strides": [[1, 1, 1], [2, 2, 2]]},
    {"model.patch": [16, 20], "model.strides": [[1, 1], [2, 2], [2, 2], [2, 2]]},
    {"split.val": 0.5, "split.test": 0.5},
    {"split.val": 0.0, "validate.patience": 3},
]


@pytest.mark.parametrize("settings", CASES, ids=[" ".join(case) for case in CASES])
def test_a_contradiction_names_both_keys(settings):
    plan = Plan("segment" if "conform.dims" in settings else "classify")
    plan.overrule(settings)
    with pytest.raises(PlanError, match="contradicts itself") as caught:
        plan.check()
    assert all(key in str(caught.value) for key in settings)


def test_every_contradiction_is_tested_and_defaults_have_none():
    assert {keys for keys, _, _ in CONTRADICTIONS} <= {tuple(case) for case in CASES}
    Plan("classify").check()
    Plan("segment").check()


@pytest.mark.parametrize("settings", CASES[3:5] + CASES[8:10], ids=" ".join)
def test_a_task_is_not_held_to_keys_of_another(settings):
    plan = Plan("classify" if "conform.dims" in settings else "segment")
    plan.overrule(settings)
    plan.check()


@pytest.mark.parametrize("key", list(KEYS))
def test_every_default_fits_its_own_declaration(key):
    value = KEYS[key].default
    if value is None:
        assert KEYS[key].optional or key in ("preprocess.size",)
    else:
        assert KEYS[key].accept(key, value) == value
    assert KEYS[key].doc.endswith(".")


def full_plan():
    plan = Plan("classify")
    plan.decide("model.name", "resnet18", "für zwei Kerne: a colon, a # and 'quotes'")
    plan.decide("preprocess.size", [28, 28], "as stored")
    plan.decide("preprocess.normalise", {"kind": "fixed", "mean": [0.1], "std": [1e-5]}, "level kept")
    plan.decide("optim.lr", 1e-05, "small")
    plan.decide("optim.epochs", None, "steps are given")
    plan.decide("predict.views", [[], [1]], "")
    return plan


def test_a_plan_survives_the_disk(tmp_path):
    plan = full_plan()
    again = Plan.read(plan.write(tmp_path / "plan.yaml"))
    assert again.task == "classify"
    assert again.decisions == plan.decisions
    assert again.to_mapping() == plan.to_mapping()
    assert again.write(tmp_path / "b.yaml").read_bytes() == (tmp_path / "plan.yaml").read_bytes()


def test_the_file_is_plain_yaml_with_value_and_reason(tmp_path):
    data = yaml.safe_load(full_plan().write(tmp_path / "plan.yaml").read_text(encoding="utf-8"))
    assert data["schema"] == 1
    assert data["model"]["name"] == {"value": "resnet18", "because": "für zwei Kerne: a colon, a # and 'quotes'"}


def test_a_bare_value_is_set_by_the_user(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(
        "task: classify\nmodel: {name: resnet18}\noptim:\n  lr: {value: 0.5}\npreprocess: {normalise: {kind: none}}\n",
        encoding="utf-8",
    )
    plan = Plan.read(path)
    assert (plan["model.name"], plan.because("model.name")) == ("resnet18", "set by the user")
    assert plan["optim.lr"] == 0.5
    assert plan["preprocess.normalise"] == {"kind": "none"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: {nmae: x}", ["model.name"]),
        ("modle: {name: x}", ["modle", "model"]),
        ("model: 3", ["model", "mapping"]),
        ("model: {name: {value: lean, why: x}}", ["model.name", "why"]),
        ("schema: 7", ["7", "schema"]),
        ("- a\n- b", ["mapping"]),
        ("a: [", ["not YAML"]),
    ],
)
def test_a_broken_plan_file_is_one_line_with_the_file(tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PlanError) as caught:
        Plan.read(path)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in [str(path), *words])


def test_a_missing_plan_file(tmp_path):
    with pytest.raises(PlanError, match=r"none\.yaml"):
        Plan.read(tmp_path / "none.yaml")


def test_yaml_tags_run_nothing(tmp_path):
    path = tmp_path / "evil.yaml"
    path.write_text(f"model: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']", encoding="utf-8")
    with pytest.raises(PlanError):
        Plan.read(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        (".5e1", 5.0),
        ("-2e-1", -0.2),
        ("0.1", 0.1),
        ("12", 12),
        ("true", True),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ("{kind: none}", {"kind": "none"}),
        ("lean", "lean"),
        ("1 apple", "1 apple"),
        ("", None),
        ("[", "["),
    ],
)
def test_a_typed_value_is_read_as_a_person_means_it(text, value):
    assert read_scalar(text) == value
    assert type(read_scalar(text)) is type(value)


def test_settings_of_a_command_line():
    assert parse_settings(
        ["model.name=resnet18", " optim.lr = 1e-3", "preprocess.size=[32,32]", "optim.clip=null"]
    ) == {"model.name": "resnet18", "optim.lr": 1e-3, "preprocess.size": [32, 32], "optim.clip": None}
    with pytest.raises(PlanError, match="has no value"):
        parse_settings(["model.name"])
    with pytest.raises(PlanError, match="did you mean"):
        parse_settings(["model.nane=x"])


def test_sections():
    plan = full_plan()
    assert plan.section("model")["name"] == "resnet18"
    assert plan.section("optim")["momentum"] == KEYS["optim.momentum"].default
    assert set(plan.section("loss")) == {key.split(".")[1] for key in KEYS if key.startswith("loss.")}
    with pytest.raises(PlanError, match="no section"):
        plan.section("modle")
