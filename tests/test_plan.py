"""What a step takes, from its program: counted by hand, by XLA, and for devices that are here."""

import contextlib
import importlib
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vse_jax.models.recurrent import GRUParams, gru
from vse_jax.parallel import Devices

# Of a config file that ml_collections loads.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(scope="module", autouse=True)
def scripts():
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))
    for name in [n for n in sys.modules if n.split(".")[0] in ("plan", "step_costs", "benchmarks")]:
        del sys.modules[name]


def count(function, *shapes, devices=1):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return importlib.import_module("step_costs").count(function, *arrays, devices=devices)


def test_products_count_as_often_as_they_are_made():
    def once(x, w):
        return jnp.tanh(x @ w)

    def looped(x, w):
        return jax.lax.scan(lambda x, _: (once(x, w), None), x, length=7)[0].sum()

    product = 2 * 3 * 5 * 5
    assert count(once, (3, 5), (5, 5)).flops == product
    assert count(jax.jit(looped), (3, 5), (5, 5)).flops == 7 * product
    # Backward there is one product for each of the two factors, and of a checkpoint all again.
    assert count(jax.grad(looped, (0, 1)), (3, 5), (5, 5)).flops == 3 * 7 * product
    again = jax.checkpoint(once)

    def kept_nothing(x, w):
        return again(again(x, w), w).sum()

    # But for the last one forward, which nobody looks at.
    assert count(jax.grad(kept_nothing, (0, 1)), (3, 5), (5, 5)).flops == 7 * product

    def either(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: once(once(x, w), w), lambda: once(x, w))

    assert count(either, (3, 5), (5, 5)).flops == product  # at least


def test_loops_end_where_the_numbers_say():
    """A loop over the tokens of captions; of unknown ones, or of an unknown end, it counts once."""
    product = 2 * 3 * 5 * 5
    shapes = (jax.ShapeDtypeStruct((3, 5), jnp.float32), jax.ShapeDtypeStruct((5, 5), jnp.float32))
    costs = importlib.import_module("step_costs")

    def looped(x, w, mask):
        steps = jnp.max(jnp.sum(mask, axis=1))

        def turn(carry):
            return carry[0] + 1, carry[1] @ w

        return jax.lax.while_loop(lambda carry: carry[0] < steps, turn, (jnp.int32(0), x))[1]

    def flops(function, *arrays, devices=1):
        return costs.count(function, *arrays, devices=devices).flops

    mask = np.arange(8) < np.array([[2], [4], [7], [5]])
    assert flops(looped, *shapes, mask) == 7 * product
    assert flops(jax.jit(looped), *shapes, mask[:2]) == 4 * product
    assert flops(looped, *shapes, jax.ShapeDtypeStruct((4, 8), bool)) == product

    # In parts, as gradients are accumulated; none of the second has a token.
    def in_parts(x, w, mask):
        return jax.lax.scan(lambda x, part: (looped(x, w, part), None), x, mask)[0]

    parts = np.stack([mask[:2], np.zeros_like(mask[:2]), mask[2:]])
    assert flops(in_parts, *shapes, parts) == (4 + 0 + 7) * product

    def chosen(x, w, mask):
        return jax.lax.cond(mask[0, 0], lambda: x @ w, lambda: (x @ w) @ w)

    assert flops(chosen, *shapes, mask) == product
    assert flops(chosen, *shapes, ~mask) == 2 * product

    def until(x, w):  # the numbers say nothing of this end
        return jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ w, x)

    assert flops(until, *shapes) == product

    # Of four devices the first has the first row, two tokens.
    mapped = jax.shard_map(
        lambda x, w, mask: jax.lax.psum(looped(x, w, mask), "data"),
        mesh=Devices.all("shard_map").mesh, in_specs=(P(), P(), P("data")), out_specs=P(),
        check_vma=False,
    )  # fmt: skip
    assert flops(mapped, *shapes, mask, devices=4) == 2 * product


