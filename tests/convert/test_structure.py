"""Changes of structure: what the result computes, against what it was made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import JanusForConditionalGeneration

from unidecouple.batch import Batch, Task
from unidecouple.convert.convert import convert
from unidecouple.convert.load import load
from unidecouple.convert.steps import Conversion
from unidecouple.convert.structure import merge_lora
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.generate.image import draw_tokens
from unidecouple.generate.jobs import image_jobs
from unidecouple.generate.one_task import one_task
from unidecouple.generate.sampling import SamplingParams
from unidecouple.methods.structure import Dense, ILora, MoDE, MoE, MoT, Rosetta, Structure, Symbiotic, TaskAwareMoE, UniFork, UniX
from unidecouple.models.configuration import UniLlamaConfig
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.train.build import restructure

MakeModel = Callable[..., UniJanusForConditionalGeneration]
Save = Callable[[UniJanusForConditionalGeneration], Path]
Convert = Callable[..., Path]
Joint = tuple[Batch, Batch]

PROMPTS = ["a photo of a cow", "a photo of two red cups and a blue pig"]
LOW = {"lora_rank": 4, "lora_alpha": 4.0}
LORA = LOW | {"lora_targets": ["attention", "experts", "shared_expert"], "lora_per_task": ["attention", "shared_expert"]}
ROUTERS = LOW | {"lora_targets": ["attention", "router"]}
SOME = LOW | {"moe_layers": [1], "lora_targets": ["attention", "mlp", "experts"], "lora_per_task": ["mlp"]}


@torch.no_grad()
def logits(model: UniJanusForConditionalGeneration, joint: Joint, task: Task | None = None) -> list[Tensor]:
    """Of both heads on both batches, BOS left out; labelled ``task`` except for it, or routed by the model."""
    out = []
    for batch in joint:
        labelled = batch if task is None else replace(batch, task_ids=torch.full_like(batch.task_ids, task))
        labelled.task_ids[:, 0] = Task.MMU
        hidden = model.decode_batch(labelled, None if task is None else "label").last_hidden_state[:, 1:]
        out += [model.lm_head(hidden), model.model.generation_head(hidden)]
    return out


def difference(left: list[Tensor], right: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "structure",
    [
        MoE(num_experts=6, num_experts_per_tok=2),
        TaskAwareMoE(experts_per_group=1, alpha_init=0.3),
        TaskAwareMoE(experts_per_group=3, num_experts_per_tok=3, shared_expert=False),
        TaskAwareMoE(moe_layers=(1,), context_router=True),
        Rosetta(text_experts=1, image_in_experts=2, image_out_experts=3, num_experts_per_tok=1),
        TaskAwareMoE(shared_expert_per_task=True),
        MoT(group_by="image_out"),
        MoT(group_by="task", parts=("ffn",)),
        UniFork(fork=1),
        UniX(across=True),
    ],
    ids=repr,
)
def test_upcycling_computes_the_same(
    make_model: MakeModel, joint_batch: Joint, save: Save, converted: Convert, tmp_path: Path, structure: Structure
) -> None:
    dense = make_model()
    source = save(dense)
    upcycled = load(str(converted(source, tmp_path / "out", structure=structure, max_shard_bytes=50_000)))[0]
    assert difference(logits(upcycled, joint_batch), logits(dense, joint_batch)) <= 1e-5
    fields = structure.configure(dense.config.text_config)
    assert {name: getattr(upcycled.config.text_config, name) for name in fields} == fields
    if fields.get("per_group_layers"):
        return
    gate = upcycled.decoder.layers[1].mlp.gate.weight
    assert 0.01 < float(gate.detach().std()) < 0.03  # experts are copies: the router tells them apart
    again = load(str(converted(source, tmp_path / "again", structure=structure)))[0]
    other = load(str(converted(source, tmp_path / "other", structure=structure, seed=1)))[0]
    assert torch.equal(again.decoder.layers[1].mlp.gate.weight, gate)
    assert not torch.equal(other.decoder.layers[1].mlp.gate.weight, gate)


@pytest.mark.slow
@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize(
    "text",
    [
        {"num_experts": 6, "num_experts_per_tok": 2},
        {"num_experts": 2, "shared_expert": False},
        {"context_router": True, **LORA},
        {"shared_expert_per_task": True, **LORA},
        SOME,
        ROUTERS,
    ],
    ids=str,
)
def test_slimmed_to_one_task(
    make_model: MakeModel,
    builder: SequenceBuilder,
    joint_batch: Joint,
    save: Save,
    converted: Convert,
    tmp_path: Path,
    text: dict[str, Any],
    task: Task,
) -> None:
    """Without labels it computes what the whole model computes with the task as its label; with its updates merged, too."""
    whole = make_model(ffn="ta_moe", **text)
    expected = logits(whole, joint_batch, task)
    assert difference(expected, logits(whole, joint_batch, Task(1 - task))) > 0.1
    source, kind = save(whole), whole.config.text_config
    jobs = image_jobs(builder, PROMPTS, 1, 0, SamplingParams(guidance_scale=3.0, temperature=0))
    pictures = draw_tokens(whole, builder, jobs, routing="label") if task is Task.T2I else torch.empty(0)
    for merge in (False, True):
        slim = load(str(converted(source, tmp_path / f"slim-{merge}", task=task, merge=merge)))[0]
        assert difference(logits(slim, joint_batch), expected) <= 3e-5
        kept = slim.config.text_config
        assert (kept.ffn, kept.num_tasks, kept.experts_per_group) == ("moe", 1, kind.experts_per_group)
        assert kept.lora_rank == (0 if merge else kind.lora_rank)
        assert slim.num_parameters() < whole.num_parameters()
        assert kept.bos_kv == (task is Task.T2I)
        if task is Task.T2I:
            assert torch.equal(draw_tokens(slim, builder, jobs), pictures)
            assert len(pictures.unique()) > 8


@pytest.mark.slow
@pytest.mark.parametrize("shared", ["", "global", "per task"])
def test_one_expert_folds_to_a_dense_janus(
    make_model: MakeModel, joint_batch: Joint, save: Save, converted: Convert, tmp_path: Path, shared: str
) -> None:
    targets = ["attention", "experts", *(["shared_expert"] if shared else [])]
    low = {"lora_rank": 4, "lora_alpha": 4.0, "lora_targets": targets, "lora_per_task": ["attention"]}
    whole = make_model(ffn="ta_moe", num_experts=2, shared_expert=bool(shared), shared_expert_per_task=shared == "per task", **low)
    source = save(whole)
    for task in Task:
        dense = load(str(converted(source, tmp_path / task.key, task=task, structure=Dense())))[0]
        assert dense.config.text_config.intermediate_size == (128 if shared else 64)
        assert difference(logits(dense, joint_batch), logits(whole, joint_batch, task)) <= 3e-5
    folder = converted(tmp_path / "mmu", tmp_path / "plain", to="transformers")
    assert difference(logits(load(str(folder))[0], joint_batch), logits(whole, joint_batch, Task.MMU)) <= 3e-5
    assert type(JanusForConditionalGeneration.from_pretrained(folder).model.language_model).__name__ == "LlamaModel"


def test_pictures_of_other_layouts_differ_and_it_is_said(make_model: MakeModel, save: Save, tmp_path: Path) -> None:
    said: list[str] = []
    wanted = Conversion("transformers", Dense(), Task.T2I)
    convert(save(make_model(ffn="ta_moe", num_experts=2)), tmp_path / "out", wanted, said.append)
    assert [line for line in said if "4 names gone, 0 new" in line and "the BOS's keys and values left out" in line]
    assert not load(str(tmp_path / "out"))[0].config.text_config.bos_kv


@pytest.mark.parametrize("ffn", ["moe", "ta_moe"])
def test_updates_of_routers_merge(
    make_model: MakeModel, joint_batch: Joint, save: Save, converted: Convert, ffn: str, tmp_path: Path
) -> None:
    """The weights that come out are W + (lora_alpha / r) B A; where tokens go, and what they become, stays."""
    adapted = make_model(ffn=ffn, **ROUTERS)
    merged = load(str(converted(save(adapted), tmp_path / "merged", merge=True)))[0]
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    assert difference(logits(merged, joint_batch), logits(adapted, joint_batch)) <= 3e-5
    for name in ("router", "gate") if ffn == "ta_moe" else ("gate",):
        before, after = (getattr(model.decoder.layers[1].mlp, name) for model in (adapted, merged))
        by_hand = before.weight + torch.einsum("gor,gri->goi", before.lora_B, before.lora_A).view_as(before.weight)
        torch.testing.assert_close(after.weight, by_hand)
        assert not torch.allclose(after.weight, before.weight, atol=1e-2)


def test_updates_merge_on_the_way_to_other_layouts(
    make_model: MakeModel, joint_batch: Joint, save: Save, converted: Convert, tmp_path: Path
) -> None:
    adapted = make_model(lora_rank=4, lora_alpha=4.0, lora_targets=["attention", "mlp"])
    folder = converted(save(adapted), tmp_path / "out", to="deepseek")
    merged = load(str(converted(folder, tmp_path / "back")))[0]
    assert merged.config.text_config.lora_rank == 0
    assert difference(logits(merged, joint_batch), logits(adapted, joint_batch)) <= 3e-5


@pytest.mark.parametrize("structure", [ILora(r=4), MoDE(r=4)], ids=lambda structure: structure.kind)
def test_updates_weighed_per_token_are_refused_by_name(
    make_model: MakeModel, save: Save, structure: ILora | MoDE, tmp_path: Path
) -> None:
    """Neither merging nor another layout, the batched engine, folding or a second structure; the checkpoint itself loads."""
    mixed = restructure(make_model(), structure, 0)
    folder = save(mixed)
    for wanted in (Conversion(merge=True), Conversion(to="transformers"), Conversion(to="deepseek")):
        with pytest.raises(ValueError, match="a router weighs the updates per token"):
            convert(folder, tmp_path / "out", wanted, lambda line: None)
    with pytest.raises(ValueError, match="a router weighs the updates per token"):
        one_task(mixed, Task.MMU)
    with pytest.raises(ValueError, match="start from a dense checkpoint"):
        restructure(mixed, MoE(), 0)
    assert load(str(folder))[0].config.text_config.lora_kind == mixed.config.text_config.lora_kind
    with pytest.raises(ValueError, match="adds LoRA that changes nothing until it is trained"):
        convert(save(make_model()), tmp_path / "out", Conversion(structure=structure), lambda line: None)


def test_merging_by_hand() -> None:
    """Rounded once: in bfloat16, 1 + 2 x 0.0078125 x 0.125 is 1, but what is added to 0.5 is seen."""
    text = UniLlamaConfig(num_hidden_layers=1, lora_rank=1, lora_alpha=2.0, lora_targets=["attention"])
    part = {
        "q_proj.weight": torch.tensor([[1.0, 0.5]]).bfloat16(),
        "q_proj.lora_A": torch.tensor([[[0.125, 0.5]]]).bfloat16(),
        "q_proj.lora_B": torch.tensor([[[0.0078125]]]).bfloat16(),
        "mlp.experts.down_proj": torch.ones(2, 1, 1),
        "mlp.experts.down_lora_A": torch.tensor([[[1.0]], [[2.0]]]),
        "mlp.experts.down_lora_B": torch.tensor([[[3.0]], [[4.0]]]),
    }
    merged = merge_lora(part, text)
    assert list(merged) == ["q_proj.weight", "mlp.experts.down_proj"]
    assert merged["q_proj.weight"].tolist() == [[1.0, 0.5078125]]
    assert merged["q_proj.weight"].dtype == torch.bfloat16
    assert merged["mlp.experts.down_proj"].flatten().tolist() == [7.0, 17.0]


@pytest.mark.parametrize(
    ("text", "wanted", "said"),
    [
        ({"ffn": "ta_moe"}, {"to": "deepseek"}, "ffn='ta_moe', lora_rank=0 has no place in the deepseek layout"),
        ({"ffn": "ta_moe", **LORA}, {"merge": True}, "lora_A has one LoRA per task.*choose it with --task"),
        ({"ffn": "ta_moe"}, {"structure": MoE()}, "ffn='ta_moe': structure 'moe' must start from a dense checkpoint"),
        ({"lora_rank": 4, "lora_alpha": 4.0, "lora_targets": ["mlp"]}, {"structure": MoE()}, "merge them first"),
        ({}, {"task": Task.MMU}, "no weight belongs to one task"),
        ({"ffn": "moe"}, {"task": Task.MMU}, "no weight belongs to one task"),
        ({"ffn": "ta_moe"}, {"task": Task.MMU, "structure": Dense()}, "with 2 experts in layers .* cannot become dense"),
        ({"ffn": "ta_moe"}, {"structure": Dense()}, "with 4 experts in layers .* cannot become dense"),
        ({"ffn": "typed_moe", "group_by": "image_out"}, {"task": Task.T2I}, "group_by='image_out': each task uses several groups"),
        ({"ffn": "typed_moe", "group_by": "image_out", "group_sizes": [3, 1]}, {"structure": Dense()}, "with 4 experts in layers"),
        ({"ffn": "moe"}, {"structure": Symbiotic()}, "'symbiotic' needs measured expert usage"),
        ({}, {"structure": MoE(num_experts_per_tok=9)}, "num_experts_per_tok=9 must be from 1 to"),
    ],
)
def test_what_cannot_be_is_said(
    make_model: MakeModel, save: Save, converted: Convert, tmp_path: Path, text: dict[str, Any], wanted: dict[str, Any], said: str
) -> None:
    source = save(make_model(**text))
    with pytest.raises(ValueError, match=said):
        converted(source, tmp_path / "out", **wanted)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"structure": MoT()}, r"separate weights per task in layers \[1\]: structure 'mot' must start"),
        ({"structure": TaskAwareMoE()}, r"separate weights per task in layers \[1\]: structure 'ta_moe'"),
        ({"structure": Dense()}, "separate weights per task and cannot become dense"),
        ({"task": Task.T2I}, "separate weights per task, which --task cannot take out"),
        ({"to": "transformers"}, r"per_group_layers=\[1\] have no place in the transformers layout"),
        ({"to": "deepseek"}, "keep our own layout"),
    ],
    ids=str,
)
def test_untied_layers_stay_as_they_are(
    make_model: MakeModel, save: Save, tmp_path: Path, wanted: dict[str, Any], said: str
) -> None:
    source = save(make_model(per_group_layers=[1], per_group_norm=True, group_by="task"))
    with pytest.raises(ValueError, match=said):
        convert(source, tmp_path / "out", Conversion(**wanted), lambda line: None)
    assert not (tmp_path / "out").exists()
