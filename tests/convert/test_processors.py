"""Processors: Janus-Pro's chats by hand, the same ids by the builder, by our processor and by transformers' own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, JanusForConditionalGeneration, JanusProcessor
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from published import BOS, EOS, PAD, write_json
from unidecouple.batch import IGNORE, Task
from unidecouple.convert.layouts import read_config
from unidecouple.convert.load import load
from unidecouple.convert.processors import read_processor
from unidecouple.data.sequences import QAPair, SequenceBuilder, pixels
from unidecouple.generate.image import draw_tokens
from unidecouple.generate.jobs import image_jobs
from unidecouple.generate.sampling import SamplingParams
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.processing import UniJanusProcessor

SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language.\n\n"
)
PICTURE = "<begin_of_image>" + "<image_placeholder>" * 16 + "<end_of_image>"
TURNS = [QAPair("pope", "Is there a cow in the image?", "yes"), QAPair("count", "How many?", "two red cows.")]


@pytest.fixture(scope="module")
def pro(ours: Path) -> UniJanusProcessor:
    return UniJanusProcessor.from_pretrained(ours)


@pytest.fixture(scope="module")
def pro_builder(pro: UniJanusProcessor) -> SequenceBuilder:
    return SequenceBuilder(pro)


def asked(turns: list[QAPair]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for turn in turns:
        messages.append({"role": "user", "content": [{"type": "text", "text": turn.text}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
    messages[0]["content"].insert(0, {"type": "image", "image": Image.new("RGB", (16, 16))})
    return messages[:-1]


def ids(processor: JanusProcessor, messages: list[dict[str, Any]], mode: str) -> list[int]:
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "processor_kwargs": {"generation_mode": mode}}
    return processor.apply_chat_template(messages, add_generation_prompt=True, **options)["input_ids"][0].tolist()


def test_special_tokens(pro: UniJanusProcessor) -> None:
    tokenizer = pro.tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (BOS, EOS, PAD)
    pictures = (tokenizer.image_token, tokenizer.boi_token, tokenizer.eoi_token)
    assert pictures == ("<image_placeholder>", "<begin_of_image>", "<end_of_image>")
    assert tokenizer("a cow").input_ids[0] == tokenizer.bos_token_id  # though the published tokenizer.json does not say so
    assert (pro.num_image_tokens, pro.image_processor.size["height"], tuple(pro.image_processor.image_mean)) == (
        16,
        16,
        (0.5, 0.5, 0.5),
    )
    assert pro.system_prompt == SYSTEM


def test_understanding_by_hand(pro: UniJanusProcessor, pro_builder: SequenceBuilder) -> None:
    text = f"{BOS}{SYSTEM}<|User|>: {PICTURE}\nIs there a cow in the image?\n\n<|Assistant|>:"
    assert pro.tokenizer.decode(pro_builder.understanding_prompt(TURNS[0].text)) == text
    sample = pro_builder.understanding(np.zeros((16, 16, 3), np.uint8), TURNS)
    assert pro.tokenizer.decode(sample.input_ids) == f"{text} yes{EOS}<|User|>: How many?\n\n<|Assistant|>: two red cows.{EOS}"
    learned = [label for label in sample.labels if label != IGNORE]
    assert pro.tokenizer.decode(learned) == f" yes{EOS} two red cows.{EOS}"


@pytest.mark.parametrize(
    ("question", "user"),
    [("", ""), ("  \n", ""), ("  How many?  ", "\n  How many?"), ("\nHow many?\n", "\n\nHow many?")],
)
def test_messages_are_stripped_as_deepseek_strips_them(
    pro: UniJanusProcessor, pro_builder: SequenceBuilder, question: str, user: str
) -> None:
    """``f"<image_placeholder>\\n{question}".strip()``, by hand."""
    text = f"{BOS}{SYSTEM}<|User|>: {PICTURE}{user}\n\n<|Assistant|>:"
    assert pro.tokenizer.decode(pro_builder.understanding_prompt(question)) == text
    picture = np.zeros((16, 16, 3), np.uint8)
    assert pro.tokenizer.decode(pro_builder.conversation([("user", [picture, question])], Task.MMU).input_ids) == text


def test_generation_by_hand(pro: UniJanusProcessor, pro_builder: SequenceBuilder) -> None:
    prompt = pro_builder.generation_prompt("a photo of a blue pig")
    assert pro.tokenizer.decode(prompt) == f"{BOS}<|User|>: a photo of a blue pig\n\n<|Assistant|>:<begin_of_image>"
    assert pro_builder.generation_prompt(" a photo of a blue pig\n") == prompt  # as the template strips what it is given
    dropped = pro_builder.generation_prompt("a photo of a blue pig", dropped=True)
    assert dropped == [prompt[0], *[pro.tokenizer.pad_token_id] * (len(prompt) - 2), prompt[-1]]


@pytest.mark.parametrize("turns", [TURNS[:1], TURNS])
def test_training_ids_are_prompt_ids(
    pro: UniJanusProcessor, pro_builder: SequenceBuilder, plain: Path, turns: list[QAPair]
) -> None:
    """What is trained begins with what generation is asked with: by our processor, and by transformers' own."""
    theirs = AutoProcessor.from_pretrained(plain)
    assert type(theirs) is JanusProcessor
    sample = pro_builder.understanding(np.zeros((16, 16, 3), np.uint8), turns)
    for processor in (pro, theirs):
        prompt = ids(processor, asked(turns), "text")
        assert sample.input_ids[: len(prompt)] == prompt
        drawn = ids(processor, [{"role": "user", "content": [{"type": "text", "text": "a yellow bus"}]}], "image")
        assert pro_builder.generation_prompt("a yellow bus") == drawn


