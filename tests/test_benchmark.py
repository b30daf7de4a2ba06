import dataclasses
import functools
import importlib
import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import parity
import pytest

from vse_jax.models.multimodal_rnn import MultimodalRNN

SCRIPTS = Path(__file__).parents[1] / "scripts"
NETWORKS = (
    "vse_infinity", "saf", "sgr", "vsrn", "dvsa", "multimodal_rnn", "multimodal_lstm", "cam_joint",
    "cam", "leap", "frozen", "frozen_sigmoid",
)  # fmt: skip


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


def load(name):
    return importlib.import_module(f"benchmarks.{name}")


def small_step():
    step = load("step")
    conf = step.config()
    conf.data.image_size, conf.data.max_tokens = 32, 16
    conf.model.image.backbone, conf.model.dimension, conf.model.text.words = "small_resnet", 16, 8
    conf.train.batch_size = 8
    return step, conf, step.drawn(conf, vocabulary=20)


def test_variants_take_turns_and_warm_up_rounds_do_not_count():
    timing = load("timing")
    seen = []
    found = timing.alternately(
        {"a": lambda n: seen.append(("a", n)), "b": lambda n: seen.append(("b", n))}, 2, warmup=1
    )
    assert seen == [(name, number) for number in range(3) for name in "ab"]
    assert len(found["a"].seconds) == len(found["b"].seconds) == 2


def test_what_is_prepared_is_off_the_clock_and_handed_on():
    timing = load("timing")
    seen = []
    timing.alternately(
        {"a": seen.append}, 2, warmup=0, prepare=lambda name, number: f"{name}{number}"
    )
    assert seen == ["a0", "a1"]


@pytest.mark.parametrize(
    ("limits", "wanted", "met"),
    [
        ({"at_most": 0.5}, "<= 0.5", True),
        ({"at_most": 0.4}, "<= 0.4", False),
        ({"at_least": 0.9}, ">= 0.9", False),
        ({}, None, None),
    ],
)
def test_a_ratio_is_the_median_over_the_rounds(limits, wanted, met):
    timing = load("timing")
    over, under = timing.Timing((1.0, 2.0, 9.0)), timing.Timing((2.0, 4.0, 3.0))
    row = timing.ratio("step", "ours / theirs", over, under, **limits)
    assert (row.median, row.low, row.high) == (0.5, 0.5, 3.0)
    assert (row.wanted, row.met) == (wanted, met)


def test_a_rate_counts_units_a_second():
    timing = load("timing")
    row = timing.rate("step", "ours", timing.Timing((0.5, 1.0, 2.0)), 2, "steps/s")
    assert (row.median, row.low, row.high) == (2.0, 1.0, 4.0)


def test_the_table_has_a_line_for_each_row():
    timing = load("timing")
    rows = [timing.Row("step", "ours", 12345.6, "x"), timing.Row("peak", "a", 0.5, "s", 0.1, 1.0)]
    lines = timing.table(rows).splitlines()
    assert len(lines) == 4
    assert "12,346" in lines[2]


def test_peak():
    found = load("peak").measure(rounds=1, side=32, copied=1000)
    assert all(row.median > 0 for row in found)


def test_flops_of_a_step_by_hand():
    step, conf, _ = small_step()
    by_hand = (3 * 100 * 2 * 3 * 16 * (16 + 8)) + (2 * 8 * 5 * 16) * 2 + 2 * 8 * 8 * 16
    assert step.flops(conf, tokens=100, features=5) == by_hand


def test_drawn_captions_have_the_lengths_of_flickr8k():
    step = load("step")
    captions = step.drawn(step.config())
    lengths = captions.mask.sum(1)
    assert lengths.min() >= 4
    assert lengths.max() <= 40
    assert abs(lengths.mean() - 12.8) < 0.1
    assert abs(lengths.std() - 4.0) < 0.1
    np.testing.assert_array_equal(captions.tokens > 0, captions.mask)


