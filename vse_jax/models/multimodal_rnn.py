"""DVSA's multimodal recurrent network: p(caption | picture), word by word.

Source: Karpathy & Fei-Fei, "Deep Visual-Semantic Alignments for Generating Image Descriptions",
CVPR 2015, section 3.2, and the released code (NeuralTalk, `imagernn/`).
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vse_jax.models import cells, packed
from vse_jax.models.cells import CellParams, Read
from vse_jax.models.dropout import Dropout
from vse_jax.models.rows_product import rows_product
from vse_jax.models.text import symmetric_uniform

# Words whose scores over the vocabulary are held at once: 18 MB of 9,000 float32.
_ROWS = 512
# Scores that are kept for the way back: 256 MiB.
_KEPT = 2**26


class State(NamedTuple):
    """What a caption's words so far, or at its start the picture, leave for the next word.

    Attributes:
      argument: what is added to the next word's part of the cell's argument: W_hh h, or at the
        start the picture's part.
      memory: the LSTM's c; None for the RNN.
    """

    argument: Float[Array, "b g"]
    memory: Float[Array, "b h"] | None


class MultimodalRNN(nn.Module):
    """A recurrent network that reads a caption's words and is shown the picture at the first alone.

    "rnn": h_t = relu(W_hx x_t + W_hh h_{t-1} + b_h + 1(t=1) b_v), b_v = W_hi f + b_i.
    "lstm": i, f, g, o = W_hx (x_t + 1(t=1) b_v) + W_hh h_{t-1} + b_h, c_t = sigmoid(f) c_{t-1} +
    sigmoid(i) tanh(g), h_t = sigmoid(o) tanh(c_t): PyTorch's `nn.LSTMCell`, whose first input is
    the word's vector and b_v, which is as wide. Either: p(next word) = softmax(W_oh h_t + b_o),
    h_0 = c_0 = 0, x_1 the vector of <start>. Training reads all captions at once, real words alone
    (`cells`); writing goes step by step.

    Matrices start in U(+-0.1), W_oh in U(+-0.01), biases at zero, as in the released code; the
    LSTM's forget gate at 1 (Jozefowicz et al., ICML 2015). Parameters, all inputs x outputs:
    `image` (W_hi, b_i), `words` [vocabulary, words], `weight_hx`, `weight_hh`, `bias_h`,
    `weight_oh`, `bias_o`.

    Attributes:
      vocabulary: number of token ids.
      hidden: width of the state.
      words: width of the word vectors.
      cell: "rnn" or "lstm".
      dropout: rate in training on the words' vectors, on b_v and on what the output layer reads,
        not in the recurrence; needs the rng "dropout". The released code's rate is 0.5.
      squash: whether the picture's features go through tanh first.
      dtype: of the operands of matrix products; sums, states and the rest are float32.
    """

    vocabulary: int
    hidden: int = 512
    words: int = 512
    cell: Literal["rnn", "lstm"] = "rnn"
    dropout: float = 0.0
    squash: bool = False
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """Makes the parameters; those of `image` once the features' width is known."""
        init, zeros = symmetric_uniform(0.1), nn.initializers.zeros
        lstm = self.cell == "lstm"
        gates = 4 * self.hidden if lstm else self.hidden
        self.image = nn.Dense(
            self.words if lstm else self.hidden,
            kernel_init=init,
            dtype=self.dtype,
            dot_general=rows_product,
        )
        self.table = self.param("words", init, (self.vocabulary, self.words))
        self.weight_hx = self.param("weight_hx", init, (self.words, gates))
        self.weight_hh = self.param("weight_hh", init, (self.hidden, gates))
        self.bias_h = self.param("bias_h", _forget_gate_at_one if lstm else zeros, (gates,))
        self.weight_oh = self.param(
            "weight_oh", symmetric_uniform(0.01), (self.hidden, self.vocabulary)
        )
        self.bias_o = self.param("bias_o", zeros, (self.vocabulary,))
        self.drop = Dropout(self.dropout)

    def __call__(
        self,
        features: Float[Array, "b f"],
        tokens: Int[Array, "b l"],
        mask: Bool[Array, "b l"],
        *,
        train: bool,
    ) -> Float[Array, " b"]:
        """-sum_t log p(token_t | tokens before it, picture) of each caption, from its second on.

        The first token, <start>, is given; <end> counts like a word, and a caption cut before it
        just ends. `mask` is True for leading tokens only; what is behind them costs nothing.

        Args:
          features: of the picture of each caption.
          tokens: <start>, words, <end>.
          mask: which tokens are real.
          train: whether to drop out.
        """
        given = self._given(features, tokens, mask, train)
        states = cells.states(*given, **self._cell())
        return jnp.sum(self.word_costs(self.drop(states, train=train), tokens, mask), axis=1)

    def read(self, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Float[Array, "b t g"]:
        """What each token but the last adds to the cell's argument, without dropout."""
        vectors = self._vectors(tokens, mask)
        return self._product(vectors, self.weight_hx) + self.bias_h[None, None]

    def states(
        self,
        features: Float[Array, "b f"],
        from_words: Float[Array, "b t g"],
        real: Bool[Array, "b t"],
    ) -> Float[Array, "b t {self.hidden}"]:
        """h after each token but the last, of which each tells the next, without dropout.

        Differentiable any number of times; padding costs as much as words.

        Args:
          features: as of `__call__`.
          from_words: as `read` gives it.
          real: whether there is a next token.
        """
        return self._states(self._start(self._picture(features)), from_words, real)

    def read_once(
        self,
        features: Float[Array, "b f"],
        tokens: Int[Array, "b l"],
        mask: Bool[Array, "b l"],
    ) -> tuple[Float[Array, "b t {self.hidden}"], Read]:
        """h after each token but the last, zero of padding, and what `word_gradients` needs.

        Without dropout, and without a gradient.
        """
        return cells.read(*self._given(features, tokens, mask, False), **self._cell())

    def word_gradients(
        self,
        read: Read,
        features: Float[Array, "b f"],
        d_states: Float[Array, "b t {self.hidden}"],
        asked: Bool[Array, "b t"],
    ) -> Float[Array, "b t f"]:
        """Of each word asked for, the gradient of h_t . d_states_t by the features; 0 of others.

        Args:
          read: of `read_once`, with these features.
          features: as of `__call__`.
          d_states: of the state before each word.
          asked: which of the tokens from the second on.
        """
        kernel = self.image.variables["params"]["kernel"]

        def finish(d: Float[Array, "r g"], captions: Int[Array, " r"]) -> Float[Array, "r f"]:
            d = self._product(d, self.weight_hx.T) if self.cell == "lstm" else d
            d = self._product(d, kernel.T)
            return d * (1 - jnp.tanh(features[captions]) ** 2) if self.squash else d

        return cells.word_gradients(read, d_states, asked, finish, **self._cell())

    def word_costs(
        self,
        states: Float[Array, "b t {self.hidden}"],
        tokens: Int[Array, "b l"],
        mask: Bool[Array, "b l"],
    ) -> Float[Array, "b t"]:
        """-log p of each token from the second on, by the state before it; 0 of padding."""
        return self._costs(states, tokens[:, 1:], mask[:, 1:])

    def start(self, features: Float[Array, "b f"]) -> State:
        """The state before the first word, which is to be <start>."""
        return self._start(self._picture(features))

    def step(
        self, state: State, tokens: Int[Array, " b"]
    ) -> tuple[State, Float[Array, "b {self.vocabulary}"]]:
        """The state after these words, and the logits of the words that follow them."""
        from_words = self._product(self.table[tokens], self.weight_hx) + self.bias_h[None]
        state, hidden = self._advance(state, from_words)
        return state, self._product(hidden, self.weight_oh) + self.bias_o[None]

    def _given(
        self,
        features: Float[Array, "b f"],
        tokens: Int[Array, "b l"],
        mask: Bool[Array, "b l"],
        train: bool,
    ) -> tuple[CellParams, Array, Array, Array]:
        """What `cells` reads."""
        words = self.drop(self._vectors(tokens, mask), train=train)
        start = self._start(self.drop(self._picture(features), train=train))
        params = CellParams(self.weight_hx, self.weight_hh, self.bias_h)
        return params, start.argument, words, jnp.sum(mask[:, 1:], axis=1)

    def _cell(self) -> dict[str, Any]:
        return {"lstm": self.cell == "lstm", "dtype": self.dtype}

    def _vectors(
        self, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"]
    ) -> Float[Array, "b t {self.words}"]:
        """Of each token but the last; zero of padding."""
        given = jnp.where(mask, tokens, self.vocabulary)[:, :-1]
        return self.table.at[given].get(mode="fill", fill_value=0)

    def _picture(self, features: Float[Array, "b f"]) -> Float[Array, "b h"]:
        features = jnp.tanh(features) if self.squash else features
        return self.image(features).astype(jnp.float32)

    def _start(self, picture: Float[Array, "b h"]) -> State:
        if self.cell == "rnn":
            return State(picture, None)
        memory = jnp.zeros((picture.shape[0], self.hidden))
        return State(self._product(picture, self.weight_hx), memory)

    def _advance(
        self, state: State, from_words: Float[Array, "b g"]
    ) -> tuple[State, Float[Array, "b h"]]:
        """The next state and h, given the words' part of the cell's argument."""
        hidden, memory = cells.cell(from_words + state.argument, state.memory)
        return State(self._product(hidden, self.weight_hh), memory), hidden

    def _states(
        self, state: State, from_words: Float[Array, "b t g"], real: Bool[Array, "b t"]
    ) -> Float[Array, "b t h"]:
        """h after each word; behind the longest caption, where nothing is computed, zero."""
        nothing = jnp.zeros((len(real), self.hidden))

        def step(state: State, inputs: tuple[Array, Array]) -> tuple[State, Array]:
            words, real = inputs
            new, hidden = jax.lax.cond(
                jnp.any(real), self._advance, lambda state, _: (state, nothing), state, words
            )
            # A caption's state stands still behind its end: padding could not make it overflow.
            state = jax.tree.map(lambda new, old: jnp.where(real[:, None], new, old), new, state)
            return state, hidden

        _, states = jax.lax.scan(step, state, (from_words.swapaxes(0, 1), real.T))
        return states.swapaxes(0, 1)

    def _costs(
        self,
        states: Float[Array, "b t h"],
        targets: Int[Array, "b t"],
        real: Bool[Array, "b t"],
    ) -> Float[Array, "b t"]:
        """-log p of each target; 0 of those that are not real."""
        count = real.size
        rows = min(_ROWS, max(count, 1))
        order = jnp.argsort(~real.reshape(-1), stable=True)  # Real ones first.
        order = jnp.pad(order, (0, -count % rows), constant_values=count)
        take = partial(jnp.take, indices=order, axis=0, mode="fill", fill_value=0)

        def block(_: None, inputs: tuple[Array, ...]) -> tuple[None, Array]:
            return None, _block_costs(self.dtype, *inputs, self.weight_oh, self.bias_o)

        if count * self.vocabulary > _KEPT:  # each block's scores are computed again instead
            block = jax.checkpoint(block)
        inputs = (
            take(states.reshape(count, -1)),
            take(targets.reshape(-1)),
            take(real.reshape(-1)),
        )
        blocks = jax.tree.map(lambda x: x.reshape(-1, rows, *x.shape[1:]), inputs)
        _, costs = jax.lax.scan(block, None, blocks)
        placed = jnp.zeros(count).at[order].set(costs.reshape(-1), mode="drop")
        return placed.reshape(real.shape)

    def _product(
        self, x: Float[Array, "*b i"], weight: Float[Array, "i o"]
    ) -> Float[Array, "*b o"]:
        return rows_product(x.astype(self.dtype), weight.astype(self.dtype))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _block_costs(
    dtype: Any,
    states: Float[Array, "r h"],
    targets: Int[Array, " r"],
    real: Bool[Array, " r"],
    weight: Float[Array, "h v"],
    bias: Float[Array, " v"],
) -> Float[Array, " r"]:
    """-log p of each target; 0 of those that are not real, and of none if none is.

    The gradient keeps the scores alone, where JAX's own keeps what each step made of them.
    """
    return _costs_and_scores(dtype, states, targets, real, weight, bias)[0]


def _costs_and_scores(
    dtype: Any, states: Any, targets: Any, real: Any, weight: Any, bias: Any
) -> tuple[Float[Array, " r"], Any]:
    def run(states: Array) -> tuple[Array, Array]:
        scores = packed.dot(states, weight, 1, dtype) + bias[None]
        return jax.nn.logsumexp(scores, axis=1), scores

    def nothing(states: Array) -> tuple[Array, Array]:
        return jnp.zeros(len(states)), jnp.zeros((len(states), len(bias)))

    total, scores = jax.lax.cond(jnp.any(real), run, nothing, states)
    chosen = jnp.take_along_axis(scores, targets[:, None], axis=1)[:, 0]
    costs = jnp.where(real, total - chosen, 0.0)
    return costs, (states, targets, real, weight, scores, total)


def _costs_backward(dtype: Any, residual: Any, d_costs: Float[Array, " r"]) -> Any:
    states, targets, real, weight, scores, total = residual

    def run(d_costs: Array) -> tuple[Array, Array, Array]:
        words = jnp.arange(scores.shape[1])[None]
        p = jnp.exp(scores - total[:, None])
        d = (p - (words == targets[:, None])) * jnp.where(real, d_costs, 0.0)[:, None]
        d_states, d_weight = packed.dot(d, weight.T, 1, dtype), packed.dot(states, d, 0, dtype)
        return d_states, d_weight, jnp.sum(d, axis=0)

    def nothing(_: Array) -> tuple[Array, Array, Array]:
        return jnp.zeros(states.shape), jnp.zeros(weight.shape), jnp.zeros(weight.shape[1])

    d_states, d_weight, d_bias = jax.lax.cond(jnp.any(real), run, nothing, d_costs)
    return d_states, None, None, d_weight, d_bias


_block_costs.defvjp(_costs_and_scores, _costs_backward)


def with_word_frequencies(
    params: dict[str, Any], log_frequencies: Float[np.ndarray, " v"]
) -> dict[str, Any]:
    """The parameters of a `MultimodalRNN`, with b_o the words' log frequency to start from.

    Source: the released code (`driver.py`, which takes the largest from all; softmax is the same).

    Args:
      params: the module's own.
      log_frequencies: of each token id among all targets; a word never seen needs one too, such as
        that of a count of one.

    Raises:
      ValueError: not one finite number for each token id.
    """
    (vocabulary,) = params["bias_o"].shape
    if log_frequencies.shape != (vocabulary,):
        raise ValueError(
            f"log frequencies of {len(log_frequencies)} words; the network's vocabulary is "
            f"{vocabulary}"
        )
    if not np.all(np.isfinite(log_frequencies)):
        word = int(np.argmin(np.isfinite(log_frequencies)))
        raise ValueError(
            f"the log frequency of token {word} is {log_frequencies[word]}; it must be finite: "
            "count words that were never seen as if seen once"
        )
    return {**params, "bias_o": jnp.asarray(log_frequencies, jnp.float32)}


def _forget_gate_at_one(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Zero but for the second of four gates."""
    del key
    return jnp.zeros((4, shape[0] // 4), dtype).at[1].set(1).reshape(shape)
