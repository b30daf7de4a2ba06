"""The files of a run: written atomically, read back with clear errors."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vse_jax import config as configs

log = logging.getLogger(__name__)

CONFIG, METRICS, REPORT = "config.json", "metrics.jsonl", "report.json"
TOKENIZER, ORIGIN, LOCK = "tokenizer.json", "origin.json", ".lock"


class WorkdirError(Exception):
    """A workdir that cannot be used as asked: says which, why, and what to do."""


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file whole or not at all.

    Raises:
      WorkdirError: no permission, or no space.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise _unwritten(path, error) from error


@contextlib.contextmanager
def locked(workdir: Path, first: bool = True) -> Iterator[None]:
    """Keeps a second run out of the workdir until this one ends, however it ends.

    Args:
      workdir: made if need be.
      first: whether this process is the one that writes.

    Raises:
      WorkdirError: another run is at work there, or it cannot be made or written.
    """
    with contextlib.ExitStack() as stack:
        if first:
            try:
                workdir.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(open(workdir / LOCK, "a+"))
            except OSError as error:
                raise WorkdirError(f"{workdir} cannot be written: {error.strerror}") from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise WorkdirError(
                    f"another run is at work in {workdir} ({file.read()}): wait for its end, or "
                    "stop it"
                ) from error
            except OSError:
                log.warning("%s cannot be locked: keep other runs out of it yourself", workdir)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        yield


def check(workdir: Path, config: ConfigDict) -> bool:
    """Whether the workdir belongs to this config already; False where it belongs to none yet.

    Raises:
      WorkdirError: it belongs to another config.
    """
    if not (workdir / CONFIG).exists():
        return False
    different = configs.differences(read_config(workdir), config)
    if different:
        raise WorkdirError(
            f"{workdir} belongs to another config:\n  "
            + "\n  ".join(different)
            + "\nUse another --workdir, or the config it was begun with"
        )
    return True


def claim(workdir: Path, config: ConfigDict, tokenizer: str, origin: Mapping[str, Any]) -> None:
    """Makes the workdir belong to this config and these data, or finds that it does already.

    Args:
      workdir: made if need be.
      config: of the run.
      tokenizer: JSON of its tokenizer.
      origin: JSON-like: digests of the `data`, the `weights`, the caption `semantics` and the
        checkpoint to `start_from`; for who
        loads the workdir without these, the configuration of the pretrained `backbone`, and the
        width of the pictures' `features` where the data are such, and the names of the
        `classes`.

    Raises:
      WorkdirError: it belongs to another config or other data, or cannot be written.
    """
    if check(workdir, config):
        old = read_origin(workdir)
        for name in ("data", "weights", "semantics", "start_from"):
            if old.get(name) != origin.get(name):
                raise WorkdirError(
                    f"{workdir} was begun with other {name} (digest {old.get(name)} there, "
                    f"{origin.get(name)} now): bring them back, or use another --workdir"
                )
        # Where things lie may have changed.
        if configs.to_json(read_config(workdir)) != configs.to_json(config):
            write_text(workdir / CONFIG, configs.to_json(config))
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkdirError(f"{workdir} cannot be made: {error.strerror}") from error
    write_text(workdir / TOKENIZER, tokenizer)
    known = {**origin, "tokenizer": digest(tokenizer)}
    write_text(workdir / ORIGIN, json.dumps(known, indent=2))
    # The last, as it is what makes a workdir.
    write_text(workdir / CONFIG, configs.to_json(config))


def check_tokenizer(workdir: Path, other: str | None = None) -> None:
    """Raises WorkdirError where the vocabulary is not the one that the run was begun with.

    Numbers of another vocabulary would be read as other words, without any other sign.

    Args:
      workdir: of the run.
      other: JSON of another run's tokenizer, which must be the same then.
    """
    path, origin = workdir / TOKENIZER, read_origin(workdir)
    try:
        found = digest(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise WorkdirError(f"{path} cannot be read: {error}") from error
    if found != origin.get("tokenizer", found):
        raise WorkdirError(
            f"{path} is not the tokenizer that the run was begun with (digest {found}, expected "
            f"{origin['tokenizer']}), but one of other data: bring the first one back"
        )
    if other is not None and found != digest(other):
        raise WorkdirError(
            f"{path} is not the tokenizer of this run, whose words have other numbers: train on "
            "the same captions, or take the model of a pretrained tokenizer"
        )


def digest(text: str) -> str:
    """SHA-256 (hex) of a text, such as a tokenizer's JSON."""
    return hashlib.sha256(text.encode()).hexdigest()


def read_origin(workdir: Path) -> dict[str, Any]:
    """What `claim` was given as `origin`.

    Raises:
      WorkdirError: it cannot be read.
    """
    try:
        return json.loads((workdir / ORIGIN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkdirError(f"{workdir / ORIGIN} cannot be read: {error}") from error


def read_config(workdir: Path) -> ConfigDict:
    """The config of a finished or running workdir.

    Raises:
      WorkdirError: there is none.
      ConfigError: it has fields that this version does not know.
    """
    try:
        text = (workdir / CONFIG).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WorkdirError(
            f"{workdir} is no workdir of vse_jax: {CONFIG} cannot be read "
            f"({getattr(error, 'strerror', 'not UTF-8')})"
        ) from error
    return configs.from_json(text)


class MetricsLog:
    """`metrics.jsonl`: one JSON object a line, kept in step with the checkpoints."""

    def __init__(self, workdir: Path, step: int, write: bool = True) -> None:
        """Continues the log after `step`: later lines, of a run cut short, are dropped.

        Args:
          workdir: of the run.
          step: of the state that training goes on from.
          write: whether this process writes; the others only remember.
        """
        self.rows = [row for row in read_metrics(workdir) if row["step"] <= step]
        self._path, self._file = workdir / METRICS, None
        if write:
            write_text(self._path, "".join(json.dumps(row) + "\n" for row in self.rows))
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115

    def add(self, row: Mapping[str, float | int]) -> None:
        """Appends a line and hands it to the system at once; WorkdirError where it cannot."""
        self.rows.append(dict(row))
        if self._file is not None:
            try:
                self._file.write(json.dumps(self.rows[-1]) + "\n")
                self._file.flush()
            except OSError as error:
                raise _unwritten(self._path, error) from error

    def sync(self) -> None:
        """Returns when all lines are on disk; WorkdirError where they cannot be."""
        if self._file is not None:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise _unwritten(self._path, error) from error

    def close(self) -> None:
        """Lets go of the file."""
        if self._file is not None:
            # A line that could not be written has been told of already.
            with contextlib.suppress(OSError):
                self._file.close()

    def values(self, name: str) -> list[float | int]:
        """Every value of one metric, in order."""
        return [row[name] for row in self.rows if name in row]


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; others than objects with a step are left out with a warning."""
    return read_history(workdir)[0]


def read_history(workdir: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of `metrics.jsonl`, and how many before the last could not be read.

    The last one may be in the middle of being written, or cut short by a crash.
    """
    try:
        text = (workdir / METRICS).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise WorkdirError(f"{workdir / METRICS} cannot be read: {error.strerror}") from error
    lines = text.splitlines()
    rows = [_parsed(line) for line in lines]
    bad = [number for number, row in enumerate(rows, 1) if row is None]
    for number in bad:
        log.warning("%s:%d: no JSON object with a step, left out", METRICS, number)
    return [row for row in rows if row is not None], sum(number < len(lines) for number in bad)


def _unwritten(path: Path, error: OSError) -> WorkdirError:
    return WorkdirError(f"{path} cannot be written: {error.strerror}")


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
