"""vse_jax.load, without TensorFlow and with every kind of input."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vse_jax
from vse_jax import evaluation, workdir
from vse_jax.checkpoint import CheckpointError
from vse_jax.data.split import DataError
from vse_jax.workdir import WorkdirError

REPOSITORY = Path(__file__).parents[1]
SENTENCES = ["a red circle", "two blue squares above a star", "", "xyzzy", "a", "a green ring"]
WITHOUT_TENSORFLOW = """
import json, sys
sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None
import numpy as np
import vse_jax
import vse_jax.assembly, vse_jax.encode, vse_jax.evaluators.retrieval
import vse_jax.objectives.infonce, vse_jax.objectives.triplet, vse_jax.train
model = vse_jax.load(sys.argv[1])
images = model.encode_images(json.loads(sys.argv[2]))
texts = model.encode_texts(json.loads(sys.argv[3]))
# Here, as the tests' own checks of shapes would come first.
for wrong in (images[0], images[:, 1:], images[None]):
    for name, arguments in (("images", (wrong, texts)), ("texts", (images, wrong))):
        try:
            model.similarity(*arguments)
        except ValueError as error:
            assert f"{name} is {list(wrong.shape)}; expected embeddings [n, 16]" in str(error)
        else:
            raise AssertionError(wrong.shape)
np.savez(sys.argv[4], images=images, texts=texts, scores=model.similarity(images, texts))
"""


@pytest.fixture(scope="module")
def model(trained):
    return vse_jax.load(trained)


@pytest.fixture(scope="module")
def evaluated(trained, opened):
    """Encoded pictures and captions of the validation split, and the evaluation's embeddings."""
    run, state = opened(trained)
    split = run.dataset.splits["validation"]
    embeddings = evaluation.encode(run, state, "validation")
    return split.read(list(range(len(split.images)))), split.captions, embeddings


def pixels(data):
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


def test_the_embeddings_are_those_of_the_evaluation(model, evaluated):
    pictures, captions, expected = evaluated
    for found, right in (
        (model.encode_images(pictures), expected.images),
        (model.encode_texts(captions), expected.captions),
    ):
        assert found.dtype == np.float32
        assert found.shape == right.shape
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, rtol=1e-5)
        assert np.sum(found * right, axis=1).min() > 0.999
    np.testing.assert_allclose(model.encode_texts(captions), expected.captions, atol=1e-6)


def test_it_works_without_tensorflow(trained, model, evaluated, tmp_path):
    paths = []
    for number, data in enumerate(evaluated[0][:3]):
        paths.append(str(tmp_path / f"{number}.png"))
        Path(paths[-1]).write_bytes(data)
    arguments = [str(trained), json.dumps(paths), json.dumps(SENTENCES), str(tmp_path / "out.npz")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, *arguments],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_allclose(found["images"], model.encode_images(paths), atol=1e-5)
        np.testing.assert_allclose(found["texts"], model.encode_texts(SENTENCES), atol=1e-5)
        np.testing.assert_allclose(found["scores"], found["images"] @ found["texts"].T, atol=1e-5)


def test_paths_bytes_and_arrays_are_the_same_picture(model, evaluated, tmp_path):
    data = evaluated[0][0]
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    # Pixels as they are stored; of any size, beside others of other sizes.
    other = np.zeros((7, 50, 3), np.uint8)
    found = model.encode_images([path, str(path), data, pixels(data), other])
    for row in found[1:4]:
        np.testing.assert_allclose(row, found[0], atol=1e-6)
    assert not np.allclose(found[4], found[0])
    stacked = model.encode_images(np.stack([pixels(data)] * 2))
    np.testing.assert_allclose(stacked, found[:2], atol=1e-6)


def test_any_number_and_any_batch_size_give_the_same(model, evaluated):
    pictures, captions = evaluated[0][:9], evaluated[1][:9]
    for encode, items in ((model.encode_images, pictures), (model.encode_texts, captions)):
        whole = encode(items)
        np.testing.assert_allclose(encode(items, batch_size=4), whole, atol=1e-6)
        np.testing.assert_allclose(encode(items[:1]), whole[:1], atol=1e-6)
        nothing = encode([])
        assert nothing.shape == (0, 16)
        assert nothing.dtype == np.float32


