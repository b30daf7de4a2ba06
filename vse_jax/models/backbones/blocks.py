"""Blocks of a backbone, kept for the backward pass or computed again in it."""

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array


def run(
    backbone: nn.Module, make: Callable[[], Callable[[Array], Array]], x: Array, *, remat: bool
) -> Array:
    """make()(x), of which the backward pass is given all that is inside, or just x.

    Args:
      backbone: whose block it is, inside its compact method.
      make: the block, its modules those of the backbone.
      x: what goes in.
      remat: whether just x is kept, and the block is computed a second time.
    """

    def block(_: nn.Module, x: Array) -> Array:
        return make()(x)

    return nn.remat(block)(backbone, x) if remat else block(backbone, x)
