"""scripts/head_noun_labels.py labels pictures by what their captions are about."""

import importlib
import json
import sys
from pathlib import Path

import pytest
from data.test_snippets import png

from vse_jax import console
from vse_jax.config import ConfigError
from vse_jax.data import datasets
from vse_jax.data.split import DataError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def rule():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        yield importlib.import_module("head_nouns")


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        yield importlib.import_module("head_noun_labels")


@pytest.mark.parametrize(
    ("caption", "head"),
    [
        ("A goat eats.", "goat"),
        ("A goat", "goat"),
        ("Goats graze by a barn .", "goat"),
        ("The two black and white goats stand still.", "goat"),
        ("A small, white goat with a bell", "goat"),
        ("A smiling farmer", "farmer"),
        ("A bearded farmer leads a goat", "farmer"),
        ("A farmer leading a goat", "farmer"),
        ("A farmer dressed in green", "farmer"),
        ("A farmer who sings", "farmer"),
        ("A farmer and his goat", "farmer"),
        ("A goat jumps", "goat"),
        ("A farmer boxes", "farmer"),
        ("The farmer carries hay", "farmer"),
        ("Farmers wash a cart", "farmer"),
        ("Three tractor drivers talk", "driver"),
        ("A tractor driver rests", "driver"),
        ("A group of people", "person"),
        ("A large group of old farmers wait", "farmer"),
        ("A couple of kids", "kid"),
        ("A couple kids", "kid"),
        ("A couple sits on a wall", "couple"),
        ("A pair of wolves", "wolf"),
        ("A close-up of a goose", "goose"),
        ("One of the women", "woman"),
        ("A group waits", "group"),
        ("Two men", "man"),
        ("Four policemen march", "policeman"),
        ("Children play chess", "child"),
        ("Three ladies", "lady"),
        ("Two foxes", "fox"),
        ("A flock of geese", "goose"),
        ("There are several horses in a barn", "horse"),
        ("There is a person asleep", "person"),
        ("This is a horse", "horse"),
        ("A farmer's wife laughs", "wife"),
        ("A farmer 's wife laughs", "wife"),
        ("Two farmers ' wives", "wife"),
        ("A woman ice skating", "woman"),
        ("A woman horseback riding", "woman"),
        ("A building burns", "building"),
        ("A tennis player", "player"),
        ("A sports car", "car"),
        ("A goat quickly runs", "goat"),
        ("The number 7 car is ahead", "car"),
        ("On a hill, a goat sleeps", "goat"),
        ("A bus full of farmers", "bus"),
        ("A farmer skis", "farmer"),
        ("A GOAT !", "goat"),
        ("Two 12 year old boys", "boy"),
        ("Running.", None),
        ("In the snow", None),
        ("A group of", None),
        ("", None),
        ("...", None),
    ],
)
def test_the_head_of_the_subject(rule, caption, head):
    assert rule.head_noun(caption) == head


@pytest.mark.parametrize(
    "pair",
    ["dogs dog", "people person", "women woman", "babies baby", "collies collie", "beaches beach",
     "dresses dress", "horses horse", "boxes box", "heroes hero", "shoes shoe", "buses bus",
     "glass glass", "bus bus", "pants pants", "dog dog", "skis ski"],
)  # fmt: skip
def test_singulars(rule, pair):
    plural, singular = pair.split()
    assert rule.singular(plural) == singular


def captions(*heads):
    return [f"A {head} in a field" for head in heads]


# Of each picture the split, the captions' heads and the label.
PICTURES = {
    "a.png": ("train", "goat goat goat cow pig", "goat"),
    "b.png": ("train", "goat goat cow cow pig", None),
    "c.png": ("train", "goat goat goat", "goat"),
    "d.png": ("train", "pig", None),  # One training picture of this class.
    "e.png": ("val", "goat goat", "goat"),
    "f.png": ("test", "goat goat pig", "goat"),
    "g.png": ("test", "goat pig", None),  # Half is not more than half.
}


@pytest.fixture
def farm(preset, tmp_path):
    lines = []
    for name, (split, heads, _) in PICTURES.items():
        (tmp_path / name).write_bytes(png(name))
        lines.append({"image": name, "captions": captions(*heads.split()), "split": split})
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = preset("custom", str(tmp_path / "list.jsonl"))
    config.data.data_dir = str(tmp_path / "prepared")
    return config


def test_labels_are_what_most_captions_agree_on(script, farm, tmp_path, capsys):
    farm.data.train_limit = 1  # Labels are of all.
    output = tmp_path / "out" / "labels.jsonl"
    script.write(farm, output, least=2)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    expected = {name: label for name, (_, _, label) in PICTURES.items() if label}
    assert {line["image"]: line["label"] for line in lines} == expected
    told = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert told == [
        ["train", "validation", "test"],
        ["goat", "2", "1", "1"],
        ["labelled", "2", "1", "1"],
        ["of", "pictures", "4", "1", "2"],
    ]
    farm.data.labels, farm.data.train_limit = str(output), None
    data = datasets.load(farm.data, 0)
    assert data.classes == ("goat",)
    assert [split.labels.tolist() for split in data.splits.values()] == [
        [0, -1, 0, -1],
        [0],
        [0, -1],
    ]
    script.write(farm, output, least=1)
    assert '"pig"' in output.read_text()


def test_what_gives_no_class_is_refused(script, farm, tmp_path):
    told = r"no class has --least=3 training pictures; the most frequent, 'goat', has 2: lower it"
    with pytest.raises(DataError, match=told):
        script.write(farm, tmp_path / "labels.jsonl", least=3)
    with pytest.raises(ConfigError, match="--least is 0"):
        script.write(farm, tmp_path / "labels.jsonl", least=0)
    assert not (tmp_path / "labels.jsonl").exists()


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_the_command_line(script, farm, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(console, "set_up_logging", lambda: None)

    def run(*arguments):
        arguments = [f"--config={ROOT}/configs/custom.py:{farm.data.path}", *arguments]
        monkeypatch.setattr(sys, "argv", ["head_noun_labels", *arguments])
        script.main(arguments)

    output = tmp_path / "labels.jsonl"
    run(f"--output={output}", "--least=1", f"--config.data.data_dir={farm.data.data_dir}")
    assert len(output.read_text().splitlines()) == 5
    assert "\npig " in capsys.readouterr().err
    for wrong, told in (
        ([], r"(?s)agree.*needs --config and --output=FILE\.jsonl$"),
        (["--output=x.jsonl", "--least=many"], "^head_noun_labels: .*least"),
        (["--output=x.jsonl", "--least=0"], "^head_noun_labels: --least is 0"),
    ):
        with pytest.raises(SystemExit, match=told):
            run(*wrong)
