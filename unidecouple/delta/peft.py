"""One task of a decoupled checkpoint as an adapter that PEFT reads: low-rank residuals, and whole modules beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from unidecouple.adapters.peft_form import modules_of, to_peft
from unidecouple.adapters.record import CONFIG, WEIGHTS
from unidecouple.batch import Task
from unidecouple.convert.deltas import delta_names, full_name, without_deltas
from unidecouple.convert.json_files import read_json
from unidecouple.convert.licences import carry_licences
from unidecouple.delta.checkpoint import Checkpoint, open_checkpoint
from unidecouple.delta.modules import owner_of
from unidecouple.delta.write import PROVENANCE, file_hashes
from unidecouple.files import atomic_directory, write_json_atomic
from unidecouple.models.configuration import UniJanusConfig
from unidecouple.models.families import model_class
from unidecouple.ownership import check_directory
from unidecouple.source import PrintLine


def save_peft(name_or_path: str, task: Task, target: Path, base: str | None, say: PrintLine) -> None:
    """Write what the decoupled checkpoint ``name_or_path`` has for ``task`` beyond its base, in PEFT's format.

    A residual of rank r becomes a LoRA of rank r and scale 1 (``rank_pattern``). Norms, word embeddings, matrices kept whole and
    modules of the task alone become ``modules_to_save``.

    Args:
        name_or_path: a checkpoint that ``unidecouple decouple`` wrote.
        task: which.
        target: folder to write.
        base: its base; None: the one that the checkpoint records.
        say: prints a line.

    Raises:
        ValueError: the checkpoint has no weights per task; the base has other weights; a matrix is kept as signs, for which
            PEFT has no form; or the task has nothing beyond the base.
    """
    made = open_checkpoint(name_or_path)
    if made.config is None or not made.config.text_config.task_deltas:
        raise ValueError(f"{name_or_path} has no weights per task: leave out --task, or give what `unidecouple decouple` wrote")
    forms = made.config.text_config.task_deltas.get(task.key, {})
    signs = [name for name, form in forms.items() if form.partition(":")[0] in ("bits", "sparse")]
    if signs:
        raise ValueError(f"{signs[0]} of {task.key} is kept as signs and a scale, for which PEFT has no form: decouple with --rank")
    start = _base_of(made, base)
    check_directory(target, [made.folder, start.folder])
    tensors, ranks, whole = _collected(made, start, task)
    if not tensors:
        raise ValueError(f"{task.key} of {name_or_path} is its base's, so there is nothing to save: use {start.name} itself")
    settings = _lora_config(made, start, ranks, modules_of(whole))
    with atomic_directory(target, [made.folder, start.folder]) as staging:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, staging / WEIGHTS, {"format": "pt"})
        write_json_atomic(staging / CONFIG, settings)
        carry_licences(made.folder, staging)
    size = sum(tensor.nbytes for tensor in tensors.values())
    say(f"{target}: {len(ranks)} low-rank updates and {len(whole)} whole weights of {task.key}, {size:,} bytes; PEFT reads it")


def _base_of(made: Checkpoint, base: str | None) -> Checkpoint:
    """The base, whose files must be those that the checkpoint was made of."""
    recorded = read_json(made.folder / PROVENANCE)["sources"][0]
    start = open_checkpoint(base or recorded["name"])
    weights = {name: digest for name, digest in file_hashes(start).items() if name.endswith(".safetensors")}
    differ = [name for name, digest in weights.items() if recorded["sha256"].get(name) != digest]
    if differ:
        raise ValueError(f"{start.name} is not the base of {made.name}: {differ[0]} has another hash. Name the base with --base")
    return start


def _collected(made: Checkpoint, start: Checkpoint, task: Task) -> tuple[dict[str, Tensor], dict[str, int], list[str]]:
    """PEFT's tensors, the rank of each updated module, and the weights that are saved whole."""
    assert made.config is not None
    text, others = made.config.text_config, [other.key for other in Task if other is not task]
    known = isinstance(made.config, UniJanusConfig)
    forms = text.task_deltas.get(task.key, {})
    low = {f"{full_name(module)}.weight": module for module, form in forms.items() if form.startswith("rank:")}
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    whole: list[str] = []
    for names in made:
        part = made.read(names)
        mine = without_deltas(part, task, text)
        for name, weight in mine.items():
            if name in low:
                prefix = delta_names(low[name], task.key)
                down, up = part[f"{prefix}down"], part[f"{prefix}up"]
                layer = name.removesuffix(".weight")
                ranks[layer] = len(down)
                tensors |= to_peft({f"{layer}.lora_A": down[None], f"{layer}.lora_B": up[None]})
            elif not (known and owner_of(name) in others) and not torch.equal(weight, start.read([name])[name]):
                whole.append(name)
    modules = tuple(f"{module}." for module in modules_of(whole))
    for names in made:
        mine = without_deltas(made.read(names), task, text)
        tensors |= to_peft({name: mine[name] for name in mine if modules and name.startswith(modules) and name not in low})
    return tensors, ranks, whole


def _lora_config(made: Checkpoint, start: Checkpoint, ranks: dict[str, int], modules: list[str]) -> dict[str, Any]:
    """``adapter_config.json``; every update has scale 1."""
    assert made.config is not None
    kind = model_class(made.config)
    largest = max(ranks.values(), default=1)
    other = {name: rank for name, rank in ranks.items() if rank != largest}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": str(start.name),
        "auto_mapping": {"base_model_class": kind.__name__, "parent_library": kind.__module__},
        "r": largest,
        "lora_alpha": float(largest),
        "rank_pattern": other,
        "alpha_pattern": {name: float(rank) for name, rank in other.items()},
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(ranks),
        "modules_to_save": modules or None,
        "inference_mode": True,
    }
