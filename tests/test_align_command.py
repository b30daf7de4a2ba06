"""python -m vse_jax.align: what it prints, draws and writes, and how it tells mistakes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vse_jax
from vse_jax import align, alignment_picture, boxes
from vse_jax.alignment import AlignedSegment, Alignment, align_split

SENTENCE = "a red circle above a blue square"
BOXES = "[[0.125, 0.25, 0.5, 0.625]]"


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 80, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def run(trained_dvsa, capsys):
    """Arguments -> exit code, what was printed, and what was told."""

    def command(*arguments, folder=trained_dvsa):
        code = 0
        try:
            align.main([f"--workdir={folder}", *map(str, arguments)])
        except SystemExit as ended:
            code = ended.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return command


def test_a_line_is_a_segment_and_json_is_everything(run, trained_dvsa, photo):
    expected = vse_jax.load(trained_dvsa).align(photo, SENTENCE, json.loads(BOXES), 0.0)
    code, out, _ = run(photo, SENTENCE, f"--boxes={BOXES}", "--beta=0")
    assert code == 0
    lines = out.splitlines()
    assert len(lines) == len(expected.segments)
    in_pixels = {(0.125, 0.25, 0.5, 0.625): [5, 20, 20, 50], (0.0, 0.0, 1.0, 1.0): [0, 0, 40, 80]}
    for line, segment in zip(lines, expected.segments, strict=True):
        assert line.startswith(segment.text)
        pixels = in_pixels[tuple(segment.box.tolist())]
        assert line.endswith(f"{segment.score:.3f}  {pixels}")
    code, out, _ = run(photo, SENTENCE, f"--boxes={BOXES}", "--beta=0", "--json")
    found = json.loads(out)
    assert found["words"] == SENTENCE.split()
    np.testing.assert_array_equal(found["regions"], expected.regions)
    np.testing.assert_allclose(found["scores"], expected.scores, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["boxes"], expected.boxes)
    for told, segment in zip(found["segments"], expected.segments, strict=True):
        assert told["words"] == segment.text
        assert told["box"] == segment.box.tolist()
        assert told["pixels"] == in_pixels[tuple(told["box"])]
        np.testing.assert_allclose(told["score"], segment.score, rtol=1e-4)


def test_words_that_the_model_does_not_know_are_told(run, photo):
    sentence = "a red xyzzy circle, Plugh!"
    code, out, told = run(photo, sentence, f"--boxes={BOXES}", "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["words"], found["unknown"]) == (["a", "red", "circle"], ["xyzzy", "plugh"])
    assert "words that the model does not know: xyzzy, plugh" in told


@pytest.mark.parametrize("whole_path", [True, False])
def test_boxes_come_from_a_file_and_the_picture_is_drawn(run, photo, tmp_path, whole_path):
    name = str(photo) if whole_path else photo.name
    lines = [{"image": n, "boxes": json.loads(BOXES)} for n in ("other.jpg", name)]
    boxes = tmp_path / "boxes.jsonl"
    boxes.write_text("\n".join(map(json.dumps, lines)))
    output = tmp_path / "new" / "overlay.png"
    code, out, _ = run(photo, SENTENCE, f"--boxes={boxes}", "--json", f"--output={output}")
    assert code == 0
    assert json.loads(out)["boxes"] == [*json.loads(BOXES), [0, 0, 1, 1]]
    with Image.open(output) as drawn:
        assert drawn.format == "PNG"
        assert drawn.width == 640
        assert drawn.height > 320
    assert [path.name for path in output.parent.iterdir()] == ["overlay.png"]


def rgb(colour):
    return tuple(bytes.fromhex(colour[1:]))


def test_boxes_and_words_have_the_same_colours():
    corners = [(0.0, 0.0, 1.0, 1.0), (0.25, 0.5, 0.75, 0.875), (0.0, 0.0, 1.0, 1.0)]
    boxes = [np.array(box, np.float32) for box in corners]
    segments = [
        AlignedSegment(text, box, 1.0)
        for text, box in zip(["on", "a small red star", "there"], boxes, strict=True)
    ]
    table = np.stack(boxes[:2])
    regions = np.array([0, 1, 1, 1, 1, 0], np.int32)
    words = ["on", "a", "small", "red", "star", "there"]
    found = Alignment(words, table, regions, np.zeros((6, 2), np.float32), segments)
    hues = alignment_picture.colours(boxes)
    assert hues[0] == hues[2] != hues[1]
    drawn = alignment_picture.overlay(Image.new("RGB", (96, 96), "black"), found)
    assert drawn.width == 640
    # First and last pixels of each box, at the middles of its sides.
    for hue, (y0, x0, y1, x1) in zip(hues, corners, strict=True):
        top, left, bottom, right = (round(640 * side) for side in (y0, x0, y1, x1))
        y, x = (top + bottom) // 2, (left + right) // 2
        for place in ((left, y), (right - 1, y), (x, top), (x, bottom - 1)):
            assert drawn.getpixel(place) == rgb(hue)
    inside = drawn.getpixel((round(640 * 0.7), 320))
    assert inside == (0, 0, 0)
    # The words of the whole picture stand before and behind those of the star.
    strip = np.asarray(drawn)[640:]
    columns = {hue: np.all(strip == rgb(hue), axis=2).any(axis=0).nonzero()[0] for hue in hues}
    assert columns[hues[0]].min() < columns[hues[1]].min()
    assert columns[hues[1]].max() < columns[hues[0]].max()


@pytest.mark.parametrize("size", [(96, 96), (3000, 50), (20, 2000), (1, 1)])
def test_pictures_of_any_size_are_drawn(size):
    box = np.array([0.0, 0.999, 0.001, 1.0], np.float32)
    segments = [AlignedSegment("word " * 30, box, 1.0)]
    words, regions = ["word"] * 30, np.zeros(30, np.int32)
    found = Alignment(words, box[None], regions, np.zeros((30, 1), np.float32), segments)
    drawn = alignment_picture.overlay(Image.new("RGB", size, "black"), found)
    assert max(drawn.width, 640) <= 1280
    hue = rgb(alignment_picture.COLOURS[0])
    assert np.all(np.asarray(drawn) == hue, axis=2).any(axis=1).sum() > 40


def test_pixels_of_a_box():
    assert boxes.pixels((0.0, 0.5, 0.5, 1.0), (10, 20)) == (5, 0, 9, 9)
    assert boxes.pixels((0.999, 0.0, 1.0, 0.001), (10, 20)) == (0, 19, 0, 19)


def test_snippets_of_every_split(run, trained_dvsa, opened, tmp_path):
    output = tmp_path / "snippets.jsonl"
    code, out, told = run(f"--snippets={output}", "--beta=0.01")
    assert f"what 480 captions say of regions is in {output}" in told
    assert code == 0
    assert out == ""
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    experiment, state = opened(trained_dvsa)
    expected = {}
    for name, split in experiment.dataset.splits.items():
        for caption, found in enumerate(align_split(experiment, state, name, 0.01)):
            image = split.images[split.caption_image[caption]]
            for text, box, score in found.segments:
                expected.setdefault((image, name, tuple(box.tolist()), text), score)
    written = {(s["image"], s["split"], tuple(s["box"]), s["snippet"]): s["score"] for s in lines}
    assert len(lines) == len(written)
    assert list(written) == list(expected)
    np.testing.assert_allclose(list(written.values()), list(expected.values()), rtol=1e-4)
    assert {line["split"] for line in lines} == {"train", "validation", "test"}


def test_mistakes_of_the_command_line_end_in_one_line(run, photo, tmp_path):
    for arguments, message in [
        ([photo], "a picture and a sentence in quotes are missing"),
        ([photo, SENTENCE, "more"], "unrecognized arguments: more"),
        ([photo, SENTENCE, "--beta=-1"], "'-1' is not a number of 0 or more"),
        ([photo, SENTENCE, "--beta=nan"], "'nan' is not a number of 0 or more"),
        ([photo, SENTENCE, "--beta=abc"], "'abc' is not a number of 0 or more"),
        (["--snippets="], "--snippets is '.'; it must end in .jsonl"),
        ([photo, SENTENCE, f"--output={tmp_path}/a.jpg"], "must end in .png"),
        ([photo, SENTENCE, f"--snippets={tmp_path}/a.jsonl"], "--snippets is of the data set"),
    ]:
        code, out, told = run(*arguments)
        assert (code, out, told.count("\n")) == (2, "", 1)
        assert told.startswith("align: ")
        assert message in told


def test_other_mistakes_end_in_one_line(run, trained, photo, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    with_boxes = f"--boxes={BOXES}"
    for arguments, folder, message in [
        ([photo, "xyzzy", with_boxes], {}, "'xyzzy' has no word that the model knows"),
        ([photo, SENTENCE, "--boxes=[[0, 0, 0, 1]]"], {}, "--boxes: box [0, 0, 0, 1] is not"),
        ([photo, SENTENCE, "--boxes=[["], {}, "--boxes is not JSON"),
        ([photo, SENTENCE, "--boxes=no.jsonl"], {}, "no.jsonl"),
        ([broken, SENTENCE, with_boxes], {}, "cannot be read"),
        ([Path("no.jpg"), SENTENCE, with_boxes], {}, "no.jpg"),
        ([photo, SENTENCE], {"folder": trained}, "network 'vsepp', which ties no words"),
        ([f"--snippets={tmp_path}/a.jsonl"], {"folder": trained}, "network 'vsepp', which ties no"),
        ([photo, SENTENCE], {"folder": tmp_path}, f"{tmp_path} is no workdir of vse_jax"),
    ]:
        code, out, told = run(*arguments, **folder)
        assert (code, out, told.count("\n")) == (1, "", 1)
        assert told.startswith("align: ")
        assert message in told
    assert not (tmp_path / "a.jsonl").exists()
