"""Checkpoints in a published layout, converted into a cache the first time that a command reads them.

The cache is ``$UNIDECOUPLE_CACHE``, else ``$XDG_CACHE_HOME/unidecouple``, else ``~/.cache/unidecouple``. A conversion is kept under
its source's path and the names, sizes and times of the source's files, so a changed source is converted again.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Final

from filelock import FileLock

from unidecouple import __version__
from unidecouple.convert.convert import convert
from unidecouple.convert.steps import Conversion

_LOG = logging.getLogger(__name__)
VARIABLE: Final = "UNIDECOUPLE_CACHE"


def cache_folder() -> Path:
    """The folder of conversions; it need not exist."""
    if given := os.environ.get(VARIABLE):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unidecouple"


def converted(source: Path) -> Path:
    """Folder of ``source`` in our layout, made if the cache lacks it; other processes wait meanwhile.

    Raises:
        ValueError: ``source`` cannot be converted.
        StorageError: the disk is full, or the cache cannot be written.
    """
    target = cache_folder() / "converted" / f"{source.name}-{_key(source)}"
    if (target / "config.json").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"the cache {target.parent} cannot be created ({error.strerror}): set {VARIABLE} to another folder"
        ) from error
    with FileLock(target.parent / f"{target.name}.lock"):
        if not (target / "config.json").is_file():
            _LOG.info("converting %s once, into %s", source, target)
            convert(source, target, Conversion(), _LOG.debug)
    return target


def _key(source: Path) -> str:
    real = Path(os.path.realpath(source))
    files = sorted(path for path in real.iterdir() if path.is_file() and not path.name.startswith("."))
    states = [(path.name, state.st_size, state.st_mtime_ns) for path in files for state in [path.stat()]]
    return hashlib.sha256(repr((__version__, str(real), states)).encode()).hexdigest()[:16]
