"""Unions whose members are plug-ins: they are imported when a configuration is read, not when its class is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Union


@dataclass(frozen=True)
class PluginUnion:
    """Marks ``Annotated[Base, PluginUnion(members)]``: a value is one of ``members()``, dataclasses that inherit ``Base``."""

    members: Callable[[], tuple[type, ...]]

    def union(self) -> Any:
        """The members as a type."""
        return Union[self.members()]  # noqa: UP007 - built at run time

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Let pydantic check a value against the members in place of the base."""
        return handler.generate_schema(self.union())
