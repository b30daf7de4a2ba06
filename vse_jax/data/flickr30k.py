"""Flickr30k: 31,783 photos with five captions each, from the official files.

Source: Young, Lai, Hodosh and Hockenmaier, "From image descriptions to visual denotations: New
similarity metrics for semantic inference over event descriptions", TACL 2, 2014; the usual
splits, 29,000 photos to train, 1,014 to validate and 1,000 to test: Karpathy and Fei-Fei,
"Deep Visual-Semantic Alignments for Generating Image Descriptions", CVPR 2015.
"""

import os
import pathlib

from vse_jax.data import photo_sets, token_files
from vse_jax.data.photo_sets import PhotoSetConfig, Tree
from vse_jax.data.split import DataError, Dataset

HELP = (
    "Put Flickr30k into the folder that data.manual_dir names: flickr30k-images/*.jpg, and either "
    "Karpathy's dataset_flickr30k.json, or results_20130124.token with train.txt, val.txt and "
    "test.txt (one photo a line, with or without .jpg). Get photos and captions by the request "
    "form of the University of Illinois (https://shannon.cs.illinois.edu/DenotationGraph/), "
    "Karpathy's file in https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip,"
    " and lists at https://github.com/BryanPlummer/flickr30k_entities; cite Young, Lai, Hodosh and "
    "Hockenmaier, TACL 2014."
)
PHOTO_FOLDERS = (
    "flickr30k-images",
    "flickr30k_images/flickr30k_images",
    "flickr30k_images",
    "images",
)
KARPATHY_FILES = ("dataset_flickr30k.json", "caption_datasets/dataset_flickr30k.json")
TOKEN_FILES = ("results_20130124.token", "flickr30k/results_20130124.token")
CITATION = """\
@article{young2014image,
  author = {Young, Peter and Lai, Alice and Hodosh, Micah and Hockenmaier, Julia},
  title = {From image descriptions to visual denotations: New similarity metrics for semantic
    inference over event descriptions},
  journal = {Transactions of the Association for Computational Linguistics},
  volume = {2},
  pages = {67--78},
  year = {2014},
}"""


class Flickr30k(photo_sets.PhotoSet):
    """TFDS builder of Flickr30k, with the splits of the files."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = HELP
    DESCRIPTION = str(__doc__)
    CITATION = CITATION

    @classmethod
    def read_tree(cls, config: PhotoSetConfig, root: pathlib.Path) -> Tree:
        """Photos with the captions and splits of Karpathy's file, or of token file and lists."""
        del config  # the same for every one
        photo_sets.check_root(root, HELP)
        folder, photos = photo_sets.find_photos(root, PHOTO_FOLDERS, HELP)
        if path := photo_sets.first_file(root, KARPATHY_FILES):
            return photo_sets.tree_of_karpathy(folder, photos, path)
        path = photo_sets.first_file(root, TOKEN_FILES)
        if path is None:
            names = " or ".join((*KARPATHY_FILES, *TOKEN_FILES))
            raise DataError(f"{root}: no caption file ({names}). {HELP}")
        lists = photo_sets.find_lists((root, path.parent), HELP)
        if lists is None:
            names = ", ".join(photo_sets.LISTS.values())
            raise DataError(f"{root}: no split lists ({names}) beside {path.name}. {HELP}")
        captions = token_files.token_captions(path)
        split_of = token_files.split_lists(lists, _file_name)
        return photo_sets.tree_of_lists(folder, photos, captions, split_of)


def load(
    manual_dir: str | os.PathLike[str],
    data_dir: str | os.PathLike[str],
    *,
    bad_share: float = 0.01,
    non_rgb: str = "skip",
) -> Dataset:
    """Flickr30k, prepared as array_record in `data_dir` once; see `photo_sets.load`.

    Args:
      manual_dir: folder of the files (see `HELP`); with both, Karpathy's file counts.
      data_dir: folder of prepared data, made where there is none.
      bad_share: largest share of the photos that may be unfit.
      non_rgb: "skip" photos that are not stored as RGB, or "convert" them.

    Raises:
      DataError: as `photo_sets.load`.
    """
    config = PhotoSetConfig(
        name="flickr30k", manual_dir=os.fspath(manual_dir), bad_share=bad_share, non_rgb=non_rgb
    )
    return photo_sets.load(Flickr30k, config, data_dir)


def _file_name(text: str, where: str) -> str:
    """The photo's name; the lists of Flickr30k Entities leave the suffix out."""
    return token_files.file_name(f"{text}.jpg" if text.isdecimal() else text, where)
