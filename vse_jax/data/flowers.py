"""Oxford Flowers-102: 8,189 photos of 102 kinds of flowers with ten captions each.

1,020 photos to train, 1,020 to validate and 6,149 to test are official. Source: Nilsback and
Zisserman, "Automated Flower Classification over a Large Number of Classes", ICVGIP 2008; the
captions: Reed et al., CVPR 2016, see `text_c10`.
"""

import collections
import os
import pathlib

import numpy as np
from scipy.io import loadmat

from vse_jax.data import photo_sets, text_c10, tfds_prepared
from vse_jax.data.captions_files import Record
from vse_jax.data.photo_sets import PhotoSetConfig, Tree
from vse_jax.data.split import DataError, Dataset

HELP = (
    "Put Oxford Flowers-102 into the folder that data.manual_dir names, in one of two ways. As "
    "released: jpg/ of 102flowers.tgz, imagelabels.mat and setid.mat, there or in flowers-102/, "
    'from https://www.robots.ox.ac.uk/~vgg/data/flowers/102/. Or by TFDS, once: python -c "import '
    "tensorflow_datasets as tfds; tfds.builder('oxford_flowers102', "
    'data_dir=FOLDER).download_and_prepare()", and data.manual_dir is that FOLDER. Beside it '
    "text_c10/ with the captions, or cvpr2016_flowers/text_c10/, from cvpr2016_flowers.tar.gz that "
    "https://github.com/reedscot/cvpr2016 links to. Cite Nilsback and Zisserman, ICVGIP 2008, and "
    "Reed et al., CVPR 2016."
)
# The second is torchvision's.
FOLDERS = (".", "flowers-102")
ARCHIVE = "cvpr2016_flowers"
LABELS, SPLITS = "imagelabels.mat", "setid.mat"
# The names of our splits in setid.mat.
SETS = {"train": "trnid", "validation": "valid", "test": "tstid"}
CLASSES = 102
TFDS = tfds_prepared.Layout(
    folder="oxford_flowers102",
    splits={name: name for name in SETS},
    sources={name: (name,) for name in SETS},
    name="file_name",
    label="label",
)
CITATION = """\
@inproceedings{nilsback2008automated,
  author = {Nilsback, Maria-Elena and Zisserman, Andrew},
  title = {Automated Flower Classification over a Large Number of Classes},
  booktitle = {Indian Conference on Computer Vision, Graphics and Image Processing},
  year = {2008},
}
@inproceedings{reed2016learning,
  author = {Reed, Scott and Akata, Zeynep and Lee, Honglak and Schiele, Bernt},
  title = {Learning Deep Representations of Fine-Grained Visual Descriptions},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  year = {2016},
}"""


