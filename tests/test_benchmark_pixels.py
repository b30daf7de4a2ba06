import dataclasses
import importlib
import sys
from functools import partial
from pathlib import Path

import jax
import parity
import pytest

from vse_jax.models.backbones import resnet, vit

SCRIPTS = Path(__file__).parents[1] / "scripts"
READER = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 60,
    "max_position_embeddings": 32,
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Networks of pictures that without weights are not the published ones, but tiny."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    small_resnet = partial(resnet.ResNet, hidden_sizes=(16, 24, 32, 40), depths=(1, 1, 1, 1))
    small_vit = partial(
        vit.ViT,
        image_size=64,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
    )
    monkeypatch.setattr(resnet, "make", lambda _, **options: small_resnet(**options))
    monkeypatch.setattr(vit, "make", lambda _, **options: small_vit(**options))
    # Compiling is what takes time here: half of it is optimizing, a fifth is of drawing weights.
    with jax.default_prng_impl("rbg"):
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


def load(name):
    return importlib.import_module(f"benchmarks.{name}")


def sizes():
    return load("pixels").Sizes(batch=4, image_size=64, reader=READER, side=32)


@pytest.fixture
def torch():
    """PyTorch and its libraries, on one thread: others would wait for each other, spinning."""
    torch = parity.torch()
    parity.timm()
    parity.transformers()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("name", ["vse_infinity", "vit"])
def test_the_twins_do_the_same_step(name):
    """After an update too, when what starts at zero has its say."""
    load("pixels").agree(name, sizes(), steps=2)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.usefixtures("torch")
def test_both_sides_are_measured(monkeypatch):
    pixels, step = load("pixels"), load("step")
    config = pixels.config
    # The program of the test before, which is compiled already.
    monkeypatch.setattr(pixels, "config", lambda *which: step.without_dropout(config(*which)))
    still = dataclasses.replace(sizes(), reader=READER | pixels.STILL)
    rows = {row.quantity: row for row in pixels.measure("vit", still, "float32", rounds=1)}
    title = "ViT-B/16 + BERT, linear"
    assert list(rows) == [
        f"{title}: products of a step",
        f"{title}, ours",
        f"{title}, ours: share of peak",
        f"{title}, PyTorch",
        f"{title}, PyTorch: share of peak",
        f"{title}: time of PyTorch / ours",
    ]
    assert all(row.median > 0 for row in rows.values())
    assert pixels.memory_of_step("ours", "vit", still, "float32")["peak"] >= 0


@pytest.mark.torch
def test_parts_are_dropped_and_those_left_move_up(torch):
    torch.manual_seed(0)
    parts = torch.arange(1.0, 81.0).reshape(4, 20, 1)
    found, counts = load("torch_pixels").dropped(parts, 0.5)
    for row, given, count in zip(found, parts, counts.tolist(), strict=True):
        assert 0 < count < 20
        kept = row[:count, 0].tolist()
        assert sorted(kept) == kept
        assert set(kept) <= set(given[:, 0].tolist())
        assert not row[count:].any()
    everything, counts = load("torch_pixels").dropped(parts, 0.0)
    assert everything is parts
    assert counts.tolist() == [20] * 4


def test_the_peak_is_of_the_precision_asked_for():
    assert load("peak").gflops(32, rounds=1, dtype="bfloat16") > 0


def teardown_module():
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]
