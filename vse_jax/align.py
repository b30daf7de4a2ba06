"""python -m vse_jax.align --workdir=RUN photo.jpg "a dog on grass" [--output=overlay.png].

Tells which region of a picture each part of a sentence is about, by a trained model of "dvsa": a
line for each part, with the sum of its words' products with the region and the region's box in
pixels. With --snippets=FILE.jsonl and no picture, the regions of the whole data set of the run with
what its captions say of them, a JSON line each.

With --cam photo.jpg ["a sentence"], by a trained model of "cam": the likeliest classes, the caption
(its own, or the sentence), how well the maps of where it looks for the two agree (their cosine),
and the cell, in pixels, where each is highest. --output draws both maps over the photo.
"""

import argparse
import json
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from vse_jax import (
    alignment_picture,
    api,
    console,
    inputs,
    look,
    look_picture,
    parallel,
    workdir,
)
from vse_jax.alignment import Alignment, AlignmentError, align_split, check
from vse_jax.data import whole_file
from vse_jax.errors import USER_ERRORS
from vse_jax.look import Look, LookError

log = logging.getLogger("vse_jax.align")
# Classes that are told of a picture.
TOLD = 3
ADVICE = "name a file in a folder with room and permission to write"


def main(arguments: Sequence[str]) -> None:
    """Does what the command line asks for; a user's mistake ends in one clear line and exit 1."""
    given = _parsed(arguments)
    console.set_up_logging()
    parallel.keep_compiled()
    try:
        if given.cam:
            _look(given)
        elif given.snippets is None:
            _align(given)
        else:
            write_snippets(given.workdir, given.snippets, given.beta)
    except (*USER_ERRORS, AlignmentError, LookError, OSError) as error:
        sys.stderr.write(f"align: {error}\n")
        sys.exit(1)


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = console.Parser(
        "python -m vse_jax.align", description=str(__doc__).split("\n", 2)[2], allow_abbrev=False
    )
    parser.add_argument("picture", nargs="?", type=Path, help="a JPEG, PNG, ...")
    parser.add_argument("sentence", nargs="?", help="what is said of it")
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the trained run")
    parser.add_argument("--output", type=Path, help="a .png of the picture and what is tied to it")
    parser.add_argument(
        "--boxes",
        help="regions to look at, '[[y0, x0, y1, x1], ...]' as shares of height and width, or a "
        'file of them with a line {"image": name, "boxes": ...} for the picture\'s name',
    )
    parser.add_argument(
        "--beta", type=_beta, help="worth of neighbouring words agreeing (the run's evaluate.beta)"
    )
    parser.add_argument("--json", action="store_true", help="print all in one JSON object")
    parser.add_argument("--snippets", type=Path, help="a .jsonl of the whole data set, instead")
    parser.add_argument(
        "--cam", action="store_true", help='where a model of "cam" looks; needs no sentence'
    )
    parser.add_argument(
        "--class", dest="name", help="with --cam: the class whose map is wanted (the likeliest)"
    )
    given = parser.parse_args(arguments)
    if given.name is not None and not given.cam:
        parser.error("--class is of --cam")
    if given.snippets is not None and given.snippets.suffix.lower() != ".jsonl":
        parser.error(f"--snippets is {str(given.snippets)!r}; it must end in .jsonl")
    of_regions = (given.snippets, given.boxes, given.beta)
    if given.cam and any(value is not None for value in of_regions):
        parser.error("--cam is of classes and captions: it takes no --snippets, --boxes or --beta")
    if given.cam and given.picture is None:
        parser.error("--cam needs a picture")
    if not given.cam and given.snippets is None and given.sentence is None:
        parser.error("a picture and a sentence in quotes are missing, or --snippets=FILE.jsonl")
    of_one = (given.picture, given.output, given.boxes, given.json or None)
    if given.snippets is not None and any(value is not None for value in of_one):
        parser.error(
            "--snippets is of the data set: it takes no picture, --output, --boxes or --json"
        )
    if given.output is not None and given.output.suffix.lower() != ".png":
        parser.error(f"--output is {str(given.output)!r}; it must end in .png")
    return given


