"""Pictures of users: turned as their EXIF says; what is wrong with one is one error."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from vse_jax import inputs
from vse_jax.data.split import DataError
from vse_jax.exporting import use
from vse_jax.indexing import SUFFIXES

UPRIGHT = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
# EXIF's number -> how such a picture is stored: it says where its first row and column belong.
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],  # top, right
    3: UPRIGHT[::-1, ::-1],  # bottom, right
    4: UPRIGHT[::-1],  # bottom, left
    5: UPRIGHT.swapaxes(0, 1),  # left, top
    6: UPRIGHT[:, ::-1].swapaxes(0, 1),  # right, top
    7: UPRIGHT[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: UPRIGHT[::-1].swapaxes(0, 1),  # left, bottom
}


def encoded(pixels, suffix, **options):
    """A picture as bytes."""
    file = io.BytesIO()
    kind = Image.registered_extensions()[suffix]
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, kind, **options)
    return file.getvalue()


def oriented(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


@pytest.mark.parametrize("number", STORED)
@pytest.mark.parametrize(
    ("suffix", "options"), [(".png", {}), (".tif", {}), (".webp", {"lossless": True})]
)
def test_pictures_are_turned_as_their_exif_says(tmp_path, number, suffix, options):
    data = encoded(STORED[number], suffix, exif=oriented(number), **options)
    np.testing.assert_array_equal(inputs.opened(data), UPRIGHT)
    path = tmp_path / f"photo{suffix}"
    path.write_bytes(data)
    np.testing.assert_array_equal(inputs.pixels(0, path, 8), inputs.pixels(0, UPRIGHT, 8))
    np.testing.assert_array_equal(use.pixels(path, 8), inputs.pixels(0, UPRIGHT, 8))


def test_a_jpeg_is_turned_after_it_was_decoded():
    plain, turned = (encoded(STORED[6], ".jpg", exif=oriented(number)) for number in (1, 6))
    as_stored = np.asarray(Image.open(io.BytesIO(plain)))
    np.testing.assert_array_equal(inputs.opened(turned), np.rot90(as_stored, -1))
    # Of one that is decoded smaller, too.
    large = encoded(STORED[6].repeat(8, 0).repeat(8, 1), ".jpg", exif=oriented(6))
    assert inputs.opened(large, at_least=40).size == (48, 40)


def test_16_bits_are_turned():
    grey = np.arange(6, dtype=np.uint16).reshape(2, 3) * 257
    found = inputs.opened(encoded(grey, ".png", exif=oriented(3)))
    np.testing.assert_array_equal(np.asarray(found)[..., 0], [[5, 4, 3], [2, 1, 0]])


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nothing"])
def test_exif_that_cannot_be_read_makes_no_picture_unreadable(exif, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(UPRIGHT, ".png", exif=exif))
    np.testing.assert_array_equal(inputs.opened(path), UPRIGHT)
    np.testing.assert_array_equal(use.pixels(path, 8), inputs.pixels(0, UPRIGHT, 8))


def corruptions(data):
    """The same cut short at many places, and with other bytes, one each time."""
    for end in range(0, len(data), max(len(data) // 40, 1)):
        yield data[:end]
    for place in [*range(min(len(data), 160)), *range(160, len(data), 29)]:
        for byte in (0x00, 0x7F, 0xFF):
            yield data[:place] + bytes([byte]) + data[place + 1 :]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", sorted(SUFFIXES["images"]))
def test_whatever_is_corrupt_is_one_error(suffix, monkeypatch):
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)  # what is larger takes its time
    told = []
    for data in corruptions(encoded(UPRIGHT, suffix)):
        try:
            found = inputs.opened(data)
        except DataError as error:
            told.append(str(error))
        else:
            assert found.mode == "RGB"
    assert len(told) > 10
    assert not [line for line in told if "\n" in line or line.endswith(": ")]


@pytest.mark.parametrize("error", [EOFError, RuntimeError, IndexError, OSError])
def test_what_a_decoder_raises_is_about_its_picture(monkeypatch, error):
    def broken(_):
        raise error

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(DataError, match=rf"picture 3 \(a\.jpg\) cannot be read: {error.__name__}$"):
        inputs.opened(Path("a.jpg"), 3)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_is_about_no_picture_goes_through(monkeypatch, error):
    def broken(_):
        raise error

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(error):
        inputs.opened("a.jpg")
