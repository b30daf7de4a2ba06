"""What users hand to a model of the API: pictures, boxes and features, checked."""

import io
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

from vse_jax.data import captions_files
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


def opened(picture: str | os.PathLike[str] | bytes, number: int = 0) -> Image.Image:
    """A picture in RGB, as the models see it.

    Args:
      picture: a path, or encoded bytes.
      number: of the picture, for messages.

    Raises:
      DataError: it cannot be read.
    """
    try:
        with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as opened:
            if opened.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
                grey = np.asarray(opened, np.uint32) // 257
                return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
            return opened.convert("RGB")
    # Pillow raises SyntaxError for a PNG whose chunks are broken.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        name = "bytes" if isinstance(picture, bytes) else picture
        raise DataError(f"picture {number} ({name}) cannot be read: {error}") from error
