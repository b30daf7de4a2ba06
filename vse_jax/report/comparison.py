"""Several runs side by side: which may be compared, what they share, and what sets them apart."""

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vse_jax import checkpoint, config
from vse_jax import workdir as workdirs
from vse_jax.report import measures
from vse_jax.report.runs import ReportError, Run, read
from vse_jax.report.text import finite

# Fields of a config that choose what is measured, where digests of the data are not the same.
_CHOOSING = (
    "data.path", "data.snippets", "data.shapes_captions", "data.shapes_clutter",
    "data.shapes_hidden", "data.shapes_objects",
)  # fmt: skip
# Stands for a field that a config does not have, and for one that nothing reads.
ABSENT, IDLE = "(not there)", "–"


class Compared(NamedTuple):
    """A run among others.

    Attributes:
      name: the end of its folder's path that no other run has.
      run: what its files say.
      data: digest of its data, where it is known.
      parameters: numbers that its model has, where they are known.
      checkpoint_bytes: of its best checkpoint on disk, where there is one.
      seconds: of its training steps, without compiling and validation, where they are known.
      warnings: of its report, and of what could not be read here.
    """

    name: str
    run: Run
    data: str | None
    parameters: int | None
    checkpoint_bytes: int | None
    seconds: float | None
    warnings: Sequence[str]


class Group(NamedTuple):
    """Runs that were measured on the same data, in the order they were given.

    Attributes:
      dataset, split, protocol: by which they were measured.
      runs: at least one.
    """

    dataset: str
    split: str
    protocol: str
    runs: Sequence[Compared]


class Difference(NamedTuple):
    """A field of the configs that is not the same in all.

    Attributes:
      field: its dotted name.
      values: of each run as text; IDLE where nothing reads it.
      matters: whether it changes what is trained; else it says where files are, or how much is
        shown.
    """

    field: str
    values: Sequence[str]
    matters: bool


def collect(folders: Sequence[str | os.PathLike[str]]) -> list[Compared]:
    """The runs of these workdirs, in their order.

    Raises:
      ReportError: one has no report, or is named twice.
      WorkdirError: a file of one cannot be read.
    """
    paths = [Path(folder) for folder in folders]
    real = [path.resolve() for path in paths]
    for path, own in zip(paths, real, strict=True):
        if real.count(own) > 1:
            raise ReportError(f"{path} is named twice")
    return [_compared(name, read(path)) for name, path in zip(_names(real), paths, strict=True)]


def groups(runs: Sequence[Compared]) -> list[Group]:
    """The runs by what they were measured on, so that no table mixes two data sets or protocols.

    Two belong together by the same names of data set, split and protocol, and by the same data:
    the same digest, or configs that choose the same test data (a digest is of the training data
    too) and the same values of chance and of the oracle where both know them.
    """
    found: list[list[Compared]] = []
    for run in runs:
        alike = [group for group in found if all(_measured_alike(own, run) for own in group)]
        if alike:
            alike[0].append(run)
        else:
            found.append([run])
    return [Group(*_named(group[0].run), group) for group in found]


class Table(NamedTuple):
    """Measures of one kind, side by side.

    Attributes:
      title: what they are of.
      keys: of the measures, the columns.
      rows: name of a run -> its measures, of every run that has one of the keys.
      beside: what to hold them against, such as chance: name -> measures.
    """

    title: str
    keys: Sequence[str]
    rows: Mapping[str, Mapping[str, Any]]
    beside: Mapping[str, Mapping[str, Any]]

    def best(self, key: str) -> set[str]:
        """Names of the runs that are best by a measure, see `measures.best`."""
        return measures.best(
            key, {name: found[key] for name, found in self.rows.items() if key in found}
        )


def tables(group: Group) -> list[Table]:
    """What at least two runs of a group have measured, by kind; further protocols apart."""
    metrics = {run.name: run.run.report.get("metrics", {}) for run in group.runs}
    beside = {name: _first(group, name) for name in ("chance", "oracle")}
    found = _by_family(metrics, beside)
    protocols = {run.name: run.run.report.get("protocols", {}) for run in group.runs}
    for protocol in dict.fromkeys(itertools.chain.from_iterable(protocols.values())):
        those = {name: known[protocol] for name, known in protocols.items() if protocol in known}
        found += [
            table._replace(title=f"{table.title}, protocol {protocol}")
            for table in _by_family(those, {})
        ]
    return found


def alone(group: Group) -> dict[str, list[str]]:
    """Name of a run -> measures that it has and no other, as far as there are others."""
    counts = _counts(run.run.report.get("metrics", {}) for run in group.runs)
    return {
        run.name: keys
        for run in group.runs
        if (keys := [k for k in run.run.report.get("metrics", {}) if counts[k] == 1])
    }


def differences(group: Group) -> list[Difference]:
    """The fields in which the configs of a group differ, those that matter first."""
    configs = [fields_of(run.run) for run in group.runs]
    found = []
    for field in sorted({name for fields in configs for name in fields}):
        values = [_shown(fields, field) for fields in configs]
        if len({*values} - {IDLE}) > 1:
            found.append(Difference(field, values, field not in config.FREE))
    return sorted(found, key=lambda one: not one.matters)


