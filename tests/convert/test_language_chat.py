"""Chats of an assembled base have the ids that the language model's own template gives."""

from __future__ import annotations

from typing import Any

import pytest

from tiny_language import CHATML, language_tokenizer
from unidecouple.batch import Task
from unidecouple.convert.language_chat import language_processor
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.models.processing import UniJanusProcessor

TURNS = [("user", "What is a cat?"), ("assistant", "A red cat."), ("user", "And the mat?"), ("assistant", "blue")]
SYSTEM = ("system", "You are a red cat.")

INSTRUCT = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
"""As Mistral has it: no system turn, a space before answers."""

HEADERS = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n\n' + message['content'] | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
"""As Llama 3: a BOS before all turns, no default system turn, nothing between turns."""

INSIDE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '[INST] <<SYS>>' + message['content'] + '<</SYS>> ' }}"
    "{% elif message['role'] == 'user' %}{{ ('' if not loop.first and loop.previtem['role'] == 'system' else '[INST] ') }}"
    "{{ message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
"""As Llama 2: the system's text is inside the user's turn."""

CASES: list[tuple[str, dict[str, Any], bool]] = [
    (CHATML, {}, True),
    (CHATML, {"bos_token": None}, True),
    (HEADERS, {"bos_token": "<|endoftext|>"}, True),
    (INSTRUCT, {"bos_token": "<|endoftext|>"}, False),
    (INSIDE, {"bos_token": "<|endoftext|>"}, False),
]


@pytest.mark.parametrize(("template", "named", "has_system"), CASES)
def test_ids_are_the_language_model_s(processor: UniJanusProcessor, template: str, named: dict[str, Any], has_system: bool) -> None:
    tokenizer = language_tokenizer(template, **named)
    made, added = language_processor(tokenizer, processor)
    builder = SequenceBuilder(made)
    assert added == [290, 291, 292, 293]
    for turns in (TURNS, [SYSTEM, *TURNS]) if has_system else (TURNS,):
        messages = [{"role": role, "content": text} for role, text in turns]
        expected = tokenizer.apply_chat_template(messages)["input_ids"]
        sample = builder.conversation([(role, [text]) for role, text in turns], Task.MMU)
        assert sample.input_ids == expected[: len(sample.input_ids)]
        assert made.tokenizer.decode(expected[len(sample.input_ids) :]).strip() == ""
        rendered = made.apply_chat_template(messages, tokenize=False)
        assert made.tokenizer(rendered if turns[0] == SYSTEM else made.text_prefix + rendered)["input_ids"] == sample.input_ids
    question = tokenizer.apply_chat_template([{"role": "user", "content": "What?"}], add_generation_prompt=True)["input_ids"]
    assert builder.understanding_prompt("What?", images=0) == question


@pytest.mark.parametrize("template", [None, "{{ messages[0]['content'] }}", "{{ raise_exception('no') }}"])
def test_without_a_chat_template_that_fits_role_tokens_are_added(processor: UniJanusProcessor, template: str | None) -> None:
    made, added = language_processor(language_tokenizer(template, bos_token="<|endoftext|>", pad_token=None), processor)
    builder = SequenceBuilder(made)
    ids = builder.conversation([("user", ["What?"]), ("assistant", ["A cat."])], Task.MMU).input_ids
    assert made.tokenizer.decode(ids) == "<|endoftext|><|user|>\nWhat?\n<|assistant|>\nA cat.<|im_end|>"
    assert len(added) == 6
    for word in ("<begin_of_image>", "<|user|>"):
        with pytest.raises(ValueError, match="special token"):
            builder.check_words(word)


def test_images_and_prompts_have_their_places(processor: UniJanusProcessor) -> None:
    made, _ = language_processor(language_tokenizer(), processor)
    builder = SequenceBuilder(made)
    marks = [made.tokenizer.convert_tokens_to_ids(f"<{name}>") for name in ("begin_of_image", "image", "end_of_image")]
    ids = builder.understanding_prompt("What?")
    at = ids.index(marks[0])
    assert ids[at : at + 18] == [marks[0], *[marks[1]] * 16, marks[2]]
    assert builder.generation_prompt("a cat")[-1] == marks[0]
    assert made.tokenizer.decode(builder.generation_prompt("a cat")).startswith("<|im_start|>user\na cat<|im_end|>")
    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    text = made.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)
    assert text == "user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n"


def test_a_tokenizer_without_an_end_is_refused(processor: UniJanusProcessor) -> None:
    with pytest.raises(ValueError, match="no EOS"):
        language_processor(language_tokenizer(None, eos_token=None), processor)
