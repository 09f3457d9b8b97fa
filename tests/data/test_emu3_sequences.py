"""Emu3's sequences: ids as BAAI's code and transformers' processor make them, rows that end, prompts that stand bare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tiny_emu3 import SIDE, SIZE, emu3_processor
from unidecouple.batch import IGNORE, NO_IMAGE_TOKEN, Task
from unidecouple.convert.load import load_processor
from unidecouple.data.formats.record import ImageBytes
from unidecouple.data.pictures import ImagePreprocessor
from unidecouple.data.preview import token_spans
from unidecouple.data.sequences import QAPair, SequenceBuilder
from unidecouple.models.emu3_processing import UniEmu3Processor

CODES = list(range(10, 10 + SIDE * SIDE))


@pytest.fixture(scope="module")
def processor(emu3_base: Path) -> UniEmu3Processor:
    found = load_processor(str(emu3_base))
    assert isinstance(found, UniEmu3Processor)
    return found


@pytest.fixture(scope="module")
def builder(processor: UniEmu3Processor) -> SequenceBuilder:
    return SequenceBuilder(processor)


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def test_a_picture_to_be_drawn_as_in_the_published_training(builder: SequenceBuilder) -> None:
    """baaivision/Emu3, train/datasets.py: BOS, prompt, start, H*W, image token, rows with EOL; loss on visual tokens alone."""
    vocabulary = builder.tokenizer.get_vocab()
    sample = builder.generation("a red cat", CODES)
    names = ["<|extra_203|>", "a", "red", "cat", "<|image start|>", "4", "*", "4", "<|image token|>"]
    for row in range(SIDE):
        names += [f"<|visual token {code:06d}|>" for code in CODES[row * SIDE : (row + 1) * SIDE]] + ["<|extra_200|>"]
    first = vocabulary["<|visual token 000000|>"]
    made = [
        first + code if code != NO_IMAGE_TOKEN else id_ for id_, code in zip(sample.input_ids, sample.image_tokens, strict=True)
    ]
    assert made == [vocabulary[name] for name in names]
    assert [code for code in sample.image_tokens if code != NO_IMAGE_TOKEN] == CODES
    assert set(sample.labels) == {IGNORE}
    assert sample.task_ids == [Task.MMU] + [Task.T2I] * (len(names) - 1)


def test_prompts_are_transformers_own(processor: UniEmu3Processor, builder: SequenceBuilder, picture: np.ndarray) -> None:
    theirs = emu3_processor()
    plain = theirs(text=["a red cat"], return_for_image_generation=True, image_area=SIZE**2)
    assert builder.generation_prompt("a red cat") == plain["input_ids"][0]
    assert processor(text="a red cat", generation_mode="image")["input_ids"] == plain["input_ids"]
    assert builder.generation_prompt("a red cat", dropped=True) == builder.generation_prompt("")
    content = [{"type": "image"}, {"type": "text", "text": "what is this ?"}]
    asked = [{"role": "system", "content": [{"type": "text", "text": "You are a helpful assistant."}]}]
    chat = theirs.apply_chat_template([*asked, {"role": "user", "content": content}], add_generation_prompt=True)
    expected = theirs(images=[picture], text=[chat])["input_ids"][0]
    assert builder.understanding_prompt("what is this ?") == expected
    words = theirs.apply_chat_template([*asked, {"role": "user", "content": content[1:]}], add_generation_prompt=True)
    assert builder.understanding_prompt("what is this ?", images=0) == theirs(text=[words])["input_ids"][0]
    assert expected.count(builder.tokenizer.convert_tokens_to_ids("<image>")) == SIDE * (SIDE + 1)
    ours = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert processor(text=ours, images=[picture])["input_ids"][0] == expected
    with pytest.raises(ValueError, match="'video' is not one of text, image"):
        processor(text="a", generation_mode="video")


def test_conversations_are_the_two_tasks_in_their_cases(builder: SequenceBuilder, picture: np.ndarray) -> None:
    turns = [QAPair("vqa", "what is this ?", "a cat"), QAPair("vqa", "is this red ?", "no")]
    chat = [("user", [picture, "what is this ?"]), ("assistant", ["a cat"]), ("user", ["is this red ?"]), ("assistant", ["no"])]
    said, expected = builder.conversation(chat, Task.MMU), builder.understanding(picture, turns)
    assert (said.input_ids, said.labels) == (expected.input_ids, expected.labels)
    answers = builder.tokenizer.convert_tokens_to_ids(["a", "cat", "<|extra_204|>", "no", "<|extra_204|>"])
    assert [label for label in said.labels if label != IGNORE] == answers
    drawing = [("user", ["a red cat"]), ("assistant", [tuple(CODES)])]
    for dropped in (False, True):
        drawn, alone = builder.conversation(drawing, Task.T2I, dropped), builder.generation("a red cat", CODES, dropped)
        assert (drawn.input_ids, drawn.image_tokens) == (alone.input_ids, alone.image_tokens)
    two = builder.conversation([("user", ["a cat"]), ("assistant", [tuple(CODES), tuple(CODES)])], Task.T2I)
    ends = builder.tokenizer.convert_tokens_to_ids(["<|extra_200|>", "<|extra_201|>", "<|image end|>", "<|image start|>"])
    assert any(two.input_ids[at : at + 4] == ends for at in range(len(two.input_ids)))


@pytest.mark.parametrize("text", ["a <|visual token 000003|>", "<|extra_200|> cat", "<|image token|>"])
def test_words_cannot_be_image_tokens(builder: SequenceBuilder, text: str) -> None:
    with pytest.raises(ValueError, match="a special token"):
        builder.conversation([("user", [text]), ("assistant", ["no"])], Task.MMU)


def test_a_drawn_picture_is_shown_as_one(builder: SequenceBuilder) -> None:
    """Rows' ends part it from itself neither in a dry run nor in a preview, and are not counted."""
    found = [(part.look, part.count) for part in token_spans(builder.generation("a red cat", CODES), builder)]
    assert found == [("context", 9), ("image_out", SIDE * SIDE)]


def test_pictures_of_any_shape_become_squares(processor: UniEmu3Processor, tmp_path: Path) -> None:
    Image.new("RGB", (32, 16), (255, 0, 0)).save(tmp_path / "wide.png")
    wide = ImageBytes((tmp_path / "wide.png").read_bytes())
    preprocessor = ImagePreprocessor(processor)
    seen, drawn = preprocessor.for_understanding(wide), preprocessor.for_generation(wide)
    assert (preprocessor.size, seen.shape, drawn.shape) == (SIZE, (SIZE, SIZE, 3), (SIZE, SIZE, 3))
    assert seen[0, 0].tolist() == [127, 127, 127]
    assert seen[SIZE // 2, 0].tolist() == drawn[0, 0].tolist() == [255, 0, 0]


def test_the_processor_is_saved_whole(processor: UniEmu3Processor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    again = UniEmu3Processor.from_pretrained(tmp_path)
    assert (again.image_size, again.system_prompt, again.num_image_tokens) == (SIZE, "You are a helpful assistant.", SIDE**2)
    assert SequenceBuilder(again).understanding_prompt("a cat ?") == SequenceBuilder(processor).understanding_prompt("a cat ?")
    assert torch.tensor(processor.image_format.columns) == SIDE
