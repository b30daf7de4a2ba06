import importlib.util
import json
import pathlib
import re
import types

import pytest
from ml_collections import ConfigDict

from vse_jax import config as configs
from vse_jax import config_checks, defaults, network_checks
from vse_jax.config import ConfigError, default_config
from vse_jax.config_checks import validate
from vse_jax.models import networks
from vse_jax.presets import SYSTEMS
from vse_jax.protocols import OWN, PROTOCOLS

REPOSITORY = pathlib.Path(__file__).parents[1]


def changed(**values):
    """The default config with fields set by dotted name, "__" for the dots."""
    config = default_config()
    with config.ignore_type():
        for name, value in values.items():
            *parents, leaf = name.split("__")
            section = config
            for parent in parents:
                section = section[parent]
            section[leaf] = value
    return config


def test_the_defaults_are_valid():
    validate(default_config())


def test_an_unknown_field_is_named_with_the_nearest():
    config = default_config()
    config.train.batch_sise = 3
    with pytest.raises(
        ConfigError,
        match=r"unknown config field 'train\.batch_sise'; did you mean 'train\.batch_size'",
    ):
        validate(config)
    config = default_config()
    config.zzzzzzzz = 3
    with pytest.raises(ConfigError, match=r"unknown config field 'zzzzzzzz'$"):
        validate(config)


def test_a_missing_field_is_named():
    config = default_config()
    del config.data.flip
    with pytest.raises(ConfigError, match=r"'data\.flip' is missing"):
        validate(config)


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("train__batch_size", "128", "int"),
        ("train__batch_size", 12.5, "int"),
        ("train__batch_size", True, "int"),
        ("train__learning_rate", "fast", "float"),
        ("data__flip", 1, "bool"),
        ("data__path", 3, "str"),
        ("data__crop_area", 0.5, "tuple"),
        ("train__steps", 1.5, "int"),
        ("seed", None, "int"),
    ],
)
def test_a_mistyped_value_is_named_with_the_type_it_must_have(field, value, wanted):
    name = re.escape(field.replace("__", "."))
    with pytest.raises(ConfigError, match=f"'{name}' .*must be {wanted}$"):
        validate(changed(**{field: value}))


def test_a_whole_number_will_do_for_a_float():
    validate(changed(train__epochs=3, train__clip_norm=2))


def test_every_network_can_be_asked_for():
    """The checks have names of their own, as they come before Flax is imported."""
    assert sorted(network_checks.NETWORKS) == sorted(networks.__all__)


