"""scripts/sweep.py with a training that takes no time: what it runs, leaves out and writes."""

import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import absl.flags
import pytest
from ml_collections import config_flags

from vse_jax.config_checks import validate

REPOSITORY = Path(__file__).parents[1]
# Writes what a training leaves behind. --wait: waits for SIGTERM first; and --starting: dies of it,
# as one that still imports does. --fail: fails.
TRAINING = """
import json, pathlib, signal, sys, time
flags = dict(flag.removeprefix("--").split("=", 1) for flag in sys.argv[1:] if "=" in flag)
folder = pathlib.Path(flags["workdir"])
folder.mkdir(parents=True, exist_ok=True)
with open(folder.parent.parent / "ran", "a") as file:
    file.write(f"{folder.parent.name} {folder.name}\\n")
if "--fail" in sys.argv:
    sys.exit(1)
if "--wait" in sys.argv and not (folder / "stopped").exists():
    if "--starting" in sys.argv:
        (folder / "stopped").touch()
    else:
        signal.signal(signal.SIGTERM, lambda *_: ((folder / "stopped").touch(), sys.exit(0)))
    (folder / "ready").touch()
    time.sleep(60)
rsum = float(flags["config.base"]) + float(flags["config.seed"]) ** 2
rows = [{"step": 1, "epoch": 0.5, "validation/rsum": 1.0},
        {"step": 2, "epoch": 1.0, "loss": 3.0, "time/images_per_second": 4.0},
        {"step": 3, "epoch": 1.5, "validation/rsum": rsum + 10},
        {"step": 4, "epoch": 2.0, "validation/rsum": 2.0}]
(folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
metrics, config = {"rsum": rsum, "i2t/R@1": 7.0}, {"train": {"batch_size": 8}}
report = {"step": 3, "metrics": metrics, "config": config}
(folder / "report.json").write_text(json.dumps(report))
"""
SWEEP = """flags = ["--config.common=1"]
[[row]]
name = "Plain"
flags = ["--config.base=100"]
[[row]]
name = "+ a part"
flags = ["--config.base=200"]
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("sweep", REPOSITORY / "scripts" / "sweep.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "training_stub.py").write_text(TRAINING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(module, "PROGRAM", "training_stub")
    return module


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(SWEEP)
    return path


def ran(folder):
    return (folder / "ran").read_text().splitlines()


def test_the_table_has_means_and_deviations(sweep, file, tmp_path, capsys):
    sweep.main([str(file), f"--workdir={tmp_path / 'w'}", "--seeds=0,1,3"])
    folder = tmp_path / "w"
    # Seed by seed, so that a table of all rows is there early.
    rows = ["plain", "a_part"]
    assert ran(folder) == [f"{row} {seed}" for seed in (0, 1, 3) for row in rows]
    found = json.loads((folder / "table.json").read_text())["rows"]
    for name, base in (("Plain", 100), ("+ a part", 200)):
        values = [base + seed**2 for seed in (0, 1, 3)]
        assert found[name]["rsum"]["mean"] == pytest.approx(statistics.fmean(values))
        assert found[name]["rsum"]["deviation"] == pytest.approx(statistics.stdev(values))
        assert found[name]["dev/rsum"]["mean"] == pytest.approx(statistics.fmean(values) + 10)
    table = (folder / "table.md").read_text()
    assert table == capsys.readouterr().out
    assert "| Plain | 3 | 113.3 ± 4.9 | 103.3 ± 4.9 | 7 ± 0 | 1.5 ± 0 | 4 ± 0 |" in table
    assert "Spearman" not in table  # no run measured it


def test_what_is_finished_is_left_out_unless_its_flags_changed(sweep, file, tmp_path):
    arguments = [str(file), f"--workdir={tmp_path / 'w'}", "--seeds=0"]
    sweep.main(arguments)
    sweep.main(arguments)
    assert ran(tmp_path / "w") == ["plain 0", "a_part 0"]
    sweep.main([*arguments, "--only=Plain", "--", "--config.other=2"])
    assert ran(tmp_path / "w") == ["plain 0", "a_part 0", "plain 0"]
    # Of the other row there is no run with this flag.
    table = (tmp_path / "w" / "table.md").read_text()
    assert "| Plain | 1 |" in table
    assert "| + a part | 0 |" in table


def test_measures_that_not_every_run_has_are_left_out(sweep):
    found = sweep.summarize([{"rsum": 1.0, "expert/spearman": 0.5}, {"rsum": 3.0}])
    assert found == {"rsum": {"mean": 2.0, "deviation": pytest.approx(2**0.5), "runs": 2}}


def test_a_seed_given_twice_counts_once_or_not_at_all(sweep, file, tmp_path, capsys):
    with pytest.raises(SystemExit):
        sweep.main([str(file), f"--workdir={tmp_path / 'w'}", "--seeds=0,1,0"])
    assert "0,1,0 has a seed twice" in capsys.readouterr().err


def test_a_run_that_fails_is_told_and_the_others_go_on(sweep, file, tmp_path):
    file.write_text(SWEEP.replace('"--config.base=100"', '"--config.base=100", "--fail"'))
    with pytest.raises(sweep.SweepError, match=r"plain/0: the training ended with exit code 1"):
        sweep.main([str(file), f"--workdir={tmp_path / 'w'}", "--seeds=0"])
    assert ran(tmp_path / "w") == ["plain 0", "a_part 0"]
    assert "| Plain | 0 |" in (tmp_path / "w" / "table.md").read_text()


@pytest.mark.usefixtures("sweep")
@pytest.mark.parametrize("flags", ['"--wait"', '"--wait", "--starting"'])
def test_sigterm_reaches_the_training_and_the_same_command_goes_on(file, tmp_path, flags):
    file.write_text(SWEEP.replace('"--config.common=1"', f'"--config.common=1", {flags}'))
    program = (
        f"import importlib.util, sys\nspec = importlib.util.spec_from_file_location('sweep', "
        f"{str(REPOSITORY / 'scripts' / 'sweep.py')!r})\n"
        "sweep = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(sweep)\n"
        "sweep.PROGRAM = 'training_stub'\nsweep.main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, str(file), f"--workdir={tmp_path / 'w'}", "--seeds=0"]
    running = subprocess.Popen(command, env=os.environ, text=True, stderr=subprocess.PIPE)
    while not (tmp_path / "w" / "plain" / "0" / "ready").exists():
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    _, told = running.communicate(timeout=30)
    assert running.returncode == 0
    assert "stopped; the same command goes on from here" in told
    assert ran(tmp_path / "w") == ["plain 0"]
    assert not (tmp_path / "w" / "plain" / "0" / "finished.json").exists()
    # The other row would wait to be stopped as well.
    subprocess.run([*command, "--only=Plain"], env=os.environ, check=True, capture_output=True)
    assert ran(tmp_path / "w") == ["plain 0", "plain 0"]
    assert (tmp_path / "w" / "plain" / "0" / "finished.json").exists()
    assert "| Plain | 1 | 110 | 100 | 7 | 1.5 | 4 |" in (tmp_path / "w" / "table.md").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"sweep\.toml: expected flags, a list of texts, and \[\[row\]\] tables"),
        ("[[row]", r"sweep\.toml: "),
        ("row = 3", r"sweep\.toml: expected flags, a list of texts, and \[\[row\]\] tables"),
        ("flags = 3\n[[row]]", r"sweep\.toml: expected flags, a list of texts, and \[\[row\]\] "),
        ("row = [1]", r"sweep\.toml: row 1 is 1; expected a table"),
        ("seeds = [1]", r"sweep\.toml: 'seeds' is unknown; it takes flags and \[\[row\]\] tables"),
        ('[[row]]\nname = "a"\nflag = []', r"row 1 has 'flag'; it takes name and flags"),
        ("[[row]]\nflags = []", r"row 1 needs a name"),
        ('[[row]]\nname = "a"', r"row 'a' needs flags, a list of texts"),
        ('[[row]]\nname = "a"\nflags = "x"', r"row 'a' needs flags, a list of texts"),
        ('[[row]]\nname = "a"\nflags = ["--workdir=w"]', r"row 'a' has --workdir=w; each run"),
        (
            'flags = ["--config.seed=1"]\n[[row]]\nname = "a"\nflags = []',
            r"has --config\.seed=1; e",
        ),
        ('[[row]]\nname = "a, b"\nflags = []', r"row 'a, b' has a comma"),
        ('[[row]]\nname = "A"\nflags = []\n[[row]]\nname = "a!"\nflags = []', r"a name of its own"),
    ],
)
def test_a_file_that_is_no_sweep(sweep, file, tmp_path, text, message):
    file.write_text(text)
    with pytest.raises(sweep.SweepError, match=message):
        sweep.main([str(file), f"--workdir={tmp_path / 'w'}"])


def test_flags_that_a_sweep_sets_itself(sweep, file, tmp_path, capsys):
    with pytest.raises(sweep.SweepError, match="what follows -- has --workdir=other; each run"):
        sweep.main([str(file), f"--workdir={tmp_path / 'w'}", "--", "--workdir=other"])
    with pytest.raises(SystemExit):
        sweep.main([str(file), f"--workdir={tmp_path / 'w'}", "--seeds=0,a"])
    assert "0,a is no list of numbers, such as 0,1,2" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_a_row_that_is_not_there(sweep, file, tmp_path):
    with pytest.raises(sweep.SweepError, match=r"sweep\.toml has no row Other"):
        sweep.main([str(file), f"--workdir={tmp_path / 'w'}", "--only=Other"])


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs" / "sweeps").iterdir()))
def test_the_sweeps_of_the_project_are_configs_of_the_project(sweep, path, monkeypatch):
    """Every row's flags, read as vse_jax.main reads them, make a valid config."""
    monkeypatch.chdir(REPOSITORY)
    for row in sweep.read(path):
        values = absl.flags.FlagValues()
        config = config_flags.DEFINE_config_file("config", flag_values=values)
        monkeypatch.setattr(sys, "argv", ["vse_jax.main", *row.flags])
        values(sys.argv)
        validate(config.value)
