"""Runs a captioner over any number of pictures, on all devices: costs of captions, and captions."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vse_jax import parallel
from vse_jax.captioning.beam_search import beam_search
from vse_jax.captioning.captions import Captions, SpecialTokens, Step
from vse_jax.captioning.decoding import greedy, sample
from vse_jax.data.tokenizer import Tokenizer
from vse_jax.models.model import VisualSemanticModel

# (step, state) -> captions, such as `greedy` with all else given.
Search = Callable[[Step, Any], Captions]


class CaptionWriter:
    """A model's captioner, mapped over the devices; each search is compiled once."""

    def __init__(self, model: VisualSemanticModel, devices: parallel.Devices) -> None:
        """Prepares the mapped functions of `model`, which has a captioner; compiles nothing yet."""
        self._model, self._devices = model, devices
        self._searches: dict[Any, Any] = {}

        def costs(variables: Any, pictures: Array, tokens: Array, mask: Array) -> Array:
            found = model.apply(variables, pictures, tokens, mask, method=model.caption_costs)
            return parallel.all_gather(found)

        placed = ("replicated", "split", "split", "split")
        self._costs = devices.map(costs, placed, "replicated")

    def costs(
        self,
        variables: Any,
        pictures: Float[np.ndarray, "m d"],
        tokens: Int[np.ndarray, "m l"],
        mask: Bool[np.ndarray, "m l"],
        batch_size: int = 256,
    ) -> Float[np.ndarray, " m"]:
        """Minus the log likelihood of each caption, given the whole of its picture.

        Args:
          variables: of the model, as `Encoder.variables` places them.
          pictures: the picture of each caption, as `Encoder.images` encodes it.
          tokens: of the captions.
          mask: which of them are real.
          batch_size: captions at a time.
        """
        return self._run(partial(self._costs, variables), (pictures, tokens, mask), batch_size)

    def best(
        self,
        variables: Any,
        pictures: Float[np.ndarray, "n d"],
        special: SpecialTokens,
        max_length: int,
        *,
        beams: int,
        n_best: int = 1,
        length_power: float = 0.0,
        batch_size: int = 64,
    ) -> Captions:
        """The best captions of each picture that `beam_search` finds, host arrays.

        One beam is the greedy search. Arguments as there and of `costs`.
        """
        search: Search = partial(greedy, special=special, max_length=max_length)
        if (beams, n_best) != (1, 1):
            search = partial(
                beam_search,
                special=special,
                max_length=max_length,
                beams=beams,
                n_best=n_best,
                length_power=length_power,
            )
        mapped = self._mapped(
            lambda step, state, _: search(step, state),
            ("best", special, max_length, beams, n_best, length_power),
        )
        keys = self._keys(0, 0, len(pictures))
        return self._run(partial(mapped, variables), (pictures, keys), batch_size)

    def drawn(
        self,
        variables: Any,
        pictures: Float[np.ndarray, "n d"],
        special: SpecialTokens,
        max_length: int,
        *,
        temperature: float,
        top_k: int | None = None,
        samples: int = 1,
        seed: int = 0,
        first: int = 0,
        batch_size: int = 64,
    ) -> Captions:
        """Captions of each picture drawn by `sample`, host arrays.

        What is drawn for a picture depends on the seed and on the picture's number, which is
        `first` for the first of them. Other arguments as there and of `costs`.
        """

        def search(step: Step, state: Any, keys: Array) -> Captions:
            def of_one(state: Any, key: Array) -> Captions:
                found = sample(
                    step,
                    jax.tree.map(lambda leaf: leaf[None], state),
                    jax.random.wrap_key_data(key),
                    special,
                    max_length,
                    temperature=temperature,
                    top_k=top_k,
                    samples=samples,
                )
                return jax.tree.map(lambda leaf: leaf[0], found)

            return jax.vmap(of_one)(state, keys)

        mapped = self._mapped(search, ("drawn", special, max_length, temperature, top_k, samples))
        keys = self._keys(seed, first, len(pictures))
        return self._run(partial(mapped, variables), (pictures, keys), batch_size)

    def _keys(self, seed: int, first: int, count: int) -> np.ndarray:
        """The data of a random key for each picture."""
        numbers = np.arange(first, first + count, dtype=np.uint32)
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(numbers)
        return np.asarray(jax.random.key_data(keys))

    def _mapped(
        self, search: Callable[[Step, Any, Array], Captions], key: Any
    ) -> Callable[..., Captions]:
        """The search over this device's pictures, mapped; that of an earlier call of this key."""

        def write(variables: Any, pictures: Array, keys: Array) -> Captions:
            model = self._model
            state = model.apply(variables, pictures, method=model.begin_captions)
            step: Any = partial(model.apply, variables, method=model.next_word)
            return parallel.all_gather(search(step, state, keys))

        placed = ("replicated", "split", "split")
        if key not in self._searches:
            self._searches[key] = self._devices.map(write, placed, "replicated")
        return self._searches[key]

    def _run(self, function: Any, rows: tuple[np.ndarray, ...], batch_size: int) -> Any:
        """`function` of all rows, some at a time, the last of them filled up with the last row."""
        size = self._devices.shared(batch_size)
        found = [self._devices.fetch(function(*batch)) for batch in self._batches(rows, size)]
        joined = jax.tree.map(lambda *parts: np.concatenate(parts), *found)
        return jax.tree.map(lambda part: part[: len(rows[0])], joined)

    def _batches(self, rows: tuple[np.ndarray, ...], size: int) -> Iterator[Any]:
        """This process's part of every batch of `size` rows, on the devices."""
        share = size // parallel.process_share()["processes"]
        first = parallel.process_share()["process"] * share
        for start in range(0, len(rows[0]), size):
            numbers = np.minimum(start + first + np.arange(share), len(rows[0]) - 1)
            yield self._devices.split(tuple(part[numbers] for part in rows))


def special_tokens(words: Tokenizer) -> SpecialTokens:
    """What a search must know of a tokenizer; only words are written."""
    start, end, unknown = words.opening, words.closing, words.unknown
    return SpecialTokens(start, end, words.pad, (words.pad, start, unknown))