def text(processor: UniJanusProcessor, *messages: tuple[str, Any], prompt: bool = True) -> str:
    rendered = [{"role": role, "content": content} for role, content in messages]
    return processor.apply_chat_template(rendered, add_generation_prompt=prompt, tokenize=False)


def test_chats_by_hand(pro: UniJanusProcessor) -> None:
    """Corners of the template, as transformers' conversion script renders them."""
    image, word = {"type": "image"}, lambda said: {"type": "text", "text": said}
    assert text(pro, ("user", [word(" look ")])) == "<|User|>: look\n\n<|Assistant|>:"
    assert text(pro, ("User", "plain")) == "<|User|>: plain\n\n<|Assistant|>:"
    mixed = [word("first"), image, word("second"), word("third")]
    assert text(pro, ("user", mixed)) == "<|User|>: first\n<image_placeholder>\nsecond third\n\n<|Assistant|>:"
    assert text(pro, ("user", [image]), prompt=False) == "<|User|>: <image_placeholder>"
    two = [("user", [word("a")]), ("assistant", [word("b")])]
    assert text(pro, *two, prompt=False) == "<|User|>: a\n\n<|Assistant|>: b"
    assert text(pro, *two) == f"<|User|>: a\n\n<|Assistant|>: b{EOS}<|Assistant|>:"
    assert text(pro, two[0], ("assistant", [word("")]), prompt=False) == "<|User|>: a\n\n<|Assistant|>:"
    assert text(pro, ("system", [word("s")]), prompt=False) == "System: s"


def test_pictures_are_the_image_processors(pro: UniJanusProcessor, pro_builder: SequenceBuilder) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    theirs = pro.image_processor([Image.fromarray(picture)], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels([picture]), theirs, atol=1e-6, rtol=0)


def test_the_short_side_is_the_publishers(pro: UniJanusProcessor, plain: Path, tmp_path: Path) -> None:
    """deepseek-ai: max(int(side / longest * 16), 14); transformers: max(round(side * (16 / longest)), 14). By hand:

    100 x 95 pixels: 15.2 is 15 in both; 100 x 98: 15.68 is 15 in the one and 16 in the other; 100 x 10: at least 14.
    """
    assert (pro.short_side, pro.image_processor.min_size) == ("floor", 14)
    theirs = JanusImageProcessorPil.from_pretrained(plain)
    other = UniJanusProcessor(theirs, pro.tokenizer, chat_template=pro.chat_template, num_image_tokens=16)
    for height, floor, rounded in ((95, 15, 15), (98, 15, 16), (10, 14, 14), (100, 16, 16)):
        picture = Image.new("RGB", (100, height), (250, 0, 0))
        for processor, rows in ((pro, floor), (other, rounded)):
            seen = processor.understood(picture)
            top = (16 - rows) // 2
            expected = np.full((16, 16, 3), 127, np.uint8)
            expected[top : top + rows] = (250, 0, 0)
            assert np.array_equal(seen, expected)
            assert np.array_equal(processor.understood(picture.transpose(Image.Transpose.TRANSPOSE)), expected.transpose(1, 0, 2))


def test_pictures_are_deepseeks(pro: UniJanusProcessor) -> None:
    """As ``VLMImageProcessor.resize`` of deepseek-ai/Janus does it, written down again from its formula."""
    rng = np.random.default_rng(0)
    for width, height in rng.integers(5, 200, (12, 2)).tolist():
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        longest = max(width, height)
        size = (max(int(width / longest * 16), 14), max(int(height / longest * 16), 14))
        resized = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
        expected = np.full((16, 16, 3), 127, np.uint8)
        left, top = ((16 - side) // 2 for side in size)
        expected[top : top + size[1], left : left + size[0]] = resized
        assert np.array_equal(pro.understood(picture), expected)
        message = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "?"}]}]
        options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
        given = pro.apply_chat_template(message, **options)["pixel_values"]
        torch.testing.assert_close(given, pixels([expected]), atol=1e-6, rtol=0)


