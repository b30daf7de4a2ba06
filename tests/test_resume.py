"""A run killed at random moments ends bit-identical to an undisturbed one.

VSE_JAX_KILLS says how many kills each set-up gets (default 1), VSE_JAX_KILL_SEED draws others.
"""

import json
import os
import random
import re
import shutil
import signal
import socket
import time
import types
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orbax.checkpoint as ocp
import pytest
from commands import Command
from flax import traverse_util

from vse_jax import experiment, train
from vse_jax import workdir as workdirs

SEED = os.environ.get("VSE_JAX_KILL_SEED", "0")
# Of each set-up; of the first, which takes the least time, and of several processes one more.
KILLS = int(os.environ.get("VSE_JAX_KILLS", "1"))
STEPS = 14
KINDS = ("step", "best", "any")
# Every objective that has a state.
OBJECTIVES = (
    "--config=configs/shapes.py:leap",
    "--config.objective.triplet.weight=1.0",
    "--config.objective.triplet.negatives=all",
    "--config.objective.quantizer.parts=4",
    "--config.objective.quantizer.codes=16",
    "--config.objective.quantizer.rotate_at=(0.3, 0.6)",
    "--config.train.shard_optimizer=True",
    # Mining begins at step 2: the comparisons below must see it.
    "--config.objective.leap.warmup_epochs=0.04",
)
# Networks with statistics of their own; with the momentum of SGD, the mean squares of RMSprop.
SAF = ("--config=configs/shapes.py:saf,objective=lseh", "--config.train.optimizer=sgd")
VSRN = ("--config=configs/shapes.py:vsrn,objective=lmh",)
# Captions, classes and their maps.
TASKS = (
    "--config=configs/shapes.py:cam",
    "--config.model.hidden=16",
    "--config.model.captioner.dropout=0.5",
    "--config.train.optimizer=rmsprop",
)
WARMUP = ("--config.objective.triplet.warmup_epochs=0.04",)


class Setup(NamedTuple):
    """How a run is made: processes, devices of each, and what is trained."""

    processes: int
    devices: int
    flags: tuple[str, ...] = OBJECTIVES


SETUPS = {
    "one device": Setup(1, 1),
    "four devices": Setup(1, 4),
    "two by two": Setup(2, 2),
    "saf": Setup(1, 2, SAF + WARMUP),
    "vsrn": Setup(1, 2, VSRN + WARMUP),
    "captions and classes": Setup(1, 2, TASKS),
}
SAME = [name for name, setup in SETUPS.items() if setup.flags == OBJECTIVES]
FLAGS = [
    "--config.data.shapes_sizes=(96, 24, 24)",
    # Convolutions that are not optimized would take most of the time of larger ones.
    "--config.data.image_size=16",
    "--config.model.dimension=16",
    "--config.model.text.words=8",
    f"--config.train.steps={STEPS}",
    "--config.train.batch_size=16",
    # Gradients of large arrays take seconds between processes: each 64 KiB over the loopback
    # device may wait 40 ms for a delayed acknowledgement.
    "--config.train.freeze=(('image/backbone/(stage1|head).*', None),)",
    "--config.train.ema=0.9",
    "--config.train.log_every=1",
    "--config.train.checkpoint_every=4",
    "--config.train.validate_every=0.2",
    "--config.evaluate.batch_size=16",
    "--config.evaluate.queries=2",
]


def start(
    workdir: Path, data_dir: Path, setup: Setup, *flags: str, common: Sequence[str] = FLAGS
) -> list[Command]:
    processes, devices, trained = setup
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(data_dir / "xla"),
    }
    command = [
        f"--workdir={workdir}",
        *trained,
        *common,
        f"--config.data.data_dir={data_dir}",
        *flags,
    ]
    several = [f"--coordinator=localhost:{port}", f"--processes={processes}"]
    return [
        Command(command + ([*several, f"--process={number}"] if processes > 1 else []), environment)
        for number in range(processes)
    ]


def finish(running: list[Command], seconds: float = 300) -> str:
    """Output of the first process, when all have ended well."""
    ended = [process.wait(seconds) for process in running]
    assert [code for code, _ in ended] == [0] * len(ended), "\n".join(text for _, text in ended)
    return ended[0][1]


def wait(running: list[Command], seconds: float, until: Callable[[], bool]) -> bool:
    """Whether a process ended within the time and before `until` came true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not until():
        if any(process.poll() is not None for process in running):
            return True
        time.sleep(0.02)
    return False


def steps_of(workdir: Path) -> int:
    """Steps logged so far."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def began(workdir: Path) -> bool:
    return (workdir / "metrics.jsonl").exists()


def reached(workdir: Path, step: int) -> bool:
    """Whether that step is logged, and a checkpoint whole: a run killed before begins anew."""
    folder = workdir / "checkpoints" / "last"
    return steps_of(workdir) >= step and any(path.name.isdigit() for path in folder.glob("*"))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*")}