def _shown(fields: Mapping[str, Any], field: str) -> str:
    """The value of a field as text; IDLE without a config, or of a term whose weight is 0."""
    term, _, name = field.rpartition(".")
    idle = term.startswith("objective.") and name != "weight" and not fields.get(f"{term}.weight")
    if not fields or idle:
        return IDLE
    return _written(fields[field]) if field in fields else ABSENT


def validated_on(run: Compared) -> int | None:
    """Pictures that validation was cut down to, which makes retrieval easier; None for all."""
    return fields_of(run.run).get("data.validation_limit")


def fields_of(run: Run) -> dict[str, Any]:
    """Dotted name -> value of the fields of its config; empty without one."""
    return _flat(run.report.get("config", {}))


def shared_queries(group: Group, part: str) -> list[tuple[Mapping[str, Any], dict[str, Any]]]:
    """What several runs of a group answered to the same query.

    Args:
      group: of runs.
      part: of `queries.json`: "i2t", "t2i" or "captions".

    Returns:
      (a query as one run has it, name of a run -> that query and its answer) of each that at least
      two have.
    """
    found: dict[Any, dict[str, Any]] = {}
    for run in group.runs:
        for item in run.run.queries.get(part, ()):
            key = (str(item.get("name")), str(item.get("text")))
            found.setdefault(key, {}).setdefault(run.name, item)
    return [(next(iter(own.values())), own) for own in found.values() if len(own) > 1]


def _compared(name: str, run: Run) -> Compared:
    """A run with what its other files say of it."""
    warnings = list(run.report.get("warnings", ()))
    digest, parameters, size = None, None, None
    if (run.workdir / workdirs.ORIGIN).exists():
        digest = workdirs.read_origin(run.workdir).get("data")
    newest = checkpoint.newest_of(run.workdir / "checkpoints" / "best")
    if newest is not None:
        size = sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())
        try:
            parameters = checkpoint.parameters_of(newest)
        except checkpoint.CheckpointError as error:
            warnings.append(str(error))
    return Compared(name, run, digest, parameters, size, _seconds(run), warnings)


def _seconds(run: Run) -> float | None:
    """What its steps took, by the rates that were logged; None where none was."""
    batch = fields_of(run).get("train.batch_size")
    if not finite(batch):
        return None
    total, before = 0.0, 0
    for row in run.history:
        rate = row.get("time/images_per_second")
        if rate is not None and finite(rate) and rate > 0:
            total += (row["step"] - before) * batch / rate
        before = row["step"]
    return total or None


def _names(paths: Sequence[Path]) -> list[str]:
    """Of each path the shortest end that no other has, and that is more than a number."""
    names = []
    for path in paths:
        ends = [Path(*path.parts[-n:]) for n in range(1, len(path.parts) + 1)]
        others = [other for other in paths if other != path]
        names.append(
            next(
                str(end)
                for end in ends
                if not str(end).isdigit()
                and all(other.parts[-len(end.parts) :] != end.parts for other in others)
            )
        )
    return names


def _named(run: Run) -> tuple[str, str, str]:
    report = run.report
    dataset, split, protocol = (str(report.get(k, "?")) for k in ("dataset", "split", "protocol"))
    return dataset, split, protocol


def _measured_alike(one: Compared, other: Compared) -> bool:
    """Whether two runs may stand in one table, see `groups`."""
    if _named(one.run) != _named(other.run):
        return False
    first, second = one.run.report, other.run.report
    for known in ("chance", "oracle"):
        if first.get(known, {}) and second.get(known, {}) and first[known] != second[known]:
            return False
    if one.data is not None and one.data == other.data:
        return True
    fields = [fields_of(run.run) for run in (one, other)]
    labels = {str(own["data.labels"]) for own in fields if own.get("data.labels") is not None}
    chosen = [[own.get(name) for name in _CHOOSING] for own in fields if own]
    return len(labels) < 2 and all(values == chosen[0] for values in chosen)


def _by_family(
    metrics: Mapping[str, Mapping[str, Any]], beside: Mapping[str, Mapping[str, Any]]
) -> list[Table]:
    """A table of each kind of measure that at least two have, or the only one of a group."""
    counts = _counts(metrics.values())
    enough = min(2, len(metrics))
    found: dict[str, list[str]] = {}
    for key in measures.order(key for key, count in counts.items() if count >= enough):
        found.setdefault(measures.measure(key).family, []).append(key)
    return [
        Table(
            family,
            keys,
            {name: own for name, own in metrics.items() if any(key in own for key in keys)},
            {
                name: own
                for name, own in beside.items()
                if family == measures.RETRIEVAL and any(key in own for key in keys)
            },
        )
        for family, keys in found.items()
    ]


def _first(group: Group, name: str) -> Mapping[str, Any]:
    """What the first run that knows it says: all that do are in one group and say the same."""
    known = (run.run.report.get(name) for run in group.runs)
    return next((found for found in known if found), {})


def _counts(keys: Iterable[Iterable[str]]) -> Counter[str]:
    return Counter(itertools.chain.from_iterable(keys))


def _flat(config_: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of every leaf of a config as JSON."""
    found: dict[str, Any] = {}
    for key, value in config_.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _written(value: Any) -> str:
    """A field's value, as a command line takes it."""
    return value if isinstance(value, str) else repr(_tuples(value))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
