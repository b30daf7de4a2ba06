"""The copy in Milvus has what the store has, through changes and stops."""

import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from stores import add, clustered, empty, exactly, keep, names, need

from vse_jax.index import copied, milvus
from vse_jax.index import store as stores
from vse_jax.index.database import StoreError
from vse_jax.index.store import Store

need("pymilvus", "milvus_lite")
ITEMS, K = 400, 10


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Items in shards of 150 rows."""
    monkeypatch.setattr(stores, "SHARD", 150)
    found = empty(tmp_path / "index")
    add(found, clustered(ITEMS, 1), "a")
    return found


@pytest.fixture
def sent(monkeypatch):
    """How many items each message to Milvus has, sent 64 at a time, and deleted."""
    monkeypatch.setattr(milvus, "SENT", 64 * 4 * 16)
    seen = {"upsert": [], "delete": []}
    client = milvus._pymilvus().MilvusClient
    upsert, delete = client.upsert, client.delete

    def watched(self, name, rows, **options):
        seen["upsert"].append(len(rows))
        return upsert(self, name, rows, **options)

    def gone(self, name, ids, **options):
        seen["delete"].append(len(ids))
        return delete(self, name, ids=ids, **options)

    monkeypatch.setattr(client, "upsert", watched)
    monkeypatch.setattr(client, "delete", gone)
    return seen


def search(store, queries, k=K, uri=None):
    copy = milvus.Copy(store, uri)
    try:
        return copy.search(queries, k)
    finally:
        copy.close()


def check(store, uri=None):
    """Milvus finds what the exact search finds, which looks at the store."""
    queries = clustered(20, 2)
    found, expected = search(store, queries, uri=uri), exactly(store, queries, K)
    right = [
        len({*one} & {*other})
        for one, other in zip(found.numbers.tolist(), expected.numbers.tolist(), strict=True)
    ]
    assert np.mean(right) >= 0.98 * K
    np.testing.assert_allclose(found.scores[:, 0], expected.scores[:, 0], atol=1e-5)
    everything = search(store, queries[:1], len(store) + 5, uri)
    assert {*everything.numbers[0].tolist()} == {-1, *range(len(store))}
    assert np.isneginf(everything.scores[0, -5:]).all()


def changed(store):
    """Some forgotten, some new, a shard rewritten; (deleted, sent) that the copy needs."""
    keep(store, [name for name in names(store) if not name.endswith("7.png")])
    add(store, clustered(70, 4), "b")
    return 40, 70


@pytest.mark.parametrize("similarity", ["dot", "negative_euclidean"])
def test_only_changes_are_sent(tmp_path, sent, similarity):
    store = empty(tmp_path, similarity)
    add(store, clustered(ITEMS, 1), "a")
    milvus.build(store)
    assert sent == {"upsert": [64] * 6 + [16], "delete": []}
    assert milvus.is_current(store)
    check(store)
    gone, new = changed(store)
    assert not milvus.is_current(store)
    with pytest.raises(StoreError, match="was made before the last changes: index again with"):
        milvus.Copy(store)
    sent["upsert"].clear()
    milvus.build(store)
    assert (sum(sent["delete"]), sum(sent["upsert"])) == (gone, new)
    check(store)


def test_interrupted_it_goes_on(store, sent, monkeypatch):
    noted, calls = copied.added, []

    def stopped(store, keys):
        """Stopped behind what was sent, and before it is noted."""
        calls.append(len(keys))
        if len(calls) == 3:
            raise KeyboardInterrupt
        noted(store, keys)

    monkeypatch.setattr(copied, "added", stopped)
    with pytest.raises(KeyboardInterrupt):
        milvus.build(store)
    assert not milvus.is_current(store)
    with pytest.raises(StoreError, match="was made before the last changes"):
        milvus.Copy(store)
    already, _ = len(sent["upsert"]), sent["upsert"].clear()
    assert already == 3
    again = Store(store.folder)
    milvus.build(again)
    assert sum(sent["upsert"]) == ITEMS - 2 * 64
    check(again)


# Sends 64 items at a time; after the second it waits to be killed.
PROGRAM = """
import sys
from pathlib import Path
from vse_jax.index import copied, milvus
from vse_jax.index.store import Store
milvus.SENT, noted, calls = 64 * 4 * 16, copied.added, []
def added(store, keys):
    calls.append(keys)
    if len(calls) == 2:
        print("sent", flush=True)
        sys.stdin.read()
    noted(store, keys)
