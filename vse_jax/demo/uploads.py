"""What a request brings, checked before a model sees it: pictures as data, never as paths."""

import base64
import binascii
import io
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from vse_jax.data.rgb import upright

# Of an encoded picture, and of a decoded one.
BYTES, PIXELS = 10 * 2**20, 50_000_000
# By Pillow's names; browsers show all of them.
FORMATS = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
}
# Of a sentence.
CHARACTERS = 500


class UploadError(ValueError):
    """Something that is not taken: says why, in one line for who sent it."""


def picture(data: object) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of a picture that came as a data URL, upright as its camera was held.

    Args:
      data: "data:...;base64,...". What it says of its type is not believed.

    Raises:
      UploadError: it is none, of too many bytes or of an unknown type; or, before anything of it is
        decoded, of too many pixels; or it cannot be decoded.
    """
    encoded = _decoded(data)
    try:
        with warnings.catch_warnings():
            # Pillow only warns of some of what it takes for a bomb.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(encoded), formats=list(FORMATS)) as opened:
                if opened.width * opened.height > PIXELS:
                    raise UploadError(
                        f"the picture has {opened.width:,} x {opened.height:,} pixels; at most "
                        f"{PIXELS // 1_000_000} million are taken"
                    )
                return np.asarray(upright(opened))
    except UploadError:
        raise
    except UnidentifiedImageError:
        known = ", ".join(FORMATS).replace("WEBP", "WebP")
        raise UploadError(f"the file is no picture of a known type: {known}") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UploadError(
            f"the picture has more pixels than the {PIXELS // 1_000_000} million that are taken"
        ) from None
    except Exception as error:  # whatever a decoder raises, it raises it about this file
        raise UploadError(f"the picture cannot be read: {error}") from error


def _decoded(data: object) -> bytes:
    """The bytes of a data URL."""
    if not isinstance(data, str) or not data:
        raise UploadError("choose a picture first")
    head, comma, body = data.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise UploadError("the picture is not sent as data, and nothing else is taken")
    if (size := len(body) * 3 // 4) > BYTES + 2:
        raise UploadError(
            f"the picture has {size / 2**20:.1f} MB; at most {BYTES // 2**20} MB are taken"
        )
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UploadError(f"the picture is not sent as base64: {error}") from error


def sentence(text: object, may_be_empty: bool = False) -> str:
    """A sentence without white space around it.

    Raises:
      UploadError: it is none, empty or too long.
    """
    if text is None or (isinstance(text, str) and not text.strip()):
        if may_be_empty:
            return ""
        raise UploadError("write a sentence first")
    if not isinstance(text, str):
        raise UploadError("a sentence must be text")
    if len(text) > CHARACTERS:
        raise UploadError(
            f"the sentence has {len(text):,} characters; at most {CHARACTERS} are taken"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UploadError(f"the sentence is no Unicode text: {error.reason}") from error
    return text.strip()


def count(value: object, most: int) -> int:
    """A whole number from 1 to `most`; raises UploadError where it is none."""
    # JSON has no whole numbers of its own.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= most:
        raise UploadError(f"expected a whole number from 1 to {most}")
    if value != int(value):
        raise UploadError(f"expected a whole number from 1 to {most}")
    return int(value)
