"""BUTD's files, features a picture and our own, joined with caption files of every kind."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from vse_jax.config import default_config
from vse_jax.data import datasets, feature_files, precomputed, region_files, region_store
from vse_jax.data.captions_files import Record
from vse_jax.data.split import DataError

F, SIZE = 5, (40, 20)  # width of features; width and height of the pictures
COUNTS = [2, 3, 1, 4, 2, 2]


def features(number):
    return np.random.default_rng(number).normal(size=(COUNTS[number], F)).astype(np.float32)


def pixel_boxes(number):
    """Box j of picture i is (j, i, 40, 20)."""
    rows = [(j, number, *SIZE) for j in range(COUNTS[number])]
    return np.array(rows, np.float32)


def encoded(array):
    return base64.b64encode(array.astype("<f4").tobytes()).decode()


def tsv_line(name, number, **changed):
    fields = {
        "image_id": name,
        "image_w": SIZE[0],
        "image_h": SIZE[1],
        "num_boxes": COUNTS[number],
        "boxes": encoded(pixel_boxes(number)),
        "features": encoded(features(number)),
    } | changed
    return "\t".join(map(str, fields.values()))


def write_tsv(folder, names, header=False):
    lines = [tsv_line(name, number) for number, name in enumerate(names)]
    if header:
        lines.insert(0, "\t".join(region_files.TSV))
    (folder / "features.tsv").write_text("\n".join(lines) + "\n")
    return folder / "features.tsv"


def write_tsvs(folder, names):
    """Two files, named as COCO's are."""
    (folder / "butd").mkdir()
    lines = [tsv_line(name, number) for number, name in enumerate(names)]
    for part, chosen in enumerate((lines[:4], lines[4:])):
        (folder / "butd" / f"train.tsv.{part}").write_text("\n".join(chosen))
    return folder / "butd"


def write_npz(folder, names):
    (folder / "npz").mkdir()
    w, h = SIZE
    for number, name in enumerate(names):
        padded = np.concatenate([features(number), np.ones((1, F), np.float32)])
        named = {"x": padded, "num_bbox": COUNTS[number], "bbox": pixel_boxes(number)}
        # As the extractors leave it: a pickle that nobody needs.
        info = np.array({"objects": 3}, dtype=object)
        np.savez(folder / "npz" / f"{name}.npz", **named, image_w=w, image_h=h, info=info)
    return folder / "npz"


def write_own(folder, names):
    """The layout of SCAN with names, rows of one picture repeated as captions ask for."""
    (folder / "own").mkdir()
    for stem, own in (("train", [0, 1, 1, 2]), ("test", [3, 4, 5])):
        rows, boxes = np.zeros((len(own), 4, F), np.float32), np.zeros((len(own), 4, 4), np.float32)
        for row, number in enumerate(own):
            rows[row, : COUNTS[number]] = features(number)
            for j in range(COUNTS[number]):
                boxes[row, j] = number / SIZE[1], j / SIZE[0], 1.0, 1.0
        np.save(folder / "own" / f"{stem}_ims.npy", rows)
        np.save(folder / "own" / f"{stem}_boxes.npy", boxes)
        np.save(folder / "own" / f"{stem}_counts.npy", np.array([COUNTS[n] for n in own]))
        (folder / "own" / f"{stem}_ids.txt").write_text("".join(f"{names[n]}\n" for n in own))
    return folder / "own"


SPLITS = ["train", "train", "train", "val", "test", "test"]


def jsonl(folder, images, **more):
    path = folder / "captions.jsonl"
    lines = [
        {"image": image, "captions": [f"{j} of {n}" for j in range(n % 2 + 1)], "split": split}
        for n, (image, split) in enumerate(zip(images, SPLITS, strict=False))
    ]
    path.write_text("".join(json.dumps(line | more) + "\n" for line in lines))
    return path


PHOTOS = [f"photos/{n}.jpg" for n in range(6)]
NAMES = [str(n) for n in range(6)]


def load(path, source, **options):
    return precomputed.load(path, path.parent / "prepared", features=source, **options)


