"""Boxes of every picture of a data set, in a file that a stopped run goes on with."""

import collections
import contextlib
import fcntl
import itertools
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import IO, Any

import numpy as np
import search_process
import tensorflow as tf
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import Progress

from vse_jax import config as configs
from vse_jax import config_checks, experiment, workdir
from vse_jax.confidence import Confidence, in_order
from vse_jax.data import datasets, pipeline, proposals
from vse_jax.data.split import DataError, Split
from vse_jax.models.backbones.weights import digest

log = experiment.log
# Pictures between lines of the log, where there is no terminal for a bar.
EVERY = 500
ADVICE = "--output must name a file in a folder with room and permission to write"
# Of what is written: another one makes other boxes of the same pictures.
VERSION = 1
# Pictures that wait for each process of the search, so that none is idle in a step of the backbone.
AHEAD = 4


class Search:
    """Selective search in processes of its own; a context manager, which ends them."""

    def __init__(self, processes: int) -> None:
        """Starts them as there is work; raises DataError where there is no OpenCV."""
        proposals.opencv()
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(processes, context, search_process.prepare)
        self._ahead = AHEAD * processes

    def __enter__(self) -> "Search":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def candidates(self, split: Split, first: int) -> Iterator[np.ndarray]:
        """float32 [n, 4] of each picture from number `first` on; DataError names one that fails."""
        waiting: collections.deque[tuple[str, Future]] = collections.deque()
        for number in range(first, len(split.images)):
            waiting.append((split.images[number], self._submit(_pixels(split, number))))
            if len(waiting) > self._ahead:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())

    def _submit(self, picture: np.ndarray) -> Future:
        """Begins the search of a picture, perhaps in a process that starts now."""
        # What starts now inherits the mask: Ctrl-C is for this process alone.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self._pool.submit(proposals.selective_search, picture)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def propose(
    config: ConfigDict,
    output: Path,
    *,
    regions: int = proposals.REGIONS,
    processes: int | None = None,
    batch_size: int = 16,
) -> None:
    """Writes the boxes of every picture of the config's data set into a .jsonl file.

    Args:
      config: names data set, backbone and weights; limits of splits are those of runs, not of this.
      output: the file; what a stopped run has written of the same boxes is kept.
      regions: boxes a picture at most, the whole picture among them.
      processes: of the search; None: one a core.
      batch_size: pictures at a time through the backbone.

    Raises:
      ConfigError, DataError, WeightsError, WorkdirError: for the user's mistakes.
    """
    processes = os.cpu_count() or 1 if processes is None else processes
    if min(regions, processes, batch_size) < 1:
        raise configs.ConfigError("--regions, --processes and --batch_size must be above 0")
    config_checks.validate(config)
    config = configs.with_absolute_paths(config)
    if config.data.dataset == "precomputed":
        raise configs.ConfigError("the data set 'precomputed' has features, and no pictures")
    with Search(processes) as search:
        confidence = Confidence.of(config)
        config.data.train_limit = config.data.validation_limit = None
        dataset = datasets.load(config.data, config.seed)
        made_of = _made_of(config, dataset.fingerprint, confidence is not None, regions)
        names = [name for split in dataset.splits.values() for name in split.images]
        with _partial(output) as file:
            if not _claim(output, file, made_of):
                log.info("%s is there", output)
                return
            done = _kept(file, names)
            log.info(
                "%s: %d of %d pictures are there, whatever limits of splits say",
                output, done, len(names),
            )  # fmt: skip
            ranked = _ranked(config, dataset.splits, done, search, confidence, batch_size)
            with _progress() as bar:
                task = bar.add_task(output.name, total=len(names), completed=done)
                for number, (boxes, scores) in enumerate(ranked, done):
                    top = proposals.top_boxes(boxes, scores, regions - 1)
                    _append(file, names[number], top)
                    bar.update(task, completed=number + 1)
                    if (number + 1) % EVERY == 0 and bar.disable:
                        log.info("%s: %d of %d pictures", output, number + 1, len(names))
            os.fsync(file.fileno())
            Path(file.name).replace(output)
    log.info("%s: boxes of %d pictures", output, len(names))


def _made_of(config: ConfigDict, data: str, ranked: bool, regions: int) -> dict[str, Any]:
    """What the boxes depend on."""
    image = config.model.image
    classifier = {
        "backbone": image.backbone,
        "weights": digest(image.weights),
        "image_size": config.data.image_size,
        "precision": config.precision,
    }
    return {
        "version": VERSION,
        "data": data,
        "opencv": proposals.opencv().__version__,
        "most": proposals.MOST,
        "smallest": proposals.SMALLEST,
        "longest": proposals.LONGEST,
        "overlap": proposals.OVERLAP,
        "regions": regions,
        "classifier": classifier if ranked else None,
    }


