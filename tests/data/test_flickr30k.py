import json
import os

import photos
import pytest
import tensorflow_datasets as tfds

from vse_jax.config import default_config
from vse_jax.data import datasets, flickr30k
from vse_jax.data.split import DataError

LISTS = {
    "train": ["1000092795.jpg", "10002456.jpg", "1000268201.jpg"],
    "val": ["1000344755.jpg", "1000366164.jpg"],
    "test": ["1000523639.jpg", "1000919630.jpg"],
}
NAMES = [name for names in LISTS.values() for name in names]
LOOSE = "36979.jpg"


def captions_of(name):
    return [f"A dog , {name} , number {number} ." for number in range(5)]


def write_json(root, images=None):
    if images is None:
        images = [
            (None, name, split, captions_of(name))
            for split, names in LISTS.items()
            for name in names
        ]
    (root / "dataset_flickr30k.json").write_text(json.dumps(photos.karpathy(images)))


@pytest.fixture
def karpathy(tmp_path):
    root = tmp_path / "karpathy"
    photos.write(root / "flickr30k-images", [*NAMES, LOOSE])
    write_json(root)
    return root


@pytest.fixture
def token(tmp_path):
    """The token file with the lists of Flickr30k Entities, which have no suffix."""
    root = tmp_path / "token"
    photos.write(root / "flickr30k_images", [*NAMES, LOOSE])
    lines = [
        f"{name}#{number}\t{caption}"
        for name in [*NAMES, LOOSE]
        for number, caption in enumerate(captions_of(name))
    ]
    (root / "results_20130124.token").write_text("\n".join(lines) + "\n")
    for split, names in LISTS.items():
        text = "".join(f"{name.removesuffix('.jpg')}\n" for name in names)
        (root / f"{split}.txt").write_text(text)
    return root


def load(root, **options):
    return flickr30k.load(root, root.parent / "prepared", **options)


def test_both_kinds_of_files_say_the_same(karpathy, token):
    for data in (load(karpathy), load(token)):
        assert data.name == "flickr30k"
        assert data.protocol == "flickr30k_2"
        assert list(data.splits) == ["train", "validation", "test"]
        for split, names in zip(data.splits.values(), LISTS.values(), strict=True):
            assert split.images == names
            assert split.captions == [c for name in names for c in captions_of(name)]
            assert split.caption_image.tolist() == [i for i in range(len(names)) for _ in range(5)]
            assert split.read([1, 0]) == [photos.picture(names[1]), photos.picture(names[0])]
        assert data.skipped == {"photo in no split": (LOOSE,)}


def test_with_both_karpathy_s_file_counts(karpathy):
    (karpathy / "results_20130124.token").write_text("nonsense")
    assert load(karpathy).splits["test"].images == LISTS["test"]


def test_lists_may_have_the_suffix(token):
    text = "".join(f"{name}\r\n" for name in LISTS["val"])
    (token / "val.txt").write_text(text)
    assert load(token).splits["validation"].images == LISTS["val"]


def test_the_protocol_of_a_thousand(tmp_path):
    """The pictures of so many are one, for the time that it takes."""
    root = tmp_path / "whole"
    names = [f"{number}.jpg" for number in range(1002)]
    (root / "flickr30k-images").mkdir(parents=True)
    image = photos.picture("one")
    for name in names:
        (root / "flickr30k-images" / name).write_bytes(image)
    splits = ["train", "val", *["test"] * 1000]
    write_json(root, [(None, name, s, ["A dog ."]) for name, s in zip(names, splits, strict=True)])
    assert load(root).protocol == "flickr30k_1k"


def test_it_loads_as_a_config_names_it(karpathy, tmp_path):
    config = default_config().data
    config.dataset = "flickr30k"
    config.manual_dir = str(karpathy)
    config.data_dir = str(tmp_path / "data")
    config.validation_limit = 1
    assert not datasets.are_missing(config)
    data = datasets.load(config, 0)
    assert data.splits["validation"].images == LISTS["val"][:1]
    assert data.splits["validation"].captions == captions_of(LISTS["val"][0])
    assert len(data.splits["test"].images) == 2
    config.manual_dir = str(tmp_path / "nothing")
    assert datasets.are_missing(config)


def test_it_is_a_tfds_builder_with_a_manual_dir(karpathy, tmp_path):
    builder = flickr30k.Flickr30k(data_dir=os.fspath(tmp_path / "tfds"))
    settings = tfds.download.DownloadConfig(manual_dir=os.fspath(karpathy))
    builder.download_and_prepare(download_config=settings, file_format="array_record")
    assert builder.info.splits["train"].num_examples == 3
    assert builder.as_data_source(split="test")[0]["name"] == b"1000523639.jpg"


