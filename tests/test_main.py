"""The command line: what a user gets wrong is told in a line, without a stack trace."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import types

import pytest
from commands import REPOSITORY, Command

from vse_jax import main

SHAPES, CUSTOM = "--config=configs/shapes.py", "--config=configs/custom.py"
FLICKR8K = "--config=configs/flickr8k.py"

OWN_CONFIG = """from vse_jax.config import default_config
def get_config():
    config = default_config()
"""
WRONG_TYPE = 'config.train.batch_size = "many"'

# Flags besides --workdir, exit code, part of the message.
CASES = {
    "unknown field": (
        [SHAPES, "--config.train.batch_sise=3"],
        2, "unknown config field 'train.batch_sise'; did you mean 'train.batch_size'?",
    ),
    "mistyped value": ([SHAPES, "--config.train.batch_size=many"], 2, "many"),
    "missing file": (["--config=configs/nowhere.py"], 2, "configs/nowhere.py"),
    "unknown system": (["--config=configs/shapes.py:vsepq"], 2, "'vsepq'; it has 'vsepp'"),
    "unknown flag": ([SHAPES, "--wokdir=a"], 2, "wokdir"),
    "unknown mode": ([SHAPES, "--mode=test"], 2, "train|evaluate"),
    "no config": ([], 2, "--config is missing: a file of configs/"),
    "fields without a config": (
        ["--config.train.steps=3"], 2, "--config is missing: a file of configs/",
    ),
    "one dash": ([SHAPES, "-config.train.batch_sise=3"], 2, "unknown config field 'train.batch_s"),
    "a group": ([SHAPES, "--config.train=3"], 2, "'train' is a group of config fields, such as"),
    "no flag": ([SHAPES, "config.train.steps=2"], 2, "'config.train.steps=2' is no flag"),
    "no pattern": (
        [SHAPES, "--config.train.freeze=(('[',None),)"], 1, "'[': not a pattern: unterminated",
    ),
    "matches nothing": (
        [SHAPES, "--config.train.freeze=(('nope/.*',0.1),)"], 1, "which matches no parameter",
    ),
    "frozen at random": (
        [SHAPES, "--config.train.freeze=(('image/backbone/.*',None),)"],
        1, "freezes the backbone, which has no pretrained weights",
    ),
    "weights that are none": (
        [SHAPES, "--config.model.image.weights=w"], 1, "'small_resnet' has no pretrained weights",
    ),
    "negative seed": ([SHAPES, "--config.seed=-1"], 1, "'seed' is -1; it must lie in [0, "),
    "own config with a typo": (["--config={folder}/typo.py"], 2, "typo.py:4: AttributeError"),
    "own config with a wrong type": (["--config={folder}/type.py"], 2, "type.py:4: "),
    "several workdirs to train": (
        [SHAPES, "--output=o", "--workdir=other"], 2, "for evaluating several --workdir: give both",
    ),
    "nowhere to report": (
        ["--mode=evaluate", "--workdir=other"], 2, "--output, where the report goes, is for evalu",
    ),
    "an output of one": (["--mode=evaluate", "--output=o"], 2, "several --workdir: give both"),
    "bad choice": (
        [SHAPES, "--config.train.schedule=cosin"], 1, "'train.schedule' is 'cosin'; did you mean",
    ),
    "a tuple twice": (
        [SHAPES, "--config.train.decay_steps=(10,)", "--config.train.decay_steps=(20,)"],
        2, "--config.train.decay_steps is given twice",
    ),
    "custom without its file": (
        ["--config=configs/custom.py:leap"], 2, "takes the file first: configs/custom.py:PATH,leap",
    ),
    "a system misspelt": (
        ["--config=configs/custom.py:/nowhere.csv,leep"], 1, "comes behind a comma: PATH,leap",
    ),
    "impossible size": ([SHAPES, "--config.train.batch_size=6"], 1, "4 devices cannot share"),
    "no data folder": (
        [FLICKR8K, "--config.data.manual_dir=/nowhere"],
        1, "no folder /nowhere. Put Flickr8k into the folder that data.manual_dir names",
    ),
    "where the data come from": (
        [FLICKR8K, "--config.data.manual_dir=/nowhere"], 1, "University of Illinois",
    ),
    "no data field": ([FLICKR8K], 1, "'data.manual_dir' is not set; 'flickr8k' needs it"),
    "no data file": (["--config=configs/custom.py:/nowhere.csv"], 1, "/nowhere.csv"),
    "no weights": (
        ["--config.model.image.backbone=mobilenet_v2", "--config.model.image.weights=/nowhere/w"],
        1, "weights '/nowhere/w': no such file or folder",
    ),
    "half of several processes": (
        [SHAPES, "--coordinator=localhost:1"], 2, "--processes and --process belong together",
    ),
    "a process too many": (
        [SHAPES, "--coordinator=localhost:1", "--processes=2", "--process=2"],
        2, "--process is 2; of 2 --processes it must be one from 0 on",
    ),
    "nothing to evaluate": (["--mode=evaluate"], 1, "is no workdir of vse_jax"),
}  # fmt: skip


@pytest.fixture(scope="module")
def results(trained, tiny_shapes, tmp_path_factory):
    """Name -> (exit code, output) of every case and of an evaluation; the folder they ran in."""
    folder = tmp_path_factory.mktemp("main")
    tiny = [
        SHAPES, f"--config.data.data_dir={tiny_shapes.data.data_dir}",
        f"--config.data.shapes_sizes={tiny_shapes.data.shapes_sizes}",
    ]  # fmt: skip
    for name, line in (("typo", "config.trian.batch_size = 3"), ("type", WRONG_TYPE)):
        (folder / f"{name}.py").write_text(OWN_CONFIG + f"    {line}\n    return config\n")
    cases = {
        name: [
            f"--workdir={folder / str(number)}",
            *(tiny if name == "no weights" else ()),
            *(flag.replace("{folder}", str(folder)) for flag in flags),
        ]
        for number, (name, (flags, _, _)) in enumerate(CASES.items())
    }
    cases["no workdir"] = [SHAPES]
    cases["empty workdir"] = [SHAPES, "--workdir="]
    cases["evaluate"] = ["--mode=evaluate", f"--workdir={_copy(trained, folder / 'trained')}"]
    # An empty one: what a command compiles must come to lie in it.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "xla")}
    return {name: Command(flags, cache).wait(100) for name, flags in cases.items()}, folder


def _copy(source, target):
    """A workdir with the report of an evaluation that never was."""
    shutil.copytree(source, target)
    (target / "report.json").write_text("{}")
    return target


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_told_in_a_line(results, name):
    code, output = results[0][name]
    _, expected, message = CASES[name]
    assert message in " ".join(output.split()), output
    assert "Traceback" not in output
    assert code == expected, output
    if code == 2:
        assert len(output.strip().splitlines()) == 1


@pytest.mark.parametrize("name", ["no workdir", "empty workdir"])
def test_a_missing_workdir_is_told(results, name):
    code, output = results[0][name]
    assert (code, output) == (2, "vse_jax: --workdir is missing: the folder of the run\n")


def test_what_went_wrong_leaves_the_workdir_free(results):
    """A mistake does not make a workdir belong to the config that had it."""
    _, folder = results
    for number, (_, code, _) in enumerate(CASES.values()):
        assert code
        assert not (folder / str(number) / "config.json").exists()


def test_help_lists_the_flags():
    done = subprocess.run(
        [sys.executable, "-m", "vse_jax.main", "--help"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert "Traceback" not in done.stdout + done.stderr
    for text in ("python -m vse_jax.main --config=", "--config:", "--workdir:", "--mode:"):
        assert text in done.stdout


def test_only_the_project_speaks(tmp_path):
    """JAX looks for all kinds of devices where no environment names one, and logs what is not."""
    # And where libtpu is, which the tests of plans compile by: JAX leaves word for its children.
    hidden = ("JAX_PLATFORMS", "PYTHONPATH", "TPU_", "LIBTPU")
    done = subprocess.run(
        [sys.executable, "-m", "vse_jax.main", f"{CUSTOM}:{tmp_path}/none.jsonl",
         "--config.model.image.weights=None", f"--workdir={tmp_path}"],
        env={name: value for name, value in os.environ.items() if not name.startswith(hidden)},
        cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.stderr.count("\n") == 2, done.stderr
    begun, wrong = done.stderr.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d INFO \d+ x \w+, JAX .*", begun)
    assert "none.jsonl" in wrong


def test_what_is_compiled_is_kept_for_later_runs(results):
    assert any((results[1] / "xla").iterdir())


def test_evaluating_again_gives_the_metrics_of_training(results, trained):
    (code, output), folder = results[0]["evaluate"], results[1]
    assert code == 0, output
    assert "Traceback" not in output
    found, expected = (
        json.loads((path / "report.json").read_text()) for path in (folder / "trained", trained)
    )
    assert found == expected


def test_ctrl_c_before_the_first_step_ends_in_one_line(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(main.app, "run", interrupted)
    with pytest.raises(SystemExit) as ended:
        main.start(["main"])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "vse_jax: interrupted; what was saved is whole\n"


class Left(BaseException):
    """Instead of os._exit."""


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt()], ids=repr)
def test_what_ends_one_of_several_processes_ends_it_at_once(monkeypatch, capsys, error):
    """Behind it JAX would wait minutes for the others, which wait for this one."""

    def left(code):
        raise Left(code)

    def broken(*_):
        raise error

    monkeypatch.setattr(main, "_is_one_of_several", lambda: True)
    monkeypatch.setattr(main, "_WORKDIR", types.SimpleNamespace(value=["a"]))
    monkeypatch.setattr(main, "_run", broken)
    monkeypatch.setattr(main.app, "run", lambda function, *_, **__: function(["main"]))
    monkeypatch.setattr(main.os, "_exit", left)
    with pytest.raises(Left) as ended:
        main.start(["main"])
    told = capsys.readouterr().err
    if isinstance(error, RuntimeError):
        assert ended.value.args == (1,)
        assert told.endswith("RuntimeError: a bug\n")
    else:
        assert ended.value.args == (130,)
        assert told == "vse_jax: interrupted; what was saved is whole\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_the_steps_and_end_what_is_behind_them(number):
    before = signal.getsignal(number)
    with main._stop_on_signal() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.wait(10)
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
