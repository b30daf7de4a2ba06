"""Memory of a piece of work, measured in a process of its own."""

import contextlib
import ctypes
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax


def in_process(module: str, *arguments: str | int) -> dict[str, Any]:
    """What a module of benchmarks, run as a program, prints as its last line of JSON."""
    scripts = Path(__file__).parents[1]
    path = os.pathsep.join([str(scripts), str(scripts.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path.rstrip(os.pathsep)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def start_peak() -> int:
    """Bytes in use now; where Linux allows it, the peak is counted from here.

    What earlier work has freed is first given back to the system: as part of the start it would
    hide as much of what comes.
    """
    if _device_statistics() is not None:
        return _device_statistics()["bytes_in_use"]
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> tuple[int, str]:
    """The most bytes in use so far, and how that is known."""
    statistics = _device_statistics()
    if statistics is not None:
        return statistics["peak_bytes_in_use"], "by the device's allocator"
    return _status("VmHWM"), "resident set of a fresh process"


def planned(compiled: Any) -> int:
    """Bytes that a compiled function has in use at most, as XLA plans it, arguments included."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )  # fmt: skip


def _device_statistics() -> dict[str, int] | None:
    return jax.devices()[0].memory_stats() if jax.default_backend() != "cpu" else None


def _status(field: str) -> int:
    """Bytes of this process's field in /proc; elsewhere the largest resident set."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else []:
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
