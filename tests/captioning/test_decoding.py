import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vse_jax.captioning.beam_search import beam_search
from vse_jax.captioning.captions import SpecialTokens
from vse_jax.captioning.decoding import greedy, sample

WIDTH, PICTURES = 6, 3
# Padding, start and end; all else are words.
SPECIAL = SpecialTokens(start=1, end=2, padding=0, banned=(0, 1))


class Decoder:
    """A small recurrent network, in JAX and in NumPy."""

    def __init__(self, seed, vocabulary, pictures=PICTURES, spread=2.0):
        rng = np.random.default_rng(seed)
        self.vocabulary = vocabulary
        self.recurrent = rng.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5
        self.words = rng.normal(size=(vocabulary, WIDTH))
        self.out = rng.normal(size=(WIDTH, vocabulary)) * spread / WIDTH**0.5
        self.start = rng.normal(size=(pictures, WIDTH))

    @property
    def weights(self):
        return [jnp.asarray(x, jnp.float32) for x in (self.recurrent, self.words, self.out)]

    @property
    def state(self):
        return {"h": jnp.asarray(self.start, jnp.float32)}

    def step(self, state, tokens):
        return step(self.weights, state, tokens)

    def next(self, h, token):
        """The next state and the log probabilities of all words after it, in float64."""
        h = np.tanh(h @ self.recurrent + self.words[token])
        return h, scipy.special.log_softmax(h @ self.out)

    def log_probability(self, picture, sentence):
        h, last, total = self.start[picture], SPECIAL.start, 0.0
        for token in sentence:
            h, log_p = self.next(h, last)
            total, last = total + log_p[token], token
        return total


def step(weights, state, tokens):
    recurrent, words, out = weights
    h = jnp.tanh(state["h"] @ recurrent + words[tokens])
    return {"h": h}, h @ out


@cache
def compiled(search, most, **options):
    """One program for all decoders of a size."""

    def run(weights, state):
        return search(partial(step, weights), state, SPECIAL, most, **options)

    return jax.jit(run)


def found_by(search, decoder, most, **options):
    return compiled(search, most, **options)(decoder.weights, decoder.state)


def sentences(found, picture):
    """The token lists of a picture, and nothing but padding behind them."""
    tokens, lengths = np.asarray(found.tokens[picture]), np.asarray(found.lengths[picture])
    for row, length in zip(tokens, lengths, strict=True):
        assert (row[length:] == SPECIAL.padding).all()
    return [tuple(row[:length].tolist()) for row, length in zip(tokens, lengths, strict=True)]


def all_captions(decoder, most):
    words = [w for w in range(decoder.vocabulary) if w not in (*SPECIAL.banned, SPECIAL.end)]
    for length in range(most):
        for start in itertools.product(words, repeat=length):
            yield (*start, SPECIAL.end)
    yield from itertools.product(words, repeat=most)


def plain_beam_search(decoder, picture, most, beams, n_best, power):
    """To the last step, without an early stop: [(score, log p, caption)], best first."""
    live = [(0.0, 0.0, (), decoder.start[picture])]
    for _ in range(most):
        candidates = []
        for score, log_p, caption, h in live:
            if caption[-1:] == (SPECIAL.end,):
                candidates.append((score, log_p, caption, h))
                continue
            after, added = decoder.next(h, caption[-1] if caption else SPECIAL.start)
            for word in set(range(decoder.vocabulary)) - set(SPECIAL.banned):
                total = log_p + added[word]
                score = total / (len(caption) + 1) ** power
                candidates.append((score, total, (*caption, word), after))
        live = sorted(candidates, key=lambda one: -one[0])[:beams]
    return live[:n_best]


@pytest.mark.parametrize(
    ("seed", "vocabulary", "most", "power"),
    [(0, 5, 4, 0.0), (1, 5, 4, 0.0), (0, 5, 4, 0.7), (1, 5, 4, 0.7), (2, 4, 4, 1.0)],
)
def test_as_many_beams_as_captions_find_all_captions_in_order(seed, vocabulary, most, power):
    decoder = Decoder(seed, vocabulary)
    captions = list(all_captions(decoder, most))
    count = len(captions)
    options = {"beams": count, "n_best": count, "length_power": power}
    found = found_by(beam_search, decoder, most, **options)
    for picture in range(PICTURES):
        log_p = {caption: decoder.log_probability(picture, caption) for caption in captions}
        wanted = sorted(captions, key=lambda one: -log_p[one] / len(one) ** power)
        assert sentences(found, picture) == wanted
        values = np.array([log_p[one] for one in wanted])
        np.testing.assert_allclose(found.log_probabilities[picture], values, atol=1e-5)
        scores = values / np.array([len(one) for one in wanted]) ** power
        np.testing.assert_allclose(found.scores[picture], scores, atol=1e-5)
    if power == 0:
        assert (found.scores == found.log_probabilities).all()