@pytest.mark.parametrize("field", sorted(config_checks.CHOICES))
def test_a_wrong_choice_is_told_the_choices(field):
    choices = config_checks.CHOICES[field]
    for right in choices:
        weights = {"model__text__backbone": "bert", "model__text__weights": "w"}
        with_it = weights if right == "pretrained" else {}
        validate(changed(**{field.replace(".", "__"): right}, **with_it))
    wrong = choices[0] + "x"
    with pytest.raises(ConfigError) as error:
        validate(changed(**{field.replace(".", "__"): wrong}))
    message = str(error.value)
    assert f"{field!r} is {wrong!r}; did you mean {choices[0]!r}?" in message
    assert all(repr(choice) in message for choice in choices)


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize(
    "field",
    sorted({
        *config_checks.POSITIVE, "model.dimension", "train.batch_size", "train.learning_rate",
        "objective.leap.margin", "objective.leap.least", "objective.leap.pair_low",
        "objective.leap.temperature", "objective.center.alpha", "objective.quantizer.parts",
        "objective.multitask.temperature",
    }),
)  # fmt: skip
def test_what_must_be_above_zero(field, value):
    with pytest.raises(ConfigError, match=f"{re.escape(field)}.* must be above 0"):
        validate(changed(**{field.replace(".", "__"): value}))


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("data.shapes_clutter", 8.1),
        ("data.shapes_clutter", -0.1),
        ("data.shapes_hidden", 0.71),
        ("data.shapes_hidden", 0.3),
        ("data.bad_share", 1.01),
        ("data.bad_share", -0.01),
        ("model.image.dropout", 1.0),
        ("model.text.dropout", 1.0),
        ("objective.triplet.weight", -1.0),
        ("objective.triplet.margin", -0.2),
        ("objective.triplet.warmup_epochs", -1.0),
        ("objective.leap.weight", -1.0),
        ("objective.leap.quantized", -0.5),
        ("objective.leap.rho", 1.1),
        ("objective.leap.kappa", -0.1),
        ("objective.leap.active_share", 1.5),
        ("objective.leap.warmup_epochs", -1.0),
        ("objective.center.weight", -1.0),
        ("objective.center.alpha", 1.5),
        ("objective.quantizer.weight", -1.0),
        ("objective.quantizer.beta", -1.0),
        ("objective.quantizer.codes", 1),
        ("objective.quantizer.decay", 1.0),
        ("objective.quantizer.rate", -0.1),
        ("objective.quantizer.dead_share", 1.0),
        ("objective.multitask.weight", -1.0),
        ("train.decay_factor", 1.5),
        ("train.warmup_epochs", -0.1),
        ("train.weight_decay", -1e-4),
        ("train.ema", 1.0),
        ("evaluate.queries", -1),
    ],
)
def test_what_is_out_of_range(field, wrong):
    with pytest.raises(ConfigError, match=rf"'{re.escape(field)}' is .*must lie in \["):
        validate(changed(**{field.replace(".", "__"): wrong}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__batch_size": 6}, "'train.batch_size' is 6, which 4 devices"),
        ({"data__crop_area": (0.0, 1.0)}, "'data.crop_area'"),
        ({"data__crop_area": (0.8, 0.5)}, "'data.crop_area'"),
        ({"data__crop_area": (0.8, 1.1)}, "'data.crop_area'"),
        ({"data__crop_area": (0.8,)}, "'data.crop_area'"),
        ({"data__crop_area": ("a", "b")}, "'data.crop_area'"),
        ({"data__shapes_sizes": (10, 10)}, "'data.shapes_sizes'"),
        ({"data__shapes_sizes": (10, 10, 0)}, "'data.shapes_sizes'"),
        ({"data__shapes_sizes": (10, 10, 1.5)}, "'data.shapes_sizes'"),
        ({"data__shapes_objects": (4,)}, r"'data.shapes_objects' is \(4,\)"),
        ({"data__shapes_objects": (0, 4)}, "1 <= fewest <= most <= 8"),
        ({"data__shapes_objects": (5, 4)}, "1 <= fewest <= most <= 8"),
        ({"data__shapes_objects": (2, 9)}, "1 <= fewest <= most <= 8"),
        ({"data__shapes_objects": (1, 4.0)}, "'data.shapes_objects'"),
        ({"data__shapes_captions": ()}, r"'data.shapes_captions' is \(\)"),
        ({"data__shapes_captions": ("whole", "all")}, "one or more of whole, part, relation"),
        ({"train__decay_steps": (1.0, "two")}, "'train.decay_steps'"),
        ({"data__max_tokens": 2}, "'data.max_tokens' must be at least 3"),
        (
            {"objective__triplet__weight": 0.0},
            "no hinge and no cross-entropy over the batch has a weight",
        ),
        (
            {"data__semantics": "minilm.npz"},
            "'data.semantics' is 'minilm.npz', which only a semantic margin reads",
        ),
        (
            {
                "objective__triplet__weight": 0.0,
                "objective__infonce__weight": 1.0,
                "objective__triplet__semantic": 0.1,
            },
            "'objective.triplet.semantic' is 0.1, but the hinge has no weight",
        ),
        ({"train__freeze": (("a",),)}, "'train.freeze' holds"),
        ({"train__freeze": ((3, None),)}, "'train.freeze' holds"),
        ({"train__freeze": (("a", "b"),)}, "'train.freeze' holds"),
        ({"train__freeze": (3,)}, "'train.freeze' holds 3"),
        # The comma forgotten: a pair where a tuple of pairs belongs.
        ({"train__freeze": ("image/.*", None)}, "'train.freeze' holds 'image/.*'"),
    ],
)
def test_fields_that_contradict_each_other(changes, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.").replace("*", r"\*")):
        validate(changed(**changes), devices=4)


def test_what_devices_can_share_is_accepted():
    validate(changed(train__batch_size=8, evaluate__batch_size=4), devices=4)
    validate(changed(train__freeze=(("image/.*", None), ("text/.*", 0.1))))


def test_json_brings_back_every_field():
    config = changed(
        seed=7,
        data__path="a.jsonl",
        data__crop_area=(0.5, 1.0),
        train__steps=12,
        train__clip_norm=2.0,
        train__freeze=(("image/backbone/.*", None), ("text/.*", 0.5)),
    )
    back = configs.from_json(configs.to_json(config))
    validate(back)
    assert dict(configs.fields(back)) == dict(configs.fields(config))
    assert configs.differences(back, config) == []
    assert json.loads(configs.to_json(config))["train"]["freeze"][0] == ["image/backbone/.*", None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"seed": 1', "config.json is not JSON: line 1"),
        ('{"sed": 1}', "unknown config field 'sed'; did you mean 'seed'"),
        ('{"train": {"batch_size": "many"}}', "'train.batch_size' is 'many'"),
        ('{"train": 3}', "'train'"),
        ("[1, 2]", "config.json"),
    ],
)
def test_json_that_is_no_config_of_ours(text, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        configs.from_json(text)


def test_none_unsets_what_a_preset_names_and_is_text_elsewhere():
    config = changed(model__image__weights="None", data__data_dir="None")
    configs.unset(config)
    assert config.model.image.weights is None
    assert config.data.data_dir == "None"


def test_differences_name_each_field_and_both_values():
    old, new = default_config(), changed(seed=3, train__freeze=(("a", None),))
    assert configs.differences(old, new) == [
        "seed: 0 there, 3 here",
        "train.freeze: () there, (('a', None),) here",
    ]


def test_choose_knows_only_what_the_module_offers():
    module = types.ModuleType("module")
    module.__all__ = ["small_resnet", "mobilenet_v2"]
    module.small_resnet, module.hidden = "found", "hidden"
    assert configs.choose(module, "small_resnet", "model.image.backbone") == "found"
    with pytest.raises(ConfigError) as error:
        configs.choose(module, "small_resnet2", "model.image.backbone")
    assert str(error.value) == (
        "config field 'model.image.backbone' is 'small_resnet2'; did you mean 'small_resnet'?; "
        "it may be 'mobilenet_v2' or 'small_resnet'"
    )
    with pytest.raises(ConfigError, match="'hidden'"):
        configs.choose(module, "hidden", "model.image.backbone")


def test_every_field_has_a_comment_right_above_it():
    lines = pathlib.Path(defaults.__file__).read_text().splitlines()
    commented = []
    for number in range(len(lines)):
        field = re.match(
            r"    [a-z_]+\.([a-z_]+) = (?!.*ConfigDict\(\)|_[a-z]+\(\))", lines[number]
        )
        if field:
            assert lines[number - 1].strip().startswith("# "), lines[number]
            commented.append(field[1])
    fields = [name.split(".")[-1] for name, _ in configs.fields(default_config())]
    assert sorted(commented) == sorted(fields)


PHOTO_SETS = ("flickr8k", "flickr30k", "coco", "iaprtc12", "cub", "flowers")
CHOICES = [
    None,
    *SYSTEMS,
    *(f"{system},objective={name}" for system, names in SYSTEMS.items() for name in names),
]


@pytest.mark.parametrize(
    ("name", "argument"),
    [(name, choice) for name in ("shapes", *PHOTO_SETS) for choice in CHOICES]
    + [("custom", "list.csv")],
)
def test_the_presets_are_valid(name, argument):
    config = preset(name).get_config(*([argument] if argument else []))
    assert isinstance(config, ConfigDict)
    validate(config)
    assert config.data.dataset == name
    if name == "custom":
        assert config.data.path == argument
    assert config.data.non_rgb == ("convert" if name in PHOTO_SETS[1:] else "skip")
    assert config.data.validation_limit == (1000 if name == "coco" else None)


@pytest.mark.parametrize("system", ["vsepp", "vse_infinity", "vsrn", "saf", "sgr"])
@pytest.mark.parametrize(
    ("objective", "negatives", "margin", "semantic"),
    [
        ("lmh", "hardest", 0.2, 0.0),
        ("lsh", "all", 0.2, 0.0),
        # Gong & Cosma, 2023: 0.185 + 0.025 S.
        ("lseh", "hardest", 0.185, 0.025),
    ],
)
def test_margins_are_the_published_ones(system, objective, negatives, margin, semantic):
    section = preset("flickr8k").get_config(f"{system},objective={objective}").objective
    found = section.triplet
    assert (found.negatives, found.margin, found.semantic) == (negatives, margin, semantic)
    assert (found.weight, section.infonce.weight) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("objective", "negatives", "margin", "semantic"),
    [
        # Karpathy & Fei-Fei, CVPR 2015, eq. 9; LSEH's: what 0.185 and 0.025 are of 0.2.
        ("lsh", "all", 1.0, 0.0),
        ("lmh", "hardest", 1.0, 0.0),
        ("lseh", "hardest", 0.925, 0.125),
    ],
)
def test_margins_of_scores_summed_over_words_are_of_1(objective, negatives, margin, semantic):
    found = preset("flickr8k").get_config(f"dvsa,objective={objective}").objective.triplet
    assert (found.negatives, found.weight) == (negatives, 1.0)
    assert (found.margin, found.semantic) == pytest.approx((margin, semantic))


