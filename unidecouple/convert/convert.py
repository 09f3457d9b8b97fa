"""The command ``unidecouple convert``: plan on names and shapes, refuse what does not fit, then write shard by shard."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from unidecouple.batch import Task
from unidecouple.convert import structure as structures
from unidecouple.convert.layouts import DEEPSEEK, UNIDECOUPLE, config_json, config_of, detect, read_json
from unidecouple.convert.names import to_deepseek, unused
from unidecouple.convert.parts import Part, Transform, read_deepseek, split_into_parts, untie, write_deepseek
from unidecouple.convert.processors import read_processor, write_generation_config, write_processor
from unidecouple.convert.weights import Weights, save_shards
from unidecouple.files import atomic_directory, write_json_atomic
from unidecouple.methods.structure import Dense, MoE, Structure, TaskAwareMoE
from unidecouple.models.configuration import UniJanusConfig
from unidecouple.models.janus import UniJanusForConditionalGeneration

GIGABYTE = 10**9
_TRAVELS = ("license", "licence", "notice", "readme", "copying")
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
    """

    to: str = UNIDECOUPLE
    structure: Structure | None = None
    task: Task | None = None
    merge: bool = False
    max_shard_bytes: int = 5 * GIGABYTE
    seed: int = 0


@dataclass(frozen=True)
class _Step:
    """One change: what it does in words, to a part, and the configuration after it; ``check`` is whether that tells all names."""

    says: str
    transform: Transform
    config: UniJanusConfig
    check: bool = True


def convert(source: Path, target: Path, wanted: Conversion, say: Callable[[str], None]) -> None:
    """Write ``source`` to ``target`` as ``wanted``; ``say`` gets what was done, line by line.

    Raises:
        ValueError: ``source`` cannot be read, lacks a weight, has one too many or one of a wrong shape, or cannot become what is
            wanted. Nothing was written.
    """
    if target.resolve() == source.resolve():
        raise ValueError(f"--output {target} is the checkpoint itself: choose another folder")
    layout = detect(source)
    processor = read_processor(source, layout)
    config, weights = config_of(source, processor), Weights(source)
    config.dtype = _most_bytes(weights.shapes)
    steps = [*_reading(layout, config, weights), *_changes(config, wanted)]
    final = steps[-1].config
    raw = config_json(final, wanted.to)
    if wanted.to == DEEPSEEK:
        steps.append(_Step("written under deepseek-ai's names", write_deepseek, final, check=False))
    say(f"{source}: {layout} layout, {_size(weights.shapes)}, {_describe(config)}")
    parts = split_into_parts(weights.shapes)
    shapes = _plan(weights, parts, steps, layout, say)
    with atomic_directory(target) as staging:
        files = save_shards(staging, shapes, _written(weights, parts, steps), wanted.max_shard_bytes)
        write_json_atomic(staging / "config.json", raw)
        if processor is not None:
            write_processor(staging, processor, wanted.to)
            write_generation_config(source, staging, processor)
        carried = _carry(source, staging)
    say(f"{target}: {wanted.to} layout, {_size(shapes)} in {len(files)} file(s), {_describe(final)}")
    say(f"carried along: {', '.join(carried) or 'no licence or readme was there'}")
    if processor is None:
        say("no tokenizer.json was there, so the result has no processor: copy one to it before use")


def _plan(weights: Weights, parts: list[tuple[str, ...]], steps: list[_Step], layout: str, say: Callable[[str], None]) -> Part:
    """Every weight of the result, in order and without data; says what each step does and checks its names and shapes."""
    planned = [{name: weights.shapes[name] for name in names} for names in parts]
    for step in steps:
        before, planned = planned, [step.transform(part) for part in planned]
        if step.check:
            _check(_union(planned), step.config, layout, weights.start)
        say(_summary(step.says, _union(before), _union(planned)))
    dropped = [name for name in weights.shapes if layout == DEEPSEEK and unused(name)]
    if dropped:
        say(f"  dropped, since Janus does not use them: {len(dropped)} ({dropped[0]}, …)")
    return _union(planned)


def _written(weights: Weights, parts: list[tuple[str, ...]], steps: list[_Step]) -> Iterator[Part]:
    """The result, part by part."""

    def one(names: tuple[str, ...]) -> Part:
        part = weights.read(names)
        for step in steps:
            part = step.transform(part)
        return part

    return map(one, parts)


def _reading(layout: str, config: UniJanusConfig, weights: Weights) -> list[_Step]:
    """From the layout's names to ours."""
    steps = []
    tied = _HEAD not in weights.shapes and to_deepseek(_HEAD) not in weights.shapes
    raw = read_json(weights.start.parent / "config.json")
    said = raw.get("tie_word_embeddings", raw.get("language_config", {}).get("tie_word_embeddings", layout != DEEPSEEK))
    if layout == DEEPSEEK:
        steps.append(_Step("read under deepseek-ai's names", read_deepseek, config, check=not (tied and said)))
    elif not (tied and said):
        steps.append(_Step("read", dict, config))
    if tied and said:
        steps.append(_Step("text head, tied to the word embeddings, written out", untie, config))
    return steps


