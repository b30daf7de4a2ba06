import os
import shutil
import tarfile

import numpy as np
import photos
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.image_classification import caltech_birds

from vse_jax.config import default_config
from vse_jax.data import cub, datasets
from vse_jax.data.captions_files import Record
from vse_jax.data.seeded_order import place
from vse_jax.data.split import DataError

CLASSES = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")
# Stem of a photo and whether it trains; ids are places in this list, from 1, not in its order.
PHOTOS = [
    (f"{folder}/{folder[4:].title()}_{number:04d}_{100 * kind + number}", number % 4 != 3)
    for number in range(8)
    for kind, folder in enumerate(CLASSES)
]
SIZE = (10, 20)


def box_of(number):
    """x, y, width and height in pixels."""
    return float(number % 7), float(number % 3), 5.0 + number % 6, 2.5 + number % 2


def captions_of(stem):
    return [f"this bird is called {stem} {k} ." for k in range(10)]


def write(base, captions):
    """The folder CUB_200_2011 as released, and captions."""
    for stem, _ in PHOTOS:
        path = base / "images" / f"{stem}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photos.picture(stem, size=SIZE))
    columns = {"images": [], "image_class_labels": [], "train_test_split": [], "bounding_boxes": []}
    for number, (stem, training) in enumerate(PHOTOS, 1):
        columns["images"].append(f"{number} {stem}.jpg")
        columns["image_class_labels"].append(f"{number} {int(stem[:3])}")
        columns["train_test_split"].append(f"{number} {int(training)}")
        columns["bounding_boxes"].append(f"{number} {' '.join(map(str, box_of(number)))}")
    columns["classes"] = [f"{number} {name}" for number, name in enumerate(CLASSES, 1)]
    for name, lines in columns.items():
        (base / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    photos.write_captions(captions, {stem: captions_of(stem) for stem, _ in PHOTOS})


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "birds"
    write(folder / "CUB_200_2011", folder / "text_c10")
    return folder


def load(folder, **options):
    return cub.load(folder, folder.parent / "prepared", **options)


def change(path, old, new):
    lines = path.read_text().split("\n")
    lines[lines.index(old)] = new
    path.write_text("\n".join(line for line in lines if line is not None))


def expected_splits():
    """Stems by split, from the rule: of six training photos a class the first drawn."""
    training = [stem for stem, trains in PHOTOS if trains]
    held_out = {
        min((s for s in training if s.startswith(name)), key=lambda s: place(f"{s}.jpg", 0))
        for name in CLASSES
    }
    return {
        "train": [stem for stem in training if stem not in held_out],
        "validation": [stem for stem in training if stem in held_out],
        "test": [stem for stem, trains in PHOTOS if not trains],
    }


def check(data, atol=0.0):
    """That everything of every photo is the photo's own."""
    numbers = {stem: number for number, (stem, _) in enumerate(PHOTOS, 1)}
    for name, stems in expected_splits().items():
        split = data.splits[name]
        own = [image.removesuffix(".jpg") for image in split.images]
        assert sorted(own) == sorted(stems)
        assert split.labels.dtype == np.int32
        assert [data.classes[label] for label in split.labels] == [s.split("/")[0] for s in own]
        for number, stem in enumerate(own):
            assert split.captions_of(number) == captions_of(stem)
            x, y, width, height = box_of(numbers[stem])
            box = [[y / 10, x / 20, (y + height) / 10, (x + width) / 20]]
            np.testing.assert_allclose(split.boxes[number], box, rtol=1e-6, atol=atol)
            assert split.boxes[number].dtype == np.float32
        assert split.read([1, 0]) == [photos.picture(stem, size=SIZE) for stem in own[1::-1]]


def test_it_is_read_as_released(root):
    data = load(root)
    check(data)
    assert (data.name, data.protocol, data.skipped) == ("cub", "cub_6", {})
    assert data.classes == CLASSES
    for name, stems in expected_splits().items():
        assert data.splits[name].images == [f"{stem}.jpg" for stem in stems]


def test_the_folder_may_be_named_itself_and_captions_lie_where_their_archive_puts_them(root):
    expected = load(root).fingerprint
    assert load(root / "CUB_200_2011").fingerprint == expected
    (root / "cvpr2016_cub").mkdir()
    (root / "text_c10").rename(root / "cvpr2016_cub" / "text_c10")
    assert load(root).fingerprint == expected
    assert load(root / "CUB_200_2011").fingerprint == expected
    (root / "cvpr2016_cub" / "text_c10").rename(root / "CUB_200_2011" / "text_c10")
    assert load(root).fingerprint == expected


def test_it_loads_as_a_config_names_it(root, tmp_path):
    config = default_config().data
    config.update({"dataset": "cub", "manual_dir": str(root), "data_dir": str(tmp_path / "data")})
    config.train_limit = 1
    assert not datasets.are_missing(config)
    data = datasets.load(config, 0)
    assert data.splits["train"].labels.tolist() == [0]
    assert len(data.splits["train"].boxes) == 1


def test_what_is_prepared_has_classes_and_boxes(root, tmp_path):
    builder = cub.Cub(data_dir=os.fspath(tmp_path / "tfds"))
    settings = tfds.download.DownloadConfig(manual_dir=os.fspath(root))
    builder.download_and_prepare(download_config=settings, file_format="array_record")
    again = cub.Cub(data_dir=os.fspath(tmp_path / "tfds"))
    assert again.info.features["label"].names == list(CLASSES)
    found = again.as_data_source(split="test")[1]
    assert found["name"].decode() == f"{PHOTOS[10][0]}.jpg"
    assert found["label"] == 1
    np.testing.assert_allclose(found["boxes"], [[0.2, 0.2, 0.55, 0.7]], rtol=1e-6)


def test_validation_is_a_tenth_of_each_class_and_moves_with_no_other_class():
    records = [
        Record(f"{kind}/{n}.jpg", [], "", "test" if n % 2 else "train", kind)
        for kind, count in enumerate((2, 60, 78))
        for n in range(count)
    ]
    found = cub.validated(records)
    assert [record.image for record in found] == [record.image for record in records]
    held_out = {record.image for record in found if record.split == "validation"}
    assert [sum(name.startswith(f"{kind}/") for name in held_out) for kind in range(3)] == [0, 3, 3]
    for kind in (1, 2):
        names = [f"{kind}/{n}.jpg" for n in range(0, (2, 60, 78)[kind], 2)]
        assert {name for name in held_out if name[0] == str(kind)} == set(
            sorted(names, key=lambda name: place(name, 0))[:3]
        )
    assert {record.image for record in found if record.split == "test"} == {
        record.image for record in records if record.split == "test"
    }
    fewer = cub.validated([record for record in records if record.label != 2])
    assert {r.image for r in fewer if r.split == "validation"} == {
        name for name in held_out if name[0] == "1"
    }


def test_a_box_may_end_a_pixel_outside_by_rounding(root):
    path = root / "CUB_200_2011" / "bounding_boxes.txt"
    line = path.read_text().split("\n")[0]
    change(path, line, "1 -0.5 -1.0 21.0 11.5")
    stem = PHOTOS[0][0]
    data = load(root)
    (split,) = [split for split in data.splits.values() if f"{stem}.jpg" in split.images]
    np.testing.assert_array_equal(split.boxes[split.images.index(f"{stem}.jpg")], [[0, 0, 1, 1]])
    for wrong in ("1 0.0 0.0 20.0 11.5", "1 -1.5 0.0 5.0 5.0"):
        path.write_text(path.read_text().replace(path.read_text().split("\n")[0], wrong))
        with pytest.raises(
            DataError,
            match=r"bounding_boxes\.txt:1: box .* ends 1\.5 pixels outside its photo of 20 x 10",
        ):
            load(root)


@pytest.mark.parametrize("box", ["0 0 0 5", "0 0 5 -1", "0 nan 5 5", "x 0 5 5", "0 0 inf 5"])
def test_a_box_that_is_none_is_named(root, box):
    path = root / "CUB_200_2011" / "bounding_boxes.txt"
    line = path.read_text().split("\n")[3]
    change(path, line, f"4 {box}")
    with pytest.raises(DataError, match=rf"bounding_boxes\.txt:4: box {box} is not x, y, width"):
        load(root)


def test_photos_without_captions_are_kept_for_their_class(root, caplog):
    train, test = expected_splits()["train"], expected_splits()["test"]
    captions = root / "text_c10"
    (captions / f"{train[0]}.txt").unlink()
    (captions / f"{test[0]}.txt").write_text("")
    (captions / f"{test[1]}.txt").write_text("a bird\n\nwith a\ufffd\ufffdwing\r\n")
    photos.write_captions(captions, {f"{CLASSES[0]}/Unknown_0001_1": ["a bird"]})
    extra = f"{CLASSES[2]}/Extra_0001_2.jpg"
    photos.write(root / "CUB_200_2011" / "images", [extra])
    data = load(root)
    assert data.skipped == {
        "caption without photo": ("Unknown_0001_1 (Unknown_0001_1.txt)",),
        "photo in no split": (extra,),
        "empty caption": (f"{test[1]}.jpg#1 ({test[1].split('/')[1]}.txt)",),
    }
    assert data.splits["train"].without_captions().tolist() == [0]
    split = data.splits["test"]
    assert split.without_captions().tolist() == [0]
    assert split.labels.tolist() == [int(stem[:3]) - 1 for stem in test]
    assert split.captions_of(1) == ["a bird", "with a wing"]
    assert split.captions_of(2) == captions_of(test[2])
    assert "cub: photo without captions, for their class only: 2 " in caplog.text


def test_missing_and_grey_photos_are_counted(root):
    images, test = root / "CUB_200_2011" / "images", expected_splits()["test"]
    (images / f"{test[0]}.jpg").unlink()
    (images / f"{test[1]}.jpg").write_bytes(photos.picture("grey", "L", SIZE))
    (root / "text_c10" / f"{test[2]}.txt").unlink()
    (images / f"{test[2]}.jpg").unlink()
    data = load(root, bad_share=0.2)
    place_of = {stem: number for number, (stem, _) in enumerate(PHOTOS, 1)}[test[2]]
    assert data.skipped == {
        "caption without photo": (f"{test[0]}.jpg ({test[0].split('/')[1]}.txt)",),
        "not RGB": (f"{test[1]}.jpg",),
        "class of a photo that is not there": (f"{test[2]}.jpg (images.txt:{place_of})",),
    }
    kept = load(root, bad_share=0.2, non_rgb="convert")
    assert kept.splits["test"].images[0] == f"{test[1]}.jpg"
    with pytest.raises(DataError, match=r"3 of 24 pictures are unfit"):
        load(root)


FIRST = PHOTOS[0][0]


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("image_class_labels", "5 2", "5 201", r":5: class 201 of photo 5; .* has 3, expected"),
        ("image_class_labels", "5 2", "5 0", r":5: class 0 of photo 5; .* expected 1 to 3"),
        ("image_class_labels", "5 2", "5 -1", r":5: class -1 of photo 5"),
        ("image_class_labels", "5 2", "5", r":5: expected <id> <class id>, found '5'"),
        ("image_class_labels", "5 2", "5 2 3", r":5: expected <id> <class id>, found '5 2 3'"),
        ("image_class_labels", "5 2", "4 2", r":5: id 4 a second time, first .*labels\.txt:4"),
        ("image_class_labels", "5 2", "25 2", r"images\.txt:5: photo 5 is not in .*labels\.txt"),
        ("train_test_split", "5 1", None, r"images\.txt:5: photo 5 is not in .*test_split\.txt"),
        ("train_test_split", "5 1", "5 1\n99 0", r":6: photo 99 is not in .*images\.txt"),
        ("train_test_split", "5 1", "5 2", r":5: '2'; expected 1 to train or 0 to test"),
        ("bounding_boxes", "24 3.0 0.0 5.0 2.5", None, r"images\.txt:24: photo 24 is not in .*box"),
        ("bounding_boxes", "24 3.0 0.0 5.0 2.5", "24 1 2 3", r":24: expected <id> <x> <y> <width"),
        ("images", f"1 {FIRST}.jpg", f"one {FIRST}.jpg", r":1: expected <id> <class folder>/<"),
        ("images", f"1 {FIRST}.jpg", "1 bird.jpg", r":1: expected <class folder>/<name>\.jpg, fo"),
        ("images", f"1 {FIRST}.jpg", f"1 {PHOTOS[1][0]}.jpg", r":2: .* a second time, first .*:1"),
        ("classes", f"3 {CLASSES[2]}", f"4 {CLASSES[2]}", r":3: class 4, but none is 3; ids are"),
        ("classes", f"3 {CLASSES[2]}", f"3 {CLASSES[0]}", r":3: class 001.* a second time, first"),
        ("classes", f"3 {CLASSES[2]}", None, r"labels\.txt:3: class 3 of photo 3; .* has 2, exp"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(root, file, old, new, message):
    change(root / "CUB_200_2011" / f"{file}.txt", old, new)
    with pytest.raises(DataError, match=message):
        load(root)


def test_missing_files_say_what_to_put_where_and_from_whom(root, tmp_path):
    base = root / "CUB_200_2011"
    for name in ("bounding_boxes", "classes", "image_class_labels", "train_test_split"):
        (base / f"{name}.txt").rename(base / "aside")
        with pytest.raises(DataError, match=rf"{name}\.txt is missing\. Put CUB-200-2011 into"):
            load(root)
        (base / "aside").rename(base / f"{name}.txt")
    shutil.move(root / "text_c10", tmp_path / "aside")
    message = (
        r"birds and .*CUB_200_2011: no folder text_c10 with the captions, nor cvpr2016_cub/text_c10"
        r"\. Put CUB.*cvpr2016_cub\.tar\.gz that https://github\.com/reedscot/cvpr2016 links to.*"
    )
    with pytest.raises(DataError, match=message):
        load(root)
    photos.write_captions(root / "text_c10", {"a/b": ["c"]})
    (root / "text_c10" / "a" / "b.txt").unlink()
    with pytest.raises(DataError, match=r"text_c10: no captions \(CLASS/PHOTO\.txt\); files \.t7"):
        load(root)
    shutil.rmtree(base / "images")
    with pytest.raises(DataError, match=r"images: no photos \(CLASS/\*\.jpg\)\. Put CUB"):
        load(root)
    (base / "images.txt").unlink()
    with pytest.raises(DataError, match=r"neither CUB_200_2011/images\.txt nor caltech_birds2011/"):
        load(root)
    with pytest.raises(DataError, match=r"there is no folder .*nothing\. Put CUB-200-2011 into"):
        load(tmp_path / "nothing")


def test_captions_of_one_photo_in_two_folders_are_refused(root):
    stem = PHOTOS[0][0].split("/")[1]
    photos.write_captions(root / "text_c10", {f"000.Other/{stem}": ["a bird"]})
    with pytest.raises(DataError, match=rf"{stem}\.txt: captions of {stem} a second time, first"):
        load(root)


def test_folders_of_captions_may_spell_a_class_otherwise(root):
    """As those of another release of the captions do: 009.Brewers_Blackbird."""
    expected = load(root).fingerprint
    (root / "text_c10" / CLASSES[1]).rename(root / "text_c10" / "002.Laysans_Albatross")
    (root / "text_c10" / CLASSES[1]).with_suffix(".txt").write_text("not read")
    (root / "text_c10" / CLASSES[0] / "._Mac.txt").write_bytes(b"\xff\xfe")
    assert load(root).fingerprint == expected


# From here on: what TFDS' own builder has prepared, by that builder from files as it downloads.


@pytest.fixture
def tfds_dir(root, tmp_path, monkeypatch):
    """`data_dir` of TFDS with prepared `caltech_birds2011`, and captions in it."""
    archive = tmp_path / "CUB_200_2011.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root / "CUB_200_2011", "CUB_200_2011")
    masks = tmp_path / "segmentations"
    for stem, _ in PHOTOS:
        (masks / stem).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros(SIZE, np.uint8)).save(masks / f"{stem}.png")
    manager = tfds.download.DownloadManager
    monkeypatch.setattr(manager, "download", lambda _, urls: [archive] * len(urls))
    monkeypatch.setattr(manager, "download_and_extract", lambda *_: [str(root), str(masks)])
    folder = tmp_path / "tfds"
    builder = caltech_birds.CaltechBirds2011(data_dir=os.fspath(folder))
    builder.download_and_prepare()
    shutil.copytree(root / "text_c10", folder / "text_c10")
    return folder


def test_tfds_own_builder_says_the_same_in_its_order(tfds_dir, caplog):
    (tfds_dir / "text_c10" / f"{expected_splits()['test'][0]}.txt").rename(tfds_dir / "aside")
    assert len(load(tfds_dir).splits["test"].without_captions()) == 1
    assert "photo without captions, for their class only: 1" in caplog.text
    (tfds_dir / "aside").rename(tfds_dir / "text_c10" / f"{expected_splits()['test'][0]}.txt")
    data = load(tfds_dir)
    check(data, atol=1e-6)
    assert (data.name, data.protocol, data.skipped) == ("cub", "cub_6", {})
    assert data.classes == (*CLASSES, *(f"{number:03d}" for number in range(4, 201)))
    shutil.rmtree(tfds_dir / "text_c10")
    with pytest.raises(DataError, match=r"tfds: no folder text_c10 with the captions, nor cvpr"):
        load(tfds_dir)


def test_files_count_before_what_tfds_prepared(root, tfds_dir):
    expected = load(root).fingerprint
    shutil.copytree(tfds_dir / "caltech_birds2011", root / "caltech_birds2011")
    assert load(root).fingerprint == expected
