"""VSRN: relations between regions by graph convolutions, a GRU over them, and captions from them.

Source: Li et al., "Visual Semantic Reasoning for Image-Text Matching", ICCV 2019, and the released
code (`model.py`, `GCN_lib/Rs_GCN.py`, `models/`).
"""

from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vse_jax.encoding import Encoding
from vse_jax.models.dropout import Dropout
from vse_jax.models.gru_cell import GRUWeights, next_state
from vse_jax.models.masked import MaskedBatchNorm, masked_softmax, to_front
from vse_jax.models.normalize import l2_normalize
from vse_jax.models.recurrent import GRUParams
from vse_jax.models.rows_product import rows_product
from vse_jax.models.text import GRU, symmetric_uniform


class RegionGraph(nn.Module):
    """A residual graph convolution over regions that are all each other's neighbours.

    R = theta(v) phi(v)^T / N, v' = v + BN(W (R g(v))), each of theta, phi, g, W linear with bias;
    the scale of BN starts at zero, so that at first v' = v. N is the number of the picture's
    regions. A region that `mask` leaves out sends nothing, counts nowhere and becomes zero.
    Source: Li et al., ICCV 2019, section 3.1; the division by N is the released code's.

    Attributes:
      momentum: of the running batch statistics.
      dtype: of the operands of matrix products.
      axis_name: mapped axis over which batch statistics are shared; None for this device's own.
    """

    momentum: float = 0.9
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, regions: Float[Array, "b n d"], mask: Bool[Array, "b n"], *, train: bool
    ) -> Float[Array, "b n d"]:
        """The regions, each with what its relations to the others add."""
        width = regions.shape[-1]
        init = symmetric_uniform(width**-0.5)

        def linear(name: str) -> nn.Dense:
            return nn.Dense(
                width,
                kernel_init=init,
                bias_init=init,
                dtype=self.dtype,
                dot_general=rows_product,
                name=name,
            )

        product = partial(_product, dtype=self.dtype)
        count = jnp.maximum(jnp.sum(mask, axis=1), 1)[:, None, None]
        relations = product("bid,bjd->bij", linear("theta")(regions), linear("phi")(regions))
        relations = jnp.where(mask[:, None], relations, 0.0) / count
        gathered = product("bij,bjd->bid", relations, linear("g")(regions))
        norm = MaskedBatchNorm(
            self.momentum,
            scale_init=nn.initializers.zeros,
            axis_name=self.axis_name,
            name="norm",
        )
        added = norm(linear("out")(gathered), mask, train=train)
        return jnp.where(mask[..., None], regions + added, 0.0)


class VSRNImage(nn.Module):
    """Regions to the common space: linear, graph convolutions, then a GRU that reads them in order.

    `pooled` is the GRU's last state, scaled to length 1; `local` the regions after the graph,
    as the caption generator takes them: not each of length 1, see `over`. Holes in the mask are
    skipped. Parameters: `project`, `graph0`, `graph1`, ..., `gru`; statistics: of the graphs.

    Attributes:
      dimension: of the common space and of the regions in it.
      layers: number of graph convolutions.
      over: what is scaled to length 1 before and after the graph: "regions", each channel over the
        picture's regions, as the released code does on its regions x channels; "channels", each
        region, the better choice where a picture may have a single one.
      normalize: whether the pooled embedding is scaled to length 1.
      momentum: of the running batch statistics.
      dtype: of the operands of matrix products.
      axis_name: mapped axis over which batch statistics are shared; None for this device's own.
    """

    dimension: int = 2048
    layers: int = 4
    over: Literal["regions", "channels"] = "regions"
    normalize: bool = True
    momentum: float = 0.9
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, parts: Float[Array, "b n f"], mask: Bool[Array, "b n"], *, train: bool
    ) -> Encoding:
        """The regions and the whole; zero without regions."""
        project = nn.Dense(
            self.dimension,
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=self.dtype,
            dot_general=rows_product,
            name="project",
        )
        regions = self._scaled(project(parts).astype(jnp.float32), mask)
        for layer in range(self.layers):
            graph = RegionGraph(self.momentum, self.dtype, self.axis_name, name=f"graph{layer}")
            regions = graph(regions, mask, train=train)
        regions = self._scaled(regions, mask)
        pooled = GRU(self.dimension, dtype=self.dtype, name="gru")(*to_front(regions, mask)).last
        if self.normalize:
            pooled = l2_normalize(pooled)
        return Encoding(local=regions, mask=mask, pooled=pooled)

    def _scaled(
        self, regions: Float[Array, "b n d"], mask: Bool[Array, "b n"]
    ) -> Float[Array, "b n d"]:
        regions = jnp.where(mask[..., None], regions, 0.0)
        if self.over == "channels":
            return l2_normalize(regions)
        return l2_normalize(regions.swapaxes(1, 2)).swapaxes(1, 2)


