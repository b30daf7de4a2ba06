"""Benchmarks in processes of their own: without TensorFlow, and the time to the first step."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from vse_jax import config as configs

SCRIPTS = Path(__file__).parents[1] / "scripts"
# All of them can be imported, and what needs arrays alone is measured.
WITHOUT_TENSORFLOW = """
import importlib, sys
sys.path[:0] = sys.argv[1:2]
for name in ("tensorflow", "tensorflow_datasets", "torch"):
    sys.modules[name] = None
import benchmark
for name in benchmark.BENCHMARKS:
    importlib.import_module(f"benchmarks.{name}")
from benchmarks import evaluation
evaluation.run = lambda options: evaluation.measure(images=20, width=16, rounds=options.rounds)
benchmark.main(["--only=evaluation", "--rounds=1", f"--output={sys.argv[2]}"])
"""


def test_benchmarks_of_arrays_need_no_tensorflow(tmp_path):
    path = tmp_path / "b.json"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, str(SCRIPTS), str(path)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(path.read_text())
    assert report["rows"][0]["quantity"] == "ranks both ways"
    assert report["rows"][0]["median"] > 0
    assert report["failures"] == {}


# In the place of Python: notes what it is asked, and goes on after the first step.
TRAINING = """#!/bin/sh
echo "$JAX_COMPILATION_CACHE_DIR $@" >> "$0.asked"
echo "compiling the step"
echo "step 1/1000  loss 2.0"
sleep 60
"""


def measured(folder, monkeypatch, program):
    """The rows of the time to the first step, of a program in the place of Python."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    first_step = importlib.import_module("benchmarks.first_step")
    python = folder / "python"
    python.write_text(program)
    python.chmod(0o755)
    monkeypatch.setattr(first_step.sys, "executable", str(python))
    return first_step.run(first_step.Options(data_dir=str(folder / "data")))


def test_the_first_step_is_waited_for_and_no_longer(tmp_path, monkeypatch):
    rows = measured(tmp_path, monkeypatch, TRAINING)
    assert [row.quantity.rpartition("py, ")[2] for row in rows] == [
        "cold compilation cache", "warm compilation cache"
    ]  # fmt: skip
    assert all(0 < row.median < 30 for row in rows)
    asked = [line.split() for line in (tmp_path / "python.asked").read_text().splitlines()]
    # One run prepares the data; the second finds an empty cache, and the third what that left.
    assert [line[0] == asked[1][0] for line in asked] == [False, True, True]
    workdirs = [word for line in asked for word in line if word.startswith("--workdir")]
    assert len(set(workdirs)) == 3
    fields = {word.removeprefix("--config.").split("=")[0]
              for word in asked[0] if word.startswith("--config.")}  # fmt: skip
    assert fields <= configs.known().keys()
    assert "data.data_dir" in fields


def test_a_training_without_a_first_step_is_told(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="no first step came:\nno such file of configs"):
        measured(tmp_path, monkeypatch, "#!/bin/sh\necho no such file of configs\nexit 1\n")
