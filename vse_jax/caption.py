"""python -m vse_jax.caption --workdir=... photo.jpg ...: what a model writes of pictures.

A line for each caption: the picture, the log probability and the words; with --json an object. The
best of --beams captions is written, or --n_best of them, by their log probability over their length
to the power --length_power, which is told too where it is another number; --temperature draws
--samples instead. With --boxes, '[[y0, x0, y1, x1], ...]' as shares of height and width or a file
of them with a line {"image": name, "boxes": ...} for each picture, it writes of these regions.
"""

import json
import sys
from collections.abc import Sequence

import numpy as np
from absl import flags

import vse_jax
from vse_jax import console, inputs, parallel
from vse_jax.errors import USER_ERRORS

# Pictures that are read and written of at a time.
BATCH = 64


def main(arguments: Sequence[str]) -> None:
    """Writes what the command line asks for; a user's mistake ends in one clear line."""
    own = flags.FlagValues()
    workdir = flags.DEFINE_string("workdir", None, "Of a trained captioner.", flag_values=own)
    beams = flags.DEFINE_integer("beams", None, "Captions kept by the search.", flag_values=own)
    n_best = flags.DEFINE_integer("n_best", 1, "Of them written.", flag_values=own)
    power = flags.DEFINE_float("length_power", None, "Of the length in scores.", flag_values=own)
    heat = flags.DEFINE_float("temperature", None, "Draw captions, at this.", flag_values=own)
    top_k = flags.DEFINE_integer("top_k", None, "Draw from the likeliest.", flag_values=own)
    samples = flags.DEFINE_integer("samples", 1, "Captions drawn.", flag_values=own)
    seed = flags.DEFINE_integer("seed", 0, "Of what is drawn.", flag_values=own)
    regions = flags.DEFINE_string("boxes", None, "Regions to write of.", flag_values=own)
    as_json = flags.DEFINE_bool("json", False, "An object a line.", flag_values=own)
    console.set_up_logging()
    parallel.keep_compiled()
    try:
        if {"-h", "--help"} & set(arguments):
            print(f"{__doc__}\n{own.get_help()}")
            return
        pictures = own(["caption", *arguments])[1:]
        if not pictures or not workdir.value:
            sys.exit(f"{__doc__}\ncaption: needs --workdir and the paths of pictures")
        given = None
        if regions.value is not None:
            given = inputs.boxes_given(regions.value, pictures)
        model = vse_jax.load(workdir.value)
        written = 0
        for start in range(0, len(pictures), BATCH):
            some = pictures[start : start + BATCH]
            boxes = None
            if given is not None:
                boxes = given[start : start + BATCH]
            found = model.caption(
                some,
                boxes=boxes,
                beams=beams.value,
                n_best=n_best.value,
                length_power=power.value,
                temperature=heat.value,
                top_k=top_k.value,
                samples=samples.value,
                seed=seed.value,
                first=written,
            )
            written += len(found)
            for (picture, box), captions in zip(_looked_at(some, boxes), found, strict=True):
                for caption in captions:
                    print(_line(picture, box, caption, as_json.value))
    except (*USER_ERRORS, ValueError, OSError, flags.Error) as error:
        sys.exit(f"caption: {error}")


def _looked_at(
    pictures: Sequence[str], boxes: Sequence[np.ndarray] | None
) -> list[tuple[str, list[float] | None]]:
    """Each picture, or each box with its picture."""
    if boxes is None:
        return [(picture, None) for picture in pictures]
    pairs = zip(pictures, boxes, strict=True)
    return [(picture, box) for picture, own in pairs for box in own.tolist()]


def _line(
    picture: str, box: list[float] | None, caption: vse_jax.api.Caption, as_json: bool
) -> str:
    """What is told of a caption."""
    if as_json:
        found = {"image": picture, **({} if box is None else {"box": box}), **caption._asdict()}
        return json.dumps(found, ensure_ascii=False)
    if box is not None:
        picture += f" [{', '.join(f'{side:.3g}' for side in box)}]"
    told, score = f"{caption.log_probability:.3f}", f"{caption.score:.3f}"
    if score != told:
        told += f" (ranked by {score})"
    return f"{picture}\t{told}\t{caption.text}"


if __name__ == "__main__":
    main(sys.argv[1:])
