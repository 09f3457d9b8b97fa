"""What was trained comes back to the last bit, what is not small or not ours is refused, and the folder is small."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from unidecouple.adapters.load import rebuild
from unidecouple.cli import main
from unidecouple.convert.convert import convert
from unidecouple.convert.load import load
from unidecouple.convert.steps import Conversion
from unidecouple.methods.stage import Lora
from unidecouple.methods.structure import MoE, Rosetta, Structure, TaskAwareMoE
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.ownership import MARKER
from unidecouple.train.build import restructure

Model = UniJanusForConditionalGeneration
MakeModel = Callable[..., Model]
ALL = Lora(4, 8.0)
SHARED_DENSE = Lora(4, 8.0, ("attention", "mlp"))
BY_TASK = replace(ALL, per_task=("attention", "shared_expert"))
SMALL_PARTS = ["generation", "task_router", "expert_router", "norms", "text_head"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "lora", "parts"),
    [
        ({}, SHARED_DENSE, ["generation"]),
        ({"ffn": "ta_moe"}, ALL, SMALL_PARTS),
        ({"ffn": "ta_moe", "context_router": True}, BY_TASK, ["task_router", "alpha", "embeddings"]),
        ({"ffn": "moe", "moe_layers": [1]}, Lora(4, 8.0, ("attention", "mlp", "experts")), []),
        ({"ffn": "ta_moe"}, None, ["expert_router"]),
        ({"ffn": "ta_moe"}, Lora(4, 8.0, ("attention", "router")), ["generation"]),
    ],
    ids=["dense", "ta_moe", "by task", "some layers", "routers alone", "LoRA on routers"],
)
def test_round_trip(
    make_model: MakeModel,
    write: Any,
    train: Any,
    saved: Any,
    same_checkpoint: Any,
    tmp_path: Path,
    text: dict[str, Any],
    lora: Lora | None,
    parts: list[str],
) -> None:
    base = make_model(**text)
    start = write("base", base)
    trained = write("trained", train(base, lora, parts))
    adapter = saved(trained, start)
    assert main(["adapter", "load", str(start), str(adapter), "--output", str(tmp_path / "out")]) == 0
    assert same_checkpoint(tmp_path / "out", trained)
    assert {file.name for file in adapter.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", MARKER}


@pytest.mark.slow
@pytest.mark.parametrize("structure", [TaskAwareMoE(context_router=True), MoE(moe_layers=(1,))], ids=lambda s: s.kind)
def test_a_dense_base_becomes_the_mixture_again(
    make_model: MakeModel, write: Any, train: Any, saved: Any, same_checkpoint: Any, tmp_path: Path, structure: Structure
) -> None:
    """The seed tells untouched routers; a wrong one costs their bytes, not exactness."""
    dense = make_model()
    base = write("base", dense)
    lora = Lora(4, 8.0, ("attention", "experts"))
    trained = write("trained", train(restructure(dense, structure, 3), lora, ["alpha"]))
    sizes = {}
    for seed in (3, 4):
        adapter = saved(trained, base, seed)
        kept = load_file(adapter / "adapter_model.safetensors")
        sizes[seed] = len(kept)
        assert all("lora" in name or name.endswith("alpha") for name in kept) == (seed == 3)
        write_to = tmp_path / f"out{seed}"
        assert main(["adapter", "load", str(base), str(adapter), "--output", str(write_to)]) == 0
        assert same_checkpoint(write_to, trained)
    assert sizes[3] < sizes[4]


def test_checkpoints_of_another_type_come_back_in_it(
    make_model: MakeModel, write: Any, train: Any, saved: Any, same_checkpoint: Any, tmp_path: Path
) -> None:
    """bfloat16 from float32, the tokenizer in float16, one weight left in float32; and float32 from bfloat16."""
    base = make_model()
    start = write("base", base)
    model = train(base, SHARED_DENSE, ["generation"])
    for name, part in model.model.named_children():
        part.to(torch.float16 if name == "vqmodel" else torch.bfloat16)
    model.model.language_model.norm.float()
    trained = write("trained", model)
    adapter = saved(trained, start)
    assert main(["adapter", "load", str(start), str(adapter), "--output", str(tmp_path / "out")]) == 0
    assert same_checkpoint(tmp_path / "out", trained)
    kept = [name.removeprefix("base_model.model.") for name in load_file(adapter / "adapter_model.safetensors")]
    others = [name for name in kept if "lora" not in name and not name.startswith("model.generation_")]
    assert others == ["model.language_model.norm.weight"]

    wide = write("wide", train(load(str(trained))[0], None, ["lora"]))
    assert main(["adapter", "load", str(trained), str(saved(wide, trained)), "--output", str(tmp_path / "back")]) == 0
    assert same_checkpoint(tmp_path / "back", wide)


def test_loaded_and_merged_it_computes_the_same(
    make_model: MakeModel, write: Any, train: Any, saved: Any, logits: Any, tmp_path: Path
) -> None:
    base = make_model(ffn="ta_moe")
    start, trained = write("base", base), train(base, ALL, SMALL_PARTS)
    adapter = saved(write("trained", trained), start)
    main(["adapter", "load", str(start), str(adapter), "--output", str(tmp_path / "out")])
    convert(tmp_path / "out", tmp_path / "merged", Conversion(merge=True), lambda line: None)
    merged = load(str(tmp_path / "merged"))[0]
    assert merged.config.text_config.lora_rank == 0
    torch.testing.assert_close(logits(merged), logits(trained), atol=1e-5, rtol=1e-5)
    assert float((logits(trained) - logits(base)).abs().max()) > 0.1


def test_size_is_said(make_model: MakeModel, write: Any, train: Any, saved: Any) -> None:
    base = make_model(ffn="ta_moe")
    said: list[str] = []
    start, trained = write("base", base), write("trained", train(base, ALL, ["task_router"]))
    adapter = saved(trained, start, said=said)
    kept = load_file(adapter / "adapter_model.safetensors")
    size = sum(tensor.nbytes for tensor in kept.values())
    assert f"{size:,} bytes of the checkpoint's" in said[-2]
    assert said[-1] == "PEFT reads it"
    assert any(line.split() == ["task_router", "2", "tensors", "512", "bytes"] for line in said)  # 2 layers x 2 tasks x 32 x 4


@pytest.mark.slow
def test_what_is_not_small_is_refused(make_model: MakeModel, write: Any, train: Any, saved: Any, same_checkpoint: Any) -> None:
    dense = make_model()
    base = write("base", dense)
    mixture = train(restructure(dense, TaskAwareMoE(), 0), ALL, ["experts"])
    trained = write("trained", mixture)
    with pytest.raises(ValueError, match=r"training changed experts .* bytes\), which are not small.*--base.*--with-experts"):
        saved(trained, base)
    adapter = saved(trained, base, with_experts=True)
    write_back = adapter.parent / "out"
    main(["adapter", "load", str(base), str(adapter), "--output", str(write_back)])
    assert same_checkpoint(write_back, trained)
    whole = write("whole", train(dense, None, ["attention"]))
    with pytest.raises(ValueError, match=r"training changed attention .* keep it whole"):
        saved(whole, base, with_experts=True)


def test_how_groups_came_about_is_not_in_the_configuration(make_model: MakeModel, write: Any, saved: Any) -> None:
    dense = make_model()
    base, trained = write("base", dense), write("trained", restructure(dense, Rosetta(), 0))
    with pytest.raises(ValueError, match=r"ffn='typed_moe'.*Keep the whole checkpoint"):
        saved(trained, base)


def test_training_from_an_adapter_says_what_makes_a_checkpoint_of_it(
    make_model: MakeModel, write: Any, train: Any, saved: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the command that it names does."""
    base = make_model()
    start = write("base", base)
    adapter = saved(write("trained", train(base, SHARED_DENSE, [])), start)
    (tmp_path / "recipe.yaml").write_text("data: {kind: world}\n")
    assert main(["train", str(tmp_path / "recipe.yaml"), f"model_name_or_path={adapter}", "--output", str(tmp_path / "run")]) == 1
    (command,) = re.findall(
        r"is an adapter, not a whole checkpoint: rebuild one with `unidecouple (.*) FOLDER`", capsys.readouterr().err
    )
    assert main([*command.split(), str(tmp_path / "whole")]) == 0
    assert load(str(tmp_path / "whole"))[0].config.text_config.lora_rank == SHARED_DENSE.r


