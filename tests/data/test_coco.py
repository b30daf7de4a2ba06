import json
import os
import shutil

import photos
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.object_detection import coco_captions as tfds_coco

from vse_jax.config import default_config
from vse_jax.data import coco, datasets, pictures, tfds_prepared
from vse_jax.data.split import DataError

# Karpathy's splits of TFDS' names; "restval" is of the year's validation photos, as the others.
NUMBERS = {"train": (9, 25, 30), "restval": (42, 73), "val": (184, 285), "test": (391, 462)}


def name_of(split, number):
    year = "train" if split == "train" else "val"
    return f"COCO_{year}2014_{number:012d}.jpg"


def folder_of(split):
    return "train2014" if split == "train" else "val2014"


def path_of(split, number):
    return f"{folder_of(split)}/{name_of(split, number)}"


def captions_of(number):
    return [f"A dog with {number} bones, caption {k}." for k in range(5)]


def entries(splits=NUMBERS):
    """Of Karpathy's file, which goes through the splits all mixed."""
    found = [(split, number) for split, numbers in splits.items() for number in numbers]
    found.sort(key=lambda item: str(item[1]))
    return [
        (folder_of(split), name_of(split, number), split, captions_of(number))
        for split, number in found
    ]


def numbers_of(*splits):
    """Paths in the order of the file."""
    return [f"{folder}/{name}" for folder, name, split, _ in entries() if split in splits]


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "coco"
    photos.write(folder, [path_of(s, n) for s, numbers in NUMBERS.items() for n in numbers])
    (folder / "dataset_coco.json").write_text(json.dumps(photos.karpathy(entries())))
    return folder


def load(folder, **options):
    return coco.load(folder, folder.parent / "prepared", **options)


def test_restval_trains(root):
    data = load(root)
    assert (data.name, data.protocol) == ("coco", "coco_2")
    assert data.skipped == {}
    assert data.splits["train"].images == numbers_of("train", "restval")
    assert data.splits["validation"].images == numbers_of("val")
    test = data.splits["test"]
    assert test.images == numbers_of("test")
    assert test.captions == captions_of(391) + captions_of(462)
    assert test.caption_image.tolist() == [0] * 5 + [1] * 5
    assert test.read([1]) == [photos.picture(path_of("test", 462))]


def test_restval_does_not_train_where_it_is_switched_off(root):
    whole, data = load(root), load(root, restval=False)
    assert data.splits["train"].images == numbers_of("train")
    for split in ("validation", "test"):
        assert data.splits[split].images == whole.splits[split].images
    assert data.skipped == {}
    assert data.fingerprint != whole.fingerprint


def test_photos_may_be_in_a_folder_of_their_own(root):
    expected = load(root).fingerprint
    (root / "images").mkdir()
    for year in coco.YEARS:
        (root / year).rename(root / "images" / year)
    assert load(root).fingerprint == expected


def test_it_loads_as_a_config_names_it(root, tmp_path):
    config = default_config().data
    config.dataset = "coco"
    config.manual_dir = str(root)
    config.data_dir = str(tmp_path / "data")
    assert not datasets.are_missing(config)
    whole = datasets.load(config, 0)
    assert len(whole.splits["train"].images) == 5
    config.restval = False
    assert len(datasets.load(config, 0).splits["train"].images) == 3
    config.restval, config.validation_limit = True, 1
    limited = datasets.load(config, 0)
    assert limited.splits["validation"].images == numbers_of("val")[:1]
    assert limited.fingerprint != whole.fingerprint
    config.validation_limit = 2
    assert datasets.load(config, 0).fingerprint == whole.fingerprint


def test_the_protocol_of_five_thousand(root, monkeypatch):
    """The pictures of so many are one, for the time that it takes."""
    monkeypatch.setattr(pictures, "inspect", lambda _: pictures.Finding(None, "RGB", "digest"))
    others = [entry for entry in entries() if entry[2] != "test"]
    names = [f"{n}.jpg" for n in range(5000)]
    for name in names:
        (root / "val2014" / name).symlink_to(name_of("val", 184))
    test = [("val2014", name, "test", ["A dog ."]) for name in names]
    (root / "dataset_coco.json").write_text(json.dumps(photos.karpathy([*others, *test])))
    assert load(root).protocol == "coco_5k"


