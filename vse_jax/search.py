"""python -m vse_jax.search: finds pictures and sentences by a trained model.

    python -m vse_jax.search index --workdir=RUN --images=FOLDER
    python -m vse_jax.search query --workdir=RUN "two dogs playing in snow"
    python -m vse_jax.search query --workdir=RUN --image=photo.jpg
    python -m vse_jax.search query --model=WEIGHTS --images=FOLDER "two dogs playing in snow"

`index` encodes the pictures of a folder and of those in it, or with --texts its .txt files, a
sentence a line. Again, it encodes what is new or has changed, and forgets what is gone; stopped at
any moment, the same command goes on. `query` prints a line for each of the best: the score, the
file, and of a sentence its line and words; with --json an object. With --kind `index` also builds
another index beside the exact one, and keeps it up to date from then on; `query` looks in that one:
codes (of the codebook that a model of LEAP has learned), flat, hnsw, ivfpq or pq (of FAISS), milvus
(embedded, or a server with --uri, which is asked with the token in MILVUS_TOKEN).

--model is in the place of a workdir: CLIP's or SigLIP's weights, a folder or a name on the Hugging
Face hub. Its index of a folder lies in ~/.cache/vse_jax/index unless --index says otherwise. With
--images `query` first does what `index` does, so that it finds what the folder has now.
"""

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, get_args

from vse_jax import console, finder, indexing, parallel, workdir
from vse_jax.api import Model, load
from vse_jax.encode import Side
from vse_jax.errors import USER_ERRORS
from vse_jax.finder import Finder, Hit
from vse_jax.index import kinds
from vse_jax.index.database import StoreError
from vse_jax.index.store import Store

log = logging.getLogger("vse_jax.search")
# Items encoded at a time.
BATCH = 64


def main(arguments: Sequence[str]) -> None:
    """Does what the command line asks for; a user's mistake ends in one clear line and exit 1."""
    given = _parsed(arguments)
    try:
        console.set_up_logging()
        if given.command == "index":
            parallel.initialize(given.coordinator, given.processes, given.process)
        console.speak_if(parallel.is_first_process())
        parallel.keep_compiled()
        (_index if given.command == "index" else _query)(given)
    except KeyboardInterrupt:
        _end(given, "search: stopped; the same command goes on from here\n", 130)
    except Exception as error:
        several = getattr(given, "coordinator", None)
        if several and (loss := parallel.loss_behind(error)) is not None:
            _end(given, f"search: {loss}\n", 1)
        if not isinstance(error, (*USER_ERRORS, ValueError, OSError)):
            raise
        _end(given, f"search: {error}\n", 1)


def start(arguments: Sequence[str]) -> None:
    """Runs the command line as a process of its own."""
    # What a machine that is shut down sends: what was encoded is kept, as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main(arguments)


