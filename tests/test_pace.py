"""What a log says of a long piece of work."""

import logging

import pytest

from vse_jax import pace


@pytest.fixture
def seconds(monkeypatch):
    """The time, in a list of one."""
    now = [100.0]
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now[0])
    return now


def test_it_is_told_twice_a_minute(seconds, caplog):
    log = logging.getLogger("a log")
    caplog.set_level(logging.INFO, log.name)
    found = pace.Pace(log, 1000, "photos")
    found.skip(200)
    for _ in range(8):
        seconds[0] += 16
        found.advance(100)
    assert caplog.messages == [
        # Of what was there before, nothing counts for the speed.
        "400 of 1000 photos, 6 a second",
        "600 of 1000 photos, 6 a second",
        "800 of 1000 photos, 6 a second",
        "1000 of 1000 photos, 6 a second",
    ]


def test_padding_is_not_counted(seconds, caplog):
    log = logging.getLogger("a log")
    caplog.set_level(logging.INFO, log.name)
    found = pace.Pace(log, 10, "photos")
    seconds[0] += 32
    found.advance(16)
    assert caplog.messages == ["10 of 10 photos, 0 a second"]
