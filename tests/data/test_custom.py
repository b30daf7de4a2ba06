import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from vse_jax.config import default_config
from vse_jax.data import captions_files, custom, datasets
from vse_jax.data.split import DataError


def picture(seed, mode="RGB"):
    noise = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def tree(tmp_path):
    """A folder with pictures img/0.jpg to img/9.jpg."""
    (tmp_path / "img").mkdir()
    for number in range(10):
        (tmp_path / "img" / f"{number}.jpg").write_bytes(picture(number))
    return tmp_path


def part(number):
    return "test" if number == 9 else "val" if number == 8 else "train"


def entry(number, **more):
    """A JSONL entry; picture `number` has number % 3 + 1 captions."""
    captions = [f"caption {i} of {number}" for i in range(number % 3 + 1)]
    return {"image": f"img/{number}.jpg", "captions": captions, **more}


def jsonl(tree, entries):
    path = tree / "data.jsonl"
    path.write_text("".join(json.dumps(e) + "\n" for e in entries))
    return path


def write_jsonl(tree):
    return jsonl(tree, [entry(n, split=part(n)) for n in range(10)])


def write_csv(tree):
    lines = ["image,caption,split"]
    for n in range(10):
        lines += [f'img/{n}.jpg,"{caption}",{part(n)}' for caption in entry(n)["captions"]]
    (tree / "data.csv").write_text("\ufeff" + "\r\n".join(lines))
    return tree / "data.csv"


def write_karpathy(tree):
    images = [
        {
            "filepath": "img",
            "filename": f"{n}.jpg",
            "split": "restval" if n == 0 else part(n),
            "sentences": [{"raw": caption, "tokens": []} for caption in entry(n)["captions"]],
        }
        for n in range(10)
    ]
    (tree / "data.json").write_text(json.dumps({"images": images, "dataset": "mine"}))
    return tree / "data.json"


