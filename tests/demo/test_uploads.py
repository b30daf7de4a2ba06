"""What a request brings: what is taken, and what is refused before it is decoded."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vse_jax.demo import uploads
from vse_jax.demo.uploads import UploadError

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)


def saved(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def png_header(width, height):
    """A PNG that says it is so large, with no pixels behind."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = [
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (header, data, b"IEND")
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_pixels_of_a_picture(as_data, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    encoded = saved(Image.fromarray(PIXELS), kind, **options)
    # What is said of the type is not believed.
    np.testing.assert_array_equal(uploads.picture(as_data(encoded, "text/html")), PIXELS)


def test_grey_and_transparent_pictures_have_three_channels(as_data):
    grey = Image.fromarray(PIXELS[..., 0])
    found = uploads.picture(as_data(grey))
    np.testing.assert_array_equal(found, np.repeat(PIXELS[..., :1], 3, axis=2))
    assert uploads.picture(as_data(Image.new("RGBA", (4, 3), (9, 8, 7, 0)))).shape == (3, 4, 3)
    assert uploads.picture(as_data(saved(grey.convert("P"), "GIF"))).shape == (7, 5, 3)


def test_a_picture_is_turned_as_its_camera_was_held(as_data):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    encoded = saved(Image.fromarray(PIXELS), "PNG", exif=exif)
    np.testing.assert_array_equal(uploads.picture(as_data(encoded)), np.rot90(PIXELS, -1))


@pytest.mark.parametrize(("width", "height"), [(10_000, 6_000), (10_001, 9_999), (30_000, 30_000)])
def test_bombs_are_refused_by_their_header(as_data, width, height):
    with pytest.raises(UploadError, match=r"pixels.* 50 million"):
        uploads.picture(as_data(png_header(width, height)))


def test_a_header_alone_is_no_picture(as_data):
    with pytest.raises(UploadError, match="the picture cannot be read"):
        uploads.picture(as_data(png_header(100, 100)))


def test_a_picture_of_too_many_bytes(as_data, monkeypatch):
    encoded = as_data(Image.fromarray(PIXELS))
    size = len(saved(Image.fromarray(PIXELS), "PNG"))
    monkeypatch.setattr(uploads, "BYTES", size)
    assert uploads.picture(encoded).shape == (7, 5, 3)
    monkeypatch.setattr(uploads, "BYTES", size - 6)
    with pytest.raises(UploadError, match="MB are taken"):
        uploads.picture(encoded)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (None, "choose a picture first"),
        ("", "choose a picture first"),
        (7, "choose a picture first"),
        ("/etc/passwd", "not sent as data"),
        ("file:///etc/passwd", "not sent as data"),
        ("http://example.org/a.png", "not sent as data"),
        ("data:image/png,abc", "not sent as data"),
        ("data:image/png;base64,%%%%", "not sent as base64"),
        ("data:image/png;base64,é", "not sent as base64"),
        ("data:image/png;base64,", "no picture of a known type: JPEG, PNG, WebP, GIF, BMP"),
        ("data:image/png;base64,aGVsbG8=", "no picture of a known type"),
    ],
)
def test_what_is_no_picture(data, told):
    with pytest.raises(UploadError, match=told):
        uploads.picture(data)


def test_types_that_are_not_listed(as_data):
    for kind in ("TIFF", "PPM", "ICO"):
        with pytest.raises(UploadError, match="no picture of a known type"):
            uploads.picture(as_data(saved(Image.new("RGB", (16, 16)), kind)))


def test_a_picture_that_is_cut_off(as_data):
    encoded = saved(Image.fromarray(PIXELS), "PNG")
    for length in (9, 30, len(encoded) // 2):
        with pytest.raises(UploadError):
            uploads.picture(as_data(encoded[:length]))


def test_sentences():
    assert uploads.sentence("  a dog \n") == "a dog"
    assert uploads.sentence(" ", may_be_empty=True) == ""
    assert uploads.sentence("x" * uploads.CHARACTERS)
    for wrong, told in [
        (" ", "write a sentence"), (None, "write a sentence"), (["a"], "must be text"),
        ("x" * (uploads.CHARACTERS + 1), "has 501 characters; at most 500"),
        ("\ud800", "no Unicode text"),
    ]:  # fmt: skip
        with pytest.raises(UploadError, match=told):
            uploads.sentence(wrong)


def test_counts():
    assert [uploads.count(value, 5) for value in (1, 5, 3.0)] == [1, 5, 3]
    for wrong in (0, 6, -1, 1.5, float("nan"), float("inf"), True, "3", None):
        with pytest.raises(UploadError, match="a whole number from 1 to 5"):
            uploads.count(wrong, 5)
