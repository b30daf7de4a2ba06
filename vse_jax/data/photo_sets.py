"""Sets of photos with captions, from the files that their makers give out: one builder, one load.

A data set is a `PhotoSet` that says what lies where (`read_tree`); the rest is said here: photos
are verified, what is unfit is left out and named, and what is left becomes array_record.
"""

import abc
import collections
import copy
import dataclasses
import hashlib
import os
import pathlib
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from vse_jax import protocols
from vse_jax.data import captions_files, pictures, records, sift, tfds_prepared
from vse_jax.data.split import DataError, Dataset, Split

SPLITS = ("train", "validation", "test")
NO_SPLIT = "photo in no split"
# Of each split the file that lists its photos, where a data set has no names of its own for them.
LISTS = {"train": "train.txt", "validation": "val.txt", "test": "test.txt"}
NEITHER = "in a split list, but neither photo nor captions"


@dataclasses.dataclass
class PhotoSetConfig(tfds.core.BuilderConfig):
    """Where a data set lies and what is left out of it.

    Attributes:
      manual_dir: folder of the files; empty for that of TFDS' DownloadConfig.
      bad_share: largest share of the photos in a split that may be unfit, missing ones among them.
      non_rgb: "skip" photos that are not stored as RGB, or "convert" them.
    """

    manual_dir: str = ""
    bad_share: float = 0.01
    non_rgb: str = "skip"


class Tree(NamedTuple):
    """What lies in `manual_dir`.

    Attributes:
      folder: the photos' folder.
      listed: a record of every photo that has a split, in the order of the files.
      left_out: reason -> names of what no split has. No run misses it, so that it does not count
        as unfit: Flickr8k's own token file names photos that do not exist.
      unfit: reason -> names of what only a split has, which counts.
      classes: names of the classes, where the labels of the records are their numbers.
    """

    folder: pathlib.Path
    listed: list[captions_files.Record]
    left_out: Mapping[str, list[str]] = types.MappingProxyType({})
    unfit: Mapping[str, list[str]] = types.MappingProxyType({})
    classes: Sequence[str] = ()