def _ranked(
    config: ConfigDict,
    splits: Mapping[str, Split],
    done: int,
    search: Search,
    confidence: Confidence | None,
    batch_size: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Candidates and scores of each picture of all splits, those that are done left out."""
    for split in splits.values():
        first = min(done, len(split.images))
        done -= first
        if first == len(split.images):
            continue
        found = search.candidates(split, first)
        if confidence is None:
            yield from ((boxes, in_order(boxes)) for boxes in found)
            continue
        none = np.zeros((0, 1), np.int32)
        examples = pipeline.Examples(
            split, none, none > 0, pipeline.Pictures(config.data.image_size)
        )
        size = confidence.devices.shared(batch_size)
        numbers = np.arange(first, len(split.images))
        batches = pipeline.image_batches(examples, numbers, batch_size=size)
        # Candidates come first: the search names a picture that cannot be decoded.
        while boxes := list(itertools.islice(found, size)):
            scores = confidence.scores(next(batches)["image"], boxes)
            yield from zip(boxes, scores, strict=True)


def _pixels(split: Split, number: int) -> np.ndarray:
    """uint8 [h, w, 3] of a picture in its own size, as training decodes it."""
    assert split.read is not None
    (data,) = split.read([number])
    try:
        with tf.device("cpu"):
            return tf.io.decode_image(data, channels=3, expand_animations=False).numpy()
    except tf.errors.OpError as error:
        raise DataError(f"{split.images[number]} cannot be decoded: {error.message}") from error


def _result(name: str, search: Future) -> np.ndarray:
    """The boxes of the picture of that name; DataError where the search failed."""
    try:
        return search.result()
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except BrokenProcessPool as error:
        raise DataError(
            f"{name}: a process of the search ended before it, for want of memory perhaps: take "
            "fewer --processes; the same command goes on from here"
        ) from error


@contextlib.contextmanager
def _partial(output: Path) -> Iterator[IO[bytes]]:
    """The file that becomes `output`, open for reading and appending, for this process alone.

    Raises:
      DataError: it cannot be written, or another process writes it.
    """
    path = output.with_name(f"{output.name}.partial")
    with contextlib.ExitStack() as stack:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path, "a+b"))
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror}; {ADVICE}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another run writes {path}: wait for its end, or stop it") from error
        except OSError:
            log.warning("%s cannot be locked: keep other runs away from it yourself", path)
        try:
            yield file
        finally:
            # Nothing was written, or all of it, and then the file has its name.
            with contextlib.suppress(FileNotFoundError):
                if not path.stat().st_size:
                    path.unlink()


def _claim(output: Path, partial: IO[bytes], made_of: Mapping[str, Any]) -> bool:
    """Whether boxes are still to be written: False where `output` is whole already.

    Raises:
      DataError: what is there, whole or in part, was made of something else.
    """
    record = output.with_suffix(".made_of.json")
    begun = output if output.exists() else Path(partial.name)
    if not output.exists() and not begun.stat().st_size:
        workdir.write_text(record, json.dumps(made_of, indent=2))
        return True
    try:
        there = json.loads(record.read_text(encoding="utf-8"))
        different = [name for name in made_of if there.get(name) != made_of[name]]
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"{begun} is there, and {record}, which says of what, cannot be read: {error}; take "
            "another --output, or delete it"
        ) from error
    if different:
        raise DataError(
            f"{begun} has boxes that differ in {', '.join(different)}: take another --output, or "
            "delete it"
        )
    return not output.exists()


def _kept(file: IO[bytes], names: Sequence[str]) -> int:
    """How many pictures have their line; a run that was stopped may have ended within the last."""
    file.seek(0)
    end = count = 0
    for line, name in zip(file, names, strict=False):
        if not line.endswith(b"\n") or not _is_of(line, name):
            break
        end, count = end + len(line), count + 1
    file.truncate(end)
    return count


def _is_of(line: bytes, name: str) -> bool:
    try:
        return json.loads(line)["image"] == name
    except (ValueError, TypeError, LookupError):
        return False


def _append(file: IO[bytes], name: str, boxes: np.ndarray) -> None:
    """Writes a picture's line, and hands it to the system at once."""
    # Six digits: a pixel of any picture, and half the length of what float32 would need.
    rounded = np.round(boxes.astype(np.float64), 6).tolist()
    try:
        file.write(json.dumps({"image": name, "boxes": rounded}).encode() + b"\n")
        file.flush()
    except OSError as error:
        raise DataError(f"cannot write {file.name}: {error.strerror}; {ADVICE}") from error


def _progress() -> Progress:
    shown = Console(stderr=True)
    return Progress(console=shown, transient=True, disable=not shown.is_terminal)
