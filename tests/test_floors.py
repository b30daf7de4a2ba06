"""The house: rooms import downward only, and the mathematics knows nothing of devices."""

import ast
import graphlib
from pathlib import Path

import vse_jax

HOUSE = Path(vse_jax.__file__).parent
# What each of these rooms may use of the house, itself apart.
ALLOWED = {
    "losses": {"codebook", "similarity"},
    "models": {"encoding"},
    "evaluators": {"boxes", "codebook", "protocols", "similarity"},
    "index": {"codebook", "evaluators", "similarity"},
    "objectives": {"encoding", "losses", "parallel", "codebook", "similarity"},
    "captioning": set(),
    "boxes": set(),
    "parallel": set(),
    "similarity": set(),
    "codebook": set(),
    "encoding": set(),
    "protocols": set(),
}


def imports() -> dict[str, set[str]]:
    """Of each module or package right below vse_jax, the others that its files import."""
    found: dict[str, set[str]] = {}
    for path in HOUSE.rglob("*.py"):
        room = path.relative_to(HOUSE).with_suffix("").parts[0]
        used = found.setdefault(room, set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vse_jax"):
                _, *inner = node.module.split(".")
                used |= {inner[0]} if inner else {name.name for name in node.names}
            elif isinstance(node, ast.Import):
                names = [name.name.split(".") for name in node.names]
                used |= {parts[1] for parts in names if parts[0] == "vse_jax" and parts[1:]}
        used.discard(room)
    return found


def test_rooms_import_downward_only():
    floors = list(graphlib.TopologicalSorter(imports()).static_order())
    assert floors.index("losses") < floors.index("objectives") < floors.index("train")


def test_the_mathematics_uses_what_it_may():
    found = imports()
    assert {room: found[room] - allowed for room, allowed in ALLOWED.items()} == {
        room: set() for room in ALLOWED
    }
