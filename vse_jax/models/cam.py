"""Classification and captions of one embedding, and maps of where each looks in a picture.

This formulation is ours. The idea, to reward a classifier and a captioner that look at the same
parts, is that of Yoon et al., "Image classification and captioning model considering a CAM-based
disagreement loss", ETRI Journal 42(1), 2020, of which the abstract alone was at hand. Class
activation maps: Zhou et al., CVPR 2016; Grad-CAM: Selvaraju et al., ICCV 2017.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vse_jax.encoding import Encoding
from vse_jax.models.rows_product import rows_product


class JointHead(nn.Module):
    """z = mean over the cells of f V, plus c: the linear part of what both tasks read.

    `local` is f V, each cell by itself and without c, so that `pooled` is the mean of `local` plus
    c: what is linear in z has an exact map over the cells, and f is needed no more. A picture
    without cells has z = c.

    Attributes:
      dimension: of z.
      dtype: of the operands of the product; the rest is float32.
    """

    dimension: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, parts: Float[Array, "b n f"], mask: Bool[Array, "b n"], *, train: bool
    ) -> Encoding:
        """The encoding of a batch of grids."""
        del train
        project = nn.Dense(
            self.dimension,
            use_bias=False,
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=self.dtype,
            dot_general=rows_product,
            name="project",
        )
        bias = self.param("bias", nn.initializers.zeros, (self.dimension,))
        local = jnp.where(mask[..., None], project(parts).astype(jnp.float32), 0.0)
        count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
        return Encoding(local=local, mask=mask, pooled=jnp.sum(local, axis=1) / count + bias[None])


class Classifier(nn.Module):
    """logits = z W + b. Parameters: `weights` [d, classes], `bias` [classes].

    Attributes:
      classes: how many there are.
    """

    classes: int

    @nn.compact
    def __call__(self, pooled: Float[Array, "b d"]) -> Float[Array, "b {self.classes}"]:
        """The logits of a batch."""
        weights = self.param(
            "weights",
            nn.initializers.variance_scaling(1.0, "fan_in", "uniform"),
            (pooled.shape[-1], self.classes),
        )
        bias = self.param("bias", nn.initializers.zeros, (self.classes,))
        return pooled @ weights + bias[None]


def class_map(
    local: Float[Array, "b n d"], weights: Float[Array, "d c"], classes: Int[Array, " b"]
) -> Float[Array, "b n"]:
    """M_y = sum_k w_k^y f_k of each cell, w = V W, not rectified.

    Its mean over the cells is the logit less what the biases c W + b have in it. Source: Zhou et
    al., CVPR 2016, eq. 2.

    Args:
      local: f V of each cell, as `JointHead` gives it.
      weights: W.
      classes: y of each picture.
    """
    return jnp.einsum("bnd,db->bn", local, weights[:, classes])


def word_gradients(
    captioner: nn.Module,
    variables: Any,
    pooled: Float[Array, "b d"],
    tokens: Int[Array, "b l"],
    mask: Bool[Array, "b l"],
    content: Bool[Array, "b t"],
    *,
    differentiable: bool,
) -> Float[Array, "b t d"]:
    """d log p(w_t) / d z of each content word, 0 of other words.

    p is that of the word given those before it, without dropout.

    Args:
      captioner: a `MultimodalRNN`, bound to nothing.
      variables: of it.
      pooled: z of each picture.
      tokens: <start>, words, <end>.
      mask: which tokens are real.
      content: which of the tokens from the second on are asked for.
      differentiable: whether these gradients are to have a gradient themselves. Without one,
        captions are read once; with it, once more for each word.
    """

    def of(method: str, *given: Any) -> Any:
        return captioner.apply(variables, *given, method=method)

    def by_states(states: Float[Array, "b t h"]) -> Float[Array, "b t h"]:
        # Each word's log p depends on its own state alone, so one gradient tells them all apart.
        return jax.grad(lambda states: -jnp.sum(of("word_costs", states, tokens, mask)))(states)

    if not differentiable:
        states, read = of("read_once", pooled, tokens, mask)
        return of("word_gradients", read, pooled, by_states(states), content)
    from_words, real = of("read", tokens, mask), mask[:, 1:]
    states = of("states", pooled, from_words, real)
    of_states = by_states(states)
    rows, count = content.shape
    steps = jnp.arange(count)
    # Each word asked for is a row of its own; rows of early words together, as nothing behind a
    # word matters to it.
    order = jnp.argsort(jnp.where(content, steps[None], count).reshape(-1), stable=True)
    asked = jnp.sum(content)

    def of_words(order: Int[Array, " b"]) -> Float[Array, "b d"]:
        caption, place = order // count, order % count
        said = from_words[caption], real[caption] & (steps[None] <= place[:, None])
        _, back = jax.vjp(lambda pooled: of("states", pooled, *said), pooled[caption])
        here = (steps[None] == place[:, None])[..., None]
        [found] = back(jnp.where(here, of_states[caption], 0.0))
        return found

    # Recomputed on the way back: what every word leaves behind would not fit in memory.
    @jax.checkpoint
    def block(inputs: tuple[Int[Array, " b"], Int[Array, ""]]) -> Float[Array, "b d"]:
        order, first = inputs
        return jax.lax.cond(first < asked, of_words, lambda _: jnp.zeros(pooled.shape), order)

    found = jax.lax.map(block, (order.reshape(count, rows), steps * rows))
    placed = jnp.zeros((rows * count, pooled.shape[1]))
    placed = placed.at[order].set(found.reshape(placed.shape), unique_indices=True)
    return jnp.where(content[..., None], placed.reshape(rows, count, -1), 0.0)


def caption_map(
    local: Float[Array, "b n d"],
    mask: Bool[Array, "b n"],
    gradients: Float[Array, "b t d"],
    content: Bool[Array, "b t"],
) -> Float[Array, "b n"]:
    """Mean over the content words t of ReLU(sum_k alpha_k^t f_k); 0 without any such word.

    alpha_k^t, the mean over the cells of d log p(w_t) / d f_k, is V (d log p(w_t) / d z) / n, for f
    has its part in z through the mean alone; so sum_k alpha_k^t f_k = (f V) . (d log p / d z) / n.
    Where the words' gradients are taken for constants, V is none: as in the class's map it is what
    reads f, and over a frozen backbone the caption's map could not move without it. Source:
    Selvaraju et al., ICCV 2017, eq. 1 and 2.

    Args:
      local: f V of each cell.
      mask: which cells are real.
      gradients: as `word_gradients` gives them.
      content: which of these are of content words.
    """
    cells = jnp.maximum(jnp.sum(mask, axis=1), 1)[:, None, None]
    of_words = nn.relu(jnp.einsum("bnd,btd->btn", local, gradients) / cells)
    words = jnp.maximum(jnp.sum(content, axis=1), 1)[:, None]
    return jnp.sum(jnp.where(content[..., None], of_words, 0.0), axis=1) / words


def content_words(
    tokens: Int[Array, "b l"], mask: Bool[Array, "b l"], function_words: tuple[int, ...]
) -> Bool[Array, "b t"]:
    """Which of the tokens from the second on are real and none of `function_words`."""
    known = jnp.asarray(sorted(function_words), jnp.int32)
    return mask[:, 1:] & ~jnp.isin(tokens[:, 1:], known)
