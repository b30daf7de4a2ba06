"""Public safetensors weights as Flax variables, and back: where they lie, what they are called.

A backbone names its modules after those of the public PyTorch class and lists the
differences as `Rules`; everything else here is the same for every backbone.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import safetensors
import safetensors.numpy

Rules = Sequence[tuple[str, str]]
"""Regular expressions and replacements, applied in turn to a path such as `layer_3/conv/weight`."""

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
# What Hugging Face says of pictures, and what of it.
PREPROCESSOR = "preprocessor_config.json"
PIXELS = ("image_mean", "image_std")
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
VOCABULARY = "vocab.txt"
# All that is read of a repository on the hub.
FILES = (
    CONFIG, PREPROCESSOR, WEIGHTS, INDEX, "model-*.safetensors", TOKENIZER, TOKENIZER_CONFIG,
    SPECIAL_TOKENS, VOCABULARY,
)  # fmt: skip

# What the last part of a Flax path is called in PyTorch.
_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "embedding"): "weight",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
# Axes of a Flax kernel in PyTorch's order: linear OI -> IO, convolution OIHW -> HWIO (a
# depthwise one too: C1HW -> HW1C).
_KERNEL_AXES = {2: (1, 0), 4: (2, 3, 1, 0)}


class WeightsError(Exception):
    """Weights that are missing, damaged or of another shape; the message says which and where."""


def locate(source: str | Path) -> Path:
    """The local path of `source`: itself where it exists, else the hub's snapshot of that name.

    Args:
      source: a safetensors file, a folder with `model.safetensors` (or its shards and their
        index) and `config.json`, or a name on the Hugging Face hub such as
        `google/mobilenet_v2_1.0_224`, of which those files are fetched, and the tokenizer's; of
        another revision than the newest by `NAME@REVISION`.

    Raises:
      WeightsError: no such path, and the hub has no such name or cannot be reached.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?(@[\w./-]+)?", str(source)):
        raise WeightsError(f"weights {str(source)!r}: no such file or folder")
    import huggingface_hub

    try:
        name, _, revision = str(source).partition("@")
        found = huggingface_hub.snapshot_download(
            name, revision=revision or None, allow_patterns=list(FILES)
        )
        return Path(found)
    except Exception as error:  # The client's errors come from three packages.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"weights {str(source)!r}: no such local path, and fetching that name from the "
            f"Hugging Face hub failed ({reason}); give the path of a local folder with "
            f"{WEIGHTS} and {CONFIG} (model.image.weights or model.text.weights)"
        ) from None


def load_safetensors(source: str | Path) -> dict[str, np.ndarray]:
    """Every tensor of `source` (see `locate`) by name; float16 and bfloat16 become float32.

    Raises:
      WeightsError: a file is missing or damaged, or has values that are not finite.
    """
    tensors: dict[str, np.ndarray] = {}
    for file in _weight_files(source):
        try:
            loaded = safetensors.numpy.load_file(file)
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise WeightsError(
                f"weights {file}: not a readable safetensors file ({error})"
            ) from None
        for name, tensor in loaded.items():
            tensors[name] = _as_float32(tensor)
            if tensors[name].dtype.kind == "f" and not np.isfinite(tensors[name]).all():
                raise WeightsError(f"weights {file}: {name} has values that are not finite")
    return tensors


def load_config(source: str | Path) -> dict[str, Any]:
    """The `config.json` of `source` (see `locate`), which lies beside its weights.

    With `image_mean` and `image_std` of its `preprocessor_config.json`, if there is one.

    Raises:
      WeightsError: there is none, or it is not a JSON object.
    """
    path = locate(source)
    folder = path if path.is_dir() else path.parent
    if not (folder / CONFIG).is_file():
        raise WeightsError(f"weights {path}: no {CONFIG} beside them")
    found = _read_object(folder / CONFIG)
    if (folder / PREPROCESSOR).is_file():
        pictures = _read_object(folder / PREPROCESSOR)
        found |= {name: pictures[name] for name in PIXELS if name in pictures}
    return found


def digest(source: str | Path) -> str:
    """SHA-256, in hexadecimal, of the weights of `source` and what `load_config` reads."""
    files = _weight_files(source)
    beside = [files[0].parent / name for name in (CONFIG, PREPROCESSOR)]
    total = hashlib.sha256()
    for file in [*files, *(file for file in beside if file.is_file())]:
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def torch_name(path: Sequence[str], rules: Rules) -> str:
    """The PyTorch name of the Flax variable at `path`, its collection first.

    The last part is renamed (kernel, scale, embedding -> weight; mean, var -> running_mean,
    running_var), then `rules` apply to the rest joined by slashes, which become dots:
    `("params", "layer_3", "conv", "kernel")` with the rule `(r"layer_(\\d+)", r"layer.\\1")`
    is `layer.3.conv.weight`.
    """
    collection, *modules, leaf = path
    name = "/".join([*modules, _LEAVES.get((collection, leaf), leaf)])
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name.replace("/", ".")


