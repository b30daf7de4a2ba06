"""Folders of models on the Hugging Face hub: fetched, and exported ones uploaded."""

import os
import re
from pathlib import Path

from vse_jax import workdir
from vse_jax.models.backbones import weights
from vse_jax.workdir import WorkdirError

PREFIX = "hub:"
# What is read of a repository: of published weights, and of what `vse_jax.export` wrote. Others
# have the same weights in formats beside it.
FILES = (*weights.FILES, workdir.ORIGIN, "export.json", "ranking/*")


class HubError(Exception):
    """A repository that cannot be uploaded to: says why, and what to do."""


def reference(name: str) -> str:
    """What `located` takes: a path where there is such a one, else the hub's repository."""
    is_local = os.path.exists(os.path.expanduser(name)) or name.startswith(PREFIX)
    return name if is_local else PREFIX + name


def located(folder: str | os.PathLike[str]) -> Path:
    """A local folder: itself, or of "hub:OWNER/NAME[@REVISION]" what the hub has.

    Raises:
      WorkdirError: the hub has no such, or cannot be reached.
    """
    if not is_remote(folder):
        return Path(folder).expanduser()
    name, _, revision = str(folder).removeprefix(PREFIX).partition("@")
    if not is_name(name):
        raise WorkdirError(
            f"{folder}: {name!r} is no repository; expected hub:OWNER/NAME, or a folder that exists"
        )
    import huggingface_hub

    try:
        found = huggingface_hub.snapshot_download(
            name, revision=revision or None, allow_patterns=list(FILES)
        )
    except Exception as error:  # The client's errors come from three packages.
        raise WorkdirError(f"{folder} cannot be fetched from the hub: {_told(error)}") from error
    if not any(Path(found, name).is_file() for name in (weights.WEIGHTS, weights.INDEX)):
        raise WorkdirError(
            f"{folder} has no {weights.WEIGHTS} on the hub: give a revision that has one "
            "(@REVISION; refs/pr/N where it is proposed)"
        )
    return Path(found)


def is_remote(folder: str | os.PathLike[str]) -> bool:
    """Whether `located` would ask the hub for it."""
    return str(folder).startswith(PREFIX)


def is_name(name: str) -> bool:
    """Whether a repository may have that name, OWNER/NAME."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def push(folder: Path, name: str) -> str:
    """Uploads a folder as it is to a model repository, made if need be; the address of it.

    Raises:
      HubError: the hub cannot be reached, or this user may not.
    """
    import huggingface_hub

    try:
        interface = huggingface_hub.HfApi()
        interface.create_repo(name, exist_ok=True)
        interface.upload_folder(
            repo_id=name, folder_path=folder, commit_message="A model exported by vse_jax"
        )
    except Exception as error:  # The client's errors come from three packages.
        raise HubError(
            f"{name} cannot be uploaded to: {_told(error)}. It takes a connection to the hub and "
            f"an access token with write permission (hf auth login, or HF_TOKEN); the files are "
            f"whole in {folder}"
        ) from error
    return f"https://huggingface.co/{name}"


def _told(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
