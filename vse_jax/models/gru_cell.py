"""One step of a GRU, for those that `recurrent.gru` does not fit: fed back, or very small."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vse_jax.models.recurrent import GRUParams
from vse_jax.models.text import symmetric_uniform


class GRUWeights(nn.Module):
    """The parameters of one direction, as `text.GRU` has them.

    Attributes:
      hidden: width h of the state.
    """

    hidden: int

    @nn.compact
    def __call__(self, inputs: int) -> GRUParams:
        """Weights for inputs of this width; each starts in U(+-1/sqrt h)."""
        init, gates = symmetric_uniform(self.hidden**-0.5), 3 * self.hidden
        return GRUParams(
            weight_ih=self.param("weight_ih", init, (gates, inputs)),
            weight_hh=self.param("weight_hh", init, (gates, self.hidden)),
            bias_ih=self.param("bias_ih", init, (gates,)),
            bias_hh=self.param("bias_hh", init, (gates,)),
        )


def next_state(
    from_input: Float[Array, "b h3"], from_state: Float[Array, "b h3"], state: Float[Array, "b h"]
) -> Float[Array, "b h"]:
    """h' = (1 - z) n + z h, with r, z = sigmoid(i + s), n = tanh(i_n + r s_n).

    Args:
      from_input: i = W_i x + b_i, for r, z and n.
      from_state: s = W_h h + b_h, likewise.
      state: h.
    """
    hidden = 2 * state.shape[1]
    (i, i_n), (s, s_n) = (jnp.split(x, [hidden], axis=1) for x in (from_input, from_state))
    r, z = jnp.split(jax.nn.sigmoid(i + s), 2, axis=1)
    n = jnp.tanh(i_n + r * s_n)
    return (1 - z) * n + z * state
