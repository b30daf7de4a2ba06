"""Prepared files, whole or not there at all."""

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO

from vse_jax.data.split import DataError

# Where most of them go.
DATA_DIR = "data.data_dir must name a folder with room and permission to write"


def write(path: Path, fill: Callable[[IO[bytes]], object], advice: str = DATA_DIR) -> None:
    """Fills a file under another name, then moves it: `path` is whole or as it was.

    Args:
      path: its folder is made if need be.
      fill: writes the content.
      advice: what to do where that fails.

    Raises:
      DataError: there is no room or no permission.
    """
    # Opened as any other file, so that it may be read by whom the umask says.
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "xb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}; {advice}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
