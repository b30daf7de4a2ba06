"""Sizes of a model's exports and how soon each is of use: python scripts/cold_start.py --workdir=W.

Exports the model of a workdir in every format, and starts a process for each: imports, loading, and
the embedding of a picture and a sentence, or for Orbax the parameters alone. Formats take turns.
Prints a table of what is read, its size, the seconds from the start of the process to the end of
the first embeddings (median of the rounds, least and largest), and how far these are from those of
the workdir at most.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
FORMATS = ("safetensors", "jax_export", "onnx", "orbax")
_LOAD = """
import vse_jax
model = vse_jax.load(given["folder"])
found = model.encode_images([given["image"]]), model.encode_texts([given["text"]])
"""
_USE = """
sys.path.insert(0, given["folder"])
import use
model = use.Exported(given["folder"])
found = model.images([given["image"]])[-1], model.texts([given["text"]])[-1]
"""
_ORBAX = """
import orbax.checkpoint
orbax.checkpoint.StandardCheckpointer().restore(given["folder"] + "/parameters")
found = None
"""
_CODE = {"workdir": _LOAD, "safetensors": _LOAD, "orbax": _ORBAX}


def main(arguments: Sequence[str]) -> None:
    """Prints the table of a workdir's exports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="of a model with embeddings")
    parser.add_argument("--image", type=Path, required=True, help="a picture")
    parser.add_argument("--text", default="two dogs playing in snow", help="a sentence")
    parser.add_argument("--rounds", type=int, default=3, help="of each format (3)")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        folders = {"workdir": given.workdir.resolve()}
        for name in FORMATS:
            folders[name] = Path(place, name)
            command = [f"--workdir={folders['workdir']}", f"--format={name}"]
            _run("-m", "vse_jax.export", *command, f"--output={folders[name]}")
        seconds: dict[str, list[float]] = {name: [] for name in folders}
        found = {}
        for _ in range(given.rounds):
            for name, folder in folders.items():
                taken, found[name] = started(name, folder, given.image.resolve(), given.text)
                seconds[name].append(taken)
        print("| read | size | first embeddings after | largest difference |\n|---|---|---|---|")
        for name, folder in folders.items():
            print(row(name, folder, seconds[name], found[name], found["workdir"]))


def started(
    name: str, folder: Path, image: Path, text: str
) -> tuple[float, list[np.ndarray] | None]:
    """(seconds of a fresh process, the embeddings of the picture and the sentence)."""
    given = {"folder": str(folder), "image": str(image), "text": text}
    code = _CODE.get(name, _USE)
    program = f"""import json, sys
given = json.loads(sys.argv[1])
{code}
print(json.dumps(None if found is None else [x[0].tolist() for x in found]))
"""
    begun = time.perf_counter()
    printed = _run("-c", program, json.dumps(given))
    taken = time.perf_counter() - begun
    rows = json.loads(printed.splitlines()[-1])
    return taken, None if rows is None else [np.array(own) for own in rows]


def row(
    name: str,
    folder: Path,
    seconds: Sequence[float],
    found: list[np.ndarray] | None,
    wanted: list[np.ndarray],
) -> str:
    """A line of the table."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    if name == "workdir":  # with the training's state, and checkpoints to go back to
        best = max((folder / "checkpoints" / "best").iterdir(), key=lambda path: path.name)
        files = [path for path in best.rglob("*") if path.is_file()]
    size = f"{sum(path.stat().st_size for path in files) / 1e6:.1f} MB"
    taken = f"{statistics.median(seconds):.1f} s ({min(seconds):.1f}-{max(seconds):.1f})"
    if found is None:
        return f"| {name} | {size} | {taken}, the parameters alone | |"
    apart = max(np.abs(a - b).max() for a, b in zip(found, wanted, strict=True))
    return f"| {name} | {size} | {taken} | {apart:.0e} |"


def _run(*arguments: str) -> str:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, *arguments], env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return done.stdout


if __name__ == "__main__":
    main(sys.argv[1:])