class PhotoSet(
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # type: ignore[call-arg]
):
    """TFDS builder: photos as they are, names and captions, in the order of the split files.

    Attributes:
      DESCRIPTION: what the data set is.
      CITATION: BibTeX of who made it.
      MANUAL_DOWNLOAD_INSTRUCTIONS: which files go where, and who has them.
      TFDS: the same data as TFDS' own builder prepares them; None where it has none.
      LABELS: whether the photos have classes.
      BOXES: whether they have boxes.
      root: folder of the files, once they are asked for.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar[list[PhotoSetConfig]] = [
        PhotoSetConfig(name="skip"),
        PhotoSetConfig(name="convert", non_rgb="convert"),
    ]
    DESCRIPTION: ClassVar[str]
    CITATION: ClassVar[str]
    TFDS: ClassVar[tfds_prepared.Layout | None] = None
    LABELS: ClassVar[bool] = False
    BOXES: ClassVar[bool] = False
    root: pathlib.Path

    @classmethod
    @abc.abstractmethod
    def read_tree(cls, config: Any, root: pathlib.Path) -> Tree:
        """What caption and split files and the photos' folder in `root` say; opens no photo.

        Raises:
          DataError: if a folder or file is missing, or a line malformed.
        """

    @classmethod
    def has_files(cls, root: pathlib.Path) -> bool:
        """Whether the files as released are in `root`, which count before what TFDS prepared."""
        del root  # there is nothing else
        return True

    @classmethod
    def tree_of_prepared(
        cls, config: Any, root: pathlib.Path, prepared: tfds_prepared.Prepared
    ) -> Tree:
        """What TFDS has prepared in `root`, with what lies beside it; see `read_tree`."""
        raise NotImplementedError(f"{cls.name} has no builder of TFDS' own")

    @classmethod
    def sifted(cls, config: Any, root: pathlib.Path, data_dir: pathlib.Path) -> sift.Sifted:
        """The records with sound photos and a caption or a class, and all that is left out."""
        options = {"bad_share": config.bad_share, "non_rgb": config.non_rgb}
        folder = cls._prepared(root)
        if folder is None or cls.TFDS is None:
            tree = cls.read_tree(config, root)
            cache = data_dir / f"{cls.name}_pictures.json"
            sifted = sift.sift(tree.listed, tree.folder, cache, unfit=tree.unfit, **options)
        else:
            cache = data_dir / f"{cls.TFDS.builder}_pictures.json"
            prepared = tfds_prepared.read(folder, cls.TFDS, cache)
            tree = cls.tree_of_prepared(config, root, prepared)
            sifted = sift.sift_verified(tree.listed, prepared.findings, **options)
        skipped = {
            reason: (*tree.left_out.get(reason, ()), *sifted.skipped.get(reason, ()))
            for reason in {**tree.left_out, **sifted.skipped}
        }
        return dataclasses.replace(sifted, skipped=skipped, classes=tree.classes)

    def encoded(
        self, sifted: sift.Sifted, chosen: Sequence[captions_files.Record]
    ) -> Iterator[bytes]:
        """The encoded photos of the chosen records of one split, in their order."""
        folder = None if sifted.paths else self._prepared(self.root)
        if folder is None or self.TFDS is None:
            for record in chosen:
                yield pictures.read_file(sifted.paths[record.image])
            return
        wanted = {record.image for record in chosen}
        for name, image in tfds_prepared.encoded(folder, self.TFDS, str(chosen[0].split)):
            if name in wanted:
                yield image

    @classmethod
    def _prepared(cls, root: pathlib.Path) -> pathlib.Path | None:
        """What TFDS has prepared in `root`; None where the files count."""
        if cls.TFDS is None or cls.has_files(root):
            return None
        return tfds_prepared.find(root, cls.TFDS)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=records.features(labels=() if self.LABELS else None, boxes=self.BOXES),
            citation=self.CITATION,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        self.root = pathlib.Path(self.builder_config.manual_dir or dl_manager.manual_dir)
        data_dir = pathlib.Path(self.data_dir_root)
        sifted = _checked(type(self), self.builder_config, self.root, data_dir)
        if self.LABELS:
            self.info.features["label"].names = list(sifted.classes)
        self.info.metadata["skipped"] = {k: list(v) for k, v in sifted.skipped.items()}
        return {name: self._generate_examples(sifted, name) for name in SPLITS}

    def _generate_examples(
        self, sifted: sift.Sifted, split: str
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        chosen = _of_split(sifted, split)
        pairs = zip(chosen, self.encoded(sifted, chosen), strict=True)
        for number, (record, image) in enumerate(pairs):
            example: dict[str, Any] = {"image": image, "name": record.image}
            example["captions"] = record.captions
            if self.LABELS:
                example["label"] = _label(record)
            if self.BOXES:
                example["boxes"] = _boxes(record)
            yield number, example


def load(
    made_by: type[PhotoSet], config: PhotoSetConfig, data_dir: str | os.PathLike[str]
) -> Dataset:
    """A data set with its splits, prepared as array_record in `data_dir` once.

    What is prepared goes by the content of the files: change a photo, a caption or a split in
    `manual_dir`, and the next call prepares anew.

    Args:
      made_by: builder of the data set.
      config: of the builder; its name is given here.
      data_dir: folder of prepared data, made where there is none.

    Raises:
      DataError: for files missing or malformed, too many unfit photos, an empty split, or a
        `data_dir` that cannot be written.
    """
    sift.check_options(config.bad_share, config.non_rgb)
    sifted = _checked(made_by, config, pathlib.Path(config.manual_dir), pathlib.Path(data_dir))
    sift.log_skipped(made_by.name, sifted.skipped)
    sift.log_class_only(made_by.name, sifted.records)
    # On which line of which file a name stands is no part of the data.
    left_out = sorted(
        (reason, tuple(map(sift.unplaced, names))) for reason, names in sifted.skipped.items()
    )
    classes = f" {list(sifted.classes)}" if sifted.classes else ""
    fingerprint = hashlib.sha256(
        f"{config.non_rgb} {left_out} {sift.fingerprint(sifted)}{classes}".encode()
    ).hexdigest()
    config = copy.copy(config)
    config.name = f"{config.non_rgb}_{fingerprint[:12]}"
    builder = made_by(config=config, data_dir=os.fspath(data_dir))
    records.prepare(builder)
    splits = {name: _split(builder, sifted, name) for name in SPLITS}
    return Dataset(
        name=made_by.name,
        splits=splits,
        fingerprint=fingerprint,
        protocol=protocols.own(made_by.name, len(splits["test"].images)),
        skipped=sifted.skipped,
        classes=tuple(sifted.classes),
    )


def check_root(root: pathlib.Path, instructions: str) -> None:
    """Raises DataError with the instructions where there is no such folder."""
    if not root.is_dir():
        where = os.path.abspath(root)
        raise DataError(f"data.manual_dir: there is no folder {where}. {instructions}")


def find_photos(
    root: pathlib.Path, folders: Sequence[str], instructions: str
) -> tuple[pathlib.Path, set[str]]:
    """The first of the folders with photos (*.jpg) in it, and their names."""
    for folder in folders:
        if names := photo_names(root / folder):
            return root / folder, names
    raise DataError(f"{root}: no photos (*.jpg) in {' or '.join(folders)}. {instructions}")


def photo_names(folder: pathlib.Path) -> set[str]:
    """Names of the photos (*.jpg) right in a folder; none where there is no such folder."""
    if not folder.is_dir():
        return set()
    return {name for name in os.listdir(folder) if name.lower().endswith(".jpg")}


def first_file(root: pathlib.Path, names: Sequence[str]) -> pathlib.Path | None:
    """The first of these files that is there."""
    return next((root / name for name in names if (root / name).is_file()), None)


def find_lists(
    folders: Sequence[pathlib.Path], instructions: str
) -> dict[str, pathlib.Path] | None:
    """The files `LISTS` in the first of the folders with any; None where there are none.

    Raises:
      DataError: there are some of them, but not all.
    """
    for folder in folders:
        paths = {split: folder / name for split, name in LISTS.items()}
        there = [path for path in paths.values() if path.is_file()]
        for path in paths.values():
            if there and path not in there:
                raise DataError(f"{path} is missing beside {there[0].name}. {instructions}")
        if there:
            return paths
    return None


def tree_of_lists(
    folder: pathlib.Path,
    photos: set[str],
    captioned: Mapping[str, captions_files.Record],
    lists: Mapping[str, tuple[str, str]],
) -> Tree:
    """The tree of photos, records with captions by name, and split and "file:line" by name."""
    listed, neither, left_out = [], [], collections.defaultdict(list)
    for name, (split, where) in lists.items():
        if name in captioned:
            listed.append(dataclasses.replace(captioned[name], split=split))
        elif name in photos:
            listed.append(captions_files.Record(name, [], where, split))
        else:
            neither.append(sift.placed(name, where))
    for name in sorted((photos | captioned.keys()) - lists.keys()):
        if name not in captioned:
            left_out[sift.NO_CAPTIONS].append(name)
        elif name in photos:
            left_out[NO_SPLIT].append(name)
        else:
            left_out[sift.NO_PHOTO].append(sift.placed(name, captioned[name].where))
    return Tree(folder, listed, left_out, {NEITHER: neither} if neither else {})


def tree_of_karpathy(folder: pathlib.Path, photos: set[str], path: pathlib.Path) -> Tree:
    """The tree of photos and a Karpathy JSON; records of "restval" keep that as their split."""
    listed = captions_files.read_karpathy(path)
    loose = photos.difference(record.image for record in listed)
    return Tree(folder, listed, {NO_SPLIT: sorted(loose)} if loose else {})


def _checked(
    made_by: type[PhotoSet], config: PhotoSetConfig, root: pathlib.Path, data_dir: pathlib.Path
) -> sift.Sifted:
    """What is sifted, with something in every split."""
    sifted = made_by.sifted(config, root, data_dir)
    left = {record.split for record in sifted.records}
    for split in SPLITS:
        if split not in left:
            skipped = sifted.skipped.items()
            counts = ", ".join(f"{reason}: {len(names)}" for reason, names in skipped)
            raise DataError(
                f"{root}: no photo is left for split {split!r} ({counts}). "
                f"{made_by.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            )
    return sifted


def _of_split(sifted: sift.Sifted, split: str) -> list[captions_files.Record]:
    return [record for record in sifted.records if record.split == split]


def _split(builder: PhotoSet, sifted: sift.Sifted, name: str) -> Split:
    """A prepared split. Only its photos are read from there: COCO's take minutes to go through."""
    chosen = _of_split(sifted, name)
    return Split(
        images=[record.image for record in chosen],
        captions=[caption for record in chosen for caption in record.captions],
        caption_image=np.repeat(
            np.arange(len(chosen), dtype=np.int32), [len(record.captions) for record in chosen]
        ),
        read=records.reader(builder, name),
        labels=np.array([_label(record) for record in chosen], np.int32)
        if builder.LABELS
        else None,
        boxes=[_boxes(record) for record in chosen] if builder.BOXES else None,
    )


def _label(record: captions_files.Record) -> int:
    """The number of the photo's class, -1 without any."""
    return -1 if record.label is None else int(record.label)


def _boxes(record: captions_files.Record) -> np.ndarray:
    return np.zeros((0, 4), np.float32) if record.boxes is None else record.boxes