@pytest.mark.parametrize(
    ("beams", "n_best", "power"),
    [(1, 1, 1.0), (2, 1, 0.0), (2, 1, 2.5), (3, 3, 0.0), (5, 2, 1.0), (9, 1, 0.0), (9, 4, 0.6)],
)
def test_narrower_beams_equal_a_plain_search_that_never_stops_early(beams, n_best, power):
    options = {"beams": beams, "n_best": n_best, "length_power": power}
    for seed in range(4):
        decoder = Decoder(seed, 7, pictures=8)
        found = found_by(beam_search, decoder, 8, **options)
        for picture in range(8):
            wanted = plain_beam_search(decoder, picture, 8, beams, n_best, power)
            assert sentences(found, picture) == [caption for _, _, caption, _ in wanted]
            scores, log_p, _, _ = zip(*wanted, strict=True)
            np.testing.assert_allclose(found.scores[picture], scores, atol=1e-5)
            np.testing.assert_allclose(found.log_probabilities[picture], log_p, atol=1e-5)


def drawn(step, state, special, most, **options):
    return sample(step, state, jax.random.key(0), special, most, **options)


def scripted(search, rows, most, **options):
    """What a search makes of two pictures if the logits of each step are these; NaN behind them."""
    table = np.array([*rows, [np.nan] * len(rows[0])], np.float32)
    return script(search, most, **options)(table)


@cache
def script(search, most, **options):
    def run(table):
        def step(time, tokens):
            del tokens
            return time + 1, table.at[time].get(mode="clip")

        return search(step, jnp.zeros(2, jnp.int32), SPECIAL, most, **options)

    return jax.jit(run)


def test_a_search_stops_once_nothing_can_win():
    """The decoder fails from its third step on, which no search comes to."""
    end = [-9.0, -9.0, 5.0, 0.0, 0.0]
    rows = [[0.0, 0.0, -4.0, 3.0, 0.0], end]
    for found in (
        scripted(beam_search, rows, 9, beams=3),
        scripted(greedy, rows, 9),
        scripted(drawn, rows, 9, temperature=0.0),
    ):
        assert sentences(found, 0) == sentences(found, 1) == [(3, 2)]
        assert np.isfinite(found.log_probabilities).all()


def test_a_search_goes_on_while_a_longer_caption_can_still_win():
    """By its mean the unended caption is worse than the ended one at first, and better later."""
    first = np.log([0.05, 1e-9, 0.5, 0.45])
    rows = [first, *np.log([[1e-9, 1e-9, 1e-9, 1.0]] * 3)]
    found = scripted(beam_search, rows, 4, beams=2, n_best=2, length_power=1.0)
    assert sentences(found, 0) == [(3, 3, 3, 3), (2,)]
    best = scripted(beam_search, rows, 4, beams=2, length_power=1.0)
    assert sentences(best, 0) == [(3, 3, 3, 3)]
    assert sentences(scripted(beam_search, rows, 4, beams=2), 0) == [(2,)]


def test_one_beam_is_greedy():
    for seed in range(5):
        decoder = Decoder(seed, 9, pictures=8)
        wanted = found_by(greedy, decoder, 7)
        found = found_by(beam_search, decoder, 7, beams=1)
        np.testing.assert_array_equal(found.tokens, wanted.tokens)
        np.testing.assert_array_equal(found.lengths, wanted.lengths)
        np.testing.assert_allclose(found.log_probabilities, wanted.log_probabilities, atol=1e-5)


def test_greedy_takes_the_likeliest_word_at_each_step():
    decoder = Decoder(3, 9, pictures=8)
    found = found_by(greedy, decoder, 7)
    for picture in range(8):
        h, caption, total = decoder.start[picture], [SPECIAL.start], 0.0
        while len(caption) < 8 and caption[-1] != SPECIAL.end:
            h, log_p = decoder.next(h, caption[-1])
            log_p[list(SPECIAL.banned)], kept = -np.inf, log_p
            caption.append(int(np.argmax(kept)))
            total += kept[caption[-1]]
        assert sentences(found, picture) == [tuple(caption[1:])]
        np.testing.assert_allclose(found.log_probabilities[picture], total, atol=1e-5)
    assert {len(one) for one in map(partial(sentences, found), range(8)) for one in one} > {7}


