"""Runs of a grid that another folder or machine finished, imported from its ``results.json``: all but weights and logs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unidecouple import config as configs
from unidecouple.compare.done import some
from unidecouple.compare.plan import Comparison, Job, jobs
from unidecouple.convert.load import checkpoint_folder
from unidecouple.files import read_text, sha256_tree

RunKey = tuple[str, str, int]
"""Scenario, variant with its rate, seed."""

SOURCE = "source"
"""Key of a run in ``results.json`` that was imported: names an entry of ``meta["sources"]``."""
_SOURCE = ("command", "commit", "platform", "versions")


@dataclass(frozen=True)
class ImportedRuns:
    """What was imported.

    Attributes:
        runs: as they stand in ``meta["runs"]``, with their ``SOURCE``.
        rows: of each run, all its rows.
        sources: when its results were written -> the command, commit, platform and versions that computed it.
    """

    runs: Mapping[RunKey, Mapping[str, Any]] = field(default_factory=dict)
    rows: Mapping[RunKey, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def base_hash(base: str) -> str:
    """Hexadecimal SHA-256 of what runs take from ``base``: all its files but the one of how a user's images are drawn."""
    return sha256_tree(checkpoint_folder(base), without=("generation_config.json",))


def key_of(job: Job) -> RunKey:
    """What names ``job`` in results."""
    return job.scenario, job.variant, job.seed


def import_runs(paths: Sequence[Path], planned: Sequence[Job]) -> ImportedRuns:
    """The runs of ``planned`` in the files ``paths``; of a run that two have, the later file's. Others are left out.

    Raises:
        ValueError: a file is missing or not what ``compare`` writes, or a run has another configuration than the grid asks for, or
            another base's weights.
    """
    runs: dict[RunKey, Mapping[str, Any]] = {}
    rows: dict[RunKey, list[Mapping[str, Any]]] = {}
    sources: dict[str, Mapping[str, Any]] = {}
    for path in paths:
        content = _read(path)
        meta, asked = content["meta"], {key_of(job): job for job in planned}
        _check(path, meta, asked)
        for run in meta["runs"]:
            if (key := _key(run)) in asked:
                runs[key], rows[key] = {SOURCE: meta["created"]} | run, []  # what that one took keeps its own source
        for row in content["rows"]:
            if (key := _key(row)) in asked:
                rows[key].append(row)
        sources |= {meta["created"]: {name: meta[name] for name in _SOURCE}} | meta.get("sources", {})
    return ImportedRuns(runs, rows, {name: sources[name] for name in dict.fromkeys(run[SOURCE] for run in runs.values())})


def _read(path: Path) -> Any:
    try:
        content = json.loads(read_text(path))
        lacking = {"meta", "rows"} - content.keys() or {"created", "config", "hashes", "runs", *_SOURCE} - content["meta"].keys()
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read as results ({error}); give a results.json that `unidecouple compare` wrote"
        ) from error
    if lacking:
        raise ValueError(f"{path} lacks {', '.join(sorted(lacking))}; give a results.json that `unidecouple compare` wrote")
    return content


def _check(path: Path, meta: Mapping[str, Any], asked: Mapping[RunKey, Job]) -> None:
    """Refuse runs that are not those of ``asked``."""
    theirs = {key_of(job): job for job in jobs(configs.restore(Comparison, meta["config"], str(path)))}
    for run in meta["runs"]:
        job = asked.get(key := _key(run))
        if job is None:
            continue
        found = configs.differences(theirs[key].record, job.record)
        if found:
            raise ValueError(
                f"{path} holds runs of another grid: {run['folder']} has {some(found)}; leave it out, or change the recipe back"
            )
    for base in {job.config.model_name_or_path for key in map(_key, meta["runs"]) if (job := asked.get(key))}:
        if meta["hashes"][base] != (here := base_hash(base)):
            raise ValueError(
                f"{path} holds runs that start from other weights: {base} was {meta['hashes'][base][:12]}, and is {here[:12]} "
                "here; leave it out, or bring that base back"
            )


def _key(entry: Mapping[str, Any]) -> RunKey:
    return entry["scenario"], entry["variant"], entry["seed"]