class FakeStep:
    """Stands in for the project's step, which takes seconds to compile."""

    params = {"image": {"head": {"project": {"kernel": np.zeros((5, 16))}}}}  # noqa: RUF012

    def __init__(self, *unused):
        del unused

    def __call__(self, batch):
        return {"loss": 2.0 * len(batch["tokens"]), "gradient_norm": 3.0}


def test_step_runs_without_torch(monkeypatch):
    step, conf, captions = small_step()
    find = importlib.util.find_spec
    monkeypatch.setattr(step, "OurStep", FakeStep)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else find(name)
    )
    rows = step.measure(conf, captions, rounds=1, compiled=False, peak_gflops=1.0)
    assert [row.quantity for row in rows] == ["products of a step", "ours"]


def test_leap_is_measured_beside_vsepp(monkeypatch):
    """Both from the step where hard negatives begin, with every part of LEAP."""
    leap, confs = load("leap"), []

    class Recorded(FakeStep):
        def __init__(self, conf, vocabulary):
            del vocabulary
            confs.append(conf.objective)

    monkeypatch.setattr(leap.step, "OurStep", Recorded)
    rows = leap.run(load("timing").Options(rounds=1))
    assert [row.quantity for row in rows] == ["VSE++", "LEAP", "time of LEAP / VSE++"]
    assert rows[2].wanted == "<= 1.15"
    vsepp, whole = confs
    assert (vsepp.triplet.weight, vsepp.triplet.warmup_epochs, vsepp.leap.weight) == (1, 0, 0)
    assert (whole.triplet.weight, whole.leap.warmup_epochs, whole.leap.weight) == (0, 0, 1)
    parts = whole.center, whole.quantizer, whole.multitask
    assert all(part.weight > 0 for part in parts)
    assert whole.leap.pair_margins
    assert whole.leap.quantized > 0


@pytest.mark.slow
@pytest.mark.torch
def test_step_does_what_its_twin_does():
    pytest.importorskip("torch", reason="needs the extra [parity]")
    step, conf, captions = small_step()
    rows = step.measure(conf, captions, rounds=2, compiled=False, peak_gflops=1.0)
    assert "time of ours / PyTorch" in [row.quantity for row in rows]


@pytest.mark.parametrize(
    ("loss", "norm", "same"), [(16.0, 3.0, True), (16.01, 3.0, False), (16.0, 3.01, False)]
)
def test_a_twin_that_does_something_else_is_noticed(loss, norm, same):
    step, _, captions = small_step()
    given = step.batches(captions, 8, 5, count=1)
    if same:
        step.agree(FakeStep(), lambda batch: (loss, norm), given)  # noqa: ARG005
    else:
        with pytest.raises(AssertionError):
            step.agree(FakeStep(), lambda batch: (loss, norm), given)  # noqa: ARG005


@pytest.mark.slow
def test_memory_of_a_step_is_linear_in_its_batch(monkeypatch):
    """The second difference over three sizes holds no matrix of all pairs' scores."""
    module = load("batch_memory")
    monkeypatch.setattr(module.step, "drawn_variables", anything_but_nothing)
    changes = (
        ("model.dimension", 16), ("model.text.words", 8), ("data.max_tokens", 6),
        ("objective.infonce.chunk", 32),
    )  # fmt: skip
    case = module.CASES["InfoNCE"]._replace(changes=changes)
    small, middle, large = (module.of_step(case, size) for size in (128, 256, 384))
    assert small < middle < large
    assert (large - 2 * middle + small) / (2 * 128**2) < 2


def test_how_much_steeper_memory_grows():
    """What a further pair adds is compared with what the first add."""
    module = load("batch_memory")
    assert module.steepening({1: 10, 2: 20, 4: 60}) == 2.0
    assert module.steepening({64: 5, 32: 3, 128: 9}) == 1.0


def test_mining_agrees_with_the_dense_computation():
    found = load("mining").compare(pairs=20, width=8, chunk=6, rounds=1)
    assert found["loss"] < 1e-5
    assert found["gradient"] < 1e-5


