"""Flickr8k: 8,000 photos with five captions each, from the official or Kaggle's files.

Source: Hodosh, Young and Hockenmaier, "Framing Image Description as a Ranking Task: Data, Models
and Evaluation Metrics", JAIR 47, 2013.
"""

import collections
import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any, ClassVar, NamedTuple

import tensorflow_datasets as tfds

from vse_jax.data import captions_files, pictures, records, sift
from vse_jax.data.split import DataError, Dataset

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
NO_SPLIT = "photo in no split"
NEITHER = "in a split list, but neither photo nor captions"
_TOKEN_LINE = re.compile(r"([^\t]+)#(\d+)\t(.*)")


@dataclasses.dataclass
class Flickr8kConfig(tfds.core.BuilderConfig):
    """Where Flickr8k lies and what is left out of it.

    Attributes:
      manual_dir: folder of the files; empty for that of TFDS' DownloadConfig.
      bad_share: largest share of the photos that may be unfit.
      non_rgb: "skip" photos that are not stored as RGB, or "convert" them.
    """

    manual_dir: str = ""
    bad_share: float = 0.01
    non_rgb: str = "skip"


class Tree(NamedTuple):
    """What lies in `manual_dir`.

    Attributes:
      folder: the photos' folder.
      listed: a record of every photo that a split lists, in the order of the lists.
      left_out: reason -> names of what no split has, or what only a split has.
    """

    folder: pathlib.Path
    listed: list[captions_files.Record]
    left_out: Mapping[str, list[str]]


class Flickr8k(tfds.core.GeneratorBasedBuilder):
    """TFDS builder: photos as they are, names and captions, in the order of the split files."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = HELP
    BUILDER_CONFIGS: ClassVar = [
        Flickr8kConfig(name="skip"),
        Flickr8kConfig(name="convert", non_rgb="convert"),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=records.features(),
            citation=CITATION,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        config = self.builder_config
        sifted = _sift(
            pathlib.Path(config.manual_dir or dl_manager.manual_dir),
            pathlib.Path(self.data_dir_root),
            bad_share=config.bad_share,
            non_rgb=config.non_rgb,
        )
        self.info.metadata["skipped"] = {k: list(v) for k, v in sifted.skipped.items()}
        return {name: self._generate_examples(sifted, name) for name in SPLIT_FILES}

    def _generate_examples(
        self, sifted: sift.Sifted, split: str
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        chosen = [record for record in sifted.records if record.split == split]
        for number, record in enumerate(chosen):
            image = pictures.read_file(sifted.paths[record.image])
            yield number, {"image": image, "name": record.image, "captions": record.captions}


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
    sift.check_options(bad_share, non_rgb)
    root, prepared = pathlib.Path(manual_dir), pathlib.Path(data_dir)
    sifted = _sift(root, prepared, bad_share=bad_share, non_rgb=non_rgb)
    sift.log_skipped("flickr8k", sifted.skipped)
    fingerprint = hashlib.sha256(
        f"{non_rgb} {sorted(sifted.skipped.items())} {sift.fingerprint(sifted)}".encode()
    ).hexdigest()
    config = Flickr8kConfig(
        name=f"{non_rgb}_{fingerprint[:12]}",
        manual_dir=os.fspath(manual_dir),
        bad_share=bad_share,
        non_rgb=non_rgb,
    )
    builder = Flickr8k(config=config, data_dir=os.fspath(data_dir))
    records.prepare(builder)
    splits = {name: records.read_split(builder, name) for name in SPLIT_FILES}
    return Dataset(
        name="flickr8k",
        splits=splits,
        fingerprint=fingerprint,
        # The protocol's name promises its size: a part of the test photos is another protocol.
        protocol="flickr8k_1k"
        if len(splits["test"].images) == 1000
        else f"flickr8k_{len(splits['test'].images)}",
        skipped=sifted.skipped,
    )


def read_tree(root: pathlib.Path) -> Tree:
    """What the caption and split files and the photos' folder say; no photo is opened.

    Raises:
      DataError: if a folder or file is missing, or a line malformed.
    """
    if not root.is_dir():
        raise DataError(f"data.manual_dir: there is no folder {os.path.abspath(root)}. {HELP}")
    folder, photos = _photos(root)
    captions = _captions(root)
    lists = _split_lists(root)
    listed, left_out = [], collections.defaultdict(list)
    for name, (split, where) in lists.items():
        if name in photos or name in captions:
            listed.append(captions_files.Record(name, captions.get(name, []), where, split))
        else:
            left_out[NEITHER].append(name)
    for name in sorted((photos | captions.keys()) - lists.keys()):
        if name not in captions:
            left_out[sift.NO_CAPTIONS].append(name)
        else:
            left_out[NO_SPLIT if name in photos else sift.NO_PHOTO].append(name)
    return Tree(folder, listed, left_out)


def _sift(
    root: pathlib.Path, data_dir: pathlib.Path, *, bad_share: float, non_rgb: str
) -> sift.Sifted:
    """The records of the three splits with sound photos, and all that is left out."""
    tree = read_tree(root)
    cache = data_dir / "flickr8k_pictures.json"
    sifted = sift.sift(tree.listed, tree.folder, cache, bad_share=bad_share, non_rgb=non_rgb)
    skipped = {
        reason: (*tree.left_out.get(reason, ()), *sifted.skipped.get(reason, ()))
        for reason in {**tree.left_out, **sifted.skipped}
    }
    left = {record.split for record in sifted.records}
    for split in SPLIT_FILES:
        if split not in left:
            counts = ", ".join(f"{reason}: {len(names)}" for reason, names in skipped.items())
            raise DataError(f"{root}: no photo is left for split {split!r} ({counts}). {HELP}")
    return dataclasses.replace(sifted, skipped=skipped)


def _photos(root: pathlib.Path) -> tuple[pathlib.Path, set[str]]:
    """The first of the known folders with photos in it, and their names."""
    for folder in PHOTO_FOLDERS:
        if (root / folder).is_dir():
            names = {name for name in os.listdir(root / folder) if name.lower().endswith(".jpg")}
            if names:
                return root / folder, names
    raise DataError(f"{root}: no photos (*.jpg) in {' or '.join(PHOTO_FOLDERS)}. {HELP}")


def _captions(root: pathlib.Path) -> dict[str, list[str]]:
    """Captions by photo name, in the order of their numbers or, in Kaggle's file, of the lines."""
    for name in CAPTION_FILES:
        path = root / name
        if path.is_file():
            return _kaggle_captions(path) if path.name == "captions.txt" else _token_captions(path)
    raise DataError(f"{root}: no caption file ({' or '.join(CAPTION_FILES)}). {HELP}")


