import io
import itertools
import json
import re

import numpy as np
import pytest
from PIL import Image

from vse_jax.config_checks import CAPTION_KINDS
from vse_jax.data import shapes
from vse_jax.data.shapes import drawing, grammar, scene
from vse_jax.data.shapes.attributes import BACKGROUND, OBJECT
from vse_jax.data.shapes.builder import example
from vse_jax.data.split import DataError

WORDS = {
    "shape": {
        "circle": "circle disc", "square": "square box boxe", "triangle": "triangle",
        "star": "star", "heart": "heart", "cross": "cross crosse plus pluse",
        "moon": "moon crescent", "ring": "ring hoop",
    },
    "colour": {
        "red": "red scarlet", "orange": "orange", "yellow": "yellow golden", "green": "green",
        "cyan": "cyan turquoise", "blue": "blue", "purple": "purple violet", "pink": "pink rosy",
    },
    "size": {"small": "small little tiny", "large": "large big huge"},
    "fill": {"solid": "solid filled", "striped": "striped stripy"},
    "tone": {"white": "white pale", "grey": "grey", "black": "black dark", "brown": "brown"},
    "pattern": {
        "plain": "plain even", "shaded": "shaded fading", "lined": "lined",
        "checked": "checked chequered",
    },
}  # fmt: skip
MEANS = {
    word: (name, value)
    for name, values in WORDS.items()
    for value, words in values.items()
    for word in words.split()
}
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4}
# Preposition -> whether it holds, from the (y, x) of both centres.
PLACES = {
    "left of": lambda a, b: a[1] < b[1],
    "right of": lambda a, b: a[1] > b[1],
    "above|over|higher than": lambda a, b: a[0] < b[0],
    "below|under|beneath": lambda a, b: a[0] > b[0],
}


@pytest.fixture(scope="module")
def examples():
    return [example(5, "train", number) for number in range(150)]


@pytest.fixture(scope="module")
def scenes(examples):
    return [json.loads(each["scene"]) for each in examples]


@pytest.fixture(scope="module")
def meanings(examples):
    return [[json.loads(text) for text in each["meanings"]] for each in examples]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return shapes.load(tmp_path_factory.mktemp("a"), seed=3, train=12, validation=4, test=5)


def fits(thing, attributes):
    return all(thing[name] == value for name, value in attributes.items())


def centre(box):
    return ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)


def holds(objects, i, name, j):
    (y, x), (other_y, other_x) = centre(objects[i]["box"]), centre(objects[j]["box"])
    if name == "left":
        return other_x - x >= 0.1
    if name == "above":
        return other_y - y >= 0.1
    (a, b, c, d), (e, f, g, h) = objects[i]["box"], objects[j]["box"]
    return i > j and min(c, g) > max(a, e) and min(d, h) > max(b, f)


def is_true(meaning, scene):
    """Whether all that is said holds, read off the list of objects and their boxes."""
    objects, said = scene["objects"], meaning.get("objects", [])
    ways = itertools.permutations(range(len(objects)), len(said))
    matched = any(
        all(fits(objects[k], thing) for k, thing in zip(way, said, strict=True))
        and all(holds(objects, way[i], name, way[j]) for i, name, j in meaning.get("relations", []))
        for way in ways
    )
    for count in meaning.get("counts", []):
        found = sum(fits(thing, count["of"]) for thing in objects)
        number = count["number"]
        matched &= found >= number if count["at_least"] else found == number
    return matched and fits(scene["background"], meaning.get("background", {}))


def said_in(text):
    """Attributes that a sentence names, by a dictionary of this test's own."""
    words = re.findall(r"[a-z]+", text.lower())
    return {MEANS.get(word) or MEANS.get(word.removesuffix("s")) for word in words} - {None}


def statements(meaning):
    parts = [*meaning.get("objects", []), meaning.get("background", {})]
    parts += [count["of"] for count in meaning.get("counts", [])]
    return {item for part in parts for item in part.items()}