def _end(given: argparse.Namespace, told: str, code: int) -> NoReturn:
    """Ends the process with a line of why."""
    sys.stderr.write(told)
    sys.stderr.flush()
    if getattr(given, "coordinator", None):
        os._exit(code)  # other processes wait in collectives; they must not be waited for
    sys.exit(code)


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = console.Parser(
        "python -m vse_jax.search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="index|query")
    both = console.Parser(add_help=False, allow_abbrev=False)
    both.add_model()
    both.add_argument(
        "--kind",
        choices=kinds.KINDS,
        default=kinds.EXACT,
        help="of index: exact, or another, which is built beside it",
    )
    both.add_argument("--uri", help="http://host:port of a server, for --kind=milvus")
    both.add_argument(
        "--index", type=console.path, help="folder of the index (RUN/index/images or texts)"
    )

    index = commands.add_parser("index", parents=[both], help="encode what is new in a folder")
    what = index.add_mutually_exclusive_group(required=True)
    what.add_argument("--images", type=console.path, help="folder of pictures")
    what.add_argument("--texts", type=console.path, help="folder of .txt files, a sentence a line")
    index.add_argument("--forget", action="store_true", help="take the folder out of the index")
    index.add_argument("--batch_size", type=_positive, default=BATCH, help="encoded at a time (64)")
    index.add_argument("--coordinator", help="host:port of process 0, or auto: as of vse_jax.main")
    index.add_argument("--processes", type=_positive, help="how many there are")
    index.add_argument("--process", type=int, help="number of this one")

    query = commands.add_parser("query", parents=[both], help="what is most similar")
    query.add_argument("text", nargs="?", help="a sentence, in quotes")
    query.add_argument("--image", type=console.path, help="a picture, in place of a sentence")
    query.add_argument("--images", type=console.path, help="folder of pictures, indexed first")
    query.add_argument("--among", choices=get_args(Side), default="images", help="what is found")
    query.add_argument("--top", type=_positive, default=10, help="how many (10)")
    query.add_argument("--json", action="store_true", help="print an object for each")
    query.set_defaults(batch_size=BATCH, forget=False)
    given = parser.parse_args(arguments)
    wrong = (_wrong_query if given.command == "query" else _wrong_index)(given)
    if wrong is not None:
        parser.error(wrong)
    return given


def _wrong_index(given: argparse.Namespace) -> str | None:
    return parallel.misfit(given.coordinator, given.processes, given.process)


def _wrong_query(given: argparse.Namespace) -> str | None:
    if (given.text is None) == (given.image is None):
        return "query takes a sentence in quotes, or --image=FILE"
    if given.text is not None and not given.text.strip():
        return "the sentence is empty"
    if given.images is not None and given.among != "images":
        return "--images is of pictures to find: leave --among out"
    if given.workdir is None and given.images is None and given.index is None:
        return "--model has no index of its own: give --images=FOLDER to search, or --index"
    return None


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return value


def _index(given: argparse.Namespace) -> None:
    """Brings an index up to date with a folder."""
    side: Side = "images" if given.images is not None else "texts"
    root = (given.images or given.texts).resolve()
    named = _named_folder(given, side)
    model = load(given.workdir or given.model)
    folder = named or finder.cached_folder(model, side, root)
    _update(given, model, side, root, folder, lambda told: print(told, flush=True))


def _update(
    given: argparse.Namespace,
    model: Model,
    side: Side,
    root: Path,
    folder: Path,
    tell: Callable[[str], None],
) -> None:
    """Brings the index of a model up to date with a folder, and tells what was done."""
    about = finder.about(model, side)
    first = parallel.is_first_process()
    with workdir.locked(folder, first):
        store = Store(folder, None if given.forget else about) if first else None
        if store is not None:
            finder.check(model, store, side)
            kinds.check(given.kind, store, finder.needed(model), given.uri)
        if not given.forget:
            done = indexing.update(model, folder, store, side, root, given.batch_size)
            told = _told(done, folder)
        elif store is not None:
            if str(root) not in (known := store.roots()):
                told = ", ".join(known) or "nothing"
                raise StoreError(f"{root} is not in {folder}, which has {told}")
            store.forget_root(root)
            told = f"{len(store)} items are in {folder}"
        # The first may be long at other indices yet.
        parallel.leave()
        if store is not None:
            tell(told)
            _keep_up(store, finder.needed(model), given.kind, given.uri)


def _named_folder(given: argparse.Namespace, side: Side) -> Path | None:
    """Where the index is, as is said or in the workdir; None: where the model and folder say."""
    if given.index is not None or given.workdir is None:
        return given.index
    return finder.default_folder(given.workdir, side)


def _keep_up(store: Store, model: kinds.Model, asked: str, uri: str | None) -> None:
    """Brings the index that is asked for up to date with the items, and those of before."""
    for kind in dict.fromkeys([*kinds.built(store), asked]):
        where = uri if kind == kinds.MILVUS else None
        # A server may have lost what it had: it is asked where the user asks for it.
        is_elsewhere = kind == asked == kinds.MILVUS
        if kinds.is_current(kind, store, model, where) and not is_elsewhere:
            continue
        log.info("building the index of the kind %s", kind)
        try:
            kinds.build(kind, store, model, where)
        except (StoreError, ValueError) as error:
            if kind == asked:
                raise
            log.warning("the index of the kind %s is left behind: %s", kind, error)


def _told(done: indexing.Report, folder: Path) -> str:
    files, wanted, changed, missing = done.changes
    parts = {
        "new": wanted - changed,
        "changed": changed,
        "gone": missing,
        "unreadable": done.problems,
    }
    told = ", ".join(f"{count} {name}" for name, count in parts.items() if count) or "as before"
    return f"{files} files: {told}; {done.items} items in {folder} ({done.seconds:.0f} s)"


def _query(given: argparse.Namespace) -> None:
    """Prints what is most similar to a sentence or a picture."""
    folder = _named_folder(given, given.among)
    model = load(given.workdir or given.model)
    if given.images is not None:
        root = given.images.resolve()
        folder = folder or finder.cached_folder(model, given.among, root)
        _update(given, model, given.among, root, folder, log.info)
    assert folder is not None, "was asked for"
    found = Finder(model, folder, given.kind, given.uri)
    if given.image is not None:
        [hits] = found.by_images([given.image], given.top)
    else:
        [hits] = found.by_texts([given.text], given.top)
    if not hits:
        log.warning("there is nothing in %s", folder)
    for hit in hits:
        print(_as_json(hit) if given.json else _as_line(hit))


def _as_line(hit: Hit) -> str:
    place = str(hit.item.where)
    if hit.item.line is None:
        return f"{hit.score:.4f}\t{place}"
    return f"{hit.score:.4f}\t{place}:{hit.item.line}\t{hit.item.text}"


def _as_json(hit: Hit) -> str:
    told = {"score": hit.score, "file": str(hit.item.where)}
    if hit.item.line is not None:
        told |= {"line": hit.item.line, "text": hit.item.text}
    return json.dumps(told, ensure_ascii=False)


if __name__ == "__main__":
    start(sys.argv[1:])
