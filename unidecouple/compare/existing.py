"""Runs and evaluations that exist already, as the results of a comparison: the same rows, statistics and page, without a grid."""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unidecouple import config as configs
from unidecouple.compare.readings import readings
from unidecouple.files import write_json_atomic
from unidecouple.ownership import check_file
from unidecouple.report.results import RESULTS, START
from unidecouple.run import RunConfig
from unidecouple.train.run_folder import RESULT, RUN

SCENARIO = "existing"
"""Scenario that gathered folders are put in."""
_SEED = re.compile(r"seed-?(\d+)")


def gather(folders: Sequence[Path], output: Path, control: str = "", command: str = "") -> Path:
    """Write ``output/results.json`` from the ``scores.json`` of ``folders``, which runs and ``unidecouple eval`` leave.

    Args:
        folders: each becomes a variant named after it; ``NAME/seed0`` and ``NAME/seed1`` are two seeds of NAME, paired by seed
            with those of others. One called "start" is the base that changes are measured from.
        output: folder of the results; made where it is missing.
        control: name of the variant that others are compared with; the first if it is empty.
        command: how it was called, for the record.

    Returns:
        Path of the results.

    Raises:
        ValueError: a folder has no scores, two have one name and seed, or ``control`` is none of them; or ``output`` holds the
            results of a comparison, which cannot be replaced by these.
    """
    found: dict[tuple[str, int], Path] = {}
    for folder in folders:
        place = _place(folder)
        if (other := found.setdefault(place, folder)) != folder:
            raise ValueError(f"{other} and {folder} are both variant {place[0]!r}, seed {place[1]}: rename one of them")
    try:
        check_file(output / RESULTS)
    except ValueError as error:
        raise ValueError(f"{output / RESULTS} was not written by `unidecouple report`: choose another --output") from error
    names = [name for name in dict.fromkeys(name for name, _ in found) if name != START]
    if control and control not in names:
        raise ValueError(f"--control {control!r} is none of the folders' variants: {', '.join(map(repr, names))}")
    control = control or next(iter(names), "")
    rows: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    data = set()
    for (variant, seed), folder in found.items():
        scored = _scores(folder)
        place_of = {"scenario": SCENARIO, "variant": variant, "seed": seed}
        rows += [place_of | {"step": scored["step"]} | score for score in scored["scores"]]
        rows += [place_of | reading for reading in readings(folder)]
        spent = {name: scored.get(name) for name in ("wall_seconds", "cpu_seconds", "peak_memory_bytes")}
        runs.append(place_of | {"folder": os.path.relpath(folder, output)} | spent)
        data.add(_data(folder, scored))
    meta = {
        "name": output.resolve().name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command or "unidecouple report",
        "control": control,
        "focus": next((name for name in names if name != control), ""),
        "data": "world" if data == {"world"} else "files",
        "scenarios": {SCENARIO: "Runs and evaluations that existed before; nothing checks that their budgets are equal."},
        "variants": {name: str(folder) for (name, _), folder in reversed(found.items())},
        "runs": runs,
    }
    write_json_atomic(output / RESULTS, {"meta": meta, "rows": rows})
    return output / RESULTS


def _place(folder: Path) -> tuple[str, int]:
    """Variant and seed by the folder's name."""
    whole = folder.resolve()
    seed = _SEED.fullmatch(whole.name)
    return (whole.parent.name, int(seed[1])) if seed else (whole.name, 0)


def _scores(folder: Path) -> Any:
    path = folder / RESULT
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: give folders of finished runs, or of `unidecouple eval`") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no JSON ({error}): score it again") from error
    if not isinstance(content, dict) or {"step", "scores"} - content.keys():
        raise ValueError(f"{path} lacks step or scores: give folders of finished runs, or of `unidecouple eval`")
    return content


def _data(folder: Path, scored: Any) -> str:
    """Return "world" or "files": what it was scored on."""
    if "data" in scored or not (folder / RUN).is_file():
        return str(scored.get("data", "files"))
    return configs.load(RunConfig, [folder / RUN]).data.kind