@pytest.mark.parametrize("write", [write_tsv, write_tsvs, write_npz, write_own])
def test_every_picture_has_its_own_regions(tmp_path, write):
    source = write(tmp_path, NAMES)
    data = load(jsonl(tmp_path, PHOTOS), source)
    assert (data.name, data.protocol, dict(data.skipped)) == ("captions", "custom_2", {})
    for name, numbers in (("train", [0, 1, 2]), ("validation", [3]), ("test", [4, 5])):
        split = data.splits[name]
        assert list(split.images) == [PHOTOS[n] for n in numbers]
        assert split.read is None
        regions = split.features
        assert isinstance(regions.rows, np.memmap)
        found, mask = regions.gather(np.arange(len(numbers)))
        boxes = regions.gather_boxes(np.arange(len(numbers)))
        for row, number in enumerate(numbers):
            count = COUNTS[number]
            assert mask[row].sum() == count
            np.testing.assert_array_equal(found[row, :count], features(number))
            expected = [(number / 20, j / 40, 1.0, 1.0) for j in range(count)]
            np.testing.assert_allclose(boxes[row, :count], expected, atol=1e-7)


def test_a_header_is_no_picture(tmp_path):
    assert len(list(region_files.read_tsv(write_tsv(tmp_path, NAMES, header=True)))) == 6


def test_features_are_read_once_until_they_change(tmp_path, monkeypatch):
    source, path = write_tsv(tmp_path, NAMES), jsonl(tmp_path, PHOTOS)
    before = load(path, source).fingerprint
    read = region_files.read_tsv
    monkeypatch.setattr(region_files, "read_tsv", None)
    assert load(path, source).fingerprint == before
    monkeypatch.setattr(region_files, "read_tsv", read)
    lines = source.read_text().splitlines()
    source.write_text("\n".join([tsv_line("0", 0, features=encoded(-features(0))), *lines[1:]]))
    assert load(path, source).fingerprint != before


def test_a_damaged_cache_is_named_with_what_to_do(tmp_path):
    source, path = write_tsv(tmp_path, NAMES), jsonl(tmp_path, PHOTOS)
    load(path, source)
    (rows,) = (tmp_path / "prepared" / "features").glob("*/rows.f32")
    rows.write_bytes(rows.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"features/\w+: cached features are damaged .*delete it"):
        load(path, source)


COCO = ["COCO_val2014_000000391895.jpg", "COCO_val2014_000000000042.jpg"]


@pytest.mark.parametrize(
    ("images", "ids", "names", "expected"),
    [
        (["a/1.jpg", "b/2.jpg"], None, ["2.jpg", "1.jpg"], [1, 0]),
        (["a/1.jpg", "b/1.jpg"], None, ["b/1.jpg", "a/1.jpg"], [1, 0]),
        (COCO, None, ["42", "391895"], [1, 0]),
        (COCO, None, [name.removesuffix(".jpg") for name in COCO], [0, 1]),
        (COCO, None, COCO[::-1], [1, 0]),
        (["one.jpg", "two.jpg"], ["7", "8"], ["8", "7"], [1, 0]),
        (["7.jpg", "8.jpg"], ["8", "7"], ["7", "8"], [1, 0]),
        (["000000391895.jpg", "0.jpg"], None, ["391895", "0"], [0, 1]),
        (["one.jpg"], None, ["one.png"], [0]),
        (["102_e3de83.jpg", "a-0083.jpg"], None, ["102_e3de83", "83"], [0, 1]),
    ],
)
def test_names_and_ids_are_joined(images, ids, names, expected):
    records = [
        Record(image, ["a"], f"f:{n}", id=number)
        for n, (image, number) in enumerate(zip(images, ids or [None] * 9, strict=False))
    ]
    found = precomputed.joined(records, names, Path("source"))
    assert [found[image] for image in images] == expected


@pytest.mark.parametrize(
    ("images", "names", "told"),
    [
        (["a_1.jpg", "b_1.jpg"], ["1"], r"'1' could be a_1\.jpg \(f:0\) or b_1\.jpg \(f:1\)"),
        (["a/1.jpg", "b/1.jpg"], ["1.jpg"], "'1.jpg' could be"),
        (["1.jpg"], ["1", "1.jpg"], r"both '1' and '1\.jpg' are features of 1\.jpg"),
        (
            ["100_f1fefbdce1.jpg", "102_e3de83.jpg", "a\u00e91.jpg"],
            ["1", "83"],
            r"none of the 3 pictures has features in .*named '1'",
        ),
        (["1.jpg", "2.jpg"], ["x"], r"none of the 2 pictures has features in .*named 'x'"),
    ],
)
def test_names_that_do_not_tell(images, names, told):
    records = [Record(image, ["a"], f"f:{n}") for n, image in enumerate(images)]
    with pytest.raises(DataError, match=told):
        precomputed.joined(records, names, Path("source"))