def test_another_base_is_refused(make_model: MakeModel, write: Any, train: Any, saved: Any, tmp_path: Path) -> None:
    base = make_model()
    start, other = write("base", base), write("other", make_model(seed=1))
    adapter = saved(write("trained", train(base, SHARED_DENSE, [])), start)
    with pytest.raises(ValueError, match=r"other is not the base of .*another hash.*saved against .*base"):
        rebuild(str(other), adapter)
    mixture = write("mixture", make_model(ffn="ta_moe"))
    with pytest.raises(ValueError, match=r"was not trained from .*mlp\.alpha of shape \(1,\) is not in it.*--base"):
        saved(start, mixture)


def test_damage_is_found(make_model: MakeModel, write: Any, train: Any, saved: Any, tmp_path: Path) -> None:
    base = make_model()
    start = write("base", base)
    adapter = saved(write("trained", train(base, SHARED_DENSE, [])), start)
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] += 1e-4
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ValueError, match="do not make the checkpoint it was saved from"):
        rebuild(str(start), adapter)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"cannot read .*adapter_model\.safetensors"):
        rebuild(str(start), adapter)
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "auto_mapping": None}))
    with pytest.raises(ValueError, match=r"lacks base_sha256.*not written by `unidecouple adapter save`"):
        rebuild(str(start), adapter)


def test_nothing_else_is_overwritten(make_model: MakeModel, write: Any, train: Any, saved: Any, tmp_path: Path) -> None:
    base = make_model()
    start = write("base", base)
    trained = write("trained", train(base, SHARED_DENSE, []))
    assert main(["adapter", "save", str(trained), "--base", str(start), "--output", str(trained)]) == 1
    assert main(["adapter", "save", str(trained), "--output", str(tmp_path / "adapter")]) == 1  # its base is unknown
    assert not (tmp_path / "adapter").exists()
    adapter = saved(trained, start)
    assert main(["adapter", "load", str(start), str(adapter), "--output", str(start)]) == 1
    assert main(["adapter", "load", str(start), str(adapter), "--output", str(adapter)]) == 1
    load(str(start))
    saved(trained, start)  # an earlier adapter may be replaced


def test_untied_layers_have_no_small_adapter(make_model: MakeModel, write: Any, saved: Any) -> None:
    base, untied = write("base", make_model()), write("untied", make_model(per_group_layers=[1]))
    with pytest.raises(ValueError, match=r"layers \[1\] have separate weights per task.*keep the checkpoint itself"):
        saved(untied, base)
