import dataclasses
import io
import itertools

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from vse_jax.data import pipeline
from vse_jax.data.pipeline import Examples, Pictures
from vse_jax.data.regions import Regions
from vse_jax.data.split import DataError, Split

COUNTS = [1, 3, 2, 2, 3, 1, 1]
CAPTION_IMAGE = np.repeat(np.arange(len(COUNTS), dtype=np.int32), COUNTS)
M, N = len(CAPTION_IMAGE), len(COUNTS)
NOISE = np.random.default_rng(0).integers(0, 256, (N, 36, 27, 3), dtype=np.uint8)


def encode(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def decode(data, size):
    return pipeline.decode(tf.constant(data), size).numpy()


def examples(counts=COUNTS, features=True, **pictures):
    """Token 7 m + 1 is the first of caption m; the features of picture n are all n."""
    caption_image = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    encoded = [encode(NOISE[n % N]) for n in range(len(counts))]
    split = Split(
        images=[f"{n}.png" for n in range(len(counts))],
        captions=[f"caption {m}" for m in range(len(caption_image))],
        caption_image=caption_image,
        read=lambda numbers: [encoded[int(n)] for n in numbers],
    )
    tokens = 7 * np.arange(len(caption_image), dtype=np.int32)[:, None] + np.arange(1, 4)
    mask = np.arange(3)[None] <= np.arange(len(caption_image))[:, None] % 3
    rows = np.arange(len(counts), dtype=np.float32)[:, None, None]
    return Examples(
        split,
        tokens.astype(np.int32),
        mask,
        Pictures(**({"size": 8} | pictures)),
        np.broadcast_to(rows, (len(counts), 2, 4)) if features else None,
    )


def batches(given, **options):
    options = {"seed": 3, "batch_size": 4, "start": 0, "steps": 10, "epoch": "captions"} | options
    return list(pipeline.train_batches(given, **options))


def test_labels_and_boxes_come_with_their_pictures():
    given = examples()
    boxes = [np.full((n % 3, 4), n / 10, np.float32) for n in range(N)]
    split = dataclasses.replace(given.split, labels=np.arange(N, dtype=np.int32) - 1, boxes=boxes)
    given = dataclasses.replace(given, split=split)
    training = batches(given)
    everything = list(pipeline.image_batches(given, batch_size=4))
    for found in (training, everything):
        ids = column(found, "image_id")
        np.testing.assert_array_equal(column(found, "label"), ids - 1)
        padded = column(found, "boxes")
        assert padded.shape == (len(ids), 2, 4)
        for row, picture in zip(padded, ids, strict=True):
            count = picture % 3
            np.testing.assert_array_equal(row[:count], boxes[picture])
            assert not row[count:].any()
    assert not {"label", "boxes"} & batches(examples())[0].keys()


@pytest.mark.parametrize("shuffled", [False, True])
def test_semantics_come_with_their_captions(shuffled):
    given = examples()
    table = np.random.default_rng(0).normal(size=(len(given.tokens), 6)).astype(np.float32)
    found = batches(dataclasses.replace(given, semantics=table), shuffle_captions=shuffled)
    captions = column(found, "caption_id")
    assert len(set(captions.tolist())) > 10
    np.testing.assert_array_equal(column(found, "semantics"), table[captions])
    assert "semantics" not in batches(given)[0]


@pytest.mark.parametrize("features", [False, True])
def test_some_pictures_in_the_order_wanted(features):
    given = examples(features=features)
    wanted = np.array([5, 1, 4, 2, 0])
    found = list(pipeline.image_batches(given, wanted, batch_size=4))
    real = column(found, "weight") > 0
    assert real.tolist() == [True] * 5 + [False] * 3
    assert column(found, "image_id")[real].tolist() == wanted.tolist()
    name = "features" if features else "image"
    every = column(list(pipeline.image_batches(given, batch_size=4)), name)
    np.testing.assert_array_equal(column(found, name)[real], every[wanted])


def column(found, name):
    return np.concatenate([batch[name] for batch in found])


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype, name
            assert one[name].tobytes() == other[name].tobytes(), name


@pytest.mark.parametrize("batch_size", [1, 4, 5, 13, 20])
def test_every_epoch_is_every_caption_once(batch_size):
    """Whatever the batch: 13 captions in batches of 4, 5 or 20 straddle epochs."""
    found = batches(examples(), batch_size=batch_size, steps=-(-4 * M // batch_size))
    assert all(len(batch["caption_id"]) == batch_size for batch in found)
    epochs = column(found, "caption_id")[: 4 * M].reshape(4, M)
    for epoch in epochs:
        assert sorted(epoch) == list(range(M))
    orders = [tuple(epoch) for epoch in epochs]
    assert len(set(orders)) == 4, "epochs repeat each other's order"
    assert tuple(range(M)) not in orders


def test_another_seed_is_another_order():
    orders = {tuple(column(batches(examples(), seed=s), "caption_id")[:M]) for s in range(5)}
    assert len(orders) == 5


def test_a_batch_holds_what_belongs_together():
    given = examples()
    for batch in batches(given):
        caption, picture = batch["caption_id"], batch["image_id"]
        np.testing.assert_array_equal(picture, CAPTION_IMAGE[caption])
        np.testing.assert_array_equal(batch["tokens"][:, 0], 7 * caption + 1)
        np.testing.assert_array_equal(batch["token_mask"], given.token_mask[caption])
        np.testing.assert_array_equal(batch["features"], np.tile(picture[:, None, None], (2, 4)))
        assert batch["features"].shape == (4, 2, 4)
        assert batch["feature_mask"].shape == (4, 2)
        assert batch["feature_mask"].all()
        np.testing.assert_array_equal(batch["weight"], np.ones(4))
    kinds = {name: value.dtype for name, value in batch.items()}
    assert kinds == {
        "features": np.float32, "feature_mask": np.bool_, "tokens": np.int32,
        "token_mask": np.bool_, "image_id": np.int32, "caption_id": np.int32, "weight": np.float32,
    }  # fmt: skip


@pytest.mark.parametrize("epoch", ["captions", "images"])
def test_resuming_at_any_step_is_the_rest_of_the_undisturbed_stream(epoch):
    given = examples(features=False, crop_area=(0.3, 0.9), flip=True)
    whole = batches(given, epoch=epoch, steps=5)
    for start in (0, 1, 4):
        assert_same(batches(given, epoch=epoch, start=start, steps=5), whole[start:])
    assert batches(given, epoch=epoch, start=5, steps=5) == []


@pytest.mark.parametrize(("epoch", "processes"), [("captions", 4), ("images", 2)])
def test_the_processes_rows_make_the_single_processes_batches(epoch, processes):
    given = examples(features=False, crop_area=(0.3, 0.9), flip=True)
    whole = batches(given, epoch=epoch, steps=5)
    parts = [
        batches(given, epoch=epoch, steps=5, process=p, processes=processes)
        for p in range(processes)
    ]
    joined = [
        {name: np.concatenate([batch[name] for batch in rows]) for name in rows[0]}
        for rows in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)


def test_an_epoch_of_images_is_every_picture_once_with_a_caption_of_its_own():
    epochs = 300
    found = batches(examples(), epoch="images", batch_size=5, steps=-(-epochs * N // 5))
    pictures, captions = (column(found, k)[: epochs * N] for k in ("image_id", "caption_id"))
    for epoch in pictures.reshape(epochs, N):
        assert sorted(epoch) == list(range(N))
    np.testing.assert_array_equal(pictures, CAPTION_IMAGE[captions])
    drawn = np.bincount(captions, minlength=M)
    for caption, count in enumerate(drawn):
        share = 1 / COUNTS[CAPTION_IMAGE[caption]]
        # Four standard deviations of a binomial draw.
        slack = 4 * np.sqrt(epochs * share * (1 - share)) + 1e-9
        assert abs(count - epochs * share) <= slack, (caption, drawn)


def test_shuffled_captions_are_a_permutation_that_breaks_the_pairs():
    given = examples(counts=[2] * 50)
    found = batches(given, batch_size=20, steps=10, shuffle_captions=True)
    captions, pictures = column(found, "caption_id"), column(found, "image_id")
    assert sorted(captions[:100]) == list(range(100))
    assert np.mean(given.split.caption_image[captions] == pictures) < 0.1
    # One fixed permutation: each caption stays with the picture it was given.
    first, second = (
        dict(zip(captions[s], pictures[s], strict=True)) for s in (slice(100), slice(100, None))
    )
    assert first == second
    np.testing.assert_array_equal(column(found, "tokens")[:, 0], 7 * captions + 1)


def by_hand(counts, position, seed, epoch):
    """(picture, caption) at a position, from the rule: the caption is -1 where there is none."""
    owner = [n for n, count in enumerate(counts) for _ in range(count)]
    silent = [n for n, count in enumerate(counts) if not count]
    size = len(owner) + len(silent) if epoch == "captions" else len(counts)
    key = tf.constant([seed, position // size, 0], tf.int64)
    place = tf.constant(position % size, tf.int64)
    last = tf.constant(size - 1, tf.int64)
    number = int(tf.raw_ops.RandomIndexShuffle(index=place, seed=key, max_index=last, rounds=4))
    if epoch == "captions":
        return (owner + silent)[number], number if number < len(owner) else -1
    draw = float(tf.random.stateless_uniform([], [seed + 1, position], dtype=tf.float64))
    first = sum(counts[:number])
    return number, first + int(draw * counts[number]) if counts[number] else -1


@pytest.mark.parametrize("epoch", ["captions", "images"])
@pytest.mark.parametrize("counts", [COUNTS, [0, 2, 0, 1, 3, 0], [2, 1, 0]])
def test_every_position_is_what_the_rule_says(counts, epoch):
    found = batches(examples(counts), epoch=epoch, seed=11, steps=8)
    expected = [by_hand(counts, position, 11, epoch) for position in range(32)]
    pictures, captions = (column(found, name).tolist() for name in ("image_id", "caption_id"))
    assert list(zip(pictures, captions, strict=True)) == expected


@pytest.mark.parametrize("epoch", ["captions", "images"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_pictures_without_captions_are_shown_with_nothing_said(epoch, shuffled):
    counts = [0, 2, 0, 1, 3, 0]
    given = examples(counts)
    m, n = sum(counts), len(counts)
    labels = np.arange(n, dtype=np.int32)
    spoken = np.random.default_rng(1).normal(size=(m, 2, 5)).astype(np.float32)
    given = dataclasses.replace(
        given,
        split=dataclasses.replace(given.split, labels=labels),
        semantics=np.random.default_rng(0).normal(size=(m, 6)).astype(np.float32),
        text_features=Regions.of(spoken),
        pad=99,
    )
    size = given.split.epoch_size(epoch)
    assert size == (m + 3 if epoch == "captions" else n)
    found = batches(given, epoch=epoch, batch_size=size, steps=3, shuffle_captions=shuffled)
    for batch in found:
        silent = batch["caption_id"] < 0
        assert sorted(batch["image_id"][silent]) == [0, 2, 5]
        if epoch == "captions":
            assert sorted(batch["caption_id"][~silent]) == list(range(m))
        else:
            assert sorted(batch["image_id"]) == list(range(n))
        np.testing.assert_array_equal(batch["label"], batch["image_id"])
        np.testing.assert_array_equal(batch["features"][:, 0, 0], batch["image_id"])
        captions = batch["caption_id"][~silent]
        for name, table in (
            ("tokens", given.tokens),
            ("token_mask", given.token_mask),
            ("semantics", given.semantics),
            ("text_features", spoken),
        ):
            np.testing.assert_array_equal(batch[name][~silent], table[captions])
        assert batch["text_feature_mask"][~silent].all()
        assert (batch["tokens"][silent] == 99).all()
        for name in ("token_mask", "semantics", "text_features", "text_feature_mask"):
            assert not batch[name][silent].any()
        np.testing.assert_array_equal(batch["weight"], np.ones(size))


def test_a_split_may_have_no_caption_at_all():
    given = examples([0, 0, 0])
    for epoch in ("captions", "images"):
        found = batches(given, epoch=epoch, batch_size=3, steps=2)
        assert sorted(column(found, "image_id")) == [0, 0, 1, 1, 2, 2]
        assert not column(found, "token_mask").any()


@pytest.mark.parametrize("counts", [[1], [2], [1, 1]])
@pytest.mark.parametrize("epoch", ["captions", "images"])
def test_the_smallest_splits(counts, epoch):
    found = column(batches(examples(counts), epoch=epoch, steps=2), "image_id")
    size = examples(counts).split.epoch_size(epoch)
    assert size == (sum(counts) if epoch == "captions" else len(counts))
    for row in found.reshape(-1, size):
        assert sorted(set(row)) == list(range(len(counts)))


def augmented(seed, start, **pictures):
    """The pixels of positions start..start + 3, which all show one picture."""
    given = examples([1], features=False, **pictures)
    (batch,) = batches(given, seed=seed, start=start, steps=start + 1)
    return batch["image"]


def test_augmentation_depends_on_seed_and_position_alone():
    how = {"crop_area": (0.2, 0.8), "flip": True}
    first = augmented(0, 0, **how)
    assert (first.dtype, first.shape) == (np.uint8, (4, 8, 8, 3))
    np.testing.assert_array_equal(augmented(0, 0, **how), first)
    seen = [*first, *augmented(1, 0, **how), *augmented(0, 1, **how)]
    assert all(np.any(a != b) for a, b in itertools.combinations(seen, 2))


def test_flips_mirror_about_half_of_the_pictures():
    (plain,) = {pixels.tobytes() for pixels in augmented(0, 0)}
    plain = np.frombuffer(plain, np.uint8).reshape(8, 8, 3)
    given = examples([1], features=False, flip=True)
    found = column(batches(given, batch_size=20, steps=10), "image")
    flipped = np.array([np.array_equal(pixels, plain[:, ::-1]) for pixels in found])
    kept = np.array([np.array_equal(pixels, plain) for pixels in found])
    assert np.all(flipped ^ kept)
    assert 70 < flipped.sum() < 130


def test_crops_keep_the_share_of_the_area_that_was_asked_for():
    """The red channel of a picture counts its rows, the green one its columns."""
    size = 64
    ramp = np.zeros((size, size, 3), np.uint8)
    ramp[..., 0] = 2 * np.arange(size)[:, None]
    ramp[..., 1] = 2 * np.arange(size)[None]
    given = examples([1], features=False, size=16, crop_area=(0.25, 0.5))
    object.__setattr__(given.split, "read", lambda numbers: [encode(ramp)] * len(numbers))
    found = column(batches(given, batch_size=50, steps=2), "image").astype(float)
    # From centre to centre, 15 of 16 pixels lie between the first and the last.
    height = (found[:, -1, 8, 0] - found[:, 0, 8, 0]) / 2 * 16 / 15
    width = (found[:, 8, -1, 1] - found[:, 8, 0, 1]) / 2 * 16 / 15
    area, ratio = height * width / size**2, height / width
    assert 0.22 < area.min() < 0.3
    assert 0.45 < area.max() < 0.54
    assert 0.7 < ratio.min() < 0.85
    assert 1.18 < ratio.max() < 1.43
    top, left = found[:, 0, 8, 0], found[:, 8, 0, 1]
    assert len({*top}) > 10
    assert abs(np.corrcoef(top, left)[0, 1]) < 0.4


def test_pictures_without_crop_are_whole():
    given = examples(features=False)
    for batch in batches(given, steps=3):
        for pixels, picture in zip(batch["image"], batch["image_id"], strict=True):
            wanted = decode(encode(NOISE[picture]), 8)
            np.testing.assert_array_equal(pixels, wanted)


@pytest.mark.parametrize(("batch_size", "processes"), [(2, 1), (4, 1), (7, 1), (8, 1), (2, 2)])
def test_evaluation_sees_every_picture_once(batch_size, processes):
    batch_size *= processes
    given = examples(features=False, crop_area=(0.2, 0.5), flip=True)
    parts = [
        list(pipeline.image_batches(given, batch_size=batch_size, process=p, processes=processes))
        for p in range(processes)
    ]
    seen = []
    for rows in zip(*parts, strict=True):
        for batch in rows:
            assert batch["image"].shape == (batch_size // processes, 8, 8, 3)
            real = batch["weight"] > 0
            seen += batch["image_id"][real].tolist()
            for pixels, picture in zip(batch["image"][real], batch["image_id"][real], strict=True):
                plain = decode(encode(NOISE[picture]), 8)
                np.testing.assert_array_equal(pixels, plain)
    assert seen == list(range(N))


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_sees_every_caption_once(processes):
    given = examples()
    parts = [
        list(pipeline.caption_batches(
            given, batch_size=4, process=p, processes=processes
        ))
        for p in range(processes)
    ]  # fmt: skip
    flat = [batch for rows in zip(*parts, strict=True) for batch in rows]
    assert {len(batch["tokens"]) for batch in flat} == {4 // processes}
    real = column(flat, "weight") > 0
    np.testing.assert_array_equal(column(flat, "caption_id")[real], np.arange(M))
    np.testing.assert_array_equal(column(flat, "tokens")[real], given.tokens)
    np.testing.assert_array_equal(column(flat, "token_mask")[real], given.token_mask)
    assert len(real) == 16


def test_captions_are_trimmed_to_the_longest_of_all_processes():
    given = examples()
    mask = np.arange(6)[None] < np.arange(M)[:, None] % 6 + 1
    given = dataclasses.replace(
        given, tokens=np.arange(M * 6, dtype=np.int32).reshape(M, 6), token_mask=mask
    )
    rows = np.argsort(mask.sum(1), kind="stable")
    parts = [
        list(pipeline.caption_batches(given, rows, batch_size=4, process=p, processes=2, trim=4))
        for p in range(2)
    ]
    lengths = [[batch["tokens"].shape[1] for batch in part] for part in parts]
    assert lengths[0] == lengths[1]
    assert set(lengths[0]) == {4, 6}
    for part in parts:
        for batch in part:
            own, kept = batch["caption_id"], batch["tokens"].shape[1]
            np.testing.assert_array_equal(batch["tokens"], given.tokens[own, :kept])
            assert not mask[own, kept:].any()


def test_evaluation_reads_features_where_there_are(tmp_path):
    np.save(tmp_path / "features.npy", np.arange(N * 2, dtype=np.float32).reshape(N, 2, 1))
    stored = np.load(tmp_path / "features.npy", mmap_mode="r")
    given = Examples(**{**vars(examples()), "features": stored})
    found = list(pipeline.image_batches(given, batch_size=4))
    assert "image" not in found[0]
    real = column(found, "weight") > 0
    np.testing.assert_array_equal(column(found, "features")[real], stored)
    trained = batches(given, steps=2)
    np.testing.assert_array_equal(column(trained, "features"), stored[column(trained, "image_id")])


def smooth(height, width):
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y / 9 + c) * np.cos(x / 7 - c) for c in range(3)]
    return (127 + 120 * np.stack(waves, -1)).astype(np.uint8)


@pytest.mark.parametrize("shape", [(50, 80), (20, 33), (97, 32), (32, 32)])
@pytest.mark.parametrize("pixels", [smooth, lambda h, w: np.random.default_rng(0).integers(
    0, 256, (h, w, 3), dtype=np.uint8)], ids=["smooth", "noise"])  # fmt: skip
def test_resizing_is_that_of_pillow(shape, pixels):
    picture = pixels(*shape)
    found = decode(encode(picture), 32)
    assert (found.dtype, found.shape) == (np.uint8, (32, 32, 3))
    expected = np.asarray(Image.fromarray(picture).resize((32, 32), Image.Resampling.BILINEAR))
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 2


def test_a_picture_of_the_size_is_untouched():
    np.testing.assert_array_equal(decode(encode(NOISE[0][:27]), 27), NOISE[0][:27])


def test_jpeg_is_decoded_as_pillow_does():
    picture = encode(smooth(32, 32), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(picture)))
    found = decode(picture, 32).astype(int)
    assert np.abs(found - expected).max() <= 4
    assert np.abs(found - expected).mean() < 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grey_pictures_get_three_equal_channels(kind):
    grey = smooth(32, 32)[..., 0]
    found = decode(encode(grey, kind), 32)
    assert found.shape == (32, 32, 3)
    assert np.ptp(found, axis=-1).max() == 0
    assert np.abs(found[..., 0].astype(int) - grey).max() <= (0 if kind == "PNG" else 8)


def test_a_picture_that_vanishes_under_way_is_a_clear_error():
    given = examples(features=False)

    def gone(numbers):
        raise DataError(f"cannot read {numbers[0]}.png: No such file or directory")

    object.__setattr__(given.split, "read", gone)
    with pytest.raises(DataError, match=r"^cannot read \d\.png: No such file or directory$"):
        batches(given)
    with pytest.raises(DataError, match=r"^cannot read 0\.png: No such file or directory$"):
        list(pipeline.image_batches(given, batch_size=4))