def _token_captions(path: pathlib.Path) -> dict[str, list[str]]:
    numbered: dict[str, dict[int, tuple[str, int]]] = collections.defaultdict(dict)
    for line, text in _lines(path):
        match = _TOKEN_LINE.fullmatch(text)
        if not match:
            raise DataError(
                f"{path}:{line}: expected <name>.jpg#<number><tab><caption>, found {text[:80]!r}"
            )
        name, number, caption = match[1], int(match[2]), match[3]
        _, before = numbered[name].setdefault(number, (caption, line))
        if before != line:
            raise DataError(f"{path}:{line}: {name}#{number} a second time, first on line {before}")
    return {
        name: [captions[number][0] for number in sorted(captions)]
        for name, captions in numbered.items()
    }


def _kaggle_captions(path: pathlib.Path) -> dict[str, list[str]]:
    captions = collections.defaultdict(list)
    for line, row in captions_files.csv_rows(path, ("image", "caption")):
        if not row["image"].strip():
            raise DataError(f"{path}:{line}: no image; expected <name>.jpg,<caption>")
        captions[row["image"].strip()].append(row["caption"])
    return dict(captions)


def _split_lists(root: pathlib.Path) -> dict[str, tuple[str, str]]:
    """Split and "file:line" by photo name: from the files beside the captions, or the shipped."""
    folders = [root / "Flickr8k_text", root]
    found = [folder for folder in folders if (folder / SPLIT_FILES["train"]).is_file()]
    shipped = resources.files("vse_jax.data") / "splits"
    split_of: dict[str, tuple[str, str]] = {}
    for split, file in SPLIT_FILES.items():
        path = found[0] / file if found else pathlib.Path(str(shipped / f"flickr8k_{split}.txt"))
        if not path.is_file():
            raise DataError(f"{path} is missing beside {SPLIT_FILES['train']}. {HELP}")
        for line, name in _lines(path):
            where = f"{path}:{line}"
            if not name.lower().endswith(".jpg") or "/" in name:
                raise DataError(f"{where}: expected one file name, <name>.jpg, found {name[:80]!r}")
            if name in split_of:
                before, first = split_of[name]
                raise DataError(f"{where}: {name} is already in {before} ({first})")
            split_of[name] = split, where
    return split_of


def _lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Numbers and texts of the lines that are not blank."""
    for number, line in enumerate(captions_files.read_text(path).split("\n"), 1):
        if line.strip():
            yield number, line.strip("\r ")
