"""What each measure is called in a comparison, how it is written, and whether more is better."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from vse_jax.report import classes
from vse_jax.report.tables import CAPTION_MEASURES, MEASURES
from vse_jax.report.text import WAYS, number, three, whole

# Measures of which less is better; of none of the others is it.
LESS = {"MedR", "MeanR", "perplexity", "cross_entropy", "cost", "loss"}
# Measures of which more is better. Of what is in neither nothing is best: counts, how much maps
# agree (which grows with what says nothing, too), correlations (their intervals stand beside them).
MORE = {
    *MEASURES[:3], "rsum", *CAPTION_MEASURES, "accuracy", "per_class", "top5", "class_pointing",
    "caption_pointing",
}  # fmt: skip
RETRIEVAL, OTHER = "Retrieval", "Other measures"
_FAMILIES = {
    "codes/asymmetric": "Retrieval from codes, by queries as they are",
    "codes/symmetric": "Retrieval from codes, by queries that are codes too",
    "caption": "Captions by beam search",
    "caption/greedy": "Captions, greedy",
    "caption/nearest": "Captions of the most similar training pictures, for comparison",
    "classify": "Classes",
    "maps": "Where the model looks",
    "align": "Words and regions",
    "expert": "Closeness and what experts say",
    "crowdflower": "Closeness and what many people say",
    "scenes": "Closeness and the true scenes",
}
_WHOLE, _THREE = ("MedR", "pairs", "vocabulary"), ("spearman", "kendall", "agreement", "entropy")
# The same for all models on the same features: what others are compared with.
_BASELINES = ("caption/nearest", "maps/chance_pointing", "maps/agreement_chance")


class Measure(NamedTuple):
    """How a comparison shows a measure.

    Attributes:
      family: the table that it is in.
      group: above its name, of several measures; empty of one alone.
      name: of its column.
      better: 1 where more is better, -1 where less is, 0 where neither.
      written: its value as text.
    """

    family: str
    group: str
    name: str
    better: int
    written: Callable[[Any], str]


def measure(key: str) -> Measure:
    """How the measure of this key is shown; one that is not known under its key."""
    prefix, _, name = key.rpartition("/")
    group = ""
    if prefix.rpartition("/")[2] in WAYS:
        group = WAYS[prefix.rpartition("/")[2]]
        prefix = prefix.rpartition("/")[0]
    better = 0
    if not key.startswith(_BASELINES):
        better = -1 if name in LESS else int(name in MORE)
    plain = not prefix and (group or name == "rsum")
    family = RETRIEVAL if plain else _FAMILIES.get(prefix, OTHER)
    title = key if family == OTHER else name.replace("_", " ")
    title = (classes.PERCENT | classes.PLAIN).get(key, title)
    return Measure(family, group if family != OTHER else "", title, better, _written(name))


def _written(name: str) -> Callable[[Any], str]:
    if name in _WHOLE:
        return whole
    return three if any(part in name for part in _THREE) else number


def best(key: str, values: Mapping[str, Any]) -> set[str]:
    """Whose value of a measure is best; all of those that are written alike, none of one alone.

    Args:
      key: of the measure.
      values: name -> value; what is no finite number is never best.
    """
    shown = measure(key)
    known = {name: value for name, value in values.items() if shown.written(value)[-1].isdigit()}
    if not shown.better or len(known) < 2:
        return set()
    top = max(known.values(), key=lambda value: shown.better * value)
    return {name for name, value in known.items() if shown.written(value) == shown.written(top)}


def order(keys: Iterable[str]) -> list[str]:
    """Keys in the order in which they are shown: retrieval first, others by family."""
    families = [RETRIEVAL, *_FAMILIES.values(), OTHER]
    ways = ["", *WAYS.values()]

    def place(key: str) -> tuple[int, bool, int]:
        shown = measure(key)
        return families.index(shown.family), key.endswith("rsum"), ways.index(shown.group)

    return sorted(keys, key=place)