def test_mining_is_measured_in_a_fresh_process():
    found = load("memory").in_process("benchmarks.mining", "chunked", 20, 8, 6, 1)
    assert found["temporary"] > 0
    assert found["peak"] >= 0
    assert len(found["seconds"]) == 1


def test_evaluation():
    rows = load("evaluation").measure(images=20, width=16, rounds=1)
    assert rows[0].quantity == "ranks both ways"


def test_pipeline(tmp_path):
    pipeline = load("pipeline")
    split, files = pipeline.generated(tmp_path, 6, width=40, height=30)
    rows = pipeline.measure(split, files, size=16, batch=4, rounds=1, first=1, timed=2)
    assert [row.wanted for row in rows if row.wanted] == [">= 0.9", ">= 0.9"]


@pytest.mark.torch
def test_features_are_those_of_the_twin():
    parity.transformers()
    small = {"depth_multiplier": 0.35}
    rows = load("features").measure(size=32, batches=(4,), rounds=1, settings=small)
    assert "batch 4, time of ours / PyTorch" in [row.quantity for row in rows]


def test_indices_are_measured_once(tmp_path, monkeypatch):
    pytest.importorskip("faiss", reason="needs the extra [search] or [bench]")
    index, part, seen = load("index"), load("index_part"), []

    def here(module, name, stage, place, *numbers):
        assert module == "benchmarks.index_part"
        seen.append((name, stage))
        return part.measured(name, stage, Path(place), *map(int, numbers))

    monkeypatch.setattr(index, "in_process", here)
    quick = [one for one in index.PARTS if one.name in ("flat", "exact", "codes", "hnsw")]
    monkeypatch.setattr(index, "PARTS", quick)
    options = load("timing").Options(
        rounds=1, folder=tmp_path, items=2000, slow_items=500, width=32
    )
    rows = {row.quantity: row for row in index.run(options)}
    assert rows["exact: recall@10"].median == rows["FAISS Flat: recall@10"].median == 1
    assert 0.4 < rows["codes: recall@10"].median < 1
    assert rows["FAISS HNSW: recall@10"].median > 0.95
    assert rows["FAISS HNSW: recall@10"].note == "500 x 32"
    # 8 bytes and a header each; 128 bytes and a header.
    assert rows["codes: on disk"].median * 2**20 == 2000 * 8 + 128
    assert rows["exact: on disk"].median * 2**20 == 2000 * 128 + 128
    assert all(row.median > 0 for row in rows.values() if row.unit in ("queries/s", "ms", "x"))
    done = len(seen)
    assert [row.median for row in index.run(options)] == [row.median for row in rows.values()]
    assert len(seen) == done


def test_the_program_writes_its_rows_as_json(tmp_path, capsys, monkeypatch):
    program = importlib.import_module("benchmark")
    timing = load("timing")
    row = timing.Row("evaluation", "toy", 1.0, "s")
    monkeypatch.setattr(load("evaluation"), "run", lambda options: [row][: options.rounds])
    program.main(["--only=evaluation", "--rounds=1", f"--output={tmp_path / 'b.json'}"])
    report = json.loads((tmp_path / "b.json").read_text())
    assert [line["quantity"] for line in report["rows"]] == ["toy"]
    assert report["machine"]["cores"] >= 1
    assert "toy" in capsys.readouterr().out


def test_what_was_measured_before_a_stop_is_there(tmp_path, capsys, monkeypatch):
    row = load("timing").Row("evaluation", "toy", 1.0, "s", 0.5, 2.0, wanted="<= 1", met=True)

    def run(_):
        yield row
        yield dataclasses.replace(row, quantity="another", met=False)
        raise KeyboardInterrupt

    monkeypatch.setattr(load("evaluation"), "run", run)
    with pytest.raises(KeyboardInterrupt):
        importlib.import_module("benchmark").main(
            ["--only=evaluation", f"--output={tmp_path / 'b.json'}"]
        )
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert [line["quantity"] for line in rows] == ["toy", "another"]
    told = capsys.readouterr().err
    assert "evaluation: toy: 1 (0.5-2) s, as wanted\n" in told
    assert "evaluation: another: 1 (0.5-2) s, wanted <= 1\n" in told


