"""config.json of version 0.1, one per structure, and of today: what is migrated, what is refused, what transformers may add.

``version_1`` was written at commit cb21acb: config.json of ``save_pretrained``, names and shapes of the decoder's weights, and the
losses ``[mmu, t2i]`` of ``batch_for`` by routing, with weights that depend on their names alone (``set_weights``).
"""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from unidecouple.batch import Batch
from unidecouple.models.configuration import UniJanusConfig, UniLlamaConfig, UniVQConfig
from unidecouple.models.emu3 import UniEmu3Config
from unidecouple.models.families import UnifiedConfig, configuration, model_class
from unidecouple.models.schema import SCHEMA_VERSION, own_fields

OLD = sorted((Path(__file__).parent / "version_1").glob("*.json"))
FIELDS = {
    UniLlamaConfig: "ffn num_experts group_sizes num_experts_per_tok shared_expert shared_expert_per_task alpha_init task_routing "
    "group_by moe_layers per_group_layers per_group_parts per_group_norm per_group_attention num_tasks bos_kv "
    "context_router experts_backend lora_rank lora_alpha lora_targets lora_kind lora_experts lora_per_task task_deltas "
    "schema_version",
    UniJanusConfig: "schema_version",
    UniEmu3Config: "schema_version image_size",
    UniVQConfig: "encode_window",
}
"""Ours in schema version 4: a change here needs a new version, and a migration of files that have this one."""


@torch.no_grad()
def set_weights(model: nn.Module) -> None:
    for name, weight in model.named_parameters():
        scale = (weight.shape[-1] if weight.ndim == 3 else weight[0].numel()) ** -0.5 if weight.ndim > 1 else 0.2
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        weight.copy_(torch.randn(weight.shape, generator=generator) * scale + name.endswith("norm.weight"))


def batch_for(config: UnifiedConfig) -> Batch:
    """Two words and 16 image tokens to be generated in the first row; an image and an answer in the second."""
    image, placeholders = config.image_token_id, 20 if isinstance(config, UniEmu3Config) else 16
    length = placeholders + 4
    ids = torch.tensor([[1, 7, 8] + [0] * (length - 3), [1] + [image] * placeholders + [9, 10, 2]])
    image_tokens = torch.full((2, length), -1)
    image_tokens[0, 3:19] = torch.arange(16) * 7 % 16
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[0, 19:] = False
    tasks = torch.zeros(2, length, dtype=torch.long)
    tasks[0, 1:] = 1
    labels = torch.full((2, length), -100)
    labels[1, -2:] = ids[1, -2:]
    return Batch(ids, mask, tasks, labels, image_tokens, pixel_values=torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16))


def today() -> dict[str, Any]:
    """A file of this version."""
    text = UniLlamaConfig(num_hidden_layers=2, per_group_layers=[1], group_by="modality")
    raw: dict[str, Any] = json.loads(UniJanusConfig(text_config=text).to_json_string())
    return raw


@pytest.mark.parametrize("path", OLD, ids=[path.stem for path in OLD])
def test_a_checkpoint_of_version_0_1_computes_what_it_did(path: Path) -> None:
    old = json.loads(path.read_text())
    config = configuration(old["config"])
    model = model_class(config)(config).eval()
    decoder = {name: list(weight.shape) for name, weight in model.decoder.state_dict().items()}
    assert decoder == old["weights"]
    set_weights(model)
    for routing, losses in old["losses"].items():
        with torch.no_grad():
            out = model(batch=(batch_for(config),), routing=routing)
        assert [out.mmu.mean.item(), out.t2i.mean.item()] == pytest.approx(losses, abs=1e-4)
    again = json.loads(config.to_json_string())
    assert again["schema_version"] == again["text_config"]["schema_version"] == SCHEMA_VERSION
    assert configuration(again).to_dict() == config.to_dict()


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_a_change_of_fields_needs_a_new_version(kind: type[Any]) -> None:
    assert SCHEMA_VERSION == 4
    assert own_fields(kind) == set(FIELDS[kind].split())


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("text_config", {"groupby": "task"}, "version 4) has an unknown field 'groupby' (is 'group_by' meant?)"),
        ("text_config", {"split": "task"}, "version 4) has an unknown field 'split', which is now 'group_by'"),
        ("text_config", {"number_of_tasks": 2}, "unknown field 'number_of_tasks'"),
        ("text_config", {"group_by": None}, "lacks 'group_by', which every file of its version has"),
        ("text_config", {"group_by": None, "gruop_by": "task", "transformers_version": "99.0"}, "lacks 'group_by'"),
        ("text_config", {"schema_version": None, "gruop_by": "task", "transformers_version": "99.0"}, "lacks"),
        ("vq_config", {"encode_windw": 8}, "version 1) has an unknown field 'encode_windw' (is 'encode_window' meant?)"),
        (None, {"image_tokn_id": 4}, "unknown field 'image_tokn_id'"),
        (None, {"schema_version": SCHEMA_VERSION + 1}, "schema_version=5, and this unidecouple reads versions 1 to 4: update"),
        ("text_config", {"schema_version": SCHEMA_VERSION + 1}, "update unidecouple"),
        (None, {"schema_version": "2"}, "schema_version='2'"),
    ],
)
def test_unknown_fields_are_refused(part: str | None, change: dict[str, Any], said: str, tmp_path: Path) -> None:
    """By every reader: ours, transformers' own, and the construction in code. A value of None removes the field."""
    raw = today()
    inner = raw if part is None else raw[part]
    inner.update({name: value for name, value in change.items() if value is not None})
    for name in (name for name, value in change.items() if value is None):
        del inner[name]
    if "gruop_by" in change and "schema_version" in change:
        del inner["group_by"]
    with pytest.raises(ValueError, match=re.escape(said)):
        configuration(raw)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=re.escape(said)):
        AutoConfig.from_pretrained(tmp_path)


def test_fields_of_transformers_are_no_fault() -> None:
    """Those it has, those it had, its private ones; and any of a newer release, which alone knows them."""
    raw = today()
    raw["text_config"] |= {"rope_theta": 1e6, "torch_dtype": "float32", "tokenizer_class": "x", "_private": 1, "temperature": 0.5}
    raw |= {"tie_encoder_decoder": False, "quantization_config": None}
    assert configuration(raw).text_config.group_by == "modality"
    raw["text_config"]["attention_sinks"] = 4
    with pytest.raises(ValueError, match="unknown field 'attention_sinks'"):
        configuration(raw)
    raw["transformers_version"] = "99.0.0"
    assert configuration(raw).text_config.group_by == "modality"


def test_a_misspelt_field_of_an_old_file_is_found_by_its_nearness() -> None:
    """Version 1 leaves no field out either, but nothing says so; a newer transformers may have written what is far from ours."""
    raw = json.loads(OLD[0].read_text())["config"] | {"transformers_version": "99.0.0"}
    raw["text_config"]["attention_sinks"] = 4
    assert configuration(raw).text_config.ffn == "dense"
    raw["text_config"]["untied_layer"] = [1]
    with pytest.raises(ValueError, match=r"version 1\) has an unknown field 'untied_layer' \(is 'untied_layers' meant\?\)"):
        configuration(raw)


def test_code_that_misspells_a_field_fails() -> None:
    with pytest.raises(ValueError, match="unknown field 'untied_layer'"):
        UniLlamaConfig(untied_layer=[1])
