"""Index-driven tf.data: batches are a pure function of (seed, epoch, index).

A position counts training examples from the start of the run: position p is example
`shuffle(p mod n)` of epoch `p div n`. So there is no shuffle buffer, resuming is starting
the range later, and every number of processes sees the same global batches. A batch may
straddle two epochs, so every example of an epoch counts exactly once.

A picture without captions is an example too, for its class: its row has the caption -1, which is
no token, no features and no semantics, all masked.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from vse_jax.data.regions import Regions
from vse_jax.data.split import DataError, Split

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """How encoded pictures become pixels.

    Attributes:
      size: pixels a side.
      crop_area: shares (low, high) of the area that a random training crop keeps.
      flip: whether training pictures are mirrored at random.
    """

    size: int
    crop_area: tuple[float, float] = (1.0, 1.0)
    flip: bool = False


@dataclasses.dataclass(frozen=True)
class Examples:
    """A split made ready: tokens in memory, pictures as pixels or as cached features.

    Attributes:
      split: pictures, captions and their pairing.
      tokens: int32 [m, l] of every caption.
      token_mask: bool [m, l].
      pictures: how to decode; used where there are no features.
      features: of every picture, memory-mapped: its `Regions`, or [n, r, f] where each has r;
        None for pixels.
      semantics: float32 [m, s] of every caption; None where nothing asks for them.
      text_features: of every caption, memory-mapped; None for tokens.
      pad: the token behind shorter captions, and all of those of a picture without any.
    """

    split: Split
    tokens: np.ndarray
    token_mask: np.ndarray
    pictures: Pictures
    features: Regions | np.ndarray | None = None
    semantics: np.ndarray | None = None
    text_features: Regions | None = None
    pad: int = 0


def train_batches(
    examples: Examples,
    *,
    seed: int,
    batch_size: int,
    start: int,
    steps: int,
    epoch: Literal["captions", "images"],
    process: int = 0,
    processes: int = 1,
    shuffle_captions: bool = False,
) -> Iterator[Batch]:
    """This process's rows of the global training batches `start` to `steps` - 1.

    Args:
      examples: the training split.
      seed: of order and augmentation.
      batch_size: rows over all processes.
      start: number of the first batch.
      steps: number of the batch after the last.
      epoch: "captions" (every caption once, and every picture without any once) or "images"
        (every picture once, with a caption drawn at random).
      process: number of this process; it takes the process-th equal part of each batch.
      processes: how many there are.
      shuffle_captions: pairs pictures with captions of others, by one fixed permutation.
    """
    share = batch_size // processes

    def positions(step: tf.Tensor) -> tf.Tensor:
        first = step * batch_size + process * share
        return tf.range(first, first + share)

    choose = _chooser(examples.split, seed, epoch, shuffle_captions)
    dataset = _map(tf.data.Dataset.range(start, steps), positions)
    dataset = _map(dataset, lambda position: (position, *choose(position)))
    dataset = _with_pictures(dataset, examples, share, seed)

    known, meant = _annotations(examples.split), _semantics(examples)
    said = _said(examples, share)

    def assemble(position: tf.Tensor, picture: tf.Tensor, caption: tf.Tensor, seen: dict) -> dict:
        del position
        return (
            known(picture)
            | seen
            | meant(caption)
            | said(caption)
            | {
                "image_id": tf.cast(picture, tf.int32),
                "caption_id": tf.cast(caption, tf.int32),
                "weight": tf.ones_like(picture, tf.float32),
            }
        )

    return _numpy(_map(dataset, assemble))


def _chooser(
    split: Split, seed: int, epoch: Literal["captions", "images"], shuffle_captions: bool
) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Positions in the stream -> (picture, caption) numbers; see `train_batches`."""
    first_caption = np.searchsorted(split.caption_image, np.arange(len(split.images) + 1))
    pairing = np.arange(len(split.captions))
    if shuffle_captions:
        pairing = np.random.default_rng(seed).permutation(pairing)
    # Behind the captions the pictures that have none, each with the caption -1.
    silent = split.without_captions()
    owner = np.concatenate([split.caption_image, silent])
    pairing = np.concatenate([pairing, np.full(len(silent), -1)])
    size = split.epoch_size(epoch)

    def choose(position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Picture and caption numbers of each position."""
        number = _shuffled(position, size, seed)
        if epoch == "captions":
            picture = tf.gather(tf.constant(owner, tf.int64), number)
            return picture, tf.gather(tf.constant(pairing, tf.int64), number)
        first = tf.gather(tf.constant(first_caption, tf.int64), number)
        count = tf.gather(tf.constant(first_caption, tf.int64), number + 1) - first
        drawn = tf.map_fn(
            lambda p: tf.random.stateless_uniform([], tf.stack([seed + 1, p]), dtype=tf.float64),
            position,
            fn_output_signature=tf.float64,
        )
        # A product of a draw below 1 can still round up to the count itself.
        offset = tf.minimum(tf.cast(drawn * tf.cast(count, tf.float64), tf.int64), count - 1)
        # Of a picture without captions the place of the first that has none.
        place = tf.where(count > 0, first + offset, tf.constant(len(split.captions), tf.int64))
        return number, tf.gather(tf.constant(pairing, tf.int64), place)

    return choose


def image_batches(
    examples: Examples,
    pictures: np.ndarray | None = None,
    /,
    *,
    batch_size: int,
    process: int = 0,
    processes: int = 1,
) -> Iterator[Batch]:
    """Every picture once, in order, undistorted; the last batch padded with weight 0.

    Each process gets its equal part of every batch of `batch_size` rows.

    Args:
      examples: a split.
      pictures: int [n], the numbers of those wanted, in their order; None: all.
      batch_size: rows over all processes.
      process: number of this process.
      processes: how many there are.
    """
    plain = dataclasses.replace(examples, pictures=Pictures(examples.pictures.size))
    share = batch_size // processes
    wanted = np.arange(len(examples.split.images)) if pictures is None else pictures

    def rows(batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        first = batch * batch_size + process * share
        number = tf.range(first, first + share)
        picture = tf.gather(tf.constant(wanted, tf.int64), tf.minimum(number, len(wanted) - 1))
        return number, picture, picture

    batches = -(-len(wanted) // batch_size)
    dataset = _map(tf.data.Dataset.range(batches), rows)
    dataset = _with_pictures(dataset, plain, share, seed=0)

    known = _annotations(examples.split)

    def assemble(number: tf.Tensor, picture: tf.Tensor, _: tf.Tensor, seen: dict) -> dict:
        real = number < len(wanted)
        return (
            known(picture)
            | seen
            | {
                "image_id": tf.cast(picture, tf.int32),
                "weight": tf.cast(real, tf.float32),
            }
        )

    return _numpy(_map(dataset, assemble))


def caption_batches(
    examples: Examples,
    captions: np.ndarray | None = None,
    /,
    *,
    batch_size: int,
    process: int = 0,
    processes: int = 1,
    trim: int = 0,
) -> Iterator[Batch]:
    """Every caption once, in order; the last batch padded with weight 0.

    Args:
      examples: a split.
      captions: int [m], the numbers of those wanted, in their order; None: all.
      batch_size: rows over all processes.
      process: number of this process; it takes the process-th equal part of each batch.
      processes: how many there are.
      trim: tokens of a batch are cut to its longest caption, rounded up to a multiple; 0: are not.
    """
    share = batch_size // processes
    wanted = np.arange(len(examples.tokens)) if captions is None else captions
    for start in range(0, len(wanted), batch_size):
        number = start + process * share + np.arange(share)
        row = wanted[np.minimum(number, len(wanted) - 1)]
        sentences = _sentences(examples, row)
        if trim:
            # The same on every process.
            longest = int(examples.token_mask[wanted[start : start + batch_size]].sum(1).max())
            length = max(-(-longest // trim), 1) * trim
            sentences = {name: rows[:, :length] for name, rows in sentences.items()}
        yield sentences | {
            "caption_id": row.astype(np.int32),
            "weight": (number < len(wanted)).astype(np.float32),
        }


def _sentences(examples: Examples, captions: np.ndarray) -> Batch:
    """Tokens of captions, or their features where there are any."""
    if examples.text_features is None:
        return {"tokens": examples.tokens[captions], "token_mask": examples.token_mask[captions]}
    features, mask = examples.text_features.gather(captions)
    return {"text_features": features, "text_feature_mask": mask}


def decode(data: tf.Tensor, size: int) -> tf.Tensor:
    """An encoded picture as uint8 [size, size, 3]: whole, resized bilinearly with antialiasing."""
    picture = tf.io.decode_image(data, channels=3, expand_animations=False)
    return _resize(picture, size)


def _annotations(split: Split) -> Callable[[tf.Tensor], dict]:
    """Picture numbers -> their `label` [b] and `boxes` [b, r, 4], as far as the data have them.

    Boxes are padded with zeros to those of the picture that has the most.
    """
    columns: dict[str, np.ndarray] = {}
    if split.labels is not None:
        columns["label"] = np.asarray(split.labels, np.int32)
    if split.boxes is not None:
        boxes = np.zeros((len(split.boxes), max(map(len, split.boxes), default=0), 4), np.float32)
        for number, own in enumerate(split.boxes):
            boxes[number, : len(own)] = own
        columns["boxes"] = boxes
    return lambda picture: {
        name: tf.gather(tf.constant(column), picture) for name, column in columns.items()
    }


def _semantics(examples: Examples) -> Callable[[tf.Tensor], dict]:
    """Caption numbers -> their `semantics` [b, s], where there are any; 0 of no caption."""
    table = examples.semantics
    if table is None:
        return lambda _: {}

    def look_up(caption: np.ndarray) -> np.ndarray:
        return np.where(caption[:, None] < 0, np.float32(0), table[caption])

    def meant(caption: tf.Tensor) -> dict:
        # Not a constant of the graph: 400 numbers a caption are a gigabyte for COCO.
        found = tf.numpy_function(look_up, [caption], tf.float32, stateful=False)
        return {"semantics": tf.ensure_shape(found, (None, table.shape[1]))}

    return meant


def _said(examples: Examples, share: int) -> Callable[[tf.Tensor], dict]:
    """Caption numbers -> `tokens` and `token_mask`; and `text_features`, if any, and their mask.

    Of no caption, -1, all of it is masked. A loss that generates captions needs the tokens,
    whatever reads them.
    """
    features = examples.text_features
    # The row behind those of the captions is of none.
    none, length = examples.tokens.shape
    rows = np.concatenate([examples.tokens, np.full((1, length), examples.pad, np.int32)])
    real = np.concatenate([examples.token_mask, np.zeros((1, length), bool)])

    def tokens(caption: tf.Tensor) -> dict:
        row = tf.where(caption < 0, tf.constant(none, tf.int64), caption)
        return {
            "tokens": tf.gather(tf.constant(rows), row),
            "token_mask": tf.gather(tf.constant(real), row),
        }

    if features is None:
        return tokens

    def look_up(caption: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found, mask = features.gather(np.maximum(caption, 0))
        found[caption < 0], mask[caption < 0] = 0.0, False
        return found, mask

    def said(caption: tf.Tensor) -> dict:
        found, mask = tf.numpy_function(look_up, [caption], (tf.float32, tf.bool), stateful=False)
        return tokens(caption) | {
            "text_features": tf.ensure_shape(found, (share, features.most, features.width)),
            "text_feature_mask": tf.ensure_shape(mask, (share, features.most)),
        }

    return said


def _shuffled(position: tf.Tensor, size: int, seed: int) -> tf.Tensor:
    """The example at each position: a permutation of 0..size-1 anew each epoch."""
    constant = tf.zeros_like(position)
    seeds = tf.stack([constant + seed, position // size, constant], axis=1)
    # The raw operation: tf.random.experimental.index_shuffle takes one seed for all positions.
    return tf.raw_ops.RandomIndexShuffle(
        index=position % size, seed=seeds, max_index=constant + size - 1, rounds=4
    )


def _with_pictures(
    dataset: tf.data.Dataset, examples: Examples, share: int, seed: int
) -> tf.data.Dataset:
    """Adds {"image": ...} or {"features", "feature_mask"} to (position, picture, caption) rows."""
    if examples.features is not None:
        given = examples.features
        regions = given if isinstance(given, Regions) else Regions.of(given)
        return _map(dataset, _with_features(regions, share))
    of_numbers = examples.split.read
    if of_numbers is None:
        raise DataError("the data have neither pictures nor features of them")

    def read(picture: np.ndarray) -> np.ndarray:
        return np.asarray(of_numbers(picture.tolist()), object)

    def with_bytes(position: tf.Tensor, picture: tf.Tensor, caption: tf.Tensor) -> tuple:
        data = tf.numpy_function(read, [picture], tf.string, stateful=False)
        return position, picture, caption, tf.ensure_shape(data, (share,))

    def with_pixels(
        position: tf.Tensor, picture: tf.Tensor, caption: tf.Tensor, data: tf.Tensor
    ) -> tuple:
        side = examples.pictures.size
        # Whole batches in parallel, row after row: rows apart cost a fifth of the rate.
        pixels = tf.map_fn(
            lambda row: _augmented(row[0], row[1], examples.pictures, seed),
            (data, position),
            fn_output_signature=tf.TensorSpec((side, side, 3), tf.uint8),
        )
        return position, picture, caption, {"image": pixels}

    return _map(_map(dataset, with_bytes), with_pixels, num_parallel_calls=os.cpu_count())


def _with_features(regions: Regions, share: int) -> Callable[..., tuple]:
    """Adds `features`, `feature_mask` and, where they are known, `boxes` of the regions."""

    def look_up(picture: np.ndarray) -> tuple[np.ndarray, ...]:
        found = regions.gather(picture)
        return found if regions.boxes is None else (*found, regions.gather_boxes(picture))

    names = {"features": tf.float32, "feature_mask": tf.bool}
    shapes = {
        "features": (share, regions.most, regions.width),
        "feature_mask": (share, regions.most),
    }
    if regions.boxes is not None:
        names["boxes"], shapes["boxes"] = tf.float32, (share, regions.most, 4)

    def with_features(position: tf.Tensor, picture: tf.Tensor, caption: tf.Tensor) -> tuple:
        found = tf.numpy_function(look_up, [picture], list(names.values()), stateful=False)
        seen = {
            name: tf.ensure_shape(value, shapes[name])
            for name, value in zip(names, found, strict=True)
        }
        return position, picture, caption, seen

    return with_features


def _augmented(data: tf.Tensor, position: tf.Tensor, how: Pictures, seed: int) -> tf.Tensor:
    """Decoded, cropped and mirrored by a draw that depends on (seed, position) alone."""
    low, high = how.crop_area
    picture = tf.io.decode_image(data, channels=3, expand_animations=False)
    if low < 1.0:
        draw = tf.random.stateless_uniform([4], tf.stack([tf.constant(seed, tf.int64), position]))
        size = tf.cast(tf.shape(picture)[:2], tf.float32)
        area = low + (high - low) * draw[0]
        # Sides differ by at most 4/3; neither may leave the picture.
        ratio = tf.exp((2.0 * draw[1] - 1.0) * tf.math.log(4.0 / 3.0) / 2.0)
        sides = tf.minimum(tf.sqrt(area) * tf.stack([ratio, 1.0 / ratio]), 1.0) * size
        sides = tf.maximum(tf.cast(tf.round(sides), tf.int32), 1)
        corner = tf.cast(
            draw[2:] * tf.cast(tf.shape(picture)[:2] - sides + 1, tf.float32), tf.int32
        )
        corner = tf.minimum(corner, tf.shape(picture)[:2] - sides)
        picture = tf.slice(picture, tf.concat([corner, [0]], 0), tf.concat([sides, [3]], 0))
    pixels = _resize(picture, how.size)
    if how.flip:
        coin = tf.random.stateless_uniform([], tf.stack([tf.constant(~seed, tf.int64), position]))
        pixels = tf.cond(coin < 0.5, lambda: pixels, lambda: tf.reverse(pixels, [1]))
    return pixels


def _resize(picture: tf.Tensor, size: int) -> tf.Tensor:
    """uint8 [size, size, 3], untouched where it has that size already."""

    def resized() -> tf.Tensor:
        scaled = tf.image.resize(tf.cast(picture, tf.float32), (size, size), antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(scaled), 0.0, 255.0), tf.uint8)

    same = tf.reduce_all(tf.shape(picture)[:2] == size)
    pixels = tf.cond(same, lambda: picture, resized)
    return tf.ensure_shape(pixels, (size, size, 3))


def _map(
    dataset: tf.data.Dataset, function: Callable[..., Any], num_parallel_calls: int | None = None
) -> tf.data.Dataset:
    """`function` of every element, traced as it stands: AutoGraph would take seconds a start."""
    traced = tf.autograph.experimental.do_not_convert(function)
    return dataset.map(traced, num_parallel_calls=num_parallel_calls)


def _numpy(dataset: tf.data.Dataset) -> Iterator[Batch]:
    options = tf.data.Options()
    options.deterministic = True
    # Its thread, which sleeps up to a minute at a time, now and then holds up a stream's end.
    options.autotune.enabled = False
    try:
        yield from dataset.prefetch(2).with_options(options).as_numpy_iterator()
    except tf.errors.OpError as error:
        # TensorFlow wraps what a reader of pictures raised in its own stack trace.
        told = re.search(r"DataError: (.*)", error.message)
        if told is None:
            raise
        raise DataError(told[1]) from error
