import logging
import pathlib
import resource
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
import pytest

from vse_jax import checkpoint
from vse_jax.checkpoint import CheckpointError, Checkpoints

# Where one read of several fails, TensorStore tells the others' ends to an event loop that Orbax
# has closed: "RuntimeError: Event loop is closed", of no object and soon after.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning"
)


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any


def state(seed=0, width=3):
    draw = np.random.default_rng(seed)
    kernel = draw.normal(size=(4, width)).astype(np.float32)
    kernel[0, 0], kernel[0, 1] = np.nan, -0.0
    return State(
        step=np.asarray(seed, np.int32),
        params={
            "image": {"kernel": kernel, "half": kernel.astype(jnp.bfloat16)},
            # More than a page, and hard to compress: damage lands in it.
            "text": {"words": draw.normal(size=(64, 64)).astype(np.float32)},
        },
        batch_stats={},
        # As in optax: names with "/" in them, tuples, and a nameless empty state.
        opt_state=({"image/kernel": kernel * 2}, (), np.asarray([True, False])),
        ema=None,
    )


def assert_identical(found, expected):
    a, b = (checkpoint._leaves(tree) for tree in (found, expected))
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), name


@pytest.fixture
def opened():
    """Opens folders, and lets go of them at the end."""
    kept = []

    def open_(folder, keep=2):
        kept.append(Checkpoints(folder, keep))
        return kept[-1]

    yield open_
    for one in kept:
        one.close()


def saved(opened, folder, *seeds):
    """The folder with a checkpoint of each seed, under the step of the same number."""
    checkpoints = opened(folder)
    for seed in seeds:
        checkpoints.save(seed, state(seed))
    checkpoints.wait()
    return checkpoints


def largest_file(folder, step):
    """Where the arrays of a checkpoint lie."""
    files = [p for p in (folder / str(step) / "state").rglob("*") if p.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def steps_of(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def test_an_empty_folder_has_nothing_to_restore(tmp_path, opened):
    assert opened(tmp_path / "new").restore(state()) is None


def test_a_state_comes_back_bit_by_bit(tmp_path, opened):
    folder = tmp_path / "last"
    saved(opened, folder, 7).close()
    found = opened(folder).restore(state(1))
    assert_identical(found, state(7))
    assert isinstance(found, State)
    assert found.ema is None
    assert found.batch_stats == {}
    assert found.opt_state[1] == ()
    assert isinstance(found.params["image"]["kernel"], np.ndarray)


def test_the_newest_are_kept_and_the_newest_of_them_is_restored(tmp_path, opened):
    checkpoints = saved(opened, tmp_path / "last", 1, 2, 10)
    assert_identical(checkpoints.restore(state()), state(10))
    assert steps_of(tmp_path / "last") == [2, 10]


def test_arrays_may_change_as_soon_as_save_returns(tmp_path, opened):
    checkpoints, given = opened(tmp_path), state(3)
    checkpoints.save(3, given)
    given.params["text"]["words"][:] = 0.0
    assert_identical(checkpoints.restore(state()), state(3))


def test_saving_a_step_twice_keeps_the_first(tmp_path, opened):
    checkpoints = saved(opened, tmp_path, 3)
    checkpoints.save(3, state(4))
    checkpoints.wait()
    assert_identical(checkpoints.restore(state()), state(3))


def test_a_full_disk_is_told_and_the_checkpoint_before_is_whole(tmp_path, opened):
    checkpoints = saved(opened, tmp_path / "last", 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Writing fails as on a full disk, from the 4,096th byte of a file on.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"last: a checkpoint cannot be written: .*free"):
            saved_badly(checkpoints)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_identical(opened(tmp_path / "last").restore(state()), state(1))


def saved_badly(checkpoints):
    checkpoints.save(2, state(2))
    checkpoints.wait()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip, pathlib.Path.unlink])
def test_of_a_damaged_checkpoint_the_one_before_is_used(tmp_path, opened, damage, caplog):
    folder = tmp_path / "last"
    saved(opened, folder, 1, 2).close()
    damage(largest_file(folder, 2))
    checkpoints = opened(folder)
    with caplog.at_level(logging.WARNING):
        assert_identical(checkpoints.restore(state()), state(1))
    assert "checkpoint 2 is damaged, trying the one before" in caplog.text
    assert steps_of(folder) == [1]
    assert [path.name for path in (tmp_path / "last.damaged").iterdir()] == ["2.0"]
    # Training comes by that step again.
    checkpoints.save(2, state(5))
    assert_identical(checkpoints.restore(state()), state(5))


