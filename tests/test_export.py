"""python -m vse_jax.export: every format is read back without the code that trained the model."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest
from PIL import Image

import vse_jax
from vse_jax import export, workdir
from vse_jax import trained as trained_models
from vse_jax.checkpoint import CheckpointError
from vse_jax.exporting import parameters
from vse_jax.workdir import WorkdirError

SENTENCES = ["a red circle", "two blue squares above a star " * 12, "", "xyzzy circle"]
# Fresh processes, each given {"blocked", "folder", "pictures", "sentences", "to"} as JSON.
BEGIN = """
import importlib.util, json, sys
given = json.loads(sys.argv[1])
for name in ("vse_jax", *given["blocked"]):
    sys.modules[name] = None
import numpy as np
"""
# With the program that lies beside the functions.
USE = """
spec = importlib.util.spec_from_file_location("use", given["folder"] + "/use.py")
use = importlib.util.module_from_spec(spec)
spec.loader.exec_module(use)
model = use.Exported(given["folder"])
images, texts = model.images(given["pictures"]), model.texts(given["sentences"])
np.savez(given["to"], images=images[0], texts=texts[0], scores=model.similarity(images, texts))
"""
# By JAX and NumPy alone, as export.json tells.
JAX_ALONE = """
import jax
from jax import export
about = json.load(open(given["folder"] + "/export.json"))
function = about["functions"]["image"]
assert function["inputs"] == [
    {"name": "image", "dtype": "uint8", "shape": ["b", about["image"]["size"]] + [32, 3]}
]
file = open(given["folder"] + "/" + function["file"], "rb")
exported = export.deserialize(bytearray(file.read()))
assert exported.platforms == ("cpu", "cuda", "tpu")
[images] = jax.jit(exported.call)(np.load(given["pixels"]))
np.savez(given["to"], images=images)
"""
ORBAX_ALONE = """
import orbax.checkpoint as ocp
from jax.tree_util import keystr, tree_leaves_with_path
found = ocp.StandardCheckpointer().restore(given["folder"] + "/parameters")
leaves = tree_leaves_with_path(found)
np.savez(given["to"], **{keystr(path, simple=True, separator="/"): x for path, x in leaves})
"""
LOADED = """
del sys.modules["vse_jax"]
import vse_jax
model = vse_jax.load(given["folder"])
images, texts = model.encode_images(given["pictures"]), model.encode_texts(given["sentences"])
scores = model.similarity(images, texts)
found = {"images": images, "texts": texts, "scores": scores, "fingerprint": model.fingerprint}
# The same towers by the parameters that Orbax has.
import orbax.checkpoint as ocp
from PIL import Image
from vse_jax import encode, parallel, trained
towers = encode.Encoder(trained.read(given["folder"]).model, parallel.Devices.all("shard_map"))
read = ocp.StandardCheckpointer().restore(given["orbax"] + "/parameters")
variables, plain = towers.variables(**read), [0, 4]  # the pictures whose pixels are RGB as they are
pixels = [np.asarray(Image.open(given["pictures"][n]).resize((32, 32), 2)) for n in plain]
found["orbax_images"] = towers.images(variables, [model.image_batch(pixels, 4)])
found["orbax_texts"] = towers.texts(variables, [model.text_batch(given["sentences"], 4)])
np.savez(given["to"], **found)
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Paths of pictures of several sizes and kinds."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    paths = []
    for number, mode in enumerate(("RGB", "L", "RGBA", "I;16", "RGB")):
        path = folder / f"{number}.png"
        pixels = rng.integers(0, 256, (40 + number, 60, 4), np.uint8)
        if mode == "I;16":
            Image.fromarray(rng.integers(0, 65536, (50, 70), np.uint16)).save(path)
        else:
            Image.fromarray(pixels).convert(mode).save(path)
        paths.append(str(path))
    return paths


@pytest.fixture(scope="module")
def expected(trained, pictures):
    model = vse_jax.load(trained)
    images, texts = model.encode_images(pictures), model.encode_texts(SENTENCES)
    return {"images": images, "texts": texts, "scores": model.similarity(images, texts)}


def exported(run, format_, output, *more):
    export.main([f"--workdir={run}", f"--format={format_}", f"--output={output}", *more])
    return output


