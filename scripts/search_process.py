"""A process of the selective search that `propose_regions.py` starts."""

import multiprocessing
import os
import threading

from vse_jax.data import proposals


def prepare() -> None:
    """Makes OpenCV use one thread, and this process end when its parent has, even by a kill."""
    proposals.opencv().setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
