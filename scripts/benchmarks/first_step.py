"""Seconds from the start of the process to the first finished step of configs/shapes.py."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.timing import Options, Row

ROOT = Path(__file__).parents[2]
LIMIT = 600.0


def run(options: Options) -> list[Row]:
    """Rows with an empty compilation cache and with the one that this left."""
    data_dir = os.path.expanduser(options.data_dir)
    with tempfile.TemporaryDirectory() as folder:
        _until_first_step(Path(folder, "data"), Path(folder, "other"), data_dir)
        times = {
            name: _until_first_step(Path(folder, name), Path(folder, "cache"), data_dir)
            for name in ("cold", "warm")
        }
    return [
        Row("first_step", f"configs/shapes.py, {name} compilation cache", seconds, "s",
            note="process start to step 1 logged; data prepared before")
        for name, seconds in times.items()
    ]  # fmt: skip


def _until_first_step(workdir: Path, cache: Path, data_dir: str) -> float:
    """Seconds until a training logs its first step; it is stopped there."""
    command = [
        sys.executable, "-m", "vse_jax.main", "--config=configs/shapes.py",
        f"--workdir={workdir}", f"--config.data.data_dir={data_dir}",
        "--config.train.steps=1000", "--config.train.log_every=1",
    ]  # fmt: skip
    begun, lines = time.perf_counter(), list[str]()
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line)
                if "step 1/" in line:
                    return time.perf_counter() - begun
                if time.perf_counter() - begun > LIMIT:
                    break
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    raise RuntimeError(f"no first step came:\n{''.join(lines[-20:])}")
