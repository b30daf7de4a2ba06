"""Published weights in a workdir's place: what CLIP and SigLIP are to load, search and export."""

import json
import re
import shlex
from pathlib import Path

import huggingface_hub
import numpy as np
import parity
import pytest
import random_twins
from PIL import Image
from test_two_towers import BLOCKS, SIZE, write_clip, write_tokenizer
from tokenizers import Tokenizer

import vse_jax
from vse_jax import export, finder, presets, search
from vse_jax.config import default_config
from vse_jax.demo import tabs
from vse_jax.models.backbones.weights import WeightsError
from vse_jax.workdir import WorkdirError

SENTENCES = ["a red circle", "two dogs playing in snow", "the small triangle above a square " * 9]
LENGTH = 40
# Of pixels; neither model's own, to be read beside the weights.
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def write_siglip(folder):
    """A small SigLIP drawn at random; the model of transformers."""
    words = ["a", "red", "circle", "square", "above", "the", "small", "triangle"]
    count, _ = write_tokenizer(folder, words, "<start>", "<end>", "<pad>")
    library = parity.transformers()
    text = {"vocab_size": count, "max_position_embeddings": LENGTH, "pad_token_id": 0}
    vision = {"image_size": SIZE, "patch_size": 8}
    config = library.SiglipConfig(text_config=BLOCKS | text, vision_config=BLOCKS | vision)
    model = library.SiglipModel(config)
    parity.saved(parity.randomize(model), folder)
    return model


