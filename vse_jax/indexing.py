"""Encodes what is new in a folder, and keeps an index's store as the folder is."""

import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np

from vse_jax import inputs, parallel
from vse_jax.api import Model
from vse_jax.data import whole_file
from vse_jax.data.split import DataError
from vse_jax.encode import HostBatch, Side
from vse_jax.index.records import Changes, Encoded, File, Row
from vse_jax.index.store import Store

log = logging.getLogger(__name__)
T = TypeVar("T")

# By side, of the files that are taken.
SUFFIXES = {
    "images": frozenset(
        (
            ".jpg",
            ".jpeg",
            ".jfif",
            ".png",
            ".webp",
            ".gif",
            ".bmp",
            ".tif",
            ".tiff",
            ".ppm",
            ".avif",
        )
    ),
    "texts": frozenset({".txt"}),
}
# Batches of pictures that are decoded ahead of the one that is encoded.
AHEAD = 2
# Seconds between two lines that tell how far it is.
EVERY = 30
# What is to be encoded, for the processes that have no store.
WANTED = "wanted.jsonl"
# Files that cannot be read of which the log tells.
TOLD = 10


class Report(NamedTuple):
    """What was done.

    Attributes:
      changes: of the folder.
      problems: files that could not be read, of these changes.
      items: that the index has of all folders.
      seconds: that it took.
    """

    changes: Changes
    problems: int
    items: int
    seconds: float


def files_below(root: Path, suffixes: frozenset[str]) -> Iterator[File]:
    """The files of a folder and those in it, by their suffixes; or of a single file itself.

    Hidden ones are left out, links to folders not followed. Files that go while it looks are gone.

    Raises:
      DataError: the folder cannot be read.
    """
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            entries = os.scandir(root / folder)
        except FileNotFoundError:
            if not folder:
                raise DataError(f"{root} is not there") from None
            continue
        except NotADirectoryError:
            raise DataError(f"{root} is no folder") from None
        except OSError as error:
            raise DataError(f"{root / folder} cannot be read: {error.strerror}") from error
        with entries:
            for entry in entries:
                path = os.path.join(folder, entry.name)
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                elif os.path.splitext(entry.name)[1].lower() in suffixes:
                    try:
                        found = entry.stat()
                    except OSError:  # gone, or a link to nothing
                        continue
                    yield File(path, found.st_size, found.st_mtime_ns)


def update(
    model: Model, folder: Path, store: Store | None, side: Side, root: Path, batch_size: int
) -> Report:
    """Makes the index have what a folder has: only new and changed files are encoded.

    Every process calls it, and all of their devices encode.

    Args:
      model: that encodes.
      folder: of the index.
      store: of it; None in processes but the first, which find there what is to be encoded.
      side: "images", or "texts" for files of sentences, a line each.
      root: the folder of these.
      batch_size: items encoded at a time, over all devices.

    Raises:
      DataError: the folder cannot be read, or the index cannot be written.
      StoreError: see `Store`.
    """
    begun = time.perf_counter()
    if store is None:
        parallel.barrier(WANTED)
        for _ in _encoded(model, side, root, _wanted(folder), batch_size):
            pass  # the first process has the same
        return Report(Changes(0, 0, 0, 0), 0, 0, time.perf_counter() - begun)
    changes = store.compare(root, files_below(root, SUFFIXES[side]))
    store.forget_missing(root)
    _share_wanted(folder, store.wanted())
    parallel.barrier(WANTED)
    watched = _Watched(changes.wanted)
    encoded = _encoded(model, side, root, _wanted(folder), batch_size)
    for _ in store.add(root, watched.each(encoded)):
        pass
    (folder / WANTED).unlink()
    watched.end()
    return Report(changes, watched.problems, len(store), time.perf_counter() - begun)


class _Watched:
    """Tells the log how far it is, and of files that cannot be read."""

    def __init__(self, wanted: int) -> None:
        self.problems = 0
        self._wanted = wanted

    def each(self, encoded: Iterable[Encoded]) -> Iterator[Encoded]:
        """The same."""
        begun = told = time.perf_counter()
        done = 0
        for each in encoded:
            done += each.is_last
            if each.problem is not None:
                self.problems += 1
                if self.problems <= TOLD:
                    log.warning("left out: %s: %s", each.file.path, each.problem)
            if (now := time.perf_counter()) - told > EVERY:
                told = now
                log.info("%d of %d files, %.0f a second", done, self._wanted, done / (now - begun))
            yield each

    def end(self) -> None:
        """Tells of those that were not told."""
        if self.problems > TOLD:
            log.warning("%d more files were left out", self.problems - TOLD)