def write_coco(tree):
    images = [{"id": 100 + n, "file_name": f"img/{n}.jpg", "split": part(n)} for n in range(10)]
    annotations = [
        {"id": 10 * n + i, "image_id": 100 + n, "caption": caption}
        for n in range(10)
        for i, caption in enumerate(entry(n)["captions"])
    ]
    (tree / "data.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return tree / "data.json"


def load(path, **options):
    return custom.load(path, path.parent / "work", **options)


@pytest.mark.parametrize("write", [write_jsonl, write_csv, write_karpathy, write_coco])
def test_every_format_says_the_same(tree, write):
    data = load(write(tree))
    assert {name: len(split.images) for name, split in data.splits.items()} == {
        "train": 8,
        "validation": 1,
        "test": 1,
    }
    train = data.splits["train"]
    assert train.images == [f"img/{n}.jpg" for n in range(8)]
    expected = [(n, caption) for n in range(8) for caption in entry(n)["captions"]]
    assert list(zip(train.caption_image.tolist(), train.captions, strict=True)) == expected
    assert train.caption_image.dtype == np.int32
    assert train.read([3, 0]) == [picture(3), picture(0)]
    assert train.labels is None
    assert train.boxes is None
    assert data.protocol == "custom_1"
    assert data.name == "data"
    assert not data.skipped


def test_restval_trains_or_is_not_asked_for(tree):
    """Not even where it is damaged: nothing of it is looked at."""
    whole = load(write_karpathy(tree))
    (tree / "img" / "0.jpg").write_bytes(b"")
    data = load(tree / "data.json", restval=False)
    assert whole.splits["train"].images == ["img/0.jpg", *data.splits["train"].images]
    assert data.splits["train"].images == [f"img/{n}.jpg" for n in range(1, 8)]
    assert not data.skipped
    assert data.fingerprint != whole.fingerprint
    fields = {"dataset": "custom", "path": str(tree / "data.json"), "data_dir": str(tree / "work")}
    config = default_config().data
    config.update({**fields, "restval": False})
    assert datasets.load(config, 0).fingerprint == data.fingerprint


def test_paths_may_be_absolute_or_relative_to_another_folder(tree):
    entries = [entry(n, split=part(n)) for n in range(10)]
    for n, value in enumerate(entries):
        value["image"] = str(tree / "img" / "0.jpg") if n == 0 else f"{n}.jpg"
    data = load(jsonl(tree, entries), images=tree / "img")
    assert data.splits["train"].read([0, 1]) == [picture(0), picture(1)]


def test_labels_are_numbered_in_sorted_order(tree):
    labels = ["dog", "cat", None, "bird"] + ["cat"] * 6
    more = [{"label": label} if label else {} for label in labels]
    data = load(jsonl(tree, [entry(n, split=part(n), **more[n]) for n in range(10)]))
    assert data.splits["train"].labels.tolist() == [2, 1, -1, 0, 1, 1, 1, 1]
    assert data.splits["test"].labels.tolist() == [1]
    assert data.splits["test"].labels.dtype == np.int32
    data = load(jsonl(tree, [entry(n, split=part(n), label=10 - n) for n in range(10)]))
    assert data.splits["train"].labels.tolist() == [9, 8, 7, 6, 5, 4, 3, 2]


def test_classes_are_named_by_their_numbers(tree):
    labels = ["dog", "cat", None, "bird"] + ["cat"] * 6
    more = [{"label": label} if label else {} for label in labels]
    data = load(jsonl(tree, [entry(n, split=part(n), **more[n]) for n in range(10)]))
    assert data.classes == ("bird", "cat", "dog")
    assert [data.classes[number] for number in data.splits["train"].labels if number >= 0] == [
        label for label in labels[:8] if label
    ]
    data = load(jsonl(tree, [entry(n, split=part(n), label=10 - n) for n in range(10)]))
    assert data.classes == tuple(map(str, range(1, 11)))
    assert load(write_csv(tree)).classes == ()


def test_a_picture_without_captions_is_kept_for_its_class(tree, caplog):
    entries = [entry(n, split=part(n), label="ab"[n % 2]) for n in range(10)]
    entries[0]["captions"] = []
    entries[1]["captions"] = [" "]
    entries[2]["captions"] = []
    del entries[2]["label"]
    del entries[3]["label"]
    entries[4]["captions"] = []
    (tree / "img" / "4.jpg").unlink()
    data = load(jsonl(tree, entries), bad_share=0.2)
    train = data.splits["train"]
    assert train.images == [f"img/{n}.jpg" for n in (0, 1, 3, 5, 6, 7)]
    assert train.labels.tolist() == [0, 1, -1, 1, 0, 1]
    assert train.without_captions().tolist() == [0, 1]
    assert train.caption_image.tolist() == [2, 3, 3, 3, 4, 5, 5]
    assert data.skipped == {
        "empty caption": ("img/1.jpg#0 (data.jsonl:2)",),
        "photo without captions": ("img/2.jpg (data.jsonl:3)",),
        "class of a photo that is not there": ("img/4.jpg (data.jsonl:5)",),
    }
    told = "data.jsonl: photo without captions, for their class only: 2 (img/0.jpg (data.jsonl:1), "
    assert told in caplog.text


def test_labels_in_a_csv(tree):
    rows = [f"img/{n}.jpg,words,{part(n)},{'ab'[n % 2] if n else ''}" for n in range(10)]
    (tree / "data.csv").write_text("\n".join(["image,caption,split,label", *rows]))
    assert load(tree / "data.csv").splits["train"].labels.tolist() == [-1, 1, 0, 1, 0, 1, 0, 1]


def test_boxes(tree):
    entries = [entry(n, split=part(n)) for n in range(10)]
    entries[1]["boxes"] = [[0, 0.25, 0.5, 1], [0.5, 0.5, 1, 1]]
    train = load(jsonl(tree, entries)).splits["train"]
    np.testing.assert_array_equal(train.boxes[1], [[0, 0.25, 0.5, 1], [0.5, 0.5, 1, 1]])
    assert train.boxes[0].shape == (0, 4)
    assert train.boxes[1].dtype == np.float32


def test_the_hash_moves_no_picture_when_others_come_or_go():
    images = [f"{n}.jpg" for n in range(5000)]
    fractions = (0.8, 0.1, 0.1)
    parts = [custom.split_of(image, 0, fractions) for image in images]
    shares = [parts.count(name) / len(parts) for name in custom.SPLITS]
    np.testing.assert_allclose(shares, fractions, atol=0.02)
    assert parts == [custom.split_of(image, 0, fractions) for image in images]
    assert parts != [custom.split_of(image, 1, fractions) for image in images]
    assert "test" not in {custom.split_of(image, 0, (0.9, 0.1, 0.0)) for image in images}


def test_a_file_without_splits_is_split_by_hash(tree):
    path = jsonl(tree, [entry(n) for n in range(10)])
    fractions = (0.5, 0.25, 0.25)
    data = load(path, seed=3, fractions=fractions)
    for name, split in data.splits.items():
        assert {custom.split_of(image, 3, fractions) for image in split.images} == {name}
    assert sum(len(split.images) for split in data.splits.values()) == 10


def test_without_a_test_split_there_are_two(tree):
    data = load(jsonl(tree, [entry(n, split=part(n)) for n in range(9)]))
    assert list(data.splits) == ["train", "validation"]


def test_one_picture_on_several_lines_gathers_its_captions(tree):
    entries = [entry(n, split=part(n)) for n in range(10)]
    entries.append({"image": "./img/0.jpg", "captions": ["late"], "split": "train"})
    assert load(jsonl(tree, entries)).splits["train"].captions[:2] == ["caption 0 of 0", "late"]
    entries.append({"image": "img/0.jpg", "captions": ["x"], "split": "test"})
    with pytest.raises(DataError, match=r"data\.jsonl:12: split of img/0\.jpg is test, but was tr"):
        load(jsonl(tree, entries))


def test_what_is_left_out_is_counted_and_named(tree):
    entries = [entry(n, split=part(n)) for n in range(10)]
    entries[0]["captions"] = ["  a dog \n", " ", ""]
    entries[1]["captions"] = [" "]
    entries[2]["captions"] = []
    (tree / "img" / "3.jpg").write_bytes(b"")
    (tree / "img" / "4.jpg").write_bytes(picture(4)[:300])
    (tree / "img" / "5.jpg").write_bytes(picture(5, "L"))
    (tree / "img" / "6.jpg").unlink()
    path = jsonl(tree, entries)
    data = load(path, bad_share=0.5)
    assert data.skipped == {
        "empty caption": (
            "img/0.jpg#1 (data.jsonl:1)",
            "img/0.jpg#2 (data.jsonl:1)",
            "img/1.jpg#0 (data.jsonl:2)",
        ),
        "photo without captions": ("img/1.jpg (data.jsonl:2)", "img/2.jpg (data.jsonl:3)"),
        "caption without photo": ("img/6.jpg (data.jsonl:7)",),
        "empty file": ("img/3.jpg",),
        "corrupt picture": ("img/4.jpg",),
        "not RGB": ("img/5.jpg",),
    }
    assert data.splits["train"].images == ["img/0.jpg", "img/7.jpg"]
    assert data.splits["train"].captions[0] == "a dog"
    kept = load(path, bad_share=0.5, non_rgb="convert").splits["train"].images
    assert kept == ["img/0.jpg", "img/5.jpg", "img/7.jpg"]


@pytest.mark.parametrize(
    ("write", "place"),
    [
        (write_jsonl, "data.jsonl:7"),
        (write_csv, "data.csv:14"),
        (write_karpathy, "data.json: images[6]"),
        (write_coco, "data.json: images[6]"),
    ],
)
def test_a_missing_picture_is_named_with_its_place(tree, write, place):
    (tree / "img" / "6.jpg").unlink()
    data = load(write(tree), bad_share=0.1)
    assert data.skipped == {"caption without photo": (f"img/6.jpg ({place})",)}


def test_too_many_unfit_pictures(tree):
    (tree / "img" / "3.jpg").write_bytes(b"")
    (tree / "img" / "5.jpg").write_bytes(picture(5, "L"))
    message = (
        r"2 of 10 pictures are unfit, more than data\.bad_share = 0\.01 allows: empty file: 1 "
        r'\(img/3\.jpg\); not RGB: 1 \(img/5\.jpg\)\. .* or data\.non_rgb to "convert"'
    )
    with pytest.raises(DataError, match=message):
        load(write_jsonl(tree))
    assert len(load(write_jsonl(tree), bad_share=0.2).splits["train"].images) == 6


def test_too_many_missing_pictures(tree):
    for number in range(6):
        (tree / "img" / f"{number}.jpg").unlink()
    (tree / "img" / "6.jpg").write_bytes(b"")
    message = (
        r"7 of 10 pictures are unfit, more than data\.bad_share = 0\.01 allows: caption without "
        r"photo: 6 \(img/0\.jpg \(data\.jsonl:1\), img/1\.jpg \(data\.jsonl:2\), .*\.\.\.\); "
        r"empty file: 1 \(img/6\.jpg\)\. Supply or replace them, or set data\.bad_share higher$"
    )
    with pytest.raises(DataError, match=message):
        load(write_jsonl(tree))
    assert len(load(write_jsonl(tree), bad_share=0.7).splits["train"].images) == 1


def test_the_fingerprint_follows_pictures_captions_and_splits_only(tree):
    entries = [entry(n, split=part(n)) for n in range(10)]
    first = load(jsonl(tree, entries)).fingerprint
    assert load(jsonl(tree, entries)).fingerprint == first
    (tree / "img" / "0.jpg").write_bytes(picture(0))
    assert load(jsonl(tree, entries)).fingerprint == first
    found = {first}
    entries[0]["captions"] = ["other"]
    found.add(load(jsonl(tree, entries)).fingerprint)
    entries[0]["split"] = "test"
    found.add(load(jsonl(tree, entries)).fingerprint)
    entries[0]["label"] = "a"
    found.add(load(jsonl(tree, entries)).fingerprint)
    entries[0]["boxes"] = [[0, 0, 1, 1]]
    found.add(load(jsonl(tree, entries)).fingerprint)
    (tree / "img" / "0.jpg").write_bytes(picture(77))
    found.add(load(jsonl(tree, entries)).fingerprint)
    assert len(found) == 6


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "a.jpg"', r'not JSON \(.*\); expected {"image": path'),
        ("[1]", r'no "captions": \[\.\.\.\] in it'),
        ('{"image": "a.jpg"}', r'no "captions"'),
        ('{"image": "a.jpg", "captions": "one"}', r'no "captions"'),
        ('{"image": "a.jpg", "captions": [3]}', r"caption 3 is not text"),
        ('{"captions": ["a"]}', r"the picture's path is None; expected a file name"),
        ('{"image": "a\\u0000", "captions": ["a"]}', r"the picture's path is"),
        ('{"image": "a.jpg", "captions": ["\\ud800"]}', r"half a surrogate pair"),
        ('{"image": "a.jpg", "captions": [], "split": "dve"}', r"split is 'dve'; expected one of"),
        ('{"image": "a.jpg", "captions": [], "label": true}', r"label is True; expected a class"),
        ('{"image": "a.jpg", "captions": [], "label": -1}', r"label is -1; expected a class"),
        ('{"image": "a.jpg", "captions": [], "boxes": 1}', r"boxes is 1; expected \[\[y0"),
    ],
)
def test_a_bad_line_is_named(tree, line, message):
    path = jsonl(tree, [entry(0)])
    path.write_text(path.read_text() + "\n" + line)
    with pytest.raises(DataError, match=r"data\.jsonl:3: " + message):
        load(path)


