"""CUB-200-2011: 11,788 photos of 200 kinds of birds, each with a box and ten captions.

5,994 photos to train and 5,794 to test are official. There is no official validation split: of the
training photos of each class a tenth, at least one of two or more, is validation, the same for
every run: those that come first in an order that the photos' names alone draw, by `SEED`.

Source: Wah, Branson, Welinder, Perona and Belongie, "The Caltech-UCSD Birds-200-2011 Dataset",
CNS-TR-2011-001, 2011; the captions: Reed et al., CVPR 2016, see `text_c10`.
"""

import collections
import dataclasses
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

from vse_jax.data import photo_sets, sift, text_c10, tfds_prepared, token_files
from vse_jax.data.captions_files import Record, boxes_of
from vse_jax.data.photo_sets import PhotoSetConfig, Tree
from vse_jax.data.seeded_order import place
from vse_jax.data.split import DataError, Dataset

HELP = (
    "Put CUB-200-2011 into the folder that data.manual_dir names, in one of two ways. As released: "
    "CUB_200_2011/ (images/, images.txt, image_class_labels.txt, classes.txt, "
    "train_test_split.txt, bounding_boxes.txt) from "
    'https://www.vision.caltech.edu/datasets/cub_200_2011/. Or by TFDS, once: python -c "import '
    "tensorflow_datasets as tfds; tfds.builder('caltech_birds2011', "
    'data_dir=FOLDER).download_and_prepare()", and data.manual_dir is that FOLDER. Beside it '
    "text_c10/ with the captions, or cvpr2016_cub/text_c10/, from cvpr2016_cub.tar.gz that "
    "https://github.com/reedscot/cvpr2016 links to. Cite Wah et al., CNS-TR-2011-001, and Reed et "
    "al., CVPR 2016."
)
FOLDER = "CUB_200_2011"
ARCHIVE = "cvpr2016_cub"
TFDS = tfds_prepared.Layout(
    folder="caltech_birds2011",
    splits={"train": "train", "test": "test"},
    sources={"train": ("train",), "validation": ("train",), "test": ("test",)},
    parts=2,
    label="label",
    box="bbox",
)
# Of the order whose first photos are validation: the same for every run, so that results compare.
SEED = 0
# A box may end so many pixels outside its photo, by rounding.
ROUNDING = 1.0
CITATION = """\
@techreport{wah2011caltech,
  author = {Wah, Catherine and Branson, Steve and Welinder, Peter and Perona, Pietro and Belongie,
    Serge},
  title = {The {Caltech-UCSD Birds-200-2011} Dataset},
  institution = {California Institute of Technology},
  number = {CNS-TR-2011-001},
  year = {2011},
}
@inproceedings{reed2016learning,
  author = {Reed, Scott and Akata, Zeynep and Lee, Honglak and Schiele, Bernt},
  title = {Learning Deep Representations of Fine-Grained Visual Descriptions},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  year = {2016},
}"""

# Of a file of CUB, by the id that each line begins with: the rest of it, and "file:line".
Table = Mapping[int, tuple[list[str], str]]