def _share_wanted(folder: Path, files: Iterable[File]) -> None:
    """Writes what is to be encoded where every process finds it."""

    def fill(out: IO[bytes]) -> None:
        out.writelines(json.dumps(file).encode() + b"\n" for file in files)

    whole_file.write(folder / WANTED, fill, "name a folder with room and permission to write")


def _wanted(folder: Path) -> Iterator[File]:
    with open(folder / WANTED, encoding="utf-8") as lines:
        for line in lines:
            yield File(*json.loads(line))


def _encoded(
    model: Model, side: Side, root: Path, files: Iterable[File], batch_size: int
) -> Iterator[Encoded]:
    """The items of these files with their embeddings, the same in every process."""
    batch = model.image_batch if side == "images" else model.text_batch
    pieces = map(_Piece, files) if side == "images" else _sentences(root, files)
    share, total = model.share(batch_size)

    def read(piece: _Piece) -> np.ndarray | str | DataError:
        if side == "texts":
            return piece.text or DataError(piece.problem or "empty")
        try:
            return inputs.pixels(0, root / piece.file.path, model.config.data.image_size)
        except DataError as error:
            return error

    waiting: deque[tuple[list[_Piece], list[np.ndarray | str | DataError]]] = deque()

    def batches() -> Iterator[HostBatch]:
        for some, own in _ahead(pieces, read, share, total):
            waiting.append((some, own))
            known: list[Any] = [None if isinstance(one, DataError) else one for one in own]
            yield batch(known, share.stop - share.start)

    for embeddings, is_real in model.in_turn(side, batches()):
        some, own = waiting.popleft()
        told = dict(enumerate(own, share.start))
        for number, (file, line, text, problem, is_last) in enumerate(some):
            rows = []
            if is_real[number]:
                rows = [Row(line, text, embeddings[number])]
            elif side == "images":
                problem = _reason(told.get(number))
            yield Encoded(file, rows, problem, is_last)


class _Piece(NamedTuple):
    """What is encoded: a picture, or a sentence of a file; or a file without any.

    Attributes:
      file: it is in.
      line: of it.
      text: the sentence.
      problem: why there is none.
      is_last: of the file.
    """

    file: File
    line: int | None = None
    text: str | None = None
    problem: str | None = None
    is_last: bool = True


def _sentences(root: Path, files: Iterable[File]) -> Iterator[_Piece]:
    """The lines of files that have more than white space."""
    for file in files:
        path, last = root / file.path, None
        try:
            with open(path, encoding="utf-8-sig") as lines:
                for _ in lines:  # is it text, to its end?
                    pass
            with open(path, encoding="utf-8-sig") as lines:
                for number, line in enumerate(lines, 1):
                    if text := line.strip():
                        if last is not None:
                            yield last
                        last = _Piece(file, number, text, is_last=False)
        except (OSError, UnicodeDecodeError) as error:
            yield _Piece(file, problem=f"it cannot be read as UTF-8: {error}")
            continue
        yield _Piece(file) if last is None else last._replace(is_last=True)


def _ahead(
    pieces: Iterable[_Piece], read: Callable[[_Piece], T], share: slice, total: int
) -> Iterator[tuple[list[_Piece], list[T]]]:
    """Batches of pieces, with this process's share of them read by threads, some batches ahead."""
    rest = iter(pieces)
    with ThreadPoolExecutor() as threads:
        started: deque[tuple[list[_Piece], list[Future[T]]]] = deque()
        try:
            while True:
                while len(started) <= AHEAD and (some := list(islice(rest, total))):
                    started.append((some, [threads.submit(read, one) for one in some[share]]))
                if not started:
                    return
                some, own = started.popleft()
                yield some, [future.result() for future in own]
        finally:
            threads.shutdown(cancel_futures=True)


def _reason(error: np.ndarray | str | DataError | None) -> str:
    """Why a picture was left out."""
    if isinstance(error, DataError):
        return str(error.__cause__ or error)
    return "another process could not read it"
