"""Writes features of a data set in the layout of SCAN and VSRN, for their code and for ours.

    python scripts/extract_features.py --config=configs/flickr8k.py --output=FOLDER \
        [--grid=4 | --boxes=FILE.jsonl] [--batch_size=64] [--config.data.manual_dir=... and others]

Of each split, train, dev and test: {split}_ims.npy float32 [rows, regions, width], {split}_caps.txt
(a caption a line), {split}_ids.txt (the name of each row's picture) and {split}_boxes.npy [rows,
regions, 4] as (y0, x0, y1, x1) in [0, 1]. A row is a picture where all have five captions, else a
caption: its picture's row is repeated, and the log says so. Regions are those of the backbone's
grid: pooled to N x N cells and, the last, the whole picture (--grid=N); or the mean under each box
of a file with {"image": name, "boxes": [[y0, x0, y1, x1], ...]} a line (--boxes). Where pictures
have unequal numbers of boxes, rows are filled up with zeros and {split}_counts.npy tells how many
are real. Stopped at any moment, the same command goes on; a file that has its name is whole.
"""

import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import config_command
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import Progress

from vse_jax import assembly, config_checks, experiment, frozen_features, parallel, workdir
from vse_jax import config as configs
from vse_jax.data import box_files, datasets, feature_files, pipeline, whole_file
from vse_jax.data.scan_files import CAPTIONS, NAMES
from vse_jax.data.split import DataError, Split
from vse_jax.models.backbones.weights import digest, load_config
from vse_jax.models.regions import box_features, pyramid, pyramid_boxes

log = experiment.log
ADVICE = "--output must name a folder with room and permission to write"