def best_begins(workdir: Path, before: set[str]) -> bool:
    """Whether the best folder has something that it had not before, half-written or whole."""
    return bool(names(workdir / "checkpoints" / "best") - before)


def kill_one(running: list[Command], number: int) -> None:
    """Of several processes that one, which the others must notice and end within a minute."""
    running[number].send(signal.SIGKILL)
    for process in running[:number] + running[number + 1 :]:
        code, output = process.wait(60)
        assert code == 1, output
        assert "another process of the run has ended; " in output
        assert "the same command on all of them" in output
        assert "Traceback" not in output
        assert "Fatal Python error" not in output
    running[number].wait(10)


def kill(running: list[Command]) -> None:
    for process in running:
        process.send(signal.SIGKILL)
    for process in running:
        process.wait(10)


def checkpoint(workdir: Path, kind: str) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint."""
    folder = max((workdir / "checkpoints" / kind).iterdir(), key=lambda path: int(path.name))
    restored = ocp.PyTreeCheckpointer().restore(folder / "state")
    flat = traverse_util.flatten_dict(restored, sep="/")
    return {"folder": np.asarray(int(folder.name))} | {k: np.asarray(v) for k, v in flat.items()}


def metrics(workdir: Path) -> list[dict[str, float]]:
    """What was logged, without what the clock says."""
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def assert_identical(found: Path, expected: Path) -> None:
    assert metrics(found) == metrics(expected)
    for kind in ("last", "best"):
        left, right = checkpoint(found, kind), checkpoint(expected, kind)
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=f"{kind}: {name}")
    reports = [json.loads((folder / "report.json").read_text()) for folder in (found, expected)]
    assert reports[0]["metrics"] == reports[1]["metrics"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def undisturbed(
    data_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, float]]:
    """Workdir of an undisturbed run of each set-up, and the seconds that it took."""
    folders = {setup: tmp_path_factory.mktemp("undisturbed") for setup in SETUPS}
    running, begun = {}, time.monotonic()
    for setup, folder in folders.items():
        running[setup] = start(folder, data_dir, SETUPS[setup])
        # The first prepares the data; after that they share the cores, as most of them wait.
        assert not wait(running[setup], 300, partial(began, folders["one device"]))
    runs = {}
    for setup in SETUPS:
        finish(running[setup])
        runs[setup] = folders[setup], time.monotonic() - begun
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("setup", SETUPS)
def test_killed_runs_end_like_undisturbed_ones(
    setup: str,
    data_dir: Path,
    undisturbed: dict[str, tuple[Path, float]],
    tmp_path: Path,
) -> None:
    """Kills come after a random step, as the best one begins to be saved, or at any moment."""
    expected, seconds = undisturbed[setup]
    draw = random.Random(f"{setup} {SEED}")
    wanted = KILLS + (setup in ("one device", "two by two"))
    kills = runs = resumed = 0
    while kills < wanted:
        workdir = tmp_path / f"run{runs}"
        runs += 1
        step = 0
        while kills < wanted and step < STEPS - 2:
            best = names(workdir / "checkpoints" / "best")
            running = start(workdir, data_dir, SETUPS[setup])
            kind = KINDS[kills % len(KINDS)]
            if kind == "any":
                # Side by side, and compiling, the undisturbed runs took several times as long.
                ended = wait(running, draw.uniform(0.01, 0.12) * seconds, lambda: False)
            elif kind == "best":
                ended = wait(running, 300, partial(best_begins, workdir, best))
            else:
                step = draw.randint(step + 1 if step else 5, STEPS - 1)
                ended = wait(running, 300, partial(reached, workdir, step))
            if ended:
                finish(running)
                break
            if kind != "any" and len(running) > 1:
                # The first one, with which the others lose their coordinator, then the last.
                kill_one(running, kills % len(running))
            else:
                kill(running)
            kills += 1
        resumed += "resumed at step" in finish(start(workdir, data_dir, SETUPS[setup]))
        assert_identical(workdir, expected)
    assert resumed


@pytest.mark.slow
def test_every_number_of_devices_gives_the_same_numbers(
    undisturbed: dict[str, tuple[Path, float]],
) -> None:
    """Losses, gradient norms and what moves by LEAP agree until rounding has had steps to grow.

    The first step is over all negatives, the second over the hardest. Single steps of every
    kind are compared, gradients and all, in test_train_step.py, test_processes.py and
    objectives/test_leap.py.
    """
    rows = {
        setup: [row for row in metrics(workdir) if "loss" in row]
        for setup, (workdir, _) in undisturbed.items()
        if setup in SAME
    }
    assert [rows["one device"][n]["leap/collapse"] > 0 for n in (0, 1)] == [False, True]
    for number in range(2):
        for name in ("loss", "gradient_norm"):
            values = [rows[setup][number][name] for setup in SAME]
            np.testing.assert_allclose(values, values[0], rtol=1e-5, err_msg=f"{name} {number}")
        # A code between two that are equally near may be either.
        leap = [
            name for name in rows["one device"][number]
            if name.startswith("leap/") and name != "leap/code_perplexity"
        ]  # fmt: skip
        assert {"leap/margin", "leap/center", "leap/quantization"} <= set(leap)
        for name in leap:
            values = [rows[setup][number][name] for setup in SAME]
            np.testing.assert_allclose(
                values, values[0], rtol=1e-4, atol=1e-5, err_msg=f"{name} {number}"
            )


@pytest.mark.slow
def test_two_processes_measure_what_one_does(
    undisturbed: dict[str, tuple[Path, float]], tmp_path: Path
) -> None:
    """Features of a frozen backbone, captions, classes and their maps: the same report."""
    reports, found = [], []
    for processes in (1, 2):
        data_dir, workdir = (tmp_path / f"{name}{processes}" for name in ("data", "run"))
        flags = [
            *(flag for flag in FLAGS if "freeze" not in flag),
            "--mode=evaluate",
            f"--config.train.start_from={undisturbed['captions and classes'][0]}",
            "--config.train.freeze=(('image/backbone/.*', None),)",
        ]
        finish(start(workdir, data_dir, Setup(processes, 1, TASKS), common=flags))
        reports.append(json.loads((workdir / "report.json").read_text())["metrics"])
        (features,) = (data_dir / "features").iterdir()
        found.append({path.name: np.load(path) for path in features.glob("*.npy")})
    one, two = reports
    assert {"classify/accuracy", "caption/perplexity", "maps/agreement_truth"} <= one.keys()
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    assert found[0].keys() == found[1].keys() >= {"test.npy"}
    for name, rows in found[0].items():
        np.testing.assert_allclose(found[1][name], rows, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("setup", ["one device", "two by two"])
def test_sigterm_saves_and_the_same_command_goes_on(
    setup: str, data_dir: Path, undisturbed: dict[str, tuple[Path, float]], tmp_path: Path
) -> None:
    """One process of several that gets it is enough."""
    workdir = tmp_path / "run"
    running = start(workdir, data_dir, SETUPS[setup])
    while not (workdir / "metrics.jsonl").exists() or len(metrics(workdir)) < 6:
        assert running[0].poll() is None, running[0].output()
        time.sleep(0.01)
    running[-1].send(signal.SIGTERM)
    output = finish(running)
    told = re.search(r"stopped at step (\d+); the same command goes on from here", output)
    assert told is not None, output
    assert checkpoint(workdir, "last")["folder"] == int(told[1]) < STEPS
    assert not (workdir / "report.json").exists()
    if setup == "one device":
        finish(start(workdir, data_dir, SETUPS[setup]))
        assert_identical(workdir, undisturbed[setup][0])


@pytest.mark.slow
def test_damaged_checkpoint_falls_back_to_the_one_before(
    data_dir: Path, undisturbed: dict[str, tuple[Path, float]], tmp_path: Path
) -> None:
    expected, _ = undisturbed["one device"]
    workdir = shutil.copytree(expected, tmp_path / "run")
    newest = workdir / "checkpoints" / "last" / str(STEPS)
    largest = max(newest.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    os.truncate(largest, largest.stat().st_size // 2)
    output = finish(start(workdir, data_dir, SETUPS["one device"]))
    assert f"checkpoint {STEPS} is damaged" in output
    assert "resumed at step" in output
    assert_identical(workdir, expected)


@pytest.mark.slow
def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    data_dir: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    # Another rate is another program: a small one, without LEAP.
    terms = ("leap", "center", "quantizer", "multitask")
    flags = [f"--config.objective.{term}.weight=0" for term in terms]
    flags += ["--config.objective.leap.pair_margins=False"]
    flags += ["--config.train.learning_rate=1e30", "--config.train.checkpoint_every=1"]
    code, output = start(workdir, data_dir, SETUPS["one device"], *flags)[0].wait(300)
    assert code == 1, output
    message = next(line for line in output.splitlines() if "gradient norm" in line)
    assert "Traceback" not in output
    step = int(message.split("step ")[1].split(":")[0])
    config = workdirs.read_config(workdir)
    run = experiment.prepare(config, workdir)
    loop = types.SimpleNamespace(experiment=run, start=step - 1, end=step)
    ids = next(train.Loop._batches(loop))["image_id"]
    pictures = [f"{number}={run.dataset.splits['train'].images[number]}" for number in ids]
    assert message.endswith(f"Pictures of the batch, as id=name: {', '.join(pictures)}")
    saved = checkpoint(workdir, "last")
    assert saved["folder"] < step
    finite = [np.isfinite(value).all() for name, value in saved.items() if "params" in name]
    assert all(finite)


@pytest.mark.slow
def test_workdir_of_another_config_is_refused(
    data_dir: Path, undisturbed: dict[str, tuple[Path, float]]
) -> None:
    workdir, _ = undisturbed["one device"]
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*.*")}
    code, output = start(workdir, data_dir, SETUPS["one device"], "--config.seed=7")[0].wait(300)
    assert code == 1
    assert "seed: 0 there, 7 here" in output
    assert "Traceback" not in output
    del before[workdir / ".lock"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
