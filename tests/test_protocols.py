"""A test split that is reported by several protocols, as COCO's is."""

import dataclasses
import json

import numpy as np
import pytest

from vse_jax import evaluation, protocols
from vse_jax.data.split import Dataset, Split
from vse_jax.evaluators import retrieval
from vse_jax.report import content, page


def test_coco_is_reported_by_five_folds_too():
    split = Split(["a.jpg"] * 5000, [], np.zeros(0, np.int32), lambda _: [])
    dataset = Dataset("coco", {"test": split, "validation": split}, "", "coco_5k")
    assert evaluation.protocol_of(dataset, "test") == "coco_5k"
    assert evaluation.protocols_beside(dataset, "test") == ("coco_1k_5fold",)
    assert evaluation.protocols_beside(dataset, "validation") == ()
    part = dataclasses.replace(dataset, protocol="coco_4999")
    assert evaluation.protocols_beside(part, "test") == ()
    for name in evaluation.protocols_beside(dataset, "test"):
        assert retrieval.protocol(name).images == retrieval.protocol("coco_5k").images


def test_a_name_is_kept_for_its_size():
    for dataset, name in protocols.OWN.items():
        size = retrieval.protocol(name).images
        assert protocols.own(dataset, size) == name
        assert protocols.own(dataset, size - 1) == f"{dataset}_{size - 1}"
    assert protocols.own("iaprtc12", 1000) == "iaprtc12_1000"


@pytest.fixture
def two_folds(monkeypatch):
    """The 16 test pictures of `tiny_shapes` in two folds of 8, beside the whole."""
    folds = {**retrieval.PROTOCOLS, "shapes_8_2fold": retrieval.Protocol(16, folds=2)}
    monkeypatch.setattr(retrieval, "PROTOCOLS", folds)
    monkeypatch.setattr(evaluation, "BESIDE", {"shapes_16": ("shapes_8_2fold",)})


def by_hand(images, captions, owners):
    """Recalls of dot products, ties against the model, of a set whose owners count from 0."""
    scores = images @ captions.T
    right = owners[None] == np.arange(len(images))[:, None]
    # Captions may say the same: what is as close but for rounding is a tie.
    best = np.max(np.where(right, scores, -np.inf), axis=1) - 1e-6
    ranks = {"i2t": 1 + np.sum(~right & (scores >= best[:, None]), axis=1)}
    own = scores[owners, np.arange(len(owners))] - 1e-6
    ranks["t2i"] = 1 + np.sum(~right & (scores >= own[None]), axis=0)
    found = {
        f"{way}/R@{k}": 100 * np.mean(of <= k) for way, of in ranks.items() for k in (1, 5, 10)
    }
    return found | {"rsum": sum(found.values())}


@pytest.mark.usefixtures("two_folds")
def test_the_report_has_the_first_protocol_and_those_beside_it(trained, opened, tmp_path, caplog):
    caplog.set_level("INFO", "vse_jax")
    before = json.loads((trained / "report.json").read_text())
    assert "protocols" not in before
    run, best = opened(trained)
    config = run.config.copy_and_resolve_references()
    config.evaluate.queries = 0
    run = dataclasses.replace(run, config=config, workdir=tmp_path)
    metrics = content.report_state(run, best)

    report = json.loads((tmp_path / "report.json").read_text())
    assert report["protocol"] == "shapes_16"
    assert report["metrics"] == metrics == pytest.approx(before["metrics"])
    assert list(report["protocols"]) == ["shapes_8_2fold"]
    found = report["protocols"]["shapes_8_2fold"]
    assert found.keys() == {key for key in metrics if not key.startswith("scenes/")}

    embeddings = evaluation.encode(run, best, "test")
    owners = run.dataset.splits["test"].caption_image
    folds = []
    for fold in range(2):
        own = owners // 8 == fold
        images = embeddings.images[8 * fold : 8 * fold + 8]
        folds.append(by_hand(images, embeddings.captions[own], owners[own] - 8 * fold))
    for key in folds[0]:
        assert found[key] == pytest.approx(np.mean([fold[key] for fold in folds])), key
    assert found["rsum"] > metrics["rsum"]
    assert any("test by shapes_8_2fold i2t R@1/5/10" in line for line in caplog.messages)
    shown = (tmp_path / "report.html").read_text()
    row = shown.split("<th scope=row>shapes_8_2fold</th>")[1:]
    assert len(row) == 2
    assert row[0].startswith(f"<td>{found['i2t/R@1']:.1f}</td>")
    assert row[1].startswith(f"<td>{found['t2i/R@1']:.1f}</td>")
    assert f"· shapes_8_2fold {found['rsum']:.1f}" in shown


@pytest.mark.usefixtures("two_folds")
def test_codes_are_measured_by_each_protocol(trained_leap, opened, tmp_path):
    run, best = opened(trained_leap)
    content.report_state(dataclasses.replace(run, workdir=tmp_path), best)
    found = json.loads((tmp_path / "report.json").read_text())
    beside = found["protocols"]["shapes_8_2fold"]
    assert beside["codes/asymmetric/rsum"] > found["metrics"]["codes/asymmetric/rsum"]
    assert {key for key in beside if key.startswith("codes/")} == {
        key for key in found["metrics"] if key.startswith("codes/")
    }


def test_names_of_protocols_are_escaped(tmp_path):
    report = {"metrics": {"i2t/R@1": 1.0, "rsum": 2.0}, "protocols": {"<b>": {"i2t/R@1": 3.0}}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    shown = page.render(page.read(tmp_path))
    assert "<b>" not in shown.split("<h2>Results")[1].split("</section>")[0]
    assert "&lt;b&gt;</th><td>3.0</td>" in shown
