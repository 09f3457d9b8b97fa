"""Checkpoints on the Hugging Face Hub: which names are ids there, and their download into huggingface_hub's own cache."""

from __future__ import annotations

import functools
import logging
import re
from pathlib import Path
from typing import Final

_LOG = logging.getLogger(__name__)
_ID: Final = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TEXTS: Final = ("*.json", "*.txt", "*.jinja", "*.md", "*LICEN[CS]E*", "NOTICE*", "*.model")
_WEIGHTS: Final = ("*.safetensors", "*.bin")
"""The preferred first: a repository may hold both."""


def is_hub_id(name: str) -> bool:
    """Whether ``name`` is no path here and has the form of an id, "owner/name"."""
    return _ID.fullmatch(name) is not None and not Path(name).exists() and not Path(name).parent.exists()


@functools.lru_cache
def download(name: str, weights: bool = True) -> Path:
    """Folder of the Hub's model ``name``, downloaded or from huggingface_hub's cache; its variables (``HF_TOKEN``, …) apply.

    Args:
        name: "owner/name".
        weights: False fetches configuration, tokenizer and licences alone.

    Raises:
        ValueError: there is no such model, access is denied, or the Hub cannot be reached and the cache lacks the model.
    """
    _LOG.info("%s is not a folder here: looking for it on the Hugging Face Hub", name)
    folder = _fetch(name, _TEXTS)
    for kind in _WEIGHTS if weights else ():
        folder = _fetch(name, (*_TEXTS, kind))
        if any(folder.glob(kind)):
            break
    _LOG.info("%s is in %s", name, folder)
    return folder


def _fetch(name: str, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download  # a tenth of a second that a folder needs not
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    start = f"no checkpoint at {name!r}: it is not a folder on this machine, and"
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except GatedRepoError as error:
        raise ValueError(f"{start} its licence must be accepted on its page on the Hub; then run `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise ValueError(f"{start} the Hub has no such model, or it is private: check the name, or run `hf auth login`") from error
    except LocalEntryNotFoundError as error:
        raise ValueError(
            f"{start} the Hub cannot be reached and the local cache does not contain it: run `hf download {name}` with a network "
            "connection, or give a folder"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(f"{start} the Hub's download failed ({_first_line(error)}): try again, or give a folder") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
