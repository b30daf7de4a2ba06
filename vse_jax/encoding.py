"""What every encoder of either side returns."""

import flax.struct
from jaxtyping import Array, Bool, Float


class Encoding(flax.struct.PyTreeNode):
    """A batch of pictures or sentences in the common space.

    Attributes:
      local: the parts (grid cells, regions, words), zero where `mask` is False.
      mask: which parts are real.
      pooled: one vector for the whole.
    """

    local: Float[Array, "*b n d"]
    mask: Bool[Array, "*b n"]
    pooled: Float[Array, "*b d"]