class CaptionGenerator(nn.Module):
    """How unlikely captions are, given regions: a GRU over the regions and one that writes words.

    Regions -> linear -> GRU with states e_i; its last state starts the decoder. Before each word
    the decoder attends: alpha = softmax_i(w . tanh(A [e_i; h])), c = sum_i alpha_i e_i;
    h' = GRU([word; c], h), p(next word) = softmax(O h'). It is always fed the true words.
    Source: Venugopalan et al., ICCV 2015, with the attention of the released code.

    Parameters: `project`, `encoder`, `words` [vocabulary, words], `attend`, `score`, `decoder`,
    `out`.

    Attributes:
      vocabulary: number of token ids.
      hidden: width of both GRUs.
      words: width of the word vectors.
      dropout: rate on the encoder's and the decoder's inputs while training; needs the rng
        "dropout".
      dtype: of the operands of matrix products.
    """

    vocabulary: int
    hidden: int = 512
    words: int = 300
    dropout: float = 0.2
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        regions: Float[Array, "b n d"],
        mask: Bool[Array, "b n"],
        tokens: Int[Array, "b l"],
        token_mask: Bool[Array, "b l"],
        *,
        train: bool,
    ) -> Float[Array, " b"]:
        """-sum_t log p(token_t | tokens before it, regions) of each caption, from its second on.

        The first token, <start>, is given; <end> counts like a word. The sum over the words, and
        its mean over the captions, is the released code's loss, which also asks for one padding
        token after <end>.
        """
        drop = partial(Dropout(self.dropout), train=train)
        regions, count = to_front(jnp.where(mask[..., None], regions, 0.0), mask)
        project = nn.Dense(
            self.hidden,
            kernel_init=nn.initializers.xavier_normal(),
            bias_init=symmetric_uniform(regions.shape[-1] ** -0.5),
            dtype=self.dtype,
            dot_general=rows_product,
            name="project",
        )
        encoder = GRU(self.hidden, dtype=self.dtype, name="encoder")
        encoded = encoder(drop(project(regions)).astype(jnp.float32), count)
        table = self.param("words", nn.initializers.normal(1.0), (self.vocabulary, self.words))
        given = jnp.where(token_mask, tokens, self.vocabulary)[:, :-1]
        words = drop(table.at[given].get(mode="fill", fill_value=0))
        weights = _DecoderWeights(self.vocabulary, self.hidden, name="decoder")(self.words)
        return _decode(
            weights,
            encoded.outputs,
            jnp.arange(mask.shape[1])[None] < count[:, None],
            encoded.last,
            words,
            # Drawn here for all steps: what a step attends to is an input of the decoder too.
            drop(jnp.ones((*given.shape, self.hidden))),
            tokens[:, 1:],
            token_mask[:, 1:],
            self.dtype,
        )


