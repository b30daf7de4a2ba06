"""Checkpoints by Orbax: saved in the background, verified when read, the one before as spare."""

import logging
import os
import zlib
from collections.abc import Mapping
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
        """Starts saving host arrays as checkpoint `step`; returns before they are on disk."""
        if step in self._manager.all_steps():
            return
        leaves = _leaves(state)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(traverse_util.unflatten_dict(leaves, sep="/")),
                checksums=ocp.args.JsonSave({name: _checksum(x) for name, x in leaves.items()}),
            ),
        )

    def restore(self, template: Any) -> Any | None:
        """The newest whole checkpoint as host arrays shaped like `template`; None if there is none.

        A damaged one is put aside with a warning (`<folder>.damaged`), and the one before used.

        Raises:
          CheckpointError: there are checkpoints, and every one is damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                return self._read(step, template)
            except Exception as error:  # whatever Orbax and TensorStore raise for a bad file
                message = str(error).splitlines()[0] if str(error) else type(error).__name__
                log.warning("checkpoint %d is damaged, trying the one before: %s", step, message)
                self._put_aside(step)
        if steps:
            raise CheckpointError(
                f"{self.folder}: every checkpoint ({', '.join(map(str, steps))}) is damaged; "
                f"they are kept in {self.folder}.damaged. Use another --workdir to begin anew"
            )
        return None

    def wait(self) -> None:
        """Returns when every save is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go of the folder."""
        self._manager.close()

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(max_to_keep=self._keep, create=True),
            item_names=("state", "checksums"),
        )

    def _read(self, step: int, template: Any) -> Any:
        wanted = _leaves(template)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(traverse_util.unflatten_dict(wanted, sep="/")),
                checksums=ocp.args.JsonRestore(),
            ),
        )
        found: Mapping[str, np.ndarray] = traverse_util.flatten_dict(restored["state"], sep="/")
        for name, like in wanted.items():
            if found[name].shape != like.shape or found[name].dtype != like.dtype:
                raise CheckpointError(
                    f"{name} is {found[name].dtype}{list(found[name].shape)}, "
                    f"expected {like.dtype}{list(like.shape)}"
                )
            if _checksum(found[name]) != restored["checksums"].get(name):
                raise CheckpointError(f"{name} does not match its checksum")
        treedef = jax.tree.structure(template)
        return jax.tree.unflatten(treedef, [np.asarray(found[name]) for name in wanted])

    def _put_aside(self, step: int) -> None:
        self._manager.close()
        if parallel.is_first_process():
            damaged = Path(f"{self.folder}.damaged")
            damaged.mkdir(exist_ok=True)
            number = sum(1 for _ in damaged.iterdir())
            (self.folder / str(step)).rename(damaged / f"{step}.{number}")
        parallel.barrier(f"put aside {step}")
        self._manager = self._open()


def read_newest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The newest whole checkpoint of a folder as nested dicts of host arrays, nothing changed.

    Raises:
      CheckpointError: there is none.
    """
    path = Path(os.path.abspath(folder))
    names = [child.name for child in path.iterdir()] if path.is_dir() else []
    for step in sorted((int(name) for name in names if name.isdigit()), reverse=True):
        try:
            return _verified(path / str(step))
        except Exception as error:  # whatever Orbax and TensorStore raise for a bad file
            log.warning("checkpoint %d is damaged, trying the one before: %s", step, error)
    raise CheckpointError(f"{path} has no usable checkpoint; train the workdir first")


def _verified(checkpoint: Path) -> dict[str, Any]:
    """The arrays of one checkpoint, each checked against its checksum."""
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        found = checkpointer.restore(
            checkpoint,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeRestore(), checksums=ocp.args.JsonRestore()
            ),
        )
    leaves = {k: np.asarray(v) for k, v in _flat(found["state"]).items()}
    for name, checksum in found["checksums"].items():
        if name not in leaves or _checksum(leaves[name]) != checksum:
            raise CheckpointError(f"{name} does not match its checksum")
    return traverse_util.unflatten_dict(leaves, sep="/")


def _flat(tree: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep="/")


def _leaves(state: Any) -> dict[str, np.ndarray]:
    """The arrays of a state by path, in the order of `jax.tree.leaves`."""
    flat, _ = jax.tree_util.tree_flatten_with_path(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in flat
    }


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
