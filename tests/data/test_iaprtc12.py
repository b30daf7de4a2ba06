import hashlib
import itertools
import os

import photos
import pytest
import tensorflow_datasets as tfds

from vse_jax.config import default_config
from vse_jax.data import datasets, iaprtc12
from vse_jax.data.split import DataError

NUMBERS = ["00/25", "00/112", "01/1000", "01/1001", "16/16019", "16/16020", "40/40654"]
DESCRIPTIONS = {number: f"a house {number}; two trees;" for number in NUMBERS}
ANNOTATION = """\
<DOC>
<DOCNO>annotations/{number}.eng</DOCNO>
<TITLE>Plaza de Armas</TITLE>
<DESCRIPTION>{text}</DESCRIPTION>
<NOTES>One of the most visited places.</NOTES>
<LOCATION>Cochabamba, Bolivia</LOCATION>
<DATE>1 February 2002</DATE>
<IMAGE>images/{number}.jpg</IMAGE>
<THUMBNAIL>thumbnails/{number}.jpg</THUMBNAIL>
</DOC>
"""


def write_annotation(root, number, text, encoding="latin-1", folder="annotations_complete_eng"):
    path = root / folder / f"{number}.eng"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(ANNOTATION.format(number=number, text=text).encode(encoding))
    return path


@pytest.fixture
def tree(tmp_path):
    """The archive's layout, without lists."""
    root = tmp_path / "iaprtc12"
    photos.write(root / "images", [f"{number}.jpg" for number in NUMBERS])
    for number, text in DESCRIPTIONS.items():
        write_annotation(root, number, text)
    return root


def write_lists(root, train, val, test):
    for name, lines in (("train", train), ("val", val), ("test", test)):
        (root / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))


def load(root, **options):
    return iaprtc12.load(root, root.parent / "prepared", **options)


def test_every_photo_has_its_description(tree):
    data = load(tree)
    assert data.name == "iaprtc12"
    assert data.protocol == "iaprtc12_1"
    assert data.skipped == {}
    found = {}
    for split in data.splits.values():
        assert split.caption_image.tolist() == list(range(len(split.images)))
        found |= dict(zip(split.images, split.captions, strict=True))
        expected = [photos.picture(name) for name in split.images]
        assert split.read(range(len(split.images))) == expected
    assert found == {f"{number}.jpg": text for number, text in DESCRIPTIONS.items()}
    assert [len(split.images) for split in data.splits.values()] == [5, 1, 1]


def test_the_folder_above_and_the_other_annotations_will_do(tree):
    (tree / "annotations_complete_eng").rename(tree / "annotations")
    assert load(tree.parent).fingerprint == load(tree).fingerprint


def test_a_seed_draws_the_order_that_is_split():
    names = [f"{number // 1000:02d}/{number}.jpg" for number in range(20000)]
    split_of = iaprtc12.split_by_seed(names)
    assert list(split_of) == names

    def drawn(name):
        return hashlib.sha256(f"0\0{name}".encode()).digest()[:8]

    ordered = sorted(names, key=drawn)
    for split, part in (
        ("train", ordered[:18000]),
        ("validation", ordered[18000:19000]),
        ("test", ordered[19000:]),
    ):
        assert {name for name in names if split_of[name] == split} == set(part)
    assert iaprtc12.split_by_seed(names[::-1]) == split_of


@pytest.mark.parametrize(
    ("size", "held_out"), [(4000, 1000), (3999, 399), (40, 4), (10, 1), (3, 1)]
)
def test_smaller_sets_hold_out_less(size, held_out):
    split_of = iaprtc12.split_by_seed([str(number) for number in range(size)])
    counts = [list(split_of.values()).count(split) for split in ("train", "validation", "test")]
    assert counts == [size - 2 * held_out, held_out, held_out]


def test_the_splits_are_the_same_for_every_run(tree, tmp_path):
    config = default_config().data
    config.dataset = "iaprtc12"
    config.manual_dir = str(tree)
    config.data_dir = str(tmp_path / "data")
    assert not datasets.are_missing(config)
    first, other = (datasets.load(config, seed) for seed in (0, 1))
    assert first.fingerprint == other.fingerprint
    assert load(tree).fingerprint == first.fingerprint


def test_a_description_without_a_photo_takes_no_place_in_a_split(tree, monkeypatch):
    monkeypatch.setattr(iaprtc12, "HELD_OUT", 2)
    monkeypatch.setattr(iaprtc12, "LEAST", 6)
    for name in load(tree).splits["test"].images:
        (tree / "images" / name).rename(tree / name.replace("/", "_"))
        with pytest.raises(DataError, match=r"1 of 7 pictures are unfit.* without photo: 1"):
            load(tree)
        data = load(tree, bad_share=0.2)
        assert [len(split.images) for split in data.splits.values()] == [2, 2, 2]
        assert data.skipped == {
            "caption without photo": (f"{name} ({name[3:].replace('.jpg', '.eng')})",)
        }
        (tree / name.replace("/", "_")).rename(tree / "images" / name)