def _beta(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more, and finite")
    return value


def _align(given: argparse.Namespace) -> None:
    """Prints the alignment of one picture and sentence, and draws it where that is asked for."""
    model = api.load(given.workdir)
    if look.is_possible(model.config):
        raise AlignmentError(
            f"the model is of the network {look.NETWORK!r}, which ties no words to regions, but "
            "shows where it looks: give --cam"
        )
    check(model.config)
    if model.reads_features:
        raise AlignmentError(
            f"{given.workdir} was trained on features of regions, not on photos, and only their "
            "maker can compute them: call Model.align from Python with features and boxes"
        )
    picture = inputs.opened(given.picture)
    boxes = None
    if given.boxes is not None:
        [boxes] = inputs.boxes_given(given.boxes, [str(given.picture)])
    if not model.looks_at_boxes and boxes is not None:
        raise AlignmentError("the model has its own regions of every picture: give no --boxes")
    found = model.align(np.asarray(picture), given.sentence, boxes, given.beta)
    if given.output is not None:
        drawn = alignment_picture.overlay(picture, found)
        whole_file.write(given.output, lambda file: drawn.save(file, "PNG"), ADVICE)
    print(json.dumps(as_json(found, picture)) if given.json else as_lines(found, picture))
    if found.unknown:
        log.warning("words that the model does not know: %s", ", ".join(found.unknown))


def _look(given: argparse.Namespace) -> None:
    """Prints what a model tells of one picture and where it looks, and draws it where asked for."""
    model = api.load(given.workdir)
    look.check(model.config, model.classes, given.sentence, given.name)
    picture = inputs.opened(given.picture)
    found = model.look(np.asarray(picture), given.sentence, given.name)
    if given.output is not None:
        drawn = look_picture.side_by_side(picture, look_picture.panels(found))
        whole_file.write(given.output, lambda file: drawn.save(file, "PNG"), ADVICE)
    told = look_as_json(found, picture)
    print(json.dumps(told) if given.json else look_as_lines(found, picture))
    if found.unknown:
        log.warning("words that the model does not know: %s", ", ".join(found.unknown))


def look_as_lines(found: Look, picture: Image.Image) -> str:
    """A line for each of what is known of where a model looks; boxes (y0, x0, y1, x1) in pixels."""
    likeliest = [f"{name} {100 * probability:.1f}%" for name, probability in found.classes[:TOLD]]
    peaks = {name: _peak(shown, picture) for name, shown in _maps(found).items()}
    of = {
        "class": "" if found.told is None else f"of {found.told.name}",
        "caption": "of its content words",
    }
    lines = {
        "class": ", ".join(likeliest) or None,
        "caption": found.caption,
        "agreement": None if found.agreement is None else f"{found.agreement:.3f}",
        **{
            f"{name} map": f"{of[name]}, highest at y, x {peak[:2]} to {peak[2:]}"
            for name, peak in peaks.items()
            if peak
        },
    }
    if found.caption is not None and found.caption_map is None:
        lines["caption map"] = "none: there is no content word in it"
    return "\n".join(f"{name:<12} {line}" for name, line in lines.items() if line is not None)


def look_as_json(found: Look, picture: Image.Image) -> dict[str, Any]:
    """Everything that is known of where a model looks; peaks are (y0, x0, y1, x1) in pixels."""
    shown = _maps(found)
    return {
        "classes": [told._asdict() for told in found.classes],
        "caption": found.caption,
        "agreement": found.agreement,
        "unknown": list(found.unknown),
        "maps": {name: values.tolist() for name, values in shown.items()},
        "peaks": {name: _peak(values, picture) for name, values in shown.items()},
    }


def _maps(found: Look) -> dict[str, np.ndarray]:
    """Those that there are, by what they are of."""
    both = {"class": found.class_map, "caption": found.caption_map}
    return {name: values for name, values in both.items() if values is not None}


def _peak(shown: np.ndarray, picture: Image.Image) -> list[int] | None:
    box = look.peak(shown)
    return None if box is None else _in_pixels(box, picture)


def as_lines(found: Alignment, picture: Image.Image) -> str:
    """A line for each segment: its words, its score and its box (y0, x0, y1, x1) in pixels."""
    width = max(len(segment.text) for segment in found.segments)
    return "\n".join(
        f"{segment.text:<{width}}  {segment.score:8.3f}  {_in_pixels(segment.box, picture)}"
        for segment in found.segments
    )


def as_json(found: Alignment, picture: Image.Image) -> dict[str, Any]:
    """Everything that is known of an alignment; boxes are shares, `pixels` (y0, x0, y1, x1)."""
    return {
        "words": found.words,
        "unknown": list(found.unknown),
        "boxes": found.boxes.tolist(),
        "regions": found.regions.tolist(),
        "scores": found.scores.tolist(),
        "segments": [
            {
                "words": segment.text,
                "score": segment.score,
                "box": segment.box.tolist(),
                "pixels": _in_pixels(segment.box, picture),
            }
            for segment in found.segments
        ],
    }


def _in_pixels(box: np.ndarray, picture: Image.Image) -> list[int]:
    y, x = picture.height, picture.width
    return [round(side * length) for side, length in zip(box.tolist(), (y, x, y, x), strict=True)]


def write_snippets(folder: Path, output: Path, beta: float | None = None) -> None:
    """Writes the segments of every caption of a run's data set, a JSON line each.

    {"image": name, "split": name, "box": [y0, x0, y1, x1], "snippet": words, "score": number}; the
    same snippet of the same box of a picture once, by its first caption.

    Args:
      folder: the workdir.
      output: the file; it is written whole or not at all.
      beta: what it is worth that neighbouring words agree; None: `evaluate.beta` of the run.

    Raises:
      AlignmentError: the model aligns nothing, or nobody knows the boxes of its regions.
      CheckpointError: there is no checkpoint.
      ConfigError, WorkdirError, DataError, WeightsError: see their modules.
    """
    config = workdir.read_config(folder)
    check(config)
    # Here, late: TensorFlow comes with it.
    from vse_jax import evaluation, experiment, train

    run = experiment.prepare(config, folder)
    state = evaluation.best_state(run, train.initial_state(run))

    def fill(file: IO[bytes]) -> None:
        for name, split in run.dataset.splits.items():
            seen = set()
            aligned = align_split(run, state, name, beta)
            for number, found in zip(split.caption_image, aligned, strict=True):
                for text, box, score in found.segments:
                    corners = box.tolist()
                    if (key := (int(number), text, *corners)) in seen:
                        continue
                    seen.add(key)
                    line = {"image": split.images[number], "split": name, "box": corners}
                    line |= {"snippet": text, "score": score}
                    file.write(json.dumps(line).encode() + b"\n")

    whole_file.write(output, fill, ADVICE)
    captions = sum(len(split.captions) for split in run.dataset.splits.values())
    log.info("what %d captions say of regions is in %s", captions, output)


if __name__ == "__main__":
    main(sys.argv[1:])