class Decoder(NamedTuple):
    """Weights of the decoder; those of its GRU as in PyTorch, the others inputs x outputs.

    Attributes:
      gru: of an input [word; context].
      attend: from [encoder's state; decoder's state] to the attention's hidden layer.
      attend_bias: added to it.
      score: from there to the attention's score.
      out: from the decoder's state to the words.
      out_bias: added to it.
    """

    gru: GRUParams
    attend: Float[Array, "h2 h"]
    attend_bias: Float[Array, " h"]
    score: Float[Array, " h"]
    out: Float[Array, "h v"]
    out_bias: Float[Array, " v"]


class _DecoderWeights(nn.Module):
    vocabulary: int
    hidden: int

    @nn.compact
    def __call__(self, words: int) -> Decoder:
        """As the released code starts them: products of attention and output Xavier normal."""
        hidden, normal = self.hidden, nn.initializers.xavier_normal()
        return Decoder(
            GRUWeights(hidden, name="gru")(words + hidden),
            self.param("attend", normal, (2 * hidden, hidden)),
            self.param("attend_bias", symmetric_uniform((2 * hidden) ** -0.5), (hidden,)),
            self.param("score", nn.initializers.normal((2 / (hidden + 1)) ** 0.5), (hidden,)),
            self.param("out", normal, (hidden, self.vocabulary)),
            self.param("out_bias", symmetric_uniform(hidden**-0.5), (self.vocabulary,)),
        )


def _decode(
    weights: Decoder,
    states: Float[Array, "b n h"],
    mask: Bool[Array, "b n"],
    last: Float[Array, "b h"],
    words: Float[Array, "b t w"],
    kept: Float[Array, "b t h"],
    targets: Int[Array, "b t"],
    real: Bool[Array, "b t"],
    dtype: DTypeLike,
) -> Float[Array, " b"]:
    """The sum of -log p over the real targets; `kept` is what dropout makes of ones."""
    product = partial(_product, dtype=dtype)
    hidden, width = last.shape[1], words.shape[2]
    # The parts of the products that no step changes.
    from_states = product("bnh,hk->bnk", states, weights.attend[:hidden])
    from_states += weights.attend_bias[None, None]
    from_words = product("btw,gw->btg", words, weights.gru.weight_ih[:, :width])
    from_words += weights.gru.bias_ih[None, None]
    w_context, w_state = weights.gru.weight_ih[:, width:].T, weights.gru.weight_hh.T

    def run(h: Array, from_word: Array, kept: Array, target: Array) -> tuple[Array, Array]:
        layer = jnp.tanh(from_states + product("bh,hk->bk", h, weights.attend[hidden:])[:, None])
        attention = masked_softmax(layer @ weights.score, mask)
        context = kept * jnp.einsum("bn,bnh->bh", attention, states)
        from_x = from_word + product("bh,hg->bg", context, w_context)
        from_h = product("bh,hg->bg", h, w_state) + weights.gru.bias_hh[None]
        h = next_state(from_x, from_h, h)
        scores = product("bh,hv->bv", h, weights.out) + weights.out_bias[None]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(scores), target[:, None], axis=1)
        return h, -chosen[:, 0]

    # Recomputed on the way back: attention and scores of all steps would not fit in memory.
    @jax.checkpoint
    def step(h: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        *known, real = inputs
        # Behind the longest caption of the batch nothing is computed.
        h, cost = jax.lax.cond(jnp.any(real), run, lambda h, *_: (h, jnp.zeros(len(h))), h, *known)
        return h, jnp.where(real, cost, 0.0)

    inputs = (from_words, kept, targets, real)
    _, costs = jax.lax.scan(step, last, jax.tree.map(lambda x: x.swapaxes(0, 1), inputs))
    return jnp.sum(costs, axis=0)


def _product(spec: str, a: Array, b: Array, *, dtype: DTypeLike) -> Array:
    """The product of `dtype` operands, summed in float32."""
    return jnp.einsum(spec, a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)
