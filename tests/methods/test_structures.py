"""Properties that every structure has: it starts as the dense model does, and treats the tasks alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from members import MISROUTED, NOTHING_PRIVATE, STRUCTURED, UPDATES, started
from unidecouple.batch import Batch, Task
from unidecouple.convert.load import load
from unidecouple.diagnose.routing import routing_map
from unidecouple.methods.stage import Lora
from unidecouple.methods.structure import (
    STRUCTURES,
    UPCYCLED,
    Dense,
    MoE,
    MoT,
    TaskAwareMoE,
    UniFork,
    UniX,
    Upcycled,
    UsagePartitioned,
)
from unidecouple.methods.structure.upcycling import copy_into_experts
from unidecouple.models.configuration import UniLlamaConfig
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.moe import MixtureOfExperts
from unidecouple.models.sharing import group_by_of, weights_and_task_rows
from unidecouple.train.build import add_lora, restructure

MakeModel = Callable[..., UniJanusForConditionalGeneration]
Joint = tuple[Batch, Batch]

SETTINGS: list[dict[str, Any]] = [
    {
        "experts_per_group": experts,
        "num_experts": 2 * experts,
        "num_experts_per_tok": k,
        "shared_expert": shared,
        "alpha_init": alpha,
    }
    for experts, k in ((1, 1), (2, 1), (3, 2))
    for shared, alpha in ((False, 0.5), (True, 0.0), (True, 0.3), (True, 1.0))
] + [
    {"shared_expert_per_task": True, "alpha_init": 0.3},
    {"moe_layers": (1,)},
    {"moe_layers": (0,), "experts_per_group": 3, "num_experts": 6},
]
TYPED: list[dict[str, Any]] = [{"text_experts": 1, "image_in_experts": 2, "image_out_experts": 3, "num_experts_per_tok": 1}]
UNTIED: list[dict[str, Any]] = [
    {"group_by": "task"},
    {"group_by": "image_out"},
    {"group_by": "task", "parts": ("ffn",)},
    {"parts": ("attention", "norms")},
    {"fork": 1},
    {"across": True},
    {"first": 0, "last": 1, "across": True},
]


def every_structure() -> list[Upcycled]:
    """Each structure of a dense model in all settings that it has fields for."""
    built = {}
    for kind in UPCYCLED:
        known = {field.name for field in dataclasses.fields(kind)}
        for setting in ({}, *SETTINGS, *TYPED, *UNTIED):
            structure = kind(**{name: value for name, value in setting.items() if name in known})
            built[repr(structure)] = structure
    return list(built.values())


def logits(model: UniJanusForConditionalGeneration, joint: Joint, routing: str = "learned") -> list[Tensor]:
    """Of both heads on both batches."""
    hidden = [model.decode_batch(batch, routing).last_hidden_state for batch in joint]
    return [head(state) for state in hidden for head in (model.lm_head, model.model.generation_head)]


def starts_as_dense(structure: Upcycled) -> bool:
    """All do, but Uni-X whose parted layers attend within a modality."""
    return not isinstance(structure, UniX) or structure.across


def difference(left: list[Tensor], right: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


def test_the_structures_under_test() -> None:
    assert {type(structure) for structure in every_structure()} == set(UPCYCLED) == set(STRUCTURES) - {UsagePartitioned}
    assert len({kind().kind for kind in STRUCTURES}) == len(STRUCTURES)


@pytest.mark.parametrize("structure", every_structure(), ids=repr)
@torch.no_grad()
def test_upcycling_is_exact(make_model: MakeModel, joint_batch: Joint, structure: Upcycled) -> None:
    """With grouped key/value heads, as of a base that was assembled from a language model; other tests have one per head."""
    dense = make_model(num_key_value_heads=2)
    upcycled = restructure(dense, structure, seed=3)
    fields = structure.configure(dense.config.text_config)
    assert {name: getattr(upcycled.config.text_config, name) for name in fields} == fields
    expected = logits(dense, joint_batch)
    assert min(float(part.std()) for part in expected) > 0.1
    for routing in ("learned", "label"):
        assert (difference(logits(upcycled, joint_batch, routing), expected) <= 1e-5) == starts_as_dense(structure)


@torch.no_grad()
def test_upcycled_weights(make_model: MakeModel) -> None:
    dense = make_model()
    model = restructure(dense, TaskAwareMoE(experts_per_group=3, alpha_init=0.25), seed=3)
    old, new = dense.decoder.layers[1].mlp, model.decoder.layers[1].mlp
    assert new.experts.gate_up_proj.shape == (6, 128, 32)
    for expert in range(6):
        assert torch.equal(new.experts.gate_up_proj[expert], torch.cat([old.gate_proj.weight, old.up_proj.weight]))
        assert torch.equal(new.experts.down_proj[expert], 0.75 * old.down_proj.weight)
    assert torch.equal(new.shared_expert.down_proj.weight, old.down_proj.weight)
    assert new.alpha.item() == 0.25
    assert not new.router.weight.any()
    assert new.gate.weight.any()  # experts start as copies: the router must tell them apart


def test_router_weights_follow_the_seed(make_model: MakeModel) -> None:
    dense = make_model()
    first, same, other = (restructure(dense, TaskAwareMoE(), seed).decoder.layers[0].mlp.gate.weight for seed in (3, 3, 4))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("first", "second"),
    [*((kind, kind) for kind in UPCYCLED if kind is not Dense), (TaskAwareMoE, MoT), (MoT, TaskAwareMoE), (UniFork, MoE)],
)
def test_upcycling_twice_is_an_error(make_model: MakeModel, first: type[Upcycled], second: type[Upcycled]) -> None:
    once = restructure(make_model(), first(), seed=0)
    with pytest.raises(ValueError, match="start from a dense checkpoint"):
        restructure(once, second(), seed=0)
    with pytest.raises(ValueError, match="start from a dense checkpoint"):
        second().upcycle(once.state_dict(), once.config.text_config)


@pytest.mark.parametrize("layer", [0, 1])
@torch.no_grad()
def test_some_layers_stay_dense(make_model: MakeModel, joint_batch: Joint, layer: int) -> None:
    dense = make_model()
    model = restructure(dense, TaskAwareMoE(moe_layers=(layer,), context_router=layer == 1), seed=3)
    kept, replaced = model.decoder.layers[1 - layer].mlp, model.decoder.layers[layer].mlp
    assert torch.equal(kept.up_proj.weight, dense.decoder.layers[1 - layer].mlp.up_proj.weight)
    assert isinstance(replaced, MixtureOfExperts)
    assert (replaced.router is None) == (layer == 1)  # the first mixture follows the context router
    assert len(model.decode_batch(joint_batch[0]).routing) == 1
    assert [row["layer"] for row in routing_map(model, joint_batch)] == [layer]
    with pytest.raises(ValueError, match="start from a dense checkpoint"):
        restructure(model, TaskAwareMoE(moe_layers=(1 - layer,)), seed=0)


def test_both_kinds_of_ffn_take_lora(make_model: MakeModel) -> None:
    some = restructure(make_model(), TaskAwareMoE(moe_layers=(1,)), seed=3)
    assert some.config.text_config.adaptable == ("attention", "experts", "shared_expert", "router", "mlp")
    adapted = add_lora(some, Lora(4, targets=("mlp", "experts")), seed=0)
    layers = {name.split(".layers.")[1][0] for name, _ in adapted.named_parameters() if "lora" in name}
    assert layers == {"0", "1"}
    with pytest.raises(ValueError, match="'mlp' is not in a model with ffn='moe'"):
        add_lora(restructure(make_model(), MoE(), seed=3), Lora(4, targets=("mlp",)), seed=0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ({"ffn": "ta_moe", "moe_layers": [2]}, r"moe_layers=\[2\].*layers 0 to 1"),
        ({"ffn": "ta_moe", "moe_layers": [1, 1]}, "each once"),
        ({"ffn": "ta_moe", "moe_layers": []}, "name some"),
        ({"ffn": "dense", "moe_layers": [1]}, "leave it out"),
        ({"ffn": "ta_moe", "num_tasks": 1}, "num_tasks=1 with ffn='ta_moe'"),
        ({"ffn": "moe", "num_tasks": 3}, "num_tasks=3"),
    ],
)
def test_layers_that_are_not_there(text: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        UniLlamaConfig(num_hidden_layers=2, **text)


def test_dense_keeps_the_weights(make_model: MakeModel) -> None:
    state = make_model().state_dict()
    kept = Dense().upcycle(state, UniLlamaConfig())
    assert kept.keys() == state.keys()
    assert all(kept[name] is state[name] for name in state)


def test_half_a_dense_layer_is_an_error() -> None:
    weight = torch.ones(1, 1)
    state = {"m.layers.0.mlp.gate_proj.weight": weight, "m.layers.0.mlp.down_proj.weight": weight}
    with pytest.raises(ValueError, match=r"m\.layers\.0\.mlp lacks up"):
        copy_into_experts(state, 4, shared_experts=1, alpha=0.5)


@torch.no_grad()
def swap_tasks(model: UniJanusForConditionalGeneration) -> None:
    """Exchange all that belongs to one task with what belongs to the other, the task routers' rows, too."""
    stacked = list(weights_and_task_rows(model))
    for weight, rows in stacked:
        one, other = (slice(rows[task].start, rows[task].stop) for task in Task)
        weight[one], weight[other] = weight[other].clone(), weight[one].clone()
    for name, weight in model.named_parameters():
        if stacked and name.endswith("mlp.router.weight"):
            weight.copy_(weight.flip(0))


