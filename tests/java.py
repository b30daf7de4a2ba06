"""Java as most machines have it: not at all."""

import shutil
from functools import partial


def hidden() -> partial[str | None]:
    """`shutil.which` without Java, whose METEOR takes ten seconds for any captions."""
    return partial(_which, shutil.which)


def _which(which, name: str, *more: object) -> str | None:
    return None if name == "java" else which(name, *more)