def test_what_is_left_out_is_counted_and_named(root):
    (root / path_of("test", 462)).unlink()
    (root / path_of("restval", 42)).write_bytes(b"")
    (root / path_of("restval", 73)).write_bytes(photos.picture("grey", "L"))
    photos.write(root, ["val2014/COCO_val2014_000000000001.jpg"])
    place = [entry[1] for entry in entries()].index(name_of("test", 462))
    missing = f"{path_of('test', 462)} (dataset_coco.json: images[{place}])"
    data = load(root, bad_share=0.5)
    assert data.skipped == {
        "photo in no split": ("val2014/COCO_val2014_000000000001.jpg",),
        "caption without photo": (missing,),
        "empty file": (path_of("restval", 42),),
        "not RGB": (path_of("restval", 73),),
    }
    assert data.splits["train"].images == numbers_of("train")
    # What does not train is not looked at.
    del data.skipped["empty file"], data.skipped["not RGB"]
    assert load(root, restval=False, bad_share=0.5).skipped == data.skipped


def test_a_photo_named_twice(root):
    doubled = [*entries(), (folder_of("val"), name_of("val", 184), "test", ["A dog ."])]
    (root / "dataset_coco.json").write_text(json.dumps(photos.karpathy(doubled)))
    message = r"dataset_coco\.json: images\[9\]: val2014/COCO_val2014_0+184\.jpg a second time"
    with pytest.raises(DataError, match=message):
        load(root)