class Cub(photo_sets.PhotoSet):
    """TFDS builder of CUB-200-2011 with captions, classes and boxes."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = HELP
    DESCRIPTION = str(__doc__)
    CITATION = CITATION
    TFDS = TFDS
    LABELS = True
    BOXES = True

    @classmethod
    def has_files(cls, root: pathlib.Path) -> bool:
        """Whether the folder as released is there."""
        return _base(root) is not None

    @classmethod
    def read_tree(cls, config: PhotoSetConfig, root: pathlib.Path) -> Tree:
        """Photos, classes and splits as released, with the captions; boxes come later."""
        del config  # the same for every one
        photo_sets.check_root(root, HELP)
        base = _base(root)
        if base is None:
            raise DataError(
                f"{root}: neither {FOLDER}/images.txt nor {TFDS.folder}/* of TFDS. {HELP}"
            )
        folder = base / "images"
        photos = {f"{path.parent.name}/{path.name}" for path in folder.glob("*/*.jpg")}
        if not photos:
            raise DataError(f"{folder}: no photos (CLASS/*.jpg). {HELP}")
        classes = _classes(base)
        listed = _listed(base, len(classes))
        captions = text_c10.read(text_c10.find((base.parent, base), ARCHIVE, HELP))
        records, left_out = text_c10.joined(listed, captions)
        if loose := sorted(photos.difference(record.image for record in listed)):
            left_out[photo_sets.NO_SPLIT] = loose
        return Tree(folder, validated(records), left_out, classes=classes)

    @classmethod
    def tree_of_prepared(
        cls, config: PhotoSetConfig, root: pathlib.Path, prepared: tfds_prepared.Prepared
    ) -> Tree:
        """What TFDS has prepared, with the captions; a class is called as its photos' folder."""
        del config  # the same for every one
        captions = text_c10.read(text_c10.find((root,), ARCHIVE, HELP))
        records, left_out = text_c10.joined(prepared.listed, captions)
        classes = [f"{int(number) + 1:03d}" for number in prepared.classes]
        for record in records:
            if record.label is not None:
                classes[int(record.label)] = record.image.split("/")[0]
        return Tree(pathlib.Path(), validated(records), left_out, classes=classes)

    @classmethod
    def sifted(
        cls, config: PhotoSetConfig, root: pathlib.Path, data_dir: pathlib.Path
    ) -> sift.Sifted:
        """As that of every set of photos, with the boxes of the photos that are left."""
        sifted = super().sifted(config, root, data_dir)
        base = _base(root)
        if base is None:
            return sifted
        boxes = _pixel_boxes(base)
        records = [
            dataclasses.replace(
                record, boxes=_shares(*boxes[record.image], sifted.paths[record.image])
            )
            for record in sifted.records
        ]
        return dataclasses.replace(sifted, records=records)


def load(
    manual_dir: str | os.PathLike[str],
    data_dir: str | os.PathLike[str],
    *,
    bad_share: float = 0.01,
    non_rgb: str = "skip",
) -> Dataset:
    """CUB-200-2011, prepared as array_record in `data_dir` once; see `photo_sets.load`.

    Args:
      manual_dir: the parent of `CUB_200_2011`, that folder itself or `data_dir` of TFDS (see
        `HELP`); with both, files count.
      data_dir: folder of prepared data, made where there is none.
      bad_share: largest share of the photos that may be unfit.
      non_rgb: "skip" photos that are not stored as RGB, or "convert" them.

    Raises:
      DataError: as `photo_sets.load`.
    """
    config = PhotoSetConfig(
        name="cub", manual_dir=os.fspath(manual_dir), bad_share=bad_share, non_rgb=non_rgb
    )
    return photo_sets.load(Cub, config, data_dir)