@pytest.mark.parametrize("search", [greedy, partial(beam_search, beams=4, n_best=4)])
def test_a_batch_is_its_pictures_one_by_one(search):
    decoder = Decoder(4, 8, pictures=6)
    found, run = found_by(search, decoder, 9), compiled(search, 9)
    alone = [run(decoder.weights, {"h": decoder.state["h"][i : i + 1]}) for i in range(6)]
    alone = jax.tree.map(lambda *x: jnp.concatenate(x), *alone)
    assert len(set(np.asarray(found.lengths[:, 0]).tolist())) > 1
    np.testing.assert_array_equal(found.tokens, alone.tokens)
    np.testing.assert_array_equal(found.lengths, alone.lengths)
    np.testing.assert_allclose(found.scores, alone.scores, atol=1e-5)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, None), (2.0, 3), (1.0, 99)])
def test_words_are_drawn_as_often_as_they_are_likely(temperature, top_k):
    logits = np.array([1.5, 3.0, 0.3, 1.0, -0.5, 0.8, 0.1])
    count = 4000
    options = {"temperature": temperature, "top_k": top_k, "samples": count}
    found = scripted(drawn, [logits], 1, **options)
    words = np.array([2, 3, 4, 5, 6])
    if top_k == 3:
        words = np.array([2, 3, 5])
    expected = scipy.special.softmax(logits[words] / temperature) * count
    for picture in range(2):
        counts = np.bincount(found.tokens[picture, :, 0], minlength=7)
        assert counts.sum() == counts[words].sum()
        assert scipy.stats.chisquare(counts[words], expected).pvalue > 0.01
    wanted = scipy.special.log_softmax(logits)[np.asarray(found.tokens[..., 0])]
    np.testing.assert_allclose(found.log_probabilities, wanted, atol=1e-5)
    assert (found.tokens[0] != found.tokens[1]).any()


def test_later_words_are_drawn_anew_and_given_those_before():
    decoder = Decoder(0, 5, pictures=1)
    count = 4000
    found = found_by(drawn, decoder, 2, samples=count)
    captions = list(all_captions(decoder, 2))
    # The banned words' share of each step goes to the others.
    h, first = decoder.next(decoder.start[0], SPECIAL.start)
    likely = []
    for caption in captions:
        log_p = first[caption[0]] - np.log(np.exp(first[2:]).sum())
        if len(caption) > 1:
            _, second = decoder.next(h, caption[0])
            log_p += second[caption[1]] - np.log(np.exp(second[2:]).sum())
        likely.append(np.exp(log_p))
    written = sentences(found, 0)
    counts = [written.count(caption) for caption in captions]
    assert sum(counts) == count
    assert scipy.stats.chisquare(counts, np.array(likely) * count).pvalue > 0.01


def test_no_temperature_is_greedy_and_a_low_one_nearly():
    decoder = Decoder(5, 9)
    wanted = found_by(greedy, decoder, 6)
    for temperature in (0.0, 1e-6):
        found = found_by(drawn, decoder, 6, temperature=temperature)
        np.testing.assert_array_equal(found.tokens, wanted.tokens)


def test_equal_scores_are_ranked_by_the_number_of_the_word():
    rows = [[0.0] * 5] * 2
    found = scripted(beam_search, rows, 2, beams=4, n_best=4)
    assert sentences(found, 0) == [(2,), (3, 2), (3, 3), (3, 4)]
    assert sentences(scripted(greedy, rows, 2), 0) == [(2,)]
    without_end = [[0.0, 0.0, -9.0, 0.0, 0.0]] * 2
    assert sentences(scripted(greedy, without_end, 2), 0) == [(3, 3)]


