"""Flickr8k: 8,000 photos with five captions each, from the official or Kaggle's files.

Source: Hodosh, Young and Hockenmaier, "Framing Image Description as a Ranking Task: Data, Models
and Evaluation Metrics", JAIR 47, 2013.
"""

import os
import pathlib
from importlib import resources

from vse_jax.data import captions_files, photo_sets, token_files
from vse_jax.data.captions_files import Record
from vse_jax.data.photo_sets import NEITHER, PhotoSetConfig, Tree
from vse_jax.data.split import DataError, Dataset

__all__ = ["HELP", "NEITHER", "SPLIT_FILES", "Flickr8k", "load", "read_tree"]

HELP = (
    "Put Flickr8k into the folder that data.manual_dir names, in one of two layouts. Official: "
    "Flicker8k_Dataset/*.jpg, Flickr8k_text/Flickr8k.token.txt and "
    "Flickr8k_text/Flickr_8k.{train,dev,test}Images.txt. Kaggle's: Images/*.jpg and captions.txt "
    "(the official split files beside it, or the list of ids shipped with vse_jax is used). Get it "
    "by the request form of the University of Illinois (https://forms.illinois.edu/sec/1713398) or "
    "as the Kaggle copy (https://www.kaggle.com/datasets/adityajn105/flickr8k), and cite Hodosh, "
    "Young and Hockenmaier, JAIR 2013."
)

PHOTO_FOLDERS = (
    "Flicker8k_Dataset",
    "Flickr8k_Dataset/Flicker8k_Dataset",
    "Flickr8k_Dataset",
    "Images",
)
CAPTION_FILES = ("Flickr8k_text/Flickr8k.token.txt", "Flickr8k.token.txt", "captions.txt")
SPLIT_FILES = {
    "train": "Flickr_8k.trainImages.txt",
    "validation": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
CITATION = """\
@article{hodosh2013framing,
  author = {Hodosh, Micah and Young, Peter and Hockenmaier, Julia},
  title = {Framing Image Description as a Ranking Task: Data, Models and Evaluation Metrics},
  journal = {Journal of Artificial Intelligence Research},
  volume = {47},
  pages = {853--899},
  year = {2013},
}"""


class Flickr8k(photo_sets.PhotoSet):
    """TFDS builder of Flickr8k with its official splits."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = HELP
    DESCRIPTION = str(__doc__)
    CITATION = CITATION

    @classmethod
    def read_tree(cls, config: PhotoSetConfig, root: pathlib.Path) -> Tree:
        """See `read_tree` of this module."""
        del config  # the same for every one
        return read_tree(root)


def load(
    manual_dir: str | os.PathLike[str],
    data_dir: str | os.PathLike[str],
    *,
    bad_share: float = 0.01,
    non_rgb: str = "skip",
) -> Dataset:
    """Flickr8k with its official splits, prepared as array_record in `data_dir` once.

    What is prepared goes by the content of the files: change a photo, a caption or a split in
    `manual_dir`, and the next call prepares anew.

    Args:
      manual_dir: folder of the official or Kaggle's files (see `HELP`).
      data_dir: folder of prepared data, made where there is none.
      bad_share: largest share of the photos that may be unfit.
      non_rgb: "skip" photos that are not stored as RGB, or "convert" them.

    Raises:
      DataError: for files missing or malformed, too many unfit photos, an empty split, or a
        `data_dir` that cannot be written.
    """
    config = PhotoSetConfig(
        name="flickr8k", manual_dir=os.fspath(manual_dir), bad_share=bad_share, non_rgb=non_rgb
    )
    return photo_sets.load(Flickr8k, config, data_dir)


def read_tree(root: pathlib.Path) -> Tree:
    """What the caption and split files and the photos' folder say; no photo is opened.

    Raises:
      DataError: if a folder or file is missing, or a line malformed.
    """
    photo_sets.check_root(root, HELP)
    folder, photos = photo_sets.find_photos(root, PHOTO_FOLDERS, HELP)
    return photo_sets.tree_of_lists(folder, photos, _captions(root), _split_lists(root))


def _captions(root: pathlib.Path) -> dict[str, Record]:
    """Captioned records by photo name, in the order of numbers or, in Kaggle's file, of lines."""
    for name in CAPTION_FILES:
        path = root / name
        if path.is_file():
            if path.name == "captions.txt":
                return _kaggle_captions(path)
            return token_files.token_captions(path)
    raise DataError(f"{root}: no caption file ({' or '.join(CAPTION_FILES)}). {HELP}")


def _kaggle_captions(path: pathlib.Path) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for line, row in captions_files.csv_rows(path, ("image", "caption")):
        name = row["image"].strip()
        if not name:
            raise DataError(f"{path}:{line}: no image; expected <name>.jpg,<caption>")
        found.setdefault(name, Record(name, [], f"{path}:{line}")).captions.append(row["caption"])
    return found


def _split_lists(root: pathlib.Path) -> dict[str, tuple[str, str]]:
    """Split and "file:line" by photo name: from the files beside the captions, or the shipped."""
    folders = [root / "Flickr8k_text", root]
    found = [folder for folder in folders if (folder / SPLIT_FILES["train"]).is_file()]
    shipped = pathlib.Path(str(resources.files("vse_jax.data") / "splits"))
    paths = {
        split: found[0] / file if found else shipped / f"flickr8k_{split}.txt"
        for split, file in SPLIT_FILES.items()
    }
    for path in paths.values():
        if not path.is_file():
            raise DataError(f"{path} is missing beside {SPLIT_FILES['train']}. {HELP}")
    return token_files.split_lists(paths, token_files.file_name)