@pytest.mark.parametrize(
    "box",
    [
        [0, 0, 1],
        [0, 0, 1, 1.1],
        [-0.1, 0, 1, 1],
        [0.5, 0, 0.5, 1],
        [0, 1, 1, 0],
        [0, 0, 1, True],
        [0, 0, 1, float("nan")],
        [0, 0, 1, "1"],
    ],
)
def test_a_box_outside_or_without_area_is_refused(tree, box):
    with pytest.raises(DataError, match=r"data\.jsonl:1: box .* is not \[y0, x0, y1, x1\] with"):
        load(jsonl(tree, [entry(0, boxes=[box])]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"csv:1: no column image, caption"),
        ("a.jpg,words\n", r"csv:1: no column image, caption; .* and is 'a\.jpg,words'"),
        ("image,text\n", r"csv:1: no column caption"),
        ("image,caption\na.jpg,a dog, running", r"csv:2: 3 fields where 2 .* in double quotes"),
        ('image,caption\na.jpg,"two\nlines"\na.jpg', r"csv:4: 1 fields where 2"),
        ('image,caption\na.jpg,ok\na.jpg,"open\nb.jpg,x', r"csv:3: not a CSV row"),
        ("image,caption\n,words", r"csv:2: the picture's path is ''"),
        ("image,caption\n", r"csv: no picture in it"),
    ],
)
def test_a_bad_row_is_named(tree, text, message):
    (tree / "data.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load(tree / "data.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images":\n [}', r"json:2: not JSON"),
        ("[]", r'json: no "images"'),
        ('{"images": [{"id": 1}]}', r'images\[0\] must have "sentences"'),
        ('{"images": [{"sentences": [{"raw": "a"}]}]}', r"images\[0\]: the picture's path is None"),
        ('{"images": [{"file_name": "a"}], "annotations": []}', r'images\[0\] must have "id"'),
        ('{"images": [], "annotations": {}}', r'"annotations" must be a list'),
        ('{"images": [], "annotations": [{"bbox": 1}]}', r"annotations\[0\] must .* instances_"),
        (
            '{"images": [], "annotations": [{"image_id": 7, "caption": "a"}]}',
            r'annotations\[0\] has image_id 7, which no "id"',
        ),
    ],
)
def test_a_bad_json_is_named(tree, content, message):
    (tree / "data.json").write_text(content)
    with pytest.raises(DataError, match=message):
        load(tree / "data.json")


