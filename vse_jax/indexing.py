"""Encodes what is new in a folder, and keeps an index's store as the folder is."""

import errno
import json
import logging
import os
import stat
import time
from collections import Counter, deque
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
from vse_jax.index.database import StoreError
from vse_jax.index.records import Changes, Encoded, File, Row
from vse_jax.index.store import Store
from vse_jax.pace import Pace

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
# What is to be encoded, the same for every process, and a name for when all have done that.
WANTED, ENCODED = "wanted.jsonl", "encoded"
# Files that cannot be read of which the log tells.
TOLD = 10


class Report(NamedTuple):
    """What was done.

    Attributes:
      changes: of the folder.
      problems: files of these changes, and folders, that could not be read.
      items: that the index has of all folders.
      seconds: that it took.
    """

    changes: Changes
    problems: int
    items: int
    seconds: float


def files_below(
    root: Path,
    suffixes: frozenset[str],
    leave_out: Callable[[str, str], None],
    others: Counter[str],
) -> Iterator[File]:
    """The files of a folder and those in it, by their suffixes.

    Hidden ones are left out, links to folders not followed. Files that go while it looks are gone.

    Args:
      root: the folder.
      suffixes: in lower case.
      leave_out: told of the path, and why, of what cannot be read or named.
      others: counts the files of other suffixes.

    Raises:
      DataError: the folder itself cannot be read.
    """
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    path = os.path.join(folder, entry.name)
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(path)
                    elif (suffix := os.path.splitext(entry.name)[1].lower()) in suffixes:
                        yield from _file(path, entry, leave_out)
                    else:
                        others[_shown(suffix)] += 1
        except FileNotFoundError:
            if not folder:
                raise DataError(f"{root} is not there") from None
        except OSError as error:
            if not folder:
                is_none = isinstance(error, NotADirectoryError)
                why = "is no folder" if is_none else f"cannot be read: {error.strerror}"
                raise DataError(f"{root} {why}") from error
            leave_out(_shown(folder), str(error.strerror))


def _file(
    path: str, entry: os.DirEntry[str], leave_out: Callable[[str, str], None]
) -> Iterator[File]:
    """What an entry of a folder is, if it is a file that can be read."""
    try:
        found = entry.stat()
    except FileNotFoundError:  # gone, or a link to nothing
        return
    except OSError as error:
        leave_out(_shown(path), str(error.strerror))
        return
    if not stat.S_ISREG(found.st_mode):  # who opens a pipe waits for its other end
        leave_out(_shown(path), "it is no regular file")
    elif _shown(path) != path:
        leave_out(_shown(path), "its name is not in UTF-8: rename it")
    else:
        yield File(path, found.st_size, found.st_mtime_ns)


def _shown(path: str) -> str:
    """The path, with \\x.. for what is not UTF-8, which no database takes."""
    return os.fsencode(path).decode(errors="backslashreplace")


def check_root(store: Store, root: Path, side: Side) -> None:
    """Raises StoreError where a folder has files of another one that is indexed, or no name."""
    if _shown(str(root)) != str(root):
        raise StoreError(f"the name of {_shown(str(root))} is not in UTF-8: rename it")
    for other in map(Path, store.roots()):
        if _has(other, root):
            raise StoreError(f"{root} lies in {other}, which is indexed as a whole: index that")
        if _has(root, other):
            raise StoreError(
                f"{other} lies in {root} and is indexed by itself: take it out first, by "
                f"--{side}={other} --forget"
            )