@pytest.fixture
def fresh(tmp_path, pictures):
    """Code, folder and names of modules that are missing -> what a process of its own saved."""

    def run(code, folder, *blocked, **more):
        to = tmp_path / "found.npz"
        given = {"blocked": blocked, "folder": str(folder), "to": str(to)} | more
        given = {"pictures": pictures, "sentences": SENTENCES} | given
        done = subprocess.run(
            [sys.executable, "-c", BEGIN + code, json.dumps(given)],
            env=os.environ | {"PYTHONPATH": str(Path(vse_jax.__file__).parents[1])},
            capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        with np.load(to) as found:
            return dict(found)

    return run


def used(folder):
    """The program beside the functions, here."""
    spec = importlib.util.spec_from_file_location("use", folder / "use.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program.Exported(folder)


def same(found, expected, atol=1e-5):
    for name, wanted in expected.items():
        np.testing.assert_allclose(found[name], wanted, atol=atol, err_msg=name)


def test_jax_export(trained, tmp_path, fresh, expected, pictures, capsys):
    folder = exported(trained, "jax_export", tmp_path / "out")
    assert capsys.readouterr().out.endswith(f" MB in {folder}\n")
    same(fresh(USE, folder, "flax", "orbax", "tensorflow", "onnxruntime"), expected)
    model, size = vse_jax.load(trained), 32
    several = np.stack([np.asarray(Image.open(pictures[0]).resize((size, size), 2))] * 7)
    np.save(tmp_path / "pixels.npy", several)
    found = fresh(
        JAX_ALONE, folder, "flax", "orbax", "tokenizers", "PIL", pixels=str(tmp_path / "pixels.npy")
    )
    np.testing.assert_allclose(found["images"], model.encode_images(several), atol=1e-5)
    about = json.loads((folder / "export.json").read_text())
    assert about["image"]["mean"] == about["image"]["std"] == [0.5, 0.5, 0.5]
    assert about["similarity"] == "dot"
    assert sorted(about["files"]) == sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_onnx(trained, tmp_path, fresh, expected):
    pytest.importorskip("jax2onnx", reason="needs the extra [export]")
    folder = exported(trained, "onnx", tmp_path / "out")
    same(fresh(USE, folder, "jax", "flax", "orbax", "tensorflow"), expected)


def test_orbax(trained, tmp_path, fresh):
    folder = exported(trained, "orbax", tmp_path / "out")
    found = fresh(ORBAX_ALONE, folder, "flax", "tensorflow")
    variables = trained_models.read(trained).variables
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    assert found.keys() == leaves.keys()
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(found[name], leaf, strict=True)


def test_safetensors_and_parameters_embed_alike(trained, tmp_path, fresh, expected):
    folder = exported(trained, "safetensors", tmp_path / "out")
    parameters = exported(trained, "orbax", tmp_path / "orbax")
    found = fresh(LOADED, folder, "tensorflow", "tensorflow_datasets", orbax=str(parameters))
    # The same bits, so that an index of the one serves the other.
    assert found["fingerprint"] == vse_jax.load(trained).fingerprint
    same(found, expected, atol=1e-6)
    np.testing.assert_allclose(found["orbax_images"], expected["images"][[0, 4]], atol=1e-5)
    np.testing.assert_allclose(found["orbax_texts"], expected["texts"], atol=1e-5)
    assert not any(str(Path(trained).parent) in path.read_text(errors="ignore")
                   for path in folder.glob("*.json"))  # fmt: skip


def test_distances_and_codes(trained_leap, tmp_path, pictures):
    folder = exported(trained_leap, "jax_export", tmp_path / "functions")
    model, program = vse_jax.load(trained_leap), used(folder)
    images, texts = model.encode_images(pictures), model.encode_texts(SENTENCES)
    scores = program.similarity(program.images(pictures), program.texts(SENTENCES))
    np.testing.assert_allclose(scores, model.similarity(images, texts), atol=1e-5)
    assert (scores < 0).all()
    [codes] = program.call("quantize", images)
    np.testing.assert_array_equal(codes, model.quantize(images), strict=True)
    again = vse_jax.load(exported(trained_leap, "safetensors", tmp_path / "folder"))
    np.testing.assert_array_equal(again.codebook.centroids, model.codebook.centroids)
    np.testing.assert_array_equal(again.quantize(images), codes)


def test_pairs_of_words_and_boxes(trained_dvsa, tmp_path, pictures):
    folder = exported(trained_dvsa, "jax_export", tmp_path / "functions")
    model, program = vse_jax.load(trained_dvsa), used(folder)
    texts = model.encode_texts(SENTENCES)
    found = program.texts(SENTENCES)
    for own, other in zip((texts.local, texts.mask, texts.pooled), found, strict=True):
        np.testing.assert_allclose(other, own, atol=1e-5)
    boxes = np.array([[[0.1, 0.2, 0.8, 0.7]], [[0.0, 0.5, 1.0, 1.0]]], np.float32)
    images = model.encode_images(pictures[:2], boxes=boxes)
    # As `encode_images` does: the whole picture is the last region.
    regions = np.concatenate([boxes, np.float32([[[0, 0, 1, 1]]] * 2)], axis=1)
    size = program.about["image"]["size"]
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB").resize((size, size), 2))
                       for path in pictures[:2]])  # fmt: skip
    encoded = program.call("image", pixels, regions)
    np.testing.assert_allclose(encoded[0], images.local, atol=1e-5)
    scores = program.similarity(encoded, found)
    np.testing.assert_allclose(scores, model.similarity(images, texts), atol=1e-5)
    with pytest.raises(ValueError, match="this model looks at boxes"):
        program.images(pictures)