def test_bytes_that_are_not_utf8_are_named(tree):
    (tree / "data.csv").write_bytes(b"image,caption\na.jpg,caf\xe9\n")
    with pytest.raises(DataError, match=r"data\.csv:2: byte 0xe9 is not UTF-8; save the file as"):
        load(tree / "data.csv")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nothing.jsonl",
            r"nothing\.jsonl does not exist; configs/custom\.py:PATH takes a caption",
        ),
        ("img", r"img is a folder; configs/custom\.py:PATH takes"),
        ("img/0.jpg", r"unknown suffix '\.jpg'; expected one of \.jsonl, \.csv, \.json"),
    ],
)
def test_a_path_that_is_no_caption_file(tree, name, message):
    with pytest.raises(DataError, match=message):
        load(tree / name)


def test_no_picture_where_the_paths_point(tree):
    with pytest.raises(
        DataError, match=r"none of the 10 pictures is there; the first, .*:1, is lo"
    ):
        load(write_jsonl(tree), images=tree / "elsewhere")


def test_splits_for_some_pictures_only(tree):
    path = jsonl(tree, [entry(0, split="train"), entry(1)])
    with pytest.raises(DataError, match=r"data\.jsonl:2: img/1\.jpg has no split, but img/0\.jpg"):
        load(path)


