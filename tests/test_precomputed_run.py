"""Features instead of pictures, from the public config to the report: no backbone, no weights."""

import json

import numpy as np
import pytest
from commands import Command
from data.test_precomputed import jsonl, write_tsv
from data.test_scan_files import sentences, values, write
from evaluators.test_retrieval import loop_metrics

import vse_jax
from vse_jax import config as configs
from vse_jax import evaluation, experiment, train, workdir
from vse_jax.config import ConfigError
from vse_jax.config_checks import validate
from vse_jax.data.split import DataError

F = 4


def small(config, folder):
    config.data.data_dir = str(folder / "prepared")
    config.model.dimension = 8
    config.model.text.words = 4
    config.train.steps = 3
    config.train.batch_size = 8
    config.evaluate.batch_size = 8
    config.evaluate.queries = 2
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """In the layout of SCAN; of the test pictures, not all have all regions."""
    folder = tmp_path_factory.mktemp("precomp") / "f30k_precomp"
    write(folder, "train", values(16), sentences(80))
    write(folder, "dev", np.repeat(values(3, 1), 5, axis=0), sentences(15))
    counts = np.array([3, 1, 2])
    ids = ["one.jpg", "two.jpg", "three.jpg"]
    write(folder, "test", values(3, 2), sentences(15, "<b>"), ids, counts=counts)
    return folder


@pytest.fixture(scope="module")
def trained(preset, folder, tmp_path_factory):
    config = small(preset("custom", f"{folder},vsepp"), folder.parent)
    workdir_ = tmp_path_factory.mktemp("workdir")
    assert train.train(config, workdir_)
    return workdir_


def test_a_folder_is_trained_on_and_reported(trained):
    report = json.loads((trained / "report.json").read_text())
    assert (report["dataset"], report["split"]) == ("f30k_precomp", "test")
    assert (report["protocol"], report["step"]) == ("f30k_precomp_3", 3)
    assert 0 <= report["metrics"]["rsum"] <= 600
    page = (trained / "report.html").read_text()
    assert "three.jpg" in page
    assert "one.jpg: &lt;b&gt; dog number 0" in page
    assert "<img" not in page
    assert "Image features" not in page
    queries = json.loads((trained / "queries.json").read_text())
    assert queries["i2t"][0]["image"] == ""
    assert workdir.read_origin(trained)["features"] == F


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """In the layout of SCAN, of which not all pictures have all regions, nor captions all words."""
    folder = tmp_path_factory.mktemp("counted") / "f30k_precomp"
    words = ["a", "red", "blue", "dog", "cat", "runs", "sits", "here"]
    for seed, (stem, counts) in enumerate(
        (("train", [3, 1, 2, 3] * 4), ("dev", [2, 3, 1]), ("test", [3, 1, 2]))
    ):
        draw = np.random.default_rng(seed).choice
        captions = [" ".join(draw(words, 2 + n % 4)) for n in range(5 * len(counts))]
        write(folder, stem, values(len(counts), seed), captions, counts=np.array(counts))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "system", ["saf,objective=lseh", "sgr", "vsrn", "vse_infinity,objective=lsh"]
)
def test_networks_train_on_sets_of_regions(preset, counted, system, tmp_path, opened):
    """By both parts of the objective; what stands behind the last region reaches no score."""
    config = small(preset("custom", f"{counted},{system}"), counted.parent)
    config.data.max_tokens = 8
    config.train.log_every = 1
    # One step, then the hinge with the hardest negatives, where these are mined.
    config.objective.triplet.warmup_epochs = 0.1
    assert train.train(config, tmp_path / "run")
    losses = [row["loss"] for row in workdir.read_metrics(tmp_path / "run") if "loss" in row]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    run, state = opened(tmp_path / "run")
    split = run.dataset.splits["test"]
    scores = evaluation.encode(run, state, "test").scores()
    assert np.ptp(scores, axis=1).min() > 1e-4
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    expected = loop_metrics(scores, split.caption_image)
    assert {key: report["metrics"][key] for key in expected} == pytest.approx(expected)

    model = vse_jax.load(tmp_path / "run")
    texts = model.encode_texts(split.captions)
    own = [values(3, 2)[n, :count] for n, count in enumerate((3, 1, 2))]
    found = model.similarity(model.encode_images(own), texts)
    np.testing.assert_allclose(found, scores, atol=1e-5)
    alone = model.similarity(model.encode_images(own[1:2]), texts)
    np.testing.assert_allclose(alone, scores[1:2], atol=1e-5)
    # The numbers behind it would have reached them.
    whole = model.similarity(model.encode_images(values(3, 2)[1:2]), texts)
    assert np.abs(whole - alone).max() > 1e-3


