"""What stands around contents in a chat, read off templates by hand."""

from __future__ import annotations

import copy

import pytest

from unidecouple.data.chat import ChatFormat, chat_format
from unidecouple.models.processing import UniJanusProcessor


def test_the_tiny_template_by_hand(processor: UniJanusProcessor) -> None:
    assert chat_format(processor) == ChatFormat(
        prefix="understand . ",
        user="<|user|> ",
        image="<image> ",
        next_user=" <|user|> ",
        asked=" <|assistant|>",
        lead=" ",
        answered=" ",
    )


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ messages[0]['content'][0]['text'] | upper }}", "leaves out, changes or reorders"),
        ("{% for m in messages %}{{ m['content'][-1]['text'] }} {% endfor %}", "must end a question with"),
        ("{% for m in messages %}Q{{ m['content'][-1]['text'] }}{% endfor %}A", "must end a question with"),
        ("{% for m in messages %}{{ m['content'][-1]['text'] }}A{% endfor %}", "an answer with '<eos>'"),
        ("{% for m in messages %}{{ m['content']", "the chat template is broken"),
    ],
)
def test_templates_that_cannot_be_used(processor: UniJanusProcessor, template: str, said: str) -> None:
    other = copy.copy(processor)
    other.chat_template = template
    with pytest.raises(ValueError, match=said):
        chat_format(other)


def test_a_system_prompt_that_ends_a_line_is_not_spaced(processor: UniJanusProcessor) -> None:
    other = copy.copy(processor)
    for prompt, prefix in (("", ""), ("a .", "a . "), ("a.\n\n", "a.\n\n")):
        other.system_prompt = prompt
        assert other.text_prefix == prefix
