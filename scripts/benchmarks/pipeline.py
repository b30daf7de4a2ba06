"""Pictures a second of the project's pipeline beside tf.data's bare operations.

TensorFlow is imported when a measurement starts.
"""

import collections
import dataclasses
import io
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.timing import Options, Row, alternately, rate, ratio

SIZE, BATCH, CROP = 224, 128, (0.5, 1.0)
# Batches drawn before the clock starts, and under it.
FIRST, TIMED = 8, 48
GENERATED = 256


def run(options: Options) -> list[Row]:
    """Rows at 224 pixels, of Flickr8k's photos or of generated ones of 500 x 375."""
    rounds = options.rounds or 5
    if options.manual_dir is not None:
        split, files = flickr8k(options.manual_dir, options.data_dir)
        return measure(split, files, SIZE, BATCH, rounds, FIRST, TIMED)
    with tempfile.TemporaryDirectory() as folder:
        split, files = generated(Path(folder), GENERATED)
        return measure(split, files, SIZE, BATCH, rounds, FIRST, TIMED)


def flickr8k(manual_dir: Path, data_dir: str) -> tuple[Any, list[str]]:
    """The training split as prepared in array_record, and the files it was made of."""
    from vse_jax.data import flickr8k as module

    dataset = module.load(manual_dir, os.path.expanduser(data_dir))
    split = dataset.splits["train"]
    folder = next(f for f in module.PHOTO_FOLDERS if (manual_dir / f).is_dir())
    return split, [str(manual_dir / folder / name) for name in split.images]


def generated(
    folder: Path, count: int, width: int = 500, height: int = 375
) -> tuple[Any, list[str]]:
    """A split over JPEG files of smooth noise, read in place, and their paths."""
    from vse_jax.data import pictures
    from vse_jax.data.split import Split

    rng = np.random.default_rng(0)
    files = []
    for number in range(count):
        coarse = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        data = io.BytesIO()
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(data, "JPEG", quality=90)
        path = folder / f"{number}.jpg"
        path.write_bytes(data.getvalue())
        files.append(str(path))
    split = Split(
        images=files,
        captions=["a picture"] * count,
        caption_image=np.arange(count, dtype=np.int32),
        read=lambda numbers: [pictures.read_file(files[number]) for number in numbers],
    )
    return split, files


def measure(
    split: Any, files: Sequence[str], size: int, batch: int, rounds: int, first: int, timed: int
) -> list[Row]:
    """Rows of both streams; each stream starts anew every round and is timed once under way."""
    with Image.open(files[0]) as picture:
        width, height = picture.size
    what = f"{len(files)} JPEGs of {width}x{height} to {size}x{size}, batch {batch}"
    rows = []
    for stream, note, made in (
        ("training", "decode, crop, resize, flip", _training(split, files, size, batch)),
        ("evaluation", "decode, resize", _evaluation(split, files, size, batch)),
    ):

        def prepare(name: str, number: int, made: Any = made) -> Iterator[Any]:
            del number
            batches = made[name]()
            _draw(batches, first)
            return batches

        timings = alternately(
            {name: lambda batches: _draw(batches, timed) for name in made}, rounds, 0, prepare
        )
        rows += [
            rate("pipeline", f"{stream}, {name}", timing, timed * batch, "images/s",
                 f"{note}; {what}")
            for name, timing in timings.items()
        ]  # fmt: skip
        quantity = f"{stream}, rate of ours / bare tf.data"
        theirs = timings["bare tf.data"]
        rows.append(ratio("pipeline", quantity, theirs, timings["ours"], at_least=0.9))
    return rows


def _draw(batches: Iterator[Any], count: int) -> None:
    """Takes `count` batches and keeps none."""
    taken = itertools.islice(batches, count)
    if len(collections.deque(enumerate(taken), maxlen=1)) == 0:
        raise ValueError("the stream has ended")


def _training(
    split: Any, files: Sequence[str], size: int, batch: int
) -> dict[str, Callable[[], Iterator[Any]]]:
    """The project's training batches, and decode, crop, resize and flip alone, without end."""
    import tensorflow as tf

    from vse_jax.data import pipeline

    count = len(split.captions)
    examples = pipeline.Examples(
        split,
        tokens=np.ones((count, 16), np.int32),
        token_mask=np.ones((count, 16), bool),
        pictures=pipeline.Pictures(size, crop_area=CROP, flip=True),
    )

    def ours() -> Iterator[Any]:
        return pipeline.train_batches(
            examples, seed=0, batch_size=batch, start=0, steps=2**31, epoch="images"
        )

    def augmented(path: tf.Tensor) -> tf.Tensor:
        picture = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
        draw = tf.random.uniform([4])
        whole = tf.shape(picture)[:2]
        side = tf.sqrt(CROP[0] + (CROP[1] - CROP[0]) * draw[0])
        cropped = tf.maximum(tf.cast(side * tf.cast(whole, tf.float32), tf.int32), 1)
        corner = tf.cast(draw[1:3] * tf.cast(whole - cropped, tf.float32), tf.int32)
        picture = tf.slice(picture, tf.concat([corner, [0]], 0), tf.concat([cropped, [3]], 0))
        scaled = tf.image.resize(tf.cast(picture, tf.float32), (size, size), antialias=True)
        pixels = tf.cast(tf.clip_by_value(tf.round(scaled), 0.0, 255.0), tf.uint8)
        return tf.cond(draw[3] < 0.5, lambda: pixels, lambda: tf.reverse(pixels, [1]))

    return {"ours": ours, "bare tf.data": lambda: _bare(files, batch, augmented)}


def _evaluation(
    split: Any, files: Sequence[str], size: int, batch: int
) -> dict[str, Callable[[], Iterator[Any]]]:
    """The project's evaluation batches, and decode and resize alone, each picture many times."""
    import tensorflow as tf

    from vse_jax.data import pipeline

    repeats = -(-(FIRST + TIMED + 4) * batch // len(files))

    def read(numbers: Sequence[int]) -> list[bytes]:
        return split.read([number % len(files) for number in numbers])

    long = dataclasses.replace(split, images=list(split.images) * repeats, read=read)
    nothing = np.zeros((0, 1), np.int32)
    examples = pipeline.Examples(long, nothing, nothing.astype(bool), pipeline.Pictures(size))

    return {
        "ours": lambda: pipeline.image_batches(examples, batch_size=batch),
        "bare tf.data": lambda: _bare(
            files, batch, lambda path: pipeline.decode(tf.io.read_file(path), size)
        ),
    }


def _bare(files: Sequence[str], batch: int, picture: Callable[[Any], Any]) -> Iterator[Any]:
    """Batches of `picture` of each file in order, again and again, on all cores."""
    import tensorflow as tf

    options = tf.data.Options()
    options.deterministic = True
    return (
        tf.data.Dataset.from_tensor_slices(list(files))
        .repeat()
        .map(picture, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(batch)
        .prefetch(2)
        .with_options(options)
        .as_numpy_iterator()
    )
