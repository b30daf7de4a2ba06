"""python -m vse_jax.demo --workdir=RUN [--workdir=ANOTHER]: a page to try trained models on.

Its tabs search a folder of photos by words or by a photo (in the index that
python -m vse_jax.search index made), write captions of a photo, and tie the words of a sentence to
regions of a photo. Each is done by the first workdir that can; one that none can do says why.
--model and --index in the place of a workdir are as of vse_jax.search.
"""

import argparse
import logging
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vse_jax import console, hub, parallel
from vse_jax.demo import tabs
from vse_jax.demo.gate import is_local
from vse_jax.errors import USER_ERRORS
from vse_jax.index import kinds

log = logging.getLogger("vse_jax.demo")
# Open at a time; each browser holds two or three.
CONNECTIONS = 200


class DemoError(Exception):
    """Why there is no page: says what to do, in one line."""


def main(arguments: Sequence[str]) -> None:
    """Serves the page until it is stopped; a user's mistake ends in one clear line and exit 1."""
    given = _parsed(arguments)
    console.set_up_logging()
    parallel.keep_compiled()
    try:
        serve(given.workdir, given.index, given.kind, given.host, given.port, given.images)
    except (*USER_ERRORS, DemoError, OSError) as error:
        sys.stderr.write(f"demo: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def serve(
    folders: Sequence[Path],
    index: Path | None,
    kind: str,
    host: str,
    port: int,
    images: Path | None = None,
) -> None:
    """Serves the page until it is stopped.

    Args:
      folders: as of `tabs.served`.
      index: as of `tabs.served`.
      kind: likewise.
      host: name or address to listen at.
      port: there; 0 for a free one.
      images: as of `tabs.served`.

    Raises:
      DemoError: the extra [demo] is missing, the address cannot be listened at, or no task can be
        done.
      Of USER_ERRORS: a workdir that cannot be loaded.
    """
    try:
        import uvicorn

        from vse_jax.demo import page
    except ImportError as error:
        raise DemoError(f"it needs Gradio: pip install 'vse-jax[demo]' ({error})") from error
    # Taken before the models are loaded, and listened at after.
    with _bound(host, port) as listening, ThreadPoolExecutor(1) as worker:
        log.info("loading and warming up")
        tasks = worker.submit(tabs.served, folders, index, kind, images).result()
        if not any(isinstance(outcome, tabs.Served) for outcome in tasks.values()):
            reasons = "\n  ".join(tabs.reasons(tasks))
            raise DemoError(f"there is nothing to show:\n  {reasons}")
        local = is_local(host)
        if not local:
            log.warning("who reaches this machine at %s sees the photos of the index", host)
        application = page.application(tasks, worker, local)
        settings = uvicorn.Config(
            application,
            log_level="warning",
            access_log=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=2,
            ws="none",
        )
        listening.listen()
        shown = f"[{host}]" if ":" in host else host
        log.info("the page is at http://%s:%d/", shown, listening.getsockname()[1])
        uvicorn.Server(settings).run(sockets=[listening])


def _bound(host: str, port: int) -> socket.socket:
    """A socket at an address; raises DemoError where it cannot be had."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind)
    except (OSError, UnicodeError) as error:
        told = getattr(error, "strerror", None) or "it is no name"
        raise DemoError(f"--host={host} is no address of this machine: {told}") from error
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise DemoError(
            f"{host}:{port} cannot be listened at ({error.strerror}): give another --port or --host"
        ) from error
    return found


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = console.Parser("python -m vse_jax.demo", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--workdir", type=console.path, action="append", help=f"{console.WORKDIR}; repeatable"
    )
    parser.add_argument("--model", dest="workdir", type=_model, action="append", help=console.MODEL)
    parser.add_argument("--index", type=console.path, help="folder of the index (RUN/index/images)")
    parser.add_argument(
        "--images", type=console.path, help="folder of photos that was indexed by a --model"
    )
    parser.add_argument("--kind", choices=kinds.KINDS, default=kinds.EXACT, help="of index (exact)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    parser.add_argument(
        "--port", type=_port, default=7860, help="to listen at; 0: a free one (7860)"
    )
    given = parser.parse_args(arguments)
    if given.workdir is None:
        parser.error("the following arguments are required: --workdir or --model")
    return given


def _model(text: str) -> Path:
    return Path(hub.reference(text))


def _port(text: str) -> int:
    value = int(text) if text.isdecimal() else -1
    if not 0 <= value < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a whole number below 65536")
    return value


if __name__ == "__main__":
    main(sys.argv[1:])
