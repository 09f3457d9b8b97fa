"""The folder of a run: which run it holds, whether that is finished, and whether its data are unchanged."""

from __future__ import annotations

import json
import os
from pathlib import Path

from unidecouple import config as configs
from unidecouple.convert.stored import all_checkpoints
from unidecouple.files import write_text_atomic
from unidecouple.run import RunConfig
from unidecouple.source import PrintLine
from unidecouple.train import checkpoint as checkpoints
from unidecouple.train.continuation import as_saved, continues, open_again
from unidecouple.train.fingerprints import check_fingerprints, take_fingerprints, write_fingerprints
from unidecouple.train.run_logs import METRICS
from unidecouple.train.selection import LATER, bring_back

RUN, RESULT = "run.yaml", "scores.json"
_WRITTEN = ("checkpoint-*", "metrics.jsonl", "scores.json*", "conflict*.json", "routing.json*", "interaction.json", "samples*")
"""What a run writes beside its configuration, and may replace."""
_MODELS = ("config.json", "adapter_config.json")
"""Files of a checkpoint or an adapter, which a run writes only inside its checkpoints."""


def check_place(folder: Path, run: RunConfig) -> None:
    """Refuse an output folder that is the run's start or holds another model; nothing is written.

    Raises:
        ValueError: ``folder`` is a file, the model that ``run`` starts from, or a checkpoint.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(f"the output {folder} is a file or a broken link, and a folder is to be written: choose another output")
    start = Path(run.model_name_or_path)
    if folder.is_dir() and start.is_dir() and folder.samefile(start):
        raise ValueError(f"the output {folder} is the model that the run starts from: choose another output folder")
    if name := next((name for name in _MODELS if (folder / name).is_file()), None):
        raise ValueError(f"the output {folder} holds a model ({name}), which the run would hide: choose another output folder")


def claim_folder(folder: Path, run: RunConfig, cache: Path, say: PrintLine) -> RunConfig:
    """Save ``run`` and hashes of its data in ``folder``, or make sure that they are the ones saved there.

    Returns:
        The run as saved: with what it takes over from the finished run that it continues.

    Raises:
        ValueError: ``folder`` holds another run (one that is trained may be scored with tests of other sizes), or its data changed.
    """
    path = folder / RUN
    if not path.is_file() and (name := next((name for name in _WRITTEN if any(folder.glob(name))), None)):
        raise ValueError(
            f"{folder} holds {name}, but no {RUN} to tell which run: bring that file back, or choose another output folder"
        )
    saved = configs.load(RunConfig, [path]) if begun(folder) else run
    run = as_saved(saved, run)
    ended = scored(folder) or _trained(folder, saved)
    if ended and (longer := continues(saved, run)) is not None:
        open_again(folder, saved, RESULT, say)
        saved = run = longer
    if found := configs.differences(saved, run):
        changes = "; ".join(found)
        of_the_test = tuple(f"data.{key}:" for key in run.data.TEST_SETTINGS)
        if not (_trained(folder, run) and all(line.startswith(of_the_test) for line in found)):
            more = "" if ended else ". A run continues with a higher max_steps when it has ended"
            raise ValueError(f"{folder} holds another run ({path} has {changes}): choose another output folder, or remove it{more}")
        say(f"{folder} is trained and not scored yet ({RUN} has {changes}): scoring it with the new settings")
    write_text_atomic(path, configs.dump(run))
    checkpoints.sweep(folder)
    if scored(folder):
        return run
    bring_back(folder)
    prints = take_fingerprints(run, cache)
    if all_checkpoints(folder):
        check_fingerprints(folder, prints)
    write_fingerprints(folder, prints)
    return run


def begun(folder: Path) -> bool:
    """Whether a step of a run was kept in ``folder``: a start that failed before leaves it free for another run."""
    logged = folder / METRICS
    return scored(folder) or bool(all_checkpoints(folder)) or (logged.is_file() and logged.stat().st_size > 0)


def scored(folder: Path) -> bool:
    """Whether the run in ``folder`` is finished; an empty or cut ``scores.json`` is no sign of it."""
    try:
        found = json.loads((folder / RESULT).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and isinstance(found.get("scores"), list) and bool(found["scores"])


def _trained(folder: Path, run: RunConfig) -> bool:
    """Whether the last step of ``run`` is in ``folder``, and only its scores are missing."""
    last = next(reversed(all_checkpoints(folder / LATER) or all_checkpoints(folder)), None)
    return last is not None and not scored(folder) and checkpoints.read_state(last).step == run.max_steps
