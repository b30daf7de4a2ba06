"""Harder scenes of `shapes`; the usual ones stay as they are."""

import hashlib
import io
import itertools
import json

import numpy as np
import pytest
from data.test_datasets import section
from data.test_shapes import fits, footprint, holds, said_in, statements
from PIL import Image

from vse_jax.data import datasets, shapes
from vse_jax.data.shapes import Difficulty, drawing, scene
from vse_jax.data.shapes.attributes import ATTRIBUTE_BITS
from vse_jax.data.shapes.builder import ShapesConfig, example
from vse_jax.data.split import DataError

HARD = Difficulty(clutter=4.0, hidden=0.7, objects=(3, 8))
NUMBERS = {
    "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def examples():
    return [example(5, "train", number, HARD) for number in range(80)]


@pytest.fixture(scope="module")
def scenes(examples):
    return [json.loads(each["scene"]) for each in examples]


@pytest.fixture(scope="module")
def meanings(examples):
    return [[json.loads(text) for text in each["meanings"]] for each in examples]


def test_the_usual_scenes_are_those_of_the_published_version():
    """Scenes, captions and meanings of version 1.0.0, as runs that were reported have them."""
    digest = hashlib.sha256()
    for number in range(30):
        found = example(0, "train", number)
        assert found["image"] == example(0, "train", number, Difficulty())["image"]
        assert "distractors" not in json.loads(found["scene"])
        digest.update(found["scene"].encode())
        digest.update("\n".join([*found["captions"], *found["meanings"]]).encode())
    assert digest.hexdigest() == "45f10b108df97634d5fb05329d495341064a8d9384d19e7a37e697131616eedd"


def test_the_folder_tells_the_difficulty_unless_it_is_the_usual():
    def name(**settings):
        return ShapesConfig(seed=3, sizes=(12, 4, 5), difficulty=Difficulty(**settings)).name

    assert name() == name(clutter=1.0, objects=(1, 4)) == "seed3_12_4_5"
    assert name(clutter=2.0) == "seed3_12_4_5_clutter2.0_hidden0.35_objects1-4"
    captions = ShapesConfig(seed=3, sizes=(12, 4, 5), captions=("whole", "count", "whole")).name
    assert captions == "seed3_12_4_5_captionswcw"
    others = [{"clutter": 2.0}, {"hidden": 0.5}, {"objects": (2, 4)}, {"objects": (1, 8)}]
    assert len({name(), *(name(**settings) for settings in others)}) == 5


def test_scenes_have_as_many_objects_as_asked_for(scenes):
    counts = [len(drawn["objects"]) for drawn in scenes]
    assert set(counts) == {3, 4, 5, 6, 7, 8}
    assert max(np.bincount(counts)) < 0.4 * len(counts)


def test_objects_are_hidden_to_the_share_allowed(scenes):
    shares = []
    for drawn in scenes[:40]:
        areas = [footprint(thing) for thing in drawn["objects"]]
        for number, area in enumerate(areas):
            front = np.any([np.zeros_like(area), *areas[number + 1 :]], axis=0)
            shares.append((area & front).sum() / area.sum())
    assert 0.35 < max(shares) <= 0.71
    assert np.mean(np.array(shares) > 0.2) > 0.1


def test_the_label_is_the_shape_of_the_one_largest_object(examples, scenes):
    for each, drawn in zip(examples, scenes, strict=True):
        sizes = sorted(thing["diameter"] for thing in drawn["objects"])
        main = drawn["objects"][drawn["main"]]
        assert main["diameter"] == sizes[-1] >= sizes[-2] + 2
        assert each["label"] == main["shape"]


def matches(objects, said):
    """Whether each of what is said is a different object."""
    return not said or any(
        fits(thing, said[0]) and matches([*objects[:k], *objects[k + 1 :]], said[1:])
        for k, thing in enumerate(objects)
    )


def test_every_caption_is_true_and_says_what_its_meaning_says(examples, scenes, meanings):
    told = set()
    for each, drawn, said in zip(examples, scenes, meanings, strict=True):
        for text, meaning in zip(each["captions"], said, strict=True):
            objects = drawn["objects"]
            assert said_in(text) == statements(meaning), text
            assert matches(objects, meaning.get("objects", [])), text
            assert fits(drawn["background"], meaning.get("background", {}))
            for i, name, j in meaning.get("relations", []):
                pairs = itertools.permutations(range(len(objects)), 2)
                first, second = meaning["objects"][i], meaning["objects"][j]
                assert any(
                    fits(objects[a], first) and fits(objects[b], second)
                    and holds(objects, a, name, b)
                    for a, b in pairs
                ), text  # fmt: skip
            for count in meaning.get("counts", []):
                found = sum(fits(thing, count["of"]) for thing in objects)
                number = count["number"]
                assert found >= number if count["at_least"] else found == number, text
                if meaning["kind"] == "count":
                    assert number in {NUMBERS.get(word) for word in text.lower().split()}, text
                    told.add(number)
            assert shapes.scene_similarity(meaning, drawn) == 1.0
    assert told == set(range(1, 9))


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 2.5, 8.0])
def test_clutter_is_a_factor_and_what_is_more_than_usual_is_coloured(factor):
    for seed in range(20):
        usual = scene.sample(np.random.default_rng(seed))
        found = scene.sample(np.random.default_rng(seed), Difficulty(clutter=factor))
        assert found["objects"] == usual["objects"]
        more = found.get("distractors", 0)
        assert found["clutter"] + more == round(factor * usual["clutter"])
        assert found["clutter"] <= usual["clutter"]
        assert not more or found["clutter"] == usual["clutter"]


