"""Batches of any size: what is exported once has a symbol where training has a number."""

from typing import Any

import jax.export


def is_symbolic(*sizes: Any) -> bool:
    """Whether one of these sizes of axes is a symbol, of which nothing static can be made."""
    return any(jax.export.is_symbolic_dim(size) for size in sizes)
