"""Prepared files, whole or not there at all."""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from vse_jax.data.split import DataError


def write(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Fills a file under another name, then moves it: `path` is whole or as it was.

    Args:
      path: in `data.data_dir`; its folder is made if need be.
      fill: writes the content.

    Raises:
      DataError: there is no room or no permission.
    """
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=path.name, suffix=".partial", delete=False
        ) as file:
            partial = file.name
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if partial is not None:
            with contextlib.suppress(OSError):
                os.unlink(partial)
        raise DataError(
            f"cannot write {path}: {error.strerror or error}; data.data_dir must name a folder "
            "with room and permission to write"
        ) from error