def scaled(folder):
    """Says beside weights how pixels are scaled."""
    said = {"image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder of CLIP's weights and the model of transformers."""
    folder = tmp_path_factory.mktemp("clip")
    model = write_clip(folder)
    scaled(folder)
    return folder, model


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        pixels = rng.integers(0, 256, (2 + number, 3, 3), np.uint8)
        Image.fromarray(pixels).resize((50 + number, 40)).save(folder / f"{number}.png")
    return folder


def of_transformers(folder, model, pictures, sentences):
    """Embeddings of both, of length 1."""
    torch, whole = parity.torch(), (SIZE, SIZE)
    pixels = [Image.open(p).convert("RGB").resize(whole, Image.Resampling.BILINEAR)
              for p in pictures]  # fmt: skip
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pad = json.loads((folder / "tokenizer_config.json").read_text())["pad_token"]
    words.enable_padding(length=LENGTH, pad_id=words.token_to_id(pad), pad_token=pad)
    rows = [encoding.ids for encoding in words.encode_batch(sentences)]
    # The last token closes a sentence that is cut, too.
    rows = [[*row[: LENGTH - 1], row[-1]] for row in rows]
    with torch.no_grad():
        found = model(
            input_ids=torch.tensor(rows),
            pixel_values=random_twins.pixels(torch, np.stack(pixels), MEAN, STD),
        )
    return found.image_embeds.numpy(), found.text_embeds.numpy()


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_embeddings_are_those_of_transformers(kind, request, photos, tmp_path):
    if kind == "clip":
        folder, twin = request.getfixturevalue("clip")
    else:
        folder = tmp_path / "siglip"
        folder.mkdir()
        twin = write_siglip(folder)
        scaled(folder)
    paths = sorted(photos.iterdir())
    images, texts = of_transformers(folder, twin, paths, SENTENCES)
    model = vse_jax.load(folder)
    np.testing.assert_allclose(model.encode_images(paths), images, atol=1e-5)
    np.testing.assert_allclose(model.encode_texts(SENTENCES), texts, atol=1e-5)
    assert min(np.ptp(images, axis=0).max(), np.ptp(texts, axis=0).max()) > 0.1
    assert (model.step, model.config.data.image_size) == (0, SIZE)


def commands(marker):
    """The lines of the README's block behind a marker."""
    text = (Path(__file__).parents[1] / "README.md").read_text()
    block = re.search(rf"<!-- ci: {marker} -->\n```sh\n(.*?)```", text, re.DOTALL)
    return block[1].replace("\\\n", " ").splitlines()


@pytest.fixture
def hub(clip, monkeypatch):
    """The hub as far as it is asked: it has the folder of `clip`; what it was asked for."""
    asked = []

    def snapshot(name, revision, allow_patterns):
        asked.append((name, revision, set(allow_patterns)))
        return str(clip[0])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return asked


@pytest.mark.torch
def test_two_commands_to_a_search(clip, hub, photos, tmp_path, monkeypatch, capsys):
    """Those of the README: by path, by name, by both of one index, which follows the folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    pixels, seen = search.indexing.inputs.pixels, []
    monkeypatch.setattr(
        search.indexing.inputs, "pixels", lambda *given: seen.append(given) or pixels(*given)
    )
    install, asked = commands("pretrained")
    assert install == "pip install -e ."
    [python, option, module, *arguments] = shlex.split(asked)
    assert (python, option, module) == ("python", "-m", "vse_jax.search")

    def found(*given):
        search.main(given)
        printed = capsys.readouterr()
        lines = [line.split("\t") for line in printed.out.splitlines()]
        return [Path(path).name for _, path in lines], [float(s) for s, _ in lines], printed.err

    [by_name] = [each for each in arguments if each.startswith("--model=")]
    by_path = [f"--model={clip[0]}" if each == by_name else each for each in arguments]
    names, scores, told = found(*by_path)
    paths = sorted(photos.iterdir())
    images, texts = of_transformers(*clip, paths, arguments[-1:])
    order = np.argsort(-(images @ texts[0]))
    assert names == [paths[number].name for number in order]
    assert scores == pytest.approx((images @ texts[0])[order], abs=1e-4)
    assert len(seen) == 4
    index = finder.cached_folder(vse_jax.load(clip[0]), "images", photos.resolve())
    assert index.is_relative_to(tmp_path / "home")
    assert f"4 files: 4 new; 4 items in {index}" in told

    Image.new("RGB", (9, 9), "red").save(photos / "new.png")
    assert len(found(*arguments)[0]) == 5
    assert len(seen) == 5
    [(name, revision, files)] = hub
    assert (f"--model={name}", revision) == (by_name, None)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    config = default_config()
    presets.clip(config)
    assert name == config.model.image.weights
    # And the page searches in it, by the same names.
    for model in (clip[0], Path(f"hub:{name}")):
        outcome = tabs.served([model], images=photos)["search"]
        assert len(tabs.by_words(outcome.finder, "a red circle", 9).photos) == 5
    alone = tabs.served([Path(f"hub:{name}")])["search"]
    assert "is no folder here to keep an index in" in alone.reasons[0]
    assert "and --images=FOLDER here too" in alone.advice


@pytest.mark.torch
def test_other_pixels_are_another_model(clip, tmp_path):
    for path in Path(clip[0]).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = vse_jax.load(tmp_path).fingerprint
    assert before == vse_jax.load(clip[0]).fingerprint
    changed = json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5]})
    (tmp_path / "preprocessor_config.json").write_text(changed)
    assert vse_jax.load(tmp_path).fingerprint != before


@pytest.mark.torch
def test_an_export_of_them(clip, tmp_path):
    output = tmp_path / "out"
    export.main([f"--model={clip[0]}", "--format=safetensors", f"--output={output}"])
    model, again = vse_jax.load(clip[0]), vse_jax.load(output)
    assert again.fingerprint == model.fingerprint
    np.testing.assert_array_equal(again.encode_texts(SENTENCES), model.encode_texts(SENTENCES))


def test_the_hub_without_safetensors(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    told = r"hub:me/clip has no model.safetensors on the hub: give a revision that has one"
    with pytest.raises(WorkdirError, match=told):
        vse_jax.load("hub:me/clip")


def test_weights_of_other_models(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    told = r"has weights of the kind 'bert'; those that .* are 'clip' or 'siglip'$"
    with pytest.raises(WeightsError, match=told):
        vse_jax.load(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["query", "a"], 2, "one of the arguments --workdir --model is required"),
        (["query", "a", "--workdir=w", "--model=m"], 2, "not allowed with argument --workdir"),
        (["query", "a", "--model=me/clip"], 2, "give --images=FOLDER to search, or --index"),
        (
            ["query", "a", "--model=nowhere", "--index=i"],
            1,
            "'nowhere' is no repository; expected hub:OWNER/NAME, or a folder that exists",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, code, message, capsys):
    with pytest.raises(SystemExit) as ended:
        search.main(arguments)
    told = capsys.readouterr().err
    assert ended.value.code == code
    assert message in told
    assert told.count("\n") == 1
