import errno
import io
import os
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from vse_jax.data import flickr8k, sift
from vse_jax.data.split import DataError

REPOSITORY = pathlib.Path(__file__).parents[2]

LISTS = {
    "Flickr_8k.trainImages.txt": [f"train{n}.jpg" for n in range(4)],
    "Flickr_8k.devImages.txt": ["dev0.jpg", "dev1.jpg"],
    "Flickr_8k.testImages.txt": ["test0.jpg", "test1.jpg"],
}
NAMES = [*(name for names in LISTS.values() for name in names), "loose.jpg"]


def picture(name, mode="RGB"):
    seed = sum(name.encode())
    noise = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, "JPEG")
    return file.getvalue()


def write_photos(folder, names):
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(picture(name))


def write_lists(folder):
    for name, images in LISTS.items():
        (folder / name).write_text("".join(f"{image}\n" for image in images))


@pytest.fixture
def official(tmp_path):
    """The official layout, with a photo in no split and a caption of a photo that is not there."""
    root = tmp_path / "official"
    write_photos(root / "Flicker8k_Dataset", NAMES)
    (root / "Flickr8k_text").mkdir()
    lines = [f"{name}#{n}\t{name} , number {n} ." for name in NAMES for n in range(5)]
    lines.append("2258277193_586949ec62.jpg.1#0\tA boy .")
    (root / "Flickr8k_text" / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    write_lists(root / "Flickr8k_text")
    return root


@pytest.fixture
def kaggle(tmp_path):
    """Kaggle's layout with the official split files beside it."""
    root = tmp_path / "kaggle"
    write_photos(root / "Images", NAMES)
    lines = [f'{name},"{name} , number {n} ."' for name in NAMES for n in range(5)]
    (root / "captions.txt").write_text("image,caption\n" + "\n".join(lines) + "\n")
    write_lists(root)
    return root


def load(root, **options):
    return flickr8k.load(root, root.parent / "prepared", **options)


def token_file(root):
    return root / "Flickr8k_text" / "Flickr8k.token.txt"


def test_both_layouts_say_the_same(official, kaggle):
    first, second = load(official), load(kaggle)
    for data in (first, second):
        assert data.name == "flickr8k"
        assert data.protocol == "flickr8k_2"
        for split, names in zip(data.splits.values(), LISTS.values(), strict=True):
            assert split.images == names
            assert split.captions == [f"{name} , number {n} ." for name in names for n in range(5)]
            assert split.caption_image.tolist() == [i for i in range(len(names)) for _ in range(5)]
            assert split.read([1, 0]) == [picture(names[1]), picture(names[0])]
    assert first.skipped == {
        "photo in no split": ("loose.jpg",),
        "caption without photo": ("2258277193_586949ec62.jpg.1 (Flickr8k.token.txt:46)",),
    }
    assert second.skipped == {"photo in no split": ("loose.jpg",)}


@pytest.mark.parametrize("folder", ["Flickr8k_Dataset/Flicker8k_Dataset", "Flickr8k_Dataset"])
def test_the_zip_s_own_folders_are_found(official, folder):
    photos = official / "moved"
    (official / "Flicker8k_Dataset").rename(photos)
    (official / folder).parent.mkdir(exist_ok=True)
    photos.rename(official / folder)
    tree = flickr8k.read_tree(official)
    assert tree.folder == official / folder
    assert len(tree.listed) == 8


def test_without_split_files_the_shipped_list_of_ids_serves(tmp_path):
    names = ["2513260012_03d33305cf.jpg", "2090545563_a4e66ec76b.jpg", "3385593926_d3e9c21170.jpg"]
    write_photos(tmp_path / "k" / "Images", names)
    rows = "".join(f"{name},A dog .\n" for name in names)
    (tmp_path / "k" / "captions.txt").write_text("image,caption\n" + rows)
    with pytest.raises(DataError, match=r"7997 of 8000 pictures .* neither photo nor captions: 79"):
        load(tmp_path / "k")
    data = load(tmp_path / "k", bad_share=1.0)
    assert [split.images for split in data.splits.values()] == [[name] for name in names]
    assert len(data.skipped[flickr8k.NEITHER]) == 7997


def test_the_line_on_which_a_name_stands_is_no_part_of_the_data(official):
    first = load(official)
    token_file(official).write_text("\n" + token_file(official).read_text())
    again = load(official)
    assert again.skipped["caption without photo"] == (
        "2258277193_586949ec62.jpg.1 (Flickr8k.token.txt:47)",
    )
    assert again.fingerprint == first.fingerprint


def test_kaggles_file_names_a_missing_photo_by_its_first_line(kaggle):
    (kaggle / "Images" / "dev0.jpg").unlink()
    assert load(kaggle, bad_share=0.2).skipped["caption without photo"] == (
        "dev0.jpg (captions.txt:22)",
    )


def test_it_is_prepared_once_and_again_when_the_files_change(official, monkeypatch):
    first = load(official)
    calls = []
    generate = flickr8k.Flickr8k._generate_examples
    monkeypatch.setattr(
        flickr8k.Flickr8k,
        "_generate_examples",
        lambda *arguments: calls.append(1) or generate(*arguments),
    )
    again = load(official)
    assert not calls
    assert again.fingerprint == first.fingerprint
    assert again.skipped == first.skipped

    found = {first.fingerprint}
    (official / "Flicker8k_Dataset" / "train0.jpg").write_bytes(picture("other"))
    changed = load(official)
    assert changed.splits["train"].read([0]) == [picture("other")]
    found.add(changed.fingerprint)
    token_file(official).write_text(token_file(official).read_text().replace("dev0.jpg ,", "dev"))
    changed = load(official)
    assert changed.splits["validation"].captions[0] == "dev number 0 ."
    found.add(changed.fingerprint)
    (official / "Flickr8k_text" / "Flickr_8k.devImages.txt").write_text("dev0.jpg\n")
    found.add(load(official).fingerprint)
    assert len(found) == 4


def test_it_is_a_tfds_builder_with_a_manual_dir(official, tmp_path):
    builder = flickr8k.Flickr8k(data_dir=os.fspath(tmp_path / "tfds"))
    settings = tfds.download.DownloadConfig(manual_dir=os.fspath(official))
    builder.download_and_prepare(download_config=settings, file_format="array_record")
    assert builder.info.splits["train"].num_examples == 4
    assert builder.info.metadata["skipped"]["photo in no split"] == ["loose.jpg"]
    example = builder.as_data_source(split="test")[0]
    assert example["name"] == b"test0.jpg"
    assert example["image"].shape == (16, 16, 3)


def test_what_is_left_out_is_counted_and_named(official):
    photos = official / "Flicker8k_Dataset"
    (photos / "train0.jpg").write_bytes(b"")
    (photos / "train1.jpg").write_bytes(picture("train1.jpg", "L"))
    (photos / "test1.jpg").unlink()
    (photos / "dev1.jpg").write_bytes(picture("dev1.jpg")[:200])
    (photos / "silent.jpg").write_bytes(picture("silent.jpg"))
    text = token_file(official).read_text()
    token_file(official).write_text(text.replace("test0.jpg , number 3 .", " "))
    data = load(official, bad_share=0.5)
    assert data.skipped == {
        "photo in no split": ("loose.jpg",),
        "photo without captions": ("silent.jpg",),
        "caption without photo": (
            "2258277193_586949ec62.jpg.1 (Flickr8k.token.txt:46)",
            "test1.jpg (Flickr8k.token.txt:36)",
        ),
        "empty caption": ("test0.jpg#3 (Flickr8k.token.txt:31)",),
        "empty file": ("train0.jpg",),
        "not RGB": ("train1.jpg",),
        "corrupt picture": ("dev1.jpg",),
    }
    assert data.splits["train"].images == ["train2.jpg", "train3.jpg"]
    assert len(data.splits["test"].captions) == 4
    converted = load(official, bad_share=0.5, non_rgb="convert")
    assert converted.splits["train"].images == ["train1.jpg", "train2.jpg", "train3.jpg"]
    assert converted.fingerprint != data.fingerprint


def test_too_many_unfit_photos(official):
    (official / "Flicker8k_Dataset" / "train0.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 8 pictures are unfit, more than data\.bad_share"):
        load(official)
    assert not (official.parent / "prepared" / "flickr8k").exists()


def test_no_folder_says_what_to_put_where_and_from_whom(tmp_path):
    message = (
        r"data\.manual_dir: there is no folder .*nothing\. Put Flickr8k into .*Flicker8k_Dataset/.*"
        r"Images/\*\.jpg and captions\.txt.*University of Illinois.*Kaggle copy.*"
        r"Hodosh, Young and Hockenmaier, JAIR 2013"
    )
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path / "nothing")
    assert "\n" not in str(caught.value)


