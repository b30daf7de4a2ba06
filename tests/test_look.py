"""Where a model of "cam" looks: by the API, by the command, and as a picture."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vse_jax
from vse_jax import align, caption, look, look_picture, train_step, workdir
from vse_jax.data.content_words import stop_words
from vse_jax.data.split import DataError
from vse_jax.look import LookError

SENTENCE = "a red circle above a blue square"


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 80, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def model(trained_cam):
    return vse_jax.load(trained_cam)


@pytest.fixture(scope="module")
def only(trained_cam, tmp_path_factory):
    """Weight to set to 0 -> that workdir without it, and without what takes both tasks."""

    def make(task):
        folder = tmp_path_factory.mktemp(task) / "run"
        shutil.copytree(trained_cam, folder)
        config = json.loads((folder / workdir.CONFIG).read_text())
        for name in (task, "disagreement", "embedding"):
            config["objective"][name]["weight"] = 0.0
        (folder / workdir.CONFIG).write_text(json.dumps(config))
        if task == "classification":
            origin = json.loads((folder / workdir.ORIGIN).read_text()) | {"classes": []}
            (folder / workdir.ORIGIN).write_text(json.dumps(origin))
        return folder

    return {task: make(task) for task in ("classification", "generation")}


@pytest.fixture(scope="module")
def seen(trained_cam, opened, photo):
    """The run, its variables, the photo as the model sees it, and local of it [4, 16]."""
    run, state = opened(trained_cam)
    params, statistics = train_step.evaluation_params(state), state.batch_stats
    variables = jax.tree.map(jnp.asarray, {"params": params, "batch_stats": statistics})
    with Image.open(photo) as opened_:
        small = np.asarray(opened_.resize((32, 32), Image.Resampling.BILINEAR))
    image = jnp.asarray(small[None])
    model = run.built.model
    encoding = model.apply(variables, {"image": image}, train=False, method=model.encode_image)
    return run, variables, image, np.asarray(encoding.local[0])


def test_classes_are_the_softmax_of_the_classifier_best_first(model, photo, seen):
    [found] = model.classify([photo])
    _, variables, _, local = seen
    params = variables["params"]
    pooled = local.mean(axis=0) + params["image"]["head"]["bias"]
    classifier = params["classifier"]
    powers = np.exp(pooled @ classifier["weights"] + classifier["bias"])
    right = dict(zip(model.classes, powers / powers.sum(), strict=True))
    assert {one.name for one in found} == set(right)
    np.testing.assert_allclose([one.probability for one in found], sorted(right.values())[::-1],
                               rtol=1e-4)  # fmt: skip
    assert [one.name for one in found] == sorted(right, key=lambda name: -right[name])
    several = model.classify([photo, np.zeros((4, 4, 3), np.uint8), photo], batch_size=2)
    assert [own[0].name for own in several][::2] == [found[0].name] * 2
    assert model.classify([]) == []


def test_maps_are_those_of_the_model_on_its_grid(model, photo, seen):
    run, variables, image, local = seen
    of_cells = local @ variables["params"]["classifier"]["weights"]
    # A class that something speaks for.
    number = int(np.argmax(of_cells.max(axis=0)))
    name = model.classes[number]
    found = model.look(photo, SENTENCE, name=name)
    # As short as the sentence is, on one device.
    tokens, mask = run.tokenizer.tokenize([SENTENCE])
    batch = {"image": image, "label": jnp.asarray([number], jnp.int32)}
    batch |= {"tokens": jnp.asarray(tokens), "token_mask": jnp.asarray(mask)}
    its = run.built.model
    right = jax.jit(lambda: its.apply(variables, batch, method=its.looks))()
    by_hand = np.maximum(of_cells[:, number], 0)
    assert by_hand.max() > 0
    assert right["caption_map"].max() > 0
    assert found.class_map.shape == found.caption_map.shape == (2, 2)
    assert found.class_map.dtype == found.caption_map.dtype == np.float32
    np.testing.assert_allclose(found.class_map.ravel(), by_hand, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.caption_map.ravel(), right["caption_map"][0], rtol=1e-3)
    assert found.told.name == name
    assert dict(found.classes)[name] == found.told.probability
    a, b = found.class_map.ravel(), found.caption_map.ravel()
    cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    assert found.agreement == pytest.approx(cosine, abs=1e-5)
    assert found.caption == SENTENCE


def test_by_default_it_looks_for_what_it_says_itself(model, photo):
    found = model.look(photo)
    [[best]] = model.caption([photo])
    [classes] = model.classify([photo])
    assert found.caption == best.text
    assert found.told == found.classes[0]
    assert [one.name for one in found.classes] == [one.name for one in classes]
    named = model.look(photo, name=classes[0].name)
    np.testing.assert_array_equal(named.class_map, found.class_map)
    # Of a caption without words there is no map, and no agreement.
    assert (found.caption_map is None) == (found.agreement is None)


def test_unknown_words_are_told_and_sentences_without_content_refused(model, photo):
    assert model.look(photo, "a red xyzzy circle").unknown == ("xyzzy",)
    with pytest.raises(DataError, match="'the of a' has no content word that the model knows"):
        model.look(photo, "the of a")
    with pytest.raises(DataError, match="'xyzzy' has no word that the model knows"):
        model.look(photo, "xyzzy")
    with pytest.raises(DataError, match="sentence 0 is no Unicode text"):
        model.look(photo, "a red \ud800")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("circel", "no class 'circel' among its 8: near ones are circle"),
        ("Square", "near ones are square"),
        ("qqqqq", "some are "),
        ("", "near ones are "),
    ],
)
def test_an_unknown_class_is_told_with_near_ones(model, photo, name, told):
    with pytest.raises(LookError, match=told):
        model.look(photo, name=name)


def test_pictures_are_refused_as_of_encode_images(model):
    with pytest.raises(DataError, match=r"picture 0 is uint8\[4, 4\]; expected uint8 \[h, w, 3\]"):
        model.look(np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match=r"picture 0 \(gone\.jpg\) cannot be read"):
        model.look("gone.jpg")
    with pytest.raises(TypeError, match="classify takes a list of pictures"):
        model.classify("a.jpg")
    with pytest.raises(ValueError, match="batch_size is 0"):
        model.classify([np.zeros((4, 4, 3), np.uint8)], batch_size=0)


def test_a_model_of_another_network_says_what_it_lacks(trained, photo):
    other = vse_jax.load(trained)
    with pytest.raises(LookError, match=r"network 'vsepp', which has no maps .*network=cam"):
        other.look(photo)
    with pytest.raises(LookError, match="of the network 'vsepp', tells no classes"):
        other.classify([photo])


def test_a_classifier_alone_has_one_map(model, only, photo, capsys):
    alone = vse_jax.load(only["generation"])
    found = alone.look(photo)
    np.testing.assert_allclose(found.class_map, model.look(photo).class_map, rtol=1e-4, atol=1e-6)
    assert found.caption is found.caption_map is found.agreement is None
    with pytest.raises(LookError, match=r"writes no captions .* looks for no sentence"):
        alone.look(photo, SENTENCE)
    with pytest.raises(ValueError, match="tells classes of pictures, and reads no sentences"):
        alone.encode_texts([SENTENCE])
    with pytest.raises(SystemExit, match="caption: this model tells classes and writes no capt"):
        caption.main([f"--workdir={only['generation']}", str(photo)])
    align.main([f"--workdir={only['generation']}", "--cam", str(photo)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["class", "class map"]


def test_a_captioner_alone_has_the_other(model, only, photo, capsys):
    alone = vse_jax.load(only["classification"])
    found, both = alone.look(photo, SENTENCE), model.look(photo, SENTENCE)
    np.testing.assert_allclose(found.caption_map, both.caption_map, rtol=1e-4)
    assert found.class_map is found.told is found.agreement is None
    assert found.classes == []
    with pytest.raises(LookError, match="of the network 'cam', tells no classes"):
        alone.look(photo, name="circle")
    with pytest.raises(ValueError, match="writes captions, and reads no sentences"):
        alone.encode_texts([SENTENCE])
    align.main([f"--workdir={only['classification']}", "--cam", str(photo), SENTENCE])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["caption", "caption map"]


@pytest.fixture
def run(trained_cam, capsys):
    """Arguments -> exit code, what was printed, and what was told."""

    def command(*arguments, folder=trained_cam):
        code = 0
        try:
            align.main([f"--workdir={folder}", *map(str, arguments)])
        except SystemExit as ended:
            code = ended.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return command


def test_the_command_prints_classes_caption_agreement_and_peaks(run, model, photo, tmp_path):
    output = tmp_path / "maps.png"
    code, out, told = run("--cam", photo, "a red xyzzy circle", f"--output={output}")
    assert code == 0
    assert "words that the model does not know: xyzzy" in told
    found = model.look(photo, "a red xyzzy circle")
    lines = {line[:13].strip(): line[13:] for line in out.splitlines()}
    likeliest = [f"{name} {100 * p:.1f}%" for name, p in found.classes[:3]]
    assert lines.pop("class") == ", ".join(likeliest)
    assert lines.pop("caption") == "a red xyzzy circle"
    assert lines.pop("agreement") == f"{found.agreement:.3f}"
    for name, shown in (("class", found.class_map), ("caption", found.caption_map)):
        assert shown.max() > 0
        y, x = divmod(int(shown.argmax()), 2)
        box = [20 * y, 40 * x, 20 * y + 20, 40 * x + 40]
        of = f"of {found.told.name}" if name == "class" else "of its content words"
        told = f"{of}, highest at y, x {box[:2]} to {box[2:]}"
        assert lines.pop(f"{name} map") == told
    assert not lines
    with Image.open(output) as drawn:
        assert drawn.format == "PNG"
        assert drawn.width == 2 * 640 + look_picture.GAP
        assert drawn.height > 320


def test_a_caption_without_a_content_word_is_said_to_have_no_map(model, photo):
    found = dataclasses.replace(model.look(photo), caption="a a", caption_map=None, agreement=None)
    lines = align.look_as_lines(found, Image.new("RGB", (80, 40))).splitlines()
    assert lines[-1].split(maxsplit=2) == [
        "caption", "map", "none: there is no content word in it"
    ]  # fmt: skip
    assert not any(line.startswith("agreement") for line in lines)


def test_json_is_everything(run, model, photo):
    code, out, _ = run("--cam", photo, SENTENCE, "--json")
    assert code == 0
    told, found = json.loads(out), model.look(photo, SENTENCE)
    assert [one["name"] for one in told["classes"]] == [one.name for one in found.classes]
    assert told["caption"] == SENTENCE
    assert told["unknown"] == []
    assert told["agreement"] == pytest.approx(found.agreement, rel=1e-4)
    np.testing.assert_allclose(told["maps"]["class"], found.class_map, rtol=1e-4)
    np.testing.assert_allclose(told["maps"]["caption"], found.caption_map, rtol=1e-4)
    assert set(told["peaks"]) == {"class", "caption"}


def test_the_class_of_the_map_may_be_named(run, model, photo):
    name = model.classes[3]
    code, out, _ = run("--cam", photo, SENTENCE, f"--class={name}", "--json")
    assert code == 0
    expected = model.look(photo, SENTENCE, name)
    assert expected.told.name == name
    np.testing.assert_allclose(json.loads(out)["maps"]["class"], expected.class_map, rtol=1e-4)


def test_what_does_not_go_together_ends_in_one_line(run, trained, trained_dvsa, photo, tmp_path):
    other = "--cam is of classes and captions: it takes no --snippets, --boxes or --beta"
    for arguments, folder, code, message in [
        (["--cam"], {}, 2, "--cam needs a picture"),
        (["--cam", photo, "--beta=1"], {}, 2, other),
        (["--cam", photo, "--boxes=[[0, 0, 1, 1]]"], {}, 2, other),
        (["--cam", f"--snippets={tmp_path}/a.jsonl"], {}, 2, other),
        (["--cam", photo, f"--output={tmp_path}/a.jpg"], {}, 2, "must end in .png"),
        (["--cam", photo, "of the"], {}, 1, "has no content word that the model knows"),
        (["--cam", "gone.jpg"], {}, 1, "gone.jpg"),
        (["--cam", photo, "--class=comet"], {}, 1, "the model knows no class 'comet'"),
        ([photo, SENTENCE, "--class=star"], {}, 2, "--class is of --cam"),
        (["--cam", photo], {"folder": trained_dvsa}, 1, "network 'dvsa', which has no maps"),
        (["--cam", photo], {"folder": trained}, 1, "network 'vsepp', which has no maps"),
        ([photo, SENTENCE], {}, 1, "which ties no words to regions, but shows where it looks: giv"),
    ]:
        found, out, told = run(*arguments, **folder)
        assert (found, out, told.count("\n")) == (code, "", 1)
        assert told.startswith("align: ")
        assert message in told


def test_captions_are_written_by_the_command(trained_cam, model, photo, capsys):
    caption.main([f"--workdir={trained_cam}", "--json", str(photo)])
    told = json.loads(capsys.readouterr().out)
    assert told["text"] == model.caption([photo])[0][0].text


def test_a_map_of_zeros_is_the_photo_as_it_is():
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8))
    drawn = look_picture.overlay(photo, np.zeros((3, 4), np.float32))
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(photo))


@pytest.mark.parametrize("scale", [1e-42, 1.0, 1e38])
def test_heat_is_where_the_map_is_whatever_its_scale(scale):
    heat = np.zeros((4, 8), np.float32)
    heat[1, 6] = scale
    drawn = look_picture.overlay(Image.new("L", (160, 80), 128), heat)
    assert drawn.mode == "RGB"
    assert drawn.size == (160, 80)
    change = np.abs(np.asarray(drawn).astype(int) - 128).sum(axis=2)
    # The middle of the cell is the hottest, and beyond its neighbours' middles nothing is.
    y, x = np.unravel_index(change.argmax(), change.shape)
    assert 20 <= y < 40
    assert 120 <= x < 140
    assert change[:8].max() == change[52:].max() == change[:, :108].max() == change[:, 152:].max()
    assert change[0, 0] == 0


def test_boxes_are_drawn_over_the_heat():
    drawn = look_picture.overlay(
        Image.new("RGB", (160, 80)), np.ones((2, 2), np.float32), np.array([[0.25, 0.5, 0.75, 1.0]])
    )
    white = np.all(np.asarray(drawn) == 255, axis=2)
    assert white[20, 80:160].all()
    assert white[20:60, 80].all()
    assert not white[:20].any()


@pytest.mark.parametrize("heat", [np.full((2, 2), np.nan), -np.ones((2, 2)), np.zeros((0, 2))])
def test_what_is_no_map_is_refused(heat):
    with pytest.raises(ValueError, match="all finite and 0 or more"):
        look_picture.overlay(Image.new("RGB", (8, 8)), heat.astype(np.float32))


@pytest.mark.parametrize("size", [(96, 96), (3000, 50), (20, 2000), (1, 1)])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_maps_stand_side_by_side_at_any_size(size, count):
    panels = [look_picture.Panel(np.eye(2, dtype=np.float32), "word " * 30)] * count
    drawn = look_picture.side_by_side(Image.new("RGB", size, "blue"), panels)
    pixels = np.asarray(drawn)
    if count == 0:
        assert (pixels == (0, 0, 255)).all()
        return
    width = (drawn.width + look_picture.GAP) // count - look_picture.GAP
    assert 360 <= width <= 1280
    # The words are below each.
    strips = [pixels[-70:, n * (width + look_picture.GAP) :][:, :width] for n in range(count)]
    assert all((strip < 100).any() for strip in strips)


def test_peaks_are_boxes_of_cells():
    shown = np.zeros((2, 4), np.float32)
    assert look.peak(shown) is None
    shown[1, 2] = 1e-9
    np.testing.assert_array_equal(look.peak(shown), [0.5, 0.5, 1.0, 0.75])


def test_the_report_has_classes_and_pictures_of_where_it_looks(trained_cam):
    report = json.loads((trained_cam / "report.json").read_text())
    told = report["classification"]
    assert len(told["names"]) == len(told["pictures"]) == len(told["right"]) == 8
    assert sum(told["pictures"]) == 16
    accuracy = 100 * sum(told["right"]) / 16
    assert report["metrics"]["classify/accuracy"] == pytest.approx(accuracy)
    assert sum(count for *_, count in told["confused"]) == 16 - sum(told["right"])
    assert all(true != other and count for true, other, count in told["confused"])
    looks = json.loads((trained_cam / "queries.json").read_text())["looks"]
    assert len(looks) == 3
    for item in looks:
        assert item["class"]["true"] in told["names"]
        assert item["class_image"].startswith("data:image/jpeg;base64,")
        # What a model of so few steps writes has a content word or not; see test_cam_run.py, too.
        mapped = any(word not in stop_words() for word in item["written"].split())
        assert mapped == ("caption_image" in item) == (item["agreement"] is not None)
    page = (trained_cam / "report.html").read_text()
    for part in ("<h2>Where the model looks", "<h2>Classes", "<h2>What is taken for what"):
        assert part in page
    mapped = sum("caption_image" in item for item in looks)
    assert page.count("data:image/jpeg") == 3 + 3 + mapped
    assert page.count("no content word in it, so no map") == 3 - mapped
