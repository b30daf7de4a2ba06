"""Judgements in the genuine formats, and correlations against their definitions."""

import numpy as np
import pytest
from scipy import stats

from vse_jax.evaluators import judgement
from vse_jax.evaluators.blocks import EvaluationError
from vse_jax.evaluators.judgement import Judgement


def test_expert_grades(tmp_path):
    path = tmp_path / "ExpertAnnotations.txt"
    path.write_text("a.jpg\tb.jpg#2\t1\t1\t2\na.jpg\ta.jpg#0\t4\t3\t4\n\n")
    assert judgement.read_expert(path) == [
        Judgement("a.jpg", "b.jpg#2", 4 / 3),
        Judgement("a.jpg", "a.jpg#0", 11 / 3),
    ]


def test_crowdflower_shares(tmp_path):
    path = tmp_path / "CrowdFlowerAnnotations.txt"
    path.write_text("a.jpg\tb.jpg#2\t0.3333333333\t1\t2\na.jpg\tc.jpg#4\t0\t0\t3\n")
    found = judgement.read_crowdflower(path)
    assert [(j.caption, j.relevance) for j in found] == [("b.jpg#2", 0.3333333333), ("c.jpg#4", 0)]


GRADES = (judgement.read_expert, "three grades from 1 to 4, with")
SHARES = (judgement.read_crowdflower, "a share from 0 to 1 and the counts of yes and no, with")


@pytest.mark.parametrize(
    ("reader", "line"),
    [
        (GRADES, "a.jpg\tb.jpg#2\t1\t1"), (GRADES, "a.jpg\tb.jpg#2\t1\t1\t5"),
        (GRADES, "a.jpg\tb.jpg\t1\t1\t1"), (GRADES, "a.jpg b.jpg#2 1 1 1"),
        (GRADES, "a.jpg\tb.jpg#\t1\t1\t1"), (GRADES, "a.jpg\t#2\t1\t1\t1"),
        (GRADES, "a.jpg\tb.jpg#2\t1\t1\tx"), (GRADES, "\tb.jpg#2\t1\t1\t1"),
        (GRADES, "a.jpg\tb.jpg#2\t1\t1\t1\t1"),
        # A share that is not that of the counts, as in lines of the experts.
        (SHARES, "a.jpg\tb.jpg#2\t1\t0\t3"), (SHARES, "a.jpg\tb.jpg#2\t1\t0\t0"),
        (SHARES, "a.jpg\tb.jpg#2\t1\t1\t3"), (SHARES, "a.jpg\tb.jpg#2\t0.5\t-1\t-1"),
        (SHARES, "a.jpg\tb.jpg#2\t0.5\t1"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path, reader, line):
    read, expected = reader
    path = tmp_path / "judged.txt"
    path.write_text(f"\n{line}\n")
    with pytest.raises(EvaluationError, match=rf"judged\.txt:2: .*{expected}"):
        read(path)


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    path = tmp_path / "expert.txt"
    path.write_text("a.jpg\tb.jpg#2\t1\t1\t2\n", encoding="utf-8-sig")
    assert judgement.read_expert(path)[0].image == "a.jpg"


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe"])
def test_a_file_without_judgements(tmp_path, content):
    path = tmp_path / "crowd.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EvaluationError, match=r"crowd\.txt (cannot be read|has no judgements)"):
        judgement.read_crowdflower(path)


def ranks(values):
    """Average ranks, by counting."""
    return np.array([np.sum(values < v) + (np.sum(values == v) + 1) / 2 for v in values])


def test_correlations_are_those_of_their_definitions():
    rng = np.random.default_rng(0)
    relevance = rng.integers(1, 5, 40).astype(np.float64)
    distances = -relevance + rng.normal(0, 1.5, 40)
    found = judgement.agreement(distances, relevance, samples=200)
    a, b = ranks(-distances), ranks(relevance)
    assert found["spearman"] == pytest.approx(np.corrcoef(a, b)[0, 1])
    upper = np.triu_indices(40, 1)
    one, other = (np.sign(v[:, None] - v)[upper] for v in (-distances, relevance))
    tau = np.sum(one * other) / np.sqrt(np.sum(one != 0) * np.sum(other != 0))
    assert found["kendall"] == pytest.approx(tau)
    assert found["pairs"] == 40
    for name in ("spearman", "kendall"):
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]
    assert found == judgement.agreement(distances, relevance, samples=200)


def test_intervals_are_those_of_resampled_pairs():
    """Of values that are often alike, and all alike in some samples."""
    rng = np.random.default_rng(3)
    distances, relevance = rng.integers(0, 3, 6) / 3, np.array([0, 0, 0, 0, 0, 1.0])
    found = judgement.agreement(distances, relevance, samples=30, seed=5)
    rng = np.random.default_rng(5)
    rows = [rng.integers(0, 6, 6) for _ in range(30)]
    alike = [np.ptp(distances[row]) == 0 or np.ptp(relevance[row]) == 0 for row in rows]
    assert 0 < sum(alike) < 30
    for name, measure in (("spearman", stats.spearmanr), ("kendall", stats.kendalltau)):
        drawn = [
            measure(-distances[row], relevance[row])[0]
            for row, same in zip(rows, alike, strict=True) if not same
        ]  # fmt: skip
        low, high = np.percentile(drawn, [2.5, 97.5])
        assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx((low, high))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Correlation 0.6 of normal pairs has Spearman 6/pi asin(0.3)."""
    truth, rng, inside = 6 / np.pi * np.arcsin(0.3), np.random.default_rng(1), 0
    for seed in range(100):
        x, noise = rng.normal(size=(2, 80))
        found = judgement.agreement(-x, 0.6 * x + 0.8 * noise, samples=100, seed=seed)
        inside += found["spearman_low"] < truth < found["spearman_high"]
    assert 85 <= inside <= 100


@pytest.mark.parametrize(
    ("distances", "relevance", "message"),
    [
        ([1.0], [2.0], "1 judged pairs"),
        ([1.0, np.nan], [1.0, 2.0], "distances of judged pairs are not finite"),
        ([1.0, 2.0], [3.0, 3.0], "relevance of all judged pairs are the same"),
    ],
)
def test_what_has_no_correlation(distances, relevance, message):
    with pytest.raises(EvaluationError, match=message):
        judgement.agreement(np.array(distances), np.array(relevance))
