"""What a person sees of a command: wrong flags, log lines, a progress bar, TensorBoard."""

import argparse
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from vse_jax import hub

log = logging.getLogger(__name__)
WORKDIR = "folder of the trained run"
MODEL = "in place of it: weights of CLIP or SigLIP, a folder or a name on the Hugging Face hub"
_console = Console(stderr=True)


class Parser(argparse.ArgumentParser):
    """The flags of `python -m vse_jax.TOOL`, of which a wrong one ends in one line and exit 2."""

    def error(self, message: str) -> NoReturn:
        """Says what is wrong, behind the tool's name."""
        tool = self.prog.partition("vse_jax.")[2].split()[0]
        self.exit(2, f"{tool}: {message}\n")

    def add_model(self) -> None:
        """--workdir or --model, of which one is given; `vse_jax.load` takes either's value."""
        either = self.add_mutually_exclusive_group(required=True)
        either.add_argument("--workdir", type=path, help=WORKDIR)
        either.add_argument("--model", type=hub.reference, help=MODEL)


def path(text: str) -> Path:
    """A path that a flag gives; `~` is expanded, as shells do not behind a flag's name.

    Raises:
      ArgumentTypeError: it is empty, as of a variable that is not set; Path takes that for ".".
    """
    if not text:
        raise argparse.ArgumentTypeError("it is empty; expected a path")
    return Path(os.path.expanduser(text))


def set_up_logging() -> None:
    """Sends the log of vse_jax to the terminal, and of the libraries what goes wrong.

    To be called before JAX looks for devices: it logs which kinds are not there.
    """
    if _console.is_terminal:
        handler: logging.Handler = RichHandler(
            console=_console, show_path=False, log_time_format="%H:%M:%S", rich_tracebacks=False
        )
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    own = logging.getLogger("vse_jax")
    own.handlers = [handler]
    own.propagate = False
    own.setLevel(logging.INFO)
    # Orbax and TFDS log each of their steps, and with a trace what they raise all the same.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("jax").setLevel(logging.WARNING)
    sys.unraisablehook = _quieter(sys.unraisablehook)
    threading.excepthook = _in_one_line


def speak_if(first: bool) -> None:
    """Has the processes of a run but the first say warnings only."""
    logging.getLogger("vse_jax").setLevel(logging.INFO if first else logging.WARNING)


def _quieter(hook: Callable[[Any], None]) -> Callable[[Any], None]:
    """`hook` without the traces of a read or write that failed and was told already.

    TensorStore ends its other transfers only after Orbax has closed their event loop.
    """

    def filtered(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    return filtered


def _in_one_line(failure: threading.ExceptHookArgs) -> None:
    """Tells of an error in a background thread; what waits for the thread raises it again."""
    message = str(failure.exc_value).splitlines() or [failure.exc_type.__name__]
    log.warning("in the background: %s", message[0][:200])


class Progress:
    """A progress bar over steps, on a terminal only; elsewhere the log lines tell."""

    def __init__(self, start: int, end: int) -> None:
        """Shows `start` of `end` steps done."""
        self._bar = Bar(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=_console,
            transient=True,
            disable=not _console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=end, completed=start)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def advance(self, step: int) -> None:
        """Shows `step` steps done."""
        self._bar.update(self._task, completed=step)


class TensorBoard:
    """Writes scalars as TensorBoard events into the workdir."""

    def __init__(self, workdir: Path) -> None:
        """Opens an event file in `workdir`."""
        import tensorflow as tf

        self._workdir, self._error = workdir, tf.errors.OpError
        self._summary = tf.summary
        with self._told():
            self._writer = tf.summary.create_file_writer(str(workdir))

    def write(self, row: Mapping[str, float | int]) -> None:
        """Writes one line of metrics.jsonl; OSError where it cannot."""
        with self._told(), self._writer.as_default(step=int(row["step"])):
            for name, value in row.items():
                if name != "step":
                    self._summary.scalar(name, value)

    def close(self) -> None:
        """Flushes and closes the file; OSError where it cannot."""
        with self._told():
            self._writer.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turns TensorFlow's errors, such as a full disk, into one that names the folder."""
        try:
            yield
        except self._error as error:
            message = f"{self._workdir}: TensorBoard events cannot be written: {error.message}"
            raise OSError(message) from error
