"""Pixels in RGB of whatever Pillow opens, as the pipeline's decoder has them."""

import numpy as np
from PIL import Image


def in_rgb(picture: Image.Image) -> Image.Image:
    """The picture in RGB, 8 bits a channel; transparency is dropped."""
    if picture.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        grey = np.asarray(picture, np.uint32) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    return picture.convert("RGB")
