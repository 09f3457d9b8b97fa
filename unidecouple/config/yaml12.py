"""YAML in and out by the rules of its version 1.2, in which ``1e-3`` is a number and ``on`` is a word.

PyYAML's own rules, of version 1.1, have both the other way round, take ``12:30`` for 750 and let a key stand twice.
"""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

_PREFIX = "tag:yaml.org,2002:"
_PLAIN_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    "merge": (r"<<", ["<"]),
}
"""YAML 1.2, section 10.3.2, and the merge key; without octal and hexadecimal numbers, which no recipe means."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says where it is wrong and, where known, what was meant."""


class _Loader(yaml.SafeLoader):
    yaml_constructors = {
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix(_PREFIX) in {"null", "bool", "int", "float", "str", "seq", "map"}
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """As PyYAML's, but a key that stands twice, or is no text, is an error and not a surprise."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag not in (f"{_PREFIX}str", f"{_PREFIX}merge"):
                raise yaml.MarkedYAMLError(problem="a key must be text: put it in quotes", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Equal parts are written out each time: a saved configuration is read by people."""
        return True


for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    for _name, (_pattern, _first) in _PLAIN_SCALARS.items():
        _class.add_implicit_resolver(_PREFIX + _name, re.compile(f"^(?:{_pattern})$"), _first)


def parse(text: str, source: str) -> Any:
    """The value of a YAML text: None, bool, int, float, str, or lists and dictionaries of them that share nothing.

    Args:
        text: the YAML.
        source: what the text is, for messages.

    Raises:
        ConfigError: the text is no YAML of that kind; the message gives source, line and column.
    """
    try:
        return json.loads(json.dumps(yaml.load(text, Loader=_Loader)))  # noqa: S506 - a SafeLoader; JSON parts what anchors share
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{source}{place}: broken YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{source}: broken YAML: {error}") from None


def write(values: Any) -> str:
    """YAML that ``parse`` turns into equal values."""
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))
