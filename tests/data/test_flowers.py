import os
import shutil
import sys

import numpy as np
import photos
import pytest
import tensorflow_datasets as tfds
from scipy.io import savemat
from tensorflow_datasets.datasets.oxford_flowers102 import oxford_flowers102_dataset_builder

from vse_jax.config import default_config
from vse_jax.data import datasets, flowers
from vse_jax.data.split import DataError

# Classes of the photos 1, 2, ... from 1, and the photos of each split, as MATLAB's files have them.
LABELS = [77, 77, 1, 102, 1, 5, 77, 102, 5, 3]
SETS = {"trnid": [8, 3, 1, 6], "valid": [2, 5], "tstid": [9, 4, 7]}
SPLITS = {"train": SETS["trnid"], "validation": SETS["valid"], "test": SETS["tstid"]}


def name_of(number):
    return f"image_{number:05d}.jpg"


def captions_of(number):
    return [f"flower {number} has {k} petals" for k in range(10)]


def write_mat(folder, labels=LABELS, sets=SETS):
    """As released: each array uint8 or uint16 [1, n]."""
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    arrays = {name: np.array([numbers], np.uint16) for name, numbers in sets.items()}
    savemat(folder / "setid.mat", arrays)


def write(folder):
    """The folder as released, and captions beside it."""
    photos.write(folder / "jpg", [name_of(number) for number in range(1, 11)])
    write_mat(folder)
    captions = {
        f"class_{label:05d}/image_{number:05d}": captions_of(number)
        for number, label in enumerate(LABELS, 1)
    }
    photos.write_captions(folder / "text_c10", captions)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "flowers"
    write(folder)
    return folder


def load(folder, **options):
    return flowers.load(folder, folder.parent / "prepared", **options)


def check(data):
    """That everything of every photo is the photo's own."""
    assert len(data.classes) == 102
    for name, numbers in SPLITS.items():
        split = data.splits[name]
        assert sorted(split.images) == sorted(map(name_of, numbers))
        for row, image in enumerate(split.images):
            number = int(image[6:11])
            assert split.labels[row] == LABELS[number - 1] - 1
            assert split.captions_of(row) == captions_of(number)
            assert split.read([row]) == [photos.picture(image)]
        assert split.boxes is None


def test_it_is_read_as_released(root):
    data = load(root)
    check(data)
    assert (data.name, data.protocol) == ("flowers", "flowers_3")
    assert data.skipped == {
        "caption without photo": ("image_00010 (image_00010.txt)",),
        "photo in no split": (name_of(10),),
    }
    for name, numbers in SPLITS.items():
        assert data.splits[name].images == [name_of(number) for number in numbers]
    assert data.splits["train"].labels.dtype == np.int32
    assert data.classes[0] == "pink primrose"
    assert data.classes[76] == "passion flower"


def test_folders_may_be_torchvision_s_and_the_archive_s(root):
    expected = load(root).fingerprint
    (root / "flowers-102").mkdir()
    (root / "cvpr2016_flowers").mkdir()
    for name in ("jpg", "imagelabels.mat", "setid.mat"):
        (root / name).rename(root / "flowers-102" / name)
    (root / "text_c10").rename(root / "cvpr2016_flowers" / "text_c10")
    assert load(root).fingerprint == expected


def test_without_tfds_names_a_class_is_called_as_its_folder(monkeypatch):
    names = flowers.class_names()
    assert len(set(names)) == 102
    module = oxford_flowers102_dataset_builder
    monkeypatch.setattr(module, "_NAMES", module._NAMES[:101])
    assert flowers.class_names()[76] == "class_00077"
    monkeypatch.delattr(module, "_NAMES")
    assert len(flowers.class_names()) == 102
    monkeypatch.setitem(sys.modules, module.__name__.rsplit(".", 1)[0], None)
    assert flowers.class_names()[101] == "class_00102"


def test_it_loads_as_a_config_names_it(root, tmp_path, caplog):
    config = default_config().data
    config.update(
        {"dataset": "flowers", "manual_dir": str(root), "data_dir": str(tmp_path / "data")}
    )
    assert not datasets.are_missing(config)
    assert len(datasets.load(config, 0).splits["train"].images) == 4
    # Of 102 classes four are shown.
    assert "flowers: classes without a training picture: 98 (hard-leaved pocket" in caplog.text


