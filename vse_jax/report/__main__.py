"""`python -m vse_jax.report W` renders the page of a workdir again."""

import argparse
import sys
from collections.abc import Sequence

from vse_jax.report import page
from vse_jax.workdir import WorkdirError


def main(arguments: Sequence[str] | None = None) -> None:
    """Renders the reports of the workdirs named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m vse_jax.report", description=main.__doc__)
    parser.add_argument("workdir", nargs="+", help="folder of a trained or evaluated run")
    for workdir in parser.parse_args(arguments).workdir:
        try:
            print(page.write(workdir))
        except (page.ReportError, WorkdirError) as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