def test_similarity_is_every_picture_with_every_sentence(model):
    rng = np.random.default_rng(0)
    images, texts = (rng.standard_normal((n, 16)).astype(np.float32) for n in (3, 5))
    found = model.similarity(images, texts)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, images @ texts.T, atol=1e-5)
    assert model.similarity(images[:0], texts).shape == (0, 5)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("nowhere.jpg", r"picture 1 \(nowhere\.jpg\) cannot be read: .*No such file"),
        (b"not a picture", r"picture 1 \(bytes\) cannot be read"),
        (np.zeros((4, 4), np.uint8), r"picture 1 is uint8\[4, 4\]; expected uint8 \[h, w, 3\]"),
        (np.zeros((4, 4, 3), np.float32), r"picture 1 is float32\[4, 4, 3\]; expected uint8"),
        (np.zeros((0, 4, 3), np.uint8), r"picture 1 is uint8\[0, 4, 3\]; expected uint8"),
    ],
)
def test_a_picture_that_cannot_be_read_is_named(model, picture, message):
    with pytest.raises(DataError, match=message):
        model.encode_images([np.zeros((4, 4, 3), np.uint8), picture])


def test_sixteen_bits_are_scaled_not_cut_off(model):
    eight = np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)
    encoded = []
    for image in (Image.fromarray(eight), Image.fromarray(eight.astype(np.uint16) * 257)):
        file = io.BytesIO()
        image.save(file, "PNG")
        encoded.append(file.getvalue())
    one, other = model.encode_images(encoded)
    np.testing.assert_allclose(other, one, atol=1e-6)


def test_generators_are_lists_too(model):
    picture = np.zeros((4, 4, 3), np.uint8)
    assert model.encode_images(picture for _ in range(3)).shape == (3, 16)
    np.testing.assert_array_equal(
        model.encode_texts(text for text in SENTENCES), model.encode_texts(SENTENCES)
    )


@pytest.mark.parametrize("items", [{"a"}, {"a": 1}])
def test_what_has_no_order_is_refused(model, items):
    for encode in (model.encode_images, model.encode_texts):
        with pytest.raises(TypeError, match="expected a list"):
            encode(items)


def test_a_sentence_that_is_no_text_is_named(model):
    with pytest.raises(DataError, match="sentence 1 is no Unicode text"):
        model.encode_texts(["a", "\ud800"])


def test_a_picture_alone_is_an_error(model):
    with pytest.raises(TypeError, match="encode_images takes a list"):
        model.encode_images(np.zeros((4, 4, 3), np.uint8))


def test_one_path_or_sentence_instead_of_a_list_is_an_error(model):
    with pytest.raises(TypeError, match="encode_images takes a list"):
        model.encode_images("a.jpg")
    with pytest.raises(TypeError, match="encode_texts takes a list of strings"):
        model.encode_texts("a dog")


@pytest.mark.parametrize("sentences", [["a dog", 3], [b"a dog"]])
def test_sentences_that_are_no_strings_are_an_error(model, sentences):
    with pytest.raises(TypeError):
        model.encode_texts(sentences)


def test_a_batch_of_nothing_is_an_error(model):
    for encode, items in (
        (model.encode_images, [np.zeros((4, 4, 3), np.uint8)]),
        (model.encode_texts, ["a"]),
    ):
        with pytest.raises(ValueError, match="batch_size is 0; it must be at least 1"):
            encode(items, batch_size=0)


def test_what_is_no_workdir_says_so(tmp_path, trained):
    with pytest.raises(WorkdirError, match=r"is no workdir of vse_jax: config\.json"):
        vse_jax.load(tmp_path)
    with pytest.raises(WorkdirError, match=r"is no workdir of vse_jax: config\.json"):
        vse_jax.load(str(tmp_path / "nowhere"))
    for name in (workdir.CONFIG, workdir.TOKENIZER, workdir.ORIGIN):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    with pytest.raises(CheckpointError, match="no usable checkpoint; train the workdir first"):
        vse_jax.load(tmp_path)
