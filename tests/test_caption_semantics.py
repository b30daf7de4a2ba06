"""scripts/caption_semantics.py writes a frozen reader's vectors, which LSEH takes."""

import importlib
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import parity
import pytest
from data.test_precomputed import NAMES, PHOTOS, jsonl, write_tsv
from small_flickr8k import write_flickr8k, write_weights
from test_two_towers import write_bert

from vse_jax import console, experiment
from vse_jax.config import ConfigError
from vse_jax.data import semantics
from vse_jax.data.split import DataError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        yield importlib.import_module("caption_semantics")


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def frozen(preset, minilm, tmp_path):
    """Objective -> the config of frozen towers on a Flickr8k of generated photos."""
    write_flickr8k(tmp_path / "flickr8k")

    def made(objective):
        config = preset("flickr8k", f"frozen,objective={objective}")
        config.data.manual_dir = str(tmp_path / "flickr8k")
        config.data.data_dir = str(tmp_path / "prepared")
        config.data.image_size = 32
        config.model.image.weights = str(tmp_path / "weights")
        config.model.text.weights = str(minilm)
        config.model.dimension = config.model.hidden = 8
        config.evaluate.batch_size = 8
        return config

    return made


def vectors(folder, captions):
    """Of the model of transformers: the means over the words, of length 1."""
    library = parity.transformers()
    words = library.PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json")
    words.add_special_tokens({"pad_token": "[PAD]"})
    given = words(captions, padding=True, return_tensors="pt")
    states = library.BertModel.from_pretrained(folder).eval()(
        given["input_ids"], attention_mask=given["attention_mask"]
    )[0]
    mask = given["attention_mask"][..., None]
    mean = ((states * mask).sum(1) / mask.sum(1)).detach().numpy()
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


@pytest.mark.slow
@pytest.mark.torch
def test_semantics_of_a_pretrained_reader(script, frozen, minilm, tmp_path, caplog):
    """The file holds its sentence vectors, and LSEH takes them; no picture is looked at for it."""
    caplog.set_level(logging.INFO, "vse_jax")
    path = tmp_path / "minilm.npz"
    # The weights of the image side are not there yet.
    script.write(frozen("infonce"), path)
    assert "computing the features of 60 captions, once" in caplog.text
    assert "pictures, once" not in caplog.text
    caplog.clear()

    write_weights(tmp_path / "weights", seed=0)
    lseh = frozen("lseh")
    lseh.data.semantics = str(path)
    run = experiment.prepare(lseh, tmp_path / "run", training=True)
    # A run finds what the script has read.
    assert "computing the features of 60 captions" not in caplog.text
    expected = vectors(minilm, run.dataset.splits["train"].captions)
    np.testing.assert_allclose(run.examples["train"].semantics, expected, atol=1e-5)