def test_coco_captions_are_joined_by_their_ids(tmp_path):
    images = [{"id": 70 + n, "file_name": f"x{n}y.jpg", "split": SPLITS[n]} for n in range(6)]
    annotations = [{"image_id": 70 + n, "caption": "a dog"} for n in range(6)]
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    data = load(path, write_tsv(tmp_path, [str(70 + n) for n in range(6)]))
    found, _ = data.splits["test"].features.gather(np.array([1]))
    np.testing.assert_array_equal(found[0], features(5))


def test_karpathy_captions_are_joined_by_their_cocoids(tmp_path):
    images = [
        {"cocoid": 70 + n, "imgid": n, "filename": f"x{n}y.jpg", "split": SPLITS[n],
         "sentences": [{"raw": "a dog"}]}
        for n in range(6)
    ]  # fmt: skip
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"images": images}))
    data = load(path, write_tsv(tmp_path, [str(70 + n) for n in range(6)]))
    found, _ = data.splits["test"].features.gather(np.array([0]))
    np.testing.assert_array_equal(found[0], features(4))


def test_pictures_without_features_and_features_without_captions_are_counted(tmp_path):
    source = write_tsv(tmp_path, ["0", "1", "2", "3", "4", "other"])
    path = jsonl(tmp_path, PHOTOS)
    data = load(path, source, bad_share=0.2)
    assert data.skipped == {
        "caption without features": ("photos/5.jpg (captions.jsonl:6)",),
        "features without caption": ("other",),
    }
    assert list(data.splits["test"].images) == ["photos/4.jpg"]


def test_restval_trains_or_is_not_asked_for(tmp_path):
    """Its features are not features of nothing, its missing ones are not missed."""
    images = [
        {"filename": f"{n}.jpg", "split": split, "sentences": [{"raw": "a dog"}]}
        for n, split in enumerate(["train", "restval", *SPLITS[2:], "restval"])
    ]
    path, source = tmp_path / "captions.json", write_tsv(tmp_path, [f"{n}.jpg" for n in range(6)])
    path.write_text(json.dumps({"images": images}))
    fields = {
        "dataset": "precomputed", "path": str(path), "features": str(source),
        "data_dir": str(tmp_path / "prepared"), "bad_share": 0.2,
    }  # fmt: skip
    config = default_config().data
    config.update(fields)
    whole = datasets.load(config, 0)
    assert list(whole.splits["train"].images) == ["0.jpg", "1.jpg", "2.jpg"]
    assert whole.skipped == {"caption without features": ("6.jpg (captions.json: images[6])",)}
    config.restval = False
    data = datasets.load(config, 0)
    assert list(data.splits["train"].images) == ["0.jpg", "2.jpg"]
    assert not data.skipped
    found, _ = data.splits["train"].features.gather(np.array([1]))
    np.testing.assert_array_equal(found[0, : COUNTS[2]], features(2))


def test_too_many_pictures_without_features(tmp_path):
    lines = [tsv_line(name, number) for number, name in enumerate(NAMES[:5])]
    lines[1] = tsv_line("1", 1, num_boxes=0, boxes="", features="")
    (tmp_path / "features.tsv").write_text("\n".join(lines))
    message = (
        r"2 of 6 pictures are unfit, more than data\.bad_share = 0\.3 allows: caption without "
        r"features: 1 \(photos/5\.jpg \(captions\.jsonl:6\)\); picture without regions: 1 \("
    )
    with pytest.raises(DataError, match=message):
        load(jsonl(tmp_path, PHOTOS), tmp_path / "features.tsv", bad_share=0.3)
    data = load(jsonl(tmp_path, PHOTOS), tmp_path / "features.tsv", bad_share=0.34)
    assert [len(split.images) for split in data.splits.values()] == [2, 1, 1]


def test_pictures_without_regions_are_counted_or_too_many(tmp_path):
    source = write_tsv(tmp_path, NAMES)
    lines = source.read_text().splitlines()
    lines[1] = tsv_line("1", 1, num_boxes=0, boxes="", features="")
    source.write_text("\n".join(lines))
    data = load(jsonl(tmp_path, PHOTOS), source, bad_share=0.2)
    assert data.skipped == {"picture without regions": ("photos/1.jpg (captions.jsonl:2)",)}
    assert list(data.splits["train"].images) == ["photos/0.jpg", "photos/2.jpg"]
    np.testing.assert_array_equal(
        data.splits["train"].features.gather(np.array([1]))[0][0, :1], features(2)
    )
    with pytest.raises(DataError, match=r"1 of 6 pictures are unfit.*picture without regions: 1"):
        load(jsonl(tmp_path, PHOTOS), source, bad_share=0.1)