def test_photos_without_captions_are_kept_for_their_class(root, caplog):
    (root / "text_c10" / "class_00102" / "image_00008.txt").unlink()
    (root / "text_c10" / "class_00005" / "image_00009.txt").write_text(" \n\nred petals\n")
    (root / "jpg" / name_of(7)).write_bytes(photos.picture("grey", "L"))
    data = load(root, non_rgb="convert")
    assert data.splits["train"].without_captions().tolist() == [0]
    assert data.splits["train"].labels.tolist() == [101, 0, 76, 4]
    assert data.splits["test"].captions_of(0) == ["red petals"]
    assert data.splits["test"].images == [name_of(number) for number in (9, 4, 7)]
    assert data.skipped["empty caption"] == tuple(
        f"{name_of(9)}#{number} (image_00009.txt)" for number in (0, 1)
    )
    assert "flowers: photo without captions, for their class only: 1 (image_00008" in caplog.text
    assert "classes" not in caplog.text
    (root / "jpg" / name_of(7)).unlink()
    assert load(root, bad_share=0.2).skipped["caption without photo"] == (
        "image_00010 (image_00010.txt)",
        f"{name_of(7)} (image_00007.txt)",
    )


@pytest.mark.parametrize(
    ("labels", "sets", "message"),
    [
        ([*LABELS[:9], 103], {}, r"imagelabels\.mat: class 103 of image_00010\.jpg; expected 1 to"),
        ([77, 0, *LABELS[2:]], {}, r"imagelabels\.mat: class 0 of image_00002\.jpg; expected 1 to"),
        (
            LABELS,
            {"valid": [2, 11]},
            r"setid\.mat: valid has photo 11, but imagelabels\.mat has cl",
        ),
        (LABELS, {"valid": [0]}, r"setid\.mat: valid has photo 0, but .* classes of 1 to 10"),
        (LABELS, {"tstid": [9, 8]}, r"setid\.mat: tstid has photo 8, which trnid has too"),
        (LABELS, {"trnid": [1, 1]}, r"setid\.mat: trnid has photo 1, which trnid has too"),
    ],
)
def test_numbers_that_do_not_go_together_are_named(root, labels, sets, message):
    write_mat(root, labels, SETS | sets)
    with pytest.raises(DataError, match=message):
        load(root)


def test_files_that_are_not_as_released_are_named(root):
    savemat(root / "setid.mat", {"train": [1]})
    with pytest.raises(DataError, match=r"setid\.mat: no trnid in it, but train; is it the file"):
        load(root)
    savemat(root / "setid.mat", SETS | {"trnid": [1.5]})
    with pytest.raises(DataError, match=r"setid\.mat: trnid are not whole numbers but float64"):
        load(root)
    savemat(root / "setid.mat", SETS | {"trnid": ["1"]})
    with pytest.raises(DataError, match=r"setid\.mat: trnid are not whole numbers but <U1"):
        load(root)
    (root / "setid.mat").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=r"setid\.mat is no file of MATLAB's \(.*\); get it again"):
        load(root)


def test_missing_files_say_what_to_put_where_and_from_whom(root, tmp_path):
    (root / "setid.mat").rename(tmp_path / "aside")
    with pytest.raises(DataError, match=r"setid\.mat is missing\. Put Oxford Flowers-102 into"):
        load(root)
    (tmp_path / "aside").rename(root / "setid.mat")
    shutil.move(root / "text_c10", tmp_path / "text")
    message = (
        r"flowers: no folder text_c10 with the captions, nor cvpr2016_flowers/text_c10\. Put Ox.*"
        r"https://github\.com/reedscot/cvpr2016 links to.*Reed et al\., CVPR 2016"
    )
    with pytest.raises(DataError, match=message):
        load(root)
    shutil.move(root / "jpg", tmp_path / "photos")
    with pytest.raises(DataError, match=r"no photos \(\*\.jpg\) in jpg\. Put Oxford"):
        load(root)
    (root / "imagelabels.mat").unlink()
    with pytest.raises(DataError, match=r"neither imagelabels\.mat nor oxford_flowers102/\* of TF"):
        load(root)
    with pytest.raises(DataError, match=r"there is no folder .*nothing\. Put Oxford"):
        load(tmp_path / "nothing")


# From here on: what TFDS' own builder has prepared, by that builder from files as it downloads.


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_tfds_own_builder_says_the_same_in_its_order(root, tmp_path, monkeypatch, file_format):
    def there(_, urls):
        names = {"images": "", "labels": "imagelabels.mat", "setid": "setid.mat"}
        return {key: os.fspath(root / names[key]) for key in urls}

    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", there)
    folder = tmp_path / "tfds"
    builder = oxford_flowers102_dataset_builder.Builder(data_dir=os.fspath(folder))
    builder.download_and_prepare(file_format=file_format)
    shutil.copytree(root / "text_c10", folder / "text_c10")
    data = load(folder)
    check(data)
    assert (data.name, data.protocol) == ("flowers", "flowers_3")
    assert data.classes == load(root).classes
    assert data.skipped == {"caption without photo": ("image_00010 (image_00010.txt)",)}
    shutil.rmtree(folder / "text_c10")
    with pytest.raises(DataError, match=r"tfds: no folder text_c10 with the captions, nor cvpr"):
        load(folder)
