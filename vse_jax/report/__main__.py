"""python -m vse_jax.report: renders the page of a workdir again, or compares several.

    python -m vse_jax.report RUN
    python -m vse_jax.report RUN RUN ... --output=comparison.html --output=comparison.md

Of one workdir `report.html` is written anew from its files. Of several it writes one page: the
measures they share, what differs in their configs, their curves over each other, and what they
retrieved for the same queries. Runs that were measured on other data, or by another split or
protocol, stand apart. The ending of --output says what is written: .html, .json or .md.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vse_jax import console
from vse_jax.checkpoint import CheckpointError
from vse_jax.report import comparison, comparison_files, comparison_page, page
from vse_jax.report.runs import ReportError
from vse_jax.workdir import WorkdirError

WRITERS: dict[str, Callable[[Sequence[comparison.Group]], str]] = {
    ".html": comparison_page.render,
    ".json": comparison_files.as_json,
    ".md": comparison_files.as_markdown,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Does what the command line asks for; a user's mistake ends in one clear line and exit 1."""
    given = _parsed(arguments)
    console.set_up_logging()
    try:
        if len(given.workdir) == 1:
            print(page.write(given.workdir[0]))
            return
        groups = comparison.groups(comparison.collect(given.workdir))
        for path in given.output or [Path("comparison.html")]:
            page.save(path, WRITERS[path.suffix](groups))
            print(path)
        if len(groups) > 1:
            sys.stderr.write(f"report: {comparison_files.apart(groups)}\n")
    except (CheckpointError, ReportError, WorkdirError, OSError) as error:
        sys.exit(f"report: {error}")


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = console.Parser(
        "python -m vse_jax.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("workdir", nargs="+", help="folder of a trained or evaluated run")
    parser.add_argument(
        "--output",
        type=_output,
        action="append",
        help="where the comparison goes (comparison.html); may be given several times",
    )
    given = parser.parse_args(arguments)
    if given.output and len(given.workdir) == 1:
        parser.error("--output is for comparing several workdirs; one has its report.html")
    return given


def _output(text: str) -> Path:
    path = Path(text)
    if path.suffix not in WRITERS:
        raise argparse.ArgumentTypeError(f"{text!r} does not end in {' or '.join(WRITERS)}")
    return path


if __name__ == "__main__":
    main()
