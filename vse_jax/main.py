"""python -m vse_jax.main --config=configs/shapes.py --workdir=runs/shapes.

Trains, then evaluates; `--mode=evaluate` evaluates a workdir again. The same command goes
on with a run that was stopped.
"""

import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import app, flags
from ml_collections import config_flags

from vse_jax import config, console, parallel
from vse_jax.errors import USER_ERRORS

log = logging.getLogger("vse_jax.main")

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "What to do.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, if several.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.")
_PROCESS = flags.DEFINE_integer("process", None, "Number of this process, from 0.")


def main(argv: Sequence[str]) -> None:
    """Runs the mode that the flags name; a user's mistake ends in one clear line and exit 1."""
    del argv
    try:
        _run(Path(str(_WORKDIR.value)))
    except (*USER_ERRORS, OSError) as error:
        # An OSError names its file and reason: a full disk, a missing permission.
        log.error("%s", error)
        # Other processes wait in collectives; they must not be waited for.
        sys.stderr.flush()
        os._exit(1) if _COORDINATOR.value else sys.exit(1)


def _run(workdir: Path) -> None:
    parallel.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    console.set_up_logging(_PROCESS.value or 0)
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", "~/.cache/vse_jax/xla")
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(cache))
    # The many small programs of a start take seconds together.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # TensorFlow is imported here, late, so that wrong flags are told at once.
    from vse_jax import train

    if _MODE.value == "evaluate":
        train.evaluate_again(workdir)
        return
    devices = jax.devices()
    log.info("%d x %s, JAX %s", len(devices), devices[0].device_kind, jax.__version__)
    command = shlex.join(["python", "-m", "vse_jax.main", *sys.argv[1:]])
    train.train(_CONFIG.value, workdir, _stop_on_signal(), command)


def _stop_on_signal() -> threading.Event:
    """An event that SIGTERM or the first Ctrl-C sets; the second Ctrl-C ends at once."""
    stop = threading.Event()

    def handle(number: int, frame: object) -> None:
        del frame
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()
        log.warning("%s: stopping at the next step", signal.Signals(number).name)

    if parallel.process_share()["processes"] == 1:
        # With several processes JAX's preemption service listens instead.
        signal.signal(signal.SIGTERM, handle)
        signal.signal(signal.SIGINT, handle)
    return stop


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses the flags; a mistake in one ends in one line, not a stack trace."""
    try:
        for argument in argv[1:]:
            if argument.startswith("--config."):
                config.check_name(argument.removeprefix("--config.").split("=")[0])
        remaining = flags.FLAGS(argv)
        if _WORKDIR.value is None:
            raise flags.ValidationError("--workdir is missing: the folder of the run")
        if _MODE.value == "train" and _CONFIG.value is None:
            raise flags.ValidationError("--config is missing: a file of configs/")
        if _CONFIG.value is not None:
            _CONFIG.value.to_dict()  # a file that could not be loaded says so when it is used
    except (flags.Error, config.ConfigError, TypeError, ValueError, OSError) as error:
        sys.stderr.write(f"vse_jax: {' '.join(str(error).split())}\n")
        sys.exit(2)
    return remaining


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
