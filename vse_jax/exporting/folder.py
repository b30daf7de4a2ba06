"""The folder of an export: there whole or not at all, and never in the place of other things."""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Says of a folder what it is.
ABOUT = "export.json"


class ExportError(Exception):
    """A model that cannot be exported so, or not to there: says why, and what would do."""


def check(output: Path) -> None:
    """Raises ExportError unless `output` may be made, or is an export's alone and replaced."""
    if output.is_dir():
        own, found = _listed(output), _files(output)
        other = sorted(found - own) if own else sorted(found)
        if other:
            raise ExportError(
                f"{output} has other things in it ({other[0]}): give an --output that does not "
                "exist, or an earlier export, which is replaced"
            )
    elif output.exists() or output.is_symlink():
        raise ExportError(f"{output} is no folder")
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise ExportError(f"{output} cannot be written: {parent} is no folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ExportError(f"{output} cannot be written: no permission in {parent}")


@contextlib.contextmanager
def whole(output: Path, about: Mapping[str, Any]) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `output` where nothing is raised.

    Args:
      output: as `check` lets pass.
      about: for `export.json`, to which the names of all files are added.

    Raises:
      ExportError: there is no room or no permission.
    """
    output = output.absolute()
    mark = secrets.token_hex(4)
    partial, old = (output.with_name(f".{output.name}.{mark}.{kind}") for kind in ("new", "old"))
    try:
        partial.mkdir(parents=True)
        yield partial
        files = sorted({*_files(partial), ABOUT})
        (partial / ABOUT).write_text(json.dumps({**about, "files": files}, indent=2) + "\n")
        for file in files:
            with open(partial / file, "rb") as written:
                os.fsync(written.fileno())
        if output.exists():
            output.rename(old)
        partial.rename(output)
    except OSError as error:
        raise ExportError(f"{output} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if output.exists():
            shutil.rmtree(old, ignore_errors=True)
        elif old.exists():
            old.rename(output)


def size(output: Path) -> int:
    """Bytes of all its files."""
    return sum((output / name).stat().st_size for name in _files(output))


def _files(folder: Path) -> set[str]:
    """Names of all files below a folder."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def _listed(folder: Path) -> set[str]:
    """The files that an earlier export says to be its own; none where it is no export."""
    try:
        return set(json.loads((folder / ABOUT).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, LookupError, TypeError):
        return set()
