"""What the tabs of the page do: a model and what was given to it -> what is to be seen.

Nothing here knows of the page. Each task is done by the first workdir that can; for those that none
can do, what stands in the way of each workdir is kept, and what to train.
"""

import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vse_jax import alignment, alignment_picture, finder, hub, inputs, look_picture, workdir
from vse_jax.alignment import Alignment, known_words
from vse_jax.api import Caption, Model, load
from vse_jax.data import tokenizer
from vse_jax.data.proposals import REGIONS
from vse_jax.data.split import DataError
from vse_jax.errors import USER_ERRORS
from vse_jax.finder import Finder, Hit
from vse_jax.index import kinds
from vse_jax.look import Look

log = logging.getLogger(__name__)
Pixels = UInt8[np.ndarray, "h w 3"]

# Photos shown at most, and pixels of their longer side.
MOST, THUMBNAIL = 48, 480
# Small photos that are kept for the next search, of at most 0.7 MB each.
KEPT = 2 * MOST
# Pixels of the longer side in which boxes are proposed: the search takes ever longer with more, and
# on photos of 224 pixels it found none better by more.
PROPOSED_IN = 320
# Captions kept by the search, beside as many as the model's config says; each is a program.
WIDTHS = (1, 3, 10)
ADVICE = {
    "search": "Index a folder by a model that embeds pictures and sentences, such as of "
    "configs/custom.py:FILE: python -m vse_jax.search index --workdir=RUN --images=FOLDER; or by "
    "published weights, --model in place of --workdir, and --images=FOLDER here too",
    "caption": "Train a model that writes captions: python -m vse_jax.main "
    "--config=configs/custom.py:FILE,multimodal_rnn --workdir=RUN",
    "align": "Train a model that ties words to regions: python -m vse_jax.main "
    "--config=configs/custom.py:FILE,dvsa --workdir=RUN",
    "look": "Train a model that shows where it looks: python -m vse_jax.main "
    "--config=configs/custom.py:FILE,cam --workdir=RUN",
}


class Served(NamedTuple):
    """What does a task.

    Attributes:
      folder: the workdir.
      model: of it.
      finder: of the index, for "search".
    """

    folder: Path
    model: Model
    finder: Finder | None = None


class Unserved(NamedTuple):
    """A task that no workdir can do.

    Attributes:
      reasons: what stands in the way, a line for each workdir.
      advice: what to train or make.
    """

    reasons: tuple[str, ...]
    advice: str


def served(
    folders: Sequence[Path],
    index: Path | None = None,
    kind: str = kinds.EXACT,
    images: Path | None = None,
) -> dict[str, Served | Unserved]:
    """Of each task of `ADVICE` what does it: the first workdir that can, tried once and warm.

    Args:
      folders: workdirs, or what else `vse_jax.load` takes.
      index: folder of the index; None: where `finder.default_folder` says.
      kind: of the index, as of `Finder`.
      images: the folder whose photos are searched, by a model that has no workdir.

    Raises:
      WorkdirError, CheckpointError, ConfigError: one of them is no workdir that can be loaded.
    """
    found: dict[str, Served | Unserved] = {
        task: Unserved((), advice) for task, advice in ADVICE.items()
    }
    for folder in folders:
        model = load(folder)
        for task, outcome in found.items():
            if isinstance(outcome, Served):
                continue
            try:
                found[task] = _tried(task, folder, model, index, kind, images)
            except (*USER_ERRORS, ValueError) as error:
                reasons = (*outcome.reasons, f"{folder}: {error}")
                found[task] = outcome._replace(reasons=reasons)
    return found


def _index_of(folder: Path, model: Model, images: Path | None) -> Path:
    """Where `search index` puts it: in a workdir, or by a model without one of `images` alone."""
    if images is None:
        return finder.default_folder(folder, "images")
    if not hub.is_remote(folder) and (own := finder.default_folder(folder, "images")).exists():
        return own
    return finder.cached_folder(model, "images", images.resolve())


def _tried(
    task: str, folder: Path, model: Model, index: Path | None, kind: str, images: Path | None
) -> Served:
    """What does a task, once it has done it: what is slow the first time is behind it.

    Raises:
      ValueError, of USER_ERRORS: it cannot.
    """
    if model.reads_features:
        raise DataError(
            "the model was trained on features of regions, not on photos, and only their maker "
            "can compute them"
        )
    example = _example(model.config.data.image_size)
    if task == "search":
        finder.about(model, "images")
        place = index or _index_of(folder, model, images)
        opened = Finder(model, place, kind)
        finder.check(model, opened.store, "images")
        by_words(opened, "a", 1)
        by_picture(opened, example, 1)
        return Served(folder, model, opened)
    if task == "caption":
        for width in widths(model):
            captions(model, example, width, 1)
    elif task == "align":
        alignment.check(model.config)
        _warm_align(model, example, _known_word(folder, model))
    else:
        look(model, example, "")
    return Served(folder, model)


