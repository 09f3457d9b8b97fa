"""Training sequences are what the processor's chat template renders for generation, token by token; collation pads them."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unidecouple.batch import IGNORE, NO_IMAGE_TOKEN, Task
from unidecouple.data.sequences import QAPair, SequenceBuilder, TurnPart, collate, pixels
from unidecouple.models.processing import UniJanusProcessor
from unidecouple.models.tiny import ROLE_TOKENS, SPECIAL_TOKENS
from unidecouple.world.prompts import held_out, training_pair
from unidecouple.world.questions import CAPTION_REQUEST, conversation
from unidecouple.world.scene import random_scene

TURNS = [
    QAPair("pope", "Is there an elephant in the image?", "yes"),
    QAPair("count", "How many buses are there?", "two"),
    QAPair("caption", CAPTION_REQUEST, "a red bus and a blue bus and a brown elephant"),
]


def prompt_of(processor: UniJanusProcessor, chat: list[dict[str, Any]], mode: str) -> Any:
    """As a user asks for it."""
    return processor.apply_chat_template(
        chat,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"generation_mode": mode},
    )


def chat(picture: np.ndarray, turns: list[QAPair]) -> list[dict[str, Any]]:
    """A conversation whose last question waits for its answer."""
    messages: list[dict[str, Any]] = []
    for turn in turns:
        messages.append({"role": "user", "content": [{"type": "text", "text": turn.text}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
    messages[0]["content"].insert(0, {"type": "image", "image": Image.fromarray(picture)})
    return messages[:-1]


@pytest.mark.parametrize("turns", [TURNS[:1], TURNS[:2], TURNS])
def test_understanding_is_the_template(
    builder: SequenceBuilder, processor: UniJanusProcessor, pictures: np.ndarray, turns: list[QAPair]
) -> None:
    inputs = prompt_of(processor, chat(pictures[0], turns), "text")
    sample = builder.understanding(pictures[0], turns)
    ids = inputs["input_ids"][0].tolist()
    answer = [*builder.tokenizer(turns[-1].answer, add_special_tokens=False)["input_ids"], builder.tokenizer.eos_token_id]
    assert sample.input_ids == ids + answer
    assert torch.equal(inputs["pixel_values"], pixels(pictures[:1]))
    if len(turns) == 1:
        assert builder.understanding_prompt(turns[0].text) == ids


def test_a_question_with_no_picture_is_the_template(builder: SequenceBuilder, processor: UniJanusProcessor) -> None:
    """Also where the library's template is asked for it: nothing of an image is left."""
    asked = [{"role": "user", "content": [{"type": "text", "text": TURNS[0].text}]}]
    ids = prompt_of(processor, asked, "text")["input_ids"][0].tolist()
    assert builder.understanding_prompt(TURNS[0].text, images=0) == ids
    assert not set(ids) & set(builder._image)


def test_a_question_about_two_pictures_is_the_template_and_the_conversation(
    builder: SequenceBuilder, processor: UniJanusProcessor, pictures: np.ndarray
) -> None:
    shown = [{"type": "image", "image": Image.fromarray(picture)} for picture in pictures[:2]]
    asked = [{"role": "user", "content": [*shown, {"type": "text", "text": TURNS[0].text}]}]
    ids = prompt_of(processor, asked, "text")["input_ids"][0].tolist()
    assert builder.understanding_prompt(TURNS[0].text, images=2) == ids
    assert builder.conversation([("user", [*pictures[:2], TURNS[0].text])], Task.MMU).input_ids == ids


@pytest.mark.parametrize("prompt", ["a photo of a cow", *(p.text for p in held_out("val")[0][::11])])
def test_generation_is_the_template(builder: SequenceBuilder, processor: UniJanusProcessor, prompt: str) -> None:
    inputs = prompt_of(processor, [{"role": "user", "content": [{"type": "text", "text": prompt}]}], "image")
    ids = inputs["input_ids"][0].tolist()
    assert builder.generation_prompt(prompt) == ids
    sample = builder.generation(prompt, range(16))
    assert (sample.input_ids[: len(ids)], len(sample.input_ids)) == (ids, len(ids) + 16)
    assert sample.image_tokens == [NO_IMAGE_TOKEN] * len(ids) + list(range(16))