W, H = SIZE


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (tsv_line("1", 1, features="AAA*"), "features is no base64 of float32 numbers"),
        (tsv_line("1", 1, boxes="AAA"), "boxes is no base64 of float32 numbers"),
        (tsv_line("1", 1, features="AAAA"), "features is no base64 of float32 numbers"),
        (tsv_line("1", 1)[:150], "2 numbers of|no base64|fields parted by tabs"),
        (tsv_line("1", 1, num_boxes=2), "12 numbers of boxes and 15 of features.*is 2"),
        (tsv_line("1", 1, num_boxes="x"), "num_boxes is b'x'; expected a number"),
        (tsv_line("1", 1, image_w=0), r"picture of 0 x 20 pixels"),
        (tsv_line("", 1), "image_id is empty"),
        ("1\t2\t3", "3 fields parted by tabs; expected 6"),
        (tsv_line("0", 1), r"0 a second time, first at .*features\.tsv:1"),
        (tsv_line("1", 1, boxes=encoded(np.full((3, 4), np.nan))), r"box 0 \[nan"),
        (tsv_line("1", 1, boxes=encoded(np.tile([0, 0, W + 2, H], (3, 1)))), "inside the picture"),
        (tsv_line("1", 1, boxes=encoded(np.tile([0, -2, W, H], (3, 1)))), "inside the picture"),
        (tsv_line("1", 1, boxes=encoded(np.tile([5, 0, 4, H], (3, 1)))), "inside the picture"),
        (tsv_line("1", 1, features=encoded(np.full((3, F), np.nan))), "region 0 of 1: feature 0"),
        (tsv_line("1", 1, features=encoded(np.ones((3, 4)))), "width 4, but of 5 at .*tsv:1"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path, line, told):
    source = tmp_path / "features.tsv"
    source.write_text("\n".join([tsv_line("0", 0), line, tsv_line("2", 2)]))
    with pytest.raises(DataError, match=rf"features\.tsv:2.*{told}"):
        load(jsonl(tmp_path, PHOTOS), source)
    assert not list((tmp_path / "prepared").glob("features/*"))


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            tsv_line("x", 1).encode().replace(b"x", b"\xff", 1),
            r"image_id is b'\\xff', which is not",
        ),
        (tsv_line("1", 1).encode("utf-16"), "image_id is b'|image_w is b'"),
        (b"\x1f\x8b\x08\x00\xff", "1 fields parted by tabs"),
        (b"1\t\xff\t20\t0\t\t", r"image_w is b'\\xff'; expected a number"),
        (b"1\t40\t20\t0\t\xff\t", r"boxes is no base64"),
    ],
)
def test_bytes_that_are_no_text_are_named_by_their_line(tmp_path, number, line, told):
    source = tmp_path / "features.tsv"
    source.write_bytes(b"\n".join([tsv_line("0", 0).encode()] * (number - 1) + [line]))
    with pytest.raises(DataError, match=rf"features\.tsv:{number}: ({told})"):
        list(region_files.read_tsv(source))


@pytest.mark.parametrize("suffix", ["gz", "zip", "tar", "tar.gz"])
def test_a_packed_source_is_told(tmp_path, suffix):
    path = tmp_path / f"butd.tsv.{suffix}"
    path.write_bytes(b"\x1f\x8b")
    for source in (path, tmp_path):
        with pytest.raises(DataError, match=rf"butd\.tsv\.{suffix} is packed: unpack it, and move"):
            region_files.files(source)


def test_a_packed_part_is_left_out_beside_itself_unpacked_only(tmp_path):
    """Or half of the pictures would be missing and nothing tell why."""
    source = write_tsvs(tmp_path, NAMES)
    unpacked = [source / "train.tsv.0", source / "train.tsv.1"]
    (source / "train.tsv.1.gz").touch()
    assert region_files.files(source) == unpacked
    assert region_files.files(unpacked[1]) == unpacked[1:]
    unpacked[1].unlink()
    with pytest.raises(DataError, match=r"train\.tsv\.1\.gz is packed"):
        region_files.files(source)