def test_a_recurrence_counts_for_real_tokens():
    """The GRU's products forward and twice backward; rows of a step are rounded up to a level."""
    costs = importlib.import_module("step_costs")
    batch, length, words, width = 128, 20, 12, 16
    lengths = np.random.default_rng(0).integers(3, length, batch).astype(np.int32)

    def floats(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def loss(params, x, lengths):
        return jnp.sum(gru(params, x, lengths).last)

    params = GRUParams(floats(3 * width, words), floats(3 * width, width), *2 * [floats(3 * width)])
    step = jax.jit(jax.grad(loss, (0, 1)))
    found = costs.count(step, params, floats(batch, length, words), lengths, devices=1).flops
    least = 6 * lengths.sum() * 3 * width * (words + width)
    assert least < found < 1.2 * least


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_are_what_xla_counts(stride):
    def convolve(x, k):
        return jax.lax.conv_general_dilated(
            x, k, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    shapes = (2, 12, 12, 3), (3, 3, 3, 8)
    out = 10 if stride == 1 else 5
    own = 2 * 2 * out * out * 8 * 27
    assert count(convolve, *shapes).flops == own
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    assert jax.jit(convolve).lower(*arrays).cost_analysis()["flops"] == pytest.approx(own, rel=0.01)
    # The gradients multiply the same numbers.
    for side in (0, 1):
        gradient = jax.grad(lambda x, k: convolve(x, k).sum(), side)
        found = count(gradient, *shapes).flops
        assert found == own if side else own <= found < 1.6 * own


def test_collectives_bring_what_a_ring_brings():
    def function(x):
        everyone = jax.lax.all_gather(x, "data", tiled=True)
        moved = jax.lax.ppermute(x, "data", [(0, 1), (1, 2), (2, 3), (3, 0)])
        return jax.lax.psum(everyone, "data").sum() + moved

    mapped = jax.shard_map(
        function, mesh=Devices.all("shard_map").mesh, in_specs=P("data"), out_specs=P("data")
    )
    found = count(mapped, (8, 16), devices=4)
    size = 8 * 16 * 4
    assert found.received["all_gather"] == size * 3 / 4
    assert found.received["ppermute"] == size / 4
    assert (
        sum(value for name, value in found.received.items() if "psum" in name) == 2 * size * 3 / 4
    )
    assert found.calls["ppermute"] == 1


TINY = (
    "--config.data.image_size=16", "--config.model.dimension=64", "--config.model.text.words=32",
    "--config.data.max_tokens=10",
)  # fmt: skip


def arguments(path, *given):
    return [f"--config={SCRIPTS.parent}/configs/shapes.py", f"--output={path}", *TINY, *given]


def rows_of(printed):
    """The lines of the table as column -> cell."""
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in printed.splitlines()
        if "|" in line
    ]
    return [dict(zip(head, row, strict=True)) for row in rows]


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """The report, and what is printed."""
    path, printed = tmp_path_factory.mktemp("plan") / "plan.json", io.StringIO()
    given = arguments(path, "--batch=32,64")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", ["plan.py", *given])  # there ml_collections looks for fields
        importlib.import_module("plan").main(given)
    return json.loads(path.read_text()), printed.getvalue()


def test_a_plan_of_what_is_here(planned):
    report, printed = planned
    assert report["chips"].keys() == {"here"}
    small, large = report["plans"]
    assert [plan["batch"] for plan in (small, large)] == [32, 64]
    for plan in (small, large):
        assert (plan["topology"], plan["devices"], plan["precision"]) == ("here", 4, "float32")
        assert plan["seconds"]["products"] == plan["flops"] / report["chips"]["here"]["flops"]
        assert plan["pairs_a_second"] == plan["batch"] / max(plan["seconds"].values())
        # Every device has all parameters, and the optimizer two numbers more of each.
        assert plan["receives"]["psum"] > 0
        assert plan["calls"].keys() == plan["receives"].keys()
    assert 1.8 < large["flops"] / small["flops"] < 2.3
    assert small["holds"] < large["holds"] < 2 * small["holds"]
    assert "precision=" not in printed


def test_no_step_takes_less_than_the_plan_says(planned):
    """As it is printed: a bound from below, and of pairs a second one from above."""
    for row in rows_of(planned[1]):
        least, measured = (
            float(row[name].removesuffix(" ms")) for name in ("step at least", "step measured")
        )
        assert 0 < least <= measured
        most = float(row["pairs/s at most"].replace(",", ""))
        assert most >= int(row["batch"]) / (1e-3 * measured)
        assert most == pytest.approx(1e3 * int(row["batch"]) / least, rel=0.01)


def test_collectives_are_printed_by_kind(planned):
    report, printed = planned
    for plan, row in zip(report["plans"], rows_of(printed), strict=True):
        told = [part.split() for part in row["by collective: GB (calls)"].split(", ")]
        assert {name: float(calls.strip("()")) for name, _, calls in told} == plan["calls"]
        for name, size, _ in told:
            assert float(size) == pytest.approx(plan["receives"][name] / 1e9, rel=0.01)
        total = sum(float(size) for _, size, _ in told)
        assert float(row["GB received"]) == pytest.approx(total, rel=0.02)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu, of the extra [tpu]"
)
def test_a_plan_of_tpus_that_are_not_here(tmp_path, planned):
    """Compiled for them; what is counted from the program is what it is on this machine.

    In a process of its own: libtpu takes no XLA_FLAGS that are of CPUs.
    """
    path = tmp_path / "plan.json"
    given = arguments(path, "--batch=64", "--topology=v5e:2x2")
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "plan.py"), *given],
        env={name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (plan,) = json.loads(path.read_text())["plans"]
    _, here = planned[0]["plans"]
    assert (plan["devices"], plan["measured"]) == (4, None)
    assert plan["flops"] == pytest.approx(here["flops"])
    assert plan["receives"] == here["receives"]
    assert plan["holds"] > 0
    assert plan["moves"] > 0
    # As Google tells of a v5e: 16 GiB, 197 TFLOP/s by bfloat16.
    assert plan["seconds"]["products"] == plan["flops"] / 197e12
    assert plan["seconds"]["memory"] == plan["moves"] / 819e9
    (row,) = rows_of(done.stdout)
    share = float(row["of its memory"].removesuffix("%"))
    assert share == pytest.approx(100 * plan["holds"] / (16 * 2**30), abs=0.5)
    assert row["step measured"] == ""
    assert "precision=float32: the bound by products is that of bfloat16" in done.stdout


def test_flops_of_a_step_without_loops_are_what_xla_counts(monkeypatch):
    """Of heads over two frozen towers; XLA counts sums, roots and exponentials too."""
    step_shapes = importlib.import_module("step_shapes")
    step = importlib.import_module("benchmarks.step")
    config = step.config("frozen")
    config.model.image.update({"backbone": "small_resnet", "weights": None})
    config.model.text.weights = None
    config.train.freeze = (("(image/backbone|text/reader)/.*", None),)
    config.train.update({"batch_size": 128, "ema": 0.0})
    config.data.max_tokens = 10
    both = step_shapes.assembly.Frozen(image=True, text=True)
    monkeypatch.setattr(step_shapes.assembly, "frozen_backbones", lambda _: both)
    whole, state, rows = step_shapes.training_of(config, 128)
    function = whole.on(Devices("shard_map", tuple(jax.devices()[:1])), state)
    expected = function.lower(state, rows).cost_analysis()["flops"]
    found = importlib.import_module("step_costs").count(function, state, rows, devices=1)
    assert 0.8 * expected < found.flops < expected


def test_a_step_that_does_not_fit_is_told_with_what_it_would_take():
    plan = importlib.import_module("plan")
    refused = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (23.5G) exceeds available HBM (15.75G). HLO module: jit_step."
    )

    class Lowered:
        def __init__(self, message):
            self.message = message

        def compile(self):
            raise jax.errors.JaxRuntimeError(self.message)

    where = Devices.all("shard_map")
    split = jax.NamedSharding(where.mesh, P("data"))
    given = {"a": jax.ShapeDtypeStruct((8, 3), jnp.float32, sharding=split)}
    holds, moves = plan._compiled(Lowered(refused), given)
    assert holds == 23.5 * 2**30 + 2 * 3 * 4
    assert moves is None
    with pytest.raises(jax.errors.JaxRuntimeError, match="another"):
        plan._compiled(Lowered("another"), given)
    chip = plan.CHIPS["v5e"]
    costs = {"psum": 1e9}, {"psum": 3.0}, {"products": 1.0}
    found = plan.Plan("v5e:2x2", 65_536, 4, holds, "bfloat16", 1e12, moves, *costs)
    line = plan.table([found], {"v5e:2x2": chip}).splitlines()[-1]
    assert line == (
        "| v5e:2x2 | 4 | 65,536 | 23.50 GiB | 147%, too much | 1 |  | 1 | psum 1 (3) |  |  |  |  |"
    )


def test_what_is_no_topology_is_told(monkeypatch):
    plan = importlib.import_module("plan")
    with pytest.raises(SystemExit, match="--topology is 'v9:2x2'; it must be 'here' or one of v4"):
        plan.main(["--config=configs/shapes.py", "--output=p.json", "--topology=v9:2x2"])
    with pytest.raises(SystemExit, match=r"needs --config and --output=FILE\.json"):
        plan.main(["--config=configs/shapes.py"])
    given = ["--config=configs/shapes.py", "--output=p.json", "--config.precision=half"]
    monkeypatch.setattr(sys, "argv", ["plan.py", *given])
    with pytest.raises(SystemExit, match="'precision' is 'half'"):
        plan.main(given)
