"""Two processes of two devices take the step that one device takes, gradients and all."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import test_train_step as steps

TESTS = Path(__file__).parent
# What each process runs: the steps of test_train_step.py, their results from the first one.
PROGRAM = """
import json, sys
sys.path[:0] = [sys.argv[1]]
from vse_jax import parallel
parallel.initialize(sys.argv[2], 2, int(sys.argv[3]))
import numpy as np
import test_train_step as steps
for path, mode, parts in json.loads(sys.argv[4]):
    before, state, metrics = steps.one_step(path, mode, 4, parts)
    arrays = {f"gradient {name}": value
              for name, value in steps.gradient_of(before, state).items()}
    arrays |= {f"statistics {name}": value
               for name, value in steps.flatten(state.batch_stats).items()}
    arrays |= {f"metric {name}": value for name, value in metrics.items()}
    if parallel.is_first_process():
        np.savez(f"{sys.argv[5]}/{path} {mode}.npz", **arrays)
"""
# Network, map, parts of the batch; the losses of the ring go around both processes.
CASES = [
    ("pixels", "shard_map", 1), ("features", "pmap", 1), ("cam", "shard_map", 1),
    ("ring", "shard_map", 2),
]  # fmt: skip


@pytest.mark.slow
def test_two_processes_do_what_one_device_does(tmp_path):
    """Gradients to 1e-5 of their norm; losses and batch statistics to 1e-5."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(TESTS), address, str(number), json.dumps(CASES),
             str(tmp_path)],
            cwd=TESTS.parent, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for number in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(outputs)

    for path, mode, _ in CASES:
        before, state, metrics = steps.one_step(steps.whole_of(path), "shard_map", 1)
        gradient = steps.gradient_of(before, state)
        with np.load(tmp_path / f"{path} {mode}.npz") as found:
            others = {name: found[f"gradient {name}"] for name in gradient}
            steps.assert_gradients_close(others, gradient, f"{path} {mode}")
            for name, value in steps.flatten(state.batch_stats).items():
                steps.assert_close(found[f"statistics {name}"], value, f"{path} {mode} {name}")
            for name, value in metrics.items():
                steps.assert_close(found[f"metric {name}"], value, f"{path} {mode} {name}")
        assert metrics["loss"] > 0.1
