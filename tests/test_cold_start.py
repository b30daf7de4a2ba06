"""scripts/cold_start.py: the table of exports."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def script():
    path = Path(__file__).parents[1] / "scripts" / "cold_start.py"
    spec = importlib.util.spec_from_file_location("cold_start", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_row(script, tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_bytes(bytes(2_500_000))
    wanted = [np.array([1.0, 2.0]), np.array([3.0])]
    found = [np.array([1.0, 2.0]), np.array([3.002])]
    told = script.row("onnx", tmp_path, [3.0, 1.0, 2.0], found, wanted)
    assert told == "| onnx | 2.5 MB | 2.0 s (1.0-3.0) | 2e-03 |"
    told = script.row("orbax", tmp_path, [2.0], None, wanted)
    assert told == "| orbax | 2.5 MB | 2.0 s (2.0-2.0), the parameters alone | |"


@pytest.mark.slow
def test_all_formats(script, trained, tmp_path, capsys):
    pytest.importorskip("jax2onnx", reason="needs the extra [export]")
    Image.new("RGB", (50, 40), "red").save(tmp_path / "a.png")
    script.main([f"--workdir={trained}", f"--image={tmp_path / 'a.png'}", "--rounds=1"])
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [line[0] for line in lines] == [
        "| workdir", "| safetensors", "| jax_export", "| onnx", "| orbax",
    ]  # fmt: skip
    assert all(float(line[3].rstrip(" |")) < 1e-5 for line in lines[:4])
