"""Emu3 from transformers' layout into ours and back: names, bits, configuration, logits, structures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Emu3Config, Emu3ForConditionalGeneration, Emu3Processor

from tiny_emu3 import SIDE, SIZE, emu3_processor, plain_emu3, write_emu3
from unidecouple.batch import Task
from unidecouple.convert.layouts import read_config
from unidecouple.convert.load import load
from unidecouple.data.sequences import SequenceBuilder, pixels
from unidecouple.generate.image import draw
from unidecouple.methods.structure import TaskAwareMoE
from unidecouple.models.emu3 import UniEmu3ForConditionalGeneration

Convert = Callable[..., Path]
Tensors = Callable[[Path], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_emu3(tmp_path_factory.mktemp("emu3") / "published")


@pytest.mark.parametrize("size", [10**9, 300_000])
def test_there_and_back_is_the_same_to_the_last_bit(
    downloaded: Path, converted: Convert, tensors_of: Tensors, tmp_path: Path, size: int
) -> None:
    ours = converted(downloaded, tmp_path / "ours", max_shard_bytes=size)
    back = converted(ours, tmp_path / "back", to="transformers")
    assert len(list(ours.glob("*.safetensors"))) == (1 if size > 10**6 else 5)
    before, between, after = tensors_of(downloaded), tensors_of(ours), tensors_of(back)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) and tensor.dtype == after[name].dtype for name, tensor in before.items())
    assert "text_model.model.layers.1.mlp.up_proj.weight" in before
    assert {name.split(".")[1] for name in between if name.startswith("model.")} == {"language_model", "vqmodel"}
    found = [read_config(folder) for folder in (ours, back)]
    assert (found[0].layout, found[0].is_emu3, found[1].layout, found[1].is_emu3) == ("unidecouple", True, "transformers", True)
    assert (back / "LICENSE").read_text() == "Apache-2.0\n"


def test_the_configuration_comes_back(downloaded: Path, emu3_base: Path, converted: Convert, tmp_path: Path) -> None:
    back = converted(emu3_base, tmp_path / "back", to="transformers")
    first, last = (Emu3Config(**json.loads((folder / "config.json").read_text())) for folder in (downloaded, back))
    assert first.to_dict() == last.to_dict()
    assert first.text_config.attention_dropout == 0.1
    ours = read_config(emu3_base).build(None)
    assert ours.text_config.attention_dropout == 0.0
    assert (ours.text_config.rope_parameters["rope_theta"], ours.text_config.num_key_value_heads) == (1e6, 2)
    assert (ours.image_size, ours.side) == (SIZE, SIDE)


def test_transformers_loads_what_is_written(emu3_base: Path, converted: Convert, tmp_path: Path) -> None:
    back = converted(emu3_base, tmp_path / "back", to="transformers")
    loaded, info = Emu3ForConditionalGeneration.from_pretrained(back, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = plain_emu3().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    theirs = Emu3Processor.from_pretrained(back)
    assert theirs.tokenizer.get_vocab() == emu3_processor().tokenizer.get_vocab()


@torch.no_grad()
def test_logits_are_transformers_own(emu3_base: Path) -> None:
    """Of words, and of a chat about an image as transformers' processor makes it."""
    ours, _ = load(str(emu3_base))
    theirs, processor = plain_emu3(), emu3_processor()
    assert isinstance(ours, UniEmu3ForConditionalGeneration)
    pictures = torch.randint(0, 256, (2, SIZE, SIZE, 3), dtype=torch.uint8).numpy()
    texts = [f"USER: <image>what is this {word}? ASSISTANT:" for word in ("cat", "dog")]
    chat = processor(text=texts, images=list(pictures), return_tensors="pt")
    torch.testing.assert_close(chat["pixel_values"], pixels(pictures), atol=1e-6, rtol=0)
    words = processor(text=["a photo of a red cat", "a blue pig"], padding=True, return_tensors="pt")
    for inputs in (words, chat):
        expected = theirs(**inputs).logits
        torch.testing.assert_close(ours(**inputs).logits, expected, atol=1e-5, rtol=0)
        assert (expected.amax(-1) - expected.mean(-1)).min() > 1  # they say something
    torch.testing.assert_close(ours(**{n: v for n, v in chat.items() if n != "image_sizes"}).logits, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_mixture_starts_as_the_dense_model(emu3_base: Path, converted: Convert, tmp_path: Path) -> None:
    mixture = converted(emu3_base, tmp_path / "moe", structure=TaskAwareMoE(context_router=True))
    (dense, processor), (ours, _) = load(str(emu3_base)), load(str(mixture))
    ids = torch.tensor([SequenceBuilder(processor).generation_prompt("a red cat")])
    for task in Task:
        one, two = (model(input_ids=ids, task_ids=torch.tensor([[int(task)]]), routing="label").logits for model in (dense, ours))
        torch.testing.assert_close(one, two, atol=1e-5, rtol=0)
    drawing = converted(mixture, tmp_path / "drawing", task=Task.T2I)
    slim, _ = load(str(drawing))
    torch.testing.assert_close(slim(input_ids=ids).logits[:, 1:], two[:, 1:], atol=1e-5, rtol=0)


def test_pictures_of_another_size(downloaded: Path, emu3_base: Path, plain: Path, converted: Convert, tmp_path: Path) -> None:
    """Of a checkpoint in either layout; the grid in the prompt, the processor and the model go with it."""
    for source in (downloaded, emu3_base):
        model, processor = load(str(converted(source, tmp_path / "small", image_size=8)))
        assert (model.num_image_tokens, processor.num_image_tokens, processor.picture_size) == (4, 4, 8)
        builder = SequenceBuilder(processor)
        assert "2 * 2" in builder.tokenizer.decode(builder.generation_prompt("a cat"))
        assert draw(model, builder, ["a cat"])[0][0].shape == (8, 8, 3)
    for source, said in (
        (downloaded, "image_size=9 is no multiple of the 4 pixels"),
        (plain, "--image-size 9: a Janus has one size"),
    ):
        with pytest.raises(ValueError, match=said):
            converted(source, tmp_path / "out", image_size=9)


def test_mistakes_are_named(downloaded: Path, emu3_base: Path, converted: Convert, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="deepseek-ai's layout is Janus's alone"):
        converted(emu3_base, tmp_path / "out", to="deepseek")
    with pytest.raises(ValueError, match="ffn='ta_moe'"):
        converted(converted(emu3_base, tmp_path / "moe", structure=TaskAwareMoE()), tmp_path / "out", to="transformers")
    broken = write_emu3(tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights["text_model.lm_head.weight"], weights["vqmodel.quantize.embedding.weight"]
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks (text_model\.lm_head\.weight|vqmodel\.quantize\.embedding\.weight)"):
        converted(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()