def test_a_corner_rounded_out_of_the_picture_is_cut_off(tmp_path):
    source = tmp_path / "features.tsv"
    source.write_text(tsv_line("0", 2, boxes=encoded(np.array([[-0.5, 0, W + 0.5, H + 1.0]]))))
    (found,) = region_files.read_tsv(source)
    assert found.boxes.tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"y": features(1)}, 'neither "x" nor "features"'),
        ({"x": features(1).astype(int)}, r"features are int64\[3, 5\]"),
        ({"x": features(1)[0]}, r"features are float32\[5\]"),
        ({"x": features(1), "num_bbox": 4}, "num_bbox is 4, but there are 3"),
        ({"x": features(1), "num_bbox": np.ones(2)}, r"num_bbox is .*expected a number"),
        (
            {"x": features(1), "bbox": pixel_boxes(1)[:, :3], "image_w": 40, "image_h": 20},
            r"boxes are \[3, 3\]",
        ),
        ({"x": features(1), "bbox": pixel_boxes(1)}, "no boxes, or no image_w and image_h"),
        ({"features": np.full((3, F), np.inf), "bbox": pixel_boxes(1), "image_w": 40,
          "image_h": 20}, "region 0 of 1: feature 0 is inf"),
    ],
)  # fmt: skip
def test_a_file_a_picture_that_is_wrong_is_named(tmp_path, fields, told):
    source = write_npz(tmp_path, NAMES)
    np.savez(source / "1.npz", **fields)
    with pytest.raises(DataError, match=rf"1\.npz: {told}"):
        load(jsonl(tmp_path, PHOTOS), source)


def test_a_file_a_picture_that_is_cut_short(tmp_path):
    source = write_npz(tmp_path, NAMES)
    path = source / "3.npz"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"3\.npz: no \.npz that can be read"):
        load(jsonl(tmp_path, PHOTOS), source)
    with open(path, "wb") as file:
        np.save(file, features(3))
    with pytest.raises(DataError, match=r"3\.npz: no \.npz that can be read"):
        load(jsonl(tmp_path, PHOTOS), source)


def test_a_file_a_picture_with_a_byte_altered(tmp_path):
    """Packed or not: it is refused with its name, or read; no byte ends in a trace."""
    source = write_npz(tmp_path, NAMES)
    for save in (np.savez, np.savez_compressed):
        path = source / "3.npz"
        save(path, x=features(3), num_bbox=COUNTS[3])
        whole, refused = path.read_bytes(), 0
        for place in range(0, len(whole), 3):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
            try:
                region_files.read_npz(path)
            except DataError as error:
                assert str(path) in str(error)  # noqa: PT017 (some bytes do not matter)
                refused += 1
        assert refused > len(whole) // 6


def test_files_without_boxes(tmp_path):
    (tmp_path / "npz").mkdir()
    for number in range(6):
        np.savez(tmp_path / "npz" / f"{number}.npz", features=features(number))
    data = load(jsonl(tmp_path, PHOTOS), tmp_path / "npz")
    assert data.splits["train"].features.boxes is None


def test_own_features_without_names_cannot_be_joined(tmp_path):
    source = write_own(tmp_path, NAMES)
    (source / "test_ids.txt").unlink()
    with pytest.raises(DataError, match=r"test_ids\.txt does not exist; without the names"):
        load(jsonl(tmp_path, PHOTOS), source)
    (source / "test_ids.txt").write_text("3\n4\n")
    with pytest.raises(DataError, match=r"test_ids\.txt has 2 names, .*test_ims\.npy 3 rows"):
        load(jsonl(tmp_path, PHOTOS), source)


def test_sources_and_paths_that_are_none(tmp_path):
    path = jsonl(tmp_path, PHOTOS)
    with pytest.raises(DataError, match=r"gone does not exist; data\.features takes"):
        load(path, tmp_path / "gone")
    with pytest.raises(DataError, match=r"is neither a \.tsv nor a folder"):
        load(path, path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty has no \.tsv, no \.npz"):
        load(path, tmp_path / "empty")
    with pytest.raises(DataError, match=r"is a caption file, and data\.features is not set"):
        load(path, None)
    with pytest.raises(DataError, match="gone does not exist; expected a folder with"):
        load(tmp_path / "gone", None)
    with pytest.raises(DataError, match="unset it, or give a caption file"):
        load(tmp_path / "empty", path)


def test_a_large_source_is_stored_by_the_picture(tmp_path):
    """Lines longer than the csv module's limit are no matter."""
    wide = np.random.default_rng(0).normal(size=(36, 2048)).astype(np.float32)
    lines = [
        tsv_line(n, 0, num_boxes=36, boxes=encoded(np.tile([0, 0, W, H], (36, 1))),
                 features=encoded(wide + n))
        for n in range(3)
    ]  # fmt: skip
    (tmp_path / "f.tsv").write_text("\n".join(lines))
    stored = region_store.stored(tmp_path / "f.tsv", tmp_path / "prepared")
    assert stored.names == ["0", "1", "2"]
    np.testing.assert_array_equal(stored.regions.gather(np.array([2]))[0][0], wide + 2)
    feature_files.check_finite(stored.regions.rows, str)
