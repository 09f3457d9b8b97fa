"""C6: bytes in memory of a model loaded for one task (``load_one_task``), over those of the whole; counted, exact.

A tiny checkpoint is written, loaded whole and for each task, and what its parameters' memory takes is compared with what its
configuration says. For Janus-Pro-1B's decoder the same is computed alone.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.record import Result, Row
from benchmarks.tiny import SIZE, model_of, processor_of
from unidecouple.batch import Task
from unidecouple.convert.load import load
from unidecouple.generate.one_task import load_one_task
from unidecouple.models.base import UnifiedModel
from unidecouple.models.configuration import UniLlamaConfig

SMALL = replace(SIZE, hidden_size=128, intermediate_size=352, num_hidden_layers=4)
LORA = {"lora_rank": 16, "lora_targets": ["attention", "experts", "shared_expert"], "lora_per_task": ["attention"]}
PRO_1B = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16}


def held(model: UnifiedModel) -> int:
    """Bytes of all memory that the decoder's layers lie in, counted once, whatever part of it they use."""
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.decoder.layers.parameters()}
    return sum(storages.values())


def computed(text: UniLlamaConfig, task: Task | None, merged: bool) -> int:
    """Numbers in the layers of a two-task mixture (multi-head attention) or of what serves one task of it, by hand."""
    wide, inner, rank = text.hidden_size, text.intermediate_size, 0 if merged else text.lora_rank
    sides = 2 if task is None else 1
    experts, pairs = sides * text.experts_per_group, sides if "attention" in text.lora_per_task else 1
    attention = 4 * (wide * wide + pairs * rank * 2 * wide)
    one_ffn = 3 * wide * inner + rank * ((wide + 2 * inner) + (inner + wide))
    shared = 3 * wide * inner + rank * 3 * (wide + inner) + 1
    routers = wide * experts + (wide * sides if task is None else 0)
    first = 2 * wide if task is Task.T2I else 0
    return text.num_hidden_layers * (attention + experts * one_ffn + shared + routers + first + 2 * wide)


def run() -> Result:
    """Count, and compute."""
    processor = processor_of(SMALL)
    rows, details = [], {}
    model = model_of(processor, SMALL, ffn="ta_moe", **LORA)
    text = model.config.text_config
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder))
        processor.save_pretrained(folder)
        whole = held(load(folder)[0])
        for task in Task:
            share = held(load_one_task(folder, task)[0]) / whole
            by_hand = computed(text, task, merged=True) / computed(text, None, merged=False)
            off = share / by_hand - 1
            details[task.key] = {"share": share, "by hand": by_hand}
            rows.append(Row(f"decoder layers, {task.key} / all", share, "of all", goal="by hand, ± 1%", met=abs(off) <= 0.01))
    for experts in (2, 4):
        big = UniLlamaConfig(**PRO_1B, ffn="ta_moe", num_experts=2 * experts)
        share = computed(big, Task.T2I, merged=True) / computed(big, None, merged=True)
        rows.append(Row(f"Janus-Pro-1B's decoder layers, {experts} experts a task, computed", share, "of all"))
    title = "C6: bytes of a model loaded for one task (less is better)"
    return Result("slim_bytes", title, {"hidden": SMALL.hidden_size, "layers": SMALL.num_hidden_layers, **LORA}, rows, details)


if __name__ == "__main__":
    result = run()
    print(f"{result.table()}\n{result.write()}")
