"""Features that others' detectors wrote, one picture after the other: BUTD's .tsv, .npz a picture.

A `.tsv` has a picture a line: image_id, image_w, image_h, num_boxes, and in base64 the float32
`boxes` [num_boxes, 4] as (x0, y0, x1, y1) in pixels and `features` [num_boxes, width]. Source:
Anderson et al., Bottom-Up and Top-Down Attention, CVPR 2018, and the files published with it. A
`.npz` has `x` or `features` [r, width] and, if it likes, `num_bbox`, `bbox` or `boxes` [r, 4]
in pixels with `image_w` and `image_h`. Source: the extractors that followed it.
"""

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vse_jax.data import feature_files
from vse_jax.data.split import DataError

TSV = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
# How a .tsv may come down.
PACKED = (".7z", ".bz2", ".gz", ".tar", ".xz", ".zip", ".zst")
# A detector's corners are rounded: this many pixels outside the picture are cut off, more refused.
SLACK = 1.0


class Found(NamedTuple):
    """The regions of one picture.

    Attributes:
      name: as the source has it: a number or a file name, with its suffix or without.
      features: float32 [r, width]; r may be 0.
      boxes: float32 [r, 4] as (y0, x0, y1, x1) in [0, 1]; None where they are not known.
      where: file and line, for messages.
    """

    name: str
    features: np.ndarray
    boxes: np.ndarray | None
    where: str


def files(source: Path) -> list[Path]:
    """The files that a source of features consists of, sorted.

    Args:
      source: a .tsv, or a folder of .tsv, of .npz or in the layout of SCAN.

    Raises:
      DataError: there is none, or it is packed.
    """
    if source.is_file() and ".tsv" in source.name:
        return _unpacked([source])
    if not source.is_dir():
        what = "is neither a .tsv nor a folder" if source.exists() else "does not exist"
        raise DataError(
            f"{source} {what}; data.features takes a BUTD .tsv, or a folder of .tsv, of an .npz a "
            "picture, or of {split}_ims.npy with {split}_ids.txt"
        )
    # COCO's are published as *.tsv.0, *.tsv.1 and so on.
    for pattern in ("*.tsv*", "*_ims.npy", "*.npz"):
        found = sorted(path for path in source.glob(pattern) if path.is_file())
        if found and pattern == "*_ims.npy":
            parts = ("ids.txt", "boxes.npy", "counts.npy")
            stems = [path.name.removesuffix("ims.npy") for path in found]
            found += [p for s in stems for part in parts if (p := source / f"{s}{part}").is_file()]
        if found:
            return _unpacked(found)
    raise DataError(f"{source} has no .tsv, no .npz and no {{split}}_ims.npy in it")


def _unpacked(found: list[Path]) -> list[Path]:
    """The files without packed ones that lie beside what was in them; others are refused."""
    kept = [p for p in found if p.suffix not in PACKED or p.with_suffix("") not in found]
    for path in kept:
        if path.suffix in PACKED:
            raise DataError(f"{path} is packed: unpack it, and move the packed file away")
    return kept


