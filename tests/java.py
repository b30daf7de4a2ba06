"""Java as most machines have it: not at all. That of METEOR takes ten seconds for any captions."""

import shutil

FOUND = shutil.which


def without(name: str, *more: object) -> str | None:
    """`shutil.which` where there is no Java."""
    return None if name == "java" else FOUND(name, *more)