class Boxes(NamedTuple):
    """The regions of one split's pictures.

    Attributes:
      corners: float32 [n, r, 4], 0 behind a picture's last; [1, r, 4] where they are the same.
      counts: int32 [n], how many are real; None where all are.
    """

    corners: np.ndarray
    counts: np.ndarray | None

    def of(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes [b, r, 4] of some pictures, and which of them are real [b, r]."""
        corners = self.corners[pictures if len(self.corners) > 1 else np.zeros_like(pictures)]
        if self.counts is None:
            return corners, np.ones(corners.shape[:2], bool)
        return corners, np.arange(corners.shape[1]) < self.counts[pictures][:, None]


class Backbone:
    """The pretrained backbone of a config, mapped over the devices."""

    def __init__(self, config: ConfigDict, cells: int | None) -> None:
        """Loads it; raises ConfigError or WeightsError where there is nothing to load."""
        backbone, source = assembly.backbone_of(config), config.model.image.weights
        if backbone.load is None or source is None:
            raise configs.ConfigError(
                f"'model.image.backbone' is {config.model.image.backbone!r} and "
                f"'model.image.weights' {source!r}: features are those of a pretrained backbone; "
                "set both"
            )
        # Of that side alone: sentences have no part in it, whatever reads them.
        module = backbone.make(load_config(source), assembly.compute_dtype(config), parallel.AXIS)
        variables = backbone.load(source, module)

        def grid(variables: Any, image: jax.Array) -> jax.Array:
            return module.apply(variables, image, train=False).grid

        def regions(variables: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
            found = grid(variables, batch["image"])
            if cells is None:
                found = box_features(found, batch["boxes"], batch["mask"])
            else:
                found = pyramid(found, cells)
            return parallel.all_gather(found)

        self.devices = parallel.Devices.all(config.parallel)
        side = config.data.image_size
        picture = jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)
        _, self.height, self.width, self.channels = jax.eval_shape(grid, variables, picture).shape
        self._variables = self.devices.place(variables)
        self._regions = self.devices.map(regions, ("replicated", "split"), "replicated")

    def features(self, batches: Iterator[dict[str, np.ndarray]]) -> Iterator[np.ndarray]:
        """float32 [b, r, f] of the pictures of each batch."""
        for host, batch in self.devices.prefetch(batches):
            real = int(np.sum(host["weight"] > 0))
            yield self.devices.fetch(self._regions(self._variables, batch))[:real]


def extract(
    config: ConfigDict,
    output: Path,
    *,
    cells: int | None = None,
    boxes: Path | None = None,
    batch_size: int = 64,
) -> None:
    """Writes the features of every split, all of it, of the config's data set into a folder.

    Args:
      config: names data set, backbone and weights; limits of splits are those of runs, not of this.
      output: the folder; where it has a part of the same features, the others are added.
      cells: N of N x N cells and the whole picture.
      boxes: or else, a file of boxes.
      batch_size: pictures at a time.

    Raises:
      ConfigError, DataError, WeightsError, WorkdirError: for the user's mistakes.
    """
    if (cells is None) == (boxes is None):
        raise configs.ConfigError("give either --grid=N or --boxes=FILE")
    if batch_size < 1 or (cells is not None and cells < 1):
        raise configs.ConfigError("--grid and --batch_size must be above 0")
    config_checks.validate(config)
    config = configs.with_absolute_paths(config)
    if config.data.dataset == "precomputed":
        raise configs.ConfigError("the data set 'precomputed' has features, and no pictures")
    backbone = Backbone(config, cells)
    config.data.train_limit = config.data.validation_limit = None
    dataset = datasets.load(config.data, config.seed)
    regions = _boxes(dataset.splits, backbone, cells, boxes)
    made_of = {
        "version": frozen_features.VERSION,
        "data": dataset.fingerprint,
        "backbone": config.model.image.backbone,
        "weights": digest(config.model.image.weights),
        "image_size": config.data.image_size,
        "precision": config.precision,
        "grid": cells,
        "boxes": None if boxes is None else hashlib.sha256(boxes.read_bytes()).hexdigest(),
    }
    with workdir.locked(output):
        _claim(output / "extract.json", made_of)
        for name, split in dataset.splits.items():
            stem = NAMES[name][-1]
            pictures = pipeline.Pictures(config.data.image_size)
            none = np.zeros((0, 1), np.int32)
            examples = pipeline.Examples(split, none, none > 0, pictures)
            _write_split(output, stem, examples, backbone, regions[name], batch_size)


def _boxes(
    splits: Mapping[str, Split], backbone: Backbone, cells: int | None, path: Path | None
) -> dict[str, Boxes]:
    """The regions of every split."""
    if path is None:
        assert cells is not None
        corners = pyramid_boxes(backbone.height, backbone.width, cells)[None]
        return {name: Boxes(corners, None) for name in splits}
    names = [name for split in splits.values() for name in split.images]
    known = box_files.read(path, names)
    counts = np.array([len(known[name]) for name in names], np.int32)
    most = int(counts.max())
    if counts.min() < most:
        log.warning(
            "pictures have %d to %d boxes: rows are filled up with zeros, *_counts.npy tells how "
            "many regions are real", counts.min(), most,
        )  # fmt: skip
    found = {}
    for name, split in splits.items():
        own = [known[image] for image in split.images]
        corners = np.zeros((len(own), most, 4), np.float32)
        for row, values in zip(corners, own, strict=True):
            row[: len(values)] = values
        real = np.array([len(values) for values in own], np.int32)
        found[name] = Boxes(corners, real if counts.min() < most else None)
    return found


def _claim(path: Path, made_of: Mapping[str, Any]) -> None:
    """Makes the folder one of these features, or finds that it is."""
    if not path.exists():
        workdir.write_text(path, json.dumps(made_of, indent=2))
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        different = [name for name in made_of if there.get(name) != made_of[name]]
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path} cannot be read: {error}; take another --output") from error
    if different:
        raise DataError(
            f"{path.parent} has features that differ in {', '.join(different)}: take another "
            "--output, or delete it"
        )


def _write_split(
    folder: Path,
    stem: str,
    examples: pipeline.Examples,
    backbone: Backbone,
    boxes: Boxes,
    batch_size: int,
) -> None:
    """Writes the files of a split, features last, unless they are there."""
    split, path = examples.split, folder / f"{stem}_ims.npy"
    if path.is_file():
        log.info("%s is there", path)
        return
    n = len(split.images)
    captions = np.bincount(split.caption_image, minlength=n)
    repeats = np.ones(n, int) if np.all(captions == CAPTIONS) else captions
    if len(split.captions) != CAPTIONS * n:
        log.warning(
            "%s: not every picture has %d captions: its %d rows are captions, those of one of the "
            "%d pictures the same", stem, CAPTIONS, len(split.captions), n,
        )  # fmt: skip

    def write(name: str, fill: Callable[[IO[bytes]], object]) -> None:
        whole_file.write(folder / f"{stem}_{name}", fill, ADVICE)

    rows = np.repeat(np.arange(n), repeats)
    corners, _ = boxes.of(rows)
    write("boxes.npy", lambda file: np.save(file, corners))
    if boxes.counts is not None:
        counts = boxes.counts[rows]
        write("counts.npy", lambda file: np.save(file, counts))
    for kind, lines in (("caps", split.captions), ("ids", [split.images[row] for row in rows])):
        text = "".join(" ".join(line.split()) + "\n" for line in lines)
        write(f"{kind}.txt", lambda file, text=text: file.write(text.encode()))
    shape = (len(rows), corners.shape[1], backbone.channels)
    _write_features(path, shape, examples, repeats, backbone, boxes, batch_size)


def _write_features(
    path: Path,
    shape: tuple[int, int, int],
    examples: pipeline.Examples,
    repeats: np.ndarray,
    backbone: Backbone,
    boxes: Boxes,
    batch_size: int,
) -> None:
    """Appends every picture's rows to a file that gets its name at the end."""
    header = io.BytesIO()
    described = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    length, row = len(header.getvalue()), 4 * shape[1] * shape[2]

    def named(number: int) -> str:
        return f"the features of {examples.split.images[number]}"

    partial, ends = path.with_name(f"{path.name}.partial"), np.cumsum(repeats)
    with open(partial, "ab") as file, _progress() as bar:
        # A run that was stopped may have ended within a row, or between those of one picture.
        done = int(np.searchsorted(ends, max(file.tell() - length, 0) // row, side="right"))
        if done:
            log.info("%s: %d of %d pictures are there", path, done, len(repeats))
            file.truncate(length + int(ends[done - 1]) * row)
        else:
            file.truncate(0)
            file.write(header.getvalue())
        task = bar.add_task(path.name, total=len(repeats), completed=done)
        found = backbone.features(_batches(examples, done, backbone, boxes, batch_size))
        for batch in found if done < len(repeats) else ():
            feature_files.check_finite(batch, named, done)
            file.write(np.repeat(batch, repeats[done : done + len(batch)], axis=0).tobytes())
            done += len(batch)
            bar.update(task, completed=done)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _batches(
    examples: pipeline.Examples, first: int, backbone: Backbone, boxes: Boxes, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """The pictures from number `first` on, with their boxes."""
    numbers = np.arange(first, len(examples.split.images))
    size = backbone.devices.shared(batch_size)
    for batch in pipeline.image_batches(examples, numbers, batch_size=size):
        corners, mask = boxes.of(batch["image_id"])
        image = {name: batch[name] for name in ("image", "weight")}
        yield image | {"boxes": corners, "mask": mask}


def _progress() -> Progress:
    shown = Console(stderr=True)
    return Progress(console=shown, transient=True, disable=not shown.is_terminal)


def main(arguments: Sequence[str]) -> None:
    """Extracts what the command line asks for; a user's mistake ends in one clear line."""
    own = flags.FlagValues()
    grid = flags.DEFINE_integer("grid", None, "N of N x N cells.", flag_values=own)
    boxes = flags.DEFINE_string("boxes", None, "A .jsonl of boxes.", flag_values=own)
    size = flags.DEFINE_integer("batch_size", 64, "Pictures at a time.", flag_values=own)

    def work(config: ConfigDict, output: Path) -> None:
        path = None if boxes.value is None else Path(boxes.value).expanduser()
        extract(config, output, cells=grid.value, boxes=path, batch_size=size.value)

    try:
        config_command.run("extract_features", __doc__, arguments, work, own=own)
    except KeyboardInterrupt:
        sys.exit("extract_features: stopped; the same command goes on from here")


if __name__ == "__main__":
    main(sys.argv[1:])
