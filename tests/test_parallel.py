import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax import parallel
from vse_jax.checkpoint import CheckpointError
from vse_jax.parallel import Devices, SplitRows, processes

MODES = ["shard_map", "pmap"]
ROWS = np.arange(24, dtype=np.float32).reshape(8, 3)


@pytest.fixture(params=[(mode, count) for mode in MODES for count in (1, 4)], ids=str)
def devices(request):
    mode, count = request.param
    return Devices(mode, tuple(jax.devices()[:count]))


def test_all_devices():
    found = Devices.all("pmap")
    assert (found.mode, found.count) == ("pmap", 4)
    assert found.mesh.axis_names == (parallel.AXIS,)


def test_processes_are_given_or_found_or_told_to_be_missing(monkeypatch):
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: asked.append(given))
    monkeypatch.setattr(processes, "_explain_aborts", lambda: asked.append("aborts"))
    parallel.initialize(None, None, None)
    assert asked == []
    parallel.initialize("host:1", 4, 3)
    parallel.initialize("auto", None, None)
    own = {"coordinator_address": "host:1", "num_processes": 4, "process_id": 3}
    heartbeat = {"heartbeat_timeout_seconds": 30}
    assert asked == [own | heartbeat, "aborts", heartbeat, "aborts"]

    def fail(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(parallel.ProcessesError, match="=auto brings no processes: coordinator_add"):
        parallel.initialize("auto", None, None)


# It waits, in no collective that would fail.
WAITING = """
import faulthandler, sys, time
faulthandler.enable()  # as absl's app does
from vse_jax import parallel
parallel.initialize(sys.argv[1], 2, int(sys.argv[2]))
parallel.barrier("both are here")
print("waiting", flush=True)
time.sleep(60)
"""


def test_a_process_that_waits_for_nothing_is_told_of_the_end_of_the_first():
    """JAX's coordination service ends with process 0, and aborts the others."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    first, other = (
        subprocess.Popen(
            [sys.executable, "-c", WAITING, address, str(number)],
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for number in range(2)
    )  # fmt: skip
    for process in (first, other):
        assert "waiting\n" in iter(process.stdout.readline, "")
    first.kill()
    output, _ = other.communicate(timeout=60)
    first.communicate()
    assert other.returncode == 1, output
    assert output.splitlines()[-1] == processes._ABORTED.decode().strip()
    assert "Fatal Python error" not in output


def test_a_lost_process_is_known_by_what_collectives_say(monkeypatch):
    said = "Gloo all-reduce failed: Connection closed by peer"
    lost = jax.errors.JaxRuntimeError(said)
    # As what saves a checkpoint has it.
    wrapped, wrapper = TimeoutError("waiting"), CheckpointError("cannot be written: waiting")
    wrapped.__cause__, wrapper.__cause__ = (
        jax.errors.JaxRuntimeError(f"UNAVAILABLE:\n{said}"),
        wrapped,
    )
    assert parallel.loss_behind(lost) is None
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    told = "another process of the run has ended; the same command on all of them goes on from"
    for error, what in ((lost, said), (ValueError(said), said), (wrapper, f"UNAVAILABLE: {said}")):
        assert parallel.loss_behind(error) == f"{told} what was saved ({what})"
    full = CheckpointError("cannot be written: no space")
    full.__cause__ = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: memory")
    assert parallel.loss_behind(full) is None


def test_collectives_see_every_row_in_order(devices):
    def function(batch):
        x = batch["x"]
        return {
            "mean": parallel.mean(jnp.sum(x, axis=0)),
            "total": parallel.total({"rows": jnp.asarray(x.shape[0])}),
            "all": parallel.all_gather((x, 2 * x)),
            "index": parallel.all_gather(parallel.device_index()[None]),
            "count": jnp.asarray(parallel.device_count()),
        }

    mapped = devices.map(function, ("split",), "replicated")
    found = devices.fetch(mapped(devices.split({"x": ROWS})))
    np.testing.assert_allclose(found["mean"], ROWS.sum(axis=0) / devices.count, rtol=1e-6)
    assert found["total"]["rows"] == 8
    np.testing.assert_array_equal(found["all"][0], ROWS)
    np.testing.assert_array_equal(found["all"][1], 2 * ROWS)
    np.testing.assert_array_equal(found["index"], np.arange(devices.count))
    assert found["count"] == devices.count


def test_replicated_values_come_back_as_they_went(devices):
    tree = {
        "scalar": np.asarray(3, np.int32),
        "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
        "half": np.asarray([1.5, -2.0], jnp.bfloat16),
        "empty": {},
        "none": None,
        "flags": (np.asarray([True, False]),),
    }
    back = devices.fetch(devices.place(tree))
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        assert isinstance(one, np.ndarray)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    again = devices.fetch(devices.map(lambda x: x, ("replicated",), "replicated")(
        devices.place(tree)
    ))  # fmt: skip
    assert jax.tree.all(jax.tree.map(np.array_equal, again, tree))


def test_every_device_holds_a_replicated_value_and_its_own_rows(devices):
    replicated = devices.place(ROWS)
    shards = [np.asarray(s.data) for s in replicated.addressable_shards]
    assert len(shards) == devices.count
    for shard in shards:
        np.testing.assert_array_equal(shard.reshape(8, 3), ROWS)
    split = devices.split({"x": ROWS})["x"]
    own = {s.device: np.asarray(s.data).reshape(-1, 3) for s in split.addressable_shards}
    for device, rows in zip(devices.devices, np.split(ROWS, devices.count), strict=True):
        np.testing.assert_array_equal(own[device], rows)


def test_rows_that_are_split_are_found_and_replaced_wherever_they_are(devices):
    """Ten rows, which four devices do not divide."""
    table = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    tree = {"table": SplitRows(table, 10), "scale": np.float32(2.0)}
    numbers = np.array([9, 0, 4, 4, 2, 7, 3, 9], np.int32)
    written = np.array([8, -1, 0, 3, -1, 9, 5, -1], np.int32)

    def function(tree, batch):
        found = parallel.take_rows(tree["table"], batch["numbers"])
        values = parallel.all_gather(batch["x"]) * tree["scale"]
        new = parallel.put_rows(tree["table"], parallel.all_gather(batch["written"]), values)
        return tree | {"table": new}, parallel.all_gather(found)

    placed, on_devices = parallel.placements(tree), devices.place(tree)
    shards = [
        np.asarray(s.data).reshape(-1, 3) for s in on_devices["table"].rows.addressable_shards
    ]
    assert [len(shard) for shard in shards] == [-(-10 // devices.count)] * devices.count
    batch = devices.split({"numbers": numbers, "written": written, "x": ROWS})
    mapped = devices.map(function, (placed, "split"), (placed, "replicated"), donate=(0,))
    new, found = mapped(on_devices, batch)
    np.testing.assert_array_equal(devices.fetch(found), table[numbers])
    expected = table.copy()
    expected[written[written >= 0]] = 2 * ROWS[written >= 0]
    back = devices.fetch(new)
    assert back["table"].count == 10
    np.testing.assert_array_equal(back["table"].rows, expected)
    assert back["scale"] == 2.0


def test_visitors_meet_every_device_and_are_home_again(devices):
    def function(batch):
        def meet(known, visitor):
            rows, seen = visitor
            return jnp.concatenate([known[1:], rows[:1]]), (rows, seen + 1)

        first = jnp.zeros((devices.count, 3))
        return parallel.around(meet, first, (batch["x"], jnp.zeros((1,), jnp.int32)))

    mapped = devices.map(function, ("split",), "split")
    met, (rows, seen) = mapped(devices.split({"x": ROWS}))
    np.testing.assert_array_equal(np.asarray(rows).reshape(8, 3), ROWS)
    assert set(np.asarray(seen).ravel()) == {devices.count}
    own = ROWS[:: 8 // devices.count]
    for number, found in enumerate(np.asarray(met).reshape(devices.count, -1, 3)):
        np.testing.assert_array_equal(found[0], own[number])
        assert sorted(found[:, 0]) == sorted(own[:, 0])


def test_shares_are_equal_and_make_up_the_array(devices):
    def function(x):
        share = parallel.own_share(x)
        assert share.shape == (-(-x.size // devices.count),)
        return parallel.from_shares(2 * share, x.shape)

    for shape in ((3, 5), (), (1,)):
        x = np.arange(1, 1 + np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
        mapped = devices.map(function, ("replicated",), "replicated")
        np.testing.assert_array_equal(devices.fetch(mapped(devices.place(x))), 2 * x)


def test_a_hidden_transfer_is_an_error():
    double = jax.jit(lambda x: 2 * x)
    placed = jax.device_put(ROWS)
    with parallel.without_transfers():
        np.testing.assert_array_equal(double(placed), 2 * ROWS)
        with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device"):
            double(ROWS)


def test_what_is_fetched_survives_the_donation_of_its_source(devices):
    state = devices.place({"x": ROWS})
    host = devices.fetch(state)
    step = devices.map(
        lambda s: jax.tree.map(lambda x: x + 1, s), ("replicated",), "replicated", donate=(0,)
    )
    new = step(state)
    assert state["x"].is_deleted()
    np.testing.assert_array_equal(host["x"], ROWS)
    np.testing.assert_array_equal(devices.fetch(new)["x"], ROWS + 1)


def test_nothing_else_is_donated(devices):
    state, batch = devices.place(ROWS[0]), devices.split({"x": ROWS})
    step = devices.map(
        lambda s, b: (s + parallel.mean(jnp.sum(b["x"])), jnp.zeros(())),
        ("replicated", "split"),
        ("replicated", "replicated"),
    )
    step(state, batch)
    assert not state.is_deleted()
    assert not batch["x"].is_deleted()


def test_products_are_in_float32(devices):
    """On CPUs they are anyway; what accelerators are told is in the program."""

    def loss(w, x):
        return jnp.sum(jnp.square(x @ w))

    step = devices.map(jax.grad(loss), (parallel.REPLICATED, parallel.SPLIT), parallel.REPLICATED)
    w = devices.place(np.ones((3, 2), np.float32))
    program = step.lower(w, devices.split(ROWS)).as_text()
    products = [line for line in program.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) == 2
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def test_the_mean_of_the_gradients_is_the_gradient_of_the_whole(devices):
    """Under the default `check_vma=True` it would be `count` times too large (see DESIGN)."""
    weights = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)

    def loss_of(weights, rows, everyone):
        """Also through what was gathered: each row against the mean of all."""
        return jnp.mean(jnp.tanh(rows @ weights) * jnp.mean(everyone @ weights, axis=0)[None])

    def function(weights, batch):
        def local(weights):
            scores = jnp.tanh(batch["x"] @ weights)
            everyone = parallel.all_gather(batch["x"] @ weights)
            return jnp.mean(scores * jnp.mean(everyone, axis=0)[None])

        return parallel.mean(jax.value_and_grad(local)(weights))

    rows = ROWS / 24
    mapped = devices.map(function, ("replicated", "split"), "replicated")
    loss, gradient = devices.fetch(mapped(devices.place(weights), devices.split({"x": rows})))
    expected, slope = jax.value_and_grad(loss_of)(weights, rows, rows)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mode", MODES)
def test_prefetch_sends_every_batch_once_in_order(mode):
    devices = Devices(mode, tuple(jax.devices()))
    drawn = []

    def batches():
        for number in range(5):
            drawn.append(number)
            yield {"x": np.full((4, 1), number, np.float32)}

    seen = []
    for number, (host, device) in enumerate(devices.prefetch(batches(), size=2)):
        assert len(drawn) == min(number + 3, 5)
        np.testing.assert_array_equal(np.asarray(device["x"]).reshape(4, 1), host["x"])
        seen.append(int(host["x"][0, 0]))
    assert seen == drawn == list(range(5))


def test_a_single_process_is_the_first_and_agrees_with_itself():
    parallel.initialize(None, None, None)
    parallel.barrier("nobody to wait for")
    assert parallel.process_share() == {"process": 0, "processes": 1}
    assert parallel.is_first_process()
    assert parallel.all_agree(True)
    assert not parallel.all_agree(False)
    assert parallel.first_process_first("name", lambda: 3) == 3
    assert [parallel.agreed_interruption(1, flag) for flag in (True, False)] == [True, False]