def test_the_rule_of_pictures_and_role_tokens_survive_every_layout(
    published: Path, plain: Path, converted: Callable[..., Path], tmp_path: Path
) -> None:
    """Published tokenizers may flag their role tokens in ``additional_special_tokens`` alone."""
    here = shutil.copytree(published, tmp_path / "published")
    path = here / "tokenizer.json"
    raw = json.loads(path.read_text())
    for token in raw["added_tokens"]:
        token["special"] = not token["content"].startswith("<|")
    write_json(path, raw)
    write_json(here / "special_tokens_map.json", {"additional_special_tokens": ["<|User|>", {"content": "<|Assistant|>"}]})
    for layout in ("unidecouple", "transformers", "deepseek", "unidecouple"):
        here = converted(here, tmp_path / f"{layout}-{here.name}", to=layout)
        processor = read_processor(read_config(here))
        builder = SequenceBuilder(processor)
        assert processor.short_side == "floor"
        for text in ("hi <|User|> there", "<|Assistant|>"):
            for make in (builder.understanding_prompt, builder.generation_prompt, builder.answer_ids):
                with pytest.raises(ValueError, match=r"spells out '<\|.*\|>', a special token"):
                    make(text)
        added = {token["content"]: token["special"] for token in json.loads((here / "tokenizer.json").read_text())["added_tokens"]}
        assert added["<|User|>"]
        assert added["<|Assistant|>"]
    theirs = json.loads((plain / "processor_config.json").read_text())
    assert theirs["short_side"] == "floor"
    theirs.pop("short_side")
    foreign = shutil.copytree(plain, tmp_path / "foreign")
    write_json(foreign / "processor_config.json", theirs)
    for layout in ("unidecouple", "deepseek"):  # a checkpoint of transformers' keeps transformers' rule
        assert read_processor(read_config(converted(foreign, tmp_path / f"foreign-{layout}", to=layout))).short_side == "round"


def test_a_tokenizer_class_of_the_hub(plain: Path, pro_builder: SequenceBuilder, tmp_path: Path) -> None:
    """deepseek-community's files name Llama's class; the byte-level tokenizer.json counts."""
    shutil.copytree(plain, tmp_path / "hub")
    path = tmp_path / "hub" / "tokenizer_config.json"
    write_json(path, json.loads(path.read_text()) | {"tokenizer_class": "LlamaTokenizerFast", "backend": None})
    theirs = SequenceBuilder(read_processor(read_config(tmp_path / "hub")))
    for prompt in ("a photo of a blue pig", "two red cows, 3 buses"):
        assert theirs.generation_prompt(prompt) == pro_builder.generation_prompt(prompt)


def test_files_as_older_transformers_wrote_them(plain: Path, pro_builder: SequenceBuilder, tmp_path: Path) -> None:
    """deepseek-community's: the image processor in a file of its own, the template as json, no ``tie_word_embeddings``."""
    shutil.copytree(plain, tmp_path / "old")
    read = lambda name: json.loads((tmp_path / "old" / name).read_text())  # noqa: E731
    images = read("processor_config.json")["image_processor"]
    write_json(tmp_path / "old" / "preprocessor_config.json", images | {"image_processor_type": "JanusImageProcessor"})
    said = {"num_image_tokens": 16, "processor_class": "JanusProcessor", "use_default_system_prompt": True}
    write_json(tmp_path / "old" / "processor_config.json", said)
    template = tmp_path / "old" / "chat_template.jinja"
    write_json(tmp_path / "old" / "chat_template.json", {"chat_template": template.read_text()})
    template.unlink()
    config = read("config.json")
    config.pop("tie_word_embeddings")
    write_json(tmp_path / "old" / "config.json", config)
    model, processor = load(str(tmp_path / "old"))
    assert not torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)
    assert SequenceBuilder(processor).understanding_prompt("How many?") == pro_builder.understanding_prompt("How many?")


def test_transformers_draws_from_a_base_of_ours(
    builder: SequenceBuilder,
    make_model: Callable[..., UniJanusForConditionalGeneration],
    save: Callable[..., Path],
    converted: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """Whatever our generation_config.json said, its loop finds the tokens that it needs."""
    model = make_model()
    folder = converted(save(model), tmp_path / "plain", to="transformers")
    theirs = JanusForConditionalGeneration.from_pretrained(folder)
    assert theirs.dtype == torch.float32
    prompt = ids(AutoProcessor.from_pretrained(folder), [{"role": "user", "content": [{"type": "text", "text": "a cow"}]}], "image")
    given = {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt), dtype=torch.long)}
    drawn = theirs.generate(**given, generation_mode="image", do_sample=False, guidance_scale=3.0)
    assert torch.equal(
        drawn, draw_tokens(model, builder, image_jobs(builder, ["a cow"], 1, 0, SamplingParams(guidance_scale=3.0, temperature=0)))
    )


