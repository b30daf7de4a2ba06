"""How the processes of a run find, wait for, leave and lose each other."""

import ctypes
import os
import signal
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

# As the address of process 0: what the environment says.
AUTO = "auto"
# Silence after which another process counts as dead.
HEARTBEAT_SECONDS = 30
# In what backends say then: gloo of CPUs, NCCL of GPUs, JAX's coordination service.
_SIGNS_OF_A_LOSS = (
    "Gloo", "gloo", "NCCL", "by peer", "heartbeat", "oordination", "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
)  # fmt: skip
_ABORTED = (
    b"vse_jax: aborted, as JAX does (it says why above) when another process of the run has ended; "
    b"the same command on all of them goes on from what was saved\n"
)
T = TypeVar("T")


class ProcessesError(Exception):
    """Processes of one run that do not find, or have lost, each other."""


def initialize(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins this process to the others of the run; does nothing for a single process.

    Args:
      coordinator: "host:port" of process 0; or "auto", where the environment says all three: Cloud
        TPU, SLURM, Open MPI, Kubernetes.
      processes: how many there are.
      process: the number of this one.

    Raises:
      ProcessesError: the environment does not say, or the others did not come.
    """
    if coordinator is None:
        return
    own: dict[str, Any] = {}
    if coordinator != AUTO:
        own = {
            "coordinator_address": coordinator, "num_processes": processes, "process_id": process
        }  # fmt: skip
    try:
        jax.distributed.initialize(**own, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        told = " ".join(str(error).split())
        raise ProcessesError(f"--coordinator={coordinator} brings no processes: {told}") from error
    _explain_aborts()


_AbortHandler = ctypes.CFUNCTYPE(None, ctypes.c_int)


@_AbortHandler
def _on_abort(number: int) -> None:
    """Ends the process with one clear line, where it would with a dump of all its threads."""
    del number
    os.write(2, _ABORTED)
    os._exit(1)


def _explain_aborts() -> None:
    """Has `_on_abort` called where a library aborts this process.

    JAX's client of the coordination service does so as soon as process 0 has ended, or another has
    been silent for too long, unless a collective fails before. It takes no callback from Python
    (JAX 0.10: the status has no type there), and a handler of `signal.signal` would come too late:
    Python calls it from the main thread when the process has gone.
    """
    handle = ctypes.CDLL(None).signal
    handle.argtypes, handle.restype = (ctypes.c_int, _AbortHandler), ctypes.c_void_p
    handle(signal.SIGABRT, _on_abort)


def leave() -> None:
    """Takes leave of the other processes: from here on each works and ends by itself.

    Without it one that ends waits for the others, and for those that take minutes in vain.
    """
    jax.distributed.shutdown()


def misfit(coordinator: str | None, processes: int | None, process: int | None) -> str | None:
    """What is wrong with flags of these names for `initialize`, if they do not belong together."""
    given = (coordinator is not None, processes is not None, process is not None)
    automatic = coordinator == AUTO
    if any(given) and given != (True, not automatic, not automatic):
        return (
            "--coordinator=host:port, --processes and --process belong together; of "
            f"--coordinator={AUTO} the environment says the others"
        )
    if processes is not None and process is not None and not 0 <= process < processes:
        return f"--process is {process}; of {processes} --processes it must be one from 0 on"
    return None


def loss_behind(error: BaseException | None) -> str | None:
    """What to tell of a collective or a barrier that failed as another process has ended.

    None where nothing says so, neither the error nor what it comes from.
    """
    if jax.process_count() == 1:
        return None
    while error is not None:
        if any(sign in str(error) for sign in _SIGNS_OF_A_LOSS):
            said = " ".join(str(error).split())[:200]
            return (
                "another process of the run has ended; the same command on all of them goes on "
                f"from what was saved ({said})"
            )
        error = error.__cause__
    return None


def process_share() -> dict[str, int]:
    """{"process": number of this one, "processes": how many there are}."""
    return {"process": jax.process_index(), "processes": jax.process_count()}


def is_first_process() -> bool:
    """Whether this process writes logs and reports."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def all_agree(value: bool) -> bool:
    """Whether `value` is true in every process."""
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.asarray(value))))


def as_the_first(value: int) -> int:
    """`value` of process 0, in every process."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def first_process_first(name: str, function: Callable[[], T]) -> T:
    """`function()`, run by process 0 before the others: it may prepare what they then find."""
    if is_first_process():
        result = function()
        barrier(name)
    else:
        barrier(name)
        result = function()
    return result


def agreed_interruption(step: int, interrupted: bool) -> bool:
    """Whether to stop at this step, the same answer in every process.

    A single process follows its own flag; several follow JAX's preemption service, which
    picks a step that all of them reach after any one of them got SIGTERM.
    """
    if jax.process_count() == 1:
        return interrupted
    return bool(multihost_utils.reached_preemption_sync_point(step))