def test_a_json_of_captions_is_no_karpathy_json(root):
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}
    (root / "dataset_coco.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r'images\[0\] must have "sentences"'):
        load(root)


def test_missing_files_say_what_to_put_where_and_from_whom(root, tmp_path):
    message = (
        r"there is no folder .*nothing\. Put COCO .*train2014/\*\.jpg and val2014/\*\.jpg.*"
        r"https://cocodataset\.org.*tfds\.builder\('coco_captions'.*Lin et al\., ECCV 2014"
    )
    with pytest.raises(DataError, match=message):
        load(tmp_path / "nothing")
    shutil.rmtree(root / "train2014")
    shutil.rmtree(root / "val2014")
    with pytest.raises(
        DataError, match=r"no photos \(\*\.jpg\) in train2014 or val2014, nor in im"
    ):
        load(root)
    (root / "dataset_coco.json").unlink()
    with pytest.raises(DataError, match=r"neither dataset_coco\.json or .* of TFDS\. Put COCO"):
        load(root)


# From here on: what TFDS' own builder has prepared, by that builder from files as it downloads.


def write_instances(folder, splits):
    """An instances_*.json of COCO: photos, and one box in each."""
    images, annotations = [], []
    for split in splits:
        for number in NUMBERS.get(split, ()):
            image = {"id": number, "file_name": name_of(split, number), "height": 16, "width": 16}
            images.append(image)
            box = {"id": number, "image_id": number, "category_id": 1, "area": 4.0, "iscrowd": 0}
            annotations.append(box | {"bbox": [1.0, 1.0, 2.0, 2.0], "segmentation": []})
    kinds = [{"id": n, "name": f"kind {n}", "supercategory": "thing"} for n in range(1, 81)]
    content = {"images": images, "categories": kinds, "annotations": annotations}
    folder.write_text(json.dumps(content))


@pytest.fixture
def tfds_dir(root, tmp_path, monkeypatch):
    """`data_dir` of TFDS -> prepared `coco_captions`, in the format asked for."""
    annotations = tmp_path / "downloads" / "annotations"
    annotations.mkdir(parents=True)
    write_instances(annotations / "instances_train2014.json", ["train"])
    write_instances(annotations / "instances_val2014.json", ["restval", "val", "test"])
    there = {"karpathy_and_li_splits": os.fspath(root)}
    for split in ("train", "validation", "test", "test2015"):
        there[f"{split}_images"] = os.fspath(root)
        there[f"{split}_annotations"] = os.fspath(annotations.parent)
    manager = tfds.download.DownloadManager
    monkeypatch.setattr(
        manager, "download_and_extract", lambda _, urls: {key: there[key] for key in urls}
    )

    def prepare(file_format):
        builder = tfds_coco.CocoCaptions(data_dir=os.fspath(tmp_path / "tfds"))
        builder.download_and_prepare(file_format=file_format)
        return tmp_path / "tfds"

    return prepare


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_tfds_own_builder_says_the_same_in_its_order(root, tfds_dir, file_format):
    expected, data = load(root), load(tfds_dir(file_format))
    assert (data.name, data.protocol) == ("coco", "coco_2")
    assert data.skipped == {}
    assert data.splits.keys() == expected.splits.keys()
    for name, split in data.splits.items():
        other = expected.splits[name]
        assert sorted(split.images) == sorted(os.path.basename(image) for image in other.images)
        numbers = {os.path.basename(image): n for n, image in enumerate(other.images)}
        for number, image in enumerate(split.images):
            assert split.read([number]) == other.read([numbers[image]])
            rows = split.caption_image == number
            assert [c for c, own in zip(split.captions, rows, strict=True) if own] == captions_of(
                int(image[-16:-4])
            )


def test_restval_of_tfds_comes_after_train_or_not_at_all(tfds_dir):
    folder = tfds_dir("tfrecord")
    whole, data = load(folder), load(folder, restval=False)
    train = data.splits["train"].images
    assert set(train) == {name_of("train", number) for number in NUMBERS["train"]}
    assert whole.splits["train"].images[:3] == train
    assert set(whole.splits["train"].images[3:]) == {
        name_of("restval", number) for number in NUMBERS["restval"]
    }
    assert data.fingerprint != whole.fingerprint


def test_unfit_photos_of_tfds_are_left_out(root, tfds_dir):
    (root / path_of("test", 391)).write_bytes(photos.picture("grey", "L"))
    (root / path_of("restval", 42)).write_bytes(photos.picture("cut")[:200])
    folder = tfds_dir("array_record")
    data = load(folder, bad_share=0.5)
    assert data.skipped == {
        "corrupt picture": (name_of("restval", 42),),
        "not RGB": (name_of("test", 391),),
    }
    assert data.splits["test"].images == [name_of("test", 462)]
    assert data.splits["test"].read([0]) == [photos.picture(path_of("test", 462))]
    with pytest.raises(DataError, match=r"2 of 9 pictures are unfit"):
        load(folder)


def test_what_tfds_prepared_is_gone_through_once(tfds_dir, monkeypatch):
    folder = tfds_dir("tfrecord")
    first = load(folder)
    with monkeypatch.context() as patch:
        patch.setattr(tfds_prepared, "_serialized", None)
        assert load(folder).fingerprint == first.fingerprint
    (record,) = folder.glob("coco_captions/2014/*/*-test.tfrecord*")
    os.utime(record, ns=(1, 1))
    monkeypatch.setattr(pictures, "inspect", lambda _: pictures.Finding(None, "RGB", "other"))
    assert load(folder).fingerprint != first.fingerprint


def test_files_count_before_what_tfds_prepared(root, tfds_dir):
    folder = tfds_dir("tfrecord")
    shutil.copytree(folder / "coco_captions", root / "coco_captions")
    assert load(root).splits["test"].images == numbers_of("test")


def test_the_newest_version_counts(tmp_path):
    for version in ("1.1.0", "1.10.0", "1.9.0"):
        (tmp_path / coco.TFDS.folder / version).mkdir(parents=True)
        (tmp_path / coco.TFDS.folder / version / "dataset_info.json").touch()
    assert tfds_prepared.find(tmp_path, coco.TFDS) == tmp_path / coco.TFDS.folder / "1.10.0"
    assert tfds_prepared.find(tmp_path / "elsewhere", coco.TFDS) is None


def test_what_tfds_prepared_may_be_damaged(tfds_dir):
    folder = tfds_dir("tfrecord")
    (record,) = folder.glob("coco_captions/2014/*/*-val.tfrecord*")
    data = record.read_bytes()
    record.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"-val\.tfrecord.* is damaged .*prepare the data again"):
        load(folder)
    record.unlink()
    with pytest.raises(DataError, match=r"-val\.tfrecord.* is missing"):
        load(folder)
    (info,) = folder.glob("coco_captions/2014/*/dataset_info.json")
    info.write_text("{")
    with pytest.raises(DataError, match="is no data set that TFDS can read"):
        load(folder)