def footprint(thing):
    """Pixels that an object changes when it is drawn alone."""
    plain = {"background": {"tone": "white", "pattern": "plain"}, "clutter": 0}
    solid = thing | {"fill": "solid"}
    with_it = drawing.render(plain | {"objects": [solid]}, np.random.default_rng(0))
    without = drawing.render(plain | {"objects": []}, np.random.default_rng(0))
    return (with_it != without).any(-1)


def test_splits_have_the_sizes_asked_for_and_five_captions_a_picture(dataset):
    assert {name: len(split.images) for name, split in dataset.splits.items()} == {
        "train": 12,
        "validation": 4,
        "test": 5,
    }
    assert (dataset.name, dataset.protocol) == ("shapes", "shapes_5")
    for split in dataset.splits.values():
        count = len(split.images)
        assert split.caption_image.tolist() == [i for i in range(count) for _ in range(5)]
        assert len(split.captions) == len(split.meanings) == 5 * count
        assert len(split.scenes) == len(split.boxes) == len(split.labels) == count


def test_pictures_are_96_by_96_jpeg_and_the_record_is_the_example(dataset):
    split = dataset.splits["validation"]
    for number, data in enumerate(split.read(range(4))):
        expected = example(3, "validation", number)
        picture = Image.open(io.BytesIO(data))
        assert (picture.format, picture.size, picture.mode) == ("JPEG", (96, 96), "RGB")
        assert data == expected["image"]
        assert split.captions[5 * number : 5 * number + 5] == expected["captions"]
        assert split.scenes[number] == json.loads(expected["scene"])
        assert shapes.SHAPES[split.labels[number]] == expected["label"]
        np.testing.assert_array_equal(split.boxes[number], expected["boxes"])


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(dataset, tmp_path):
    same = shapes.load(tmp_path, seed=3, train=12, validation=4, test=5)
    other = shapes.load(tmp_path, seed=4, train=12, validation=4, test=5)
    pictures = [each.splits["train"].read(range(12)) for each in (dataset, same, other)]
    assert pictures[0] == pictures[1]
    assert not set(pictures[0]) & set(pictures[2])
    assert same.splits["train"].captions == dataset.splits["train"].captions
    assert same.fingerprint == dataset.fingerprint != other.fingerprint


def test_splits_share_no_picture_and_sizes_change_the_fingerprint(dataset, tmp_path):
    pictures = [split.read(range(len(split.images))) for split in dataset.splits.values()]
    assert len({data for part in pictures for data in part}) == 21
    smaller = shapes.load(tmp_path, seed=3, train=11, validation=4, test=5)
    assert smaller.fingerprint != dataset.fingerprint
    assert smaller.splits["train"].read([10]) == dataset.splits["train"].read([10])


def test_numpys_global_state_is_neither_read_nor_changed():
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    first = example(0, "test", 0)
    assert np.random.get_state()[1].tolist() == before
    np.random.seed(1)
    assert example(0, "test", 0)["image"] == first["image"]


@pytest.mark.parametrize("wrong", [{"train": 0}, {"test": -1}, {"seed": -1}])
def test_sizes_and_seeds_out_of_range_are_refused(tmp_path, wrong):
    (name,) = wrong
    with pytest.raises(DataError, match=f"{name}.* {wrong[name]}"):
        shapes.load(tmp_path, **wrong)
    assert not list(tmp_path.iterdir())


def test_every_caption_is_true_of_its_picture(scenes, meanings):
    for drawn, said in zip(scenes, meanings, strict=True):
        for meaning in said:
            assert is_true(meaning, drawn), (meaning, drawn)
            assert shapes.scene_similarity(meaning, drawn) == 1.0


def test_every_caption_says_what_its_meaning_says(examples, meanings):
    for each, said in zip(examples, meanings, strict=True):
        for text, meaning in zip(each["captions"], said, strict=True):
            assert said_in(text) == statements(meaning), text
            assert re.fullmatch(r"[A-Z][a-z ,:I]*\.", text), text
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  ", text.lower()), text
            for count in meaning.get("counts", []) if meaning["kind"] == "count" else []:
                assert count["number"] in {NUMBERS.get(w) for w in text.lower().split()}, text


