"""What a person sees: the log line of a run, the progress bar, TensorBoard's events."""

import io
import json
import re

import pytest
import tensorflow as tf
from rich.console import Console

from vse_jax import console, workdir

LINE = re.compile(
    r"step (\d+)/(\d+)  loss ([\d.]+)  (\d+) images/s  waiting for data (\d+)%  ETA \d+:\d\d:\d\d"
)


def test_log_lines_say_where_a_run_stands(trained_log):
    found = [LINE.search(line) for line in trained_log.splitlines() if "loss" in line]
    assert [(int(match[1]), int(match[2])) for match in found] == [(1, 3), (2, 3), (3, 3)]
    assert all(0 <= int(match[5]) <= 100 for match in found)


def test_tensorboard_has_what_metrics_jsonl_has(trained):
    scalars = {}
    for path in trained.glob("events.out.tfevents.*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                scalars[event.step, value.tag] = float(tf.make_ndarray(value.tensor))
    logged = {
        (row["step"], name): value
        for row in map(json.loads, (trained / workdir.METRICS).read_text().splitlines())
        for name, value in row.items()
        if name != "step"
    }
    assert scalars.keys() == logged.keys()
    assert any(name == "validation/rsum" for _, name in logged)
    for key, value in logged.items():
        assert scalars[key] == pytest.approx(value, rel=1e-6)


def test_events_that_cannot_be_written_are_an_os_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="TensorBoard events cannot be written"):
        console.TensorBoard(tmp_path / "file").write({"step": 1, "loss": 0.5})


@pytest.mark.parametrize("terminal", [True, False])
def test_the_progress_bar_is_for_terminals(monkeypatch, terminal):
    shown = io.StringIO()
    monkeypatch.setattr(console, "_console", Console(file=shown, force_terminal=terminal, width=80))
    with console.Progress(2, 8) as progress:
        progress.advance(5)
    assert ("5/8" in shown.getvalue()) == terminal
    if not terminal:
        assert not shown.getvalue().strip()
