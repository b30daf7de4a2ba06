"""What every encoder of either side returns."""

import flax.struct
import numpy as np
from jaxtyping import Array, Bool, Float


class Encoding(flax.struct.PyTreeNode):
    """A batch of pictures or sentences in the common space; on the host of NumPy arrays.

    Attributes:
      local: the parts (grid cells, regions, words), zero where `mask` is False.
      mask: which parts are real.
      pooled: one vector for the whole.
    """

    local: Float[Array | np.ndarray, "*b n d"]
    mask: Bool[Array | np.ndarray, "*b n"]
    pooled: Float[Array | np.ndarray, "*b d"]
