"""Settings of every test: strict shapes, a view of four CPU devices; one trained workdir."""

import atexit
import collections
import gc
import os
import shutil
import tempfile

# Workers and tests compile many of the same programs: a cache for the session saves a fifth.
if "PYTEST_XDIST_WORKER" not in os.environ and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="vse_jax_xla_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Four CPU devices, whatever else there is: `JAX_PLATFORMS=cuda pytest -m gpu` asks for a GPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# As many workers as cores: further threads of theirs would but wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Compiling is most of the suite's time: the first two cut it to a fifth, for code that is slower
# but does the same. What is given comes behind them and wins.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
    ]
)

import importlib.util
import io
import logging
import sys
import threading
from pathlib import Path

import java
import jax
import pytest
from filelock import FileLock

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def preset():
    """Name and choice -> that config of that file of configs/."""

    def load(name, *choice):
        path = Path(__file__).parents[1] / "configs" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"configs_{name}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.get_config(*choice)

    return load


@pytest.fixture(scope="session")
def real_data():
    """Name -> folder of real photos or weights in VSE_JAX_TEST_DATA; skips without them."""

    def find(name):
        root = os.environ.get("VSE_JAX_TEST_DATA")
        if root is None:
            pytest.skip("needs VSE_JAX_TEST_DATA, a folder with real photos and weights")
        if not Path(root, name).is_dir():
            pytest.skip(f"VSE_JAX_TEST_DATA ({root}) has no {name}")
        return Path(root, name)

    return find


@pytest.fixture(scope="session", autouse=True)
def without_java():
    """METEOR is tested in evaluators/test_captioning.py alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "which", java.without)
        yield


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """A command that a test runs sets up logging for its own process alone, as users run it."""
    logs = [logging.getLogger(name) for name in ("vse_jax", "absl", "jax")]
    before = [(log.handlers, log.propagate, log.level) for log in logs]
    hooks = sys.unraisablehook, threading.excepthook
    yield
    for log, (handlers, propagate, level) in zip(logs, before, strict=True):
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)
    sys.unraisablehook, threading.excepthook = hooks


def pytest_collection_finish():
    """Looking for garbage among all that was imported is a fifth of the time of tracing."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="module", autouse=True)
def garbage_of_its_own():
    """What a file leaves behind, and what goes wrong as it is thrown away, is told there."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder that all workers of pytest-xdist see."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def tiny_shapes(preset, shared_folder):
    """`configs/shapes.py` at a size that trains in seconds."""
    config = preset("shapes")
    config.data.data_dir = str(shared_folder / "data")
    config.data.shapes_sizes = (64, 16, 16)
    config.data.image_size = 32
    config.model.dimension = 16
    config.model.text.words = 8
    config.train.steps = 3
    config.train.batch_size = 16
    config.train.log_every = 1
    config.train.ema = 0.5
    config.evaluate.batch_size = 16
    config.evaluate.queries = 3
    return config


def trained_once(config, folder):
    """The folder, trained by the first worker that comes; what it logged in `folder`.log."""
    from vse_jax import train

    with FileLock(f"{folder}.lock"):
        if not (folder / "report.json").exists():
            lines = io.StringIO()
            handler, log = logging.StreamHandler(lines), logging.getLogger("vse_jax")
            log.addHandler(handler)
            log.setLevel(logging.INFO)
            assert train.train(config, folder)
            log.removeHandler(handler)
            folder.with_suffix(".log").write_text(lines.getvalue())
    return folder


@pytest.fixture(scope="session")
def trained(tiny_shapes, shared_folder):
    """A workdir of three steps of `tiny_shapes`; for reading only."""
    return trained_once(tiny_shapes, shared_folder / "trained")


@pytest.fixture(scope="session")
def trained_leap(preset, tiny_shapes, shared_folder):
    """A workdir of four steps of `tiny_shapes` by LEAP whole; for reading only."""
    config = tiny_shapes.copy_and_resolve_references()
    leap = preset("shapes", "leap")
    config.objective, config.model.similarity = leap.objective, leap.model.similarity
    config.objective.leap.warmup_epochs = 0.25
    config.objective.quantizer.parts = 4
    config.objective.quantizer.codes = 8
    config.train.steps = 4
    return trained_once(config, shared_folder / "trained_leap")


@pytest.fixture(scope="session")
def tiny_dvsa(preset, tiny_shapes):
    """`configs/shapes.py:dvsa` at the size of `tiny_shapes`."""
    config = preset("shapes", "dvsa")
    config.data.update({**tiny_shapes.data, "tokenizer": "dvsa"})
    config.train.update({**config.train, "steps": 3, "batch_size": 16, "log_every": 1})
    config.evaluate = tiny_shapes.evaluate
    config.model.dimension, config.model.hidden, config.model.text.words = 16, 8, 8
    return config


@pytest.fixture(scope="session")
def trained_dvsa(tiny_dvsa, shared_folder):
    """A workdir of three steps of `tiny_dvsa`; for reading only."""
    return trained_once(tiny_dvsa, shared_folder / "trained_dvsa")


@pytest.fixture(scope="session")
def tiny_cam(preset, tiny_shapes):
    """`configs/shapes.py:cam` at the size of `tiny_shapes`."""
    config = preset("shapes", "cam")
    config.data.update({**tiny_shapes.data, "tokenizer": "dvsa"})
    config.train.update({**config.train, "steps": 3, "batch_size": 16, "log_every": 1})
    config.evaluate = tiny_shapes.evaluate.copy_and_resolve_references()
    config.evaluate.beams = 2
    config.model.dimension, config.model.hidden, config.model.text.words = 16, 8, 8
    return config


@pytest.fixture(scope="session")
def trained_cam(tiny_cam, shared_folder):
    """A workdir of three steps of `tiny_cam`; for reading only."""
    return trained_once(tiny_cam, shared_folder / "trained_cam")


@pytest.fixture(scope="session")
def opened():
    """Workdir -> its run made ready, and the state of its best checkpoint."""

    def open_(folder):
        from vse_jax import evaluation, experiment, train, workdir

        run = experiment.prepare(workdir.read_config(folder), folder)
        return run, evaluation.best_state(run, train.initial_state(run))

    return open_


@pytest.fixture(scope="session")
def trained_log(trained, shared_folder):
    """What the training of `trained` logged."""
    assert trained.is_dir()
    return (shared_folder / "trained.log").read_text()


def pytest_collection_modifyitems(items):
    """The runs of test_resume.py, the longest file, come first, then files of many slow tests.

    What is long and starts last is waited for alone.
    """
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (item.path.name != "test_resume.py", -slow[item.path]))