def validated(records: Sequence[Record]) -> list[Record]:
    """The records with a part of the training ones as validation, as this module says."""
    of_class = collections.defaultdict(list)
    for record in records:
        if record.split == "train":
            of_class[record.label].append(record.image)
    held_out: set[str] = set()
    for names in of_class.values():
        count = max(1, len(names) // 10) if len(names) > 1 else 0
        held_out.update(sorted(names, key=lambda name: place(name, SEED))[:count])
    return [
        dataclasses.replace(record, split="validation") if record.image in held_out else record
        for record in records
    ]


def _base(root: pathlib.Path) -> pathlib.Path | None:
    """The folder as released: in this one, or this one."""
    return next((path for path in (root / FOLDER, root) if (path / "images.txt").is_file()), None)


def _listed(base: pathlib.Path, classes: int) -> list[Record]:
    """A record of every photo with class and split, in the order of images.txt."""
    images = _table(base / "images.txt", 1, "<id> <class folder>/<name>.jpg")
    labels = _table(base / "image_class_labels.txt", 1, "<id> <class id>")
    splits = _table(base / "train_test_split.txt", 1, "<id> <1 to train, 0 to test>")
    _check_ids(base, images, {"image_class_labels.txt": labels, "train_test_split.txt": splits})
    seen: dict[str, str] = {}
    records = []
    for number, ((name,), where) in images.items():
        if name.count("/") != 1 or not name.lower().endswith(".jpg"):
            raise DataError(f"{where}: expected <class folder>/<name>.jpg, found {name[:80]!r}")
        if seen.setdefault(name, where) != where:
            raise DataError(f"{where}: {name} a second time, first {seen[name]}")
        (label,), label_where = labels[number]
        if not label.isdecimal() or not 1 <= int(label) <= classes:
            raise DataError(
                f"{label_where}: class {label} of photo {number}; classes.txt has {classes}, "
                f"expected 1 to {classes}"
            )
        (training,), split_where = splits[number]
        if training not in ("0", "1"):
            raise DataError(f"{split_where}: {training!r}; expected 1 to train or 0 to test")
        split = "train" if training == "1" else "test"
        records.append(Record(name, [], where, split, int(label) - 1))
    return records


def _classes(base: pathlib.Path) -> tuple[str, ...]:
    """Names of the classes in the order of their ids, which count from 1."""
    table = _table(base / "classes.txt", 1, "<id> <name>")
    names: dict[str, str] = {}
    for expected, (number, ((name,), where)) in enumerate(sorted(table.items()), 1):
        if number != expected:
            raise DataError(f"{where}: class {number}, but none is {expected}; ids are 1, 2, ...")
        if names.setdefault(name, where) != where:
            raise DataError(f"{where}: class {name} a second time, first {names[name]}")
    return tuple(names)


def _pixel_boxes(base: pathlib.Path) -> dict[str, tuple[list[str], str]]:
    """x, y, width and height in pixels by photo, as the file has them, and "file:line"."""
    images = _table(base / "images.txt", 1, "<id> <class folder>/<name>.jpg")
    boxes = _table(base / "bounding_boxes.txt", 4, "<id> <x> <y> <width> <height>")
    _check_ids(base, images, {"bounding_boxes.txt": boxes})
    return {name: boxes[number] for number, ((name,), _) in images.items()}


def _shares(box: Sequence[str], where: str, path: str) -> np.ndarray:
    """The box [1, 4] as (y0, x0, y1, x1) in [0, 1] of the photo, of which only the head is read."""
    try:
        x, y, width, height = map(float, box)
    except ValueError:
        x = y = width = height = math.nan
    if not (math.isfinite(x + y) and 0 < width < math.inf and 0 < height < math.inf):
        raise DataError(
            f"{where}: box {' '.join(box)} is not x, y, width and height in pixels, the last two "
            "above 0"
        )
    with Image.open(path) as photo:
        across, down = photo.size
    over = max(-x, -y, x + width - across, y + height - down)
    if over > ROUNDING:
        raise DataError(
            f"{where}: box {' '.join(box)} (x, y, width, height) ends {over:g} pixels outside its "
            f"photo of {across} x {down}, {path}; are these the photos as released?"
        )
    sides = np.array([y / down, x / across, (y + height) / down, (x + width) / across])
    shares = boxes_of([np.clip(sides, 0.0, 1.0).tolist()], where)
    assert shares is not None
    return shares


def _table(path: pathlib.Path, columns: int, expected: str) -> Table:
    """The lines of a file by the id that they begin with.

    Raises:
      DataError: no such file, or a line that is malformed or has an id of another.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing. {HELP}")
    table: dict[int, tuple[list[str], str]] = {}
    for line, text in token_files.lines(path):
        where = f"{path}:{line}"
        number, *rest = text.split()
        if not number.isdecimal() or len(rest) != columns:
            raise DataError(f"{where}: expected {expected}, found {text[:80]!r}")
        if int(number) in table:
            raise DataError(f"{where}: id {number} a second time, first {table[int(number)][1]}")
        table[int(number)] = rest, where
    return table


def _check_ids(base: pathlib.Path, images: Table, others: Mapping[str, Table]) -> None:
    """Raises DataError at the first photo that images.txt or another file lacks."""
    for name, other in others.items():
        for number in _first(images.keys() - other.keys()):
            raise DataError(f"{images[number][1]}: photo {number} is not in {base / name}")
        for number in _first(other.keys() - images.keys()):
            raise DataError(f"{other[number][1]}: photo {number} is not in {base / 'images.txt'}")


def _first(numbers: Iterable[int]) -> list[int]:
    return sorted(numbers)[:1]
