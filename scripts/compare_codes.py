"""Retrieval from learned codes beside FAISS's PQ and OPQ of the same bytes.

    python scripts/compare_codes.py WORKDIR [WORKDIR ...] [--split=test] [--output=FILE]

Each workdir holds a run with a quantizer (configs/...:leap); over several, such as the seeds of one
row of a sweep, the last table has means and deviations. FAISS's quantizers are trained
afterwards on the same run's embeddings of the training split: of every picture and every caption
once, and of the pairs, in which a picture comes as often as it has captions, which is how learned
codes meet them. All codes are searched by the same asymmetric distances, under the protocol of the
data set. The column "nearest" is the share of the ten pictures nearest to each caption of the
split, among those of it and of the training split, that codes find. Needs the extra [bench].
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

try:
    import faiss
except ImportError:
    sys.exit("compare_codes: needs FAISS: pip install faiss-cpu, or the extra [bench]")

from vse_jax import evaluation, experiment, train, training_objective, workdir
from vse_jax.codebook import Codebook, quantize
from vse_jax.errors import USER_ERRORS
from vse_jax.evaluators import codes
from vse_jax.index import exact, learned_codes
from vse_jax.similarity import negative_euclidean

COLUMNS = ("i2t/R@1", "i2t/R@10", "t2i/R@1", "t2i/R@10", "nearest", "rsum")
NEAREST = 10


class CompareError(Exception):
    """A workdir without a quantizer, or a data set without the split."""


def main(arguments: Sequence[str]) -> None:
    """Prints a table for each workdir, and one over them all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("workdir", nargs="+", type=Path)
    parser.add_argument("--split", default="test", help="validation for choices, test for reports")
    parser.add_argument("--output", type=Path, help="the table as JSON")
    flags = parser.parse_args(arguments)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for folder in flags.workdir:
        # OPQ takes minutes: what is measured is shown and kept at once.
        rows = found[str(folder)] = compare(folder, flags.split)
        sys.stdout.write(f"{folder}, {flags.split}\n\n{table([rows])}\n")
        sys.stdout.flush()
        if flags.output is not None:
            workdir.write_text(flags.output, json.dumps(found, indent=2))
    runs = list(found.values())
    if len(runs) > 1 and all(run.keys() == runs[0].keys() for run in runs):
        sys.stdout.write(f"all {len(runs)} workdirs, {flags.split}\n\n{table(runs)}\n")


def compare(folder: Path, name: str) -> dict[str, dict[str, float]]:
    """Metrics of a split from the embeddings, from the learned codes, and from FAISS's.

    Raises:
      CompareError: there is nothing to compare.
    """
    run = experiment.prepare(workdir.read_config(folder), folder)
    state = evaluation.best_state(run, train.initial_state(run))
    codebook = training_objective.codebook_of(state.objective_state)
    if codebook is None:
        raise CompareError(f"{folder}: the run has no quantizer: objective.quantizer.weight is 0")
    if name not in run.dataset.splits:
        raise CompareError(f"{folder}: the data have no split {name!r}")
    split = run.dataset.splits[name]
    protocol = evaluation.protocol_of(run.dataset, name)
    embeddings = evaluation.encode(run, state, name)
    seen = evaluation.encode(run, state, "train")
    parts, size, _ = codebook.centroids.shape
    rows = {"float32": evaluation.measure(split, embeddings, protocol) | {"nearest": 100.0}}
    pictures, captions = np.concatenate([seen.images, embeddings.images]), embeddings.captions
    true = exact.search(negative_euclidean, captions, [(0, pictures)], NEAREST).numbers
    books = {"learned": codebook}
    for among, own in (
        ("", seen.images),
        (" on pairs", seen.images[run.dataset.splits["train"].caption_image]),
    ):
        for method, book in trained(np.concatenate([own, seen.captions]), parts, size):
            books[f"{method}{among}"] = book
    for title, book in books.items():
        metrics = codes.evaluate(
            protocol, embeddings.images, embeddings.captions, split.caption_image, book
        )
        kept = "codes/asymmetric/"
        rows[f"{title}, {parts} bytes"] = {
            key.removeprefix(kept): value for key, value in metrics.items() if key.startswith(kept)
        } | {"nearest": found_again(true, book, captions, pictures)}
    return rows


def found_again(
    true: np.ndarray, book: Codebook, captions: np.ndarray, pictures: np.ndarray
) -> float:
    """Percent of the nearest pictures of each caption that are among the nearest by codes."""
    items = [(0, quantize(pictures, book))]
    found = learned_codes.search(book, captions, items, true.shape[1]).numbers
    same = [len({*one} & {*two}) for one, two in zip(true.tolist(), found.tolist(), strict=True)]
    return 100 * float(np.mean(same)) / true.shape[1]


def trained(embeddings: np.ndarray, parts: int, size: int) -> list[tuple[str, Codebook]]:
    """FAISS's PQ and OPQ by name.

    Raises:
      CompareError: FAISS cannot train so many codes on so many embeddings.
    """
    if size & (size - 1) or size > len(embeddings):
        raise CompareError(
            f"objective.quantizer.codes is {size}; FAISS takes powers of two, of at most the "
            f"{len(embeddings)} training embeddings"
        )
    width, bits = embeddings.shape[1], size.bit_length() - 1
    turn, inner = faiss.OPQMatrix(width, parts), faiss.ProductQuantizer(width, parts, bits)
    turn.pq = inner  # its own has 256 codes a part
    turn.train(embeddings)
    found = []
    for name, rotation in (("FAISS PQ", None), ("FAISS OPQ", faiss.vector_to_array(turn.A))):
        if rotation is not None:
            rotation = np.ascontiguousarray(rotation.reshape(width, width).T)
        quantizer = faiss.ProductQuantizer(width, parts, bits)
        quantizer.train(embeddings if rotation is None else embeddings @ rotation)
        centroids = faiss.vector_to_array(quantizer.centroids)
        found.append((name, Codebook(centroids.reshape(parts, size, -1), rotation)))
    return found


def table(runs: Sequence[dict[str, dict[str, float]]]) -> str:
    """The rows of one run in Markdown, or means and sample deviations of the same rows of several.

    The last column is the share of the rsum of float32 that is lost.
    """
    lines = ["| | " + " | ".join(COLUMNS) + " | lost |", "|---" * (2 + len(COLUMNS)) + "|"]
    for name in runs[0]:
        cells = [_cell([run[name][column] for run in runs]) for column in COLUMNS]
        lost = _cell([100 * (1 - run[name]["rsum"] / run["float32"]["rsum"]) for run in runs])
        lines.append(f"| {name} | " + " | ".join([*cells, f"{lost}%"]) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (CompareError, *USER_ERRORS, OSError) as error:
        sys.stderr.write(f"compare_codes: {error}\n")
        sys.exit(1)