def test_relations_hold_in_the_direction_of_the_sentence(examples, scenes):
    checked = 0
    for each, drawn in zip(examples, scenes, strict=True):
        text = each["captions"][grammar.KINDS.index("relation")]
        for words, holds_here in PLACES.items():
            if not (parts := re.split(rf" (?:{words}) ", text)) or len(parts) != 2:
                continue
            first, second = (dict(said_in(part)) for part in parts)
            pairs = itertools.permutations(drawn["objects"], 2)
            assert any(
                fits(a, first)
                and fits(b, second)
                and holds_here(centre(a["box"]), centre(b["box"]))
                for a, b in pairs
            ), text
            checked += 1
    assert checked > 60


def test_the_five_captions_are_of_unlike_content(meanings):
    for said in meanings:
        kinds = [meaning["kind"] for meaning in said]
        assert kinds in (list(grammar.KINDS), ["whole", "part", "part", "count", "vague"])
        whole, vague = said[0], said[4]
        assert len(statements(vague)) <= 2 < len(statements(whole))


def test_captions_are_of_the_kinds_asked_for():
    kinds = ("count", "whole", "whole", "relation")
    related, worded_twice = 0, 0
    for number in range(30):
        found, usual = example(5, "train", number, kinds=kinds), example(5, "train", number)
        assert found["image"] == usual["image"]
        said = [json.loads(meaning) for meaning in found["meanings"]]
        told = tuple(meaning["kind"] for meaning in said)
        assert told in (kinds, ("count", "whole", "whole", "part"))
        related += told == kinds
        worded_twice += found["captions"][1] != found["captions"][2]
        for text, meaning in zip(found["captions"], said, strict=True):
            assert said_in(text) == statements(meaning), text
        things = json.loads(found["scene"])["objects"]
        for whole in said[1:3]:
            named = sorted(thing["shape"] + thing["colour"] for thing in whole["objects"])
            assert named == sorted(thing["shape"] + thing["colour"] for thing in things)
    assert related > 10
    assert worded_twice > 25


def test_captions_of_unknown_kinds_are_refused(tmp_path):
    assert CAPTION_KINDS == grammar.KINDS
    for kinds in ((), ("whole", "rhyme")):
        with pytest.raises(DataError, match="there are whole, part, relation, count, vague"):
            shapes.load(tmp_path, captions=kinds)
    assert not list(tmp_path.iterdir())


def test_snippets_name_all_attributes_of_their_object(scenes):
    for thing in (thing for drawn in scenes for thing in drawn["objects"]):
        assert said_in(thing["snippet"]) == {(name, thing[name]) for name in OBJECT}


def test_all_values_occur_and_scenes_have_one_to_four_objects(scenes):
    for name, values in OBJECT.items():
        assert {thing[name] for drawn in scenes for thing in drawn["objects"]} == set(values)
    for name, values in BACKGROUND.items():
        assert {drawn["background"][name] for drawn in scenes} == set(values)
    assert {len(drawn["objects"]) for drawn in scenes} == {1, 2, 3, 4}
    assert min(map(len, OBJECT.values())) == 2
    assert [len(OBJECT[name]) for name in ("shape", "colour")] == [8, 8]


def test_boxes_are_the_bounds_of_the_drawn_pixels(scenes):
    seen = set()
    for thing in (thing for drawn in scenes[:60] for thing in drawn["objects"]):
        rows, columns = np.nonzero(footprint(thing))
        bounds = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
        np.testing.assert_allclose(np.array(thing["box"]) * 96, bounds, atol=1e-3)
        seen.add((thing["shape"], thing["size"]))
    assert len(seen) == 16


def test_no_object_is_hidden_for_the_most_part_and_some_are_in_part(scenes):
    shares = []
    for drawn in scenes[:40]:
        areas = [footprint(thing) for thing in drawn["objects"]]
        for number, area in enumerate(areas[:-1]):
            front = np.any(areas[number + 1 :], axis=0)
            shares.append((area & front).sum() / area.sum())
            if any(name == "front" and j == number for _, name, j in drawn["relations"]):
                assert shares[-1] >= 0.04
    assert max(shares) <= scene.MOST_HIDDEN + 0.01
    assert np.mean(np.array(shares) > 0.05) > 0.1


