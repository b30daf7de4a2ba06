"""What users hand to a model of the API: pictures, boxes and features, checked."""

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from vse_jax import config_checks
from vse_jax.boxes import cropped
from vse_jax.data import box_files, captions_files
from vse_jax.data.rgb import upright
from vse_jax.data.split import DataError

Picture = str | os.PathLike[str] | bytes | np.ndarray
# [r, 4] of one picture.
Boxes = np.ndarray | Sequence[Sequence[float]] | Sequence[np.ndarray]


def pixels(number: int, picture: Picture, size: int) -> np.ndarray:
    """uint8 [size, size, 3], resized whole: bilinear with antialiasing, as in training."""
    image = in_own_size(number, picture)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def in_own_size(number: int, picture: Picture) -> Image.Image:
    """A picture in its own size; raises DataError where it is none."""
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.shape[2:] != (3,) or not picture.size:
            raise DataError(
                f"picture {number} is {picture.dtype}{list(picture.shape)}; "
                "expected uint8 [h, w, 3]"
            )
        return Image.fromarray(picture)
    if isinstance(picture, str | os.PathLike | bytes):
        return opened(picture, number)
    raise DataError(
        f"picture {number} is a {type(picture).__name__}; expected a path, bytes or an array"
    )


def checked_boxes(boxes: Boxes, where: str) -> Float[np.ndarray, "r 4"]:
    """Boxes as float32; raises DataError that says which is none."""
    try:
        listed = [np.asarray(box).tolist() for box in boxes]
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: boxes are {boxes!r}; expected [r, 4]") from error
    found = captions_files.boxes_of(listed, where)
    assert found is not None
    return found


def boxes_given(text: str, pictures: Sequence[str]) -> list[Float[np.ndarray, "_ 4"]]:
    """The boxes [r, 4] that a flag --boxes gives for each picture.

    Args:
      text: JSON, "[[y0, x0, y1, x1], ...]", for every picture; or a file for `box_files.listed`.
        They are of pictures that are upright, as `opened` has them.
      pictures: paths, by which the file knows them, or else by their names alone.

    Raises:
      DataError: there are none of a picture, or they are of two pictures of one name.
    """
    if text.lstrip().startswith("["):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"--boxes is not JSON: {error}") from error
        boxes = captions_files.boxes_of(value, "--boxes")
        assert boxes is not None
        return [boxes] * len(pictures)
    if not text:
        raise DataError("--boxes is empty; expected [[y0, x0, y1, x1], ...] or a file of boxes")
    known = box_files.listed(Path(text).expanduser())
    keys = [path if path in known else os.path.basename(path) for path in pictures]
    by_name: dict[str, str] = {}
    for path, key in zip(pictures, keys, strict=True):
        if key not in known:
            first = next(iter(known), "no picture")
            raise DataError(f"{text} has no boxes of {path}; its first is of {first}")
        if os.path.normpath(other := by_name.setdefault(key, path)) != os.path.normpath(path):
            raise DataError(
                f"{text} knows {other} and {path} by one name, {key}: write their paths there"
            )
    return [known[key] for key in keys]


def regions(
    pictures: Sequence[Picture], boxes: Sequence[Boxes], size: int
) -> list[UInt8[np.ndarray, "{size} {size} 3"]]:
    """Every box of every picture, cropped and resized as `pixels` is; the first picture's first.

    Args:
      pictures: as of the API.
      boxes: [r, 4] of each.
      size: pixels a side.

    Raises:
      DataError: something that is no picture or no box, a picture without boxes, or boxes of more
        or fewer pictures.
    """
    if len(boxes) != len(pictures):
        raise DataError(f"boxes of {len(boxes)} pictures, but the pictures are {len(pictures)}")
    found = []
    for number, (picture, own) in enumerate(zip(pictures, boxes, strict=True)):
        image = in_own_size(number, picture)
        corners = checked_boxes(own, f"picture {number}").tolist()
        if not corners:
            raise DataError(f"picture {number} has no boxes; expected [[y0, x0, y1, x1], ...]")
        found += [pixels(number, np.asarray(cropped(image, box)), size) for box in corners]
    return found


def checked_regions(number: int, features: object, width: int) -> Float[np.ndarray, "r f"]:
    """The features of a picture as float32; raises DataError unless each is of this width."""
    found = features if isinstance(features, np.ndarray) else None
    kind = type(features).__name__ if found is None else f"{found.dtype}{list(found.shape)}"
    fits = found is not None and found.ndim == 2 and found.shape[1] == width and len(found)
    if found is None or not fits or not np.issubdtype(found.dtype, np.floating):
        raise DataError(
            f"picture {number} is {kind}; this model was trained on features, and expected are "
            f"floats [regions, {width}]"
        )
    found = found.astype(np.float32)
    if not np.isfinite(found).all():
        raise DataError(f"the features of picture {number} are not finite")
    return found


def check_writing(
    temperature: float | None, of_search: Mapping[str, Any], of_draws: Mapping[str, Any]
) -> None:
    """Raises ValueError where captions cannot be searched for, or drawn at a temperature, so.

    Args:
      temperature: None for a search.
      of_search: `beams`, `n_best` and `length_power`; None where they are left open.
      of_draws: `top_k`, `samples` and `seed`.
    """
    if temperature is None and (of_draws["top_k"] is not None or of_draws["samples"] != 1):
        raise ValueError("top_k and samples are of captions that are drawn: give a temperature")
    left_open = {"beams": None, "n_best": 1, "length_power": None}
    if temperature is not None and of_search != left_open:
        raise ValueError(
            "beams, n_best and length_power are of the search for the best captions: give no "
            "temperature, or leave them out"
        )
    counts = config_checks.RANGES["evaluate.beams"]
    ranges = {"beams": counts, "samples": counts, "top_k": (1, float("inf"))}
    for name, (least, most) in (ranges | {"seed": config_checks.RANGES["seed"]}).items():
        value = {**of_search, **of_draws}[name]
        is_whole = isinstance(value, int | np.integer)
        if value is not None and not (is_whole and least <= value <= most):
            raise ValueError(f"{name} is {value}; expected a whole number from {least} to {most}")


def opened(
    picture: str | os.PathLike[str] | bytes, number: int = 0, at_least: int | None = None
) -> Image.Image:
    """A picture in RGB as the models see it, upright as its EXIF says.

    Args:
      picture: a path, or encoded bytes.
      number: of the picture, for messages.
      at_least: pixels a side that suffice: a JPEG may be decoded smaller, and faster.

    Raises:
      DataError: it cannot be read, for the reason that is its cause.
    """
    try:
        with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as opened:
            if at_least is not None:
                opened.draft("RGB", (at_least, at_least))
            return upright(opened)
    except MemoryError:
        raise
    except Exception as error:  # whatever a decoder raises, it raises it about this picture
        name = "bytes" if isinstance(picture, bytes) else picture
        raise DataError(f"picture {number} ({name}) cannot be read: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """What a decoder raised, in one line; some say nothing but their names."""
    return " ".join(str(error).split()) or type(error).__name__
