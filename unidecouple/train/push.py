"""Upload a checkpoint to the Hugging Face Hub: weights, configuration, processor, licences and a model card."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from unidecouple.convert.hub import is_hub_id
from unidecouple.convert.json_files import read_json
from unidecouple.convert.licences import licence_files
from unidecouple.convert.load import checkpoint_folder
from unidecouple.convert.stored import all_checkpoints
from unidecouple.models.shipped import SHIPPED
from unidecouple.train.model_card import HUB_ID, model_card

ADAPTER: Final = "adapter_config.json"
MODEL_FILES: Final = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    ADAPTER,
    "adapter_model.safetensors",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.tiktoken",
    "chat_template.*",
)
"""What belongs to a model. All else in a folder stays here: optimizer, averages, logs, configuration of the run, data."""


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    base_model: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload the checkpoint in ``folder`` as one commit; the repository is made if it is not there.

    The token is huggingface_hub's: ``hf auth login``, or the environment variable HF_TOKEN.

    Args:
        folder: of a checkpoint, an adapter or a run, which stands for its newest checkpoint.
        repo_id: owner/name, or a name of the user's own.
        private: of a new repository; None is the Hub's default, as in transformers: public, unless an organization has another.
        base_model: Hub id for the model card and an adapter's configuration; by default the base, if it was named by one.
        create_pr: open a pull request instead of committing to the main branch.

    Returns:
        Address of the commit or the pull request.

    Raises:
        ValueError: there is no checkpoint, the id is wrong, an adapter names its base by a local path, the Hub refuses, or it
            cannot be reached; the message says what to do.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    card, contents = _upload(Path(folder), repo_id, base_model)
    operations = [CommitOperationAdd(name, content) for name, content in sorted(contents.items())]
    operations.append(CommitOperationAdd("README.md", card.encode()))
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="unidecouple")
    try:
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        done = api.create_commit(made.repo_id, operations, commit_message="Upload model by unidecouple", create_pr=create_pr)
    except LocalTokenNotFoundError as error:
        raise ValueError("no token of the Hub: run `hf auth login`, or set HF_TOKEN") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = "check the token (`hf auth whoami`) and its right to write" if status in (401, 403) else "try again later"
        reason = (error.server_message or str(error)).splitlines()[0]
        raise ValueError(f"the Hub refused {repo_id} ({status}: {reason}): {hint}") from error
    except Exception as error:
        names = {kind.__name__ for kind in type(error).__mro__}
        if not names & {"TransportError", "OSError"}:  # the HTTP client is httpx, httpx2 or requests, by huggingface_hub's version
            raise
        raise ValueError(
            f"{repo_id} was not uploaded, since the Hub could not be reached: {error}. Try again when online"
        ) from error
    return done.pr_url or done.commit_url


def describe_upload(folder: str | Path, repo_id: str, base_model: str | None = None) -> list[str]:
    """Lines about what ``push_to_hub`` would upload: each file with its size, then the model card; asks the Hub nothing.

    Raises:
        ValueError: as ``push_to_hub``, for what is wrong here.
    """
    card, contents = _upload(Path(folder), repo_id, base_model)
    sizes = {name: len(found) if isinstance(found, bytes) else Path(found).stat().st_size for name, found in contents.items()}
    sizes["README.md"] = len(card.encode())
    lines = [f"{size:>15,}  {name}" for name, size in sorted(sizes.items())]
    return [
        f"{repo_id} would get {len(sizes)} files of {sum(sizes.values()):,} bytes; nothing was uploaded",
        *lines,
        "",
        card.rstrip(),
    ]


def _upload(folder: Path, repo_id: str, base_model: str | None) -> tuple[str, dict[str, str | bytes]]:
    """The model card, and the other files by name: their path or their content."""
    if not HUB_ID.fullmatch(repo_id if "/" in repo_id else f"me/{repo_id}"):
        raise ValueError(f"{repo_id!r} is no id of a repository: write it as owner/name")
    source = _source(folder)
    licences = tuple(licence_files(source))
    files = {path.name: path for pattern in (*MODEL_FILES, *licences) for path in source.glob(pattern) if path.is_file()}
    card = model_card(source, repo_id.rpartition("/")[2], licences, base_model)
    contents: dict[str, str | bytes] = {name: str(path) for name, path in files.items()}
    if ADAPTER in files and "config.json" not in files:
        contents[ADAPTER] = _portable_adapter(source, base_model)
    return card, contents


def _portable_adapter(adapter: Path, base_model: str | None) -> bytes:
    """``adapter_config.json`` with a base that others can load: ``base_model``, or the Hub id or shipped base that it names.

    Raises:
        ValueError: it names its base by a path of this machine, or not at all.
    """
    content = read_json(adapter / ADAPTER)
    base = str(base_model or content.get("base_model_name_or_path") or "")
    if base not in SHIPPED and not is_hub_id(base):
        raise ValueError(
            f"{adapter / ADAPTER} names its base {base!r}, which others cannot load: give its Hub id with --base-model OWNER/NAME"
        )
    return json.dumps({**content, "base_model_name_or_path": base}, indent=2).encode()


def _source(folder: Path) -> Path:
    """The folder of the checkpoint or of the adapter."""
    if (folder / "adapter_config.json").is_file() and not all_checkpoints(folder) and not (folder / "config.json").is_file():
        return folder
    return checkpoint_folder(str(folder))