def test_an_earlier_run_is_compared_with(tmp_path, capsys, monkeypatch):
    program = importlib.import_module("benchmark")
    timing = load("timing")
    path = tmp_path / "old.json"

    def measure(*rows, flag):
        found = [timing.Row("evaluation", name, value, unit) for name, value, unit in rows]
        monkeypatch.setattr(load("evaluation"), "run", lambda _: found)
        program.main(["--only=evaluation", flag])
        return capsys.readouterr().out

    measure(("toy", 2.0, "s"), ("gone", 1.0, "s"), ("bytes", 1.0, "s"), flag=f"--output={path}")
    report = json.loads(path.read_text())
    path.write_text(json.dumps(report | {"machine": report["machine"] | {"cores": 96}}))
    output = measure(("toy", 3.0, "s"), ("new", 1.0, "s"), ("bytes", 1.0, "x"),
                     flag=f"--compare={path}")  # fmt: skip
    _, _, compared = output.partition(f"beside {path}:")
    assert re.search(r"evaluation +toy +1\.5 .* 3 s, before 2$", compared, re.MULTILINE)
    assert not re.search("new|gone|bytes", compared)
    assert f"another machine: cores 96 there, {report['machine']['cores']} here" in compared


@pytest.mark.parametrize("text", ["", "[]", '{"rows": []}', '{"machine": {}, "rows": [{}]}', None])
def test_what_is_no_earlier_run_is_refused(text, tmp_path, capsys):
    path = tmp_path / "old.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit):
        importlib.import_module("benchmark").main([f"--compare={path}"])
    told = "not what --output of this program writes" if text is not None else "No such file"
    assert f"{path}: {told}" in capsys.readouterr().err


def test_an_unknown_name_is_refused(capsys):
    program = importlib.import_module("benchmark")
    with pytest.raises(SystemExit):
        program.main(["--only=steps"])
    assert "'steps' is none of peak, step" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        program.main(["--networks=bert"])
    assert "'bert' is none of vse_infinity, saf, sgr" in capsys.readouterr().err


def teardown_module():
    for name in [name for name in sys.modules if name.split(".")[0] in ("benchmark", "benchmarks")]:
        del sys.modules[name]


def small_network(name):
    """A case at sizes that take seconds: its step, its batches and their vocabulary."""
    step, networks = load("step"), load("networks")
    conf = step.without_dropout(networks.config(name))
    conf.data.max_tokens, conf.model.dimension, conf.model.hidden = 8, 16, 12
    conf.model.text.words, conf.train.batch_size = 8, 8
    conf.objective.quantizer.parts, conf.objective.quantizer.codes = 4, 4
    # Axes are taken after the first step, so that the others have all that the quantizer adds.
    conf.objective.quantizer.rotate_at = (1e-9,)
    captions = step.drawn(conf, vocabulary=20)
    case = networks.CASES[name]._replace(regions=min(networks.CASES[name].regions, 5))
    return conf, networks.batches(case, conf, captions, 1, width=24), captions.vocabulary


def anything_but_nothing(model, batch, seed):
    """Variables of which none is zero or one, so that each matters; without a program's compiling.

    Batch norms' scales, of which VSRN's start at zero, too.
    """
    rng = np.random.default_rng(seed)
    init = functools.partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(seed), batch)

    def drawn(x):
        scale = min(0.3, max(x.shape, default=1) ** -0.5)
        return (scale * rng.normal(size=x.shape)).astype(x.dtype)

    return jax.tree.map(drawn, shapes)


