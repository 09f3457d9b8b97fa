"""Optional dependencies: the one message for a package that is not installed."""

from __future__ import annotations

import importlib.metadata
from typing import Literal

Extra = Literal["data", "gguf", "gradient", "quantized", "serve"]


def missing_package(purpose: str, extra: Extra, error: ImportError) -> ValueError:
    """Return the error for a user who lacks a package of ``extra``.

    The remedy lists the extra's requirements, since ``unidecouple`` may be installed from a clone that pip cannot find by name.

    Args:
        purpose: what needs the package: "serve", "reading data.parquet".
        extra: the optional-dependency group of pyproject.toml that contains the package.
        error: from the failed import.
    """
    missing = error.name.partition(".")[0] if error.name else str(error)
    remedy = " ".join(f"'{requirement}'" for requirement in requirements(extra))
    return ValueError(f"{purpose} needs {missing}, which is not installed: pip install {remedy} (extra {extra!r} of unidecouple)")


def requirements(extra: Extra) -> list[str]:
    """Requirements of ``extra``, from the installed package's metadata."""
    parts = (line.partition(";") for line in importlib.metadata.requires("unidecouple") or ())
    return [requirement.strip() for requirement, _, marker in parts if marker.split() == ["extra", "==", f'"{extra}"']]