def test_only_the_checksums_find_a_wrong_byte_that_decodes(tmp_path, opened, caplog, monkeypatch):
    """As where another array was written under the name."""
    checkpoints = saved(opened, tmp_path / "last", 1)
    checksum = checkpoint.checksum
    monkeypatch.setattr(checkpoint, "checksum", lambda array: checksum(array) ^ 1)
    checkpoints.save(2, state(2))
    checkpoints.wait()
    monkeypatch.undo()
    with caplog.at_level(logging.WARNING):
        assert_identical(checkpoints.restore(state()), state(1))
    assert "does not match its checksum" in caplog.text


@pytest.mark.parametrize("name", ["checksums/metadata", "state/_METADATA", "_CHECKPOINT_METADATA"])
def test_damage_beside_the_arrays_never_gives_a_wrong_state(tmp_path, opened, name):
    folder = tmp_path / "last"
    saved(opened, folder, 1, 2).close()
    cut(folder / "2" / name)
    found = opened(folder).restore(state())
    assert_identical(found, state(int(found.step)))


def test_where_all_are_damaged_none_is_used_nor_lost(tmp_path, opened):
    folder = tmp_path / "last"
    saved(opened, folder, 1, 2).close()
    for step in (1, 2):
        cut(largest_file(folder, step))
    with pytest.raises(
        CheckpointError, match=r"every checkpoint \(1, 2\) is damaged; .*last\.damaged"
    ):
        opened(folder).restore(state())
    assert len(list((tmp_path / "last.damaged").iterdir())) == 2


def test_a_save_cut_short_is_no_checkpoint(tmp_path, opened):
    """Orbax writes under a name of its own and renames at the end."""
    folder = tmp_path / "last"
    saved(opened, folder, 1, 2).close()
    (folder / "2").rename(folder / "2.orbax-checkpoint-tmp-123")
    cut(largest_file(folder, "2.orbax-checkpoint-tmp-123"))
    checkpoints = opened(folder)
    assert_identical(checkpoints.restore(state()), state(1))
    assert not (tmp_path / "last.damaged").exists()
    assert_identical(checkpoint.read_newest(folder), as_dict(state(1)))


def as_dict(found):
    from flax import traverse_util

    return traverse_util.unflatten_dict(checkpoint._leaves(found), sep="/")


def test_reading_without_a_template_changes_nothing(tmp_path, opened, caplog):
    folder = tmp_path / "best"
    saved(opened, folder, 1, 2).close()
    assert_identical(checkpoint.read_newest(folder), as_dict(state(2)))
    flip(largest_file(folder, 2))
    before = sorted(tmp_path.rglob("*"))
    with caplog.at_level(logging.WARNING):
        assert_identical(checkpoint.read_newest(folder), as_dict(state(1)))
    assert "checkpoint 2 is damaged" in caplog.text
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(CheckpointError, match="has no usable checkpoint"):
        checkpoint.read_newest(tmp_path / "gone")


@pytest.mark.parametrize("kind", ["shape", "type", "more", "fewer"])
def test_a_checkpoint_of_another_model_is_named_and_left_alone(tmp_path, opened, kind):
    """It is whole: moving it away as damaged would lose the training."""
    folder = tmp_path / "last"
    saved(opened, folder, 1, 2).close()
    template = state()
    if kind == "shape":
        template = state(width=5)
    elif kind == "type":
        template.params["image"]["kernel"] = template.params["image"]["kernel"].astype(np.float16)
    elif kind == "more":
        template.params["image"]["kernel_2"] = np.zeros(2, np.float32)
    else:
        del template.params["image"]["kernel"]
    with pytest.raises(CheckpointError) as error:
        opened(folder).restore(template)
    assert "checkpoint 2 is of another model" in str(error.value)
    wanted = {
        "shape": "opt_state/0/image/kernel is float32[4, 3], expected float32[4, 5]",
        "type": "params/image/kernel is float32[4, 3], expected float16[4, 3]",
        "more": "params/image/kernel_2 is missing, expected float32[2]",
        "fewer": "params/image/kernel is float32[4, 3], expected nothing",
    }
    assert wanted[kind] in str(error.value)
    assert steps_of(folder) == [1, 2]
    assert not (tmp_path / "last.damaged").exists()
    assert_identical(opened(folder).restore(state()), state(2))


def test_the_parameters_of_a_checkpoint_are_counted(opened, tmp_path):
    assert checkpoint.newest_of(tmp_path / "none") is None
    saved(opened, tmp_path / "best", 9, 10)
    newest = checkpoint.newest_of(tmp_path / "best")
    assert newest == tmp_path / "best" / "10"
    # The two kernels, and the words; not the optimizer's copy.
    assert checkpoint.parameters_of(newest) == 2 * 4 * 3 + 64 * 64
    (newest / "state" / "_METADATA").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint .*10 is damaged: "):
        checkpoint.parameters_of(newest)