@pytest.mark.parametrize("name", ["shapes", *PHOTO_SETS])
def test_a_preset_does_not_know_any_system(name):
    known = "'vsepp' or 'vse_infinity' or .* or 'leap'"
    with pytest.raises(ConfigError, match=rf"configs/{name}\.py has no system 'vsepp2'.*{known}"):
        preset(name).get_config("vsepp2")


def preset(name):
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_protocol_is_one_of_the_known():
    with pytest.raises(ConfigError) as error:
        validate(changed(data__dataset="custom", data__protocol="coco_5K"))
    message = str(error.value)
    assert "'data.protocol' is 'coco_5K'; did you mean 'coco_5k'?" in message
    assert all(repr(name) in message for name in PROTOCOLS)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_is_for_data_that_have_none_of_their_own(name):
    validate(changed(data__dataset="custom", data__protocol=name))
    none = {"data__dataset": "precomputed", "model__image__backbone": "none"}
    validate(changed(data__protocol=name, **none))
    for dataset in ("shapes", *PHOTO_SETS):
        config = changed(data__dataset=dataset, data__protocol=name)
        if OWN.get(dataset) == name:
            validate(config)
            continue
        message = rf"'data\.protocol' is '{name}', but 'data\.dataset' is '{dataset}', .*unset it"
        with pytest.raises(ConfigError, match=message):
            validate(config)


