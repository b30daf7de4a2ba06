"""What the tests of the demo share: drawn photos, and an index of them."""

import base64
import io

import pytest
from filelock import FileLock
from PIL import Image

from vse_jax import search
from vse_jax.data.shapes import builder

PHOTOS = 6


@pytest.fixture(scope="session")
def photos(shared_folder):
    """A folder of six scenes."""
    folder = shared_folder / "demo_photos"
    folder.mkdir(exist_ok=True)
    for number in range(PHOTOS):
        path = folder / f"scene <{number}>.jpg"
        path.write_bytes(builder.example(0, "test", number)["image"])
    return folder


@pytest.fixture(scope="session")
def index(trained, photos, shared_folder):
    """An index of `photos` by `trained`; for reading only."""
    folder = shared_folder / "demo_index"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            search.main(
                ["index", f"--workdir={trained}", f"--images={photos}", f"--index={folder}"]
            )
    return folder


@pytest.fixture(scope="session")
def as_data():
    """A picture or bytes -> a data URL, of a PNG where it is a picture."""

    def encoded(picture, kind="image/png"):
        if isinstance(picture, Image.Image):
            file = io.BytesIO()
            picture.save(file, "PNG")
            picture = file.getvalue()
        return f"data:{kind};base64,{base64.b64encode(picture).decode()}"

    return encoded
