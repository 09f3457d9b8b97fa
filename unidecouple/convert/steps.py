"""What is wanted of a conversion, as a row of small changes, each to a part of the weights and to the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from unidecouple.batch import Task
from unidecouple.convert import structure as structures
from unidecouple.convert.bos_kv import BosKeyValues, drop_bos_kv
from unidecouple.convert.deltas import without_deltas
from unidecouple.convert.emu3 import read_names, write_names
from unidecouple.convert.layouts import DEEPSEEK, TRANSFORMERS, UNIDECOUPLE, CheckpointConfig
from unidecouple.convert.names import to_deepseek
from unidecouple.convert.parts import Transform, read_deepseek, untie, write_deepseek
from unidecouple.convert.weights import Weights
from unidecouple.methods.structure import Dense, LoraStructure, Structure, UsagePartitioned
from unidecouple.models.emu3 import UniEmu3Config
from unidecouple.models.families import UnifiedConfig

GIGABYTE = 10**9
_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Conversion:
    """What to make of a checkpoint.

    Attributes:
        to: layout of the result, of ``LAYOUTS``.
        structure: of the result; None leaves it as it is.
        task: keep only what serves this task.
        merge: add low-rank updates to their weights; needed for any layout but ours, and for folding, so done there anyway.
        max_shard_bytes: of one file of weights.
        seed: of new routers.
        image_size: pixels a side of an Emu3's images; None leaves them, or makes them 720 where the layout does not say.
    """

    to: str = UNIDECOUPLE
    structure: Structure | None = None
    task: Task | None = None
    merge: bool = False
    max_shard_bytes: int = 5 * GIGABYTE
    seed: int = 0
    image_size: int | None = None


@dataclass(frozen=True)
class Step:
    """One change: what it does in words, to a part, and the configuration after it; ``check`` is whether that tells all names."""

    says: str
    transform: Transform
    config: UnifiedConfig
    check: bool = True


def reading(described: CheckpointConfig, config: UnifiedConfig, weights: Weights) -> list[Step]:
    """From the layout's names to ours."""
    steps = []
    tied = described.ties_head and _HEAD not in weights.shapes and to_deepseek(_HEAD) not in weights.shapes
    if described.is_emu3 and described.layout == TRANSFORMERS:
        steps.append(Step("read under transformers' names", read_names, config, check=not tied))
    elif described.layout == DEEPSEEK:
        steps.append(Step("read under deepseek-ai's names", read_deepseek, config, check=not tied))
    elif not tied:
        steps.append(Step("read", dict, config))
    if tied:
        steps.append(Step("text head, tied to the word embeddings, written out", untie, config))
    return steps


def writing(layout: str, config: UnifiedConfig) -> list[Step]:
    """From our names to the layout's, which no configuration of ours tells."""
    if layout == DEEPSEEK:
        return [Step("written under deepseek-ai's names", write_deepseek, config, check=False)]
    if layout == TRANSFORMERS and isinstance(config, UniEmu3Config):
        return [Step("written under transformers' names", write_names, config, check=False)]
    return []


def changes(config: UnifiedConfig, wanted: Conversion) -> list[Step]:
    """Changes of structure, in order."""
    steps: list[Step] = []
    mixture = None if isinstance(wanted.structure, Dense) else wanted.structure
    if config.text_config.task_deltas and wanted.task is not None:
        take_deltas: Transform = partial(without_deltas, task=wanted.task, text=config.text_config)
        config = structures.with_text(config, task_deltas={})
        steps.append(Step(f"kept what serves {wanted.task.key}, its own weights merged", take_deltas, config))
    elif wanted.task is not None:
        whole, config = config.text_config, structures.slim_config(config, wanted.task)
        drawing = wanted.task is Task.T2I
        take: Transform = BosKeyValues(whole) if drawing else partial(structures.slim, task=wanted.task)
        steps.append(Step(f"kept what serves {wanted.task.key}, routed by label", take, config))
    apart = config.text_config.ffn != "dense" or config.text_config.per_group_layers is not None
    folds = isinstance(wanted.structure, Dense) and apart
    if config.text_config.lora_rank and (wanted.merge or folds or wanted.to != UNIDECOUPLE):
        text, rank = config.text_config, config.text_config.lora_rank
        config = structures.merged_config(config)
        steps.append(Step(f"merged low-rank updates (r={rank})", partial(structures.merge_lora, text=text), config))
    if folds:
        config = structures.fold_config(config)
        steps.append(Step("folded the only expert to a dense FFN", structures.fold, config))
    if config.text_config.bos_kv and wanted.to != UNIDECOUPLE:
        config = structures.with_text(config, bos_kv=False)
        says = f"the BOS's keys and values left out, for which the {wanted.to} layout has no place: images will differ a little"
        steps.append(Step(says, drop_bos_kv, config))
    if mixture is not None and isinstance(mixture, UsagePartitioned):
        raise ValueError(f"structure {mixture.kind!r} needs measured expert usage: set it in a training stage instead")
    if mixture is not None and isinstance(mixture, LoraStructure):
        raise ValueError(f"structure {mixture.kind!r} adds LoRA that changes nothing until it is trained: set it in a run instead")
    if not folds and mixture is not None:
        if config.text_config.lora_rank:
            low = f"low-rank updates (r={config.text_config.lora_rank})"
            raise ValueError(f"{low} cannot be kept when the FFN is copied into experts: merge them first (--merge-lora)")
        config = structures.with_structure(config, mixture)
        grow = partial(structures.upcycle, structure=mixture, text=config.text_config, seed=wanted.seed)
        steps.append(Step(f"upcycled to {mixture.kind}", grow, config))
    return steps