def test_a_loaded_model_takes_features(trained, opened):
    run, state = opened(trained)
    expected = evaluation.encode(run, state, "test").images
    model = vse_jax.load(trained)
    own = [values(3, 2)[n, :count] for n, count in enumerate((3, 1, 2))]
    np.testing.assert_allclose(model.encode_images(own), expected, atol=1e-6)
    np.testing.assert_allclose(model.encode_images(own, batch_size=2), expected, atol=1e-6)
    whole = model.encode_images(values(3, 2))
    np.testing.assert_allclose(whole[0], expected[0], atol=1e-6)
    assert not np.allclose(whole[1], expected[1])
    assert model.encode_images(values(0)).shape == (0, 8)
    texts = model.encode_texts(["a dog"])
    assert model.similarity(whole, texts).shape == (3, 1)


@pytest.mark.parametrize(
    ("pictures", "told"),
    [
        (["a.jpg"], r"picture 0 is str; .*floats \[regions, 4\]"),
        ([values(1)[0], values(1)[0][:, :3]], r"picture 1 is float32\[3, 3\]"),
        (values(1)[0], r"picture 0 is float32\[4\]"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"picture 0 is uint8\[8, 8, 3\]"),
        (values(2).astype(int), r"picture 0 is int64"),
        ([values(1)[0][:0]], r"picture 0 is float32\[0, 4\]"),
        ([np.full((2, F), np.nan)], "picture 0 are not finite"),
    ],
)
def test_what_a_loaded_model_does_not_take(trained, pictures, told):
    with pytest.raises(DataError, match=told):
        vse_jax.load(trained).encode_images(pictures)
    with pytest.raises(TypeError, match="takes features"):
        vse_jax.load(trained).encode_images("a.jpg")


def test_other_features_are_other_data(preset, trained, folder):
    config = small(preset("custom", str(folder)), folder.parent)
    experiment.prepare(config, trained)
    array = np.load(folder / "train_ims.npy")
    np.save(folder / "train_ims.npy", -array)
    with pytest.raises(workdir.WorkdirError, match="begun with other data"):
        experiment.prepare(config, trained)
    np.save(folder / "train_ims.npy", array)
    experiment.prepare(config, trained)


def test_a_caption_file_with_features(preset, tmp_path):
    path = jsonl(tmp_path, [f"{n}.jpg" for n in range(6)])
    source = write_tsv(tmp_path, [str(n) for n in range(6)])
    config = small(preset("custom", f"{path},vsepp,objective=infonce"), tmp_path)
    config.data.features = str(source)
    config.train.batch_size = 4
    run = experiment.prepare(config, tmp_path / "workdir", training=True)
    assert run.config.data.dataset == "precomputed"
    assert run.config.model.image.backbone == "none"
    assert run.built.model.image.backbone is None
    assert "backbone" not in run.built.variables["params"]["image"]
    # What was begun goes on from the workdir's own config, and from the one given.
    for again in (workdir.read_config(tmp_path / "workdir"), config):
        experiment.prepare(again, tmp_path / "workdir")
    assert config.data.dataset == "custom"


@pytest.mark.slow
def test_the_command_line_of_a_caption_file_with_features(tmp_path):
    path = jsonl(tmp_path, [f"{n}.jpg" for n in range(6)])
    source = write_tsv(tmp_path, [str(n) for n in range(6)])
    flags = [
        f"--config=configs/custom.py:{path},vsepp,objective=infonce",
        f"--config.data.features={source}",
        f"--config.data.data_dir={tmp_path / 'prepared'}",
        "--config.model.dimension=8",
        "--config.model.text.words=4",
        "--config.train.steps=2",
        "--config.train.batch_size=4",
        f"--workdir={tmp_path / 'workdir'}",
    ]
    code, output = Command(flags).wait(200)
    assert code == 0, output
    assert (tmp_path / "workdir" / "report.html").is_file()


def test_the_preset_of_a_folder_keeps_its_fields_settable(preset, tmp_path):
    config = preset("custom", str(tmp_path))
    validate(config)
    assert config.data.path == str(tmp_path)
    assert config.train.freeze == ()
    config.model.text.glove = "a path"
    assert configs.config_type(config, "model.image.weights") is str


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"data.dataset": "shapes"}, "'model.image.backbone' is 'none', .*'shapes'"),
        ({"model.image.backbone": "small_resnet"}, "'small_resnet', .*'precomputed'.*to 'none'"),
        ({"data.flip": True}, "'data.flip' and 'data.crop_area' change pictures"),
        ({"data.crop_area": (0.5, 1.0)}, "'data.crop_area' change pictures"),
    ],
)
def test_fields_that_contradict_features(preset, tmp_path, fields, told):
    config = preset("custom", str(tmp_path))
    config.update_from_flattened_dict(fields)
    with pytest.raises(ConfigError, match=told):
        validate(config)


def test_features_belong_to_captions_of_ones_own(preset):
    config = preset("shapes")
    config.data.features = "a.tsv"
    with pytest.raises(ConfigError, match=r"'data\.features' is set, .*is 'shapes'"):
        validate(config)


def test_no_path_is_told_at_once(preset, tmp_path):
    config = preset("custom", str(tmp_path))
    config.data.path = None
    with pytest.raises(ConfigError, match=r"'data\.path' is not set; 'precomputed' needs it"):
        experiment.prepare(config, tmp_path / "workdir")
