"""scripts/compare_codes.py: FAISS's quantizers in our evaluator do what they do in FAISS."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vse_jax
from vse_jax import evaluation
from vse_jax.codebook import Codebook, quantize
from vse_jax.evaluators import codes

faiss = pytest.importorskip("faiss", reason="needs the extra [bench]")
SCRIPT = Path(__file__).parents[1] / "scripts" / "compare_codes.py"


@pytest.fixture(scope="module")
def compare_codes():
    spec = importlib.util.spec_from_file_location("compare_codes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_codebooks_of_faiss_find_what_faiss_finds(compare_codes):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(800, 16)).astype(np.float32) @ rng.normal(size=(16, 16))
    rows = rows.astype(np.float32)
    plain, rotated = compare_codes.trained(rows, 4, 16)
    assert [plain[0], rotated[0]] == ["FAISS PQ", "FAISS OPQ"]
    errors = []
    for name, codebook in (plain, rotated):
        turned = rows if codebook.rotation is None else rows @ codebook.rotation
        coded = quantize(rows, codebook)
        scores = codes.asymmetric(*jax.tree.map(jnp.asarray, (codebook, rows[:5], coded)))
        quantizer = faiss.ProductQuantizer(16, 4, 4)
        faiss.copy_array_to_vector(codebook.centroids.ravel(), quantizer.centroids)
        found = quantizer.decode(quantizer.compute_codes(turned))
        if codebook.rotation is not None:
            found = found @ codebook.rotation.T
        expected = np.linalg.norm(rows[:5, None] - found[None], axis=2)
        np.testing.assert_allclose(-scores, expected, rtol=1e-3, err_msg=name)
        errors.append(np.mean(np.square(found - rows)))
    # What a rotation is for.
    assert errors[1] < errors[0] < np.var(rows)


def test_a_workdir_is_compared_with_faiss_trained_in_both_ways(compare_codes, trained_leap, opened):
    rows = compare_codes.compare(trained_leap, "validation")
    faiss_rows = ["FAISS PQ", "FAISS OPQ", "FAISS PQ on pairs", "FAISS OPQ on pairs"]
    names = ["learned", *faiss_rows]
    assert list(rows) == ["float32", *(f"{name}, 4 bytes" for name in names)]
    assert all(0 < metrics["rsum"] <= 600 for metrics in rows.values())
    run, state = opened(trained_leap)
    embeddings = evaluation.encode(run, state, "validation")
    owners = run.dataset.splits["validation"].caption_image
    learned = codes.evaluate(
        "all_16", embeddings.images, embeddings.captions, owners,
        vse_jax.load(trained_leap).codebook,
    )  # fmt: skip
    assert rows["learned, 4 bytes"]["rsum"] == learned["codes/asymmetric/rsum"]
    assert all(0 < metrics["nearest"] <= 100 for metrics in rows.values())


def test_the_share_of_the_nearest_that_is_found_again(compare_codes):
    """All by codes that are the items themselves; not the one whose codes are another's."""
    pictures = np.repeat(np.arange(4, dtype=np.float32)[:, None], 2, axis=1)
    captions, true = pictures + 0.01, np.arange(4)[:, None]
    book = Codebook(np.repeat(pictures[None, :, :1], 2, axis=0))
    assert compare_codes.found_again(true, book, captions, pictures) == 100
    blind = Codebook(np.where(book.centroids == 1, 0, book.centroids))
    assert compare_codes.found_again(true, blind, captions, pictures) == 75


@pytest.mark.parametrize("size", [6, 64])
def test_codes_that_faiss_cannot_train(compare_codes, size):
    rows = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    with pytest.raises(compare_codes.CompareError, match=f"codes is {size}; FAISS takes powers"):
        compare_codes.trained(rows, 2, size)


def test_workdirs_that_cannot_be_compared(compare_codes, trained, trained_leap):
    with pytest.raises(compare_codes.CompareError, match="the run has no quantizer"):
        compare_codes.compare(trained, "test")
    with pytest.raises(compare_codes.CompareError, match="the data have no split 'dev'"):
        compare_codes.compare(trained_leap, "dev")


def test_the_table_says_what_is_lost(compare_codes):
    metrics = dict.fromkeys(compare_codes.COLUMNS, 10.0)
    rows = {"float32": metrics | {"rsum": 200.0}, "learned, 4 bytes": metrics | {"rsum": 195.0}}
    assert compare_codes.table([rows]).splitlines()[2:] == [
        "| float32 | 10.0 | 10.0 | 10.0 | 10.0 | 10.0 | 200.0 | 0.0% |",
        "| learned, 4 bytes | 10.0 | 10.0 | 10.0 | 10.0 | 10.0 | 195.0 | 2.5% |",
    ]
    others = {"float32": metrics | {"rsum": 200.0}, "learned, 4 bytes": metrics | {"rsum": 193.0}}
    assert compare_codes.table([rows, others]).splitlines()[3] == (
        "| learned, 4 bytes | 10.0 ± 0.0 | 10.0 ± 0.0 | 10.0 ± 0.0 | 10.0 ± 0.0 | 10.0 ± 0.0 | "
        "194.0 ± 1.4 | 3.0 ± 0.7% |"
    )