@pytest.fixture
def quickly_compiled():
    """Programs that are run thrice need not be fast."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.usefixtures("quickly_compiled")
def test_the_twins_of_networks_do_the_same_step(name, monkeypatch):
    parity.torch()
    step, networks, twins = load("step"), load("networks"), load("torch_twins")
    conf, given, vocabulary = small_network(name)
    monkeypatch.setattr(step, "drawn_variables", anything_but_nothing)
    alone = classmethod(lambda cls, how: cls(how, tuple(jax.devices()[:1])))
    monkeypatch.setattr(step.parallel.Devices, "all", alone)
    ours = networks.ours(conf, vocabulary, given[0], still=True)
    words = networks.FUNCTION_WORDS
    twin = twins.TrainStep(ours.params, conf, compiled=False, still=True, function_words=words)
    # Again and again the same pictures, of which LEAP has centers from the second step on.
    step.agree(ours, twin, given * 3, networks.CASES[name].gradient)
    assert twins.products(ours.params, conf, given[0], words) > 0


@pytest.mark.parametrize(
    ("speed", "share", "met", "by"),
    [
        (1.3, 0.5, True, "by speed: 50%"),
        (1.1, 0.86, True, "by share of the peak: 86%"),
        (1.2, 0.85, True, "by speed and share of the peak: 85%"),
        (1.1, 0.84, False, "by neither: 84%"),
    ],
)
def test_a_step_is_fast_enough_beside_its_twin_or_the_machine(speed, share, met, by):
    networks, timing = load("networks"), load("timing")
    row = networks.verdict("sgr", timing.Row("networks", "PyTorch", speed, "x"), share)
    assert row.quantity == "sgr step, fast enough: time of PyTorch / ours, float32"
    assert (row.median, row.wanted, row.met) == (speed, ">= 1.2, or 85% of the peak", met)
    assert row.note.startswith(by)


def test_the_networks_named_are_measured_without_torch(monkeypatch):
    networks, seen = load("networks"), []

    class Recorded(FakeStep):
        def __init__(self, conf, *unused):
            del unused
            seen.append((conf.model.network, conf.precision))

    find = importlib.util.find_spec
    monkeypatch.setattr(networks.step, "OurStep", Recorded)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else find(name)
    )
    rows = list(networks.run(load("timing").Options(rounds=1, networks=("frozen",))))
    assert seen == [("residual", "float32"), ("residual", "bfloat16")]
    assert [row.quantity for row in rows] == [
        "frozen step, ours, float32", "frozen step, ours, bfloat16"
    ]  # fmt: skip


def test_a_network_that_fails_leaves_the_others_figures(monkeypatch):
    networks = load("networks")

    def steps(name, _):
        if name == "leap":
            raise ValueError("no such luck")
        return [networks.Row("networks", name, 1.0, "x")]

    monkeypatch.setattr(networks, "steps", steps)
    found = networks.run(load("timing").Options(networks=("vsrn", "leap", "frozen")))
    assert [next(found).quantity, next(found).quantity] == ["vsrn", "frozen"]
    with pytest.raises(RuntimeError, match=r"^leap: ValueError: no such luck$"):
        next(found)


def test_rows_of_a_network_beside_its_twins(monkeypatch):
    networks, timing = load("networks"), load("timing")
    monkeypatch.setattr(
        networks.peak, "gflops", lambda dtype="float32": 100.0 if dtype == "float32" else 200.0
    )
    kinds = "ours, float32", "ours, bfloat16", "PyTorch", "PyTorch compiled"
    timings = {
        kind: timing.Timing((seconds,)) for kind, seconds in zip(kinds, (2, 1, 5, 3), strict=True)
    }
    rows = {row.quantity: row for row in networks._speed("sgr", timings, 100.0, "batch 8")}
    assert rows["sgr step: products forward"].median == 100
    assert rows["sgr step, ours, float32"].note == "50% of 100 GFLOP/s; batch 8"
    assert rows["sgr step, ours, bfloat16"].note.startswith("50% of 200 GFLOP/s")
    assert rows["sgr step: time of PyTorch / ours, bfloat16"].median == 5
    last = rows["sgr step, fast enough: time of PyTorch compiled / ours, float32"]
    assert (last.median, last.met) == (1.5, True)


@pytest.mark.torch
def test_products_of_packed_recurrent_layers_are_counted():
    """By hand: forward, then twice that backward, but the first state is zero and has none."""
    torch = parity.torch()
    twins, layers = load("torch_twins"), load("torch_layers")
    words, hidden, lengths = 5, 4, torch.tensor([3, 2])
    drawn = np.random.default_rng(0).normal
    sizes = {
        "weight_ih": (3 * hidden, words), "weight_hh": (3 * hidden, hidden),
        "bias_ih": (3 * hidden,), "bias_hh": (3 * hidden,),
    }  # fmt: skip
    gru = {name: drawn(size=size) for name, size in sizes.items()}
    sentences = layers.Sentences({"words": drawn(size=(9, words)), "gru": gru}, 0.0)
    with twins.FlopCounterMode(display=False) as counter:
        _, last = sentences(torch.ones(2, 3, dtype=torch.long), lengths)
        forward = counter.get_total_flops()
        last.sum().backward()
    tokens = int(lengths.sum())
    assert forward == 2 * tokens * 3 * hidden * (words + hidden)
    from_inputs, from_states = (6 * tokens * 3 * hidden * width for width in (words, hidden))
    assert counter.get_total_flops() == from_inputs + from_states - 2 * 2 * 3 * hidden * hidden


@pytest.mark.slow
@pytest.mark.torch
def test_scoring_is_measured_beside_torch(monkeypatch):
    parity.torch()
    scoring, step = load("scoring"), load("step")
    config = step.config

    def small(name, precision):
        conf = config(name, precision)
        conf.data.image_size = 32
        conf.model.image.backbone, conf.model.dimension = "small_resnet", 16
        conf.model.text.words = 8
        return conf

    monkeypatch.setattr(step, "config", small)
    for name, size in (("SOME_IMAGES", 6), ("SOME_CAPTIONS", 9), ("REGIONS", 3), ("WIDTH", 128)):
        monkeypatch.setattr(scoring, name, size)
    rows = scoring.in_turns(load("timing").Options(rounds=1))
    assert [row.unit for row in rows] == [*["pairs/s"] * 3, "x", "x"]


def small_captioning():
    return load("captioning"), MultimodalRNN(30, 16, 8)


def test_captioning_is_measured_without_torch(monkeypatch):
    captioning, model = small_captioning()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else find(name)
    )
    (row,) = captioning.measure(model, features=6, pictures=3, max_length=20, rounds=1)
    assert row.quantity == "beam search, ours"
    assert row.median > 0


@pytest.mark.torch
def test_captioning_is_measured_beside_torch():
    parity.torch()
    captioning, model = small_captioning()
    rows = captioning.measure(model, features=6, pictures=3, max_length=20, rounds=1)
    assert [row.quantity for row in rows][2:] == ["time of ours / PyTorch"]


def test_a_twin_that_writes_another_caption_is_noticed():
    captioning, _ = small_captioning()
    found = [(np.array([[3, 2]]), np.array([-5.0]))]
    captioning.agree(found, [(np.array([[3, 2]]), np.array([-5.0001]))])
    for tokens, log_p in (([[4, 2]], [-5.0]), ([[3, 2]], [-5.01])):
        with pytest.raises(AssertionError):
            captioning.agree(found, [(np.array(tokens), np.array(log_p))])


def test_maps_are_measured_beside_the_joint_model(monkeypatch):
    maps = load("maps")
    step, conf, captions = small_step()
    orders = []

    class Seen(FakeStep):
        def __init__(self, conf, *unused):
            del unused
            section = conf.objective.disagreement
            orders.append((section.weight > 0, section.second_order))

    monkeypatch.setattr(maps.step, "OurStep", Seen)
    given = step.batches(captions, conf.train.batch_size, 5, 2, 3)
    rows = maps.measure("grids", step.config("cam"), captions.vocabulary, given, rounds=1)
    assert orders == [(False, False), (True, False), (True, True)]
    assert [row.unit for row in rows] == ["s", "s", "s", "x", "x"]
    assert all("content words" in row.note for row in rows[:3])
    assert all(batch["label"].max() < maps.CLASSES for batch in given)
