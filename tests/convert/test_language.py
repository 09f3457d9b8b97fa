"""A language model becomes a base whose text logits are the language model's, in any layout that holds it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    JanusForConditionalGeneration,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tiny_emu3 import write_emu3
from tiny_language import language_config, language_tokenizer, write_language
from unidecouple.batch import Task
from unidecouple.convert.convert import convert
from unidecouple.convert.language import assemble_base, read_language
from unidecouple.convert.load import load
from unidecouple.convert.steps import Conversion
from unidecouple.files import write_json_atomic

IDS = torch.tensor([[1, 40, 60, 255, 2, 77, 1, 280]])


def quiet(line: str) -> None:
    """Say nothing."""


@torch.no_grad()
def language_logits(folder: Path) -> Tensor:
    return AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits


@torch.no_grad()
def base_logits(folder: Path) -> Tensor:
    model, _ = load(str(folder))
    return model(input_ids=IDS, task_ids=torch.full((1, 1), int(Task.MMU))).logits


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language(tmp_path_factory.mktemp("lm") / "language")


def test_logits_are_the_language_model_s(language: Path, language_base: Path, tmp_path: Path) -> None:
    expected, found = language_logits(language), base_logits(language_base)
    assert expected.std() > 0.01
    assert torch.equal(found[..., : expected.shape[-1]], expected)
    model, processor = load(str(language_base))
    text = model.config.text_config
    assert (text.num_attention_heads, text.num_key_value_heads, text.vocab_size) == (6, 2, 294)
    assert not text.tie_word_embeddings
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert torch.equal(base_logits(tmp_path), found)


def test_new_rows_start_at_the_mean_and_image_parts_are_copied(language_base: Path, small_base: Path) -> None:
    made, (parts, _) = load_file(language_base / "model.safetensors"), load(str(small_base))
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        torch.testing.assert_close(made[name][290:], made[name][:290].mean(0).expand(4, -1))
    same = [name for name, weight in parts.state_dict().items() if name in made and torch.equal(made[name], weight)]
    kept = ("model.vision_model.", "model.vqmodel.", "model.generation_embeddings.")
    assert set(same) >= {name for name in parts.state_dict() if name.startswith(kept)}
    features = load(str(language_base))[0].embed_image_tokens(torch.arange(64).unsqueeze(0)).detach()
    words = made["model.language_model.embed_tokens.weight"]
    assert 0.2 < float(features.square().mean().sqrt() / words.square().mean().sqrt()) < 2


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["transformers", "deepseek"])
def test_other_layouts_hold_it(language: Path, language_base: Path, tmp_path: Path, layout: str) -> None:
    convert(language_base, tmp_path / layout, Conversion(to=layout), quiet)
    if layout == "transformers":
        model = JanusForConditionalGeneration.from_pretrained(tmp_path / layout).eval()
        with torch.no_grad():
            torch.testing.assert_close(model(input_ids=IDS).logits[..., :290], language_logits(language))
    convert(tmp_path / layout, tmp_path / "back", Conversion(), quiet)
    before, after = load_file(language_base / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    chats = [load(str(folder))[1] for folder in (language_base, tmp_path / "back")]
    assert chats[0].text_prefix == chats[1].text_prefix
    assert chats[0].chat_template == chats[1].chat_template


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (Qwen2Config(tie_word_embeddings=True, use_sliding_window=False), Qwen2ForCausalLM),
        (MistralConfig(sliding_window=None, head_dim=16), MistralForCausalLM),
    ],
)
def test_other_llamas(config: Any, kind: Any, small_base: Path, tmp_path: Path) -> None:
    """Qwen2's biases and Mistral's odd head width; their text heads are tied and untied."""
    sizes = language_config().to_dict()
    for name in (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
    ):
        setattr(config, name, sizes[name])
    if config.model_type == "qwen2":
        config.layer_types = ["full_attention"] * 2
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    torch.manual_seed(1)
    model = kind(config)
    for name, bias in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(bias)
    model.save_pretrained(tmp_path / "lm")
    language_tokenizer().save_pretrained(tmp_path / "lm")
    assemble_base(tmp_path / "lm", tmp_path / "base", str(small_base), say=quiet)
    found = base_logits(tmp_path / "base")
    torch.testing.assert_close(found[..., :290], language_logits(tmp_path / "lm"))


@pytest.mark.slow
def test_spare_rows_of_the_vocabulary_are_used(small_base: Path, tmp_path: Path) -> None:
    """As Qwen's: 320 rows for 290 words; the image tokens' ids are the next, and no row is added."""
    write_language(tmp_path / "lm", vocab_size=320)
    assemble_base(tmp_path / "lm", tmp_path / "base", str(small_base), say=quiet)
    model, processor = load(str(tmp_path / "base"))
    assert (len(model.get_input_embeddings().weight), processor.tokenizer.image_token_id) == (320, 290)
    expected = language_logits(tmp_path / "lm")
    kept = [*range(290), *range(294, 320)]
    torch.testing.assert_close(base_logits(tmp_path / "base")[..., kept], expected[..., kept])


def test_gguf(small_base: Path, tmp_path: Path) -> None:
    """Written by the gguf package as llama.cpp's converter does it; the dequantised weights are the reference."""
    pytest.importorskip("gguf", reason="the extra gguf is not installed")
    from tiny_gguf import write_gguf

    file = write_gguf(write_language(tmp_path / "lm"), tmp_path / "weights" / "tiny.gguf")
    assemble_base(file, tmp_path / "base", str(small_base), say=quiet)
    reference = LlamaForCausalLM.from_pretrained(file.parent, gguf_file=file.name).eval()
    with torch.no_grad():
        assert torch.equal(base_logits(tmp_path / "base")[..., :290], reference(IDS).logits)
    torch.testing.assert_close(reference.state_dict()["model.norm.weight"], torch.ones(48))


def test_without_gguf_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ValueError, match=r"needs gguf, which is not installed: pip install .*extra 'gguf'"):
        read_language(tmp_path / "weights.gguf")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_type": "gpt2"}, "'gpt2', whose layers are not Llama's: llama, mistral, qwen2"),
        ({"model_type": "mistral", "sliding_window": 16}, "a window of tokens"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized weights"),
    ],
)
def test_what_is_no_llama_is_refused(language: Path, tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    write_json_atomic(tmp_path / "lm" / "config.json", language_config().to_dict() | changed)
    with pytest.raises(ValueError, match=said):
        assemble_base(tmp_path / "lm", tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_faults_are_named(language: Path, language_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no language model at"):
        assemble_base(tmp_path / "absent", tmp_path / "base")
    with pytest.raises(ValueError, match="inside"):
        assemble_base(language, language / "base")
    emu3 = write_emu3(tmp_path / "emu3")
    with pytest.raises(ValueError, match="is an Emu3"):
        assemble_base(language, tmp_path / "base", str(emu3))
    broken = write_language(tmp_path / "lm")
    weights = load_file(broken / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights of its config.json: model\.norm"):
        assemble_base(broken, tmp_path / "base")
    assert not (tmp_path / "base").exists()