SEARCHES = {
    "greedy": greedy,
    "sample": drawn,
    "beam": partial(beam_search, beams=3),
}


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_a_decoder_that_fails_on_a_picture_has_no_caption_of_it(search):
    decoder = Decoder(6, 6, pictures=2)

    def failing(bad, word, at, state, tokens):
        h, logits = decoder.step({"h": state["h"]}, tokens)
        # <end> has no part at first, so that no caption is over before.
        logits = logits.at[:, 2].set(jnp.where(state["time"] < 2, -jnp.inf, logits[:, 2]))
        failed = (state["bad"] & (state["time"] == at))[:, None] & (jnp.arange(6) == word)[None]
        return h | {"time": state["time"] + 1, "bad": state["bad"]}, jnp.where(failed, bad, logits)

    @jax.jit
    def run(which, bad, word, at):
        state = decoder.state | {"time": jnp.zeros(2, jnp.int32), "bad": which}
        return search(partial(failing, bad, word, at), state, SPECIAL, 4)

    sound = run(jnp.zeros(2, bool), np.nan, 0, 0)
    assert np.isfinite(sound.log_probabilities).all()
    for bad, word, at in itertools.product((np.nan, -np.nan, np.inf), (0, 4), (0, 1)):
        found = run(jnp.asarray([True, False]), bad, word, at)
        assert np.isnan(found.log_probabilities[0]).all()
        assert np.isnan(found.scores[0]).all()
        assert (np.asarray(found.tokens[0]) == SPECIAL.padding).all()
        assert (np.asarray(found.lengths[0]) == 0).all()
        for ours, wanted in zip(found, sound, strict=True):
            np.testing.assert_array_equal(ours[1], wanted[1])


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_a_picture_that_is_done_cannot_fail_any_more(search):
    """The first ends with its second word, after which its logits are NaN; the other goes on."""

    def step(state, tokens):
        time, soon = state["time"], state["soon"]
        ends = jnp.where(soon, time == 1, time == 4)
        logits = jnp.stack([0 * time, 0 * time, jnp.where(ends, 99, -99), 9 + 0 * time], axis=1)
        logits = jnp.where((soon & (time > 1))[:, None], jnp.nan, logits)
        return {"time": time + 1, "soon": soon}, logits + 0.0 * tokens[:, None]

    @jax.jit
    def run(soon):
        return search(step, {"time": jnp.zeros(2, jnp.int32), "soon": soon}, SPECIAL, 9)

    found = run(jnp.asarray([True, False]))
    assert sentences(found, 0)[0] == (3, 2)
    assert sentences(found, 1)[0] == (3, 3, 3, 3, 2)
    assert np.isfinite(found.log_probabilities[:, 0]).all()


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_where_no_word_has_a_probability_there_is_no_caption(search):
    none = [0.0, 0.0, -np.inf, -np.inf, -np.inf]
    for rows in ([none] * 2, [[-np.inf] * 5] * 2):
        found = scripted(search, rows, 2)
        assert (np.asarray(found.log_probabilities) == -np.inf).all()
        assert (np.asarray(found.scores) == -np.inf).all()
        assert (np.asarray(found.tokens) == SPECIAL.padding).all()
        assert (np.asarray(found.lengths) == 0).all()


def test_captions_without_a_probability_fill_up_the_best():
    only = [-np.inf, -np.inf, 0.0, 0.5, -np.inf]
    found = scripted(beam_search, [only] * 2, 2, beams=5, n_best=5)
    assert sentences(found, 0) == [(3, 3), (2,), (3, 2), (), ()]
    assert (np.asarray(found.log_probabilities[:, 3:]) == -np.inf).all()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"beams": 8},
            "8 beams, but 2 words beside <end> make only 7 captions of at most 2 tokens",
        ),
        ({"beams": 0}, "beams is 0; expected 1 or more"),
        ({"n_best": 3}, "n_best is 3; expected 1 to 2"),
        ({"n_best": 0}, "n_best is 0; expected 1 to 2"),
        ({"length_power": -0.1}, "length_power is -0.1; expected 0"),
        ({"length_power": float("nan")}, "length_power is nan"),
        ({"length_power": 500.0}, "length_power is 500.0; 2 tokens to this power are no float32"),
        ({"max_length": 0}, "max_length is 0; expected 1 or more"),
        ({"special": SPECIAL._replace(banned=(2,))}, "token 2, is among the banned"),
        (
            {"special": SPECIAL._replace(banned=(5,))},
            "banned has token 5; the decoder's are 0 to 4",
        ),
        ({"special": SPECIAL._replace(end=-1)}, "end has token -1"),
        ({"special": SPECIAL._replace(start=7)}, "start has token 7"),
    ],
)
def test_what_is_impossible_is_refused(changed, words):
    decoder = Decoder(0, 5)
    given = {"special": SPECIAL, "max_length": 2, "beams": 2} | changed
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        beam_search(decoder.step, decoder.state, **given)


@pytest.mark.parametrize("name", ["samples", "top_k"])
def test_sampling_nothing_is_refused(name):
    decoder = Decoder(0, 5)
    with pytest.raises(ValueError, match=f"{name} is 0; expected 1 or more"):
        sample(decoder.step, decoder.state, jax.random.key(0), SPECIAL, 2, **{name: 0})


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf")])
def test_an_impossible_temperature_is_refused(temperature):
    decoder, key = Decoder(0, 5), jax.random.key(0)
    with pytest.raises(ValueError, match=r"temperature is .*; expected 0"):
        sample(decoder.step, decoder.state, key, SPECIAL, 2, temperature=temperature)
