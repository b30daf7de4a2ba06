"""python -m vse_jax.main --config=configs/shapes.py --workdir=runs/shapes.

Trains, then evaluates; the same command goes on with a run that was stopped. `--mode=evaluate`
evaluates a workdir again by its own config, or a config without any training, such as
`configs/flickr8k.py:clip`.
"""

import contextlib
import logging
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import jax
from absl import app, flags
from ml_collections import config_flags

from vse_jax import config, console, parallel
from vse_jax.errors import USER_ERRORS

log = logging.getLogger("vse_jax.main")

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.")
_WORKDIR = flags.DEFINE_multi_string(
    "workdir", None, "Folder of the run; to be evaluated together, of each of several."
)
_OUTPUT = flags.DEFINE_string("output", None, "Where the report of several workdirs goes.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "What to do.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "host:port of process 0, if several; or 'auto' on Cloud TPU, under SLURM and the like.",
)
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.")
_PROCESS = flags.DEFINE_integer("process", None, "Number of this process, from 0.")


def main(argv: Sequence[str]) -> None:
    """Runs the mode that the flags name; a user's mistake ends in one clear line and exit 1."""
    try:
        _run([Path(folder) for folder in _WORKDIR.value or ()], argv[1:])
    except parallel.ProcessesError as error:
        _fail(str(error))
    except Exception as error:
        # Collectives raise errors of several kinds, and what saves a checkpoint wraps them.
        loss = parallel.loss_behind(error) if _is_one_of_several() else None
        if loss is not None:
            _fail(loss)
        # An OSError names its file and reason: a full disk, a missing permission.
        if not isinstance(error, (*USER_ERRORS, OSError)):
            if _is_one_of_several():
                traceback.print_exc()
                _leave_at_once(1)
            raise
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    log.error("%s", message)
    if _is_one_of_several():
        _leave_at_once(1)
    sys.exit(1)


def _is_one_of_several() -> bool:
    # Ctrl-C may come before the flags are known.
    return flags.FLAGS.is_parsed() and bool(_COORDINATOR.value)


def _leave_at_once(code: int) -> NoReturn:
    """Ends one of several processes: others wait in collectives, and must not be waited for."""
    sys.stderr.flush()
    os._exit(code)


def _run(workdirs: Sequence[Path], arguments: Sequence[str]) -> None:
    console.set_up_logging()
    parallel.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    console.speak_if(parallel.is_first_process())
    parallel.keep_compiled()
    # TensorFlow is imported here, late, so that wrong flags are told at once.
    from vse_jax import measuring, train

    workdir = workdirs[-1]
    command = shlex.join(["python", "-m", "vse_jax.main", *arguments])
    if _OUTPUT.value is not None:
        measuring.together(workdirs, Path(str(_OUTPUT.value)), command)
        return
    if _MODE.value == "evaluate" and _CONFIG.value is None:
        measuring.again(workdir)
        return
    devices = jax.devices()
    log.info("%d x %s, JAX %s", len(devices), devices[0].device_kind, jax.__version__)
    if _MODE.value == "evaluate":
        measuring.untrained(_CONFIG.value, workdir, command)
        return
    train.train(_CONFIG.value, workdir, _stop_on_signal, command)


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM or the first Ctrl-C sets; the second Ctrl-C ends at once."""
    stop = threading.Event()

    def handle(number: int, frame: object) -> None:
        del frame
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()
        log.warning("%s: stopping at the next step", signal.Signals(number).name)

    # With several processes JAX's preemption service listens instead.
    several = parallel.process_share()["processes"] > 1
    numbers = () if several else (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield stop
    finally:
        for number, usual in zip(numbers, before, strict=True):
            # None: of a handler that Python does not know.
            signal.signal(number, signal.SIG_DFL if usual is None else usual)


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses the flags and returns `argv`; a mistake ends in one line, not a stack trace."""
    try:
        names = config.names_set(argv[1:])
        if names and not any(argument.lstrip("-").startswith("config=") for argument in argv[1:]):
            raise flags.ValidationError("--config is missing: a file of configs/")
        for name in names:
            several = names.count(name) > 1
            if several and config.known()[name].type is tuple:
                # ml_collections would put the values of both together.
                raise flags.ValidationError(f"--config.{name} is given twice")
        remaining = flags.FLAGS(argv)
        if remaining[1:]:
            raise flags.ValidationError(f"{remaining[1]!r} is no flag: do two dashes miss?")
        if not _WORKDIR.value or not all(_WORKDIR.value):
            raise flags.ValidationError("--workdir is missing: the folder of the run")
        # Else the last one counts, as of any flag.
        several = len(_WORKDIR.value) > 1 and _MODE.value == "evaluate" and _CONFIG.value is None
        if several != (_OUTPUT.value is not None):
            raise flags.ValidationError(
                "--output, where the report goes, is for evaluating several --workdir: give both"
            )
        wrong = parallel.misfit(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
        if wrong is not None:
            raise flags.ValidationError(wrong)
        if _MODE.value == "train" and _CONFIG.value is None:
            raise flags.ValidationError("--config is missing: a file of configs/")
        if _CONFIG.value is not None:
            # A file that could not be loaded says so when it is used.
            config.unset(_CONFIG.value)
    except Exception as error:  # whatever a user's config file raises
        sys.stderr.write(f"vse_jax: {_told(error)}\n")
        sys.exit(2)
    return list(argv)


def _told(error: Exception) -> str:
    """The mistake in one line; with file and line where it was made in a config file."""
    error = _raised_in_a_config(error)
    if isinstance(error, config.ConfigError | flags.Error | OSError):
        text = str(error)
        # absl wraps what the file raised, trace and all.
        return " ".join((text.splitlines()[-1] if "Traceback" in text else text).split())
    frame = traceback.extract_tb(error.__traceback__)[-1]
    own = [f for f in traceback.extract_tb(error.__traceback__) if f.name == "get_config"]
    frame = own[-1] if own else frame
    message = " ".join(str(error).split())
    return f"{frame.filename}:{frame.lineno}: {type(error).__name__}: {message}"


def _raised_in_a_config(error: Exception) -> Exception:
    """What a config file raised, where absl wrapped it; else the error itself."""
    inner: BaseException | None = error
    while inner is not None:
        if any(f.name == "get_config" for f in traceback.extract_tb(inner.__traceback__)):
            return inner if isinstance(inner, Exception) else error
        inner = inner.__cause__ or inner.__context__
    return error


def start(arguments: Sequence[str]) -> None:
    """Runs the command line `arguments`, the program's name first."""
    try:
        app.run(main, list(arguments), flags_parser=_parse)
    except KeyboardInterrupt:
        sys.stderr.write("vse_jax: interrupted; what was saved is whole\n")
        # 128 and the signal's number, as of what a shell ends.
        if _is_one_of_several():
            _leave_at_once(130)
        sys.exit(130)


if __name__ == "__main__":
    start(sys.argv)