def test_a_dropped_prompt_is_transformers_unconditional_row(builder: SequenceBuilder) -> None:
    """All but BOS and image start is padding, as the library's ``generate`` makes it."""
    full, dropped = (builder.generation_prompt("a photo of a cow", dropped) for dropped in (False, True))
    pad = builder.tokenizer.pad_token_id
    assert dropped == [full[0], *[pad] * (len(full) - 2), full[-1]]
    assert pad not in full
    assert builder.generation("a photo of a cow", range(16), dropped=True).input_ids[: len(full)] == dropped


def test_targets_are_the_answers_and_their_ends(builder: SequenceBuilder, pictures: np.ndarray) -> None:
    sample = builder.understanding(pictures[0], TURNS)
    learned = [token for token in sample.labels if token != IGNORE]
    assert builder.tokenizer.decode(learned) == " ".join(f"{turn.answer} <eos>" for turn in TURNS)
    assert all(label in (IGNORE, token) for label, token in zip(sample.labels, sample.input_ids, strict=True))
    assert set(builder.understanding(pictures[0], TURNS, answered=False).labels) == {IGNORE}
    assert set(builder.generation("a photo of a cow", range(16)).labels) == {IGNORE}


@pytest.mark.parametrize(("asked", "between"), [(False, ""), (True, "? <|assistant|> ")])
def test_pointing_has_one_target(builder: SequenceBuilder, pictures: np.ndarray, asked: bool, between: str) -> None:
    sample = builder.pointing(pictures[0], "cow", "red", asked)
    assert builder.tokenizer.decode(sample.input_ids).endswith(f"<end_of_image> cow {between}red")
    assert [label for label in sample.labels if label != IGNORE] == sample.input_ids[-1:]
    assert sample.labels[-1] != IGNORE
    assert set(sample.task_ids) == {Task.MMU}


def test_tasks_of_tokens(builder: SequenceBuilder, pictures: np.ndarray) -> None:
    assert set(builder.understanding(pictures[0], TURNS).task_ids) == {Task.MMU}
    drawn = builder.generation("a photo of a cow", range(16))
    assert drawn.task_ids == [Task.MMU] + [Task.T2I] * (len(drawn.input_ids) - 1)  # BOS says nothing of the task


