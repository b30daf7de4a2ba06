"""A picture of the demo's search tab, taken in a real browser while the demo runs.

    python scripts/screenshot.py --scenes=scenes
    python -m vse_jax.search index --workdir=runs/shapes --images=scenes
    python -m vse_jax.demo --workdir=runs/shapes &
    python scripts/screenshot.py --query="a big red circle" --output=docs/demo.png

The first draws what is searched, 240 scenes of the test split of `shapes`. The last needs a
Chromium that is installed, and Playwright (`pip install playwright`) to steer it.
"""

import argparse
import contextlib
import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# It runs as root in a container, too, and fetches nothing for itself.
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDTH, HEIGHT = 1180, 800
# Drawn to search in.
SCENES = 240
# Milliseconds to wait for what is asked for.
PATIENCE = 60_000


def draw(folder: Path) -> None:
    """Writes the scenes into a folder, made if need be."""
    from vse_jax.data.shapes import builder

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(SCENES):
        picture = builder.example(0, "test", number)["image"]
        (folder / f"scene_{number:03d}.jpg").write_bytes(picture)


def browser_path() -> str | None:
    """An installed Chromium; None where there is none."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextlib.contextmanager
def opened(url: str) -> Iterator[Any]:
    """The page in a browser, ready: a `playwright.sync_api.Page`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=list(FLAGS))
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(PATIENCE)
        page.goto(url)
        page.wait_for_selector("#header h1")
        yield page
        browser.close()


def search(page: Any, query: str) -> None:
    """Types a query and waits for the photos."""
    page.fill("#words textarea", query)
    page.press("#words textarea", "Enter")
    page.wait_for_selector("#photos figure")


def shoot(page: Any, query: str, output: Path) -> None:
    """Writes a .png of the page with what was found."""
    search(page, query)
    page.wait_for_function("[...document.images].every(image => image.complete)")
    # What is new fades in.
    page.wait_for_function("!document.querySelector('.pending')")
    page.wait_for_timeout(500)
    shot = Image.open(io.BytesIO(page.screenshot()))
    # A third of the bytes.
    shot.quantize(256).save(output, optimize=True)


def main(arguments: list[str]) -> None:
    """Writes the picture, or the photos for it."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--url", default="http://127.0.0.1:7860/", help="of the demo")
    parser.add_argument("--query", help="what is searched for")
    parser.add_argument("--output", type=Path, help="a .png")
    parser.add_argument("--scenes", type=Path, help="a folder in which photos are drawn, no more")
    given = parser.parse_args(arguments)
    if given.scenes is not None:
        draw(given.scenes)
        return
    if given.query is None or given.output is None:
        parser.error("give --query and --output, or --scenes")
    if browser_path() is None:
        sys.exit(f"no browser is installed: one of {', '.join(BROWSERS)}")
    with opened(given.url) as page:
        shoot(page, given.query, given.output)


if __name__ == "__main__":
    main(sys.argv[1:])