def by_task(model: UniJanusForConditionalGeneration) -> bool:
    """Whether some weights are met by the task of a token; other splits do not read it."""
    return group_by_of(model) == "task" and any(True for _ in weights_and_task_rows(model))


@pytest.mark.parametrize("name", [*STRUCTURED, UPDATES])
@torch.no_grad()
def test_the_tasks_names_do_not_matter(make_model: MakeModel, joint_batch: Joint, enliven: Any, name: str) -> None:
    """Swapped in the batch and in the weights they cancel; where no weight goes by the task, the names alone change nothing."""
    model = started(make_model(), name)
    enliven(model, 1)
    before = logits(model, joint_batch, "label")
    swapped = tuple(replace(batch, task_ids=1 - batch.task_ids) for batch in joint_batch)
    assert (difference(logits(model, swapped, "label"), before) > 0.1) == by_task(model)
    if by_task(model):
        swap_tasks(model)
    assert difference(logits(model, swapped, "label"), before) <= 1e-5


@pytest.mark.parametrize("routing", ["learned", "label"])
@torch.no_grad()
def test_the_tasks_names_do_not_matter_to_what_is_routed(make_model: MakeModel, joint_batch: Joint, routing: str) -> None:
    targets = ["attention", "shared_expert"]
    kind = {"ffn": "ta_moe", "num_experts": 6, "lora_rank": 4, "lora_targets": ["experts", *targets], "lora_per_task": targets}
    model = make_model(**kind)
    before = logits(model, joint_batch, routing)
    groups = [layer.group for layers in model(batch=joint_batch, routing=routing).routing for layer in layers]
    swapped = tuple(replace(batch, task_ids=1 - batch.task_ids) for batch in joint_batch)
    swap_tasks(model)
    assert difference(logits(model, swapped, routing), before) <= 1e-5
    after = [layer.group for layers in model(batch=swapped, routing=routing).routing for layer in layers]
    assert all(torch.equal(new, 1 - old) for old, new in zip(groups, after, strict=True))
    assert torch.cat(groups).unique().tolist() == [0, 1]