def test_what_is_left_out_is_counted_and_named(karpathy):
    """A photo that is not there by its place in the file, too."""
    folder = karpathy / "flickr30k-images"
    (folder / "10002456.jpg").unlink()
    (folder / "1000268201.jpg").write_bytes(photos.picture("grey", "L"))
    (folder / "1000366164.jpg").write_bytes(b"GIF89a?")
    data = load(karpathy, bad_share=0.5)
    assert data.skipped == {
        "photo in no split": (LOOSE,),
        "caption without photo": ("10002456.jpg (dataset_flickr30k.json: images[1])",),
        "not RGB": ("1000268201.jpg",),
        "corrupt picture": ("1000366164.jpg",),
    }
    assert data.splits["train"].images == LISTS["train"][:1]
    converted = load(karpathy, bad_share=0.5, non_rgb="convert")
    assert converted.splits["train"].images == ["1000092795.jpg", "1000268201.jpg"]
    with pytest.raises(DataError, match=r"3 of 7 pictures are unfit, more than data\.bad_share"):
        load(karpathy)


def test_a_list_names_pictures_without_captions_or_anything(token):
    with (token / "train.txt").open("a") as file:
        file.write("55\n77.jpg\n")
    (token / "flickr30k_images" / "55.jpg").write_bytes(photos.picture("55.jpg"))
    assert load(token, bad_share=0.5).skipped == {
        "photo in no split": (LOOSE,),
        "photo without captions": ("55.jpg (train.txt:4)",),
        "in a split list, but neither photo nor captions": ("77.jpg (train.txt:5)",),
    }


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            [(None, "a.jpg", "train", ["A dog ."]), (None, "a.jpg", "val", ["A cat ."])],
            r"images\[1\]: a\.jpg a second time, first .*images\[0\]",
        ),
        ([(None, "a.jpg", None, ["A dog ."])], r"images\[0\]: a\.jpg has no split"),
        ([(None, "a.jpg", "dev2", ["A dog ."])], r"images\[0\]: split is 'dev2'"),
        ([(None, "", "val", ["A dog ."])], r"images\[0\]: the picture's path is ''"),
    ],
)
def test_a_bad_entry_of_karpathy_s_file_is_named(karpathy, images, message):
    write_json(karpathy, images)
    with pytest.raises(DataError, match=r"dataset_flickr30k\.json: " + message):
        load(karpathy)


def test_a_file_that_is_no_karpathy_json(karpathy):
    (karpathy / "dataset_flickr30k.json").write_text('{"images": [{"filename": "a.jpg"}]}')
    with pytest.raises(DataError, match=r'images\[0\] must have "sentences"'):
        load(karpathy)
    (karpathy / "dataset_flickr30k.json").write_text('{\n"images": [')
    with pytest.raises(DataError, match=r"flickr30k\.json:2: not JSON"):
        load(karpathy)


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        (
            "results_20130124.token",
            "1.jpg A dog .",
            r"token:41: expected <name>\.jpg#<number><tab>",
        ),
        ("results_20130124.token", f"{LOOSE}#0\tA .", r"token:41: 36979\.jpg#0 a second time.* 36"),
        ("val.txt", "dogs", r"val\.txt:3: expected one file name, <name>\.jpg, found 'dogs'"),
        (
            "val.txt",
            "10002456",
            r"val\.txt:3: 10002456\.jpg is already in train \(.*train\.txt:2\)",
        ),
    ],
)
def test_a_bad_line_is_named(token, file, line, message):
    with (token / file).open("a") as opened:
        opened.write(line + "\n")
    with pytest.raises(DataError, match=message):
        load(token)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (("test.txt",), r"test\.txt is missing beside train\.txt\. Put Flickr30k"),
        (("train.txt", "val.txt", "test.txt"), r"no split lists \(train\.txt, val\.txt, test\.txt"),
        (("results_20130124.token",), r"no caption file \(dataset_flickr30k\.json or .*\. Put Fli"),
    ],
)
def test_missing_files_say_what_to_put_where(token, gone, message):
    for name in gone:
        (token / name).unlink()
    with pytest.raises(DataError, match=message):
        load(token)


def test_nothing_at_all_says_what_to_put_where_and_from_whom(tmp_path):
    message = (
        r"there is no folder .*nothing\. Put Flickr30k .*flickr30k-images/\*\.jpg.*request form of "
        r"the University of Illinois \(https://shannon.*Young, Lai, Hodosh and Hockenmaier, TACL"
    )
    with pytest.raises(DataError, match=message):
        load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no photos \(\*\.jpg\) in flickr30k-images or .*Put Fli"):
        load(tmp_path / "empty")
