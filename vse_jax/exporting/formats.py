"""Functions as files: StableHLO by jax.export, ONNX by jax2onnx; each is run before it is kept."""

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from vse_jax import parallel
from vse_jax.exporting import use
from vse_jax.exporting.folder import ExportError
from vse_jax.exporting.functions import Function, example
from vse_jax.exporting.straight import straightened

log = logging.getLogger(__name__)

PLATFORMS = ("cpu", "cuda", "tpu")
# How far results may be from the model's own, as a share of the largest: with sums in another order
# float32 keeps six digits, bfloat16 two.
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}
# What the files are tried with for the letters of shapes.
_TRIED = {"a": 2, "b": 3, "r": 5}


def write_jax(function: Function, path: Path, precision: str) -> None:
    """A function as StableHLO for every platform, its parameters inside.

    Raises:
      ExportError: it cannot be exported, or does something else then.
    """
    try:
        exported = jax.export.export(jax.jit(function.call), platforms=PLATFORMS)
        with parallel.exact_products():
            path.write_bytes(exported(*function.arguments()).serialize())
    except (ValueError, NotImplementedError, TypeError) as error:
        raise ExportError(_refusal(function, "jax.export", error)) from error
    _check(function, use.load_jax(path), precision, path.name)


def write_onnx(function: Function, path: Path, precision: str) -> None:
    """A function as ONNX, its parameters inside.

    Raises:
      ExportError: jax2onnx or onnxruntime is missing, cannot convert it, or converts it wrongly.
    """
    model = _converted(function)
    # What it says of the shapes between is wrong in places, and the runtime finds them itself.
    del model.graph.value_info[:]
    path.write_bytes(model.SerializeToString())
    try:
        run = use.load_onnx(path)
    except Exception as error:  # onnxruntime's own, without a common base
        raise ExportError(_refusal(function, "onnxruntime", error)) from error
    _check(function, run, precision, path.name)


def check_onnx() -> None:
    """Raises ExportError where what converts to ONNX, or runs it, is missing."""
    try:
        import jax2onnx
        import onnxruntime
    except ImportError as error:
        raise ExportError(
            f"{error.name} is missing, by which models become ONNX and are checked: "
            "pip install 'vse_jax[export]'"
        ) from error
    del jax2onnx, onnxruntime


def _converted(function: Function) -> Any:
    import jax2onnx

    # Shapes of constants that it folds are told as warnings, a line each.
    quiet = logging.getLogger("onnx_ir")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arguments = function.arguments()
            # Traced here: it would put its own functions in the place of some of jax.numpy, which
            # know less of what these can be given.
            return jax2onnx.to_onnx(
                straightened(function.call, arguments),
                inputs=arguments,
                input_names=list(function.inputs),
                output_names=list(function.outputs),
                model_name=function.name,
            )
    except Exception as error:  # what it raises for what it does not know is of any kind
        raise ExportError(_refusal(function, "jax2onnx", error)) from error
    finally:
        quiet.setLevel(level)


def _refusal(function: Function, by: str, error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    found = f"the function {function.name!r} of this model cannot be exported by {by}: {lines[0]}"
    if any("r" in given.shape for given in function.inputs.values()):
        return f"{found}; give the number of a picture's regions (--regions)"
    return found


def _check(
    function: Function, run: Callable[..., Sequence[np.ndarray]], precision: str, file: str
) -> None:
    """Raises ExportError unless a file does what its function does."""
    arguments = example(function, _TRIED, np.random.default_rng(0))
    wanted = jax.jit(function.call)(*arguments)
    for name, own, found in zip(function.outputs, wanted, run(*arguments), strict=True):
        apart = difference(np.asarray(own), np.asarray(found))
        if not apart <= TOLERANCE[precision]:
            raise ExportError(
                f"{file}: {name} is {apart:.2g} off what the model itself computes: this version "
                "of the library exports it wrongly"
            )


def difference(own: np.ndarray, found: np.ndarray) -> float:
    """The largest difference, as a share of the largest value or of 1; infinite of other shapes."""
    if own.shape != found.shape or own.dtype != found.dtype:
        return float("inf")
    own, found = (np.asarray(array, np.float64) for array in (own, found))
    largest = max(1.0, float(np.max(np.abs(own), initial=0.0)))
    return float(np.max(np.abs(own - found), initial=0.0)) / largest
