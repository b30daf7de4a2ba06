"""A copy of a store in Milvus: embedded in the index's folder (Milvus Lite), or on a server.

A collection has the embeddings of one store, by the items' keys. The name of its field of vectors
has the fingerprint of the model that made them, so that another model's queries find no field. Only
what the copy lacks is sent, and what the store has lost is deleted (`copied`); at the end Milvus
counts what it has, and where that is something else its keys are listed and compared.
"""

import contextlib
import logging.config
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from jaxtyping import Float

from vse_jax.index import copied
from vse_jax.index.approximate import BUILDING, NEIGHBOURS, SEARCHING
from vse_jax.index.database import StoreError
from vse_jax.index.exact import Found
from vse_jax.index.store import Store

log = logging.getLogger(__name__)

KIND = "milvus"
# Of the embedded one.
FOLDER = "milvus.db"
# What lets in, where a server asks for it: a token or user:password.
TOKEN = "MILVUS_TOKEN"
# Bytes of embeddings sent at a time: servers take 64 MiB.
SENT = 16 * 2**20
# Queries sent at a time, and the most items that Milvus finds for one.
QUERIES, MOST = 256, 16_384
# Seconds to wait for a server that does not answer.
PATIENCE = 10


class Record(NamedTuple):
    """Of a copy.

    Attributes:
      uri: of the server; None: embedded.
      generation: of the store as it was copied; -1 while it is being brought up to date.
    """

    uri: str | None
    generation: int


def check(uri: str | None) -> None:
    """Raises StoreError where Milvus is missing, or the uri is none of a server."""
    _pymilvus()
    if uri is not None:
        _checked(uri)


def build(store: Store, uri: str | None = None) -> None:
    """Makes the copy have what the store has, by sending and deleting what differs.

    Stopped at any moment, it goes on from there. In memory for a few thousand items.

    Args:
      store: to be copied.
      uri: http://host:port of a server, asked with the token in the environment's MILVUS_TOKEN;
        None: where the copy is, embedded where there is none.

    Raises:
      StoreError: Milvus is missing, is not reached or refuses; or the uri is none.
    """
    before = _record(store)
    uri = _checked(uri) if uri is not None else before.uri if before is not None else None
    if before is not None and before.uri != uri:
        log.info("a new copy is made in %s; that in %s is left", *map(_told, (uri, before.uri)))
    generation = store.generation
    with _asked(store, uri), _client(store, uri) as client:
        known = client.has_collection(_name(store))
        if not known or before is None or before.uri != uri:
            copied.replace(store, ())
        if not known:
            _make(client, store)
        _check(client, store)
        store.database.note(KIND, Record(uri, -1))
        _update(client, store)
        if _count(client, store) != copied.count(store):
            log.info("the collection was changed by others: it is compared item by item")
            copied.replace(store, _keys(client, store))
            _update(client, store)
            if (found := _count(client, store)) != copied.count(store):
                raise StoreError(
                    f"the collection {_name(store)} in {_told(uri)} has {found} items, not "
                    f"{copied.count(store)}: does another program write into it?"
                )
    store.database.note(KIND, Record(uri, generation))


def is_built(store: Store) -> bool:
    """Whether there is a copy, an old one too."""
    return _record(store) is not None


def is_current(store: Store, uri: str | None = None) -> bool:
    """Whether the copy is of the items as they are; and on this server, if one is given."""
    record = _record(store)
    return (
        record is not None and record.generation == store.generation and uri in (None, record.uri)
    )


