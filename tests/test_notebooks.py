"""notebooks/: kept as Colab wants them, and run whole, on CPU, with small values in their forms."""

import ast
import json
import re
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image
from small_flickr8k import SIZES, write_flickr8k, write_weights

from vse_jax import assembly, config_checks, presets

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# A line of a form: a name, a value, and what Colab makes of it.
FIELD = re.compile(r"^(\w+) = (.+?)(  # @param .+)$", re.MULTILINE)
SECONDS = 300


def read(name):
    return nbformat.read(FOLDER / name, as_version=4)


def fields(notebook):
    """Name -> default and choices of every field of its forms."""
    return {
        name: (ast.literal_eval(value), param.removeprefix("  # @param ").strip())
        for cell in notebook.cells
        if cell.cell_type == "code"
        for name, value, param in FIELD.findall(cell.source)
    }


def run(name, **values):
    """Id of a cell -> what it printed, after all were run with these values in their forms."""
    notebook = read(name)
    assert values.keys() <= fields(notebook).keys()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = FIELD.sub(
                lambda found: f"{found[1]} = {values.get(found[1], ast.literal_eval(found[2]))!r}",
                cell.source,
            )
    client = nbclient.NotebookClient(
        notebook, timeout=SECONDS, resources={"metadata": {"path": str(FOLDER)}}
    )
    client.execute()
    return {
        cell.id: "".join(
            out.get("text", "") or out.get("data", {}).get("text/html", "") for out in cell.outputs
        )
        for cell in notebook.cells
        if cell.cell_type == "code"
    }