def test_relations_of_a_scene_are_all_that_hold(scenes):
    for drawn in scenes:
        objects = drawn["objects"]
        for i, j in itertools.permutations(range(len(objects)), 2):
            for name in ("left", "above"):
                assert ([i, name, j] in drawn["relations"]) == holds(objects, i, name, j)


def test_the_label_is_the_shape_of_the_largest_object(examples, scenes):
    for each, drawn in zip(examples, scenes, strict=True):
        largest = max(drawn["objects"], key=lambda thing: thing["diameter"])
        assert each["label"] == largest["shape"]


def test_oracle_ranks_true_before_false_and_telling_before_vague(scenes, meanings):
    said = [meaning for group in meanings for meaning in group][:200]
    truth = np.array([[is_true(meaning, drawn) for meaning in said] for drawn in scenes])
    scores = shapes.oracle_scores(scenes, said)
    assert scores.dtype == np.float32
    assert scores.shape == truth.shape
    assert scores.min() >= 0
    assert scores.max() <= 1
    assert scores[truth].min() > scores[~truth].max()
    for column in range(len(said)):  # One caption: all scenes that it fits are equally good.
        assert len(set(scores[truth[:, column], column])) == 1
    whole, vague = scores[0, 0], scores[0, 4]
    assert whole > vague
    for row, column in ((0, 7), (3, 3), (9, 120)):
        share = shapes.scene_similarity(said[column], scenes[row])
        assert (share == 1) == truth[row, column]


def test_scene_similarity_is_the_share_of_bits_that_hold():
    thing = {"shape": "star", "colour": "red", "size": "small", "fill": "solid"}
    other = {"shape": "ring", "colour": "red", "size": "large", "fill": "solid"}
    drawn = {
        "background": {"tone": "grey", "pattern": "plain"},
        "objects": [thing, other],
        "relations": [[0, "left", 1]],
    }

    def similarity(**meaning):
        return shapes.scene_similarity({"kind": "part"} | meaning, drawn)

    assert similarity(objects=[{"shape": "star", "colour": "red"}]) == 1
    assert similarity(objects=[{"shape": "ring", "size": "small"}]) == 3 / 4
    # Two red things: each needs an object of its own.
    assert similarity(objects=[{"colour": "red"}] * 2) == 1
    assert similarity(objects=[{"colour": "red"}] * 3) == 2 / 3
    pair = [{"shape": "star"}, {"shape": "ring"}]
    assert similarity(objects=pair, relations=[[0, "left", 1]]) == 1
    assert similarity(objects=pair, relations=[[1, "left", 0]]) == 6 / 7.5
    count = {"of": {"colour": "red"}, "number": 1, "at_least": False}
    assert similarity(counts=[count], background={"tone": "grey"}) == 2 / 7
    assert similarity(counts=[count | {"at_least": True}]) == 1


def test_caption_similarity_is_symmetric_and_one_for_the_same_meaning(meanings):
    said = [meaning for group in meanings[:8] for meaning in group]
    for first, second in itertools.product(said, said):
        value = shapes.caption_similarity(first, second)
        assert 0 <= value <= 1
        assert value == shapes.caption_similarity(second, first)
    for meaning in said:
        turned = json.loads(json.dumps(meaning))
        size = len(turned.get("objects", []))
        turned["objects"] = turned.get("objects", [])[::-1]
        turned["relations"] = [
            [size - 1 - i, name, size - 1 - j] for i, name, j in turned.get("relations", [])
        ]
        assert shapes.caption_similarity(meaning, turned) == 1


def test_caption_similarity_by_hand():
    star = {"kind": "part", "objects": [{"shape": "star", "colour": "red"}]}
    ring = {"kind": "part", "objects": [{"shape": "ring", "colour": "red", "size": "small"}]}
    assert shapes.caption_similarity(star, ring) == pytest.approx(2 * 3 / (6 + 7))
    dark = {"kind": "vague", "background": {"tone": "black"}}
    assert shapes.caption_similarity(star, dark) == 0
