"""MS-COCO: 123,287 photos with five captions each, or a few more, in Karpathy's splits.

They come from photos and Karpathy's file, or from TFDS' own `coco_captions`. Source: Lin et al.,
"Microsoft COCO: Common Objects in Context", ECCV 2014; Chen et al., "Microsoft COCO Captions: Data
Collection and Evaluation Server", arXiv 1504.00325; the splits, 113,287 photos to train, 5,000 to
validate and 5,000 to test: Karpathy and Fei-Fei, "Deep Visual-Semantic Alignments for Generating
Image Descriptions", CVPR 2015.
"""

import dataclasses
import os
import pathlib
from typing import ClassVar

from vse_jax.data import captions_files, photo_sets, tfds_prepared
from vse_jax.data.photo_sets import PhotoSetConfig, Tree
from vse_jax.data.split import DataError, Dataset

HELP = (
    "Put COCO into the folder that data.manual_dir names, in one of two ways. Photos: "
    "train2014/*.jpg and val2014/*.jpg, there or in images/, from "
    "https://cocodataset.org/#download, and dataset_coco.json from "
    "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip. Or by TFDS, once: "
    "python -c \"import tensorflow_datasets as tfds; tfds.builder('coco_captions', "
    'data_dir=FOLDER).download_and_prepare()", and data.manual_dir is that FOLDER. Cite Lin et '
    "al., ECCV 2014, and Chen et al., arXiv 1504.00325."
)
PHOTO_FOLDERS = (".", "images")
YEARS = ("train2014", "val2014")
# TFDS' own splits are Karpathy's, "restval" apart.
TFDS = tfds_prepared.Layout(
    folder="coco_captions/2014",
    splits={"train": "train", "restval": "restval", "val": "validation", "test": "test"},
    sources={"train": ("train", "restval"), "validation": ("val",), "test": ("test",)},
    captions="captions/text",
)
KARPATHY_FILES = (
    "dataset_coco.json",
    "caption_datasets/dataset_coco.json",
    "annotations/dataset_coco.json",
)
CITATION = """\
@inproceedings{lin2014microsoft,
  author = {Lin, Tsung-Yi and Maire, Michael and Belongie, Serge and Hays, James and Perona, Pietro
    and Ramanan, Deva and Doll{\\'a}r, Piotr and Zitnick, C. Lawrence},
  title = {Microsoft {COCO}: Common Objects in Context},
  booktitle = {European Conference on Computer Vision},
  year = {2014},
}
@article{chen2015microsoft,
  author = {Chen, Xinlei and Fang, Hao and Lin, Tsung-Yi and Vedantam, Ramakrishna and Gupta,
    Saurabh and Doll{\\'a}r, Piotr and Zitnick, C. Lawrence},
  title = {Microsoft {COCO} Captions: Data Collection and Evaluation Server},
  journal = {arXiv preprint arXiv:1504.00325},
  year = {2015},
}"""


@dataclasses.dataclass
class CocoConfig(PhotoSetConfig):
    """As `PhotoSetConfig`, and what trains.

    Attributes:
      restval: whether the photos that Karpathy calls "restval" are training photos.
    """

    restval: bool = True


# TFDS has a builder `coco` of its own in its register of names.
class Coco(photo_sets.PhotoSet, skip_registration=True):  # type: ignore[call-arg]
    """TFDS builder of COCO in Karpathy's splits."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = HELP
    DESCRIPTION = str(__doc__)
    CITATION = CITATION
    TFDS = TFDS
    BUILDER_CONFIGS: ClassVar[list[PhotoSetConfig]] = [
        CocoConfig(name="skip"),
        CocoConfig(name="convert", non_rgb="convert"),
    ]

    @classmethod
    def read_tree(cls, config: CocoConfig, root: pathlib.Path) -> Tree:
        """Photos with the captions and splits of Karpathy's file."""
        path = _karpathy_file(root)
        folder, photos = _photos(root)
        tree = photo_sets.tree_of_karpathy(folder, photos, path)
        return tree._replace(listed=captions_files.as_trained(tree.listed, config.restval))

    @classmethod
    def has_files(cls, root: pathlib.Path) -> bool:
        """Whether Karpathy's file is there."""
        return photo_sets.first_file(root, KARPATHY_FILES) is not None

    @classmethod
    def tree_of_prepared(
        cls, config: CocoConfig, root: pathlib.Path, prepared: tfds_prepared.Prepared
    ) -> Tree:
        """What TFDS has prepared, as it is trained."""
        del root  # the captions are in the records
        return Tree(pathlib.Path(), captions_files.as_trained(prepared.listed, config.restval))


def load(
    manual_dir: str | os.PathLike[str],
    data_dir: str | os.PathLike[str],
    *,
    restval: bool = True,
    bad_share: float = 0.01,
    non_rgb: str = "skip",
) -> Dataset:
    """COCO in Karpathy's splits, prepared as array_record in `data_dir` once.

    See `photo_sets.load`. The five folds of `coco_1k_5fold` are taken in the order of Karpathy's
    file; what TFDS has prepared is in TFDS' order, so that its folds are other ones.

    Args:
      manual_dir: folder of the files or `data_dir` of TFDS (see `HELP`); with both, files count.
      data_dir: folder of prepared data, made where there is none.
      restval: whether the photos that Karpathy calls "restval" are training photos.
      bad_share: largest share of the photos that may be unfit.
      non_rgb: "skip" photos that are not stored as RGB, or "convert" them.

    Raises:
      DataError: as `photo_sets.load`.
    """
    config = CocoConfig(
        name="coco",
        manual_dir=os.fspath(manual_dir),
        bad_share=bad_share,
        non_rgb=non_rgb,
        restval=restval,
    )
    return photo_sets.load(Coco, config, data_dir)


def _karpathy_file(root: pathlib.Path) -> pathlib.Path:
    photo_sets.check_root(root, HELP)
    path = photo_sets.first_file(root, KARPATHY_FILES)
    if path is None:
        names = " or ".join(KARPATHY_FILES)
        raise DataError(f"{root}: neither {names} nor {TFDS.folder}/* of TFDS. {HELP}")
    return path


def _photos(root: pathlib.Path) -> tuple[pathlib.Path, set[str]]:
    """The folder with those of the years in it, and the photos' names, as train2014/NAME.jpg."""
    for folder in PHOTO_FOLDERS:
        names = {
            f"{year}/{name}"
            for year in YEARS
            for name in photo_sets.photo_names(root / folder / year)
        }
        if names:
            return root / folder, names
    raise DataError(f"{root}: no photos (*.jpg) in {' or '.join(YEARS)}, nor in images/. {HELP}")
