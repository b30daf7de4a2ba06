"""Pixels in RGB of whatever Pillow opens."""

import numpy as np
from PIL import ExifTags, Image

# By the orientation that EXIF tells; 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def in_rgb(picture: Image.Image) -> Image.Image:
    """The picture in RGB, 8 bits a channel; transparency is dropped.

    As it is stored, and as the pipeline's decoder has it in training.
    """
    if picture.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        grey = np.asarray(picture, np.uint32) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    return picture.convert("RGB")


def upright(picture: Image.Image) -> Image.Image:
    """The same of a picture of a user, turned and mirrored as its EXIF says."""
    # Before it is asked how to turn it: Pillow turns TIFF itself, and then says so no more.
    found = in_rgb(picture)
    try:
        turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # EXIF that cannot be read makes no picture unreadable
        return found
    return found if turn is None else found.transpose(turn)