@pytest.mark.torch
def test_captions_of_features_that_others_made(script, preset, minilm, tmp_path):
    """As runs have it, `data.features` makes the data set of a caption file "precomputed"."""
    config = preset("custom", f"{jsonl(tmp_path, PHOTOS)},frozen")
    config.data.features = str(write_tsv(tmp_path, NAMES))
    config.data.data_dir = str(tmp_path / "prepared")
    config.model.text.weights = str(minilm)
    script.write(config, tmp_path / "own.npz")
    assert config.data.dataset == "custom"
    captions = ["0 of 0", "0 of 1", "1 of 1", "0 of 2"]
    found = semantics.from_file(tmp_path / "own.npz", captions)
    np.testing.assert_allclose(found, vectors(minilm, captions), atol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize("rate", [0.1, None])
def test_a_reader_that_is_trained_is_refused(script, frozen, rate, tmp_path):
    """Whole or in part."""
    config = frozen("infonce")
    config.train.freeze = (("image/backbone/.*", None), ("text/reader/.*", rate))
    if rate is None:
        config.train.freeze = (("text/reader/words", 0.1), *config.train.freeze)
    with pytest.raises(ConfigError, match="are a frozen reader's, a vector each: take a config"):
        script.write(config, tmp_path / "own.npz")
    assert not (tmp_path / "own.npz").exists()


@pytest.mark.parametrize("choice", ["vsepp", "vse_infinity", "vse_infinity,text=bert"])
def test_a_reader_without_a_vector_each_is_refused(script, preset, choice, tmp_path):
    """Before its weights are fetched."""
    with pytest.raises(ConfigError, match=r"take a config such as .*text\.features' at 'pooled'"):
        script.write(preset("flickr8k", choice), tmp_path / "own.npz")


def test_what_else_is_refused(script, preset, tmp_path):
    config = preset("flickr8k", "frozen")
    config.train.start_from = str(tmp_path)
    with pytest.raises(ConfigError, match=r"'train\.start_from' is set, .*: unset it"):
        script.write(config, tmp_path / "own.npz")
    config.train.start_from = None
    config.data.max_tokens = 0
    with pytest.raises(ConfigError, match=r"'data\.max_tokens' is 0"):
        script.write(config, tmp_path / "own.npz")


FLICKR8K = f"--config={ROOT}/configs/flickr8k.py:frozen"


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], r"python scripts/caption_semantics(?s:.*)needs --config and --output=FILE\.npz"),
        ([FLICKR8K], r"needs --config and --output=FILE\.npz$"),
        ([FLICKR8K, "--output=own.npy"], r"needs --config and --output=FILE\.npz"),
        (["--output=own.npz"], "needs --config and"),
        ([FLICKR8K, "--output=own.npz", "more"], r"and knows no more$"),
        ([FLICKR8K, "--output=own.npz", "--grid=4"], "^caption_semantics: Unknown .* 'grid'"),
        (
            [FLICKR8K, "--output=own.npz", "--config.data.manual=x"],
            r"^caption_semantics: unknown config field 'data\.manual'; did you mean",
        ),
        (
            [f"--config={ROOT}/configs/flickr8k.py:nope", "--output=own.npz"],
            "^caption_semantics: .*has no system 'nope'",
        ),
        (
            [f"--config={ROOT}/configs/flickr8k.py", "--output=own.npz"],
            "^caption_semantics: the semantics of captions are a frozen reader's",
        ),
        (
            [FLICKR8K, "--output=own.npz", "--config.model.text.weights=./nowhere"],
            r"^caption_semantics: weights '\./nowhere': no such file or folder$",
        ),
    ],
)
def test_what_the_command_line_lacks(script, monkeypatch, arguments, told):
    monkeypatch.setattr(console, "set_up_logging", lambda: None)
    monkeypatch.setattr(sys, "argv", ["caption_semantics", *arguments])
    with pytest.raises(SystemExit, match=told) as ended:
        script.main(arguments)
    assert told.startswith("^") <= (str(ended.value).count("\n") == 0)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_the_command_line(script, monkeypatch, tmp_path):
    """Flags reach the config, a home folder is understood, errors of the work are told."""
    monkeypatch.setattr(console, "set_up_logging", lambda: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    given = []
    monkeypatch.setattr(script, "write", lambda *both: given.append(both))
    arguments = [FLICKR8K, "--config.data.max_tokens=7", "--output=~/own.npz"]
    monkeypatch.setattr(sys, "argv", ["caption_semantics", *arguments])
    script.main(arguments)
    ((config, output),) = given
    assert (config.data.max_tokens, output) == (7, tmp_path / "own.npz")

    def failing(*_):
        raise DataError("own.npz: no room")

    monkeypatch.setattr(script, "write", failing)
    with pytest.raises(SystemExit, match=r"^caption_semantics: own\.npz: no room$"):
        script.main(arguments)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["caption_semantics", "extract_features"])
def test_a_script_runs_from_anywhere(name, tmp_path):
    """What lies beside it is found."""
    command = [sys.executable, ROOT / "scripts" / f"{name}.py", "--output=own.npz"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith(f"{name}: needs --config and --output")
    assert "Traceback" not in ended.stderr


def test_an_output_without_room_names_its_path(tmp_path):
    (tmp_path / "file").touch()
    told = r"cannot write .*file/own\.npz: .*; give a path with room and permission to write$"
    with pytest.raises(DataError, match=told):
        semantics.to_file(tmp_path / "file" / "own.npz", ["a"], np.ones((1, 2)))