def test_distractors_have_the_colours_of_objects_and_are_smaller():
    palette = np.array(list(drawing._PALETTE.values()), np.float32)
    seen = set()
    for seed in range(200):
        on_black, on_white = (
            drawing.distract(np.full((96, 96, 3), tone, np.float32), 1, np.random.default_rng(seed))
            for tone in (0, 255)
        )
        cover = 1 - (on_white - on_black) / 255
        rows, columns = np.nonzero(cover[..., 0] > 1e-3)
        assert max(np.ptp(rows), np.ptp(columns)) + 1 < 16
        colour = on_black.sum((0, 1)) / cover.sum((0, 1))
        distance = np.abs(colour - palette).max(-1)
        assert distance.min() <= 13
        seen.add(distance.argmin())
    assert len(seen) == 8


def test_distractors_lie_behind_the_objects(scenes):
    for drawn in scenes[:10]:
        for thing in drawn["objects"][-1:]:
            top, left = thing["corner"]
            cover = drawing.mask(thing["shape"], thing["diameter"], thing["turn"]) == 1
            solid = {**drawn, "objects": [{**thing, "fill": "solid"}]}
            picture = drawing.render(solid, np.random.default_rng(0)).astype(float)
            height, width = cover.shape
            inside = picture[top : top + height, left : left + width][cover]
            assert inside.std(axis=0).max() < 7  # The noise of 5 alone.


def brute(weights):
    rows, columns = weights.shape
    ways = itertools.permutations(range(columns), rows)
    return max(sum(weights[i, j] for i, j in enumerate(way)) for way in ways)


def test_many_objects_are_matched_as_if_all_ways_were_tried():
    """Scenes and captions of 6 objects against all 720 ways."""
    six = Difficulty(objects=(6, 6))
    found = [example(1, "test", number, six) for number in range(6)]
    drawn = [json.loads(each["scene"]) for each in found]
    said = [json.loads(each["meanings"][0])["objects"] for each in found]

    def bits(thing, other):
        return sum(ATTRIBUTE_BITS[name] for name in thing if other.get(name) == thing[name])

    scores = shapes.oracle_scores(drawn, [{"objects": objects} for objects in said])
    for (i, one), (j, objects) in itertools.product(enumerate(drawn), enumerate(said)):
        total = sum(bits(thing, thing) for thing in objects)
        weights = np.array([[bits(a, b) for b in one["objects"]] for a in objects])
        share = brute(weights) / total
        expected = (share + (share == 1) * total / (total + 16)) / 2
        assert scores[i, j] == pytest.approx(expected, abs=1e-6)
        other = sum(bits(thing, thing) for thing in said[i])
        shared = brute(np.array([[bits(a, b) for b in said[i]] for a in objects]))
        assert shapes.caption_similarity({"objects": said[i]}, {"objects": objects}) == (
            pytest.approx(2 * shared / (total + other))
        )


def test_a_config_draws_them(tmp_path):
    fields = {"shapes_sizes": (3, 2, 1), "data_dir": str(tmp_path)}
    told = datasets.load(section(**fields, shapes_captions=("part", "part")), 0).splits["train"]
    assert len(told.captions_of(1)) == 2
    assert told.captions_of(1) == example(0, "train", 1, kinds=("part", "part"))["captions"]
    hard = {"shapes_clutter": 4.0, "shapes_hidden": 0.7, "shapes_objects": (3, 8)}
    found = datasets.load(section(**fields, **hard), 0)
    usual = datasets.load(section(**fields), 0)
    assert found.fingerprint != usual.fingerprint
    assert {path.name for path in (tmp_path / "shapes").iterdir()} >= {
        "seed0_3_2_1", "seed0_3_2_1_clutter4.0_hidden0.7_objects3-8",
    }  # fmt: skip
    expected = example(0, "train", 2, HARD)
    assert found.splits["train"].read([2]) == [expected["image"]]
    assert found.splits["train"].scenes[2] == json.loads(expected["scene"])
    with Image.open(io.BytesIO(expected["image"])) as picture:
        assert picture.size == (96, 96)


@pytest.mark.parametrize(
    "wrong", [{"clutter": 8.1}, {"hidden": 0.3}, {"hidden": 0.71}, {"objects": (0, 4)},
              {"objects": (5, 4)}, {"objects": (1, 9)}],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(tmp_path, wrong):
    with pytest.raises(DataError, match=r"clutter must lie in \[0, 8\], hidden in"):
        shapes.load(tmp_path, difficulty=Difficulty(**wrong))
    assert not list(tmp_path.iterdir())