@pytest.fixture
def wordy(trained_cam, tmp_path):
    """The model of `trained_cam`, its words no longer as likely for every picture."""
    found = trained_models.read(trained_cam)
    captioner = found.variables["params"]["captioner"]
    captioner["weight_oh"] = 100 * captioner["weight_oh"]
    captioner["bias_o"] = 0 * captioner["bias_o"]
    folder = tmp_path / "wordy"
    folder.mkdir()
    parameters.write_safetensors(found, folder)
    return folder


def test_captions_and_classes(wordy, tmp_path, pictures):
    folder = exported(wordy, "jax_export", tmp_path / "functions")
    model, program = vse_jax.load(wordy), used(folder)
    images = program.images(pictures)
    np.testing.assert_allclose(images[0], model.encode_images(pictures), atol=1e-5)
    captions = [own[0].text for own in model.caption(pictures, beams=1)]
    classes = [own[0].name for own in model.classify(pictures)]
    assert program.captions(images) == captions
    assert all(captions)
    assert len(set(captions)) > 1
    assert program.classes(images) == classes
    assert "text" not in program.about["functions"]


def test_use_from_the_command_line(trained, tmp_path, expected, pictures):
    folder = exported(trained, "jax_export", tmp_path / "out")
    done = subprocess.run(
        [sys.executable, folder / "use.py", pictures[0], pictures[4], SENTENCES[0]],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    scores = [expected["scores"][0, 0], expected["scores"][4, 0]]
    assert done.stdout == "".join(
        f"{score:.4f}\t{path}\t{SENTENCES[0]}\n"
        for score, path in zip(scores, (pictures[0], pictures[4]), strict=True)
    )
    # Longer than any file's name.
    spec = importlib.util.spec_from_file_location("use", folder / "use.py")
    use = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(use)
    assert not use.is_picture("a red circle " * 40)
    assert use.is_picture(pictures[0])


def told(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        export.main(list(map(str, arguments)))
    found = capsys.readouterr().err or f"{ended.value.code}\n"
    return ended.value.code if isinstance(ended.value.code, int) else 1, found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=w"], "the following arguments are required: --format"),
        (["--workdir=w", "--format=pickle"], "invalid choice: 'pickle'"),
        (["--workdir=w", "--format=orbax", "--push=a/b"], "give --format=safetensors"),
        (["--workdir=w", "--format=safetensors", "--push=a"], "--push=a is no repository of the"),
        (["--workdir=w", "--format=onnx", "--regions=0"], "--regions=0 is no number of 1 or more"),
        (["--model=a/b", "--format=orbax"], "--model has no folder of its own: give --output"),
    ],
)
def test_wrong_flags_end_in_one_line(capsys, arguments, message):
    code, found = told(arguments, capsys)
    assert code == 2
    assert message in found
    assert found.count("\n") == 1