def convert(
    tensors: Mapping[str, np.ndarray],
    template: Mapping[str, Any],
    rules: Rules,
    *,
    ignore: Sequence[str] = (),
    source: str | Path = "",
) -> dict[str, Any]:
    """Flax variables of `template`'s tree, filled with `tensors` in Flax's order of axes.

    Args:
      tensors: by PyTorch name, as `load_safetensors` gives them.
      template: the variables to fill; only shapes are read (`jax.eval_shape` of `init`).
      rules: from Flax paths to PyTorch names, see `torch_name`.
      ignore: regular expressions; tensors that one of them matches somewhere in their name may
        be left over. BatchNorm's `num_batches_tracked` always may.
      source: where the tensors came from, for messages.

    Raises:
      WeightsError: a tensor is missing, has another shape, or is left over; all are named.
    """
    variables: dict[tuple[str, ...], np.ndarray] = {}
    problems, used = [], set()
    for path, expected in flax.traverse_util.flatten_dict(dict(template)).items():
        name = torch_name(path, rules)
        used.add(name)
        shape = _torch_shape(path, expected.shape)
        if name not in tensors:
            problems.append(f"{name} is missing (expected shape {shape})")
        elif tensors[name].shape != shape:
            problems.append(f"{name} has shape {tensors[name].shape}, expected {shape}")
        else:
            variables[path] = _to_flax(path, tensors[name])
    allowed = re.compile("|".join([r"num_batches_tracked$", *ignore]))
    for name in sorted(tensors.keys() - used):
        if not allowed.search(name):
            problems.append(f"{name} of shape {tensors[name].shape} has no place in the model")
    if problems:
        shown = problems[:10] + ([f"and {len(problems) - 10} more"] if len(problems) > 10 else [])
        raise WeightsError(f"weights {source} do not fit the model: " + "; ".join(shown))
    return flax.traverse_util.unflatten_dict(variables)


def revert(variables: Mapping[str, Any], rules: Rules) -> dict[str, np.ndarray]:
    """`variables` by PyTorch name and in PyTorch's order of axes: the inverse of `convert`."""
    flat = flax.traverse_util.flatten_dict(jax.device_get(dict(variables)))
    return {
        torch_name(path, rules): np.ascontiguousarray(
            np.transpose(value, np.argsort(_axes(path, np.ndim(value))))
        )
        for path, value in flat.items()
    }


def _weight_files(source: str | Path) -> list[Path]:
    path = locate(source)
    if path.is_file():
        return [path]
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if not (path / INDEX).is_file():
        advice = "" if Path(source).expanduser().exists() else (
            f": {source} has none on the hub; give a revision that has them (NAME@REVISION; "
            "refs/pr/N where one is proposed), or a local folder with the weights converted"
        )  # fmt: skip
        raise WeightsError(f"weights {path}: the folder has neither {WEIGHTS} nor {INDEX}{advice}")
    index = _read_object(path / INDEX)
    if not isinstance(index.get("weight_map"), dict) or not index["weight_map"]:
        raise WeightsError(f"weights {path / INDEX}: no weight_map, so its shards are unknown")
    files = [path / name for name in sorted(set(index["weight_map"].values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise WeightsError(f"weights {path}: shards named by {INDEX} are missing: {missing}")
    return files


def _read_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"weights {file}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise WeightsError(f"weights {file}: expected a JSON object, met {type(value).__name__}")
    return value


def _as_float32(tensor: np.ndarray) -> np.ndarray:
    return tensor.astype(np.float32) if tensor.dtype.name in ("float16", "bfloat16") else tensor


def _axes(path: Sequence[str], ndim: int) -> tuple[int, ...]:
    """For each Flax axis of the variable at `path`, the PyTorch axis that it is."""
    if path[0] == "params" and path[-1] == "kernel":
        return _KERNEL_AXES[ndim]
    return tuple(range(ndim))


def _to_flax(path: Sequence[str], tensor: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.transpose(tensor, _axes(path, tensor.ndim)))


def _torch_shape(path: Sequence[str], shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in np.argsort(_axes(path, len(shape))))
