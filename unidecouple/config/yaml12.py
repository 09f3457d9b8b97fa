"""YAML in and out by the rules of its version 1.2, in which ``1e-3`` is a number and ``on`` is a word.

PyYAML's own rules, of version 1.1, have both the other way round, take ``12:30`` for 750 and let a key stand twice.
"""

from __future__ import annotations

import functools
import json
import math
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


_MOST_VALUES = 100_000
"""Of one text, with each alias written out: a few nested aliases stand for billions. A long text counts once per 64 characters."""
_DEEPEST = 60
"""Levels of nesting."""
_PLAIN = {_PREFIX + name: re.compile(f"(?:{pattern})") for name, (pattern, _) in _PLAIN_SCALARS.items()}


class _Loader(yaml.SafeLoader):
    yaml_constructors = {
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix(_PREFIX) in {"null", "bool", "int", "float", "str", "seq", "map"}
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values, self._depth = 0, 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As PyYAML's, within ``_MOST_VALUES`` and ``_DEEPEST``; PyYAML itself sets no bound."""
        mark, before = self.peek_event().start_mark, self._values
        alias = self.check_event(yaml.AliasEvent)
        self._depth += 1
        if self._depth > _DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"values nested more than {_DEEPEST} levels deep", problem_mark=mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        text = node.value if isinstance(node, yaml.ScalarNode) else ""
        self._values += self._sizes.get(id(node), 1) if alias else 1 + len(text) // 64
        if self._values > _MOST_VALUES:
            problem = f"more than {_MOST_VALUES:,} values, with each alias (*name) written out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        if not alias:
            self._sizes[id(node)] = self._values - before
        return node

    def construct_number(self, node: yaml.ScalarNode) -> bool | int | float:
        """A truth value or a number in YAML 1.2's form that fits into 64 bits.

        PyYAML reads more where a tag asks for it (``!!int 1:30`` is 90), and numbers of any size.
        """
        text = self.construct_scalar(node)
        kind = node.tag.removeprefix(_PREFIX)
        mark = node.start_mark
        if not _PLAIN[node.tag].fullmatch(text) and not (kind == "float" and _PLAIN[f"{_PREFIX}int"].fullmatch(text)):
            raise yaml.MarkedYAMLError(problem=f"{_short(text)} is no {kind}", problem_mark=mark)
        if kind == "bool":
            return text.lower() == "true"
        value = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        if kind == "float":
            if math.isinf(value) and "inf" not in text.lower():
                raise yaml.MarkedYAMLError(problem=f"{_short(text)} is too large a number", problem_mark=mark)
            return value
        if abs(value) > 2.0**63 or not -(2**63) <= int(text) < 2**63:
            raise yaml.MarkedYAMLError(problem=f"{_short(text)} does not fit into 64 bits", problem_mark=mark)
        return int(text)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """As PyYAML's, but a key that stands twice, or is no text, is an error and not a surprise."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag not in (f"{_PREFIX}str", f"{_PREFIX}merge"):
                raise yaml.MarkedYAMLError(problem="a key must be text: put it in quotes", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} appears twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


for _kind in ("bool", "int", "float"):
    _Loader.add_constructor(_PREFIX + _kind, _Loader.construct_number)


def _short(text: str) -> str:
    return repr(text) if len(text) <= 40 else f"{text[:40]!r}… ({len(text):,} characters)"


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Equal parts are written out each time: a saved configuration is read by people."""
        return True


for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    for _name, (_pattern, _first) in _PLAIN_SCALARS.items():
        _class.add_implicit_resolver(_PREFIX + _name, re.compile(f"^(?:{_pattern})$"), _first)


@functools.lru_cache(maxsize=128)
def _as_json(text: str) -> str:
    """The same value as JSON, which parts what anchors share. Bases are read again for each recipe that starts from them."""
    return json.dumps(yaml.load(text, Loader=_Loader))  # noqa: S506 - a SafeLoader


def parse(text: str, source: str) -> Any:
    """The value of a YAML text: None, bool, int, float, str, or lists and dictionaries of them that share nothing.

    Args:
        text: the YAML.
        source: what the text is, for messages.

    Raises:
        ConfigError: the text is no YAML of that kind; the message gives source, line and column.
    """
    try:
        return json.loads(_as_json(text))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{source}{place}: broken YAML: {error.problem or error.context}") from None
    except RecursionError:  # an alias inside what it stands for, by way of a merge
        raise ConfigError(f"{source}: broken YAML: values nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{source}: broken YAML: {' '.join(str(error).split())}") from None


def write(values: Any) -> str:
    """YAML that ``parse`` turns into equal values."""
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))
