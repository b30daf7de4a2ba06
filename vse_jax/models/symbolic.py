"""What is exported once for batches of any size: a symbol stands where training has a number."""

from typing import Any

import jax.export


def is_symbolic(*sizes: Any) -> bool:
    """Whether one of these sizes of axes is a symbol, of which nothing static can be made."""
    return any(jax.export.is_symbolic_dim(size) for size in sizes)