def _has(folder: Path, inner: Path) -> bool:
    """Whether what is in `inner` is found below `folder`."""
    if folder not in inner.parents:
        return False
    return not any(part.startswith(".") for part in inner.relative_to(folder).parts)


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
      StoreError: see `Store` and `check_root`.
    """
    begun = time.perf_counter()
    watched, changes = _Watched(), Changes(0, 0, 0, 0)
    if store is not None:
        check_root(store, root, side)
        found = files_below(root, SUFFIXES[side], watched.leave_out, watched.others)
        changes = store.compare(root, found, watched.unread)
        store.forget_missing(root)
        wanted = store.wanted()
        # Sentences are read here alone: of a file that changes, processes would see others.
        pieces = map(_Piece, wanted) if side == "images" else _sentences(root, wanted)
        _share_wanted(folder, pieces)
    parallel.barrier(WANTED)
    encoded = _encoded(model, side, root, _wanted(folder), batch_size)
    if store is None:
        for _ in encoded:
            pass  # the first process has the same
    else:
        for _ in store.add(root, watched.each(encoded, changes.wanted)):
            pass
    parallel.barrier(ENCODED)
    if store is not None:
        (folder / WANTED).unlink()
        watched.end(SUFFIXES[side])
    items = len(store) if store is not None else 0
    return Report(changes, watched.problems, items, time.perf_counter() - begun)


class _Watched:
    """Tells the log how far it is, and of what cannot be read.

    Attributes:
      problems: how many that were.
      unread: of these, what was not even looked at.
      others: files of types that are not taken, by suffix.
    """

    def __init__(self) -> None:
        self.problems = 0
        self.unread: list[str] = []
        self.others: Counter[str] = Counter()

    def leave_out(self, path: str, why: str) -> None:
        """Takes note of a file or folder that is not looked at."""
        self.unread.append(path)
        self._tell(path, why)

    def each(self, encoded: Iterable[Encoded], wanted: int) -> Iterator[Encoded]:
        """The same."""
        pace = Pace(log, wanted, "files")
        for each in encoded:
            if each.problem is not None:
                self._tell(each.file.path, each.problem)
            pace.advance(each.is_last)
            yield each

    def _tell(self, path: str, why: str) -> None:
        self.problems += 1
        if self.problems <= TOLD:
            log.warning("left out: %s: %s", path, why)

    def end(self, suffixes: frozenset[str]) -> None:
        """Tells of those that were not told, and of files of other types than are taken."""
        if self.problems > TOLD:
            log.warning("%d more were left out", self.problems - TOLD)
        if self.others:
            types = ", ".join(f"{n} {kind or 'without'}" for kind, n in self.others.most_common(5))
            taken = " ".join(sorted(suffixes))
            log.info("files of other types, not looked at: %s; taken are %s", types, taken)


class _Piece(NamedTuple):
    """What is encoded: a picture, or a sentence of a file; or a file without any.

    Attributes:
      file: it is in.
      line: of it.
      text: the sentence.
      problem: why there is none.
      is_last: of the file.
      again: as of `Encoded`.
    """

    file: File
    line: int | None = None
    text: str | None = None
    problem: str | None = None
    is_last: bool = True
    again: bool = False


def _share_wanted(folder: Path, pieces: Iterable[_Piece]) -> None:
    """Writes what is to be encoded where every process finds it."""

    def fill(out: IO[bytes]) -> None:
        out.writelines(json.dumps(piece).encode() + b"\n" for piece in pieces)

    whole_file.write(folder / WANTED, fill, "name a folder with room and permission to write")


def _wanted(folder: Path) -> Iterator[_Piece]:
    with open(folder / WANTED, encoding="utf-8") as lines:
        for line in lines:
            file, *more = json.loads(line)
            yield _Piece(File(*file), *more)


def _encoded(
    model: Model, side: Side, root: Path, pieces: Iterable[_Piece], batch_size: int
) -> Iterator[Encoded]:
    """The items of these pieces with their embeddings, the same in every process."""
    batch = model.image_batch if side == "images" else model.text_batch
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
        for number, piece in enumerate(some):
            rows, problem, again = [], piece.problem, piece.again
            if is_real[number]:
                rows = [Row(piece.line, piece.text, embeddings[number])]
            elif side == "images":
                # What another process could not read is read here, too, to learn why.
                error = told[number] if number in told else read(piece)
                problem, again = _reason(error), _may_pass(error)
            yield Encoded(piece.file, rows, problem, piece.is_last, again)


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
        except OSError as error:
            yield _Piece(file, problem=f"it cannot be read: {error.strerror}", again=True)
            continue
        except UnicodeDecodeError as error:
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


def _reason(found: np.ndarray | str | DataError) -> str:
    """Why a picture was left out."""
    if isinstance(found, DataError):
        return inputs.reason(found.__cause__ or found)
    return "another process could not read it"


def _may_pass(found: np.ndarray | str | DataError) -> bool:
    """Whether a picture may be read another time though it is the same: the disk failed, not it."""
    if not isinstance(found, DataError):
        return True
    cause = found.__cause__
    # Pillow's own have no number; EINVAL is of places in a broken file that cannot be.
    return isinstance(cause, OSError) and cause.errno not in (None, errno.EINVAL)