copied.added = added
milvus.build(Store(Path(sys.argv[1])))
"""


@pytest.mark.slow
def test_killed_it_goes_on(store, sent):
    """What Milvus was sent and what is noted of it differ then by one message."""
    command = [sys.executable, "-c", PROGRAM, str(store.folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "sent\n"
        with pytest.raises(StoreError, match="one process at a time"):
            milvus.build(store)
        running.kill()
        assert running.wait() == -signal.SIGKILL
    assert copied.count(store) == 64
    milvus.build(store)
    assert sum(sent["upsert"]) == ITEMS - 64
    check(store)


def test_what_others_did_to_the_collection_is_mended(store):
    milvus.build(store)
    name = milvus._name(store)
    with milvus._client(store, None) as client:
        [first] = store.database.all("SELECT key FROM items LIMIT 1")
        client.delete(name, ids=list(first))
        strangers = [{"key": n, milvus._field(store): row} for n, row in enumerate(clustered(3, 5))]
        client.insert(name, strangers)
    with pytest.raises(StoreError, match="has items that the index has not: index again"):
        search(store, clustered(3, 5))
    add(store, clustered(2, 6), "b")
    milvus.build(store)
    check(store)
    with milvus._client(store, None) as client:
        client.drop_collection(name)
    with pytest.raises(StoreError, match=r"Milvus Lite has lost the copy of .*: index again"):
        milvus.Copy(store)
    milvus.build(store)
    check(store)


def test_another_models_collection_is_refused(store):
    milvus.build(store)
    store.about["model"] = "other"
    with pytest.raises(StoreError, match="was made by another model, whose embeddings mean other"):
        milvus.Copy(store)
    with pytest.raises(StoreError, match="was made by another model"):
        milvus.build(store)


def test_what_logs_is_left_alone():
    """pymilvus, where it is imported anew, would close the handlers of others."""
    program = (
        "import logging, sys; closed = [];"
        "handler = logging.StreamHandler(); handler.close = lambda: closed.append(1);"
        "logging.getLogger('mine').addHandler(handler);"
        "from vse_jax.index import milvus; found = milvus._pymilvus();"
        "sys.exit(len(closed) + (found.MilvusClient is None))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_one_process_at_a_time(store):
    milvus.build(store)
    copy = milvus.Copy(store)
    with pytest.raises(StoreError, match=r"milvus\.db is in use: .* one process at a time; wait"):
        milvus.Copy(store)
    copy.close()
    milvus.Copy(store).close()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("localhost:19530", "expected http://host:port of a Milvus server"),
        ("milvus.db", "expected http://host:port of a Milvus server"),
        ("http://user:word@localhost:1", "must have no password in it: give it by MILVUS_TOKEN"),
    ],
)
def test_a_uri_that_is_none(store, uri, message):
    with pytest.raises(StoreError, match=message):
        milvus.build(store, uri)


def test_a_server_that_is_not_there(store, monkeypatch):
    monkeypatch.setattr(milvus, "PATIENCE", 0.5)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(StoreError, match=f"index: http://127.0.0.1:{port} answers: "):
        milvus.build(store, f"http://127.0.0.1:{port}")


@pytest.fixture
def server(tmp_path):
    """The address of Milvus Lite as a server, in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "milvus_lite", "server", "--host=127.0.0.1"]
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--port={port}", f"--data-dir={tmp_path / 'data'}"], stdout=log, stderr=log
        )
        try:
            for _ in range(600):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


@pytest.mark.slow
def test_a_server_is_used_by_the_same_code(store, server, sent):
    milvus.build(store, server)
    assert not (store.folder / milvus.FOLDER).exists()
    check(store, server)
    # Several at once, and where it is is known.
    one, two = milvus.Copy(store), milvus.Copy(store)
    queries = clustered(3, 2)
    for copy in (one, two):
        np.testing.assert_array_equal(
            copy.search(queries, 1).numbers, exactly(store, queries, 1).numbers
        )
    one.close()
    assert two.search(queries, 1).numbers.shape == (3, 1)
    two.close()
    gone, new = changed(store)
    sent["upsert"].clear()
    milvus.build(store)
    assert (sum(sent["delete"]), sum(sent["upsert"])) == (gone, new)
    check(store)
