import numpy as np
import pytest

from vse_jax.config import ConfigError, default_config
from vse_jax.data import datasets


def section(**values):
    config = default_config().data
    config.update(values)
    return config


@pytest.mark.parametrize(
    ("name", "field"),
    [
        *((name, "data.manual_dir") for name in ("flickr8k", "flickr30k", "coco", "iaprtc12")),
        ("custom", "data.path"),
    ],
)
def test_a_field_that_a_data_set_needs_is_named(name, field):
    with pytest.raises(ConfigError, match=f"'{field}' is not set; '{name}' needs it"):
        datasets.load(section(dataset=name), 0)


def test_an_unknown_data_set_lists_the_known():
    with pytest.raises(ConfigError, match=r"'shape'; did you mean 'shapes'\?.*'custom' or"):
        datasets.load(section(dataset="shape"), 0)


def test_nothing_where_a_data_set_should_be_is_told_at_once(tmp_path):
    for name in ("flickr8k", "flickr30k", "coco", "iaprtc12"):
        assert datasets.are_missing(section(dataset=name, manual_dir=str(tmp_path / "nothing")))
        assert not datasets.are_missing(section(dataset=name, manual_dir=str(tmp_path)))
    assert not datasets.are_missing(section(dataset="shapes"))


def test_training_and_validation_are_limited_to_their_first_pictures(tmp_path):
    whole, limited = (
        datasets.load(section(shapes_sizes=(3, 4, 2), data_dir=str(tmp_path), **limits), 0)
        for limits in ({}, {"train_limit": 1, "validation_limit": 2})
    )
    assert limited.splits["train"].captions == whole.splits["train"].captions[:5]
    assert limited.splits["validation"].captions == whole.splits["validation"].captions[:10]
    assert limited.splits["validation"].read([1]) == whole.splits["validation"].read([1])
    assert [len(split.images) for split in limited.splits.values()] == [1, 2, 2]


def test_shapes_are_the_same_for_every_seed(tmp_path):
    config = section(shapes_sizes=(3, 2, 1), data_dir=str(tmp_path))
    one, other = (datasets.shapes(config, seed) for seed in (0, 1))
    assert one.fingerprint == other.fingerprint
    for name, size in (("train", 3), ("validation", 2), ("test", 1)):
        assert len(one.splits[name].images) == size
        np.testing.assert_array_equal(one.splits[name].captions, other.splits[name].captions)
