"""The command ``unidecouple convert``: plan on names and shapes, refuse what does not fit, then write shard by shard."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from unidecouple.convert.check_weights import check_weights
from unidecouple.convert.emu3 import published_name, resized
from unidecouple.convert.layouts import DEEPSEEK, TRANSFORMERS, config_json, read_config
from unidecouple.convert.licences import carry_licences
from unidecouple.convert.names import to_deepseek, unused
from unidecouple.convert.parts import Part, split_into_parts
from unidecouple.convert.processors import read_processor, write_generation_config, write_processor
from unidecouple.convert.steps import Conversion, Step, changes, reading, writing
from unidecouple.convert.weights import Weights, save_shards
from unidecouple.files import atomic_directory, write_json_atomic
from unidecouple.models.emu3 import UniEmu3Config
from unidecouple.models.families import UnifiedConfig
from unidecouple.ownership import check_directory


def convert(source: Path, target: Path, wanted: Conversion, say: Callable[[str], None]) -> None:
    """Write ``source`` to ``target`` as ``wanted``; ``say`` gets what was done, line by line.

    Raises:
        ValueError: ``source`` cannot be read, lacks a weight, has one too many or one of a wrong shape, or cannot become what is
            wanted. Nothing was written.
    """
    check_directory(target, [source])
    described = read_config(source)
    layout, processor = described.layout, read_processor(described)
    config, weights = described.build(processor), Weights(source)
    if wanted.image_size is not None:
        config = resized(config, processor, wanted.image_size)
    config.dtype = config.dtype or _most_bytes(weights.shapes)
    steps = [*reading(described, config, weights), *changes(config, wanted)]
    final = steps[-1].config
    raw = config_json(final, wanted.to)
    steps += writing(wanted.to, final)
    say(f"{source}: {layout} layout, {_size(weights.shapes)}, {config.text_config.described}")
    parts = split_into_parts(weights.shapes)
    shapes = _plan(weights, parts, steps, layout, say)
    with atomic_directory(target, [source]) as staging:
        files = save_shards(staging, shapes, _written(weights, parts, steps), wanted.max_shard_bytes)
        write_json_atomic(staging / "config.json", raw)
        if processor is not None:
            write_processor(staging, processor, wanted.to)
            write_generation_config(source, staging, processor)
        carried = carry_licences(source, staging, readme=True)
    say(f"{target}: {wanted.to} layout, {_size(shapes)} in {len(files)} file(s), {final.text_config.described}")
    say(f"carried along: {', '.join(carried) or 'no licence or readme was there'}")
    if processor is None:
        say("no tokenizer.json was there, so the result has no processor: copy one to it before use")


def _plan(weights: Weights, parts: list[tuple[str, ...]], steps: list[Step], layout: str, say: Callable[[str], None]) -> Part:
    """Every weight of the result, in order and without data; says what each step does and checks its names and shapes."""
    planned = [{name: weights.shapes[name] for name in names} for names in parts]
    for step in steps:
        try:
            before, planned = planned, [step.transform(part) for part in planned]
        except (RuntimeError, IndexError) as error:  # a shape that no layout has
            raise ValueError(
                f"{weights.start} contains weights whose shapes do not fit its config.json ({step.says}): {error}"
            ) from error
        if step.check:
            check_weights(_union(planned), step.config, weights.start, partial(_called, layout=layout, config=step.config))
        say(_summary(step.says, _union(before), _union(planned)))
    dropped = [name for name in weights.shapes if layout == DEEPSEEK and unused(name)]
    if dropped:
        say(f"  dropped, since Janus does not use them: {len(dropped)} ({dropped[0]}, …)")
    return _union(planned)


def _written(weights: Weights, parts: list[tuple[str, ...]], steps: list[Step]) -> Iterator[Part]:
    """The result, part by part."""

    def one(names: tuple[str, ...]) -> Part:
        part = weights.read(names)
        for step in steps:
            part = step.transform(part)
        return part

    return map(one, parts)


def _called(name: str, layout: str, config: UnifiedConfig) -> str:
    if layout != DEEPSEEK:
        return published_name(name) if layout == TRANSFORMERS and isinstance(config, UniEmu3Config) else name
    fused = re.sub(r"[qkv]_proj", "qkv", name) if "vision_model" in name else name
    return to_deepseek(fused) or name


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
