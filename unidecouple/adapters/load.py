"""``unidecouple adapter load``: a base and an adapter make a checkpoint.

An adapter that ``save`` wrote makes its checkpoint again, to the last bit or not at all: hashes of the base before and of the
result after are those that it recorded. One that PEFT wrote is merged into the base, or kept beside it as low-rank weights. The
processor is the base's: training changes none.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from unidecouple.adapters.beginning import dtypes, structured, typed
from unidecouple.adapters.fingerprint import fingerprint, fingerprint_of
from unidecouple.adapters.peft_form import from_peft
from unidecouple.adapters.peft_own import PeftAdapter, merged, read_peft, unmerged
from unidecouple.adapters.record import WEIGHTS, AdapterRecord, is_peft, read_record
from unidecouple.convert.licences import carry_licences
from unidecouple.convert.load import checkpoint_folder, fill_buffers, load
from unidecouple.convert.structure import with_text
from unidecouple.convert.weights import Weights, check_finite
from unidecouple.files import atomic_directory
from unidecouple.inputs import refuse_pointer
from unidecouple.models.base import UnifiedModel
from unidecouple.models.families import configuration, model_class
from unidecouple.models.processing import UnifiedProcessor
from unidecouple.models.shipped import located
from unidecouple.ownership import check_directory
from unidecouple.source import PrintLine


def rebuild(base: str, adapter: Path) -> tuple[UnifiedModel, UnifiedProcessor]:
    """The checkpoint that ``adapter`` was saved from, in its own types, and the base's processor.

    Raises:
        ValueError: ``base`` has other weights than the adapter's base, a file is broken, or what comes out is not the checkpoint.
    """
    record, named = read_record(adapter)
    if fingerprint_of(checkpoint_folder(base)) != record.base_sha256:
        raise ValueError(
            f"{base} is not the base of {adapter}: its weights have another hash. It was saved against {named!r}; give that one"
        )
    config = configuration(record.config)
    model, processor = load(base)
    state = typed(structured(model, config, record.seed), record.dtypes) | _read(adapter, record)
    if fingerprint(state) != record.sha256:
        raise ValueError(f"base and {adapter} do not make the checkpoint it was saved from: is {WEIGHTS} damaged? Copy it again")
    with torch.device("meta"):
        rebuilt = model_class(config)(config)
    rebuilt.load_state_dict(state, assign=True)
    fill_buffers(rebuilt, model)
    rebuilt.generation_config = model.generation_config
    return rebuilt.eval(), processor


def apply_peft(base: str, adapter: Path, keep_unmerged: bool) -> tuple[UnifiedModel, UnifiedProcessor, PeftAdapter]:
    """``base`` with the adapter that PEFT wrote to ``adapter``, in the base's types, and the base's processor.

    Args:
        base: the checkpoint that it was trained on; PEFT records no hash, so names and shapes are all that is compared.
        adapter: its folder.
        keep_unmerged: keep the updates as low-rank weights of our own; else they are added to the weights.

    Raises:
        ValueError: see ``read_peft`` and ``unmerged``.
    """
    model, processor = load(base)
    config, state = model.config, model.state_dict()
    types = dtypes(Weights(checkpoint_folder(base)).shapes)
    found = read_peft(adapter, config, state)
    if keep_unmerged:
        fields, low_rank = unmerged(found, config.text_config)
        config = with_text(config, **fields)
        state = {**state, **{name: tensor.to(state[name].dtype) for name, tensor in found.replaced.items()}}
    else:
        state = merged(found, state)
    with torch.device("meta"):
        made = model_class(config)(config)
    if keep_unmerged:
        shapes = made.state_dict()
        absent = {name: torch.zeros(shapes[name].shape) for name in shapes.keys() - state.keys()}
        state = {**state, **absent, **low_rank}
    state = typed(state, types)
    check_finite(state, f"{adapter} on {base}")
    made.load_state_dict(state, assign=True)
    fill_buffers(made, model)
    made.generation_config = model.generation_config
    return made.eval(), processor, found


def write(base: str, adapter: Path, target: Path, say: PrintLine, keep_unmerged: bool = False) -> None:
    """``rebuild``, or of PEFT's own adapters ``apply_peft``, into the folder ``target``.

    Raises:
        ValueError: as they do; ``target`` must not be replaced; or ``keep_unmerged`` with an adapter that is not PEFT's own.
    """
    folder = checkpoint_folder(base)
    sources = [located(base), folder, adapter]
    check_directory(target, sources)
    if is_peft(adapter):
        model, processor, found = apply_peft(base, adapter, keep_unmerged)
        how = "kept as low-rank weights" if keep_unmerged else "merged into its weights"
        said = f"{len(found.updates)} updates of {adapter} {how}, {len(found.replaced)} weights of {base} replaced"
        if found.base and found.base != base:
            say(f"PEFT recorded {found.base!r} as the base; names and shapes fit {base}")
    elif keep_unmerged:
        raise ValueError(f"--unmerged is for adapters that PEFT wrote; {adapter} rebuilds its checkpoint as it was")
    else:
        model, processor = rebuild(base, adapter)
        said = f"the checkpoint that {adapter} was saved from, bit for bit"
    with atomic_directory(target, sources) as staging:
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
        carry_licences(folder, staging)
        carry_licences(adapter, staging)
    say(f"{target}: {said}")


def _read(adapter: Path, record: AdapterRecord) -> dict[str, Tensor]:
    refuse_pointer(adapter / WEIGHTS)
    try:
        with safe_open(adapter / WEIGHTS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    except Exception as error:  # safetensors has its own, and OSError
        raise ValueError(f"cannot read {adapter / WEIGHTS}: {error}. Is it truncated? Copy it again") from error
    check_finite(tensors, str(adapter / WEIGHTS))
    return tensors if record.not_peft else from_peft(tensors, record.config["text_config"]["lora_rank"])
