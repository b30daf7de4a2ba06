"""Command lines of vse_jax in processes that start at once.

Importing is most of a short run's time. One server imports everything, touches no device, and
every command runs in a copy of it: from `main.start` on as `python -m vse_jax.main` does.
"""

import atexit
import gc
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import java
import jax

from vse_jax import main

REPOSITORY = Path(__file__).parents[1]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [f"vse_jax.{name}" for name in ("main", "train", "report.page", "data.pipeline", "data.shapes")]
)


class Command:
    """A running `python -m vse_jax.main *arguments`, from the repository's root."""

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        file, path = tempfile.mkstemp(prefix="vse_jax_output_")
        os.close(file)
        self._output = Path(path)
        given = list(arguments), dict(environment or {}), path
        self._process = _CONTEXT.Process(target=_run, args=given)
        self._process.start()

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def send(self, number: int) -> None:
        """Sends the signal of that number, unless the process has ended."""
        if self.poll() is None:
            os.kill(self._process.pid, number)

    def output(self) -> str:
        """What it has written so far, errors too."""
        return self._output.read_text()

    def wait(self, seconds: float) -> tuple[int | None, str]:
        """Exit code and output when it has ended; one that has not by then is killed: -9."""
        self._process.join(seconds)
        if self.poll() is None:
            self._process.kill()
            self._process.join()
        output = self.output()
        self._output.unlink()
        return self.poll(), output


def _run(arguments: Sequence[str], environment: Mapping[str, str], output: str) -> None:
    # As in conftest.py: what the server has imported is no garbage.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    shutil.which = java.without
    os.chdir(REPOSITORY)
    # The server has read the environment already.
    jax.config.update("jax_platforms", "cpu")
    # ml_collections looks for the fields of --config there.
    sys.argv = ["vse_jax.main", *arguments]
    try:
        main.start(sys.argv)
    finally:
        # A copy ends without them; the processes of a run take leave of each other there.
        atexit._run_exitfuncs()