class Copy:
    """A copy that is searched."""

    def __init__(self, store: Store, uri: str | None = None) -> None:
        """Opens it.

        Args:
          store: that was copied.
          uri: of the server; None: where it was copied to.

        Raises:
          StoreError: it is not there, is older than the items, is of another model, or Milvus is
            missing or not reached.
        """
        record = _record(store)
        if record is None or (uri is not None and record.uri != _checked(uri)):
            where = "" if uri is None else f" in {uri}"
            raise StoreError(
                f"{store.folder} has no copy{where} in Milvus: give --kind={KIND} when indexing"
            )
        if record.generation != store.generation:
            raise StoreError(
                f"the copy of {store.folder} in Milvus was made before the last changes: index "
                f"again with --kind={KIND}"
            )
        self._store, self._uri = store, record.uri
        self._open = contextlib.ExitStack()
        with _asked(store, record.uri), contextlib.ExitStack() as opened:
            self._client = opened.enter_context(_client(store, record.uri))
            if not self._client.has_collection(_name(store)):
                raise StoreError(
                    f"{_told(record.uri)} has lost the copy of {store.folder}: index again with "
                    f"--kind={KIND}"
                )
            _check(self._client, store)
            _load(self._client, store)
            self._open = opened.pop_all()

    def close(self) -> None:
        """Lets others open it: an embedded one is for one process at a time."""
        self._open.close()

    def search(self, queries: Float[np.ndarray, "q d"], k: int) -> Found:
        """The k items found for each query, the best first; scores as the exact search has them.

        Raises:
          StoreError: k is more than Milvus finds, it is not reached, or its items are others.
        """
        if k > MOST:
            raise StoreError(f"Milvus finds at most {MOST} items; {k} were asked for")
        numbers = np.full((len(queries), k), -1, np.int32)
        values = np.full((len(queries), k), -np.inf, np.float32)
        with _asked(self._store, self._uri):
            for start in range(0, len(queries), QUERIES):
                some = np.ascontiguousarray(queries[start : start + QUERIES], np.float32)
                found = self._client.search(
                    _name(self._store), data=list(some), limit=k, anns_field=_field(self._store),
                    output_fields=["key"], search_params={"params": {"ef": max(SEARCHING, k)}},
                )  # fmt: skip
                for row, hits in enumerate(found, start):
                    numbers[row, : len(hits)] = self._store.numbers([hit["key"] for hit in hits])
                    values[row, : len(hits)] = [hit["distance"] for hit in hits]
        if (numbers[np.isfinite(values)] < 0).any():
            raise StoreError(
                f"the copy of {self._store.folder} in Milvus has items that the index has not: "
                f"index again with --kind={KIND}"
            )
        is_distance = self._store.about["similarity"] == "negative_euclidean"
        scores = -np.sqrt(np.maximum(values, 0)) if is_distance else values
        return Found(numbers, np.where(numbers < 0, -np.inf, scores))


