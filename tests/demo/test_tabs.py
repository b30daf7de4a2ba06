"""What each tab does, against the model's own answers; which workdir does what, and why not."""

import shutil
import struct
import threading

import numpy as np
import pytest
from PIL import Image

import vse_jax
from vse_jax import alignment_picture, look_picture, search
from vse_jax.demo import cards, tabs
from vse_jax.demo.tabs import Photo, Photos, Served, Unserved
from vse_jax.finder import Finder, Hit
from vse_jax.index.records import Item
from vse_jax.workdir import WorkdirError

SENTENCE = "a red circle"


@pytest.fixture(scope="module", autouse=True)
def few_widths():
    """One beam width beside the config's, as each is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tabs, "WIDTHS", (1,))
        yield


@pytest.fixture(scope="module")
def served(trained, trained_cam, trained_dvsa, index):
    return tabs.served([trained_cam, trained, trained_dvsa], index)


@pytest.fixture(scope="module")
def picture(photos):
    return np.asarray(Image.open(sorted(photos.iterdir())[2]).convert("RGB"))


def test_each_task_is_done_by_the_first_that_can(served, trained, trained_cam, trained_dvsa):
    assert {task: found.folder for task, found in served.items()} == {
        "search": trained, "caption": trained_cam, "align": trained_dvsa, "look": trained_cam,
    }  # fmt: skip


def test_search(served, photos, picture):
    found = served["search"]
    model, paths = found.model, sorted(photos.iterdir())
    scores = model.similarity(model.encode_images(paths), model.encode_texts([SENTENCE]))[:, 0]
    best = np.argsort(-scores)[:4]
    shown = tabs.by_words(found.finder, SENTENCE, 4)
    assert [photo.name for photo in shown.photos] == [paths[number].name for number in best]
    assert [photo.score for photo in shown.photos] == pytest.approx(scores[best], abs=1e-5)
    assert shown.among == len(paths)
    # By a picture, itself comes first.
    [first, *_] = tabs.by_picture(found.finder, picture, 2).photos
    assert (first.name, first.score) == (paths[2].name, pytest.approx(1, abs=1e-5))
    np.testing.assert_array_equal(first.picture, picture)


class Found(Finder):
    """Finds the files of these names in a folder, in this order, for any sentence."""

    def __init__(self, folder, *names):
        self.store = names
        self._hits = [Hit(Item(str(folder), name), 0.5) for name in names]

    def by_texts(self, sentences, k=10):
        return [self._hits[:k] for _ in sentences]


@pytest.fixture
def three(tmp_path):
    """A folder of three photos."""
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    return tmp_path


def test_photos_that_are_gone_or_broken_are_left_out_and_told(three, monkeypatch):
    """Whatever Pillow raises; but where memory ran out, nothing is right."""
    (three / "b.png").write_bytes(b"no picture")
    opened, raised = Image.open, []

    def broken(path):
        if path.name == "odd<.png":
            raise raised[0]
        return opened(path)

    monkeypatch.setattr(tabs.Image, "open", broken)
    (three / "odd<.png").touch()
    searched = Found(three, "b.png", "a.png", "gone.png", "odd<.png", "c.png")
    raised[:] = [struct.error("a bad table")]
    shown = tabs.by_words(searched, SENTENCE, 9)
    assert [photo.name for photo in shown.photos] == ["a.png", "c.png"]
    assert shown.left_out == ["b.png", "gone.png", "odd<.png"]
    page = cards.gallery(shown)
    assert "2 of 5 photos" in page
    assert "gone or broken since indexed, 3: b.png, gone.png, odd&lt;.png<" in page
    raised[:] = [MemoryError()]
    with pytest.raises(MemoryError):
        tabs.by_words(searched, SENTENCE, 9)


def test_photos_are_decoded_once_and_at_a_time(three, monkeypatch):
    """Two wait for each other here; none is decoded again until its file changes."""
    opened, seen, both = Image.open, [], threading.Barrier(2, timeout=20)

    def watched(path):
        seen.append(path.name)
        if len(seen) <= 2:
            both.wait()
        return opened(path)

    monkeypatch.setattr(tabs.Image, "open", watched)
    searched = Found(three, "a.png", "b.png")
    before = tabs.by_words(searched, SENTENCE, 9)
    assert sorted(seen) == [photo.name for photo in before.photos] == ["a.png", "b.png"]
    tabs.by_words(searched, SENTENCE, 9)
    assert len(seen) == 2
    Image.new("RGB", (9, 9), "blue").save(three / "b.png")
    after = tabs.by_words(searched, SENTENCE, 9)
    assert seen[2:] == ["b.png"]
    assert [photo.picture.size for photo in after.photos] == [(8, 8), (9, 9)]


def test_thumbnails_are_small_and_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (2000, 1000), "red").save(path, exif=exif)
    assert tabs.thumbnail(path).size == (240, 480)


def test_captions(served, picture):
    model = served["caption"].model
    assert tabs.widths(model) == [1, 2]
    [wanted] = model.caption([picture], beams=2, n_best=2)
    assert tabs.captions(model, picture, 2, 2) == wanted
    assert tabs.captions(model, picture, 2, 1) == wanted[:1]
    [greedy] = model.caption([picture], beams=1)
    assert tabs.captions(model, picture, 1, 5) == greedy


def test_alignment(served, picture):
    model = served["align"].model
    wanted = model.align(picture, SENTENCE)
    found = tabs.align(model, picture, SENTENCE)
    assert [part.text for part in found.found.segments] == [part.text for part in wanted.segments]
    drawn = alignment_picture.overlay(Image.fromarray(picture), wanted)
    np.testing.assert_array_equal(found.picture, drawn)
    told = cards.aligned(found, 0.1)
    assert told.count('class="words"') == len(wanted.segments)
    assert f"{wanted.segments[0].score:.2f}" in told


def test_maps(served, picture):
    model = served["look"].model
    for sentence in ("", SENTENCE):
        wanted = model.look(picture, sentence or None)
        found = tabs.look(model, picture, sentence)
        drawn = look_picture.side_by_side(Image.fromarray(picture), look_picture.panels(wanted))
        np.testing.assert_array_equal(found.picture, drawn)
        likeliest = wanted.classes[0]
        told = f"{likeliest.name}</td><td>{100 * likeliest.probability:.1f}%"
        assert told in cards.looked(found, 0.1)


def test_what_none_can_do_says_why_and_what_to_train(trained, trained_leap):
    found = tabs.served([trained, trained_leap])
    assert len(tabs.reasons(found)) == 4 * 3
    assert all(isinstance(outcome, Unserved) for outcome in found.values())
    for number, folder in enumerate((trained, trained_leap)):
        assert f"{folder}: {folder}/index/images has no index" in found["search"].reasons[number]
        assert "writes no captions" in found["caption"].reasons[number]
        assert "ties no words to regions" in found["align"].reasons[number]
        assert "has no maps of where it looks" in found["look"].reasons[number]
    assert "vse_jax.search index" in found["search"].advice
    told = cards.unserved("No <photos>", found["search"])
    assert "No &lt;photos&gt;" in told
    assert told.count("<li>") == 2


def test_an_index_of_another_model_or_of_sentences(trained, trained_leap, index, tmp_path):
    outcome = tabs.served([trained_leap], index)["search"]
    assert "was made by another model" in outcome.reasons[0]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a circle")
    texts = tmp_path / "index"
    arguments = [f"--workdir={trained}", f"--texts={tmp_path / 'texts'}", f"--index={texts}"]
    search.main(["index", *arguments])
    outcome = tabs.served([trained], texts)["search"]
    assert "is an index of texts" in outcome.reasons[0]


def test_a_folder_that_is_no_workdir(tmp_path):
    with pytest.raises(WorkdirError, match="is no workdir"):
        tabs.served([tmp_path])


def test_an_empty_index(trained, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    index = tmp_path / "index"
    arguments = [f"--workdir={trained}", f"--images={tmp_path / 'photos'}", f"--index={index}"]
    search.main(["index", *arguments])
    shutil.rmtree(tmp_path / "photos")
    (tmp_path / "photos").mkdir()
    search.main(["index", *arguments])
    found = tabs.served([trained], index)["search"]
    assert isinstance(found, Served)
    shown = tabs.by_words(found.finder, SENTENCE, 3)
    assert (shown.photos, shown.among) == ([], 0)
    assert "There is nothing in the index." in cards.gallery(shown)


def test_texts_are_escaped():
    page = cards.gallery(Photos([Photo('a"<b>.jpg', 0.5, Image.new("RGB", (4, 4)))], [], 1, 0.1))
    assert "<b>.jpg" not in page
    assert "a&quot;&lt;b&gt;.jpg" in page
    caption = vse_jax.api.Caption("<script>", -1.5, -1.5)
    assert "<td>&lt;script&gt;</td><td>-1.50</td>" in cards.captions([caption], 0.1)