class Flowers(photo_sets.PhotoSet):
    """TFDS builder of Oxford Flowers-102 with captions and classes."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = HELP
    DESCRIPTION = str(__doc__)
    CITATION = CITATION
    TFDS = TFDS
    LABELS = True

    @classmethod
    def has_files(cls, root: pathlib.Path) -> bool:
        """Whether the files as released are there."""
        return _base(root) is not None

    @classmethod
    def read_tree(cls, config: PhotoSetConfig, root: pathlib.Path) -> Tree:
        """Photos, classes and splits as released, with the captions."""
        del config  # the same for every one
        photo_sets.check_root(root, HELP)
        base = _base(root)
        if base is None:
            raise DataError(f"{root}: neither {LABELS} nor {TFDS.folder}/* of TFDS. {HELP}")
        folder, photos = photo_sets.find_photos(base, ("jpg",), HELP)
        listed = _listed(base)
        captions = text_c10.read(text_c10.find((root, base), ARCHIVE, HELP))
        records, left_out = text_c10.joined(listed, captions)
        if loose := sorted(photos.difference(record.image for record in listed)):
            left_out[photo_sets.NO_SPLIT] = loose
        return Tree(folder, records, left_out, classes=class_names())

    @classmethod
    def tree_of_prepared(
        cls, config: PhotoSetConfig, root: pathlib.Path, prepared: tfds_prepared.Prepared
    ) -> Tree:
        """What TFDS has prepared, with the captions."""
        del config  # the same for every one
        captions = text_c10.read(text_c10.find((root,), ARCHIVE, HELP))
        records, left_out = text_c10.joined(prepared.listed, captions)
        return Tree(pathlib.Path(), records, left_out, classes=prepared.classes)


def load(
    manual_dir: str | os.PathLike[str],
    data_dir: str | os.PathLike[str],
    *,
    bad_share: float = 0.01,
    non_rgb: str = "skip",
) -> Dataset:
    """Oxford Flowers-102, prepared as array_record in `data_dir` once; see `photo_sets.load`.

    Args:
      manual_dir: folder of the files or `data_dir` of TFDS (see `HELP`); with both, files count.
      data_dir: folder of prepared data, made where there is none.
      bad_share: largest share of the photos that may be unfit.
      non_rgb: "skip" photos that are not stored as RGB, or "convert" them.

    Raises:
      DataError: as `photo_sets.load`.
    """
    config = PhotoSetConfig(
        name="flowers", manual_dir=os.fspath(manual_dir), bad_share=bad_share, non_rgb=non_rgb
    )
    return photo_sets.load(Flowers, config, data_dir)


def class_names() -> tuple[str, ...]:
    """The 102 names by number, as TFDS has them; "class_00001" and so on where it has none.

    The files as released have no names.
    """
    try:
        from tensorflow_datasets.datasets.oxford_flowers102 import (
            oxford_flowers102_dataset_builder as module,
        )

        names = tuple(module._NAMES)
    except (ImportError, AttributeError):
        names = ()
    if len(names) == CLASSES:
        return names
    return tuple(f"class_{number:05d}" for number in range(1, CLASSES + 1))


def _base(root: pathlib.Path) -> pathlib.Path | None:
    return next((root / name for name in FOLDERS if (root / name / LABELS).is_file()), None)


def _listed(base: pathlib.Path) -> list[Record]:
    """A record of every photo that has a split, in the order of setid.mat."""
    labels = _numbers(base / LABELS, "labels")
    for number in np.flatnonzero((labels < 1) | (labels > CLASSES))[:1]:
        raise DataError(
            f"{base / LABELS}: class {labels[number]} of {_photo(int(number) + 1)}; expected 1 to "
            f"{CLASSES}"
        )
    records = []
    split_of: dict[int, str] = collections.defaultdict(str)
    for split, name in SETS.items():
        where = f"{base / SPLITS}: {name}"
        for number in _numbers(base / SPLITS, name).tolist():
            if not 1 <= number <= len(labels):
                raise DataError(
                    f"{where} has photo {number}, but {LABELS} has classes of 1 to {len(labels)}"
                )
            if split_of[number]:
                raise DataError(f"{where} has photo {number}, which {split_of[number]} has too")
            split_of[number] = name
            label = int(labels[number - 1]) - 1
            records.append(Record(_photo(number), [], where, split, label))
    return records


def _photo(number: int) -> str:
    return f"image_{number:05d}.jpg"


def _numbers(path: pathlib.Path, name: str) -> np.ndarray:
    """The whole numbers int64 [n] that a file of MATLAB's has under a name.

    Raises:
      DataError: no such file, not one of MATLAB's, or nothing like it in there.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing. {HELP}")
    try:
        content = loadmat(os.fspath(path))
    except Exception as error:  # whatever SciPy raises of a damaged file
        raise DataError(f"{path} is no file of MATLAB's ({error}); get it again") from error
    if name not in content:
        found = ", ".join(key for key in content if not key.startswith("__")) or "nothing"
        raise DataError(f"{path}: no {name} in it, but {found}; is it the file as released?")
    values = np.asarray(content[name]).ravel()
    if values.dtype.kind not in "iuf" or not np.array_equal(values, np.floor(values)):
        raise DataError(f"{path}: {name} are not whole numbers but {values.dtype}")
    return values.astype(np.int64)