def test_the_world_has_no_unknown_word(builder: SequenceBuilder, pictures: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    unknown = builder.tokenizer.unk_token_id
    for _ in range(300):
        assert unknown not in builder.generation_prompt(training_pair(rng)[0].text)
        assert unknown not in builder.understanding(pictures[0], conversation(random_scene(rng), rng, 6)).input_ids
    for split in ("val", "test"):
        assert all(unknown not in builder.generation_prompt(prompt.text) for prompt in held_out(split)[0])
    assert unknown in builder.generation_prompt("a photo of a zebra")


def test_collate_pads_on_the_right(builder: SequenceBuilder, pictures: np.ndarray) -> None:
    asked, drawn = builder.understanding(pictures[2], TURNS), builder.generation("a photo of a cow", range(16))
    batch = collate([drawn, asked], pad_token_id=0)
    short, long = len(drawn.input_ids), len(asked.input_ids)
    assert batch.input_ids.shape == (2, long)
    assert batch.attention_mask.tolist() == [[True] * short + [False] * (long - short), [True] * long]
    assert batch.input_ids[0].tolist() == drawn.input_ids + [0] * (long - short)
    assert batch.labels[0].tolist() == [IGNORE] * long
    assert batch.image_tokens[0].tolist() == drawn.image_tokens + [NO_IMAGE_TOKEN] * (long - short)
    assert batch.task_ids[1].tolist() == asked.task_ids
    assert torch.equal(batch.pixel_values, pixels(pictures[2:3]))
    assert collate([drawn], 0).pixel_values is None


def test_a_batch_marks_words_of_dropped_prompts(builder: SequenceBuilder, pictures: np.ndarray) -> None:
    """Those between the BOS and the image-start token of a dropped prompt; neither padding nor tokens to be drawn, pads too."""
    asked, captioned, hidden = (
        builder.understanding(pictures[0], TURNS[:1]),
        builder.generation("a cow", [1, 2]),
        builder.generation("a photo of a cow", [1, 2], dropped=True),
    )
    batch = collate([asked, captioned, hidden], builder.tokenizer.pad_token_id)
    assert batch.prompt_dropped is not None
    assert batch.prompt_dropped.any(1).tolist() == [False, False, True]
    assert batch.prompt_dropped[2].nonzero().flatten().tolist() == list(range(1, len(hidden.input_ids) - 3))


def test_pixels_are_the_processors(processor: UniJanusProcessor, pictures: np.ndarray) -> None:
    theirs = processor.image_processor([Image.fromarray(picture) for picture in pictures], return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels(pictures), theirs)
    assert torch.equal(pixels(list(pictures)), theirs)
    assert (float(theirs.min()), float(theirs.max())) == (-1.0, 1.0)


def test_pictures_of_another_scale_are_refused(processor: UniJanusProcessor) -> None:
    other = copy.copy(processor)
    other.image_processor = copy.copy(processor.image_processor)
    other.image_processor.image_mean = [0.48, 0.46, 0.41]
    with pytest.raises(ValueError, match=r"image_mean=\(0\.48, 0\.46, 0\.41\)"):
        SequenceBuilder(other)


def test_unknown_mode(processor: UniJanusProcessor) -> None:
    with pytest.raises(ValueError, match="generation_mode='video' is not one of text, image"):
        processor("a photo", generation_mode="video")


def test_conversations_are_the_other_sequences_where_those_go(builder: SequenceBuilder, pictures: np.ndarray) -> None:
    turns: list[tuple[str, list[TurnPart]]] = []
    for number, turn in enumerate(TURNS):
        turns += [("user", [*([pictures[0]] if number == 0 else []), turn.text]), ("assistant", [turn.answer])]
    asked, wanted = builder.conversation(turns, Task.MMU), builder.understanding(pictures[0], TURNS)
    assert replace(asked, pictures=()) == replace(wanted, pictures=())
    assert np.array_equal(asked.pictures, wanted.pictures)
    prompt = "a photo of a cow"
    for dropped in (False, True):
        drawn = builder.conversation([("user", [prompt]), ("assistant", [tuple(range(16))])], Task.T2I, dropped)
        assert drawn == builder.generation(prompt, range(16), dropped)


def test_pictures_anywhere_are_the_template(builder: SequenceBuilder, processor: UniJanusProcessor, pictures: np.ndarray) -> None:
    """Several images a turn, before, between and after words, and in a later turn."""
    said: list[tuple[str, list[TurnPart]]] = [
        ("user", ["Is the", pictures[0], "left of", pictures[1]]),
        ("assistant", ["yes"]),
        ("user", [pictures[2], "Where is the", "cow"]),
        ("assistant", ["left"]),
    ]
    chats = [
        {
            "role": role,
            "content": [
                {"type": "text", "text": f" {part} "}
                if isinstance(part, str)
                else {"type": "image", "image": Image.fromarray(part)}
                for part in parts
            ],
        }
        for role, parts in said
    ]
    sample = builder.conversation(said, Task.MMU)
    inputs = prompt_of(processor, chats[:-1], "text")
    assert sample.input_ids[: inputs["input_ids"].shape[1]] == inputs["input_ids"][0].tolist()
    assert torch.equal(inputs["pixel_values"], pixels(sample.pictures))
    assert builder.tokenizer.decode([token for token in sample.labels if token != IGNORE]) == "yes <eos> left <eos>"


def test_words_alone_and_a_system_turn(builder: SequenceBuilder, processor: UniJanusProcessor) -> None:
    chats = [{"role": "user", "content": "Is there a cow?"}]
    plain = builder.conversation([("user", ["Is there a cow?"]), ("assistant", ["yes"])], Task.MMU)
    ids = prompt_of(processor, chats, "text")["input_ids"][0].tolist()
    assert (plain.input_ids[: len(ids)], plain.pictures) == (ids, ())
    conversation = builder.conversation([("system", ["a red"]), ("user", ["Is there a cow?"]), ("assistant", ["yes"])], Task.MMU)
    assert builder.tokenizer.decode(conversation.input_ids).startswith("<bos> a red <|user|> is there")


def test_several_drawings_in_one_conversation(builder: SequenceBuilder, pictures: np.ndarray) -> None:
    said: list[tuple[str, list[TurnPart]]] = [
        ("user", [pictures[0], "a cow"]),
        ("assistant", ["left", tuple(range(16))]),
        ("user", ["a pig"]),
        ("assistant", [tuple(range(16, 32))]),
    ]
    sample = builder.conversation(said, Task.T2I)
    assert (sum(sample.source_mask), len(sample.sources), np.array_equal(sample.sources[0], pictures[0])) == (16, 1, True)
    assert [token for token in sample.image_tokens if token != NO_IMAGE_TOKEN] == list(range(32))
    assert set(sample.labels) == {IGNORE}
    assert len(sample.pictures) == 1
    after = sample.image_tokens.index(15) + 1
    assert builder.tokenizer.decode(sample.input_ids[after : after + 4]) == "<end_of_image> <eos> <|user|> a"
    hidden = builder.conversation(said, Task.T2I, dropped=True)
    assert (len(hidden.input_ids), hidden.pictures) == (len(sample.input_ids), ())
    assert (hidden.sources, any(hidden.source_mask)) == ((), False)
    shown = set(hidden.input_ids) - {builder.tokenizer.pad_token_id}
    assert builder.tokenizer.decode(sorted(shown)) == "<bos> <begin_of_image> <end_of_image>"


@pytest.mark.parametrize("text", ["a <begin_of_image> b", "<image>", "yes <eos>", "<|user|> hello", "<pad>", "<|assistant|>"])
def test_users_cannot_write_special_tokens(builder: SequenceBuilder, text: str) -> None:
    """Wherever a text of theirs enters: a turn of any role, a question, a prompt, a negative prompt, an answer to be weighed."""
    for role in ("system", "user", "assistant"):
        turns: list[tuple[str, list[TurnPart]]] = [("system", ["a"]), ("user", ["b"]), ("assistant", ["c"])]
        said = [(one, [text] if one == role else parts) for one, parts in turns]
        with pytest.raises(ValueError, match=r"the text spells out '<.*>', a special token"):
            builder.conversation(said, Task.MMU)
    for what, make in (
        ("question", builder.understanding_prompt),
        ("prompt", builder.generation_prompt),
        ("answer", builder.answer_ids),
    ):
        with pytest.raises(ValueError, match=rf"the {what} spells out '<.*>', a special token"):
            make(text)


def test_words_that_are_no_unicode(builder: SequenceBuilder) -> None:
    for what, make in (
        ("question", builder.understanding_prompt),
        ("prompt", builder.generation_prompt),
        ("answer", builder.answer_ids),
    ):
        with pytest.raises(ValueError, match=f"the {what} .* half a surrogate pair"):
            make("a \ud83d cow")
    assert builder.generation_prompt("a\0cow \U0001f600")


def test_unknown_words(builder: SequenceBuilder) -> None:
    assert builder.unknown_words("a photo of a Zebra and a cow and a quagga") == (11, ["Zebra", "quagga"])
    assert builder.known_words == len(set(builder.tokenizer.get_vocab())) - len(SPECIAL_TOKENS) - len(ROLE_TOKENS)
    assert builder.generation_prompt("<unk>")  # means what an unknown word means


def test_images_of_the_assistant_are_understood_or_generated_by_the_task(builder: SequenceBuilder, pictures: np.ndarray) -> None:
    turns: list[tuple[str, list[TurnPart]]] = [("user", ["Which one?", pictures[0]]), ("assistant", [pictures[1], "a cow"])]
    understood = builder.conversation(turns, Task.MMU)
    assert np.array_equal(np.stack(understood.pictures), pictures[:2])
    placeholder = builder.tokenizer.convert_tokens_to_ids(builder.tokenizer.image_token)
    assert understood.input_ids.count(placeholder) == 2 * builder.seen_tokens
    assert (understood.images, any(understood.image_mask)) == ((), False)
    generated = builder.conversation(turns, Task.T2I)
    assert [len(images) for images in (generated.pictures, generated.images)] == [1, 1]
    with pytest.raises(ValueError, match="an image of the sample has no tokens yet"):
        collate([generated], builder.tokenizer.pad_token_id)
    codes = tuple(range(16))
    encoded = builder.conversation([turns[0], ("assistant", [codes, "a cow"])], Task.T2I)
    shown = {"pictures": (), "sources": ()}
    assert replace(generated, images=(codes,), **shown) == replace(encoded, **shown)


def test_a_pad_that_ends_answers_is_no_dropped_prompt(builder: SequenceBuilder, pictures: np.ndarray) -> None:
    """Tokenizers whose pad is their EOS: nothing is dropped but what was."""
    answered = builder.understanding(pictures[0], [QAPair("pope", "Is there a cow in the image?", "yes")])
    batch = collate([answered], builder.tokenizer.eos_token_id)
    assert batch.prompt_dropped is not None
    assert not batch.prompt_dropped.any()