def test_there_are_four():
    assert [path.stem for path in NOTEBOOKS] == [
        "flickr8k",
        "quick_start",
        "search_and_caption",
        "tpu_training",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs_in_one_form(path):
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert text == nbformat.writes(notebook) + "\n"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.colab.name == path.name
    assert notebook.metadata.accelerator == ("TPU" if path.stem == "tpu_training" else "GPU")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_defaults_of_forms_are_among_their_choices(path):
    kinds = {"string": str, "boolean": bool, "integer": int, "number": float}
    for name, (default, param) in fields(read(path.name)).items():
        if param.startswith("["):
            assert default in json.loads(param), name
        else:
            assert type(default) is kinds[re.fullmatch(r'\{type:"(\w+)"\}', param)[1]], name


def test_all_are_set_up_alike():
    cells = [next(c for c in read(path.name).cells if c.get("id") == "setup") for path in NOTEBOOKS]
    assert len({re.sub(r'ACCELERATOR = "\w+"', "", cell.source) for cell in cells}) == 1


def test_the_form_of_the_tpu_offers_every_system():
    default, choices = fields(read("tpu_training.ipynb"))["SYSTEM"]
    assert sorted(json.loads(choices)) == sorted(presets.SYSTEMS)
    assert default in presets.SYSTEMS


@pytest.mark.parametrize("data", ["shapes", "flickr8k"])
@pytest.mark.parametrize("system", sorted(presets.SYSTEMS))
def test_every_choice_of_that_form_is_a_config(system, data, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER.parent)
    cells = {cell.id: cell.source for cell in read("tpu_training.ipynb").cells}
    values = {}
    exec(cells["form"], values)
    values |= {"SYSTEM": system, "DATA": data}
    exec(cells["config"], values)
    config_checks.validate(values["config"], 8)
    assert values["config"].train.batch_size == 512
    assert values["config"].precision == "bfloat16"


def test_every_system_of_flickr8k_has_an_index(preset):
    """Its last cells search."""
    _, choices = fields(read("flickr8k.ipynb"))["SYSTEM"]
    for choice in json.loads(choices):
        config = preset("flickr8k", choice)
        config_checks.validate(config, 1)
        assert assembly.compares(config), choice
        assert not assembly.is_pairwise(config), choice


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Fields of the drawn data set, at a size that trains in seconds."""
    folder = tmp_path_factory.mktemp("runs")
    sizes = {"TRAINING_PICTURES": 64, "TEST_PICTURES": 16, "IMAGE_SIZE": 32}
    return {"FOLDER": str(folder), "BATCH_SIZE": 16, "EPOCHS": 0.15, **sizes}


@pytest.mark.slow
def test_quick_start(small):
    found = run("quick_start.ipynb", SENTENCE="a red circle", PICTURE=3, **small)
    workdir = Path(small["FOLDER"], "shapes_vsepp")
    report = json.loads((workdir / "report.json").read_text())
    assert (report["step"], report["protocol"]) == (3, "shapes_16")
    assert f"{report['metrics']['rsum']:.1f}" in found["report"]
    lines = [line.split("  ") for line in found["describe"].splitlines() if "." in line[:3]]
    scores = [float(score) for score, _ in lines]
    assert len(lines) == 5
    assert scores == sorted(scores, reverse=True)
    assert not [line for line in lines if line[1] not in captions_of(small["FOLDER"])]


def captions_of(folder):
    """Every test caption of the data set that a notebook made."""
    from vse_jax.data import datasets
    from vse_jax.defaults import default_config

    config = default_config()
    config.data.dataset, config.data.data_dir = "shapes", f"{folder}/data"
    config.data.shapes_sizes, config.data.image_size = (64, 16, 16), 32
    return datasets.load(config.data, 0).splits["test"].captions


@pytest.mark.slow
def test_tpu_training(small):
    found = run("tpu_training.ipynb", SYSTEM="vsepp", OPTIONS="objective=sigmoid", **small)
    assert [line.split()[0] for line in found["devices"].splitlines()] == ["cpu"] * 4
    workdir = Path(small["FOLDER"], "shapes_vsepp_objective_sigmoid")
    report = json.loads((workdir / "report.json").read_text())
    assert report["config"]["precision"] == "bfloat16"
    assert report["config"]["objective"]["sigmoid"]["weight"] == 1.0
    assert "shapes_vsepp_objective_sigmoid" in found["compare"]
    assert f"{report['metrics']['rsum']:.1f}" in found["compare"]


@pytest.mark.slow
def test_flickr8k(tmp_path):
    write_flickr8k(tmp_path / "flickr8k")
    write_weights(tmp_path / "weights", seed=0)
    found = run(
        "flickr8k.ipynb",
        PHOTOS_AND_CAPTIONS=str(tmp_path / "flickr8k"),
        FOLDER=str(tmp_path / "runs"),
        WEIGHTS=str(tmp_path / "weights"),
        EPOCHS=1.0,
        BATCH_SIZE=16,
        DIMENSION=8,
        IMAGE_SIZE=32,
    )
    names = ("train", "validation", "test")
    for name, count in zip(names, SIZES.values(), strict=True):
        assert f"{name}: {count} photos, {5 * count} captions" in found["data"]
    assert "flickr8k, test split, protocol flickr8k_2" in found["metrics"]
    assert f"{sum(SIZES.values())} files: {sum(SIZES.values())} new" in found["index"]
    hits = re.findall(r"^(-?\d\.\d{3})  (.+)$", found["query"], re.MULTILINE)
    assert len(hits) == 5
    assert all(Path(path).parent == tmp_path / "flickr8k/Flicker8k_Dataset" for _, path in hits)


def test_search_and_caption(trained, trained_cam, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        pixels = rng.integers(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
    (photos / "broken.jpg").write_bytes(b"no picture")
    found = run(
        "search_and_caption.ipynb",
        SEARCHER=str(trained),
        CAPTIONER=str(trained_cam),
        PHOTOS=str(photos),
        INDEX=str(tmp_path / "index"),
        PHOTO=str(photos / "2.png"),
        COUNT=3,
        MOST=2,
        BEAMS=2,
    )
    assert "5 files: 5 new, 1 unreadable; 4 items" in found["index"]
    assert len(re.findall(r"\.png$", found["by-words"], re.MULTILINE)) == 3
    assert found["by-photo"].startswith(f"1.000  {photos / '2.png'}\n")
    # Two of each of two photos.
    assert len(re.findall(r"^ *-\d+\.\d{2}  ", found["captions"], re.MULTILINE)) == 4
