"""The fields of a config by dotted name, as JSON, and with absolute paths."""

import contextlib
import difflib
import functools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vse_jax.defaults import default_config


class ConfigError(Exception):
    """A mistake in a config: names the field, what was met and what would be right."""


@contextlib.contextmanager
def blaming(name: str, *errors: type[Exception]) -> Iterator[None]:
    """Turns `errors` raised inside into a ConfigError that names the field which led to them."""
    try:
        yield
    except errors as error:
        raise ConfigError(f"config field {name!r}: {error}") from error


class Field(NamedTuple):
    """What a field is where nothing is said, and the type that its values have."""

    default: Any
    type: type


@functools.cache
def known() -> Mapping[str, Field]:
    """Dotted name -> field, of every field that there is."""
    config = default_config()
    return MappingProxyType(
        {name: Field(value, config_type(config, name)) for name, value in fields(config)}
    )


def check_name(name: str) -> None:
    """Raises ConfigError unless `name` is the dotted name of a field."""
    if name in known():
        return
    inside = [field for field in known() if field.startswith(f"{name}.")]
    if inside:
        raise ConfigError(f"{name!r} is a group of config fields, such as {inside[0]!r}")
    raise ConfigError(f"unknown config field {name!r}{nearest(name, known())}")


def names_set(arguments: Iterable[str]) -> list[str]:
    """Dotted names of the fields that a command line sets, in its order.

    Raises ConfigError at one that no config has, for which ml_collections would print a trace.
    """
    names = [
        argument.lstrip("-").removeprefix("config.").split("=")[0]
        for argument in arguments
        if argument.startswith("-") and argument.lstrip("-").startswith("config.")
    ]
    for name in names:
        check_name(name)
    return names


def unset(config: ConfigDict) -> None:
    """Unsets, in place, the fields of text that a command line gives as None.

    `--config.model.image.weights=None` comes as that word, and a preset may have named weights.
    """
    optional = {name for name, field in known().items() if field.default is None}
    for name, value in fields(config):
        if value == "None" and name in optional:
            config.update_from_flattened_dict({name: None})


def without_backbone(config: ConfigDict) -> None:
    """Features instead of pictures: no backbone, no weights, nothing of them to freeze."""
    config.data.dataset = "precomputed"
    config.model.image.backbone = "none"
    config.model.image.weights = None
    config.train.freeze = tuple(
        rule
        for rule in config.train.freeze
        if not (isinstance(rule, tuple) and str(rule[0]).startswith("image/backbone"))
    )


def resolved(config: ConfigDict) -> ConfigDict:
    """A copy in which features that a file of captions has beside it take its pictures' place."""
    config = config.copy_and_resolve_references()
    if config.data.dataset == "custom" and config.data.features is not None:
        without_backbone(config)
    return config


def fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every leaf."""
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def config_type(config: ConfigDict, name: str) -> type:
    """The type of the field with this dotted name."""
    *parents, leaf = name.split(".")
    for parent in parents:
        config = config[parent]
    return config.get_type(leaf)


def to_json(config: ConfigDict) -> str:
    """The config as JSON text, for `from_json`."""
    return json.dumps(config.to_dict(), indent=2)


def from_json(text: str) -> ConfigDict:
    """The config that `to_json` wrote; raises ConfigError where it is none of ours."""
    config = default_config()
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"config.json is not JSON: line {error.lineno}: {error.msg}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"config.json holds a {type(values).__name__}, not an object of fields")
    for name, value in fields(ConfigDict(values)):
        check_name(name)
        check_type(name, _tuples(value))
        *parents, leaf = name.split(".")
        target = config
        for parent in parents:
            target = target[parent]
        target[leaf] = _tuples(value)
    return config


# Fields that say where things are, how many are looked at or by what name they are reported; none
# changes what is trained.
PATHS = (
    "data.manual_dir", "data.path", "data.images", "data.features", "data.boxes", "data.snippets",
    "data.labels", "data.semantics", "data.data_dir", "model.image.weights", "model.text.weights",
    "model.text.glove", "train.start_from", "evaluate.expert", "evaluate.crowdflower",
)  # fmt: skip
FREE = (
    *PATHS, "data.protocol", "evaluate.batch_size", "evaluate.queries", "evaluate.beams",
    "evaluate.length_power", "evaluate.beta",
)  # fmt: skip


def with_absolute_paths(config: ConfigDict) -> ConfigDict:
    """A copy whose paths do not depend on the current folder; hub names stay."""
    config = config.copy_and_resolve_references()
    for name in PATHS:
        *parents, leaf = name.split(".")
        section = config
        for parent in parents:
            section = section[parent]
        value = section[leaf]
        if value is not None and (not name.endswith(".weights") or _exists(value)):
            section[leaf] = os.path.abspath(os.path.expanduser(value))
    return config


def _exists(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """One line for each field that differs and matters to what is trained."""
    before, after = (
        {name: value for name, value in fields(config) if name not in FREE} for config in (old, new)
    )
    return [
        f"{name}: {before.get(name)!r} there, {after.get(name)!r} here"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def choose(module: ModuleType, name: str, field: str) -> Any:
    """The attribute `name` of `module`; an unknown one is a ConfigError that lists the known."""
    known = list(module.__all__)
    if name not in known:
        raise ConfigError(
            f"config field {field!r} is {name!r}{nearest(name, known)}; it may be {either(known)}"
        )
    return getattr(module, name)


def check_type(name: str, value: Any) -> None:
    """Raises ConfigError unless `value` may stand in the field `name`."""
    default, wanted = known()[name]
    if value is None:
        if default is not None:
            raise ConfigError(f"config field {name!r} is not set; it must be {wanted.__name__}")
        return
    accepted = (int, float) if wanted is float else wanted
    if not isinstance(value, accepted) or (isinstance(value, bool) and wanted is not bool):
        raise ConfigError(
            f"config field {name!r} is {value!r} ({type(value).__name__}); "
            f"it must be {wanted.__name__}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"config field {name!r} is {value}; it must be finite")


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def either(choices: Iterable[str]) -> str:
    """The choices, as an error lists them."""
    return " or ".join(repr(choice) for choice in sorted(choices))


def nearest(name: str, known: Iterable[str]) -> str:
    """The question whether the nearest of `known` was meant; empty where none is near."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
