"""Read, layer, override, check and write configurations. The only place that knows YAML and pydantic.

A configuration is a frozen dataclass. Its values come from YAML files merged left to right, then from overrides
``dotted.key=value`` (``layers.py``), and are checked strictly: no unknown key, no "3" where a number is meant, no ``yes`` for
true. Every misfit is reported with its file, its place and the nearest known name (``explain.py``).
"""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union

from pydantic import ConfigDict, TypeAdapter, ValidationError

from unidecouple.config.differ import differences as _differences
from unidecouple.config.explain import explain
from unidecouple.config.layers import Layers
from unidecouple.config.renamed import migrate, moved_keys
from unidecouple.config.yaml12 import ConfigError, write

__all__ = ["ConfigError", "differences", "dump", "load", "plain", "restore", "top_keys"]

T = TypeVar("T")


def load(
    schema: type[T], paths: Sequence[Path], overrides: Sequence[str] = (), values: Sequence[tuple[str, Mapping[str, Any]]] = ()
) -> T:
    """The configuration that ``paths``, left to right, then ``values`` and then ``overrides`` describe.

    Args:
        schema: a frozen dataclass; nested dataclasses, enums, Literal, dict, list, tuple, unions and Path are understood.
        paths: YAML files. None at all gives the schema's defaults.
        overrides: each "dotted.key=value", value in YAML; a number steps into a list ("stages.0.learning_rate=1e-3").
        values: each a source's name, for messages, and JSON's own types.

    Raises:
        ConfigError: a file is missing or broken, or the whole does not fit the schema; every misfit is listed.
    """
    layers = Layers(moved_keys(schema))
    for path in paths:
        layers.add_file(Path(path))
    for source, given in values:
        layers.add_values(given, source)
    for override in overrides:
        layers.add_override(override)
    return _checked(schema, layers)


def restore(schema: type[T], values: Mapping[str, Any], source: str) -> T:
    """The configuration that ``plain`` gave as ``values``; a key that is newer has its default value.

    Args:
        schema: its class.
        values: JSON's own types.
        source: where they stand, for messages.

    Raises:
        ConfigError: the values do not fit the schema; every misfit is listed.
    """
    layers = Layers(moved_keys(schema))
    layers.add_values(values, source)
    return _checked(schema, layers)


def top_keys(paths: Sequence[Path]) -> set[str]:
    """The top-level keys of ``paths``, their bases' among them, for who asks what kind of configuration that is.

    Raises:
        ConfigError: a file is missing or broken.
    """
    layers = Layers()
    for path in paths:
        layers.add_file(Path(path))
    return set(layers.values)


def dump(config: object) -> str:
    """YAML that ``load`` turns into an equal configuration. Every key is written, defaults too."""
    return write(plain(config))


def plain(config: object) -> Any:
    """``config`` as JSON's own types: what ``dump`` writes, and what result files carry."""
    return _adapter(type(config)).dump_python(config, mode="json")


def differences(theirs: object, ours: object) -> list[str]:
    """Lines on where configuration ``theirs`` is not ``ours``, as "stages.0.share: 0.1, not 0.05"; none if they mean the same."""
    return _differences(plain(theirs), plain(ours))


def _checked(schema: type[T], layers: Layers) -> T:
    try:
        return _adapter(schema).validate_json(json.dumps(migrate(schema, layers)))  # as JSON: strict, yet a list may become a tuple
    except ValidationError as error:
        raise ConfigError(explain(schema, layers, error.errors(include_url=False))) from None


_ADAPTERS: dict[type, TypeAdapter[Any]] = {}
"""By class: a schema of all unions takes .1 s to build, and a grid dumps hundreds of configurations."""


def _adapter(schema: type) -> TypeAdapter[Any]:
    if schema not in _ADAPTERS:
        # A plain dataclass takes no settings of pydantic's; a union with None carries them in and changes no message.
        settings = ConfigDict(extra="forbid", strict=True, ser_json_inf_nan="constants")
        _ADAPTERS[schema] = TypeAdapter(typing.cast("type", Union[schema, None]), config=settings)  # noqa: UP007 - built at run time
    return _ADAPTERS[schema]
