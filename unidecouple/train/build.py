"""From a run's configuration to a model: load the start, apply the structure, add a stage's low-rank updates."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import AddedToken

from unidecouple.batch import Task
from unidecouple.convert.licences import carry_licences
from unidecouple.convert.structure import with_more_words, with_structure, with_text
from unidecouple.diagnose.routing import expert_usage
from unidecouple.methods.stage import Lora
from unidecouple.methods.structure import Structure, UsagePartitioned
from unidecouple.models.compressed import compressed_weights, set_weight
from unidecouple.source import BatchSource

if TYPE_CHECKING:
    from unidecouple.models.base import UnifiedModel
    from unidecouple.models.families import UnifiedConfig
    from unidecouple.models.processing import UnifiedProcessor

USAGE_BATCH, USAGE_BATCHES = 64, 4
"""Understanding samples that expert usage is measured on: batch size, number of batches."""


def restructure(model: UnifiedModel, structure: Structure, seed: int, usage: Sequence[torch.Tensor] = ()) -> UnifiedModel:
    """``model`` with ``structure`` in place of its own; its outputs are unchanged if the structure is ``Upcycled``.

    Args:
        model: dense, or what the structure starts from.
        structure: see ``methods/structure``.
        seed: of new router weights.
        usage: see ``expert_usage``; for structures that are ``UsagePartitioned``.

    Raises:
        ValueError: it has another structure already.
    """
    text, state = model.config.text_config, model.state_dict()
    config = with_structure(model.config, structure)
    changed = structure.partition(state, text, usage) if isinstance(structure, UsagePartitioned) else structure.upcycle(state, text)
    return _rebuild(model, config, changed, seed)


def apply_structure(model: UnifiedModel, structure: Structure, seed: int, source: BatchSource) -> UnifiedModel:
    """``restructure``, with what the structure needs measured on understanding samples of ``source``.

    Raises:
        ValueError: it needs to be measured and there are none, or ``model`` is not what it starts from.
    """
    text = model.config.text_config
    if not isinstance(structure, UsagePartitioned) or text.ffn != "moe":
        return restructure(model, structure, seed)
    if Task.MMU not in source.measurable:
        raise ValueError(
            f"{structure.kind!r} splits experts by how understanding uses them, but there is no understanding data: add some"
        )
    if model.device.type == "meta":  # the first process measures, and has the weights that the result will have
        return restructure(model, structure, seed, [torch.zeros(text.num_experts)] * len(text.mixture_layers))
    batches = (source.task_batch(Task.MMU, USAGE_BATCH, key) for key in range(USAGE_BATCHES))
    usage = expert_usage(model.eval(), (tuple(part.to(model.device) for part in batch) for batch in batches))
    return restructure(model, structure, seed, usage)


def add_lora(model: UnifiedModel, lora: Lora, seed: int) -> UnifiedModel:
    """``model`` with fresh low-rank updates, which change nothing yet.

    Raises:
        ValueError: it has some already; they would be lost.
    """
    if model.config.text_config.lora_rank:
        raise ValueError("the model has LoRA already: merge it before adding more")
    return _rebuild(model, with_text(model.config, **lora.configure()), model.state_dict(), seed)


def add_tokens(model: UnifiedModel, processor: UnifiedProcessor, tokens: Sequence[str]) -> UnifiedModel:
    """``model`` with rows for ``tokens``, which are added to the tokenizer of ``processor`` unless it has them.

    New rows are the mean of the others, of the embeddings and of the text head (Hewitt 2021); their first gradients part them.

    Raises:
        ValueError: Emu3, whose vocabulary ends in image tokens; word embeddings per task; or a token that is not one word.
    """
    new = [token for token in dict.fromkeys(tokens) if token not in processor.tokenizer.get_vocab()]
    if not new:
        return model
    shown = ", ".join(new)
    if hasattr(model.config, "vocabulary_map"):
        raise ValueError(f"add_tokens: [{shown}]: Emu3's vocabulary ends in image tokens and cannot grow; leave add_tokens out")
    if model.config.text_config.task_deltas:
        raise ValueError(f"add_tokens: [{shown}]: the model has word embeddings per task; add the words before it is decoupled")
    if odd := [token for token in new if not token or token.split() != [token]]:
        raise ValueError(f"add_tokens: {odd[0]!r} is not one word: leave out the spaces")
    processor.tokenizer.add_tokens([AddedToken(token, single_word=True, normalized=True) for token in new])
    ids = processor.tokenizer.convert_tokens_to_ids(new)
    rows = max(model.config.text_config.vocab_size, max(ids) + 1)
    return _rebuild(model, with_text(model.config, vocab_size=rows), with_more_words(model.state_dict(), rows, ids), 0)


def load_with_tokens(
    name_or_path: str, tokens: Sequence[str], *, shapes_only: bool = False
) -> tuple[UnifiedModel, UnifiedProcessor]:
    """A checkpoint with ``tokens`` added; ``shapes_only`` leaves its weights on the meta device. Raises as ``add_tokens``."""
    from unidecouple.convert.load import load, load_shapes  # imports transformers' models: seconds that a wrong recipe needs not

    model, processor = (load_shapes if shapes_only else load)(name_or_path)
    return add_tokens(model, processor, tokens), processor


@contextlib.contextmanager
def with_words_of(tuned: Path, base: Path, near: Path) -> Iterator[Path]:
    """The checkpoint ``base``, or a temporary copy in the folder ``near`` with the words that training added to ``tuned``."""
    from unidecouple.convert.layouts import DEEPSEEK, read_config
    from unidecouple.convert.load import load_processor

    if DEEPSEEK in (read_config(base).layout, read_config(tuned).layout):
        yield base
        return
    ours, theirs = (load_processor(str(folder)).tokenizer.get_vocab() for folder in (base, tuned))
    words = sorted(theirs.keys() - ours.keys(), key=theirs.__getitem__)
    if not words:
        yield base
        return
    near.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".start-", dir=near) as folder:
        model, processor = load_with_tokens(str(base), words)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        carry_licences(base, Path(folder), readme=True)
        yield Path(folder)


def _rebuild(model: UnifiedModel, config: UnifiedConfig, state: dict[str, torch.Tensor], seed: int) -> UnifiedModel:
    """A model of ``config`` with the weights ``state``; new weights keep their initial values, which ``seed`` decides."""
    torch.manual_seed(seed)
    shapes_only = model.device.type == "meta"
    with torch.device("meta") if shapes_only else contextlib.nullcontext():
        rebuilt = type(model)(config)
    if shapes_only:
        rebuilt.model.vqmodel = model.model.vqmodel
        return rebuilt.eval()
    compressed = dict(compressed_weights(model))
    missing, unexpected = rebuilt.load_state_dict({n: w for n, w in state.items() if n not in compressed}, strict=False)
    missing = [name for name in missing if name not in compressed]
    fresh = ("lora_A", "lora_B", "lora_R", "router.weight", "gate.weight")
    if unexpected or [name for name in missing if not name.endswith(fresh) and ".context_router." not in name]:
        raise ValueError(f"weights do not fit the new structure: unexpected {unexpected[:3]}, missing {missing[:3]}")
    for name, weight in compressed.items():
        set_weight(rebuilt, name, weight)
    rebuilt.generation_config = model.generation_config
    return rebuilt.to(model.device).eval()
