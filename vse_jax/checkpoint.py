"""Checkpoints by Orbax: saved in the background, verified when read, the one before as spare."""

import contextlib
import logging
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from vse_jax import parallel

log = logging.getLogger(__name__)


class CheckpointError(Exception):
    """No usable checkpoint where one is needed."""


class Checkpoints:
    """The newest checkpoints of one folder.

    A checkpoint is a nested dict of the state's arrays (`params/image/project/kernel`, ...)
    and a checksum of each. Orbax writes into a temporary folder and renames it, so that a
    save cut short leaves no checkpoint; the checksums find what was damaged afterwards.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int) -> None:
        """Opens `folder`, made if need be, for the newest `keep` checkpoints."""
        self.folder = Path(os.path.abspath(folder))
        self._keep = keep
        self._manager = self._open()

    def save(self, step: int, state: Any) -> None:
        """Starts saving host arrays as checkpoint `step`; returns before they are on disk.

        Raises:
          CheckpointError: this save or the one before cannot be written.
        """
        if step in self._manager.all_steps():
            return
        leaves = _leaves(state)
        with self._written():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(traverse_util.unflatten_dict(leaves, sep="/")),
                    checksums=ocp.args.JsonSave({k: checksum(x) for k, x in leaves.items()}),
                ),
            )
            if parallel.process_share()["processes"] > 1:
                # Two managers of a run share the names of Orbax's barriers: one at a time.
                self._manager.wait_until_finished()

    def restore(self, template: Any) -> Any | None:
        """The newest whole checkpoint as host arrays shaped like `template`; None if there is none.

        A damaged one is put aside with a warning (`<folder>.damaged`), and the one before used.

        Raises:
          CheckpointError: there are checkpoints, and every one is damaged; or the newest whole
            one has other arrays than `template`, and stays where it is.
        """
        steps = sorted(self._manager.all_steps())
        for step in reversed(steps):
            leaves, message = None, "another process could not read it"
            try:
                leaves = self._read(step)
            except Exception as error:  # whatever Orbax and TensorStore raise for a bad file
                message = str(error).splitlines()[0] if str(error) else type(error).__name__
            # One process alone may fail to read it: all go back, or all go on.
            whole = parallel.all_agree(leaves is not None)
            if whole and leaves is not None:
                return _fitted(leaves, template, f"{self.folder}: checkpoint {step}")
            log.warning("checkpoint %d is damaged, trying the one before: %s", step, message)
            self._put_aside(step)
        if steps:
            raise CheckpointError(
                f"{self.folder}: every checkpoint ({', '.join(map(str, steps))}) is damaged; "
                f"they are kept in {self.folder}.damaged. Use another --workdir to begin anew"
            )
        return None

    def newest(self) -> int | None:
        """The number of the newest checkpoint; None without any."""
        return max(self._manager.all_steps(), default=None)

    def wait(self) -> None:
        """Returns when every save is on disk; raises CheckpointError if one cannot be."""
        with self._written():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, as `wait`, and lets go of the folder."""
        with self._written():
            self._manager.close()

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Names the folder in whatever Orbax and TensorStore raise where they cannot write."""
        try:
            yield
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(
                f"{self.folder}: a checkpoint cannot be written: {reason}. The ones before are "
                "whole: free some space, or see to the permissions, and run the same command"
            ) from error

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(max_to_keep=self._keep, create=True),
            item_names=("state", "checksums"),
        )

    def _read(self, step: int) -> dict[str, np.ndarray]:
        found = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(), checksums=ocp.args.JsonRestore()
            ),
        )
        return checked(found["state"], found["checksums"])

    def _put_aside(self, step: int) -> None:
        self._manager.close()
        if parallel.is_first_process():
            damaged = Path(f"{self.folder}.damaged")
            damaged.mkdir(exist_ok=True)
            number = sum(1 for _ in damaged.iterdir())
            (self.folder / str(step)).rename(damaged / f"{step}.{number}")
        parallel.barrier(f"put aside {step}")
        self._manager = self._open()


def any_in(folder: Path) -> bool:
    """Whether a folder of checkpoints has one, whole or not."""
    return folder.is_dir() and any(child.name.isdigit() for child in folder.iterdir())


def read_newest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The newest whole checkpoint of a folder as nested dicts of host arrays, nothing changed.

    Raises:
      CheckpointError: there is none, or every one is damaged.
    """
    path = Path(os.path.abspath(folder))
    names = [child.name for child in path.iterdir()] if path.is_dir() else []
    steps = sorted((int(name) for name in names if name.isdigit()), reverse=True)
    for step in steps:
        try:
            return _verified(path / str(step))
        except Exception as error:  # whatever Orbax and TensorStore raise for a bad file
            log.warning("checkpoint %d is damaged, trying the one before: %s", step, error)
    if steps:
        raise CheckpointError(
            f"{path} has no usable checkpoint: every one ({', '.join(map(str, steps))}) is damaged"
        )
    raise CheckpointError(f"{path} has no usable checkpoint; train the workdir first")


def newest_of(folder: str | os.PathLike[str]) -> Path | None:
    """The newest checkpoint of a folder, whole or not; None without any."""
    path = Path(os.path.abspath(folder))
    if not any_in(path):
        return None
    return max((child for child in path.iterdir() if child.name.isdigit()), key=_number)


def parameters_of(checkpoint: Path) -> int:
    """How many numbers the model of a checkpoint has; reads none of them.

    Raises:
      CheckpointError: it does not say.
    """
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.metadata(checkpoint / "state").item_metadata.tree
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree["params"]))
    except Exception as error:  # whatever Orbax and TensorStore raise for a bad file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"checkpoint {checkpoint} is damaged: {reason}") from error


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name)


def _verified(checkpoint: Path) -> dict[str, Any]:
    """The arrays of one checkpoint, each checked against its checksum."""
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        found = checkpointer.restore(
            checkpoint,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeRestore(), checksums=ocp.args.JsonRestore()
            ),
        )
    return traverse_util.unflatten_dict(checked(found["state"], found["checksums"]), sep="/")


def checked(state: Any, checksums: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The arrays as read, by path; raises CheckpointError where one is missing or has changed."""
    flat = traverse_util.flatten_dict(state, sep="/")
    leaves = {name: np.asarray(leaf) for name, leaf in flat.items()}
    for name in leaves.keys() | checksums.keys():
        if name not in leaves or checksum(leaves[name]) != checksums.get(name):
            raise CheckpointError(f"{name} does not match its checksum")
    return leaves


def _fitted(leaves: Mapping[str, np.ndarray], template: Any, what: str) -> Any:
    """The arrays in the structure of `template`."""
    wanted = {name: _kind(leaf) for name, leaf in _leaves(template).items()}
    found = {name: _kind(leaf) for name, leaf in leaves.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise CheckpointError(
                f"{what} is of another model: {name} is {found.get(name, 'missing')}, "
                f"expected {wanted.get(name, 'nothing')}. Use another --workdir to begin anew"
            )
    return jax.tree.unflatten(jax.tree.structure(template), [leaves[name] for name in wanted])


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _leaves(state: Any) -> dict[str, np.ndarray]:
    """The arrays of a state by path, in the order of `jax.tree.leaves`."""
    flat, _ = jax.tree_util.tree_flatten_with_path(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in flat
    }


def checksum(array: np.ndarray) -> int:
    """CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
