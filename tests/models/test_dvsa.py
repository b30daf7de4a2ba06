"""DVSA's reader and score, against loops written from the formulas."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax.encoding import Encoding
from vse_jax.models.dvsa import BRNNReader, FragmentScore, RectifiedHead, between
from vse_jax.models.pairwise import Tile

VOCABULARY, WIDTH, HIDDEN = 11, 5, 7
LENGTHS = np.asarray([6, 2, 5, 1, 3])


def sentences():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCABULARY, (len(LENGTHS), 6)).astype(np.int32)
    return jnp.asarray(tokens), jnp.asarray(np.arange(6)[None] < LENGTHS[:, None])


def read(reader, params, tokens, mask):
    return reader.apply({"params": params}, tokens, mask, train=False)


def random_params(module, *inputs, **options):
    """Random where the start has zeros, so that everything matters."""
    start = module.init(jax.random.key(0), *inputs, train=False, **options)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 2, "f4"), start)


def test_the_reader_is_its_formula():
    reader = BRNNReader(VOCABULARY, WIDTH, HIDDEN)
    tokens, mask = sentences()
    params = random_params(reader, tokens, mask)
    found = read(reader, params, tokens, mask)
    for row, length in enumerate(LENGTHS):
        # Words are what stands between the first token and the last.
        words = [int(token) for token in tokens[row, 1 : length - 1]]
        e = [
            np.maximum(
                params["words"][word] @ params["embed"]["kernel"] + params["embed"]["bias"], 0
            )
            for word in words
        ]
        states = {}
        for way in ("forward", "backward"):
            h, order = np.zeros(HIDDEN, np.float32), range(len(words))
            for t in order if way == "forward" else reversed(order):
                h = np.maximum(e[t] + h @ params[way] + params[f"{way}_bias"], 0)
                states[way, t] = h
        expected = np.zeros((6, HIDDEN), np.float32)
        for t in range(len(words)):
            expected[1 + t] = states["forward", t] + states["backward", t]
        np.testing.assert_allclose(found.words[row], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.pooled[row], expected.sum(axis=0), rtol=1e-5, atol=1e-5)


def test_words_are_dropped_and_states_are_not():
    """With ones that pass everything on, a state tells how many words before it were kept."""
    reader = BRNNReader(2, 1, HIDDEN, dropout=0.5)
    params = {
        "words": jnp.ones((2, 1)),
        "embed": {"kernel": jnp.ones((1, HIDDEN)), "bias": jnp.zeros(HIDDEN)},
        "forward": jnp.eye(HIDDEN),
        "backward": jnp.zeros((HIDDEN, HIDDEN)),
        "forward_bias": jnp.zeros(HIDDEN),
        # The other direction is silent: e_t - 9 < 0.
        "backward_bias": jnp.full(HIDDEN, -9.0),
    }
    tokens, mask = jnp.zeros((200, 6), jnp.int32), jnp.ones((200, 6), bool)

    def read(train):
        return np.asarray(
            reader.apply(
                {"params": params}, tokens, mask, train=train, rngs={"dropout": jax.random.key(0)}
            ).words
        )

    np.testing.assert_array_equal(read(False)[0, 1:5, 0], [1, 2, 3, 4])
    states = read(True)[:, 1:5]
    added = np.diff(states, axis=1, prepend=0.0)
    # Each word is there twice as much or not at all, and what was read before is never lost.
    assert set(np.unique(added).tolist()) == {0.0, 2.0}
    assert 0.45 < (added == 0).mean() < 0.55


def test_the_gradient_of_the_reader_is_that_of_finite_differences():
    reader = BRNNReader(VOCABULARY, WIDTH, HIDDEN)
    tokens, mask = sentences()
    params = random_params(reader, tokens, mask)

    @jax.jit
    def total(params):
        return jnp.sum(jnp.sin(read(reader, params, tokens, mask).words))

    gradient = jax.grad(total)(params)
    rng = np.random.default_rng(2)
    way = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)
    moved = [jax.tree.map(lambda p, w, s=s: p + s * w, params, way) for s in (1e-3, -1e-3)]
    expected = (total(moved[0]) - total(moved[1])) / 2e-3
    inner = sum(jax.tree.leaves(jax.tree.map(lambda g, w: jnp.vdot(g, w), gradient, way)))
    np.testing.assert_allclose(inner, expected, rtol=2e-2)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_words_are_between_the_first_token_and_the_last(length):
    mask = jnp.arange(5)[None] < length
    assert np.asarray(between(mask))[0].tolist() == [0 < t < length - 1 for t in range(5)]


def encodings(regions, words, pictures=4, captions=5):
    rng = np.random.default_rng(3)
    image = rng.normal(size=(pictures, regions, 6)).astype(np.float32)
    text = rng.normal(size=(captions, words, 6)).astype(np.float32)
    seen = np.arange(regions)[None] < rng.integers(1, regions + 1, pictures)[:, None]
    said = np.arange(words)[None] < rng.integers(0, words + 1, captions)[:, None]
    seen[0] = False
    said[0], said[1] = False, True
    return (
        Encoding(jnp.asarray(image * seen[..., None]), jnp.asarray(seen), jnp.zeros((pictures, 6))),
        Encoding(jnp.asarray(text * said[..., None]), jnp.asarray(said), jnp.zeros((captions, 6))),
    )


def scores_by_loop(images, texts):
    found = np.zeros((len(images.mask), len(texts.mask)))
    for k in range(len(images.mask)):
        regions = np.asarray(images.local[k])[np.asarray(images.mask[k])]
        for row in range(len(texts.mask)):
            for word in np.asarray(texts.local[row])[np.asarray(texts.mask[row])]:
                found[k, row] += max(regions @ word) if len(regions) else 0.0
    return found


@pytest.mark.parametrize("tile", [Tile(1, 1), Tile(3, 2), Tile(64, 32)])
@pytest.mark.parametrize("train", [False, True])
def test_scores_are_their_formula_whatever_the_tile(tile, train):
    images, texts = encodings(3, 9)
    found = FragmentScore(tile).apply({}, images, texts, train=train)
    expected = scores_by_loop(images, texts)
    assert expected[0].tolist() == [0.0] * 5  # a picture without regions
    assert expected[:, 0].tolist() == [0.0] * 4  # a sentence without words
    assert np.abs(expected).max() > 3
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_gradient_goes_to_the_best_regions_alone():
    images, texts = encodings(4, 6)
    weights = np.random.default_rng(4).normal(size=(4, 5)).astype(np.float32)

    def total(image, text, tile):
        one, other = images.replace(local=image), texts.replace(local=text)
        return jnp.vdot(FragmentScore(tile).apply({}, one, other, train=True), weights)

    local = np.asarray(images.local), np.asarray(texts.local)
    expected = np.zeros_like(local[0]), np.zeros_like(local[1])
    for k, row in np.ndindex(4, 5):
        seen = np.flatnonzero(images.mask[k])
        for t in np.flatnonzero(texts.mask[row]) if len(seen) else ():
            best = seen[np.argmax(local[0][k, seen] @ local[1][row, t])]
            expected[0][k, best] += weights[k, row] * local[1][row, t]
            expected[1][row, t] += weights[k, row] * local[0][k, best]
    for tile in (Tile(1, 2), Tile(64, 32)):
        found = jax.jit(jax.grad(partial(total, tile=tile), (0, 1)))(*local)
        for one, other in zip(found, expected, strict=True):
            assert np.abs(other).max() > 0
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_training_holds_a_tile_and_not_all_pairs():
    """What the gradient needs of 256 x 256 pairs does not grow with the pairs' products."""

    def bytes_of(pairs):
        rng = np.random.default_rng(5)
        image, text = (rng.normal(size=(pairs, 20, 8)).astype(np.float32) for _ in range(2))
        every = jnp.ones((pairs, 20), bool)

        def total(image, text):
            one, other = (Encoding(x, every, x[:, 0]) for x in (image, text))
            scores = FragmentScore(Tile(16, 16)).apply({}, one, other, train=True)
            return jnp.sum(scores**2)

        compiled = jax.jit(jax.grad(total, (0, 1))).lower(image, text).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # Products of all pairs at once would be 256 x 256 x 20 x 20 x 4 bytes = 105 MB.
    assert bytes_of(256) < 16e6


def test_the_head_is_rectified_and_sums_the_words():
    head = RectifiedHead(4)
    rng = np.random.default_rng(6)
    parts = jnp.asarray(rng.normal(size=(2, 3, 5)), "f4")
    mask = jnp.asarray([[True, True, True], [True, False, False]])
    params = random_params(head, parts, mask)
    found = head.apply({"params": params}, parts, mask, train=False)
    kernel, bias = (np.asarray(params["project"][name]) for name in ("kernel", "bias"))
    expected = np.maximum(np.asarray(parts) @ kernel + bias, 0) * np.asarray(mask)[..., None]
    assert (expected == 0).any(axis=-1)[0].all()
    np.testing.assert_allclose(found.local, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.pooled, expected.sum(axis=1), rtol=1e-5, atol=1e-6)
