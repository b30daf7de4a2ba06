"""Whether encoded pictures are fit for training: each decoded whole, once, as training will."""

import hashlib
import io
import json
import logging
import os
import pathlib
from collections.abc import Sequence
from concurrent import futures
from typing import Any, NamedTuple

import tensorflow as tf
from PIL import Image

from vse_jax.data import whole_file
from vse_jax.data.split import DataError

log = logging.getLogger(__name__)

MISSING = "no such file"
UNREADABLE = "unreadable file"
_CACHE_VERSION = 1
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"RIFF")


class Finding(NamedTuple):
    """What reading and decoding a picture showed.

    Attributes:
      fault: why it cannot be used at all, or None.
      mode: how its pixels are stored, under Pillow's name ("RGB", "L", "CMYK"); None with a fault.
      digest: SHA-256 (hex) of the encoded picture; None where it could not be read.
    """

    fault: str | None
    mode: str | None
    digest: str | None

    def problem(self, non_rgb: str) -> str | None:
        """Why the picture is left out: its fault, or "not RGB" where `non_rgb` is "skip"."""
        if self.fault is None and self.mode != "RGB" and non_rgb == "skip":
            return "not RGB"
        return self.fault


def inspect(data: bytes) -> Finding:
    """Finding of an encoded picture, from decoding all of it.

    The decoder is training's (`tf.io.decode_image`: JPEG, PNG, GIF, BMP and WebP; of an animation
    the first frame), so what passes here never fails there. Faults: "empty file",
    "not a picture" (none of those formats), "corrupt picture" (cut short or damaged).
    """
    digest = hashlib.sha256(data).hexdigest()
    if not data:
        return Finding("empty file", None, digest)
    if not data.startswith(_SIGNATURES):
        return Finding("not a picture", None, digest)
    try:
        with tf.device("cpu"):
            tf.io.decode_image(data, channels=3, expand_animations=False)
        with Image.open(io.BytesIO(data)) as picture:
            return Finding(None, picture.mode, digest)
    except (tf.errors.OpError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return Finding("corrupt picture", None, digest)


def problem(data: bytes, non_rgb: str) -> str | None:
    """Why an encoded picture is left out, or None where it is fit.

    Args:
      data: the encoded picture.
      non_rgb: "skip" leaves out what is not stored as RGB (greyscale, CMYK, palette, with alpha)
        as "not RGB"; "convert" keeps it, for the decoder makes RGB of every such mode.
    """
    return inspect(data).problem(non_rgb)


def verify_files(paths: Sequence[str], cache: pathlib.Path) -> dict[str, Finding]:
    """Finding of each path; a missing file's fault is "no such file".

    All cores decode at once. What was found is kept in the file `cache` with each file's size and
    time of change, so that a later call decodes only files that are new or changed.
    Raises DataError where the cache cannot be written.
    """
    stamps = {path: stamp for path in paths if (stamp := _stamp(path))}
    known = _read_cache(cache)
    fresh = [path for path, stamp in stamps.items() if known.get(path, ())[:2] != stamp]
    if fresh:
        log.info("verifying %d of %d pictures", len(fresh), len(paths))
        with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            findings = pool.map(_inspect_file, fresh)
            for path, finding in zip(fresh, findings, strict=True):
                known[path] = (*stamps[path], *finding)
        content = json.dumps({"version": _CACHE_VERSION, "pictures": known}).encode()
        whole_file.write(cache, lambda file: file.write(content))
    missing = Finding(MISSING, None, None)
    return {path: Finding(*known[path][2:]) if path in stamps else missing for path in paths}


def read_file(path: str) -> bytes:
    """The encoded picture in a file; raises DataError where it cannot be read any more."""
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}; it was there when the pictures were verified"
        ) from error


def _stamp(path: str) -> tuple[int, int] | None:
    """Size in bytes and time of last change in ns; None where there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns) if os.path.isfile(path) else None


def _inspect_file(path: str) -> Finding:
    try:
        return inspect(pathlib.Path(path).read_bytes())
    except OSError:
        return Finding(UNREADABLE, None, None)


def _read_cache(cache: pathlib.Path) -> dict[str, tuple[Any, ...]]:
    """Entries (size, mtime_ns, fault, mode, digest) by path; none where absent or damaged."""
    try:
        content = json.loads(cache.read_text())
        if content["version"] != _CACHE_VERSION:
            return {}
        entries = {path: tuple(entry) for path, entry in content["pictures"].items()}
        # What could not be read may be readable by now, with size and time as they were.
        return {path: entry for path, entry in entries.items() if entry[2] != UNREADABLE}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