def _changes(config: UniJanusConfig, wanted: Conversion) -> list[_Step]:
    """Changes of structure, in order."""
    steps: list[_Step] = []
    mixture = None if isinstance(wanted.structure, Dense) else wanted.structure
    if wanted.task is not None:
        config = structures.slim_config(config)
        says = f"kept what serves {wanted.task.key} by label, for every token"
        steps.append(_Step(says, partial(structures.slim, task=wanted.task), config))
    folds = isinstance(wanted.structure, Dense) and config.text_config.ffn != "dense"
    if config.text_config.lora_rank and (wanted.merge or folds or wanted.to != UNIDECOUPLE):
        text, rank = config.text_config, config.text_config.lora_rank
        config = structures.with_text(config, lora_rank=0, lora_targets=[], lora_per_task=[])
        steps.append(_Step(f"merged low-rank updates (r={rank})", partial(structures.merge_lora, text=text), config))
    if folds:
        config = structures.fold_config(config)
        steps.append(_Step("folded the only expert to a dense FFN", structures.fold, config))
    elif mixture is not None:
        config = _upcycled(config, mixture)
        grow = partial(structures.upcycle, structure=mixture, text=config.text_config, seed=wanted.seed)
        steps.append(_Step(f"upcycled to {mixture.kind}", grow, config))
    return steps


def _upcycled(config: UniJanusConfig, structure: MoE | TaskAwareMoE) -> UniJanusConfig:
    text = config.text_config
    if text.ffn != "dense":
        raise ValueError(f"ffn={text.ffn!r} already: --structure {structure.kind} starts from a dense checkpoint")
    if text.lora_rank:
        raise ValueError(f"low-rank updates (r={text.lora_rank}) fit no upcycled FFN: merge them first (--merge-lora)")
    return structures.with_text(config, **structure.configure())


def _check(found: Part, config: UniJanusConfig, layout: str, start: Path) -> None:
    """Compare names and shapes with those of the model that ``config`` describes.

    Raises:
        ValueError: one is missing, too many or of another shape; the message calls it as its file does.
    """
    with torch.device("meta"):
        expected = UniJanusForConditionalGeneration(config).state_dict()
    for name in expected.keys() - found.keys():
        raise ValueError(f"{start} lacks {_called(name, layout)}, which must be of shape {tuple(expected[name].shape)}")
    for name in found.keys() - expected.keys():
        raise ValueError(f"{start} has {_called(name, layout)}, which a model of its config.json does not have")
    for name, weight in expected.items():
        if found[name].shape != weight.shape:
            raise ValueError(
                f"{_called(name, layout)} in {start} is of shape {tuple(found[name].shape)}, but by config.json it must be "
                f"{tuple(weight.shape)}"
            )


def _called(name: str, layout: str) -> str:
    if layout != DEEPSEEK:
        return name
    fused = re.sub(r"[qkv]_proj", "qkv", name) if "vision_model" in name else name
    return to_deepseek(fused) or name


def _carry(source: Path, target: Path) -> list[str]:
    """Copy licences and readmes; their names."""
    texts = sorted(file for file in source.iterdir() if file.is_file() and file.name.lower().startswith(_TRAVELS))
    for file in texts:
        shutil.copyfile(file, target / file.name)
    return [file.name for file in texts]


def _union(parts: list[Part]) -> Part:
    return {name: tensor for part in parts for name, tensor in part.items()}


def _most_bytes(shapes: Part) -> torch.dtype:
    """The floating-point type that most of the weights' bytes are in."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in shapes.values():
        if tensor.is_floating_point():
            sizes[tensor.dtype] += tensor.nbytes
    return sizes.most_common(1)[0][0]


def _size(shapes: Part) -> str:
    numbers, size = sum(tensor.numel() for tensor in shapes.values()), sum(tensor.nbytes for tensor in shapes.values())
    return f"{len(shapes)} tensors, {numbers:,} numbers, {size:,} bytes"


def _summary(says: str, before: Part, after: Part) -> str:
    """What a step did to names and shapes."""
    gone, new = before.keys() - after.keys(), after.keys() - before.keys()
    changed = [name for name in before.keys() & after.keys() if before[name].shape != after[name].shape]
    return f"  {says}: {len(gone)} names gone, {len(new)} new, {len(changed)} reshaped, {len(after)} tensors"


def _describe(config: UniJanusConfig) -> str:
    text = config.text_config
    low = f", LoRA r={text.lora_rank}" if text.lora_rank else ""
    if text.ffn == "dense":
        return f"dense{low}"
    group = f"{text.num_groups} group(s) of {text.experts_per_group} experts, top {text.num_experts_per_tok}"
    shared = ", a shared expert" if text.shared_expert else ""
    return f"{text.ffn}: {group}{shared} in {len(text.mixture_layers)} of {text.num_hidden_layers} layers{low}"