def test_a_protocol_may_be_named_after_training():
    assert not configs.differences(default_config(), changed(data__protocol="coco_5k"))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite(wrong):
    with pytest.raises(ConfigError, match=r"'train\.learning_rate' is .*must be finite"):
        validate(changed(train__learning_rate=wrong))


def leap(**fields):
    chosen = {
        "objective__triplet__weight": 0.0, "objective__leap__weight": 1.0,
        "model__similarity": "negative_euclidean",
    }  # fmt: skip
    return changed(**chosen | fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"objective__quantizer__weight": 1.0, "objective__quantizer__parts": 3},
            r"'objective\.quantizer\.parts' is 3, which does not divide 'model\.dimension' = 1024",
        ),
        (
            {"objective__quantizer__weight": 1.0, "objective__quantizer__codes": 257},
            r"'objective\.quantizer\.codes' is 257; it must lie in \[2, 256\]",
        ),
        (
            {"objective__leap__least": 0.6},
            r"'objective\.leap\.least' is 0\.6, above 'objective\.leap\.most' = 0\.5",
        ),
        ({"objective__leap__pair_low": 2.0}, r"'objective\.leap\.pair_low' is 2\.0, above"),
        (
            {"objective__leap__margin": 0.7},
            r"'objective\.leap\.margin' is 0\.7, above 'objective\.leap\.most' = 0\.5",
        ),
        (
            {"objective__leap__margin": 0.01},
            r"'objective\.leap\.least' is 0\.05, above 'objective\.leap\.margin' = 0\.01",
        ),
        (
            {"model__similarity": "dot"},
            r"'model\.similarity' is 'dot', but 'objective\.leap\.weight' is 1\.0, a term of LEAP",
        ),
        (
            {"objective__quantizer__weight": 1.0, "data__shapes_sizes": (200, 10, 10)},
            r"'objective\.quantizer\.codes' is 256, more than the 200 training pictures",
        ),
        (
            {"objective__leap__pair_margins": True},
            r"needs centers: set 'objective\.center\.weight'",
        ),
        (
            {"objective__multitask__weight": 1.0},
            r"multitask\.weight' is 1\.0, which needs the quan",
        ),
        *(
            (
                {"objective__quantizer__weight": 1.0, "objective__quantizer__rotate_at": shares},
                r"'objective\.quantizer\.rotate_at' is .*; it must be " + wrong,
            )
            for shares, wrong in [
                ((0.5, 0.25), "rising shares of the training"),
                ((0.25, 0.25), "rising shares of the training"),
                ((0.0, 0.5), "rising shares of the training"),
                ((0.5, 2.0), "rising shares of the training"),
                (("0.5",), "a tuple of numbers"),
            ]
        ),
        (
            {"objective__leap__quantized": 1.0},
            r"leap\.quantized' is 1\.0, which needs the quantizer",
        ),
    ],
)
def test_leap_that_contradicts_itself(fields, message):
    validate(leap())
    with pytest.raises(ConfigError, match=message):
        validate(leap(**fields))


@pytest.mark.parametrize("part", ["center", "quantizer"])
def test_parts_of_leap_beside_another_objective(part):
    """Which must be of distances too."""
    weight = {f"objective__{part}__weight": 1.0}
    validate(changed(model__similarity="negative_euclidean", **weight))
    message = rf"'model\.similarity' is 'dot', but 'objective\.{part}\.weight' is 1\.0"
    with pytest.raises(ConfigError, match=message):
        validate(changed(**weight))


def test_margins_upside_down_are_refused_whatever_is_trained():
    with pytest.raises(ConfigError, match=r"'objective\.leap\.least' is 0\.6, above"):
        validate(changed(objective__leap__least=0.6))


def test_a_fixed_margin_needs_no_bounds():
    validate(leap(objective__leap__margin=0.7, objective__leap__rule="fixed"))


def test_every_field_can_be_set_by_a_flag():
    """A field named like a method of ConfigDict would be the method to the parser of flags."""
    for name, _ in configs.fields(default_config()):
        for part in name.split("."):
            assert not hasattr(ConfigDict, part), name
