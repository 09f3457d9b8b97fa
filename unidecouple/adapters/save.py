"""``unidecouple adapter save``: a checkpoint as its difference from a base.

The base is any checkpoint that ours was trained from. A dense one is made a mixture again as training did (``restructure`` with
the run's seed); whatever then differs from the checkpoint, in even one bit, is kept. So a wrong seed costs size, never exactness.

PEFT reads the folder if the base has the checkpoint's structure already (the checkpoint that the low-rank stage started from, or
what ``unidecouple convert --structure`` made) and ``peft_form.obstacles`` finds nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from unidecouple.adapters.beginning import dtypes, origin, structured, typed
from unidecouple.adapters.fingerprint import fingerprint_of, same
from unidecouple.adapters.peft_form import is_large, lora_config, modules_of, obstacles, to_peft
from unidecouple.adapters.record import CONFIG, WEIGHTS, AdapterRecord
from unidecouple.convert.layouts import UNIDECOUPLE, read_config
from unidecouple.convert.licences import carry_licences
from unidecouple.convert.load import checkpoint_folder, load
from unidecouple.convert.weights import Weights
from unidecouple.files import atomic_directory, write_json_atomic
from unidecouple.methods.selection import part_of
from unidecouple.models.shipped import located
from unidecouple.ownership import check_directory
from unidecouple.source import PrintLine


def save(name_or_path: str, target: Path, base: str | None, seed: int | None, with_experts: bool, say: PrintLine) -> None:
    """Write what the checkpoint ``name_or_path`` has beyond ``base`` to the folder ``target``.

    Args:
        name_or_path: a checkpoint in our layout, or a run's folder, which stands for its newest.
        target: folder to write; an earlier adapter there is replaced.
        base: what it was trained from; None is what the run's ``run.yaml`` says.
        seed: of the run, for a dense base's routers; None is what ``run.yaml`` says, without one 0.
        with_experts: keep experts that training changed, whole.
        say: gets what is kept, by part.

    Raises:
        ValueError: the base is unknown or another model's, or a part changed that is not small.
    """
    folder = checkpoint_folder(name_or_path)
    described = read_config(folder)
    if described.layout != UNIDECOUPLE:
        raise ValueError(f"{folder} is not in our layout, so nothing of ours trained it: give a checkpoint of a run")
    base, seed = origin(folder, base, seed)
    sources = [located(name_or_path), folder, located(base)]
    check_directory(target, sources)
    config, weights = described.build(None), Weights(folder)
    types = dtypes(weights.shapes)
    model, _ = load(base)
    before = model.config.text_config
    begun = typed(structured(model, config, seed), types)
    changed = _changed(weights, begun, base)
    _check_small(changed, weights.shapes, with_experts)
    why = obstacles(config.text_config, before, changed, weights.shapes)
    modules = [] if why else modules_of(changed)
    whole = [name for name in weights.shapes if name in changed or name.startswith(tuple(f"{module}." for module in modules))]
    tensors = weights.read(whole)
    record = AdapterRecord(fingerprint_of(checkpoint_folder(base)), fingerprint_of(folder), seed, types, described.raw, why)
    with atomic_directory(target, sources) as staging:
        save_file(tensors if why else to_peft(tensors), staging / WEIGHTS, {"format": "pt"})
        write_json_atomic(staging / CONFIG, record.to_json(base, {} if why else lora_config(config.text_config, modules)))
        carry_licences(folder, staging)
    for line in _summary(tensors, weights.shapes, base):
        say(line)
    say("PEFT reads it" if not why else f"for unidecouple alone; PEFT refuses it, since {'; '.join(why)}")


def _changed(weights: Weights, begun: dict[str, Tensor], base: str) -> list[str]:
    """Names of the weights that ``begun`` lacks or has otherwise."""
    for name, tensor in begun.items():
        if name not in weights.shapes or weights.shapes[name].shape != tensor.shape:
            raise ValueError(
                f"{weights.start} was not trained from {base!r}: {name} of shape {tuple(tensor.shape)} is not in it. "
                "Name the checkpoint it started from with --base"
            )
    return [name for name in weights.shapes if name not in begun or not same(weights.read([name])[name], begun[name])]


def _check_small(changed: Iterable[str], shapes: dict[str, Tensor], with_experts: bool) -> None:
    parts: dict[str, list[str]] = {}
    for name in changed:
        if is_large(name):
            parts.setdefault(part_of(name), []).append(name)
    for part, names in parts.items():
        size = sum(shapes[name].nbytes for name in names)
        start = "Give the checkpoint that the low-rank stage started from as --base (save_total_limit keeps it)"
        if part not in ("experts", "shared_expert"):
            raise ValueError(
                f"training changed {part} ({names[0]}, … {size:,} bytes), which is not small. {start}, or keep it whole"
            )
        if not with_experts:
            raise ValueError(
                f"training changed {part} ({names[0]}, … {size:,} bytes), which are not small. {start}, or save them in full "
                "with --with-experts"
            )


def _summary(kept: dict[str, Tensor], shapes: dict[str, Tensor], base: str) -> list[str]:
    """What is kept, by part, and how it compares with the checkpoint."""
    parts: dict[str, list[Tensor]] = {}
    for name, tensor in kept.items():
        parts.setdefault(part_of(name), []).append(tensor)
    lines = [f"  {part:14} {len(some):>5} tensors {sum(t.nbytes for t in some):>15,} bytes" for part, some in parts.items()]
    size, whole = (sum(tensor.nbytes for tensor in some.values()) for some in (kept, shapes))
    return [f"changed beyond {base}:", *lines, f"{size:,} bytes of the checkpoint's {whole:,} ({size / whole:.1%})"]
