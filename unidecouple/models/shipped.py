"""The bases that come with the package, and where a start given by name or path lies."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

SHIPPED = ("understanding", "unified")


def located(name_or_path: str) -> Path:
    """Return the folder of the shipped base of that name, else the path itself, which need not exist."""
    return Path(str(files("unidecouple") / "assets" / name_or_path)) if name_or_path in SHIPPED else Path(name_or_path)