def _update(client: Any, store: Store) -> None:
    """Deletes and sends what differs, as far as is known."""
    name, field = _name(store), _field(store)
    for keys in copied.superfluous(store):
        client.delete(name, ids=keys)
        copied.removed(store, keys)
    for keys, embeddings in copied.missing(store, max(1, SENT // (4 * store.width))):
        rows = [{"key": key, field: row} for key, row in zip(keys, embeddings, strict=True)]
        client.upsert(name, rows)
        copied.added(store, keys)


def _make(client: Any, store: Store) -> None:
    """An empty collection; its index is made of what is sent first."""
    from pymilvus import DataType

    schema = client.create_schema(
        auto_id=False, enable_dynamic_field=False, description=f"vse_jax: {store.about['side']}"
    )
    schema.add_field("key", DataType.INT64, is_primary=True)
    schema.add_field(_field(store), DataType.FLOAT_VECTOR, dim=store.width)
    client.create_collection(_name(store), schema=schema, consistency_level="Strong")


def _check(client: Any, store: Store) -> None:
    """Raises StoreError where another model made the collection."""
    fields = [field["name"] for field in client.describe_collection(_name(store))["fields"]]
    if _field(store) not in fields:
        raise StoreError(
            f"the collection {_name(store)} in Milvus was made by another model, whose embeddings "
            "mean other things: index the folder anew elsewhere (--index)"
        )


def _load(client: Any, store: Store) -> None:
    """Makes the collection ready to be searched."""
    name = _name(store)
    if not client.list_indexes(name):
        params = client.prepare_index_params()
        params.add_index(
            _field(store),
            index_type="HNSW",
            metric_type="L2" if store.about["similarity"] == "negative_euclidean" else "IP",
            params={"M": NEIGHBOURS, "efConstruction": BUILDING},
        )
        client.create_index(name, params)
    client.load_collection(name)


def _count(client: Any, store: Store) -> int:
    """Items that Milvus has; it counts in collections that are ready alone."""
    _load(client, store)
    [found] = client.query(_name(store), output_fields=["count(*)"])
    return int(found["count(*)"])


def _keys(client: Any, store: Store) -> Iterator[int]:
    """Of the items that Milvus has."""
    listed = client.query_iterator(_name(store), batch_size=copied.KEYS, output_fields=["key"])
    try:
        while rows := listed.next():
            yield from (row["key"] for row in rows)
    finally:
        listed.close()


def _name(store: Store) -> str:
    """Of the collection: no other store has the same."""
    return f"vse_jax_{store.about['id']}"


def _field(store: Store) -> str:
    """Of the vectors: no other model has the same."""
    return f"embedding_{store.about['model']}"


def _record(store: Store) -> Record | None:
    found = store.database.noted(KIND)
    return None if found is None else Record(*found)


def _checked(uri: str) -> str:
    """The uri; raises StoreError where it is none of a server."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise StoreError(f"--uri={uri}: expected http://host:port of a Milvus server")
    if parts.username or parts.password:
        raise StoreError(f"--uri must have no password in it: give it by {TOKEN}=user:password")
    return uri.rstrip("/")


def _told(uri: str | None) -> str:
    return "Milvus Lite" if uri is None else uri


@contextlib.contextmanager
def _asked(store: Store, uri: str | None) -> Iterator[None]:
    """Turns what Milvus says into one error that names the place; its own log is silent."""
    client = _pymilvus()
    loud = [logging.getLogger(name) for name in ("pymilvus", "grpc._server", "milvus_lite")]
    levels = [each.level for each in loud]
    for each in loud:
        each.setLevel(logging.CRITICAL + 1)
    try:
        yield
    except client.MilvusException as error:
        told = error.message or str(error)
        raise StoreError(f"{store.folder}: {_told(uri)} answers: {told}") from error
    finally:
        for each, level in zip(loud, levels, strict=True):
            each.setLevel(level)


@contextlib.contextmanager
def _client(store: Store, uri: str | None) -> Iterator[Any]:
    """A connection, closed at the end."""
    client = _pymilvus()
    if uri is not None:
        # Each its own: one that is shared would be closed for all.
        found = client.MilvusClient(
            uri, token=os.environ.get(TOKEN, ""), timeout=PATIENCE, dedicated=True
        )
        try:
            yield found
        finally:
            found.close()
        return
    with _embedded(store.folder / FOLDER) as address:
        found = client.MilvusClient(address, dedicated=True)
        try:
            yield found
        finally:
            found.close()


@contextlib.contextmanager
def _embedded(path: Path) -> Iterator[str]:
    """The address of Milvus Lite in threads of this process, over the files in a folder.

    It listens on this machine alone, but asks nobody there for a token.
    """
    try:
        from milvus_lite.adapter.grpc.server import start_server_in_thread
        from milvus_lite.exceptions import DataDirLockedError
    except ImportError as error:
        raise StoreError(
            "Milvus Lite is missing: pip install 'vse_jax[search]', or give --uri of a server"
        ) from error
    try:
        server, database, port = start_server_in_thread(str(path))
    except DataDirLockedError as error:
        raise StoreError(
            f"{path} is in use: Milvus Lite is for one process at a time; wait, or give --uri of "
            "a server when indexing"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise StoreError(f"{path} cannot be opened: {error}") from error
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(grace=2).wait()
        database.close()


def _pymilvus() -> Any:
    # It configures logging as it is imported, which closes all handlers that there are.
    configure = logging.config.dictConfig
    setattr(logging.config, "dictConfig", lambda _: None)  # noqa: B010 (mypy takes no assignment)
    try:
        import pymilvus
    except ImportError as error:
        raise StoreError(
            "pymilvus is missing, of which this kind of index is: pip install 'vse_jax[search]'; "
            "--kind=exact needs nothing"
        ) from error
    finally:
        setattr(logging.config, "dictConfig", configure)  # noqa: B010
    return pymilvus
