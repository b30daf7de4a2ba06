"""The folder of an export: whole or not there, and never in the place of other things."""

import json
import re

import pytest

from vse_jax.exporting import folder
from vse_jax.exporting.folder import ExportError


def written(output, text="new"):
    folder.check(output)
    with folder.whole(output, {"format": "orbax"}) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "a").write_text(text)


def names(output):
    return sorted(path.name for path in output.parent.iterdir())


def test_it_says_what_is_in_it(tmp_path):
    output = tmp_path / "made" / "here"
    written(output)
    about = json.loads((output / "export.json").read_text())
    assert about == {"format": "orbax", "files": ["export.json", "inner/a"]}
    assert names(output) == ["here"]
    assert folder.size(output) == 3 + (output / "export.json").stat().st_size


def test_an_earlier_export_is_replaced(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    written(output, "old")
    written(output, "new")
    assert (output / "inner" / "a").read_text() == "new"
    assert names(output) == ["out"]


def test_other_things_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match=re.escape("has other things in it (notes.txt)")):
        written(tmp_path)
    output = tmp_path / "out"
    written(output)
    (output / "inner" / "b").write_text("mine")
    with pytest.raises(ExportError, match=re.escape("has other things in it (inner/b)")):
        written(output)
    with pytest.raises(ExportError, match="is no folder"):
        written(tmp_path / "notes.txt")
    with pytest.raises(ExportError, match=r"notes\.txt is no folder"):
        written(tmp_path / "notes.txt" / "below")


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_what_fails_leaves_the_one_before(tmp_path, error):
    output = tmp_path / "out"
    written(output, "old")

    def fails():
        with folder.whole(output, {}) as partial:
            (partial / "a").write_text("new")
            raise error

    with pytest.raises(type(error)):
        fails()
    assert (output / "inner" / "a").read_text() == "old"
    assert names(output) == ["out"]


def test_a_full_disk_is_told(tmp_path):
    with (
        pytest.raises(ExportError, match="out cannot be written: No space left on device"),
        folder.whole(tmp_path / "out", {}),
    ):
        raise OSError(28, "No space left on device")
    assert names(tmp_path / "out") == []


def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(folder.os, "access", lambda *_: False)
    told = re.escape(f"cannot be written: no permission in {tmp_path}")
    with pytest.raises(ExportError, match=told):
        folder.check(tmp_path / "out")
