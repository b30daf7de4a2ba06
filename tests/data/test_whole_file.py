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


def test_no_permission_names_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*: (Not a directory|File exists)"):
        write(tmp_path / "file" / "value.json", b"")
