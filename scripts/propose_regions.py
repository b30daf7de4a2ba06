"""Proposes regions of a data set's pictures, for `scripts/extract_features.py --boxes=FILE`.

    python scripts/propose_regions.py --config=configs/flickr8k.py --output=boxes.jsonl \
        [--regions=20] [--processes=N] [--batch_size=16] [--config.data.manual_dir=... and others]

Of each picture of every split a line {"image": name, "boxes": [[y0, x0, y1, x1], ...]}, corners as
shares of its height and width: the boxes of selective search of which the ImageNet classifier in
the backbone's weights is surest, without those that overlap a better one, and the whole picture as
the last. --regions counts it. A backbone without a classifier leaves the order to the search, and
the log says so. Selective search runs in --processes, one a core without it, and is OpenCV's:
pip install -e '.[regions]'. Stopped at any moment, the same command goes on; a file that has its
name is whole. What it was made of lies beside it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str]) -> None:
    """Proposes what the command line asks for; a user's mistake ends in one clear line."""
    try:
        _run(arguments)
    except KeyboardInterrupt:
        sys.exit("propose_regions: stopped; the same command goes on from here")


def _run(arguments: Sequence[str]) -> None:
    # Not above: every process of the search imports this file too, and needs nothing of it.
    import config_command
    import region_proposals
    from absl import flags

    own = flags.FlagValues()
    regions = flags.DEFINE_integer("regions", 20, "Boxes a picture.", flag_values=own)
    processes = flags.DEFINE_integer("processes", None, "Of the search.", flag_values=own)
    size = flags.DEFINE_integer("batch_size", 16, "Pictures at a time.", flag_values=own)

    def work(config: Any, output: Path) -> None:
        region_proposals.propose(
            config,
            output,
            regions=regions.value,
            processes=processes.value,
            batch_size=size.value,
        )

    config_command.run("propose_regions", __doc__, arguments, work, own=own, suffix=".jsonl")


if __name__ == "__main__":
    main(sys.argv[1:])