def reached(model: UniJanusForConditionalGeneration, joint: Joint, task: Task, routing: str = "label") -> int:
    """How many weights have rows private to the other task in which the loss of ``task`` leaves any gradient."""
    model.zero_grad()
    model(batch=joint, routing=routing).loss(task).backward()
    mine = [(weight.grad, rows[Task(1 - task)]) for weight, rows in weights_and_task_rows(model) if 1 - task in rows]
    return sum(gradient is not None and bool(gradient[rows.start : rows.stop].any()) for gradient, rows in mine)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*STRUCTURED, UPDATES])
def test_a_task_s_loss_leaves_the_other_s_weights_alone(make_model: MakeModel, joint_batch: Joint, enliven: Any, name: str) -> None:
    """Not a bit of gradient, both ways, if a drawing's first token goes with it; as it is, through that alone.

    It goes with understanding. Generation's tokens attend to its key and value, which understanding's weights made.
    """
    model = started(make_model(), name)
    enliven(model, 1)
    assert (name in NOTHING_PRIVATE) == (not any(rows for _, rows in weights_and_task_rows(model)))
    drawing = joint_batch[Task.T2I]
    assert set(drawing.task_ids[:, 0].tolist()) == {Task.MMU}
    assert set(drawing.task_ids[:, 1:][drawing.attention_mask[:, 1:]].tolist()) == {Task.T2I}
    apart = (joint_batch[Task.MMU], replace(drawing, task_ids=torch.full_like(drawing.task_ids, Task.T2I)))
    for task in Task:
        assert reached(model, apart, task) == 0
    assert reached(model, joint_batch, Task.MMU) == 0
    assert (reached(model, joint_batch, Task.T2I) > 0) == by_task(model)


