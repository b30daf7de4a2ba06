import io
import json
import os

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from vse_jax.data import pictures
from vse_jax.data.split import DataError

NOISE = np.random.default_rng(0).integers(0, 255, (24, 32, 4), dtype=np.uint8)


def encode(mode="RGB", kind="JPEG"):
    if mode in ("RGBA", "CMYK"):
        picture = Image.fromarray(NOISE.copy()).convert(mode)
    elif mode == "I;16":
        picture = Image.fromarray(NOISE[..., 0].astype(np.uint16) * 200)
    else:
        picture = Image.fromarray(NOISE[..., :3].copy()).convert(mode)
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
def test_rgb_pictures_are_fit(kind):
    assert pictures.problem(encode(kind=kind), "skip") is None


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("L", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("1", "PNG"),
        ("I;16", "PNG"),
        ("RGBA", "PNG"),
        ("L", "BMP"),
        ("P", "GIF"),
    ],
)
def test_what_is_not_rgb_is_skipped_or_decoded_to_three_channels(mode, kind):
    data = encode(mode, kind)
    assert pictures.problem(data, "skip") == "not RGB"
    assert pictures.problem(data, "convert") is None
    decoded = tf.io.decode_image(data, channels=3, expand_animations=False)
    assert decoded.shape == (24, 32, 3)
    assert decoded.dtype == tf.uint8


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_picture_cut_short_is_corrupt(kind, share):
    data = encode(kind=kind)
    assert pictures.problem(data[: int(share * len(data))], "convert") == "corrupt picture"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"hello", "not a picture"),
        (b"<html>404</html>", "not a picture"),
        (b"\xff\xd8\xff", "corrupt picture"),
    ],
)
def test_what_is_no_picture_at_all(data, reason):
    assert pictures.problem(data, "convert") == reason


def test_tiff_which_training_cannot_decode_is_no_picture():
    assert pictures.problem(encode(kind="TIFF"), "convert") == "not a picture"


def test_a_second_call_decodes_only_what_changed(tmp_path, monkeypatch):
    paths = [str(tmp_path / name) for name in ("a.jpg", "b.jpg", "gone.jpg", "folder.jpg")]
    (tmp_path / "a.jpg").write_bytes(encode())
    (tmp_path / "b.jpg").write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    cache = tmp_path / "data" / "pictures.json"
    first = pictures.verify_files(paths, cache)
    faults = [first[path].fault for path in paths]
    assert faults == [None, "empty file", "no such file", "no such file"]

    seen = []
    inspect = pictures.inspect
    monkeypatch.setattr(pictures, "inspect", lambda data: seen.append(data) or inspect(data))
    assert pictures.verify_files(paths, cache) == first
    assert not seen
    (tmp_path / "b.jpg").write_bytes(encode("L"))
    assert pictures.verify_files(paths, cache)[paths[1]].problem("skip") == "not RGB"
    assert len(seen) == 1
    os.utime(paths[0], ns=(0, 0))
    assert pictures.verify_files(paths, cache)[paths[0]] == first[paths[0]]
    assert len(seen) == 2


@pytest.mark.parametrize("content", ["", "[]", '{"version": 1, "pictures": {"a": 3}}', '{"version'])
def test_a_damaged_cache_is_made_anew(tmp_path, content):
    path, cache = str(tmp_path / "a.jpg"), tmp_path / "pictures.json"
    (tmp_path / "a.jpg").write_bytes(encode())
    cache.write_text(content)
    assert pictures.verify_files([path], cache)[path].fault is None
    assert list(json.loads(cache.read_text())["pictures"]) == [path]


def test_a_picture_gone_since_names_its_path(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*gone\.jpg: No such file"):
        pictures.read_file(str(tmp_path / "gone.jpg"))
