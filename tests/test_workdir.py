import errno
import json
import logging
import os

import pytest

from vse_jax import workdir
from vse_jax.config import ConfigError, default_config
from vse_jax.workdir import MetricsLog, WorkdirError


def seeded(seed):
    config = default_config()
    config.seed = seed
    return config


ORIGIN = {"data": "d1", "weights": "w1", "semantics": "s1", "backbone": {"depth_multiplier": 0.5}}


def claim(folder, config, **changed):
    workdir.claim(folder, config, "{}", ORIGIN | changed)


@pytest.fixture
def full_disk(monkeypatch):
    """Call it, and every fsync from then on finds the disk full."""

    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    return lambda: monkeypatch.setattr(os, "fsync", fail)


def test_a_workdir_is_claimed_once_and_known_again(tmp_path):
    folder = tmp_path / "deep" / "run"
    claim(folder, seeded(3))
    assert workdir.read_config(folder).seed == 3
    before = (folder / "config.json").stat().st_mtime_ns
    claim(folder, seeded(3))
    assert (folder / "config.json").stat().st_mtime_ns == before


def test_another_config_is_refused_with_the_fields_that_differ(tmp_path):
    claim(tmp_path, seeded(3))
    other = seeded(4)
    other.train.freeze = (("image/.*", None),)
    with pytest.raises(WorkdirError) as error:
        claim(tmp_path, other)
    assert "seed: 3 there, 4 here" in str(error.value)
    assert "train.freeze: () there, (('image/.*', None),) here" in str(error.value)
    assert "learning_rate" not in str(error.value)
    assert workdir.read_config(tmp_path).seed == 3


def test_data_weights_and_semantics_of_another_digest_are_refused(tmp_path):
    claim(tmp_path, seeded(3))
    for name, value in (("data", "d2"), ("weights", "w2"), ("semantics", None)):
        with pytest.raises(WorkdirError, match=f"begun with other {name} .digest {name[0]}1 there"):
            claim(tmp_path, seeded(3), **{name: value})
    assert workdir.read_origin(tmp_path).items() >= ORIGIN.items()


def test_where_things_lie_may_change(tmp_path):
    claim(tmp_path, seeded(3))
    moved = seeded(3)
    moved.data.manual_dir, moved.evaluate.queries = "/elsewhere", 3
    claim(tmp_path, moved)
    assert workdir.read_config(tmp_path).data.manual_dir == "/elsewhere"
    assert workdir.read_config(tmp_path).evaluate.queries == 3


def test_what_is_not_claimed_belongs_to_nobody(tmp_path):
    assert not workdir.check(tmp_path / "nowhere", seeded(3))
    assert not (tmp_path / "nowhere").exists()
    claim(tmp_path, seeded(3))
    assert workdir.check(tmp_path, seeded(3))


def test_a_second_run_is_kept_out_until_the_first_ends(tmp_path):
    folder = tmp_path / "run"
    with workdir.locked(folder):
        with (
            pytest.raises(
                WorkdirError,
                match=rf"another run is at work in .*run \(process {os.getpid()} on .+\): wait for",
            ),
            workdir.locked(folder),
        ):
            pass
        with workdir.locked(folder, first=False):  # another process of the same run
            pass
    with workdir.locked(folder):
        pass


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WorkdirError, match=r"file.run cannot be made: Not a directory"):
        claim(tmp_path / "file" / "run", seeded(3))


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_what_is_no_workdir(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(
        WorkdirError, match=r"is no workdir of vse_jax: config\.json cannot be read"
    ):
        workdir.read_config(tmp_path)


def test_a_config_of_another_version_names_the_field(tmp_path):
    (tmp_path / "config.json").write_text('{"train": {"batch_sizes": 3}}')
    with pytest.raises(ConfigError, match=r"'train\.batch_sizes'; did you mean"):
        workdir.read_config(tmp_path)


def test_a_text_is_written_whole_or_not_at_all(tmp_path, full_disk):
    path = tmp_path / "report.json"
    workdir.write_text(path, "old ü")
    full_disk()
    with pytest.raises(WorkdirError, match=r"report\.json cannot be written: No space left"):
        workdir.write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old ü"
    assert list(tmp_path.iterdir()) == [path]


def test_a_text_in_no_folder_is_a_clear_error(tmp_path):
    with pytest.raises(WorkdirError, match=r"gone.a cannot be written: No such file"):
        workdir.write_text(tmp_path / "gone" / "a", "")


def test_metrics_are_read_back(tmp_path):
    log = MetricsLog(tmp_path, 0)
    log.add({"step": 1, "loss": 0.5})
    log.add({"step": 2, "loss": 0.25, "rsum": 3.0})
    # On disk before it is closed: a crash loses nothing.
    assert workdir.read_metrics(tmp_path) == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 0.25, "rsum": 3.0},
    ]
    assert log.values("loss") == [0.5, 0.25]
    assert log.values("rsum") == [3.0]
    log.sync()
    log.close()


def test_lines_after_the_step_that_training_goes_on_from_are_dropped(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in (1, 2, 2, 3):
        log.add({"step": step, "loss": step / 10})
    log.close()
    log = MetricsLog(tmp_path, 2)
    assert log.values("loss") == [0.1, 0.2, 0.2]
    log.add({"step": 3, "loss": 9.0})
    log.close()
    assert [row["step"] for row in workdir.read_metrics(tmp_path)] == [1, 2, 2, 3]
    assert workdir.read_metrics(tmp_path)[-1]["loss"] == 9.0


@pytest.mark.parametrize(
    "cut", ['{"step": 2, "lo', '{"step": 2', "{", '{"step": 2, "x": "\xff', '{"loss": 0.5}']
)
def test_a_last_line_cut_short_is_left_out_and_written_over(tmp_path, cut, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + cut.encode("latin-1"))
    with caplog.at_level(logging.WARNING):
        log = MetricsLog(tmp_path, 5)
    assert "metrics.jsonl:2" in caplog.text
    log.add({"step": 3})
    log.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1},
        {"step": 3},
    ]


def test_a_process_that_does_not_write_remembers(tmp_path):
    log = MetricsLog(tmp_path, 0, write=False)
    log.add({"step": 1, "loss": 0.5})
    log.sync()
    log.close()
    assert log.values("loss") == [0.5]
    assert list(tmp_path.iterdir()) == []


def test_a_disk_full_while_logging_is_a_clear_error(tmp_path, full_disk):
    log = MetricsLog(tmp_path, 0)
    log.add({"step": 1})
    full_disk()
    with pytest.raises(WorkdirError, match=r"metrics\.jsonl cannot be written: No space left"):
        log.sync()
    log.close()


def test_metrics_that_cannot_be_read_are_a_clear_error(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(WorkdirError, match=r"metrics\.jsonl cannot be read: Is a directory"):
        workdir.read_metrics(tmp_path)
