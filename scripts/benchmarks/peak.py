"""What the machine can do: float32 matrix products and copies."""

import contextlib
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.timing import Options, Row, alternately, rate

SIDE = 4096
COPIED = 2**26  # float32 numbers: 256 MiB


def run(options: Options) -> list[Row]:
    """The best float32 product of XLA and PyTorch, and the bandwidth of a copy."""
    return measure(options.rounds or 7, SIDE, COPIED)


@functools.cache
def gflops(side: int = SIDE, rounds: int = 5, dtype: str = "float32") -> float:
    """GFLOP/s of the faster of XLA's and PyTorch's product of numbers of `dtype`, at its best.

    FLOPs of a product of two n x n matrices: 2 n^3.
    """
    timings = alternately(_products(side, dtype), rounds, warmup=1)
    return max(2e-9 * side**3 / min(timing.seconds) for timing in timings.values())


def measure(rounds: int, side: int, copied: int) -> list[Row]:
    """Rows of products of side x side matrices and of copies of `copied` numbers."""
    products = alternately(_products(side), rounds, warmup=1)
    in_turns = alternately(copies(copied), rounds, warmup=1)
    moved = 2 * 4e-9 * copied  # read and written
    rows = [
        rate("peak", f"float32 {side}^3 product, {name}", timing, 2e-9 * side**3, "GFLOP/s")
        for name, timing in products.items()
    ]
    rows += [
        rate("peak", f"copy of {4 * copied / 2**20:.0f} MiB, {name}", timing, moved, "GB/s",
             note="read + written")
        for name, timing in in_turns.items()
    ]  # fmt: skip
    return rows


def torch_device() -> str:
    """Where PyTorch computes: on the kind of device that JAX uses."""
    import torch

    return "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"


def torch_wait() -> None:
    """Waits until PyTorch's device has finished."""
    import torch

    if torch_device() == "cuda":
        torch.cuda.synchronize()


def _products(side: int, dtype: str = "float32") -> dict[str, Callable[[int], object]]:
    x = jax.random.normal(jax.random.key(0), (side, side)).astype(dtype)
    product = jax.jit(functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST))
    work: dict[str, Callable[[int], object]] = {"XLA": lambda _: product(x, x).block_until_ready()}
    with contextlib.suppress(ImportError):
        import torch

        y = torch.randn(side, side, device=torch_device()).to(getattr(torch, dtype))
        work["PyTorch"] = lambda _: (y @ y, torch_wait())
    return work


def copies(count: int) -> dict[str, Callable[[int], object]]:
    """Reads and writes `count` float32 numbers once, by XLA and by PyTorch where it is there."""
    # A sum with a scalar, for XLA may drop a plain copy; in place, for new memory costs more.
    held = [jnp.zeros(count)]
    add = jax.jit(lambda x, a: x + a, donate_argnums=0)

    def copy(_: int) -> None:
        held.append(add(held.pop(), jnp.float32(1)).block_until_ready())

    work: dict[str, Callable[[int], object]] = {"XLA": copy}
    with contextlib.suppress(ImportError):
        import torch

        source = torch.zeros(count, device=torch_device())
        target = torch.zeros_like(source)
        work["PyTorch"] = lambda _: (target.copy_(source), torch_wait())
    return work