def test_janus_before_pro_has_no_role_tokens(published: Path, tmp_path: Path) -> None:
    shutil.copytree(published, tmp_path / "old")
    path = tmp_path / "old" / "tokenizer.json"
    path.write_text(path.read_text().replace("<|User|>", "<|other|>").replace("<|Assistant|>", "<|another|>"))
    old = read_processor(read_config(tmp_path / "old"))
    assert text(old, ("user", "hello")) == "User: hello\n\nAssistant:"
    assert (
        old.tokenizer.decode(SequenceBuilder(old).generation_prompt("a pig")) == f"{BOS}User: a pig\n\nAssistant:<begin_of_image>"
    )


def test_a_tokenizer_without_janus_tokens(published: Path, tmp_path: Path) -> None:
    shutil.copytree(published, tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    path.write_text(path.read_text().replace("<image_placeholder>", "<x>"))
    with pytest.raises(ValueError, match=r"has no token '<image_placeholder>': it is not Janus's"):
        read_processor(read_config(tmp_path / "other"))
    path.unlink()
    assert read_processor(read_config(tmp_path / "other")) is None
    shutil.copy(published / "tokenizer.json", path)
    (tmp_path / "other" / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        read_processor(read_config(tmp_path / "other"))


def test_a_prompt_of_our_own_survives_other_layouts(
    processor: UniJanusProcessor,
    make_model: Callable[..., Any],
    save: Callable[..., Path],
    converted: Callable[..., Path],
    tmp_path: Path,
) -> None:
    here = save(make_model())
    for layout in ("transformers", "deepseek", "transformers", "unidecouple"):
        here = converted(here, tmp_path / f"{layout}-{here.name}", to=layout)
    again = SequenceBuilder(UniJanusProcessor.from_pretrained(here))
    before = SequenceBuilder(processor)
    assert again.understanding_prompt("Is there a cow?") == before.understanding_prompt("Is there a cow?")
    assert again.generation_prompt("a cow") == before.generation_prompt("a cow")


@pytest.mark.parametrize("dropped", [False, True])
def test_conversations_of_records_are_the_same_ids(pro_builder: SequenceBuilder, dropped: bool) -> None:
    """Byte pairs join what touches, so what a user's record holds must be tokenized as training tokenizes it."""
    picture = np.zeros((4, 4, 3), np.uint8)
    asked = [QAPair("a", "What is this?", "A cat."), QAPair("b", " And that? ", "A dog.")]
    turns = [("user", [picture, "What is this?"]), ("assistant", ["A cat."]), ("user", ["And that?"]), ("assistant", ["A dog."])]
    made, wanted = pro_builder.conversation(turns, Task.MMU), pro_builder.understanding(picture, asked)
    assert (made.input_ids, made.labels) == (wanted.input_ids, wanted.labels)
    drawn = pro_builder.conversation([("user", ["a red cat"]), ("assistant", [tuple(range(16))])], Task.T2I, dropped)
    assert drawn == pro_builder.generation("a red cat", range(16), dropped)


def test_prompts_with_source_images_are_those_of_janus_4o(pro_builder: SequenceBuilder) -> None:
    """FreedomIntelligence/ShareGPT-4o-Image, README: per image a block for the vision tower and one of image tokens, then words."""
    picture = np.zeros((16, 16, 3), np.uint8)
    block = PICTURE + "<begin_of_image>" + PAD * 16 + "<end_of_image>"
    for count in (1, 2):
        text = f"<|User|>: {block * count}Turn it blue.\n\n<|Assistant|>:<begin_of_image>"
        wanted = pro_builder.tokenizer(text)["input_ids"]
        assert pro_builder.generation_prompt("Turn it blue.", images=count) == wanted
        turns = [("user", [*[picture] * count, "Turn it blue."]), ("assistant", [tuple(range(16))])]
        sample = pro_builder.conversation(turns, Task.T2I)
        assert sample.input_ids[: len(wanted)] == wanted
        pads = [n for n, one in enumerate(wanted) if one == pro_builder.tokenizer.pad_token_id]
        assert [n for n, there in enumerate(sample.source_mask) if there] == pads
        assert sample.source_mask[: len(wanted)] == pro_builder.source_mask(wanted)
        assert (len(sample.pictures), len(sample.sources)) == (count, count)
