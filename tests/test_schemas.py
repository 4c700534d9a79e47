"""What a real run writes is what docs/schemas and docs/formats.md say."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pytest
import yaml

from vesalius.core.labels import Labels
from vesalius.core.plan_keys import KEYS
from vesalius.core.prediction import ClassScores
from vesalius.data.manifest import COLUMNS, Manifest
from vesalius.evaluate.study import study
from vesalius.evaluate.table import build_table

DOCS = Path(__file__).resolve().parents[1] / "docs"
NAMES = ("bundle", "metrics", "prediction", "provenance", "plan")


def schema(name):
    return json.loads((DOCS / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8"))


def check(name, data):
    """`data` fits, and holds no key at its top that the schema does not explain."""
    wanted = schema(name)
    jsonschema.Draft202012Validator(wanted).validate(data)
    assert set(data) - set(wanted["properties"]) == set()


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_schemas_are_schemas(name):
    jsonschema.Draft202012Validator.check_schema(schema(name))


def test_a_run(tiny_run):
    check("bundle", read(tiny_run.run / "bundle" / "bundle.json"))
    check("metrics", read(tiny_run.run / "report" / "metrics.json"))
    check("provenance", read(tiny_run.run / "provenance.json"))
    for path in (tiny_run.run / "plan.yaml", tiny_run.run / "bundle" / "plan.yaml"):
        check("plan", yaml.safe_load(path.read_text(encoding="utf-8")))


def test_every_file_of_a_run_is_described(tiny_run):
    page = (DOCS / "formats.md").read_text(encoding="utf-8").split("## Bundle", 1)[0]
    for path in tiny_run.run.iterdir():
        assert f"{path.name}/" in page if path.is_dir() else f"{path.name} " in page, path.name


def test_files_of_a_bundle(tiny_run):
    assert {path.name for path in (tiny_run.run / "bundle").iterdir()} == {
        "model.safetensors", "bundle.json", "plan.yaml", "card.md", "SHA256SUMS"}  # fmt: skip


def test_manifest_and_cases(tiny_run):
    kept = Manifest.from_parquet(tiny_run.run / "cohort.parquet")
    assert list(kept.frame.columns)[: len(COLUMNS)] == list(COLUMNS)
    assert kept.patient_source == "pattern"
    cases = pd.read_parquet(tiny_run.run / "cases.parquet")
    wanted = ["case_id", "patient_id", "split", "label", "predicted", "correct"]
    assert {*wanted, "spread", "p.normal", "p.spot", "logit.normal", "logit.spot"} <= set(cases.columns)
    assert set(cases["split"]) == {"val", "test"}


def test_curves(tiny_run):
    columns = list(pd.read_csv(tiny_run.run / "metrics.csv").columns)
    scores = ["val_nll", "val_accuracy", "val_balanced_accuracy", "val_auroc"]
    assert columns == ["member", "step", "epoch", "lr", "train_loss", *scores]


def test_predictions(tiny_run, tmp_path):
    from vesalius.serve import jobs

    one = next((tiny_run.films / "spot").iterdir())
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    jobs.predict(tiny_run.run, one, tmp_path / "broken.png", out=tmp_path / "out", device="cpu", workers=1)
    check("prediction", read(tmp_path / "out" / f"{one.stem}.json"))
    assert list(read(tmp_path / "out" / "failed.json")) == ["broken"]
    overview = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert list(overview.columns) == ["case_id", "class", "p.normal", "p.spot", "source"]


def test_external_validation(tiny_run, tmp_path):
    from vesalius.serve import jobs

    jobs.evaluate(tiny_run.run, data=tiny_run.films, out=tmp_path / "there", device="cpu", workers=1)
    check("metrics", read(tmp_path / "there" / "metrics.json"))
    check("provenance", read(tmp_path / "there" / "provenance.json"))


def test_predictions_of_labels_that_may_hold_together():
    labels = Labels(("effusion", "nodule", "fracture"), multilabel=True)
    score = ClassScores("a", labels, np.array([0.9, 0.2, 0.6]), np.zeros(3), spread=0.1)
    check("prediction", {"schema": 1, **score.to_json(), "source": "a.png", "model": "0" * 64})


@pytest.mark.parametrize("multilabel", [False, True], ids=["exclusive", "multilabel"])
def test_metrics_of_other_questions(multilabel):
    labels = Labels(("a", "b", "c"), multilabel=multilabel)
    draw = np.random.default_rng(0)
    count = 60
    if labels.multilabel:
        chosen = draw.random((count, 3)) < 0.4
        names = ["|".join(name for name, has in zip(labels.names, row, strict=True) if has) for row in chosen]
        p = np.clip(0.6 * chosen + 0.4 * draw.random((count, 3)), 0.01, 0.99)
    else:
        truth = draw.integers(0, 3, count)
        names = [labels.names[k] for k in truth]
        p = draw.dirichlet(np.ones(3), count) * 0.5 + 0.5 * np.eye(3)[truth]
    rows = pd.DataFrame({"label": names, "split": ["val"] * 20 + ["test"] * 40, "site": ["A", "B"] * 30})
    rows["case_id"] = [str(k) for k in range(count)]
    rows["patient_id"] = [f"p{k // 2}" for k in range(count)]
    from vesalius.core.files import jsonable

    found = study(build_table(rows, labels, p), labels, resamples=32)
    check("metrics", jsonable({**found.to_json(), "patient_source": "column"}))


def test_the_plan_schema_knows_every_key_and_refuses_others():
    known = schema("plan")["properties"]
    parts = {section: part["properties"] for section, part in known.items() if "properties" in part}
    assert {f"{section}.{name}" for section, part in parts.items() for name in part} == set(KEYS)
    with pytest.raises(jsonschema.ValidationError):
        check("plan", {"schema": 1, "task": "classify", "model": {"nmae": "lean"}})
    with pytest.raises(jsonschema.ValidationError):
        check("plan", {"schema": 1, "task": "classify", "optim": {"lr": {"value": "fast", "because": "why not"}}})
