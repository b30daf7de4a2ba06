"""Memory and time of the hardest negatives with gradients, chunked and dense.

`run` measures each size in a process of its own, which is this module:
python -m benchmarks.mining {chunked,dense,compare} PAIRS WIDTH CHUNK ROUNDS.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from benchmarks.memory import in_process, peak, start_peak
from benchmarks.timing import Options, Row, Timing, alternately, available_memory, ratio
from vse_jax.losses.blocks import Rows
from vse_jax.losses.triplet import hardest_hinge
from vse_jax.similarity import dot

WIDTH, CHUNK, MARGIN = 1024, 4096, 0.2
# Score-shaped arrays alive at once in the dense computation with gradients, at most.
DENSE_MATRICES = 6
# Dense is for comparison: beyond this many pairs it would take minutes more.
DENSE_MOST = 16384

Loss = Callable[[Array, Array, Array], Float[Array, ""]]


def run(options: Options) -> list[Row]:
    """Rows of every size asked for."""
    return [
        row for size in options.sizes for row in measure(size, WIDTH, CHUNK, options.rounds or 3)
    ]


def measure(pairs: int, width: int, chunk: int, rounds: int) -> list[Row]:
    """Rows of one number of pairs, each measured in a fresh process."""
    needed = DENSE_MATRICES * 4.0 * pairs**2
    fits = pairs <= DENSE_MOST and needed < 0.7 * available_memory()
    # Dozens of seconds a time: once is enough.
    rounds = 1 if pairs > DENSE_MOST else rounds
    rows = []
    for kind in ("chunked", "dense") if fits else ("chunked",):
        found = in_process("benchmarks.mining", kind, pairs, width, chunk, rounds)
        case = f"B={pairs} {kind}"
        seconds = Timing(tuple(found["seconds"]))
        temporary = found["temporary"] / 2**20
        rows += [
            Row("mining", f"{case}: compiled temp + output", temporary, "MiB",
                note=f"{1024 * temporary / pairs:.1f} KiB a pair"),
            Row("mining", f"{case}: measured peak above inputs", found["peak"] / 2**20, "MiB",
                note=f"{found['peak'] / 1024 / pairs:.1f} KiB a pair; {found['how']}"),
            Row("mining", f"{case}: time", seconds.median, "s", min(seconds.seconds),
                max(seconds.seconds), note=f"both ways, with gradients, width {width}"),
        ]  # fmt: skip
    if fits:
        found = in_process("benchmarks.mining", "compare", pairs, width, chunk, rounds)
        chunked, dense = (Timing(tuple(found[name])) for name in ("chunked", "dense"))
        quantity = f"B={pairs} chunked / dense"
        worst = max(found["loss"], found["gradient"])
        rows += [
            ratio("mining", f"{quantity}: time", chunked, dense),
            Row("mining", f"{quantity}: largest difference", worst, "", wanted="<= 1e-4",
                met=worst <= 1e-4, note="relative, of loss and gradients"),
        ]  # fmt: skip
    return rows


def chunked(chunk: int) -> Loss:
    """The project's loss of both directions, on one device."""

    def loss(
        images: Float[Array, "b d"], texts: Float[Array, "b d"], ids: Int[Array, " b"]
    ) -> Float[Array, ""]:
        everything = jnp.ones(ids.shape, bool)
        positive = dot.rows(images, texts)
        pictures, captions = (Rows(vectors, ids, everything) for vectors in (images, texts))
        return (
            hardest_hinge(dot, pictures, captions, positive, MARGIN, chunk)[0]
            + hardest_hinge(dot, captions, pictures, positive, MARGIN, chunk)[0]
        )

    return loss


def dense(
    images: Float[Array, "b d"], texts: Float[Array, "b d"], ids: Int[Array, " b"]
) -> Float[Array, ""]:
    """The same loss as its formula says it, by way of all scores."""
    scores = dot.matrix(images, texts)
    positive = jnp.diagonal(scores)
    others = jnp.where(ids[:, None] == ids[None, :], -jnp.inf, scores)
    to_texts = jnp.maximum(MARGIN + jnp.max(others, axis=1) - positive, 0.0)
    to_images = jnp.maximum(MARGIN + jnp.max(others, axis=0) - positive, 0.0)
    return jnp.sum(to_texts) + jnp.sum(to_images)


def pairs_of(pairs: int, width: int) -> tuple[Array, Array, Array]:
    """Matching unit vectors in noise, five captions a picture: (images, texts, ids)."""
    rng = np.random.default_rng(0)
    ids = np.arange(pairs, dtype=np.int32) // 5
    centers = rng.standard_normal((ids[-1] + 1, width), np.float32)

    def near() -> Array:
        x = centers[ids] + 2.0 * rng.standard_normal((pairs, width), np.float32)
        return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))

    return near(), near(), jnp.asarray(ids)


def compiled(loss: Loss, arguments: tuple[Array, Array, Array]) -> Any:
    """The compiled value and gradients by images and texts."""
    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arguments).compile()


def footprint(loss: Loss, pairs: int, width: int, rounds: int) -> dict[str, Any]:
    """Seconds of each round, compiled temp + output bytes, and the measured peak of bytes."""
    arguments = pairs_of(pairs, width)
    function = compiled(loss, arguments)
    analysis = function.memory_analysis()
    before = start_peak()

    def work(_: int) -> None:
        jax.block_until_ready(function(*arguments))

    found = alternately({"work": work}, rounds, warmup=0 if rounds == 1 else 1)
    most, how = peak()
    return {
        "seconds": found["work"].seconds,
        "temporary": analysis.temp_size_in_bytes + analysis.output_size_in_bytes,
        "peak": most - before,
        "how": how,
    }


def compare(pairs: int, width: int, chunk: int, rounds: int) -> dict[str, Any]:
    """Relative differences of loss and gradients, chunked to dense, and seconds of both."""
    arguments = pairs_of(pairs, width)
    functions = [compiled(chunked(chunk), arguments), compiled(dense, arguments)]
    (loss, gradients), (wanted, wanted_gradients) = (f(*arguments) for f in functions)
    worst = max(
        float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
        for a, b in zip(gradients, wanted_gradients, strict=True)
    )
    del gradients, wanted_gradients
    timings = alternately(
        {
            name: lambda _, function=function: jax.block_until_ready(function(*arguments))
            for name, function in zip(("chunked", "dense"), functions, strict=True)
        },
        rounds,
        warmup=0,
    )
    difference = abs(float(loss) - float(wanted)) / abs(float(wanted))
    seconds = {name: timing.seconds for name, timing in timings.items()}
    return {"loss": difference, "gradient": worst, **seconds}


def main(kind: str, pairs: int, width: int, chunk: int, rounds: int) -> None:
    """Prints what was found as one line of JSON."""
    if kind == "compare":
        found = compare(pairs, width, chunk, rounds)
    else:
        loss = dense if kind == "dense" else chunked(chunk)
        found = footprint(loss, pairs, width, rounds)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