@pytest.mark.parametrize("name", MISROUTED)
def test_those_let_off_are_reached_otherwise(make_model: MakeModel, joint_batch: Joint, enliven: Any, name: str) -> None:
    model = started(make_model(), name)
    enliven(model, 1)
    assert all(reached(model, joint_batch, task, "learned") > 0 for task in Task)


@pytest.mark.slow
@pytest.mark.parametrize("structure", [kind() for kind in UPCYCLED], ids=lambda structure: structure.kind)
@torch.no_grad()
def test_saved_and_loaded(
    make_model: MakeModel, joint_batch: Joint, enliven: Any, processor: Any, tmp_path: Path, structure: Upcycled
) -> None:
    model = restructure(make_model(), structure, seed=3)
    enliven(model, 1)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    fields, expected = structure.configure(model.config.text_config), logits(model, joint_batch)
    for again in (type(model).from_pretrained(tmp_path).eval(), load(str(tmp_path))[0]):
        assert {name: getattr(again.config.text_config, name) for name in fields} == fields
        loaded = again.state_dict()
        assert all(torch.equal(weight, loaded[name]) for name, weight in model.state_dict().items())
        assert difference(logits(again, joint_batch), expected) <= 5e-6  # kernels round by where a weight lies in memory


@pytest.mark.parametrize(
    ("structure", "layers"),
    [
        (MoT(), [0, 1, 2, 3, 4, 5]),
        (UniFork(), [3, 4, 5]),
        (UniFork(fork=5), [5]),
        (UniFork(fork=0.3), [2, 3, 4, 5]),
        (UniX(), [0, 1, 5]),
        (UniX(first=1, last=3), [0, 3, 4, 5]),
        (UniX(first=0, last=0.5), [3, 4, 5]),
    ],
    ids=repr,
)
def test_which_layers_part(structure: Upcycled, layers: list[int]) -> None:
    assert structure.configure(UniLlamaConfig(num_hidden_layers=6))["per_group_layers"] == layers


@pytest.mark.parametrize(
    ("structure", "said"),
    [
        (UniFork(fork=0), "fork=0 is layer 0 of 6"),
        (UniFork(fork=6), "fork=6 is layer 6 of 6"),
        (UniFork(fork=1.0), r"fork=1\.0 is layer 6 of 6"),
        (UniX(first=0, last=0), "0 and 0 of 6"),
        (UniX(first=3, last=3), "3 and 3 of 6"),
    ],
    ids=repr,
)
def test_depths_that_cannot_be(structure: Upcycled, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        structure.configure(UniLlamaConfig(num_hidden_layers=6))
    with pytest.raises(ValueError, match="first=-1 must be at least 0"):
        UniX(first=-1, last=2)
