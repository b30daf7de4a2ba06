import math
import types

import pytest

from vse_jax import train
from vse_jax.config import default_config


def logged(values, start=1):
    """Log lines as training writes them, validations among them."""
    rows = []
    for step, value in enumerate(values, start):
        rows.append({"step": step, "loss": 1.0, "triplet/collapse": value})
        rows.append({"step": step, "validation/rsum": 3.0})
    return rows


@pytest.mark.parametrize(
    ("values", "step"),
    [
        ([1.0] * 9, None),
        ([1.0] * 10, 10),
        ([1.0] * 30, 10),
        # The hinge over all negatives of the warm-up says 0.
        ([0.0] * 50, None),
        ([0.0] * 20 + [1.01, 0.98] * 5, 30),
        ([1.0] * 9 + [0.9] + [1.0] * 9, None),
        ([1.0] * 9 + [0.9] + [1.0] * 10, 20),
        ([1.5] * 20, None),
        ([math.nan] * 20, None),
    ],
)
def test_ten_log_lines_at_twice_the_margin_are_a_collapse(values, step):
    found = train.warnings_of(logged(values))
    if step is None:
        assert found == []
    else:
        assert len(found) == 1
        assert found[0].startswith(f"step {step}: the embeddings have collapsed")
        assert "objective.triplet.warmup_epochs" in found[0]


def test_without_the_triplet_nothing_collapses():
    assert train.warnings_of([{"step": n, "loss": 1.0} for n in range(50)]) == []


def ends(epoch_steps, end, every=1.0):
    """The steps at which `Loop` ends an interval."""
    config = default_config()
    config.train.validate_every = every
    loop = object.__new__(train.Loop)
    loop.experiment = types.SimpleNamespace(config=config)
    loop.epoch_steps, loop.end = epoch_steps, end
    return [number for number in range(1, end + 1) if loop._ends_interval(number)]


@pytest.mark.parametrize(
    ("epoch_steps", "end", "every", "expected"),
    [
        (10.0, 30, 1.0, [10, 20, 30]),
        (10.0, 25, 1.0, [10, 20, 25]),
        (10.0, 30, 0.5, [5, 10, 15, 20, 25, 30]),
        (10.0, 40, 2.0, [20, 40]),
        (2.5, 10, 1.0, [3, 5, 8, 10]),
        (10.0, 3, 1.0, [3]),
        (0.4, 3, 1.0, [1, 2, 3]),
    ],
)
def test_an_interval_ends_with_the_step_that_reaches_it(epoch_steps, end, every, expected):
    assert ends(epoch_steps, end, every) == expected


@pytest.mark.parametrize("batch_size", [7, 64, 128, 1000])
@pytest.mark.parametrize("examples", [997, 30_000, 145_000])
def test_every_epoch_ends_exactly_once(examples, batch_size):
    epochs = 6
    epoch_steps = examples / batch_size
    found = ends(epoch_steps, math.ceil(epochs * epoch_steps))
    assert len(found) == epochs
    for epoch, step in enumerate(found, 1):
        assert step - 1 < epoch * examples / batch_size <= step


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0:00:00"),
        (59.6, "0:01:00"),
        (61.0, "0:01:01"),
        (3599.4, "0:59:59"),
        (90_061.0, "25:01:01"),
    ],
)
def test_durations_are_hours_minutes_and_seconds(seconds, shown):
    assert train._duration(seconds) == shown
