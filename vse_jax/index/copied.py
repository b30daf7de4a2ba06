"""Which items of a store a copy elsewhere has, by their keys: what is to be sent and deleted.

What was done is noted behind it: stopped between the two it is done again, which changes nothing.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float

from vse_jax.index.store import Store

# Keys noted, deleted or listed at a time.
KEYS = 1000


def count(store: Store) -> int:
    """Items that the copy has."""
    [(found,)] = store.database.all("SELECT count(*) FROM copied")
    return int(found)


def replace(store: Store, keys: Iterable[int]) -> None:
    """Notes that the copy has these and no others."""
    with store.database.told(), store.database.together():
        store.database.run("DELETE FROM copied")
        store.database.run_many("INSERT OR IGNORE INTO copied VALUES (?)", ((key,) for key in keys))


def superfluous(store: Store) -> Iterator[list[int]]:
    """Keys that the copy has and the store has not, some at a time; each time `removed` follows."""
    wanted = (
        "SELECT key FROM copied WHERE NOT EXISTS (SELECT 1 FROM items WHERE items.key = copied.key)"
        f" LIMIT {KEYS}"
    )
    while rows := store.database.all(wanted):
        yield [key for (key,) in rows]


def removed(store: Store, keys: Iterable[int]) -> None:
    """Notes that the copy has these no more."""
    with store.database.told(), store.database.together():
        store.database.run_many("DELETE FROM copied WHERE key = ?", ((key,) for key in keys))


def missing(store: Store, rows: int) -> Iterator[tuple[list[int], Float[np.ndarray, "n d"]]]:
    """Keys and embeddings of the items that the copy lacks, some at a time; `added` follows."""
    for shard in store.layout():
        lacking = store.database.all(
            "SELECT place, key FROM items WHERE shard = ? AND key NOT IN (SELECT key FROM copied) "
            "ORDER BY place",
            shard.number,
        )
        if lacking:
            places, keys = map(list, zip(*lacking, strict=True))
            embeddings = store.read(shard)
            for start in range(0, len(keys), rows):
                some = slice(start, start + rows)
                yield keys[some], np.ascontiguousarray(embeddings[places[some]])


def added(store: Store, keys: Iterable[int]) -> None:
    """Notes that the copy has these, too."""
    with store.database.told(), store.database.together():
        store.database.run_many("INSERT OR IGNORE INTO copied VALUES (?)", ((key,) for key in keys))