def _warm_align(model: Model, picture: Pixels, word: str) -> None:
    """Aligns as many regions as photos mostly have; each power of two of them is a program."""
    align(model, picture, word)
    if model.looks_at_boxes:
        for count in (REGIONS - 1, REGIONS // 2 - 1):
            tops = np.arange(count) / (count + 1)
            bands = np.stack([tops, tops * 0, tops + 0.1, tops * 0 + 1], axis=1)
            model.align(picture, word, bands.clip(0, 1))


def _example(size: int) -> Pixels:
    """A picture with something in it, of which regions can be proposed."""
    rows, columns = np.mgrid[:size, :size] * 4 // size
    shades = np.stack([rows * 60, columns * 60, (rows * columns) % 3 * 90], axis=-1)
    return shades.astype(np.uint8)


def _known_word(folder: Path, model: Model) -> str:
    """A word that the model knows."""
    data = model.config.data
    words = tokenizer.load(folder / workdir.TOKENIZER, data.tokenizer, data.max_tokens)
    for word in sorted(words.words.get_vocab()):
        try:
            known_words(words, word)
        except DataError:
            continue
        return word
    raise DataError("the model knows no words")


class Photo(NamedTuple):
    """A photo that was found.

    Attributes:
      name: its file, below the folder that was indexed.
      score: as of `Hit`.
      picture: smaller than the photo.
    """

    name: str
    score: float
    picture: Image.Image


class Photos(NamedTuple):
    """What was found.

    Attributes:
      photos: the best first.
      left_out: names of those that are gone or broken since they were indexed.
      among: how many the index has.
      seconds: that it took.
    """

    photos: list[Photo]
    left_out: list[str]
    among: int
    seconds: float


def by_words(searched: Finder, sentence: str, k: int) -> Photos:
    """The k photos that are most similar to a sentence."""
    return _photos(searched, lambda: searched.by_texts([sentence], MOST), k)


def by_picture(searched: Finder, picture: Pixels, k: int) -> Photos:
    """The k photos that are most similar to a picture."""
    return _photos(searched, lambda: searched.by_images([picture], MOST), k)


def _photos(searched: Finder, search: Callable[[], list[list[Hit]]], k: int) -> Photos:
    """What `search` finds, which asks for MOST, so that one program serves every k."""
    begun = time.perf_counter()
    [hits] = search()
    with ThreadPoolExecutor() as threads:
        pictures = list(threads.map(lambda hit: thumbnail(hit.item.where), hits[:k]))
    photos, left_out = [], []
    for hit, picture in zip(hits, pictures, strict=False):
        if picture is None:
            left_out.append(hit.item.path)
        else:
            photos.append(Photo(hit.item.path, hit.score, picture))
    return Photos(photos, left_out, len(searched.store), time.perf_counter() - begun)


def thumbnail(path: Path) -> Image.Image | None:
    """A photo of the index, upright and small; None where it cannot be read any more."""
    try:
        found = path.stat()
        return _small(path, found.st_size, found.st_mtime_ns)
    except (OSError, DataError) as error:
        log.warning("%s is not shown: %s", path, error)
        return None


@functools.lru_cache(KEPT)
def _small(path: Path, size: int, changed: int) -> Image.Image:
    """A photo, upright and small, of a file of that size and time of change."""
    del size, changed  # they only tell whether it is the same file
    found = inputs.opened(path, at_least=THUMBNAIL)
    found.thumbnail((THUMBNAIL, THUMBNAIL))
    return found


def widths(model: Model) -> list[int]:
    """How many captions the search may keep, of a model that writes them."""
    return sorted({*WIDTHS, model.config.evaluate.beams})


def captions(model: Model, picture: Pixels, beams: int, n_best: int) -> list[Caption]:
    """The best captions of a picture, at most `beams`; raises as `Model.caption`."""
    # Asked for all, so that one program serves every n_best.
    [found] = model.caption([picture], beams=beams, n_best=beams)
    return found[:n_best]


class Drawn(NamedTuple):
    """What is known of a picture, and drawn on it.

    Attributes:
      found: in numbers.
      picture: as `python -m vse_jax.align --output` draws it.
    """

    found: Any
    picture: Image.Image


def align(model: Model, picture: Pixels, sentence: str) -> Drawn:
    """The words of a sentence and their regions, an `Alignment`; raises as `Model.align`."""
    whole = Image.fromarray(picture)
    small = whole.copy()
    if model.looks_at_boxes:
        small.thumbnail((PROPOSED_IN, PROPOSED_IN))
    found: Alignment = model.align(np.asarray(small), sentence)
    return Drawn(found, alignment_picture.overlay(whole, found))


def look(model: Model, picture: Pixels, sentence: str) -> Drawn:
    """Where a model looks, a `Look`; its own caption where no sentence is given.

    Raises:
      As `Model.look`.
    """
    found: Look = model.look(picture, sentence or None)
    panels = look_picture.panels(found)
    return Drawn(found, look_picture.side_by_side(Image.fromarray(picture), panels))


def reasons(tasks: Mapping[str, Served | Unserved]) -> list[str]:
    """Of the tasks that are not served, what stands in the way and what to do, a line each."""
    left = [outcome for outcome in tasks.values() if isinstance(outcome, Unserved)]
    return [line for outcome in left for line in (*outcome.reasons, outcome.advice)]