@pytest.mark.parametrize(
    "written",
    [
        ("00/25", "16/16019", "40/40654"),
        ("25", "16019", "40654"),
        ("images/00/25.jpg", "images/16/16019.jpg", "images/40/40654.jpg"),
        ("annotations/00/25.eng", "annotations/16/16019.eng", "40654.eng"),
    ],
)
def test_lists_in_the_order_that_they_have(tree, written):
    train, val, test = written
    write_lists(tree, ["01/1001", train, "00/112"], [val], [test])
    data = load(tree)
    assert data.splits["train"].images == ["01/1001.jpg", "00/25.jpg", "00/112.jpg"]
    assert data.splits["validation"].images == ["16/16019.jpg"]
    assert data.splits["test"].images == ["40/40654.jpg"]
    assert data.skipped == {"photo in no split": ("01/1000.jpg", "16/16020.jpg")}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"<DOC><DESCRIPTION>a black & white dog;</DESCRIPTION></DOC>", "a black & white dog;"),
        (b"<DESCRIPTION>a caf\xe9</DESCRIPTION>", "a caf\u00e9"),
        ("<DESCRIPTION>a caf\u00e9</DESCRIPTION>".encode(), "a caf\u00e9"),
        (b"\xef\xbb\xbf<description> a\r\n  dog </description>", "a dog"),
        (b"<DESCRIPTION>R&amp;D &#233; &copy x < y</DESCRIPTION>", "R&D \u00e9 &copy x < y"),
        (b"<DESCRIPTION>a dog;\n<NOTES>a cat</NOTES></DOC>", "a dog;"),
        (b"<DESCRIPTION>a dog;", "a dog;"),
        (b"<DESCRIPTION></DESCRIPTION><NOTES>n</NOTES>", ""),
        (b"<DOC><TITLE>a</TITLE></DOC>", None),
        (b"", None),
    ],
)
def test_descriptions_of_files_that_are_nearly_xml(data, text):
    assert iaprtc12.description(data) == text


def test_what_is_left_out_is_counted_and_named(tree):
    write_lists(tree, NUMBERS[:4], NUMBERS[4:6], [NUMBERS[6], "39/39000"])
    write_annotation(tree, "00/25", "")
    (tree / "annotations_complete_eng/00/112.eng").write_text("<DOC><TITLE>a</TITLE></DOC>")
    (tree / "images/01/1000.jpg").unlink()
    (tree / "images/16/16020.jpg").write_bytes(photos.picture("a")[:100])
    photos.write(tree / "images", ["07/7000.jpg"])
    write_annotation(tree, "08/8000", "a dog")
    data = load(tree, bad_share=0.5)
    assert data.skipped == {
        "photo without captions": (
            "07/7000.jpg",
            "00/25.jpg (train.txt:1)",
            "00/112.jpg (train.txt:2)",
        ),
        "caption without photo": ("08/8000.jpg (8000.eng)", "01/1000.jpg (1000.eng)"),
        "in a split list, but neither photo nor captions": ("39/39000.jpg (test.txt:2)",),
        "corrupt picture": ("16/16020.jpg",),
    }
    assert [split.images for split in data.splits.values()] == [
        ["01/1001.jpg"],
        ["16/16019.jpg"],
        ["40/40654.jpg"],
    ]


def test_a_change_of_a_description_is_another_data_set(tree):
    first = load(tree)
    write_annotation(tree, "00/25", "a cat;")
    second = load(tree)
    assert second.fingerprint != first.fingerprint
    captions = itertools.chain(*(split.captions for split in second.splits.values()))
    assert "a cat;" in list(captions)


def test_it_is_a_tfds_builder_with_a_manual_dir(tree, tmp_path):
    builder = iaprtc12.Iaprtc12(data_dir=os.fspath(tmp_path / "tfds"))
    settings = tfds.download.DownloadConfig(manual_dir=os.fspath(tree))
    builder.download_and_prepare(download_config=settings, file_format="array_record")
    assert builder.info.splits["train"].num_examples == 5


def test_a_number_twice_and_a_list_that_does_not_say_which(tree):
    photos.write(tree / "images", ["99/25.jpg"])
    write_lists(tree, ["00/112", "25"], NUMBERS[4:5], NUMBERS[6:])
    with pytest.raises(DataError, match=r"train\.txt:2: '25' may be 00/25\.jpg or 99/25\.jpg"):
        load(tree)


def test_a_photo_listed_twice(tree):
    write_lists(tree, NUMBERS[:2], ["112"], NUMBERS[6:])
    message = r"val\.txt:1: 00/112\.jpg is already in train \(.*train\.txt:2\)"
    with pytest.raises(DataError, match=message):
        load(tree)


def test_missing_files_say_what_to_put_where_and_from_whom(tree, tmp_path):
    message = (
        r"there is no folder .*nothing\. Put IAPR TC-12 .*images/NN/NUMBER\.jpg and annotations_com"
        r".*https://www\.imageclef\.org/photodata.*Grubinger.*OntoImage 2006"
    )
    with pytest.raises(DataError, match=message):
        load(tmp_path / "nothing")
    write_lists(tree, NUMBERS[:2], [], [])
    (tree / "test.txt").unlink()
    with pytest.raises(DataError, match=r"test\.txt is missing beside train\.txt\. Put IAPR"):
        load(tree)
    (tree / "annotations_complete_eng").rename(tree / "light")
    with pytest.raises(DataError, match=r"no annotations \(\*/\*\.eng\) in annotations_complete"):
        load(tree)
    (tree / "images").rename(tree / "photos")
    with pytest.raises(DataError, match=r"no photos \(images/NN/NUMBER\.jpg\)\. Put IAPR"):
        load(tree)


def test_annotations_without_descriptions(tree):
    for path in (tree / "annotations_complete_eng").glob("*/*.eng"):
        path.write_text("<DOC><TITLE>a</TITLE></DOC>")
    message = r"no photo is left for split 'train' \(photo without captions: 7\)\. Put IAPR"
    with pytest.raises(DataError, match=message):
        load(tree)
