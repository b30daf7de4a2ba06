"""A folder in the layout of SCAN and VSRN: features and captions of each split, read in place.

`{train,dev,test}_ims.npy` hold float32 [n, regions, width], `{train,dev,test}_caps.txt` one caption
a line in the order of the pictures; source: the files published with Lee et al., SCAN, ECCV 2018.
Where they are, `{split}_ids.txt` names the pictures, and of our own extraction come
`{split}_boxes.npy` [n, regions, 4] and `{split}_counts.npy` [n], how many regions are real.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vse_jax.data import feature_files, sift
from vse_jax.data.captions_files import read_text
from vse_jax.data.regions import Regions
from vse_jax.data.split import DataError, Dataset, Split

# Of each of our splits the names it may have there; the first that is there is taken.
NAMES = {"train": ("train",), "validation": ("dev",), "test": ("testall", "test")}
# Captions of a picture in the published files.
CAPTIONS = 5


class Found(NamedTuple):
    """One split as its files have it.

    Attributes:
      regions: of n pictures.
      names: n, for people.
      captions: m, as in the file.
      owner: int64 [m], the picture of each caption, ascending.
      digest: SHA-256 (hex) of it all.
    """

    regions: Regions
    names: list[str]
    captions: list[str]
    owner: np.ndarray
    digest: str


def load(folder: str | os.PathLike[str], data_dir: str | os.PathLike[str]) -> Dataset:
    """The data set of a folder in this layout, its features memory-mapped.

    A picture has five captions where there are five times as many captions as rows; where there are
    as many, each row belongs to one caption, and rows that are the same belong to one picture: as
    `_ids.txt` names them, or five at a time. `testall`, COCO's 5,000, is the test split if it is
    there.

    Args:
      folder: with the files.
      data_dir: remembers what was looked through, which happens once for each file.

    Raises:
      DataError: files that are missing, damaged, not finite or do not go together.
    """
    folder = Path(os.path.abspath(folder))
    present = {
        name: stem
        for name, stems in NAMES.items()
        if (stem := next((s for s in stems if _ims(folder, s).is_file()), None)) is not None
    }
    for name in ("train", "validation"):
        if name not in present:
            raise DataError(
                f"{_ims(folder, NAMES[name][0])} does not exist; a folder of precomputed features "
                "has {train,dev,test}_ims.npy and {train,dev,test}_caps.txt"
            )
    found = {name: read(folder, stem, data_dir) for name, stem in present.items()}
    widths = {name: part.regions.width for name, part in found.items()}
    for name, width in widths.items():
        if width != widths["train"]:
            raise DataError(
                f"{_ims(folder, present[name])} has features of width {width}, "
                f"{_ims(folder, 'train')} of {widths['train']}; they must be the same"
            )
    skipped: dict[str, list[str]] = {}
    splits = {
        name: _split(part, f"{present[name]}_caps.txt", skipped) for name, part in found.items()
    }
    for name, split in splits.items():
        if not split.images:
            raise DataError(f"{folder / f'{present[name]}_caps.txt'}: no caption in it")
    sift.log_skipped(folder.name, skipped)
    fingerprint = hashlib.sha256(str([(n, p.digest) for n, p in found.items()]).encode())
    return Dataset(
        name=folder.name,
        splits=splits,
        fingerprint=fingerprint.hexdigest(),
        protocol=f"{folder.name}_{len(list(splits.values())[-1].images)}",
        skipped=skipped,
    )


def read(folder: Path, stem: str, data_dir: str | os.PathLike[str]) -> Found:
    """The split whose files begin with `stem`; raises DataError as `load`."""
    path, caps = _ims(folder, stem), folder / f"{stem}_caps.txt"
    array = feature_files.opened(path)
    captions = _lines(caps)
    rows = len(array)
    if len(captions) not in (rows, CAPTIONS * rows):
        raise DataError(
            f"{caps} has {len(captions)} captions, {path} {rows} rows; expected as many rows as "
            f"captions, or {CAPTIONS} captions a row"
        )
    ids = folder / f"{stem}_ids.txt"
    names = _lines(ids) if ids.is_file() else None

    def name(row: int) -> str:
        return names[row] if names is not None and len(names) == rows else f"{stem}/{row}"

    finding = feature_files.inspected(path, array, data_dir, name)
    row, owner = _pictures(rows, len(captions), finding.repeats, names, ids)
    own = _names(names, ids, row, owner, rows) or [f"{stem}/{number}" for number in range(len(row))]
    regions = _regions(folder, stem, array).chosen(row)
    digest = hashlib.sha256(str((finding.digest, own, captions, owner.tolist())).encode())
    digest.update(regions.count.tobytes())
    if regions.boxes is not None:
        digest.update(np.ascontiguousarray(regions.boxes).data)
    return Found(regions, own, captions, owner, digest.hexdigest())


def named(
    folder: Path, data_dir: str | os.PathLike[str]
) -> Iterator[tuple[str, np.ndarray, np.ndarray | None, str]]:
    """Name, features [r, f], boxes and place of every picture of the folder; no caption is read.

    Raises:
      DataError: a file is damaged or not finite, or `_ids.txt` does not name its rows.
    """
    stems = [path.name.removesuffix("_ims.npy") for path in sorted(folder.glob("*_ims.npy"))]
    for stem in stems:
        path, ids = _ims(folder, stem), folder / f"{stem}_ids.txt"
        array = feature_files.opened(path)
        if not ids.is_file():
            raise DataError(
                f"{ids} does not exist; without the names of its pictures {path} cannot be joined "
                "with a caption file"
            )
        names = _lines(ids)
        if len(names) != len(array):
            raise DataError(f"{ids} has {len(names)} names, {path} {len(array)} rows")
        finding = feature_files.inspected(path, array, data_dir, names.__getitem__)
        regions = _regions(folder, stem, array)
        for row, name in enumerate(names):
            if row and name == names[row - 1] and finding.repeats[row]:
                continue
            rows = slice(regions.start[row], regions.start[row] + regions.count[row])
            boxes = None if regions.boxes is None else regions.boxes[rows]
            yield name, regions.rows[rows], boxes, f"{path}: row {row}"


def _ims(folder: Path, stem: str) -> Path:
    return folder / f"{stem}_ims.npy"


def _lines(path: Path) -> list[str]:
    """The lines of a file; only a line feed ends one, as in the code that reads these files."""
    text = read_text(path)
    return [line.strip() for line in text.removesuffix("\n").split("\n")] if text else []


def _pictures(
    rows: int, captions: int, repeats: np.ndarray, names: list[str] | None, ids: Path
) -> tuple[np.ndarray, np.ndarray]:
    """The row [n] of each picture, and the picture [m] of each caption."""
    if captions != rows:
        return np.arange(rows), np.repeat(np.arange(rows), captions // rows)
    first = np.ones(rows, bool)
    if names is not None and len(names) == rows:
        first[1:] = [one != other for one, other in zip(names[1:], names, strict=False)]
    if first.all() and rows % CAPTIONS == 0 and repeats.reshape(-1, CAPTIONS)[:, 1:].all():
        first = np.arange(rows) % CAPTIONS == 0
    wrong = np.flatnonzero(~first & ~repeats)
    if len(wrong):
        raise DataError(
            f"{ids}:{wrong[0] + 1}: the same name as on the line before, but row {wrong[0]} of the "
            "features is another"
        )
    return np.flatnonzero(first), np.cumsum(first) - 1


def _names(
    names: list[str] | None, ids: Path, row: np.ndarray, owner: np.ndarray, rows: int
) -> list[str] | None:
    """The n names of the pictures, of a file that names each picture, row or caption."""
    if names is None:
        return None
    first = np.searchsorted(owner, np.arange(len(row)))
    numbers = {len(owner): first, rows: row, len(row): np.arange(len(row))}.get(len(names))
    if numbers is None:
        raise DataError(
            f"{ids} has {len(names)} names, for {len(row)} pictures in {rows} rows; expected one a "
            "picture, a row or a caption"
        )
    own = [names[number] for number in numbers]
    seen: dict[str, int] = {}
    for number, name in zip(numbers, own, strict=True):
        if seen.setdefault(name, number) != number:
            raise DataError(
                f"{ids}:{number + 1}: {name} a second time, first on line {seen[name] + 1}; "
                "the rows of one picture must follow each other and be the same"
            )
    return own


def _regions(folder: Path, stem: str, array: np.ndarray) -> Regions:
    """The regions of every row, with counts and boxes where there are files of them."""
    n, r = len(array), array.shape[1] if array.ndim == 3 else 1
    boxes = count = None
    path = folder / f"{stem}_counts.npy"
    if path.is_file():
        count = feature_files.opened_array(path)
        if count.shape != (n,) or count.dtype.kind not in "iu":
            raise DataError(
                f"{path}: {count.dtype}{list(count.shape)}; expected integers [{n}] from 1 to {r}, "
                "how many regions of each row are real"
            )
        wrong = np.flatnonzero((count < 1) | (count > r))
        if len(wrong):
            raise DataError(
                f"{path}: row {wrong[0]} is {count[wrong[0]]}; expected how many of its {r} "
                f"regions are real, from 1 to {r}"
            )
    path = folder / f"{stem}_boxes.npy"
    if path.is_file():
        boxes = feature_files.opened_array(path)
        if boxes.shape not in ((n, r, 4), (n, 4) if r == 1 else None):
            raise DataError(f"{path}: {list(boxes.shape)}; expected [{n}, {r}, 4]")
        real = np.arange(r) < (np.full(n, r) if count is None else count)[:, None]
        _check_boxes(path, boxes.reshape(n, r, 4), real)
    regions = Regions.of(array, boxes)
    if count is None:
        return regions
    return Regions(regions.rows, regions.start, np.asarray(count, np.int64), regions.boxes)


def _check_boxes(path: Path, boxes: np.ndarray, real: np.ndarray) -> None:
    """Raises DataError at the first real box that is none."""
    low, high = boxes[..., :2], boxes[..., 2:]
    # NaN compares as False.
    right = ((low >= 0) & (low < high) & (high <= 1)).all(axis=-1) | ~real
    if not right.all():
        row, region = np.argwhere(~right)[0]
        raise DataError(
            f"{path}: row {row}, region {region}: box {boxes[row, region].tolist()} is not "
            "(y0, x0, y1, x1) with 0 <= y0 < y1 <= 1 and 0 <= x0 < x1 <= 1"
        )


def _split(found: Found, caps: str, skipped: dict[str, list[str]]) -> Split:
    """The split without empty captions and pictures that have no other, which are counted."""
    kept = np.array([bool(caption) for caption in found.captions], bool)
    for number in np.flatnonzero(~kept):
        picture = found.owner[number]
        name = f"{found.names[picture]}#{number - np.searchsorted(found.owner, picture)}"
        where = f"{caps}:{number + 1}"
        skipped.setdefault(sift.EMPTY_CAPTION, []).append(sift.placed(name, where))
    pictures, owner = np.unique(found.owner[kept], return_inverse=True)
    for picture in np.setdiff1d(np.arange(len(found.names)), pictures):
        where = f"{caps}:{np.searchsorted(found.owner, picture) + 1}"
        skipped.setdefault(sift.NO_CAPTIONS, []).append(sift.placed(found.names[picture], where))
    return Split(
        images=[found.names[picture] for picture in pictures],
        captions=[caption for caption in found.captions if caption],
        caption_image=owner.astype(np.int32),
        read=None,
        features=found.regions.chosen(pictures),
    )
