"""IAPR TC-12: 20,000 photos from around the world with one description each.

Source: Grubinger, Clough, Mueller and Deselaers, "The IAPR TC-12 Benchmark: A New Evaluation
Resource for Visual Information Systems", OntoImage 2006.
"""

import collections
import html
import os
import pathlib
import re
from collections.abc import Mapping

from vse_jax.data import photo_sets, token_files
from vse_jax.data.captions_files import Record
from vse_jax.data.photo_sets import PhotoSetConfig, Tree
from vse_jax.data.seeded_order import place
from vse_jax.data.split import DataError, Dataset

HELP = (
    "Put IAPR TC-12 into the folder that data.manual_dir names, as its archive iaprtc12.tgz has "
    "it: images/NN/NUMBER.jpg and annotations_complete_eng/NN/NUMBER.eng, and train.txt, val.txt "
    "and test.txt (one photo a line: NN/NUMBER) where you have lists; without them the photos are "
    "split by a seed. Get it at https://www.imageclef.org/photodata, and cite Grubinger, Clough, "
    "Mueller and Deselaers, OntoImage 2006."
)
FOLDERS = (".", "iaprtc12")
ANNOTATIONS = ("annotations_complete_eng", "annotations")
# Of the order that is split where no lists are: the same for every run, so that results compare.
SEED = 0
# Photos of validation and of test in that split, where there are LEAST; else a tenth.
HELD_OUT, LEAST = 1000, 4000
CITATION = """\
@inproceedings{grubinger2006iapr,
  author = {Grubinger, Michael and Clough, Paul and M{\\"u}ller, Henning and Deselaers, Thomas},
  title = {The {IAPR TC-12} Benchmark: A New Evaluation Resource for Visual Information Systems},
  booktitle = {OntoImage 2006: Language Resources for Content-Based Image Retrieval},
  pages = {13--23},
  year = {2006},
}"""
# To the next tag but an inner one where the closing one is missing.
_DESCRIPTION = re.compile(
    r"<DESCRIPTION>(.*?)(?:</DESCRIPTION>|<(?:NOTES|LOCATION|DATE|IMAGE|THUMBNAIL|/DOC)>|\Z)",
    re.DOTALL | re.IGNORECASE,
)
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|#\d+|#x[0-9a-fA-F]+);")


class Iaprtc12(photo_sets.PhotoSet):
    """TFDS builder of IAPR TC-12 with one caption a photo."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = HELP
    DESCRIPTION = str(__doc__)
    CITATION = CITATION

    @classmethod
    def read_tree(cls, config: PhotoSetConfig, root: pathlib.Path) -> Tree:
        """Photos with their descriptions, split by the lists or by `SEED`."""
        del config  # the same for every one
        photo_sets.check_root(root, HELP)
        base = next((root / name for name in FOLDERS if (root / name / "images").is_dir()), root)
        photos = _numbered(base / "images", ".jpg")
        if not photos:
            raise DataError(f"{base}: no photos (images/NN/NUMBER.jpg). {HELP}")
        annotations = _annotations(base)
        captions = _captions(annotations)
        lists = photo_sets.find_lists(tuple(dict.fromkeys((root, base))), HELP)
        if lists is None:
            split_of = split_by_seed(sorted(captions.keys() & photos.keys()))
            # Those without a photo take nobody's place; listed, they count as missing.
            where = {
                name: (split_of.get(name, "train"), record.where)
                for name, record in sorted(captions.items())
            }
        else:
            known = sorted({**photos, **annotations})
            where = token_files.split_lists(lists, _Names(known))
        return photo_sets.tree_of_lists(base / "images", set(photos), captions, where)


def load(
    manual_dir: str | os.PathLike[str],
    data_dir: str | os.PathLike[str],
    *,
    bad_share: float = 0.01,
    non_rgb: str = "skip",
) -> Dataset:
    """IAPR TC-12, prepared as array_record in `data_dir` once; see `photo_sets.load`.

    Args:
      manual_dir: folder of the files (see `HELP`).
      data_dir: folder of prepared data, made where there is none.
      bad_share: largest share of the photos that may be unfit.
      non_rgb: "skip" photos that are not stored as RGB, or "convert" them.

    Raises:
      DataError: as `photo_sets.load`.
    """
    config = PhotoSetConfig(
        name="iaprtc12", manual_dir=os.fspath(manual_dir), bad_share=bad_share, non_rgb=non_rgb
    )
    return photo_sets.load(Iaprtc12, config, data_dir)


def split_by_seed(names: list[str]) -> dict[str, str]:
    """Split by name, in the order of the names.

    The names are put into an order drawn by `SEED`: its last HELD_OUT are the test split and as
    many before them validation, if there are LEAST; of fewer a tenth each, but one at least.
    """
    held_out = HELD_OUT if len(names) >= LEAST else max(1, len(names) // 10)
    ordered = sorted(names, key=lambda name: place(name, SEED))
    test, validation = set(ordered[-held_out:]), set(ordered[-2 * held_out : -held_out])
    return {
        name: "test" if name in test else "validation" if name in validation else "train"
        for name in names
    }


def description(data: bytes) -> str | None:
    """The text of <DESCRIPTION> in an annotation file; None where it has none.

    The files are nearly XML: some in Latin-1, some with a bare "&" or "<". Runs of blanks and line
    breaks are one blank.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    found = _DESCRIPTION.search(text)
    if found is None:
        return None
    return " ".join(_ENTITY.sub(lambda entity: html.unescape(entity[0]), found[1]).split())


def _annotations(base: pathlib.Path) -> dict[str, pathlib.Path]:
    """The annotation file by photo name, of the first folder that has any."""
    for folder in ANNOTATIONS:
        found = _numbered(base / folder, ".eng")
        if found:
            return {f"{name.removesuffix('.eng')}.jpg": path for name, path in found.items()}
    raise DataError(f"{base}: no annotations (*/*.eng) in {' or '.join(ANNOTATIONS)}. {HELP}")


def _numbered(folder: pathlib.Path, suffix: str) -> dict[str, pathlib.Path]:
    """Path by NN/NUMBER.suffix of the files in the folders of a folder, in their order."""
    paths = sorted(folder.glob(f"*/*{suffix}"))
    return {f"{path.parent.name}/{path.name}": path for path in paths}


def _captions(annotations: Mapping[str, pathlib.Path]) -> dict[str, Record]:
    """A record by photo name with its description; none of a photo whose file has no text in it."""
    captions = {}
    for name, path in annotations.items():
        try:
            text = description(path.read_bytes())
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        if text:
            captions[name] = Record(name, [text], os.fspath(path))
    return captions


class _Names:
    """The photo that a line of a split list means: NN/NUMBER or NUMBER, suffix or folder or not."""

    def __init__(self, names: list[str]) -> None:
        self._known = set(names)
        self._of_number = collections.defaultdict(list)
        for name in names:
            self._of_number[pathlib.PurePosixPath(name).stem].append(name)

    def __call__(self, text: str, where: str) -> str:
        path = pathlib.PurePosixPath(re.sub(r"\.(?:jpg|eng)$", "", text, flags=re.IGNORECASE))
        name = f"{'/'.join(path.parts[-2:])}.jpg"
        if len(path.parts) > 1:
            return name
        of_number = self._of_number.get(path.name, [name])
        if len(of_number) > 1:
            raise DataError(f"{where}: {text!r} may be {' or '.join(of_number)}; write one of them")
        return of_number[0]