def read_tsv(path: Path) -> Iterator[Found]:
    """The pictures of a .tsv; raises DataError with file and line of what is wrong."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                fields = line.rstrip(b"\r\n").split(b"\t")
                header = number == 1 and fields == [name.encode() for name in TSV]
                if header or fields == [b""]:
                    continue
                yield _tsv_line(fields, f"{path}:{number}")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error


def read_npz(path: Path) -> Found:
    """The picture of an .npz; raises DataError with the file of what is wrong."""
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            # The extractors add an "info" that is a pickle, which is left alone.
            known = {"x", "features", "num_bbox", "bbox", "boxes", "image_w", "image_h"}
            fields = {name: file[name] for name in file.files if name in known}
    # A TypeError where there is one array, and not a file of several.
    except (*feature_files.DAMAGED, TypeError) as error:
        raise DataError(f"{path}: no .npz that can be read ({error})") from error
    features = fields.get("x", fields.get("features"))
    if features is None:
        raise DataError(f'{path}: neither "x" nor "features" in it')
    if features.ndim != 2 or not np.issubdtype(features.dtype, np.floating):
        raise DataError(
            f"{path}: features are {features.dtype}{list(features.shape)}; expected float32 "
            "[regions, width]"
        )
    count = int(_number(fields.get("num_bbox", len(features)), f"{path}: num_bbox"))
    if not 0 <= count <= len(features):
        raise DataError(f"{path}: num_bbox is {count}, but there are {len(features)} features")
    boxes = fields.get("bbox", fields.get("boxes"))
    if boxes is not None and {"image_w", "image_h"} <= fields.keys():
        w, h = (_number(fields[name], f"{path}: {name}") for name in ("image_w", "image_h"))
        boxes = _shares(boxes[:count], count, w, h, str(path))
    else:
        boxes = None
    return Found(path.stem, features[:count].astype(np.float32), boxes, str(path))


def _tsv_line(fields: list[bytes], where: str) -> Found:
    if len(fields) != len(TSV):
        raise DataError(
            f"{where}: {len(fields)} fields parted by tabs; expected {len(TSV)}: {', '.join(TSV)}"
        )
    w, h, count = (
        _number(value, f"{where}: {name}")
        for name, value in zip(TSV[1:4], fields[1:4], strict=True)
    )
    if count != int(count) or count < 0:
        raise DataError(f"{where}: num_boxes is {count:g}")
    boxes, features = (
        _floats(value, f"{where}: {name}") for name, value in zip(TSV[4:], fields[4:], strict=True)
    )
    r = int(count)
    if len(boxes) != 4 * r or (r and (not len(features) or len(features) % r)):
        raise DataError(
            f"{where}: {len(boxes)} numbers of boxes and {len(features)} of features, but num_boxes"
            f" is {r}; expected {4 * r} and a multiple of {r}"
        )
    try:
        name = fields[0].decode().strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: image_id is {fields[0]!r}, which is not UTF-8") from error
    if not name:
        raise DataError(f"{where}: image_id is empty")
    return Found(
        name,
        features.reshape(r, -1 if r else 0),
        _shares(boxes.reshape(r, 4), r, w, h, where),
        where,
    )


def _floats(value: bytes, where: str) -> np.ndarray:
    """float32 numbers in base64."""
    try:
        data = base64.b64decode(value, validate=True)
        return np.frombuffer(data, "<f4")
    except (binascii.Error, ValueError) as error:
        raise DataError(
            f"{where} is no base64 of float32 numbers ({error}); was the file cut short?"
        ) from error


def _number(value: Any, where: str) -> float:
    try:
        number = float(value if isinstance(value, bytes | int) else np.asarray(value).item())
    except (ValueError, TypeError) as error:
        raise DataError(f"{where} is {value!r}; expected a number") from error
    if not np.isfinite(number):
        raise DataError(f"{where} is {number}; expected a number")
    return number


def _shares(boxes: np.ndarray, count: int, w: float, h: float, where: str) -> np.ndarray:
    """Pixel boxes (x0, y0, x1, y1) as (y0, x0, y1, x1) in [0, 1]."""
    if boxes.shape != (count, 4) or w <= 0 or h <= 0:
        raise DataError(
            f"{where}: boxes are {list(boxes.shape)} of a picture of {w:g} x {h:g} pixels; "
            f"expected [{count}, 4]"
        )
    size = np.array([w, h, w, h], np.float64)
    outside = (boxes < -SLACK) | (boxes > size + SLACK)
    # NaN compares as False. One pixel wide, both sides of a box are the same number.
    right = ~outside.any(axis=1) & (boxes[:, :2] <= boxes[:, 2:]).all(axis=1)
    if not right.all():
        number = int(np.argmin(right))
        raise DataError(
            f"{where}: box {number} {boxes[number].tolist()} is not (x0, y0, x1, y1) inside the "
            f"picture of {w:g} x {h:g} pixels"
        )
    return np.clip(boxes / size, 0.0, 1.0)[:, [1, 0, 3, 2]].astype(np.float32)