def test_what_cannot_be_exported_or_not_there(trained, tmp_path, capsys, monkeypatch):
    run = f"--workdir={trained}"
    code, found = told([f"--workdir={tmp_path / 'none'}", "--format=orbax"], capsys)
    assert code == 1
    assert "none is no workdir of vse_jax" in found
    begun = tmp_path / "begun"
    begun.mkdir()
    for name in (workdir.CONFIG, workdir.ORIGIN, workdir.TOKENIZER):
        (begun / name).write_text((Path(trained) / name).read_text())
    _, found = told([f"--workdir={begun}", "--format=orbax"], capsys)
    assert "has no usable checkpoint; train the workdir first" in found
    (tmp_path / "mine.txt").write_text("mine")
    _, found = told([run, "--format=orbax", f"--output={tmp_path}"], capsys)
    assert "has other things in it" in found
    _, found = told([run, "--format=orbax", "--output=/proc/none/export"], capsys)
    assert "/proc/none/export cannot be written" in found
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    _, found = told([run, "--format=onnx", f"--output={tmp_path / 'onnx'}"], capsys)
    assert "jax2onnx is missing" in found
    assert "pip install 'vse_jax[export]'" in found


def test_a_damaged_export_is_told(trained, tmp_path):
    folder = exported(trained, "safetensors", tmp_path / "out")
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is damaged: .* does not match its checksum"):
        vse_jax.load(folder)
    file.write_bytes(data[:-9])
    with pytest.raises(CheckpointError, match="cannot be read"):
        vse_jax.load(folder)


def test_paths_of_this_machine_are_left_out(trained):
    found = trained_models.read(trained)
    config = found.config
    config.data.manual_dir, config.model.image.weights = "/home/me/photos", "/home/me/weights"
    config.model.text.weights = "owner/name"
    published = parameters.published(found)
    assert published.data.manual_dir is None
    assert published.model.image.weights is None
    assert published.model.text.weights == "owner/name"
    assert published.data.data_dir == "~/.cache/vse_jax" != config.data.data_dir


def test_the_hub(trained, tmp_path, monkeypatch, capsys):
    done = []

    class Interface:
        def create_repo(self, name, exist_ok):
            done.append((name, exist_ok))

        def upload_folder(self, repo_id, folder_path, commit_message):
            assert "vse_jax" in commit_message
            done.append((repo_id, sorted(path.name for path in folder_path.iterdir())))

    monkeypatch.setattr(huggingface_hub, "HfApi", Interface)
    folder = exported(trained, "safetensors", tmp_path / "out", "--push=me/model")
    assert capsys.readouterr().out.endswith("https://huggingface.co/me/model\n")
    files = ["config.json", "export.json", "model.safetensors", "origin.json", "tokenizer.json"]
    assert done == [("me/model", True), ("me/model", files)]

    fetched = []

    def snapshot_download(name, revision, allow_patterns):
        assert set(files) <= set(allow_patterns)
        fetched.append((name, revision))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert vse_jax.load("hub:me/model@v1").fingerprint == vse_jax.load(trained).fingerprint
    assert fetched == [("me/model", "v1")]
    with pytest.raises(WorkdirError, match="'me' is no repository; expected hub:OWNER/NAME"):
        vse_jax.load("hub:me")


def test_the_hub_is_not_there(trained, tmp_path, monkeypatch, capsys):
    def offline(*_, **__):
        raise ConnectionError("no route to the hub.\nmore")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", offline)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    arguments = [f"--workdir={trained}", "--format=safetensors", "--push=me/model"]
    code, found = told([*arguments, f"--output={tmp_path / 'out'}"], capsys)
    assert code == 1
    assert "me/model cannot be uploaded to: no route to the hub. It takes" in found
    assert f"the files are whole in {tmp_path / 'out'}" in found
    with pytest.raises(WorkdirError, match="cannot be fetched from the hub: no route to the hub"):
        vse_jax.load("hub:me/model")
