"""Beam search with the multimodal RNN, beside the same in PyTorch."""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import Options, Row, alternately, rate, ratio
from vse_jax.captioning.beam_search import beam_search
from vse_jax.captioning.captions import SpecialTokens
from vse_jax.models.multimodal_rnn import MultimodalRNN

# DVSA on Flickr8k: its vocabulary and VGG's features.
VOCABULARY, HIDDEN, FEATURES = 2538, 512, 4096
PICTURES, MAX_LENGTH, BEAMS = 64, 32, 7
SPECIAL = SpecialTokens(start=1, end=2, padding=0, banned=(0, 1, 3))

Search = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def run(options: Options) -> list[Row]:
    """Pictures a second, a batch of 64 at 7 beams."""
    model = MultimodalRNN(VOCABULARY, HIDDEN, HIDDEN)
    return measure(model, FEATURES, PICTURES, MAX_LENGTH, options.rounds or 20)


def measure(
    model: MultimodalRNN, features: int, pictures: int, max_length: int, rounds: int
) -> list[Row]:
    """Rows of ours and, where PyTorch is installed, of its twin, whose captions are found equal."""
    params = trained_like(model, features)
    searches: dict[str, Search] = {"ours": ours(model, params, max_length)}
    if importlib.util.find_spec("torch") is not None:
        from benchmarks.torch_captioning import BeamSearch

        searches["PyTorch"] = BeamSearch(params, SPECIAL, max_length, BEAMS)
    drawn = np.random.default_rng(1).gamma(0.5, 1.0, (4, pictures, features)).astype(np.float32)
    found = {name: [search(batch) for batch in drawn] for name, search in searches.items()}
    agree(found["ours"], found.get("PyTorch", found["ours"]))
    timings = alternately(
        {
            name: lambda number, search=search: search(drawn[number % len(drawn)])
            for name, search in searches.items()
        },
        rounds,
    )
    words = [np.sum(tokens > SPECIAL.banned[-1], axis=1) for tokens, _ in found["ours"]]
    note = f"{BEAMS} beams, {np.mean(words):.1f} words ({np.min(words)}-{np.max(words)})"
    rows = [
        rate("captioning", f"beam search, {name}", timing, pictures, "pictures/s", note)
        for name, timing in timings.items()
    ]
    if "PyTorch" in timings:
        rows.append(
            ratio("captioning", "time of ours / PyTorch", timings["ours"], timings["PyTorch"],
                  at_most=1.0)
        )  # fmt: skip
    return rows


def ours(model: MultimodalRNN, params: Any, max_length: int) -> Search:
    """The project's search: features [b, f] -> tokens [b, l] and log probabilities [b]."""

    @jax.jit
    def search(params: Any, features: Any) -> Any:
        state = model.apply({"params": params}, features, method="start")
        step = functools.partial(model.apply, {"params": params}, method="step")
        found = beam_search(step, state, SPECIAL, max_length, beams=BEAMS)
        return found.tokens[:, 0], found.log_probabilities[:, 0]

    placed = jax.device_put(params)
    return lambda features: jax.device_get(search(placed, jnp.asarray(features)))


def agree(found: list[Any], wanted: list[Any]) -> None:
    """Raises AssertionError unless both wrote the same captions, as likely to 1e-4."""
    for (tokens, log_p), (tokens_wanted, log_p_wanted) in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(tokens, tokens_wanted)
        np.testing.assert_allclose(log_p, log_p_wanted, rtol=1e-4)


def trained_like(model: MultimodalRNN, features: int) -> Any:
    """Random weights under which words are chosen as by a trained network, and captions end.

    Logits of words are spread until each next word has a probability of about a quarter. One unit
    of the state counts the words, from a number that the picture sets; of <end>'s logit it makes a
    line that rises by 2 a word and passes those of the likeliest words at about the tenth.
    """
    example = jnp.zeros((1, features)), jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool)
    init = jax.jit(functools.partial(model.init, train=False))
    params = jax.tree.map(np.array, init(jax.random.key(0), *example)["params"])
    clock, end = 0, SPECIAL.end
    params["weight_oh"] *= 60
    params["weight_oh"][:, end] = params["weight_oh"][clock] = 0
    params["weight_oh"][clock, end], params["bias_o"][end] = 2, -14
    params["weight_hx"][:, clock] = params["weight_hh"][:, clock] = params["weight_hh"][clock] = 0
    params["weight_hh"][clock, clock] = params["bias_h"][clock] = 1
    params["image"]["kernel"] /= np.sqrt(features / 512)
    return params
