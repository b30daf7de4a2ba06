import errno
import os

import pytest

from vse_jax.data import whole_file
from vse_jax.data.split import DataError


def write(path, content):
    whole_file.write(path, lambda file: file.write(content))


def test_a_full_disk_leaves_the_old_file_and_nothing_half_written(tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    write(path, b"[1]")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"value\.json: No space left on device; data\.data_dir"):
        write(path, b"[2]")
    assert path.read_bytes() == b"[1]"
    assert list(tmp_path.iterdir()) == [path]


def test_what_to_do_is_told_where_the_file_goes_elsewhere(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError) as raised:
        whole_file.write(tmp_path / "file" / "own.npz", lambda _: None, "take another --output")
    assert str(raised.value).endswith("; take another --output")
    assert "data_dir" not in str(raised.value)


def test_an_interruption_leaves_nothing_half_written(tmp_path):
    def interrupted(file):
        file.write(b"[1")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        whole_file.write(tmp_path / "value.json", interrupted)
    assert not list(tmp_path.iterdir())


def test_two_at_once_do_not_disturb_each_other(tmp_path):
    """The one that begins second finishes first."""
    path = tmp_path / "value.json"

    def slow(file):
        file.write(b"[")
        write(path, b"[2]")
        assert path.read_bytes() == b"[2]"
        file.write(b"1]")

    whole_file.write(path, slow)
    assert path.read_bytes() == b"[1]"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_it_may_be_read_by_whom_the_umask_says(tmp_path, mask):
    before = os.umask(mask)
    try:
        write(tmp_path / "value.json", b"[1]")
    finally:
        os.umask(before)
    assert (tmp_path / "value.json").stat().st_mode & 0o777 == 0o666 & ~mask


def test_no_permission_names_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*: (Not a directory|File exists)"):
        write(tmp_path / "file" / "value.json", b"")