def test_no_photos(official):
    (official / "Flicker8k_Dataset").rename(official / "photos")
    (official / "Images").mkdir()
    with pytest.raises(DataError, match=r"no photos \(\*\.jpg\) in Flicker8k_Dataset or .*Put Fli"):
        load(official)


def test_no_caption_file(official):
    token_file(official).unlink()
    with pytest.raises(DataError, match=r"no caption file \(Flickr8k_text/Flickr8k\.token\.txt or"):
        load(official)


def test_no_file_for_one_split(kaggle):
    (kaggle / "Flickr_8k.testImages.txt").unlink()
    with pytest.raises(DataError, match=r"testImages\.txt is missing beside Flickr_8k\.trainImag"):
        load(kaggle)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg A dog .", r"expected <name>\.jpg#<number><tab><caption>, found 'a\.jpg A dog \.'"),
        ("a.jpg#x\tA dog .", r"expected <name>"),
        ("train0.jpg#0\tA dog .", r"train0\.jpg#0 a second time, first on line 1"),
    ],
)
def test_a_bad_line_of_the_token_file_is_named(official, line, message):
    with token_file(official).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"Flickr8k\.token\.txt:47: " + message):
        load(official)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg,A dog , running", r"captions\.txt:47: 3 fields where 2 are expected"),
        (",A dog", r"captions\.txt:47: no image; expected <name>\.jpg,<caption>"),
    ],
)
def test_a_bad_line_of_kaggles_file_is_named(kaggle, line, message):
    with (kaggle / "captions.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=message):
        load(kaggle)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dev0", r"devImages\.txt:3: expected one file name, <name>\.jpg, found 'dev0'"),
        ("train1.jpg", r"devImages\.txt:3: train1\.jpg is already in train \(.*Images\.txt:2\)"),
    ],
)
def test_a_bad_line_of_a_split_file_is_named(official, line, message):
    with (official / "Flickr8k_text" / "Flickr_8k.devImages.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=message):
        load(official)


def test_an_empty_split(official):
    for name in LISTS["Flickr_8k.testImages.txt"]:
        (official / "Flicker8k_Dataset" / name).unlink()
    with pytest.raises(DataError, match=r"2 of 8 pictures are unfit.* caption without photo: 2 \("):
        load(official)
    message = r"no photo is left for split 'test' \(.*caption without photo: 3.*\)\. Put Flickr8k"
    with pytest.raises(DataError, match=message):
        load(official, bad_share=1.0)


def test_photos_in_no_split_may_be_missing(official):
    """As in the official files, whose captions name photos that do not exist."""
    (official / "Flicker8k_Dataset" / "loose.jpg").unlink()
    assert len(load(official, bad_share=0.0).skipped["caption without photo"]) == 2


def test_a_full_disk_leaves_nothing_that_counts_as_whole(official, monkeypatch):
    generate = flickr8k.Flickr8k._generate_examples

    def full(builder, sifted, split):
        yield from list(generate(builder, sifted, split))[:1]
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(flickr8k.Flickr8k, "_generate_examples", full)
        with pytest.raises(DataError, match=r"cannot write the data set to .*No space left"):
            load(official)
    assert len(load(official).splits["train"].images) == 4


def test_a_data_dir_that_cannot_be_written(official):
    (official.parent / "prepared").write_text("a file")
    with pytest.raises(DataError, match=r"cannot write .*data\.data_dir must name a folder"):
        load(official)


@pytest.mark.flickr8k
class TestReal:
    def test_the_shipped_ids_are_the_official_ones(self, real_data):
        text = real_data("flickr8k/Flickr8k_text")
        for split, name in flickr8k.SPLIT_FILES.items():
            shipped = REPOSITORY / "vse_jax" / "data" / "splits" / f"flickr8k_{split}.txt"
            official = (text / name).read_text().split()
            assert shipped.read_text().split() == official

    @pytest.mark.slow
    def test_counts(self, tmp_path, real_data):
        real = real_data("flickr8k")
        data = flickr8k.load(real, tmp_path)
        sizes = {name: (len(s.images), len(s.captions)) for name, s in data.splits.items()}
        assert sizes == {
            "train": (6000, 30000),
            "validation": (1000, 5000),
            "test": (1000, 5000),
        }
        assert data.protocol == "flickr8k_1k"
        assert {reason: len(names) for reason, names in data.skipped.items()} == {
            "photo in no split": 91,
            "caption without photo": 2,
        }
        assert [sift.unplaced(name) for name in data.skipped["caption without photo"]] == [
            "2258277193_586949ec62.jpg",
            "2258277193_586949ec62.jpg.1",
        ]
        test = data.splits["test"]
        assert np.bincount(test.caption_image).tolist() == [5] * 1000
        photo = real / "Flicker8k_Dataset" / test.images[999]
        assert test.read([999]) == [photo.read_bytes()]
