"""Regions of unequal numbers come padded and masked, however they are stored."""

import dataclasses

import numpy as np
import pytest

from vse_jax.data import pipeline
from vse_jax.data.regions import Regions
from vse_jax.data.split import DataError, Split

COUNTS = np.array([2, 1, 4, 3])


def ragged(boxes=True):
    """Region j of picture i is [10 i + j, 1]; its box begins at (i / 10, j / 10)."""
    rows = [[10 * i + j, 1.0] for i, r in enumerate(COUNTS) for j in range(r)]
    corners = [[i / 10, j / 10, 1.0, 1.0] for i, r in enumerate(COUNTS) for j in range(r)]
    start = np.cumsum(COUNTS) - COUNTS
    known = np.array(corners, np.float32) if boxes else None
    return Regions(np.array(rows, np.float32), start, COUNTS.copy(), known)


def examples(regions, **fields):
    split = Split(
        images=[f"{i}" for i in range(len(regions))],
        captions=[f"{i}" for i in range(len(regions))],
        caption_image=np.arange(len(regions), dtype=np.int32),
        read=None,
        features=regions,
    )
    tokens = np.ones((len(regions), 2), np.int32)
    split = dataclasses.replace(split, **fields)
    return pipeline.Examples(split, tokens, tokens > 0, pipeline.Pictures(8), split.features)


def check(features, mask, boxes, pictures):
    for row, picture in enumerate(pictures):
        count = COUNTS[picture]
        np.testing.assert_array_equal(mask[row], np.arange(4) < count)
        np.testing.assert_array_equal(features[row, :count, 0], 10 * picture + np.arange(count))
        np.testing.assert_array_equal(features[row, count:], 0)
        if boxes is not None:
            expected = np.arange(count, dtype=np.float32) / 10
            np.testing.assert_allclose(boxes[row, :count, 1], expected, atol=1e-7)
            np.testing.assert_array_equal(boxes[row, count:], 0)


@pytest.mark.parametrize("pictures", [[0, 1, 2, 3], [2, 2, 0], [1], [3, 1]])
def test_behind_the_last_region_all_is_zero_and_masked(pictures):
    regions = ragged()
    features, mask = regions.gather(np.array(pictures))
    assert features.shape == (len(pictures), 4, 2)
    check(features, mask, regions.gather_boxes(np.array(pictures)), pictures)
    assert regions.rows[0, 0] == 0
    assert regions.rows[0, 1] == 1


def test_chosen_pictures_keep_their_own():
    regions = ragged().chosen([3, 1])
    assert (len(regions), regions.most, regions.width) == (2, 3, 2)
    features, mask = regions.gather(np.array([0, 1]))
    np.testing.assert_array_equal(features[0, :, 0], [30, 31, 32])
    np.testing.assert_array_equal(mask[1], [True, False, False])


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_equal_numbers_need_no_copy(tmp_path, kind):
    array = np.arange(24, dtype=kind).reshape(3, 4, 2)
    np.save(tmp_path / "a.npy", array)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    regions = Regions.of(mapped)
    assert isinstance(regions.rows, np.memmap)
    features, mask = regions.gather(np.array([2, 0]))
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, array[[2, 0]])
    assert mask.all()
    one = Regions.of(mapped[:, 0])
    assert (one.most, one.width, len(one)) == (1, 2, 3)


@pytest.mark.parametrize("boxes", [True, False])
def test_batches_have_features_masks_and_boxes(boxes):
    given = examples(ragged(boxes))
    (batch,) = pipeline.image_batches(given, batch_size=6)
    assert batch["weight"].tolist() == [1, 1, 1, 1, 0, 0]
    check(batch["features"][:4], batch["feature_mask"][:4], batch.get("boxes"), range(4))
    assert ("boxes" in batch) == boxes
    options = {"seed": 0, "batch_size": 2, "start": 0, "steps": 4, "epoch": "captions"}
    seen = list(pipeline.train_batches(given, **options))
    for batch in seen:
        assert batch["features"].shape == (2, 4, 2)
        check(batch["features"], batch["feature_mask"], batch.get("boxes"), batch["image_id"])
    assert sorted(np.concatenate([b["image_id"] for b in seen[:2]])) == [0, 1, 2, 3]


def test_boxes_of_regions_come_before_those_of_the_pictures():
    other = [np.ones((1, 4), np.float32)] * 4
    (batch,) = pipeline.image_batches(examples(ragged(), boxes=other), batch_size=4)
    check(batch["features"], batch["feature_mask"], batch["boxes"], range(4))
    (batch,) = pipeline.image_batches(examples(ragged(False), boxes=other), batch_size=4)
    np.testing.assert_array_equal(batch["boxes"], 1)


def test_neither_pictures_nor_features_is_an_error():
    given = dataclasses.replace(examples(ragged()), features=None)
    with pytest.raises(DataError, match="neither pictures nor features"):
        list(pipeline.image_batches(given, batch_size=2))
