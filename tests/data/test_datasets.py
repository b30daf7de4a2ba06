import numpy as np
import pytest

from vse_jax.config import ConfigError, choose, default_config
from vse_jax.data import datasets


def section(**values):
    config = default_config().data
    config.update(values)
    return config


@pytest.mark.parametrize(
    ("name", "field"), [("flickr8k", "data.manual_dir"), ("custom", "data.path")]
)
def test_a_field_that_a_data_set_needs_is_named(name, field):
    load = choose(datasets, name, "data.dataset")
    with pytest.raises(ConfigError, match=f"'{field}' is not set; '{name}' needs it"):
        load(section(dataset=name), 0)


def test_an_unknown_data_set_lists_the_known():
    with pytest.raises(ConfigError, match=r"'shape'; did you mean 'shapes'\?.*'custom' or"):
        choose(datasets, "shape", "data.dataset")


def test_shapes_are_the_same_for_every_seed(tmp_path):
    config = section(shapes_sizes=(3, 2, 1), data_dir=str(tmp_path))
    one, other = (datasets.shapes(config, seed) for seed in (0, 1))
    assert one.fingerprint == other.fingerprint
    for name, size in (("train", 3), ("validation", 2), ("test", 1)):
        assert len(one.splits[name].images) == size
        np.testing.assert_array_equal(one.splits[name].captions, other.splits[name].captions)
