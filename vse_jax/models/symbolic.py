"""What is exported once for batches of any size: a symbol stands where training has a number."""

from typing import Any

import jax.export

# Of an axis: a number, or a symbol for any.
Size = Any


def is_symbolic(*sizes: Size) -> bool:
    """Whether one of these sizes of axes is a symbol, of which nothing static can be made."""
    return any(jax.export.is_symbolic_dim(size) for size in sizes)