@pytest.mark.parametrize("missing", ["train", "val"])
def test_train_and_validation_must_be_there(tree, missing):
    entries = [entry(n, split=part(n)) for n in range(10) if part(n) != missing]
    with pytest.raises(DataError, match=r"no picture is left for split '" + missing):
        load(jsonl(tree, entries))


@pytest.mark.parametrize("seed", range(5))
def test_few_pictures_still_fill_every_split(tree, seed):
    """The hash alone would leave some of three pictures' splits empty."""
    data = load(jsonl(tree, [entry(n) for n in range(3)]), seed=seed)
    assert {name: len(split.images) for name, split in data.splits.items()} == {
        "train": 1,
        "validation": 1,
        "test": 1,
    }


def test_a_split_with_nothing_left(tree):
    (tree / "img" / "9.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="no picture is left for split 'test'"):
        load(write_jsonl(tree), bad_share=0.5)


def test_labels_of_two_kinds(tree):
    path = jsonl(tree, [entry(0, label="a"), entry(1, label=1)])
    with pytest.raises(
        DataError, match=r"jsonl:2: label 1 beside 'a' at .*jsonl:1; labels are all"
    ):
        load(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bad_share": 1.5}, r"data\.bad_share is 1\.5; expected a share from 0 to 1"),
        ({"non_rgb": "keep"}, r"data\.non_rgb is 'keep'; expected one of skip, convert"),
        ({"fractions": (0.8, 0.1)}, r"fractions are \(0\.8, 0\.1\); expected shares"),
        ({"fractions": (0.8, 0.1, 0.2)}, "fractions are"),
        ({"fractions": (0.9, 0.0, 0.1)}, "fractions are"),
    ],
)
def test_options_out_of_range(tree, options, message):
    with pytest.raises(DataError, match=message):
        load(write_jsonl(tree), **options)


def test_a_picture_gone_since_names_its_path(tree):
    train = load(write_jsonl(tree)).splits["train"]
    pathlib.Path(tree / "img" / "0.jpg").unlink()
    with pytest.raises(DataError, match=r"cannot read .*img/0\.jpg"):
        train.read([0])


def test_a_data_dir_that_cannot_be_written(tree):
    (tree / "work").write_text("a file")
    with pytest.raises(DataError, match=r"cannot write .*data\.data_dir must name a folder"):
        load(write_jsonl(tree))


def test_captions_that_a_picture_has_already_are_told(tree, caplog):
    """They count twice: a line that was copied, more likely than meant."""
    entries = [entry(n, split=part(n)) for n in range(10)]
    again = {"image": "img/0.jpg", "captions": ["another"], "split": "train"}
    captions_files.read_records(jsonl(tree, [*entries, again]))
    assert "already" not in caplog.text
    found = captions_files.read_records(jsonl(tree, [*entries, again, entries[1]]))
    assert len(found[1].captions) == 2 * len(entries[1]["captions"])
    assert "has already, which count twice: 1, first at" in caplog.text
    assert "data.jsonl:12" in caplog.text
